"Simulated users: their preferences, and streams that do not leak into their tests."

import numpy as np
import pytest

from personal_llm.data.reading import load_samples
from personal_llm.data.splits import get_dialogue_group, get_row_group, remove_leaks
from personal_llm.recipes.data import count_leaks, is_reserved
from personal_llm.recipes.people import MAX_TEST_ROWS, USERS, user_stream

ROWS = load_samples()


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


def test_rows_that_are_not_reserved_stay_outside():
    seen = [row | dict(prompt=f"{row['prompt']} ({i})") for i, row in enumerate(ROWS) if row["source"] == "gsm8k"]
    seen = [row for row in seen if not is_reserved(get_row_group(row))]
    assert len(seen) > 400
    assert user_stream(USERS["pupil"], ROWS + seen) == user_stream(USERS["pupil"], ROWS)
