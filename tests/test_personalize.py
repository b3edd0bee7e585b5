"Learning from a file: what is stored, what is compared, and what is refused."

import contextlib
import json
from dataclasses import replace

import pytest

from personal_llm.app import personalize as app
from personal_llm.app.personalize import find_adapter, find_start, personalize
from personal_llm.data.reading import Dialogues
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import Model
from personal_llm.device.archive import Archive
from personal_llm.device.personalizer import Personalizer
from personal_llm.selection.library import Library
from personal_llm.tuning.config import TuningConfig

BRIEF = TuningConfig(steps=2)


@pytest.fixture(scope="module", autouse=True)
def short_replies():
    "Of eight tokens where they are measured: nothing here is about a whole one."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "MEASURED_TOKENS", 8)
        yield


CHATS = [
    Dialogue(f"What is thing number {i} of {i % 7}?", f"Thing {i} is a {i % 5}.", time=float(i)) for i in range(60)
]


def run(model, out, chats=CHATS, **options):
    return personalize(chats, out, model, policy="fifo", capacity=8, config=BRIEF, progress=False, **options)


def test_the_test_set_never_meets_the_memory(model, tmp_path):
    result, lines = run(model, tmp_path)
    stored = {d.prompt for d in Archive(tmp_path).dialogues.values()}
    assert len(stored) == result["seen"] == 60 - result["held_out"] and result["held_out"] >= 2
    shown = [line.removeprefix("prompt").strip() for line in lines if line.startswith("prompt")]
    assert len(shown) == 2 + (result["held_out"] > 2) and not stored & set(shown)
    assert set(result["change"]) == {"loss", "rouge1"}
    assert result["change"]["loss"]["difference"] == pytest.approx(
        result["change"]["loss"]["after"] - result["change"]["loss"]["before"]
    )


def test_a_run_says_how_long_it_takes_and_measures_the_newest_few(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("personal_llm.app.personalize.MAX_TESTED", 2)
    result, lines = personalize(CHATS, tmp_path, model, policy="fifo", capacity=8, config=BRIEF)
    told = capsys.readouterr().err
    assert "54 dialogues to read, 2 steps of a fine-tune, 2 replies; timing this machine …\nabout " in told
    rest = told.partition(" minutes\n")[2].splitlines()
    assert "reading:" in str(rest) and "/54 " in str(rest) and "/2 " in str(rest), "bars that count dialogues"
    assert result["held_out"] == 6 and result["tested"] == 2 and "6 held out, 2 measured" in lines[0]


def test_an_estimate_is_the_sum_of_its_parts(model, monkeypatch):
    "Ten replies of 2 s, forty dialogues read at .5 s, twelve steps of 3 s."
    monkeypatch.setattr(app.timeit, "repeat", lambda *given, **named: [9.0, 2.0])
    monkeypatch.setattr(app, "time_step", lambda *given: 3.0)
    assert app.estimate_minutes(model, CHATS[0], 10, 8) == 20 / 60
    assert app.estimate_minutes(model, CHATS[0], 10, 8, 40, TuningConfig(steps=12)) == (20 + 20 + 36) / 60
    assert app.estimate_minutes(model, CHATS[0], 10, 8, reply_seconds=3.0) == 30 / 60


def test_a_timed_step_is_one_of_the_fine_tune(model, monkeypatch):
    "On as many dialogues as a batch has, with the settings that follow."
    asked = []

    def tune(model, dialogues, config, progress, on_step):
        asked.append((len(dialogues), config))
        on_step(1, 0.0)
        on_step(2, 0.0)

    monkeypatch.setattr(app, "finetune", tune)
    config = TuningConfig(steps=90, layers=2, batch_size=2)
    assert app.time_step(model, CHATS[0], config) >= 0
    assert asked == [(2, replace(config, steps=2, checks=1, validation=0.0))]


def test_no_file_but_the_memory_holds_a_text(model, tmp_path):
    run(model, tmp_path, annotator=lambda dialogue: "In short: a thing.")
    others = [file for file in tmp_path.rglob("*") if file.is_file() and not file.name.startswith("memory.sqlite")]
    texts = [text.encode() for d in CHATS for text in (d.prompt, d.response)]
    content = b"".join(file.read_bytes() for file in others)
    assert not any(text in content for text in texts)
    assert json.loads((tmp_path / "personalize.json").read_text())["corrected"] >= 8


def test_an_interrupted_run_goes_on(model, tmp_path, monkeypatch):
    def fail(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("personal_llm.device.learning.tune", fail)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path)
    assert run(model, tmp_path)[0]["seen"] == 60 - len(CHATS) // 10


@pytest.mark.parametrize(
    ("chats", "folder", "policy", "line"),
    [
        (CHATS[:3], "new", "fifo", "3 distinct dialogues, too few to learn from; give at least 8"),
        (CHATS, "other", "fifo", "holds other files, such as notes.txt; give a new or empty folder"),
        (CHATS, "new", "unknown", "unknown policy 'unknown'; use one of"),
        (CHATS[:12], "mine", "fifo", "these chats were learned before; give new chats, or another folder"),
    ],
)
def test_what_cannot_work_is_one_line_and_changes_no_file(model, tmp_path, chats, folder, policy, line):
    run(model, tmp_path / "mine", CHATS[:12])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"]
    times = lambda: {file: file.stat().st_mtime_ns for file in files}
    before = times()
    with pytest.raises(InputError, match=line):
        personalize(chats, tmp_path / folder, model, policy=policy, config=BRIEF, progress=False)
    assert times() == before and not (tmp_path / "new").exists()


def test_another_buffer_for_a_folder_that_exists_is_refused(model, tmp_path):
    run(model, tmp_path, CHATS[:12])
    stored = Archive(tmp_path).events
    lines = {
        "8 bins, not 9; leave --capacity out": dict(capacity=9),
        "by policy 'fifo', not by": dict(policy="answers-first"),
    }
    for line, other in lines.items():
        with pytest.raises(InputError, match=line):
            personalize(CHATS, tmp_path, model, **dict(policy="fifo", capacity=8) | other)
    assert Archive(tmp_path).events == stored
    personalize(CHATS[20:40], tmp_path, model, config=BRIEF, progress=False)


def test_a_test_row_that_comes_again_counts_once(model, tmp_path):
    _, lines = run(model, tmp_path, [d for d in CHATS for _ in range(3)])
    prompts = [line for line in lines if line.startswith("prompt")]
    assert len({*prompts}) == len(prompts) > 0


def test_few_chats_have_no_test_set(model, tmp_path):
    chats = Dialogues(CHATS[:12])
    chats.user, chats.writer = "Kim", "Otto"
    result, lines = run(model, tmp_path, chats)
    assert result["held_out"] == 0 and result["change"] == {}
    assert "learns                  the model learns to answer Kim as Otto does: Otto's words" in lines[1]
    assert result["learns"] in lines[1]
    assert "no before and after: a test needs 50 dialogues, of several conversations and without repeats" in lines


def test_a_start_is_a_library_an_adapter_or_none(model, tmp_path):
    assert find_start("none") is None and isinstance(find_start("pocket"), Library)
    run(model, tmp_path / "one", CHATS[:12])
    start = find_start(str(tmp_path / "one"))
    assert start == find_adapter(tmp_path / "one") == tmp_path / "one" / "adapters" / "000"
    assert run(model, tmp_path / "two", CHATS[:12], start=start)[0]["start"] == "other"
    with pytest.raises(InputError, match="nowhere"):
        find_start("nowhere")


def test_a_folder_whose_model_changed_has_the_adapter_that_its_chat_uses(model, tmp_path):
    run(model, tmp_path, CHATS[:12])
    assert find_adapter(tmp_path) == tmp_path / "adapters" / "000"
    other = Model(model.model, model.tokenizer, "other", base="of another file")
    with contextlib.closing(Personalizer(other, folder=tmp_path)) as me:
        assert me.adapter is None
    with pytest.raises(InputError, match="other learned nothing here yet"):
        find_adapter(tmp_path)
    assert run(other, tmp_path, CHATS[:12])[0]["finetunes"] == 1, "these chats are new to this model"
    with contextlib.closing(Personalizer(other, folder=tmp_path)) as me:
        assert find_adapter(tmp_path) == me.adapter.path == tmp_path / "adapters" / "001"
    with contextlib.closing(Personalizer(model, folder=tmp_path)) as me:
        assert find_adapter(tmp_path) == me.adapter.path == tmp_path / "adapters" / "000"


def test_the_questions_about_a_second_file_are_paced_by_its_length(model, tmp_path):
    asked = []

    def annotate(dialogue):
        asked.append(int(dialogue.time))

    options = dict(config=BRIEF, progress=False, ask_when="policy")
    personalize(CHATS[:12], tmp_path, model, capacity=4, **options)
    personalize(CHATS[12:48], tmp_path, model, annotate, **options)
    assert 3 <= len(asked) <= 4 and asked[-1] >= 36, "they last to the end, and are not all asked at once"
