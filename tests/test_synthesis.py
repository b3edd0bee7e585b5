"Rewrites: the parser, the two bounds, what is counted. No weights needed."

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.base.models import Model
from personal_llm.base.text import rouge1
from personal_llm.sdss.synthesis import EXAMPLES_KEPT, judge, parse_rewrite, synthesize

WORDS = st.lists(st.sampled_from("what is a tendon pain Tea ärzte 42".split()), max_size=8)
TEXTS = WORDS.map(" ".join)


class Scripted:
    "Gives drawn replies, and keeps count of what it was asked."

    max_length, tokenizer = 256, staticmethod(lambda text: dict(input_ids=text.split()))

    def __init__(self, replies):
        self.replies, self.asked, self.cost = replies, 0, Cost(requests=1)

    spending = Model.spending

    def generate(self, prompts, **settings):
        out = [self.replies[(self.asked + i) % len(self.replies)] for i in range(len(prompts))]
        self.asked += len(prompts)
        self.cost.forward += len(prompts)
        return out


@given(TEXTS, TEXTS)
def test_rouge_is_its_formula(a, b):
    first, second = a.lower().split(), b.lower().split()
    both = sum(min(first.count(w), second.count(w)) for w in set(first))
    assert rouge1(a, b) == (2 * both / (len(first) + len(second)) if both else 0) == rouge1(b, a) <= 1
    assert rouge1(a, a) == (1 if a else 0) and rouge1(a, " ".join(first[::-1])) == rouge1(a, a)


@given(TEXTS, TEXTS.filter(bool), st.lists(TEXTS, max_size=3), st.floats(0, 0.5), st.floats(0.5, 1))
def test_accepted_lies_between_the_bounds(rewrite, original, others, lower, upper):
    found = judge(rewrite, original, others, lower, upper)
    assert found in ("", "no brackets", "unrelated", "copy", "repeat")
    inside = (
        bool(rewrite)
        and lower <= rouge1(rewrite, original) <= upper
        and all(rouge1(rewrite, o) <= upper for o in others)
    )
    assert (found == "") == inside


@given(st.text(max_size=20))
def test_parser(text):
    assert parse_rewrite(f"Sure! [{text}] done") == text.strip()
    if "]" not in text:
        assert parse_rewrite("[" + text) == ""


@given(
    st.lists(WORDS.filter(bool), min_size=1, max_size=3, unique_by=tuple),
    st.integers(0, 3),
    st.integers(1, 3),
    st.lists(TEXTS.map("[{}]".format) | TEXTS, min_size=1, max_size=5),
    st.sampled_from(["question", "both"]),
)
@settings(max_examples=60, deadline=None)
def test_synthesize(prompts, n, rounds, replies, mode):
    originals = [Dialogue(" ".join(p), "what is the answer") for p in prompts]
    model = Scripted(replies)
    made = synthesize(model, originals, n=n, rounds=rounds, mode=mode)
    by_id = {d.id: d for d in originals}
    for d in made.dialogues:
        assert d.origin == "synthetic" and len(d.parents) == 1 and d.id not in by_id
        parent = by_id[d.parents[0]]
        assert 0.2 <= rouge1(d.prompt, parent.prompt) <= 0.9
        assert d.response == parent.response or mode == "both" and 0.2 <= rouge1(d.response, parent.response) <= 0.9
    assert max(Counter(d.parents[0] for d in made.dialogues).values(), default=0) <= n
    asked = len(originals) * n * (1 if mode == "question" else 2)
    assert asked <= model.asked <= asked * rounds and made.cost.forward == model.asked and model.cost.requests == 1
    if mode == "question":
        assert len(made.dialogues) + sum(made.rejected.values()) == model.asked
    assert len(made.examples) == min(EXAMPLES_KEPT, sum(made.rejected.values()))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(mode=5),
        dict(n=-1),
        dict(n=True),
        dict(n=10.5),
        dict(seed=-1),
        dict(seed=2**40),
        dict(lower=-1),
        dict(upper=2),
    ],
    ids=str,
)
def test_wrong_settings_are_one_line(wrong):
    model = Scripted(["[x]"])
    with pytest.raises(InputError) as caught:
        synthesize(model, [Dialogue("how so", "so")], **wrong)
    assert caught.value.remedy and "\n" not in str(caught.value) and model.asked == 0
