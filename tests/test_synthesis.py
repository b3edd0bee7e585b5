"Rewrites: the parser, the two bounds, what is counted. No weights needed."

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.base.models import Model, load_model
from personal_llm.base.text import compute_rouge1
from personal_llm.base.tokens import encode_prompt
from personal_llm.buffer.synthesis import (
    MAX_REJECTED_EXAMPLES,
    SynthesisConfig,
    check_rewrite,
    semantic_similarities,
    parse_rewrite,
    changes_facts,
    synthesize,
)
from personal_llm.experiments.methods.example_rewrites import (
    ExampleConfig,
    check_example_rewrite,
    check_round,
    clean_rewrite,
    make_request,
    sample_rewrites,
    synthesize_by_examples,
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


@pytest.mark.parametrize(
    "reply,expected",
    [
        ('"Can you tell me?"', "Can you tell me?"),
        ('Rewritten: "What now?" I hope so.', "What now?"),
        ("Sure! [What now?]\nAn answer.", "What now?"),
        ("\n\n“What now?”", "What now?"),
        ('"cut off', "cut off"),
        ("It isn't 'late'", "It isn't 'late'"),
        ("[", ""),
        ("", ""),
    ],
)
def test_a_free_reply_is_cleaned(reply, expected):
    assert clean_rewrite(reply) == expected


@given(st.text(max_size=40))
def test_a_cleaned_reply_is_one_line_of_the_reply(reply):
    rewrite = clean_rewrite(reply)
    assert rewrite in reply and len(rewrite.splitlines()) <= 1


@pytest.mark.parametrize(
    "rewrite,original,reason",
    [
        ("Do about 15 of people have a tendon?", "How many people have a tendon?", "another form"),
        ("Many people in town have a tendon", "How many people have a tendon?", "another form"),
        ("Today I feel weak. What now?", "I feel weak and tired", "another form"),
        ("What does the word tendon mean?", "Define the word: tendon.", ""),
    ],
)
def test_the_strict_check(rewrite, original, reason):
    assert check_example_rewrite(rewrite, original) == reason
    assert check_rewrite(rewrite, original) == ""


@pytest.mark.parametrize("surprise,reason", [(0.6, ""), (0.61, "unsure"), (float("nan"), "unsure")])
def test_a_rewrite_that_surprises_the_model_is_refused(surprise, reason):
    texts = ("Can you define tendon?", "Define tendon.")
    assert check_example_rewrite(*texts, surprise=surprise) == reason
    assert check_rewrite(*texts) == ""


TEXTS_TO_REWRITE = ["What is a tendon?", "I would like a large cup of tea with milk, please.", "Cats purr."]


@pytest.mark.later
def test_each_text_continues_as_if_it_were_alone():
    "The cache of the examples, the padding and the rows that leave change no likeliest token."
    import torch

    model = load_model("pocket")
    replies = [reply for reply, _ in sample_rewrites(model, TEXTS_TO_REWRITE, 0, seed=0)]
    assert [r for r, _ in sample_rewrites(model, TEXTS_TO_REWRITE[::-1], 0, seed=5)] == replies[::-1]
    for text, reply in zip(TEXTS_TO_REWRITE, replies):
        ids = encode_prompt(model.tokenizer, make_request(text), model.max_length * 2 // 3)["input_ids"]
        new = []
        while len(new) < len(model.tokenizer(text)["input_ids"]) * 5 // 4 + 8:
            with torch.inference_mode():
                new.append(int(model.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            naive = model.tokenizer.decode(new, skip_special_tokens=True)
            if naive.count('"') > 1 or "\n" in naive.strip(" ") or new[-1] in model.tokenizer.all_special_ids:
                break
        assert reply == naive.strip()


def test_the_same_seed_gives_the_same_rewrites():
    model = load_model("pocket")
    first, again, other = (sample_rewrites(model, TEXTS_TO_REWRITE, 1.0, seed=seed) for seed in (3, 3, 4))
    assert first == again != other and all(surprise >= 0 for _, surprise in first)


def test_the_examples_on_the_pocket_model():
    model, one = load_model("pocket"), Dialogue("How do I book a table for two?", "Which place?")
    made = synthesize_by_examples(model, [one], n=1, max_loss_rise=0.0)
    assert len(made.dialogues) + sum(made.rejected.values()) >= 1 and made.cost.forward >= 1


def test_a_rewrite_that_does_not_bring_the_answer_is_refused():
    class Reader:
        "The response costs 1 nat a token, and 3 after a rewrite."

        def nll(self, dialogues):
            return np.array([(6.0 if d.prompt.startswith("How can") else 2.0, 2.0) for d in dialogues])

    one, proposal = Dialogue("How do I book a table?", "Which place?"), ('"…"', "How can I book a table please?", 0.0)
    for max_loss_rise, reason in ((1.9, "another answer"), (2.0, "")):
        config = ExampleConfig(max_loss_rise=max_loss_rise, min_similarity=0)
        assert check_round(Reader(), [one], [proposal], [[]], config) == [reason]
