"Streams: the paper's, and a Markov chain over episodes."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.data.streams import correlated_stream, edit_prompt
from personal_llm.data.splits import get_dialogue_group, get_row_group, remove_leaks, split_test_dialogues
from personal_llm.recipes.data import audit_leaks


POOLS = {k: [Dialogue(f"{k} {i}?", "a") for i in range(300)] for k in "abc"}


def stream_of(seed, **more):
    return correlated_stream(POOLS, dict(a=7, b=2, c=1), length=300, seed=seed, **more)


@pytest.mark.parametrize("seed", range(4))
def test_near_copies_name_their_original(seed):
    stream = stream_of(seed, duplicates=dict(a=0.5))
    originals = {d.id: d for d in stream if "copy_of" not in d.labels}
    copies = [d for d in stream if "copy_of" in d.labels]
    assert len(copies) > 60
    for d in copies:
        source = originals[d.labels["copy_of"]]
        assert source.time < d.time and source.prompt != d.prompt and source.response == d.response
        assert d.parents == source.parents
    for name in "abc":  # originals come in the pool's order, none twice
        came = [int(d.prompt[2:-1]) for d in originals.values() if d.prompt.startswith(name)]
        assert came == list(range(len(came)))


texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=40).map(
    lambda s: s + "x"
)


@settings(deadline=None)
@given(texts, st.integers(0, 99))
def test_edited_prompts_change_little(prompt, seed):
    edited = edit_prompt(prompt, np.random.default_rng(seed))
    assert edited != prompt and abs(len(edited) - len(prompt)) <= max(8, len(prompt))


@pytest.mark.parametrize(
    "shares, settings, line",
    [
        (dict(a=1), {}, "kinds with a pool or a share only: .'b', 'c'.; give each kind both"),
        (dict(a=0, b=0, c=0), {}, "one must be positive"),
        (dict(a=1, b=1, c=-1), {}, "the share of 'c' is -1; give a finite number of at least 0"),
        (dict(a=1, b=1, c="half"), {}, "the share of 'c' is 'half'"),
        (dict(a=1, b=1, c=float("nan")), {}, "the share of 'c' is nan"),
        (dict(a=1, b=0, c=0), dict(length=900), "'a' has 300 dialogues and the stream needs more; give more of them"),
        (dict(a=1, b=1, c=1), dict(length=10**12), "length is 1000000000000; give a whole number from 1 to 1000000"),
        (dict(a=1, b=1, c=1), dict(stay_probability=1), "stay_probability is 1; give a number from 0 to below 1"),
        (dict(a=1, b=1, c=1), dict(stay_probability=-0.1), "stay_probability is -0.1; give a number from 0 to below 1"),
        (dict(a=1, b=1, c=1), dict(seed=10**12), "the seed is 1000000000000"),
    ],
)
def test_a_stream_that_cannot_be_made_is_one_line(shares, settings, line):
    with pytest.raises(InputError, match=line):
        correlated_stream(POOLS, shares, **settings)


# splits


THIRTEEN = " ".join(map(str, range(13)))


def row(prompt, response, **more):
    return dict(prompt=prompt, response=response) | more


def test_groups_of_each_source():
    assert get_row_group(row("Hi!", "Yes.", source="synthetic_persona_chat", persona="p1")) == "p1"
    assert get_row_group(row("Hi!", "Yes.", source="synthetic_persona_chat")) == "hi"
    assert get_row_group(row("Hi!", "Yes.", source="medquad", topic="Cough")) == "Cough"
    labels = dict(source="medquad", topic="Cough")
    assert get_dialogue_group(Dialogue("Hi!", "Yes.", labels=labels)) == "Cough"


def test_a_leak_fails():
    with pytest.raises(InputError, match="1 pairs are in both") as caught:
        audit_leaks([row("hi", "YES")], [row("Hi?", "yes!")])
    assert caught.value.remedy == "split by group"
    with pytest.raises(InputError, match="100.00% of the reserved 13-word runs") as caught:
        audit_leaks([], [row("q", THIRTEEN)], [f"and {THIRTEEN}"])
    assert "0.50%" in caught.value.remedy
    assert audit_leaks([], [row("q", THIRTEEN)], [f"and {THIRTEEN}"], limit=1.0)["share"] == 1


MANY = [Dialogue(f"Question {i}?", f"Answer {i}.") for i in range(2000)]
TALK = [d.derive(labels=dict(group="one conversation")) for d in MANY[:6]]


@pytest.mark.parametrize(
    "dialogues, sizes",
    [
        (MANY, [1936, 64]),
        ([d.derive(labels=dict(group=f"talk {i // 200}")) for i, d in enumerate(MANY)], [1800, 64]),
        ([d.derive(response=f"{d.response} {THIRTEEN}") for d in MANY[:60]], [54, 6]),
        ([d for d in MANY[:60] for _ in range(3)], [162, 6]),
        (MANY[:40], [40, 0]),
        (TALK * 20, [120, 0]),
        ([MANY[0]] * 40 + [MANY[1]] * 40, [80, 0]),
    ],
    ids=("many", "conversations", "boilerplate", "copies", "few", "one conversation", "two that repeat"),
)
def test_a_tenth_is_held_out_whole_and_none_of_too_few(dialogues, sizes):
    stream, test = split_test_dialogues(dialogues)
    assert [len(stream), len(test)] == sizes and (test or stream == dialogues)


def test_a_candidate_without_a_stream_is_no_leak():
    assert remove_leaks(TALK, []) == TALK
