"Evaluation on a fake model: no weights needed. Naive twins, laws, and what is refused."

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from cases import run_python
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.base.models import Model
from personal_llm.tuning.evaluation import evaluate, score_texts
from personal_llm.base.text import split_rouge_words
from personal_llm.recipes.people import lower_case, opener
from personal_llm.tuning.statistics import paired_bootstrap


class Parrot:
    "Answers with the prompt; a response's loss is its letters per word, and an adapter is a number added to it."

    track_cost = Model.track_cost

    def __init__(self):
        self.cost, self.adapted, self.seen = Cost(tokens=7), 0, []

    @contextmanager
    def use_adapter(self, adapter):
        self.adapted = adapter or 0
        try:
            yield self
        finally:
            self.adapted = 0

    def nll(self, dialogues):
        self.cost.forward += len(dialogues)
        words = [d.response.split() for d in dialogues]
        return np.array([(sum(len(word) + self.adapted for word in own), len(own)) for own in words], float)

    def reply(self, prompts, max_tokens):
        self.seen.append(max_tokens)
        self.cost.forward += len(prompts)
        return [p.prompt for p in prompts]


TEST = [Dialogue("so it is", "so it was then"), Dialogue("No!", "never ever")]


def test_evaluate_by_hand():
    model = Parrot()
    found = evaluate(model, TEST, adapter=0.5, habits=(lower_case(), opener("so")), max_tokens=5, user="Ana")
    first, second = found.items
    assert (first["loss"], first["tokens"]) == (11 / 4 + 0.5, 4) and second["loss"] == 9 / 2 + 0.5
    assert found.summary["loss"] == (3.25 + 5) / 2  # the mean of means, not 21 / 6
    assert first["reply"] == "so it is" and first["rouge1"] == pytest.approx(4 / 7) and second["rouge1"] == 0
    assert first["adherence"] == 1 and second["adherence"] == 0
    assert list(found.summary["habits"].values()) == [0.5, 0.5]
    assert found.cost.forward == 4 and found.cost.tokens == 0
    assert model.cost.forward == 4 and model.cost.tokens == 7
    assert model.seen == [5] and model.adapted == 0 and found.user == "Ana" and len(found) == 2
    assert "2 dialogues" in str(found) and "50%" in str(found)


def test_the_chapter_alone_gives_a_model_its_replies():
    imports = "import personal_llm.tuning.evaluation, personal_llm.base.models as models"
    run_python(f"{imports}; assert hasattr(models.Model, 'reply')")


def test_evaluate_without_replies():
    model = Parrot()
    found = evaluate(model, TEST, habits=(lower_case(),), generate=False)
    assert model.seen == [] and set(found.summary) == {"n", "loss"} and "reply" not in found.items[0]
    assert "response loss" in str(found) and "BLEU" not in str(found)


@settings(deadline=None)  # the first example imports rouge_score
@given(st.text(st.characters(max_codepoint=127)))
def test_words_on_ascii_are_those_of_rouge_score(text):
    from rouge_score.tokenizers import DefaultTokenizer

    assert split_rouge_words(text) == DefaultTokenizer(False).tokenize(text)


def naive_rouge(reply, reference):
    a, b = split_rouge_words(reply), split_rouge_words(reference)

    def longest(i, j):  # by recursion over the ends
        if not i or not j:
            return 0
        return longest(i - 1, j - 1) + 1 if a[i - 1] == b[j - 1] else max(longest(i - 1, j), longest(i, j - 1))

    shared = sum((Counter(a) & Counter(b)).values())
    return [2 * m / (len(a) + len(b)) if m else 0.0 for m in (shared, longest(len(a), len(b)))]


sentence = st.lists(st.sampled_from(["a", "b", "да", "茶", "☕"]), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(sentence, sentence.filter(str.strip))
def test_rouge_against_its_naive_twin(reply, reference):
    (found,) = score_texts([reply], [reference])
    assert [found["rouge1"], found["rougeL"]] == pytest.approx(naive_rouge(reply, reference))
    assert found["rougeL"] <= found["rouge1"] + 1e-12


def test_compare_pairs_by_id_whatever_the_order():
    worse, model = evaluate(Parrot(), TEST, adapter=1), Parrot()
    base = evaluate(model, TEST[::-1])
    found = worse.compare(base)
    assert found.difference == pytest.approx(1) and found.low == pytest.approx(1) and found.n == 2
    assert found.verdict == "worse"
    with pytest.raises(InputError, match="1 in common of 2 and 1"):
        worse.compare(evaluate(model, TEST[:1]))
    with pytest.raises(InputError, match="adherence"):
        worse.compare(base, "adherence")
    with pytest.raises(InputError, match="two values or more"):
        evaluate(model, TEST[:1]).compare(evaluate(model, TEST[:1]))


NO_LIST = "dialogue [01] of the list|no list"  # it says what


@pytest.mark.parametrize(
    "dialogues, max_tokens, problem",
    [
        *((wrong, 8, NO_LIST) for wrong in (["text"], [TEST[0], None], dict(prompt="a"), iter(TEST), "text")),
        *((TEST, wrong, "max_tokens") for wrong in (-1, 0, 1.5, 8.0, True, "8", 10**9)),
        ([], 8, "no dialogues to evaluate on"),
        ([Dialogue("Hi", " ")], 8, "its reference answer is empty"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_model_runs(dialogues, max_tokens, problem):
    model = Parrot()
    with pytest.raises(InputError, match=problem):
        evaluate(model, dialogues, max_tokens=max_tokens)
    assert model.cost.forward == 0
    assert len(evaluate(model, TEST, max_tokens=np.int64(5))) == len(TEST)


# intervals


floats = st.floats(-100, 100).map(lambda x: round(x, 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(floats, min_size=2, max_size=12), floats, st.integers(0, 5))
def test_bootstrap_laws(values, shift, seed):
    x = np.array(values)
    one = paired_bootstrap(x, seed, 200)
    assert one == paired_bootstrap(x, seed, 200)
    assert one.low <= one.difference + 1e-9 and one.difference <= one.high + 1e-9
    moved = paired_bootstrap(x + shift, seed, 200)
    assert np.allclose(
        [moved.difference, moved.low, moved.high], np.array([one.difference, one.low, one.high]) + shift, atol=1e-6
    )
    turned = paired_bootstrap(-x, seed, 200)
    assert np.allclose([turned.low, turned.high], [-one.high, -one.low], atol=1e-6)


def test_bootstrap_agrees_with_students_t_on_normal_values():
    x = np.random.default_rng(0).normal(1, 1, 8)
    found = paired_bootstrap(x, resamples=20000)
    half = 2.3646 * x.std(ddof=1) / 8**0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (dict(values=[]), r"two values or more in a row, this has shape \(0,\)"),
        (dict(values=[1.0]), r"shape \(1,\)"),
        (dict(values=[[1, 2], [3, 4]]), r"shape \(2, 2\)"),
        (dict(values=[1, float("nan")]), "value 1 is not a finite number"),
        (dict(values=["a", "b"]), "not numbers"),
        (dict(values=[1, [2, 3]]), "not numbers"),
        (dict(values=[1, 2], seed=-1), "the seed is -1"),
        (dict(values=[1, 2], resamples=0), "resamples is 0"),
    ],
)
def test_what_has_no_interval_is_refused(arguments, problem):
    with pytest.raises(InputError, match=problem):
        paired_bootstrap(**arguments)
