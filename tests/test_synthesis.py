"Rewrites: the parser, the bounds, both prompts, what is counted. No weights needed."

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.base.models import Model
from personal_llm.base.text import compute_rouge1
from personal_llm.base.encoder import VectorStore
from personal_llm.buffer import synthesis
from personal_llm.buffer.synthesis import MAX_ROUGE1, MIN_ROUGE1, MIN_SIMILARITY, SYNTHESIS_PROMPTS, TEMPERATURE
from personal_llm.buffer.synthesis import check_rewrite, synthesize

WORDS = st.lists(st.sampled_from("what is a tendon pain Tea ärzte 42".split()), max_size=8)
TEXTS = WORDS.map(" ".join)


class Scripted:
    "Gives drawn replies, and keeps count of what it was asked."

    max_length = 256
    gguf = None
    tokenizer = staticmethod(lambda text: dict(input_ids=text.split()))
    track_cost = Model.track_cost

    def __init__(self, replies):
        self.replies = replies
        self.asked = []
        self.cost = Cost(requests=1)

    def generate(self, prompts, **settings):
        out = [self.replies[(len(self.asked) + i) % len(self.replies)] for i in range(len(prompts))]
        self.asked.extend(prompts)
        self.cost.forward += len(prompts)
        return out


class Meaning:
    "An encoder in which each text that holds *joke* is at a right angle to the others."

    def encode(self, texts, **options):
        return np.array([[0.0, 1.0] if "joke" in text else [1.0, 0.0] for text in texts])


@given(TEXTS, TEXTS.filter(bool), st.lists(TEXTS, max_size=3), st.floats(-1, 1))
def test_accepted_lies_between_the_bounds(rewrite, original, others, similarity):
    reason = check_rewrite(rewrite, original, others, similarity)
    assert reason in ("", "another form", "unrelated", "copy", "another meaning")
    is_inside = MIN_ROUGE1 <= compute_rouge1(rewrite, original) <= MAX_ROUGE1 and similarity >= MIN_SIMILARITY
    is_new = all(compute_rouge1(rewrite, other) <= MAX_ROUGE1 for other in others)
    assert (reason == "") == bool(rewrite and is_inside and is_new)


def test_a_similarity_that_is_no_number_is_another_meaning():
    assert check_rewrite("what is pain", "what is a tendon", similarity=float("nan")) == "another meaning"


@given(
    st.lists(WORDS.filter(bool), min_size=1, max_size=3, unique_by=tuple),
    st.integers(0, 3),
    st.integers(1, 3),
    st.lists(TEXTS.map("[{}]".format) | TEXTS, min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_what_is_accepted_and_what_is_counted(prompts, num_each, rounds, replies):
    originals = [Dialogue(" ".join(p), "what is the answer") for p in prompts]
    model = Scripted(replies)
    options = dict(prompt="paper", max_rounds=rounds, min_similarity=0)
    result = synthesize(model, originals, num_each, **options)
    by_id = {d.id: d for d in originals}
    for d in result.dialogues:
        (parent,) = (by_id[id] for id in d.parents)
        assert d.origin == "synthetic" and d.response == parent.response
        assert 0.2 <= compute_rouge1(d.prompt, parent.prompt) <= 0.9
    assert max(Counter(d.parents[0] for d in result.dialogues).values(), default=0) <= num_each
    num_asked = len(model.asked)
    assert {*model.asked} <= {SYNTHESIS_PROMPTS["paper"].format(text=d.prompt) for d in originals}
    assert len(originals) * num_each <= num_asked <= len(originals) * num_each * rounds
    assert result.cost.forward == num_asked and model.cost.requests == 1
    assert len(result.dialogues) + sum(result.rejected.values()) == num_asked
    assert len(result.examples) == sum(result.rejected.values())


def test_meaning_is_compared_beside_the_words():
    original = Dialogue("What is a tendon?", "In short: a cord.")
    vectors = VectorStore(Meaning())
    replies = ["What is a joke?", "What does a tendon do?"]
    result = synthesize(Scripted(replies), [original], 1, vectors=vectors)
    assert [d.prompt for d in result.dialogues] == ["What does a tendon do?"]
    assert result.rejected == {"another meaning": 1} and result.examples == [
        ("another meaning", "What is a tendon?", "What is a joke?")
    ]
    unchecked = synthesize(Scripted(replies), [original], 1, min_similarity=0)
    assert [d.prompt for d in unchecked.dialogues] == replies[:1]


def test_a_gguf_model_writes_one_text_after_another_each_with_its_seed(monkeypatch):
    model = Scripted(["What does a tendon do?", "Tell me what a tendon is"])
    model.gguf = "model.gguf"
    used = []
    stream = lambda model, prompt, options: used.append(options) or model.generate([prompt])
    monkeypatch.setattr(synthesis, "ReplyStream", stream)
    result = synthesize(model, [Dialogue("What is a tendon?", "a cord")], 2, seed=3, min_similarity=0)
    assert len(result.dialogues) == 2 and len({options.seed for options in used}) == 2
    assert all(options.temperature == TEMPERATURE for options in used)


def test_braces_in_a_text_are_text():
    model = Scripted(["What is {x} here?"])
    (variant,) = synthesize(model, [Dialogue("What is {x} there?", "y")], 1, min_similarity=0).dialogues
    assert variant.prompt == "What is {x} here?" and model.asked == [
        "Write another way to ask the same question. Write the question only.\nWhat is {x} there?"
    ]


@pytest.mark.parametrize("wrong", [dict(num_each=-1), dict(seed=-1), dict(prompt="short")], ids=str)
def test_wrong_settings_are_one_line(wrong):
    model = Scripted(["[x]"])
    with pytest.raises(InputError) as error:
        synthesize(model, [Dialogue("how so", "so")], **wrong)
    assert error.value.remedy and "\n" not in str(error.value) and not model.asked
