"Texts that are nearly the same, and those that only look so."

import numpy as np
import pytest

from personal_llm.base.core import make_generator
from personal_llm.base.text import is_near_duplicate
from personal_llm.data.reading import load_samples
from personal_llm.data.streams import edit_prompt


SAME = """I love hip hop|Again: i love hip hop
Are you working?|Are oyu working?
Yes, it's perfect.|yes its perfect!!
|
☕|☕"""
OTHER = """Hi|No
I am sad|I am happy
I like this tea very much, thank you|I don't like this tea very much, thank you
How many people have spastic paraplegia type 2?|How many people have spastic paraplegia type 3?
☕|👍
|yes"""


@pytest.mark.parametrize("line", [*SAME.splitlines(), *OTHER.splitlines()])
def test_near_duplicates(line):
    a, b = line.split("|")
    assert is_near_duplicate(a, b) == is_near_duplicate(b, a) == (line in SAME.splitlines())


def test_small_edits_are_recognised_on_real_rows():
    rng = make_generator(0, "test")
    for source, most in (("personality_chat", 0.02), ("dolly_6400", 0.01), ("medquad", 0.01)):
        prompts = [row["prompt"] for row in load_samples(source)][:300]
        assert np.mean([not is_near_duplicate(p, edit_prompt(p, rng)) for p in prompts]) <= most
