"Explanations: sentences, files, and people and pLLMs in one unit of a space."

from dataclasses import replace

import numpy as np
import pytest

from personal_llm.base.core import InputError
from personal_llm.explanation.explanation import Explanation, describe_answers, explain
from personal_llm.explanation.habits import Habit
from personal_llm.extras.space import likelihood_gains, style_coordinates
from ways import BRIEF, LOUD, Letters, letters, space_of, spoken, tuned  # noqa: F401
from tiny import shared


# ---- people


def test_explanation_of_a_person_by_hand():
    model = shared("llama")
    space, people = space_of(model), spoken(LOUD, 12, first=400)
    before = replace(model.cost)
    e = explain(model, people, space, seed=3)
    after = replace(model.cost)
    rows = space.project(Letters.shifts(model, people, 3), False)
    z = style_coordinates(space, rows)
    assert np.allclose(e.row, rows.mean(0), atol=1e-4)
    assert (e.samples, e.counterpart, e.space) == (12, "answers", space.id)
    assert np.isclose(e.strength, np.linalg.norm(z.mean(0)) * 12**0.5 / space.plain_noise, rtol=1e-4)
    assert e.sparse_words[0] == "loud" and e.strength > space.threshold and len(e.row) == space.width
    assert e.cost.forward == 36 == after.forward - before.forward, "12 read, 12 drawn, 12 of these read"
    assert e.cost.tokens == after.tokens - before.tokens > 0 and e.cost.seconds > 0


def test_too_little_or_another_model_is_refused():
    model = shared("llama")
    space = space_of(model)
    with pytest.raises(InputError, match="add or correct 8 more"):
        explain(model, [], space)
    with pytest.raises(InputError, match="NoneType is no list of dialogues"):
        explain(model, None, space)
    with pytest.raises(InputError, match="made for base other"):
        replace(space, base="other").prepare_probes(model)
    with pytest.raises(InputError, match="made for base other"):
        explain(model, spoken(LOUD, 9), replace(space, base="other"))
    with pytest.raises(InputError, match="made for german"):
        explain(model, spoken(LOUD, 9), replace(space, language="german"))
    with pytest.raises(InputError, match="made with encoder other"):
        explain(model, spoken(LOUD, 9), replace(space, encoder="other"))


# ---- what is said


def xpert_words(*errors) -> Explanation:
    "Two words of XPerT's method, without habits."
    code = dict(sparse_words=("concise", "expert"), coefficients=np.array([0.71, 0.34]), errors=np.array(errors))
    return Explanation(24, "answers", **code)


@pytest.mark.parametrize(
    "explanation, sentence",
    [
        (xpert_words(0.06, 0.05), "concise .7, expert .3"),
        (xpert_words(0.06, 0.2), "concise .7"),  # 0.34 is below two errors of 0.2
        (xpert_words(1, 1), "no style found (24 texts)"),
        (replace(xpert_words(0.06, 0.05), habits=(), num_answers=24), "no style found (24 texts)"),
        (Explanation(3, "answers", (), 3), "no description: 3 own answers, 8 are needed"),
    ],
)
def test_the_sentence_of_an_explanation(explanation, sentence):
    assert str(explanation) == sentence and explanation.lines() == [sentence]
    assert str(explanation.without_quotations()) == sentence


CARD = Explanation(32, "answers", (Habit("lower case", 30, 32, 4, 32, "so it is"),), 32).to_dict()


@pytest.mark.parametrize(
    "row, problem",
    [
        ({}, "KeyError 'sparse_words'"),
        (CARD | dict(description=dict(habits=[], samples="many")), "ValueError invalid literal"),
        (CARD | dict(description=dict(habits=[{}], samples=32)), "TypeError"),
        (CARD | dict(description=dict(habits=["no"], samples=32)), "AttributeError"),
    ],
)
def test_a_damaged_explanation_is_refused(row, problem):
    with pytest.raises(InputError, match=f"not an explanation: {problem}.*make it anew"):
        Explanation.from_dict(row)


def test_a_card_from_a_stranger_brings_counts_alone():
    habit = CARD["description"]["habits"][0] | dict(answers=["x"], scopes=["everywhere"], form="x")
    read = Explanation.from_dict(CARD | dict(description=dict(habits=[habit], samples=32)))
    assert read.to_dict() == CARD and str(read.habits[0]) == "lower case (30 of 32; the base 4 of 32): “so it is”"


def test_answers_without_a_text_are_not_counted():
    pairs = [("In short: so.", "It is so.")] * 7
    assert describe_answers([*pairs, ("", "It is."), ("It is.", " ")]) == dict(habits=(), num_answers=7)
    quoted, silent = (describe_answers(pairs * 2, is_quoted=flag)["habits"] for flag in (True, False))
    assert quoted[0].quotation and not any(habit.quotation for habit in silent)


def test_only_own_answers_are_explained():
    "Answers of a model beside eight of the person change nothing; with seven nothing is said."
    model = shared("llama")
    mine = [d.derive(response=f"Hark! It is {i}.", origin="user") for i, d in enumerate(spoken(str, 8))]
    others = [d.derive(origin="model") for d in spoken(LOUD, 9, first=600)]
    alone, beside = (explain(model, rows, space_of(model)) for rows in (mine, mine + others))
    assert str(alone) == str(beside) and np.allclose(alone.row, beside.row) and beside.samples == 8
    few = explain(model, mine[:7] + others, space_of(model))
    assert few.samples == 16 and few.num_answers == 7 and str(few).startswith("no description: 7 own answers")


def test_nothing_is_longer_than_an_answer_that_was_cut():
    text = "One {0}. Two of {0} and {0}1 words more here. And three."
    pairs = [(text.format(i), "So.") for i in range(9)]
    keys = lambda **options: [fact.key for fact in describe_answers(pairs, **options)["habits"]]
    assert "longer" in keys() and "longer" not in keys(base_is_truncated=True)


# ---- pLLMs


def test_gains_are_what_the_adapter_adds_a_token():
    model, adapter = shared("llama"), tuned("loud")
    space = space_of(model)
    panels = space.prepare_probes(model, spoken(LOUD, 6) + spoken(str, 6), ["Why?"])
    bare = model.nll(panels.dialogues)
    assert np.allclose(panels.base, bare[:, 0] / bare[:, 1], atol=1e-5)
    shift = Letters.shifts(model, panels.dialogues)
    coordinates = style_coordinates(space, space.project(shift, False)) * space.coordinate_scale
    assert np.allclose(panels.coordinates, coordinates, atol=1e-4)
    assert np.allclose(likelihood_gains(model, None, panels), 0, atol=1e-5)
    with model.use_adapter(adapter):
        tuned_losses = model.nll(panels.dialogues)
    gain = likelihood_gains(model, adapter, panels)
    assert np.allclose(gain, panels.base - tuned_losses[:, 0] / tuned_losses[:, 1], atol=1e-5)
    assert gain[:6].mean() > gain[6:].mean(), "it was tuned on loud texts"


def test_a_person_and_a_pllm_tuned_on_that_person_have_one_unit():
    "Lengths are of one order, and the paper's distance finds whose texts a pLLM was tuned on."
    model = shared("llama")
    space = space_of(model)
    panels = space.prepare_probes(model, spoken(LOUD, 12) + spoken(BRIEF, 12) + spoken(str, 12), ["Why?", "Who?"])
    people = {
        name: explain(model, spoken(way, 24, first=200), space) for name, way in dict(loud=LOUD, brief=BRIEF).items()
    }
    pllms = {name: panels.explain(model, tuned(name)) for name in people}
    place = lambda e: style_coordinates(space, e.row)
    lengths = {name: np.linalg.norm(place(pllms[name])) / np.linalg.norm(place(people[name])) for name in people}
    assert all(1 / 3 < ratio < 3 for ratio in lengths.values()), lengths
    for name, person in people.items():
        distance = {other: np.abs(place(person) - place(e)).sum() for other, e in pllms.items()}
        assert min(distance, key=distance.get) == name, distance
        assert distance[name] < np.abs(place(person)).sum(), "nearer than nothing at all"


def test_the_unit_scales_a_pllm_and_changes_no_word():
    model = shared("llama")
    space = space_of(model)
    half = replace(space, nats_per_unit=space.nats_per_unit / 2)
    panels = space.prepare_probes(model, spoken(LOUD, 12) + spoken(str, 12), ["Why?"])
    once, twice = (replace(panels, space=s).explain(model, tuned("loud")) for s in (space, half))
    assert np.allclose(style_coordinates(space, twice.row), 2 * style_coordinates(space, once.row), rtol=1e-4)
    assert twice.sparse_words == once.sparse_words and np.allclose(twice.coefficients, once.coefficients, atol=1e-6)
    assert np.isclose(twice.strength, once.strength, rtol=1e-4) and once.space != twice.space
    assert once.counterpart == "panels" and once.samples == 24 and once.cost.forward == 24 + 1 + 1
