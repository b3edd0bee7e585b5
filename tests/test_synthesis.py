"Rewrites: the parser, the two bounds, what is counted. No weights needed."

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.base.models import Model
from personal_llm.base.text import compute_rouge1
from personal_llm.buffer.synthesis import (
    MAX_REJECTED_EXAMPLES,
    SynthesisConfig,
    check_rewrite,
    semantic_similarities,
    parse_rewrite,
    changes_facts,
    synthesize,
)

WORDS = st.lists(st.sampled_from("what is a tendon pain Tea ärzte 42".split()), max_size=8)
TEXTS = WORDS.map(" ".join)


class Scripted:
    "Gives drawn replies, and keeps count of what it was asked."

    max_length, is_large, tokenizer = 256, False, staticmethod(lambda text: dict(input_ids=text.split()))

    def __init__(self, replies):
        self.replies, self.asked, self.cost = replies, 0, Cost(requests=1)

    track_cost = Model.track_cost

    def generate(self, prompts, **settings):
        out = [self.replies[(self.asked + i) % len(self.replies)] for i in range(len(prompts))]
        self.asked += len(prompts)
        self.cost.forward += len(prompts)
        return out


@given(TEXTS, TEXTS)
def test_rouge_is_its_formula(a, b):
    first, second = a.lower().split(), b.lower().split()
    both = sum(min(first.count(w), second.count(w)) for w in set(first))
    assert compute_rouge1(a, b) == (2 * both / (len(first) + len(second)) if both else 0) == compute_rouge1(b, a) <= 1
    assert compute_rouge1(a, a) == (1 if a else 0) and compute_rouge1(a, " ".join(first[::-1])) == compute_rouge1(a, a)


@given(TEXTS, TEXTS.filter(bool), st.lists(TEXTS, max_size=3), st.floats(0, 0.4), st.floats(0.5, 1))
def test_accepted_lies_between_the_bounds(rewrite, original, others, lower, upper):
    config = SynthesisConfig(min_rouge1=lower, max_rouge1=upper)
    found = check_rewrite(rewrite, original, others, config=config)
    assert found in ("", "no brackets", "unrelated", "copy", "another meaning", "repeat")
    inside = (
        bool(rewrite)
        and not changes_facts(rewrite, original)
        and lower <= compute_rouge1(rewrite, original) <= upper
        and all(compute_rouge1(rewrite, o) <= upper for o in others)
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
)
@settings(max_examples=60, deadline=None)
def test_synthesize(prompts, n, rounds, replies):
    originals = [Dialogue(" ".join(p), "what is the answer") for p in prompts]
    model = Scripted(replies)
    made = synthesize(model, originals, n=n, max_rounds=rounds, min_similarity=0)
    by_id = {d.id: d for d in originals}
    for d in made.dialogues:
        assert d.origin == "synthetic" and len(d.parents) == 1 and d.id not in by_id
        parent = by_id[d.parents[0]]
        assert 0.2 <= compute_rouge1(d.prompt, parent.prompt) <= 0.9
        assert d.response == parent.response
    assert max(Counter(d.parents[0] for d in made.dialogues).values(), default=0) <= n
    asked = len(originals) * n
    assert asked <= model.asked <= asked * rounds and made.cost.forward == model.asked and model.cost.requests == 1
    assert len(made.dialogues) + sum(made.rejected.values()) == model.asked
    assert len(made.examples) == min(MAX_REJECTED_EXAMPLES, sum(made.rejected.values()))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-1),
        dict(max_rounds=0),
        dict(n=-1),
        dict(n=True),
        dict(n=10.5),
        dict(seed=-1),
        dict(seed=2**40),
        dict(min_rouge1=-1),
        dict(max_rouge1=2),
        dict(min_similarity=1.5),
        dict(min_similarity=-0.1),
    ],
    ids=str,
)
def test_wrong_settings_are_one_line(wrong):
    model = Scripted(["[x]"])
    with pytest.raises(InputError) as caught:
        synthesize(model, [Dialogue("how so", "so")], **wrong)
    assert caught.value.remedy and "\n" not in str(caught.value) and model.asked == 0


STRANGE = ("What do you think about love?", "Tell me what city you're in")  # (rewrite, original)


def test_another_meaning_is_refused():
    assert check_rewrite(*STRANGE) == "", "by words alone it passes"
    (similarity,) = semantic_similarities(*([text] for text in STRANGE))
    assert similarity < 0.2 and check_rewrite(*STRANGE, similarity=similarity) == "another meaning"
    assert check_rewrite(*STRANGE, similarity=similarity, config=SynthesisConfig(min_similarity=0.01)) == ""
    assert check_rewrite(*STRANGE, similarity=float("nan")) == "another meaning"


def test_a_rewrite_in_other_words_passes():
    rewrite, original = "How can I reserve a table for two?", "How do I book a table for two?"
    (similarity,) = semantic_similarities([rewrite], [original])
    assert check_rewrite(rewrite, original, similarity=similarity) == ""


@pytest.mark.parametrize(
    "rewrite,original,otherwise",
    [
        ("I take 30 mg of it each day", "I take 20 mg of it a day", True),
        ("I take some of it each day", "I take 20 mg of it a day", True),
        ("Each day I take 20 mg of it", "I take 20 mg of it a day", False),
        ("Is the treatment for Kabuki syndrome known?", "What is the treatment for Troyer syndrome?", True),
        ("Tell me the treatment for troyer syndrome", "What is the treatment for Troyer syndrome?", False),
        ("I am not feeling well today", "I am feeling well today", True),
        ("I am feeling well today", "I don't feel well today", True),
        ("I do not feel well today", "I don't feel well today", False),
        ("How does a tendon heal?", "What Is A Tendon?", False),
    ],
)
def test_where_an_encoder_is_blind(rewrite, original, otherwise):
    config = SynthesisConfig(min_rouge1=0.0, max_rouge1=1.0)
    assert changes_facts(rewrite, original) == otherwise
    assert (check_rewrite(rewrite, original, (), 1.0, config) == "another meaning") == otherwise


def test_synthesis_asks_for_the_meaning():
    rewrite, original = STRANGE
    model, one = Scripted([f"[{rewrite}]"]), Dialogue(original, "In none.")
    made = synthesize(model, [one], n=1, max_rounds=1)
    assert not made.dialogues and made.rejected == {"another meaning": 1}
    assert made.examples == [("another meaning", original, f"[{rewrite}]")]
    assert len(synthesize(model, [one], n=1, max_rounds=1, min_similarity=0).dialogues) == 1
    assert SynthesisConfig().min_similarity > 0, "on by default"


def test_likenesses():
    found = semantic_similarities(
        ["What is a tendon?", "", "Cats purr"], ["What is a tendon?", "Cats purr", "What is a tendon?"]
    )
    assert found[0] == pytest.approx(1, abs=1e-5) and abs(found[1]) < 1e-5 and found[2] < 0.3
