"What the recipes refuse, each with a line that says why."

import numpy as np
import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.recipes.crafted_styles import GRID, restyle
from personal_llm.recipes.data import count_leaks, is_reserved, read_instruct
from personal_llm.recipes.pocket_model import draw_batches
from personal_llm.recipes.samples import read_source
from hypothesis import given, settings
from hypothesis import strategies as st
from personal_llm.recipes.people import brevity, bullets, emoji, lower_case, numbered_steps, opener
from personal_llm.recipes.people import MAX_TEST_ROWS, preferred_words, sign_off, user_stream, USERS
from personal_llm.data.reading import load_samples
from personal_llm.data.splits import get_dialogue_group, get_row_group, remove_leaks

PLAIN = Dialogue("What is rain?", "Water that falls.")


@pytest.mark.parametrize(
    "function, given, line",
    [
        (restyle, (PLAIN, "shouting"), "unknown style 'shouting'; use one of elementary-concise-friendly"),
        (restyle, (PLAIN, "ladder:height:0"), "unknown ladder 'ladder:height:0'"),
        (restyle, (PLAIN, GRID[0], 2), "dose is 2; it is a chance from 0 to 1"),
        (read_instruct, ("no-such-folder",), r"no-such-folder: no instruct/\*.jsonl.gz here; give the data folder"),
        (read_source, ("no-such-folder", "dolly_6400"), "dolly_6400.jsonl.gz: no such file; give the data folder"),
    ],
)
def test_a_mistake_is_one_line(function, given, line):
    with pytest.raises(InputError, match=line):
        function(*given)


def test_a_text_shorter_than_a_batch_is_refused():
    with pytest.raises(InputError, match="99 tokens of text are less than a batch; give 8193 or more"):
        next(draw_batches(np.arange(99), window=8, seed=0))


HABITS = [brevity(), sign_off("Best, Ana"), opener("In short:"), lower_case(), bullets(), numbered_steps(), emoji("☕")]
HABITS += [preferred_words(dict(doctor="physician", use="utilise"))]
PARTS = ["The doctor.", "Use it!", "Why?", "- one", "2) two", "e.g. this", "Dr. Ray", "ok", "\n", "\n\n", "  "]
PARTS += ["✈", "İ", "uſe", "Best, Ana"]
prose = st.lists(st.sampled_from(PARTS), max_size=8).map(" ".join)


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.name)
@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=60) | prose)
def test_laws_of_habits(habit, text):
    said = habit.apply(text)
    assert habit.holds(said) and habit.apply(said) == said


ROWS = load_samples()


@pytest.mark.later
@pytest.mark.parametrize("name,seed", [("clinic", 0), ("storyteller", 1), ("quiz", 2)])
def test_user_stream_is_clean_and_repeatable(name, seed):
    data = user_stream(USERS[name], ROWS, seed=seed)
    assert data == user_stream(USERS[name], ROWS, seed=seed)
    assert data.stream != user_stream(USERS[name], ROWS, seed=seed + 7).stream
    tests = data.test_signal + data.test_rare + data.test_retention
    assert min(map(len, (data.test_signal, data.test_rare, data.test_retention))) >= 60
    assert max(len(data.test_signal), len(data.test_rare)) <= MAX_TEST_ROWS
    assert not {get_dialogue_group(d) for d in tests} & {get_dialogue_group(d) for d in data.stream}
    assert remove_leaks(tests, data.stream) == tests
    assert all(is_reserved(get_dialogue_group(d)) for d in tests + data.stream)
    rows = lambda found: [dict(prompt=d.prompt, response=d.response) for d in found]
    assert count_leaks(rows(data.stream), rows(tests))[0]["pairs_shared"] == 0
    assert all({"kind", "domain", "source", "licence"} <= set(d.labels) for d in tests + data.stream)
    assert {d.origin for d in tests} == {"user"} and {d.origin for d in data.stream} == {"model"}
    talk = [d for d in data.stream if d.labels["kind"] == "small talk"]
    assert 0.2 < np.mean(["copy_of" in d.labels for d in talk]) < 0.4


@pytest.mark.later
def test_rows_that_are_not_reserved_stay_outside():
    seen = [row | dict(prompt=f"{row['prompt']} ({i})") for i, row in enumerate(ROWS) if row["source"] == "gsm8k"]
    seen = [row for row in seen if not is_reserved(get_row_group(row))]
    assert len(seen) > 400
    assert user_stream(USERS["pupil"], ROWS + seen) == user_stream(USERS["pupil"], ROWS)
