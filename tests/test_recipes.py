"What the recipes refuse, each with a line that says why."

import numpy as np
import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.recipes.crafted_styles import GRID, restyle
from personal_llm.recipes.data import read_instruct
from personal_llm.recipes.pocket_model import draw_batches
from personal_llm.recipes.samples import read_source

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
