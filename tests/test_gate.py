"The gate: what counts as evidence, how far corrections reach, and that a closed loop doesn't feed itself."

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.encoder import DEFAULT_ENCODER, VectorStore, encode
from personal_llm.data.reading import load_replay, load_samples
from personal_llm.memory import gate
from personal_llm.memory.gate import (
    CHANCE,
    Evidence,
    Gate,
    General,
)
from personal_llm.memory.gate import (
    Points,
    belongs,
    embed_prompts,
    find_foreign,
    judge,
)


class Angles:
    "An encoder whose texts begin with their angle in degrees."

    def encode(self, texts, **options):
        angles = np.radians([float(text.split()[0]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture
def vectors():
    return VectorStore(Angles())


def ask(evidence, prompt, vectors, general=General(), languages=None):
    "Return the verdict on a prompt."
    foreign = find_foreign(evidence, prompt, {} if languages is None else languages)
    row = vectors.embed([prompt])[0]
    return judge(evidence, embed_prompts(evidence, vectors.embed), row, general, foreign)


def said(*angles, time=0.0):
    return tuple(Dialogue(f"{angle} words", "In short: yes.", time=time + i) for i, angle in enumerate(angles))


def place(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_corrections_no_closer_than_chance_are_about_no_subject(vectors):
    general = General(place(*range(0, 180, 2)))
    chance = general.measure_chance(2)
    cosines = np.cos(np.radians(np.subtract.outer(range(0, 180, 2), range(0, 180, 2))))
    pairs = cosines[np.triu_indices(90, 1)]
    assert abs(np.quantile(pairs, CHANCE) - chance) < 0.02
    assert General(place(0)).measure_chance(2) == general.measure_chance(1) == -np.inf
    for angle, is_scattered in ((1, False), (40, True)):
        gate = Gate(Points(place(0, angle), np.arange(2.0)), Points(place(), np.zeros(0)), general)
        assert gate.is_scattered == is_scattered and len(gate.general) == (0 if is_scattered else 90)
        assert not Gate(*gate_sides(0, angle), general, is_narrow=True).is_scattered
    reason = ask(Evidence(said(0, 40)), "20 q", vectors, general).reason
    assert reason.endswith("your corrections share no subject, so they apply widely")


def gate_sides(*angles):
    return Points(place(*angles), np.arange(float(len(angles)))), Points(place(), np.zeros(0))


@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 5), st.integers(0, 99))
def test_many_prompts_are_judged_as_one_by_one(num_taught, num_alone, num_prompts, seed):
    random = np.random.default_rng(seed)
    supporting, alone = random.random((num_taught, num_prompts)), random.random((num_alone, num_prompts))
    found = belongs(supporting, [alone], 0.6)
    assert found.tolist() == [belongs(supporting[:, i], [alone[:, i]], 0.6) for i in range(num_prompts)]


@pytest.mark.parametrize(
    "call, problem",
    [
        (lambda: belongs(np.array([0.5, np.nan])), "not a finite number"),
        (lambda: belongs(np.ones((2, 3)), [np.ones((2, 4))]), r"shapes \(2, 3\) and \(2, 4\)"),
        (lambda: belongs(np.float64(0.5)), r"shapes \(\)"),
        (lambda: belongs(np.zeros(0)), "no corrections"),
        (lambda: judge(Evidence(said(0)), dict(answers=place(0, 1)), place(0)[0]), "answers: vectors of shape"),
        (lambda: judge(Evidence(said(0)), dict(answers=place(0)), np.eye(3)[0]), "a width of 3"),
        (
            lambda: judge(Evidence(said(0)), dict(answers=place(0)), place(0)),
            r"the prompt: vectors of shape \(1, 1, 2\)",
        ),
        (lambda: judge(Evidence(said(0)), dict(answers=2 * place(0)), place(0)[0]), "answers: a vector of length 2"),
        (lambda: judge(Evidence(said(0)), dict(answers=place(0)), 3 * place(0)[0]), "the prompt: a vector of length 3"),
        (
            lambda: judge(Evidence(said(0)), dict(answers=place(0)), place(0)[0], General(np.eye(3))),
            "general prompts: vec",
        ),
        (lambda: General(["What is rain?"]), r"general prompts: vectors of shape \(1,\)"),
        (lambda: judge(Evidence(said(0)), {}, place(0)[0]), "answers: vectors of shape"),
        (lambda: judge(Evidence(said(0)), dict(answers=place(0) * np.nan), place(0)[0]), "a vector of length nan"),
        (lambda: Evidence(answers=["How?"]), "no dialogue"),
        (lambda: judge(None, {}, place(0)[0]), "the evidence is None"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, problem):
    with pytest.raises(InputError, match=problem) as raised:
        call()
    assert "\n" not in str(raised.value)


def tell(*prompts, time=0.0, response="(a reply)"):
    return tuple(Dialogue(prompt, response, time=time + i) for i, prompt in enumerate(prompts))


def test_corrections_stay_in_the_language_of_their_prompts_unless_you_say_all_replies():
    vectors = VectorStore(DEFAULT_ENCODER)
    german = tell("Was ist die Hauptstadt von Italien?", "Wer schrieb Hamlet?", "Wie viele Tage hat eine Woche?")
    prompts = ("Was ist die Hauptstadt von Frankreich?", "What is the capital of France?")
    prompts += ("¿Cuál es la capital de Francia?", "Какая столица Франции?", "フランスの首都はどこですか？")
    verdicts = [ask(Evidence(german), prompt, vectors) for prompt in prompts]
    assert [verdict.is_open for verdict in verdicts] == [True] + [False] * 4
    assert verdicts[1].reason == "you corrected prompts in another language"
    assert all(ask(Evidence(everywhere=german), prompt, vectors).is_open for prompt in prompts)
    assert ask(Evidence(tell("Hamlet?")), prompts[1], vectors).is_open, "a prompt may show no language"
    both = (*german, *tell("What is the capital of Spain?", time=9.0))
    assert [d.prompt for d in ask(Evidence(both), prompts[1], vectors).answers] == ["What is the capital of Spain?"]


def test_the_language_of_a_prompt_is_found_once(vectors, monkeypatch):
    asked = []
    monkeypatch.setattr(gate, "find_language", lambda texts: asked.extend(texts) or "")
    evidence = Evidence(said(0, 5), here=said(10))
    languages = {}
    for prompt in ("20 q", "30 q", "20 q"):
        ask(evidence, prompt, vectors, languages=languages)
    assert sorted(asked) == sorted(languages) == ["0 words", "10 words", "20 q", "30 q", "5 words"]


def test_the_first_day_of_somebody_who_corrects_recipes():
    vectors = VectorStore(DEFAULT_ENCODER)
    first = tell("How do I tie a tie?", "What is the capital of Italy?")
    first += tell("Explain gravity.", "Write a haiku about snow.")
    recipes = tell("How do I make pancakes?", "How do I make tomato soup?", "How do I make a rice salad?", time=9.0)
    opens = {
        prompt: ask(Evidence(recipes, left_alone=first), prompt, vectors).is_open
        for prompt in ("How do I make a lentil soup?", "How do I make a potato salad?")
        + ("Wie backe ich einen Kuchen?", "What is the capital of Norway?", "Write a short poem about rain.")
    }
    assert [*opens.values()] == [True, True, False, False, False], "in the language of the corrections"


def test_a_closed_loop_does_not_feed_itself():
    "Replies that used corrections and were left alone say nothing, so the gate doesn't open wider and wider."
    vectors = VectorStore(DEFAULT_ENCODER)
    texts = list(dict.fromkeys(row["prompt"] for row in load_samples() if len(row["prompt"]) <= 200))
    others = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:120]]
    recipes = tell("How do I make pancakes?", "How do I make tomato soup?", "How do I make a rice salad?")
    alone = list(tell("What is the capital of Italy?", "Write a haiku about snow.", "Explain gravity."))
    opened = []
    for number, prompt in enumerate(others):
        opened.append(ask(Evidence(recipes, left_alone=tuple(alone)), prompt, vectors).is_open)
        if not opened[-1]:
            alone.append(Dialogue(prompt, "(a reply)", time=10.0 + number))
    assert sum(opened[60:]) <= 3
    evidence = Evidence(recipes, left_alone=tuple(alone))
    assert ask(evidence, "How do I make an omelette?", vectors).is_open


def test_the_first_correction_applies_to_similar_prompts_and_not_to_all():
    vectors = VectorStore(DEFAULT_ENCODER)
    general = General(encode([d.prompt for d in load_replay(200)], DEFAULT_ENCODER))
    one = Evidence(tell("How do I make pancakes?", time=5.0))
    prompts = ("How do I make waffles?", "How do I bake bread?", "What is the capital of Norway?", "Write a haiku.")
    assert [ask(one, prompt, vectors, general).is_open for prompt in prompts] == [True, True, False, False]
    assert ask(one, prompts[2], vectors, general).reason == "more similar to general prompts than to your corrections"


def test_a_week_of_recipes_before_the_first_correction_does_not_shut_recipes_out():
    vectors = VectorStore(DEFAULT_ENCODER)
    general = General(encode([d.prompt for d in load_replay(200)], DEFAULT_ENCODER))
    week = tell("How do I make rice pudding?", "How do I make pizza dough?", "How do I make chicken curry?")
    week += tell("What is the capital of Italy?", "Write a haiku about snow.")
    recipes = tell("How do I make pancakes?", "How do I make tomato soup?", "How do I make potato salad?", time=99.0)
    evidence = Evidence(recipes, left_alone=week)
    dishes = ("an omelette", "fried rice", "lentil soup", "apple pie", "a cheese sauce", "garlic bread", "guacamole")
    opened = [ask(evidence, f"How do I make {dish}?", vectors, general).is_open for dish in dishes]
    assert sum(opened) >= 6
    assert not ask(evidence, "What is the capital of Norway?", vectors, general).is_open
