"Data sets, data frames, rows and messages are read as files are."

from pathlib import Path

import numpy as np
import pytest

from personal_llm.base.adapters import WEIGHTS_FILE
from personal_llm.base.core import Dialogue, InputError
from personal_llm.data.reading import Dialogues, records_in_memory, read_dialogues
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.evaluation import evaluate
from personal_llm.tuning.finetune import finetune
from devices import start, watch
from tiny import shared

ROWS = [dict(prompt=f"What is thing {i}?", response=f"Thing {i}.", time=float(i)) for i in range(4)]
CHAT = [dict(role="user", content="Tea?"), dict(role="assistant", content="Yes.")]
CHAT += [dict(role="user", content="Milk?"), dict(role="assistant", content="No.")]


def told(dialogues):
    return [(d.prompt, d.response, d.time, tuple(d.history)) for d in dialogues]


def a_data_set(rows):
    return pytest.importorskip("datasets", reason="pip install datasets").Dataset.from_list(rows)


def a_frame(rows):
    return pytest.importorskip("pandas", reason="pip install pandas").DataFrame(rows)


@pytest.mark.parametrize("form", [list, tuple, iter, a_data_set, a_frame], ids=lambda f: f.__name__)
def test_every_form_gives_the_same_dialogues(form):
    assert told(read_dialogues(form(ROWS))) == told(read_dialogues(ROWS)) and len(read_dialogues(form(ROWS))) == 4


@pytest.mark.parametrize("form", [list, a_data_set, a_frame], ids=lambda f: f.__name__)
def test_conversations(form):
    "A column of messages, in which pandas and datasets hold lists and arrays of their own."
    found = read_dialogues(form([dict(messages=CHAT), dict(messages=CHAT[:2])]))
    assert [d.prompt for d in found] == ["Tea?", "Milk?", "Tea?"] and len(found[1].history) == 2
    assert found[0].labels["group"] == found[1].labels["group"] != found[2].labels.get("group")


def test_one_conversation_and_a_list_of_them():
    assert [d.response for d in read_dialogues(CHAT)] == ["Yes.", "No."]
    assert [d.response for d in read_dialogues([CHAT, CHAT[:2]])] == ["Yes.", "No.", "Yes."]


def test_empty_cells_numbers_and_times():
    pandas = pytest.importorskip("pandas", reason="pip install pandas")
    frame = pandas.DataFrame([ROWS[0] | dict(topic="pots"), ROWS[1]])
    assert told(read_dialogues(frame)) == told(read_dialogues(ROWS[:2])), "a missing topic is no NaN"
    frame["time"] = pandas.to_datetime(["2024-05-31", None])
    assert [row.get("time") for _, row in records_in_memory(frame)[0]] == [1717113600.0, None]
    rows, errors = records_in_memory([dict(time=np.float32(2), x=np.array([1, 2]))])
    assert rows == [(1, dict(time=2.0, x=[1, 2]))] and errors == []


def test_dialogues_stay_as_they_are():
    given = [Dialogue("a", "b"), Dialogue("c", "d")]
    found = read_dialogues(given)
    assert isinstance(found, Dialogues) and found == given and read_dialogues(found) is found


@pytest.mark.parametrize(
    "data, said",
    [
        (3, "int holds no dialogues"),
        (dict(train=ROWS), "one of them, such as data"),
        ([ROWS[0], dict(prompt="x")], "the list row 2"),
        ([ROWS[0], 7], "the list row 2"),
        ([], "no dialogue in it"),
        (None, "NoneType holds no dialogues"),
    ],
)
def test_what_cannot_be_read_is_one_line(data, said):
    with pytest.raises(InputError, match=said) as error:
        read_dialogues(data)
    assert "\n" not in str(error.value)


def test_bad_rows_can_be_left_out():
    found = read_dialogues([ROWS[0], dict(prompt="x"), ROWS[1]], skip_invalid=True)
    assert len(found) == 2 and found.skipped[0][0] == 2


def test_personalize_takes_rows(tmp_path, monkeypatch):
    from personal_llm.app import personalize as module

    streams, rows = [], [dict(prompt=f"What is {i}?", response=f"It is {i}.") for i in range(9)]
    learn = module.learn_stream
    keep = lambda model, settings, stream, *rest: streams.append(stream) or learn(model, settings, stream, *rest)
    monkeypatch.setattr(module, "learn_stream", keep)
    given = dict(model=shared("llama"), progress=False, synthetic=0, steps=1)
    module.personalize(a_data_set(rows), tmp_path / "x", **given)
    skipping = dict(skip_invalid=True)
    result = module.personalize([*rows, dict(prompt="x")], tmp_path / "x", reading_options=skipping, **given)
    assert told(streams[0]) == told(streams[1]) == told(read_dialogues(rows)) and result["data"]["skipped"] == 1


@pytest.mark.parametrize("form", [list, a_data_set, a_frame], ids=lambda f: f.__name__)
def test_tuning_and_evaluating_take_rows(form):
    model, plan = shared("llama"), TuningConfig(rank=2, steps=1, batch_size=4, max_length=64)
    bits = lambda given: (Path(finetune(model, given, plan, progress=False).path) / WEIGHTS_FILE).read_bytes()
    read = read_dialogues(ROWS)
    assert bits(form(ROWS)) == bits(read)
    assert evaluate(model, form(ROWS), generate=False).items == evaluate(model, read, generate=False).items


def test_rows_that_are_none_are_one_line_for_tuning_too():
    for work in (finetune, evaluate):
        for wrong in (3, [dict(prompt="x")], [Dialogue("a", "b"), dict(prompt="x", response="y")]):
            with pytest.raises(InputError) as error:
                work(shared("llama"), wrong)
            assert "\n" not in str(error.value)


def test_a_personalizer_takes_rows(tmp_path):
    me, other = start(tmp_path / "a"), start(tmp_path / "b")
    watch(me, ROWS)
    watch(other, read_dialogues(ROWS))
    assert me.buffer.seen == 4 and told(me.buffer.dialogues) == told(other.buffer.dialogues)
