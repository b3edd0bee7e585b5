"Descriptions with words: what is planted in likelihoods is found, and cards are read beside each other."

from types import SimpleNamespace

import numpy as np
import pytest

from personal_llm.explanation.habits import Trait
from personal_llm.experiments.methods.vocabulary import WordScores
from personal_llm.experiments.methods.word_descriptions import MIN_CARD_SCORE, OPEN_PROMPT, WordDescription
from personal_llm.experiments.methods.word_descriptions import compare_word_descriptions, describe_pllm_in_words
from personal_llm.experiments.methods.word_descriptions import fit_word_shifts, measure_word_shifts, score_examples
from personal_llm.experiments.methods.word_descriptions import score_library_words
from ways import BRIEF, LOUD, letters, spoken, tuned  # noqa: F401
from tiny import shared


def labelled_twice(count: int, seed: int = 0):
    "Words of two axes and one without an opposite, drawn independently; every fourth text is plain."
    rng, kinds = np.random.default_rng(seed), (("expert", "elementary"), ("friendly", "unfriendly"), ("poetic", ""))
    rows = [{pair[rng.integers(2)] for pair in kinds} - {""} if i % 4 else set() for i in range(count)]
    return rows, kinds[:2]


def test_a_shift_finds_what_was_planted_in_all_axes_at_once():
    words, opposed = labelled_twice(400)
    sign = lambda plus, minus: np.array([(plus in known) - (minus in known) for known in words], float)
    noise = np.random.default_rng(1).normal(0, 0.1, len(words))
    gain = 0.4 + 0.2 * sign("expert", "elementary") - 0.1 * sign("friendly", "unfriendly") + noise
    found = fit_word_shifts(gain, words, opposed)
    assert found["expert"][0] == pytest.approx(0.2, abs=4 * found["expert"][1]) and found["expert"][1] < 0.01
    assert found["unfriendly"][0] == pytest.approx(0.1, abs=0.03) and found["elementary"][0] == -found["expert"][0]
    assert abs(found["poetic"][0]) < 3 * found["poetic"][1]
    again = fit_word_shifts(gain + 7, words, opposed)
    assert all(again[word][0] == pytest.approx(found[word][0]) for word in found), "what all texts gain is no style"


def with_shift(error: float = 0.01, **nats) -> dict:
    "Cards of one axis."
    pair = lambda x: {"expert": (x, error), "elementary": (-x, error)}
    return {name: WordDescription(samples=24, shift=pair(x)) for name, x in nats.items()}


def test_cards_read_beside_each_other_differ_by_what_they_do_not_share():
    says = with_shift(a=0.3, b=0.2, c=-0.1)
    one, more = score_library_words(says), score_library_words(with_shift(a=0.6, b=0.4, c=-0.2, error=0.02))
    assert [said.words for said in one.values()] == [("expert",), (), ("elementary",)]
    assert [said.word_scores.scores for said in more.values()] == [said.word_scores.scores for said in one.values()], (
        "twice is as much"
    )
    assert all(row[2] == MIN_CARD_SCORE for said in one.values() for row in said.word_scores.scores.values())
    experts = score_library_words(with_shift(a=0.30, b=0.31, c=0.32, error=0.0005))
    assert not any("elementary" in experts[name].words for name in "abc"), "the least expert is no opposite"
    chance = score_library_words(with_shift(a=0.03, b=-0.01, c=0.0, error=0.012))
    assert not any(said.words for said in chance.values()), "what lies within the errors is nobody's style"
    assert score_library_words({}) == {} and score_library_words(says | dict(a=WordDescription()))["b"] is says["b"], (
        "all cards or none"
    )


def test_words_come_from_shifts_where_all_cards_have_one_and_facts_are_centred():
    says = with_shift(a=0.3, b=-0.3)
    fact = Trait("lists", 8, 8, 2, 8)
    says["a"] = WordDescription((fact,), (), 24, None, says["a"].shift)
    found = compare_word_descriptions(says)
    assert found["a"] == pytest.approx({"word expert": 1, "word elementary": -1, "lists": 0.5})
    assert found["b"]["lists"] == pytest.approx(-0.25) and found["b"]["word elementary"] == pytest.approx(1)
    plain = dict(
        a=WordDescription(samples=9, word_scores=WordScores((), {"a": (0.9, 0.1, 0.4)}, 9)),
        b=WordDescription(samples=9),
    )
    assert compare_word_descriptions(plain)["a"]["word a"] == pytest.approx(0.6), (
        "no shifts: less the mean of two cards and the voice"
    )
    assert (
        WordDescription.from_dict(says["a"].to_dict()).shift == says["a"].shift
        and "shift" not in WordDescription().to_dict()
    )


def test_a_pllm_prefers_the_words_of_what_it_was_tuned_on():
    model, ways = shared("llama"), dict(loud=LOUD, brief=BRIEF, plain=str)
    rows = [(name, d) for name, way in ways.items() for d in spoken(way, 12, first=300)]
    kept = tuple(((name,) * (name != "plain"), d.prompt, d.response) for name, d in rows)
    vocabulary = SimpleNamespace(examples=kept, opposite_words=())
    panels = score_examples(model, vocabulary)
    shifts = {name: measure_word_shifts(model, tuned(name), panels, vocabulary) for name in ("loud", "brief")}
    cards = score_library_words({name: WordDescription(samples=12, shift=shift) for name, shift in shifts.items()})
    assert {name: said.words for name, said in cards.items()} == dict(loud=("loud",), brief=("brief",))
    bare = SimpleNamespace(examples=(((), "", "So it is."), *kept), opposite_words=())
    assert score_examples(model, bare)[0][0].prompt == OPEN_PROMPT, "words taught with texts alone"
    nothing = measure_word_shifts(model, None, panels, vocabulary)
    assert all(abs(nats) < 1e-6 for nats, _ in nothing.values()), "the base beside itself"


def test_what_a_pllm_finds_likely_is_kept_where_it_hardly_answers():
    "One card without a shift would silence the words of all."
    shift = dict(loud=(0.3, 0.01), low=(-0.3, 0.01))
    silent = describe_pllm_in_words(["", "…"], ["So.", "So."], shift=shift)
    assert silent.shift == shift and str(silent).startswith("no description: 1 own answers")
    told = score_library_words(
        dict(a=silent, b=WordDescription(samples=9, shift=dict(loud=(-0.3, 0.01), low=(0.3, 0.01))))
    )
    assert told["a"].words == ("loud",) and str(told["a"]) == "loud (1.00)" and told["b"].words == ("low",)
