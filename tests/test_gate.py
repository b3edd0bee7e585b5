"The gate: what counts as evidence, how far corrections reach, and that a closed loop doesn't feed itself."

from dataclasses import replace

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
    MEAN_WEIGHT,
    MOST_ALONE,
    NEWEST,
    NUM_OPPOSING,
    REACH,
    Evidence,
    Gate,
    General,
)
from personal_llm.memory.gate import (
    Points,
    Verdict,
    belongs,
    embed_prompts,
    find_foreign,
    judge,
    measure_reach,
    measure_spread,
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


similarities = st.lists(st.floats(-1, 1), min_size=1, max_size=9).map(np.array)


@given(similarities, similarities, st.floats(-3, 3), st.floats(0.5, 2))
def test_the_comparison_needs_no_scale_and_no_order(supporting, opposing, shift, scale):
    sides = (supporting, opposing)
    near, far = ((1 - MEAN_WEIGHT) * max(side) + MEAN_WEIGHT * sum(side) / len(side) for side in sides)
    if abs(near - far) > 1e-6:
        decided = belongs(supporting, [opposing])
        assert decided == (near > far)
        assert decided == belongs(scale * supporting + shift, [scale * opposing + shift])
        assert decided == belongs(supporting[::-1], [np.sort(opposing)])


@given(st.lists(st.integers(0, 90), min_size=2, max_size=8))
def test_the_reach_is_a_share_of_the_mean_distance_to_the_nearest_other(degrees):
    rows = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    cosines = np.cos(np.radians(np.subtract.outer(degrees, degrees))) - 2 * np.eye(len(degrees))
    nearest = cosines.max(axis=1)
    assert abs(measure_reach(rows) - REACH * sum(nearest) / len(nearest)) < 1e-6
    assert measure_reach(rows[:1]) == measure_reach(rows[:0]) == -np.inf


def test_corrections_reach_as_far_as_they_are_from_each_other(vectors):
    assert ask(Evidence(said(0)), "170 q", vectors).is_open, "a single one has no distance"
    near = Evidence(said(0, 5, 10))
    assert ask(near, "40 q", vectors).is_open and not ask(near, "70 q", vectors).is_open
    far = Evidence(said(0, 70, 140))
    assert ask(far, "70 q", vectors).is_open and ask(far, "200 q", vectors).is_open


def test_what_was_left_alone_and_what_was_taken_out_oppose(vectors):
    for field in ("left_alone", "plain"):
        evidence = Evidence(said(0, 20), **{field: said(60, time=5.0)})
        verdict = ask(evidence, "25 q", vectors)
        assert verdict.is_open and verdict.answers == evidence.answers and "20 words" in verdict.reason
        closed = ask(evidence, "55 q", vectors)
        assert closed == Verdict((), False, closed.reasons) and "60 words" in closed.reason
    assert ask(Evidence(left_alone=said(60)), "60 q", vectors) == Verdict()


def place(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def make_gate(taught, opposing=(), general=(), is_narrow=False):
    "Return a gate; taught and opposing: angle -> time."
    sides = [Points(place(*side), np.array([*side.values()], float)) for side in (taught, dict(opposing))]
    return Gate(*sides, General(place(*general)), is_narrow)


def test_a_newer_correction_overrides_what_was_let_pass_within_its_reach():
    earlier, later = ({angle: time for angle in (20, 86)} for time in (1.0, 9.0))
    before = make_gate({0: 5.0, 30: 6.0}, earlier)
    assert before.is_overridden.tolist() == [True, False] and before.opens(place(20, 80)).tolist() == [True, False]
    assert not make_gate({0: 5.0, 30: 6.0}, later).is_overridden.any()
    assert not make_gate({0: 5.0, 30: 6.0}, {20: 6.0}).is_overridden.any(), "in the same second"
    assert not make_gate({0: 0.0, 30: 6.0}, {14: 1.0}).is_overridden.any(), "its nearest correction is the older one"
    assert make_gate({0: 0.0, 30: 6.0}, {16: 1.0}).is_overridden.all()
    assert not make_gate({0: 5.0, 30: 6.0}, {20: 1.0}, [21]).is_overridden.any(), "nearer to general"


def test_the_reason_names_what_a_correction_overrode_and_what_it_did_not(vectors):
    evidence = Evidence(said(0, 20, time=5.0), left_alone=said(20, 10))
    assert ask(evidence, "20 words", vectors).reason.endswith("newer than “20 words”, which you had left as it was")
    assert ask(evidence, "1 q", vectors).reason == "similar to “0 words”, which you corrected", "it would apply anyway"
    taken_out = replace(evidence, left_alone=(), plain=said(20))
    assert not ask(taken_out, "20 words", vectors).is_open, "what was taken out on purpose stays"


def test_general_prompts_oppose_however_many_replies_were_left_alone():
    general = [*range(90, 90 + 2 * NUM_OPPOSING)]
    for alone in (0, 1, NUM_OPPOSING):
        since = {angle / 10: 9.0 for angle in range(-1800, -1800 + alone)}
        assert len(make_gate({0: 5.0, 0.5: 6.0}, since, general).general) == NUM_OPPOSING
    alone = make_gate({0: 5.0}, general=[60] * NUM_OPPOSING)
    assert alone.opens(place(29, 31)).tolist() == [True, False], "a single correction has general prompts against it"


def test_corrections_have_a_subject_once_many_replies_were_left_alone():
    general = range(0, 180, 2)
    since, before = ({angle: time for angle in range(90, 90 + 2 * MOST_ALONE)} for time in (9.0, 1.0))
    assert make_gate({0: 5.0, 40: 6.0}, since, general).is_scattered
    assert make_gate({0: 5.0, 40: 6.0}, before | {179: 2.0}, general).is_scattered, "before the first correction"
    assert not make_gate({0: 5.0, 40: 6.0}, since | {179: 9.0}, general).is_scattered


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


def test_the_newest_corrections_tell_how_far_all_of_them_reach():
    rows = np.concatenate([place(*[0.0] * NEWEST), place(*[0.0, 60.0] * (NEWEST // 4)), place(*[0.0] * (NEWEST // 2))])
    assert measure_reach(rows) == measure_reach(rows[-NEWEST:]) == pytest.approx(REACH)
    scattered = np.concatenate([rows, place(*np.linspace(0, 170, NEWEST))])
    assert measure_reach(scattered) == pytest.approx(REACH * np.cos(np.radians(170 / (NEWEST - 1))))
    assert measure_spread(place(0, 20, 60)) == pytest.approx((2 * np.cos(np.radians(20)) + np.cos(np.radians(40))) / 3)


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
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, problem):
    with pytest.raises(InputError, match=problem) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_the_persons_word_wins(vectors):
    alone = said(90)
    everywhere = Evidence(everywhere=said(0), left_alone=alone)
    assert ask(everywhere, "90 q", vectors).answers == everywhere.everywhere
    assert (
        ask(everywhere, "90 q", vectors).is_open and ask(everywhere, "90 q", vectors).reason == "you said: all replies"
    )
    both = Evidence(said(0, 20), everywhere=said(180), left_alone=alone)
    assert ask(both, "90 q", vectors).answers == both.everywhere
    assert not ask(both, "90 q", vectors).is_open, "the adapter learned the others, too"
    assert {*ask(both, "0 q", vectors).answers} == {*both.everywhere, *both.answers}
    here = Evidence(here=said(0))
    assert ask(here, "80 q", vectors).is_open, "nothing opposes it"
    general = General(vectors.embed(["85 general"]))
    assert not ask(here, "80 q", vectors, general).is_open and ask(here, "10 q", vectors, general).is_open
    mixed = Evidence(said(80), here=said(0))
    assert ask(mixed, "80 q", vectors, general).answers == mixed.answers, "each group for itself"


def test_corrections_of_all_scopes_are_in_the_order_of_time(vectors):
    "Of two that are near, a reply follows the newer one, wherever the person said that they belong."
    evidence = Evidence(said(0, 10, time=2.0), here=said(5, time=1.0), everywhere=said(180, time=2.5))
    verdict = ask(evidence, "4 q", vectors)
    assert [d.time for d in verdict.answers] == [1.0, 2.0, 2.5, 3.0]
    assert np.argmax(verdict.similarities) == 0, "each with its own similarity"


def test_here_too_supports_and_is_no_example(vectors):
    evidence = Evidence(answers=said(0, 10, time=5.0), left_alone=said(60, 62))
    assert not ask(evidence, "61 prompt", vectors).is_open
    wanted = Evidence(answers=evidence.answers, wanted=tuple(replace(d, origin="model") for d in said(60)))
    verdict = ask(wanted, "61 prompt", vectors)
    assert verdict.answers == evidence.answers and verdict.is_open
    assert verdict.reason == "similar to “60 words”, where you wanted them, too"
    assert ask(wanted, "1 prompt", vectors).reason == "similar to “0 words”, which you corrected"
    assert not ask(Evidence(wanted=wanted.wanted), "61 prompt", vectors).is_open, "nothing was taught"
    assert not ask(replace(wanted, plain=said(61)), "61 prompt", vectors).is_open, "a nearer prompt said: not here"


def test_parts_with_reasons_of_their_own_are_named(vectors):
    evidence = Evidence(said(0, 5), here=said(170), everywhere=said(90), left_alone=said(60))
    general = General(vectors.embed(["85 general"]))
    open_, closed = (ask(evidence, prompt, vectors, general) for prompt in ("4 q", "58 q"))
    assert open_.reason.splitlines() == [
        "1 correction applies: you said: all replies",
        "2 corrections apply: similar to “5 words”, which you corrected",
        "1 correction doesn't apply: more similar to “60 words”, which you left as it was",
    ]
    assert "2 corrections don't apply" in closed.reason and not closed.is_open and len(closed.answers) == 1


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


def test_the_reason_says_whether_the_nearest_reply_was_corrected_or_liked(vectors):
    liked = [replace(d, origin="approved") for d in said(0, 5)]
    assert ask(Evidence(tuple(liked)), "1 q", vectors).reason == "similar to “0 words”, whose reply you liked"
    assert ask(Evidence(said(0, 5)), "1 q", vectors).reason == "similar to “0 words”, which you corrected"


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
