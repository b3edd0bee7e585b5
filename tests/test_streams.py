"Streams: the paper's, and a Markov chain over episodes."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.data.streams import correlated_stream, edit_prompt


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


def test_a_copy_names_its_original():
    first, copy = correlated_stream(POOLS, dict(a=1, b=0, c=0), 2, duplicates=dict(a=1))
    assert first.prompt == "a 0?" != copy.prompt and copy.labels["copy_of"] == first.id
