"The gate: what counts as evidence, how far corrections reach, and that a closed loop doesn't feed itself."

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue
from personal_llm.base.encoder import DEFAULT_ENCODER, VectorStore
from personal_llm.memory import gate
from personal_llm.memory.gate import MEAN_WEIGHT, REACH, Evidence, Verdict, belongs, judge
from personal_llm.memory.gate import measure_reach


class Angles:
    "An encoder whose texts begin with their angle in degrees."

    def encode(self, texts, **options):
        angles = np.radians([float(text.split()[0]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture
def vectors():
    return VectorStore(Angles())


def said(*angles, time=0.0):
    return tuple(Dialogue(f"{angle} words", "In short: yes.", time=time + i) for i, angle in enumerate(angles))


similarities = st.lists(st.floats(-1, 1), min_size=1, max_size=9).map(np.array)


@given(similarities, similarities, st.floats(-3, 3), st.floats(0.5, 2))
def test_the_comparison_needs_no_scale_and_no_order(supporting, opposing, shift, scale):
    sides = (supporting, opposing)
    near, far = ((1 - MEAN_WEIGHT) * max(side) + MEAN_WEIGHT * sum(side) / len(side) for side in sides)
    if abs(near - far) > 1e-6:
        decided = belongs(supporting, opposing)
        assert decided == (near > far)
        assert decided == belongs(scale * supporting + shift, scale * opposing + shift)
        assert decided == belongs(supporting[::-1], np.sort(opposing))


@given(st.lists(st.integers(0, 90), min_size=2, max_size=8))
def test_the_reach_is_a_share_of_the_mean_distance_to_the_nearest_other(degrees):
    rows = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    cosines = np.cos(np.radians(np.subtract.outer(degrees, degrees))) - 2 * np.eye(len(degrees))
    nearest = cosines.max(axis=1)
    assert abs(measure_reach(rows) - REACH * sum(nearest) / len(nearest)) < 1e-6
    assert measure_reach(rows[:1]) == measure_reach(rows[:0]) == -np.inf


def test_corrections_reach_as_far_as_they_are_from_each_other(vectors):
    assert judge(Evidence(said(0)), "170 q", vectors).is_open, "a single one has no distance"
    assert (
        judge(Evidence(said(0)), "170 q", vectors).reason
        == "the only evidence so far is “0 words”, which you corrected"
    )
    near = Evidence(said(0, 5, 10))
    assert judge(near, "40 q", vectors).is_open and not judge(near, "70 q", vectors).is_open
    far = Evidence(said(0, 70, 140))
    assert judge(far, "70 q", vectors).is_open and judge(far, "200 q", vectors).is_open


def test_what_was_left_alone_and_what_was_taken_out_oppose(vectors):
    for field in ("left_alone", "plain"):
        evidence = Evidence(said(0, 20), **{field: said(60)})
        verdict = judge(evidence, "25 q", vectors)
        assert verdict.is_open and verdict.answers == evidence.answers and "20 words" in verdict.reason
        closed = judge(evidence, "55 q", vectors)
        assert closed == Verdict((), False, closed.reason) and "60 words" in closed.reason
    assert judge(Evidence(left_alone=said(60)), "60 q", vectors) == Verdict()


def test_a_reply_that_was_left_alone_before_the_same_prompt_was_corrected_counts_no_more(vectors):
    corrected = said(0, 20, time=5.0)
    earlier = said(20, time=1.0)
    later = said(20, time=9.0)
    assert judge(Evidence(corrected, left_alone=earlier), "20 words", vectors).is_open
    assert not judge(Evidence(corrected, left_alone=later), "20 words", vectors).is_open


def test_the_persons_word_wins(vectors):
    alone = said(90)
    everywhere = Evidence(everywhere=said(0), left_alone=alone)
    assert judge(everywhere, "90 q", vectors) == Verdict(everywhere.everywhere, True, "you said: all replies")
    both = Evidence(said(0, 20), everywhere=said(180), left_alone=alone)
    assert judge(both, "90 q", vectors).answers == both.everywhere
    assert not judge(both, "90 q", vectors).is_open, "the adapter learned the others, too"
    assert {*judge(both, "0 q", vectors).answers} == {*both.everywhere, *both.answers}
    here = Evidence(here=said(0))
    assert judge(here, "80 q", vectors).is_open, "nothing opposes it"
    general = ("85 general",)
    assert not judge(here, "80 q", vectors, general).is_open and judge(here, "10 q", vectors, general).is_open
    mixed = Evidence(said(80), here=said(0))
    assert judge(mixed, "80 q", vectors, general).answers == mixed.answers, "each group for itself"


def test_parts_with_reasons_of_their_own_are_named(vectors):
    evidence = Evidence(said(0, 5), here=said(170), everywhere=said(90), left_alone=said(60))
    open_, closed = judge(evidence, "4 q", vectors, ("85 general",)), judge(evidence, "58 q", vectors, ("85 general",))
    assert open_.reason.splitlines() == [
        "1 correction applies: you said: all replies",
        "2 corrections apply: similar to “5 words”, which you corrected",
        "1 correction doesn't apply: more similar to “60 words”, which you left as it was",
    ]
    assert "2 corrections don't apply" in closed.reason and not closed.is_open and len(closed.answers) == 1


def ask(*prompts, time=0.0, response="(a reply)"):
    return tuple(Dialogue(prompt, response, time=time + i) for i, prompt in enumerate(prompts))


def test_corrections_stay_in_the_language_of_their_prompts_unless_you_say_all_replies():
    vectors = VectorStore(DEFAULT_ENCODER)
    german = ask("Was ist die Hauptstadt von Italien?", "Wer schrieb Hamlet?", "Wie viele Tage hat eine Woche?")
    prompts = ("Was ist die Hauptstadt von Frankreich?", "What is the capital of France?")
    prompts += ("¿Cuál es la capital de Francia?", "Какая столица Франции?", "フランスの首都はどこですか？")
    verdicts = [judge(Evidence(german), prompt, vectors) for prompt in prompts]
    assert [verdict.is_open for verdict in verdicts] == [True] + [False] * 4
    assert verdicts[1].reason == "you corrected prompts in another language"
    assert all(judge(Evidence(everywhere=german), prompt, vectors).is_open for prompt in prompts)
    assert judge(Evidence(ask("Hamlet?")), prompts[1], vectors).is_open, "a prompt may show no language"
    both = (*german, *ask("What is the capital of Spain?", time=9.0))
    assert [d.prompt for d in judge(Evidence(both), prompts[1], vectors).answers] == ["What is the capital of Spain?"]


def test_the_reason_says_whether_the_nearest_reply_was_corrected_or_liked(vectors):
    liked = [replace(d, origin="approved") for d in said(0, 5)]
    assert judge(Evidence(tuple(liked)), "1 q", vectors).reason == "similar to “0 words”, whose reply you liked"
    assert judge(Evidence(said(0, 5)), "1 q", vectors).reason == "similar to “0 words”, which you corrected"


def test_the_language_of_a_prompt_is_found_once(vectors, monkeypatch):
    asked = []
    monkeypatch.setattr(gate, "find_language", lambda texts: asked.extend(texts) or "")
    evidence = Evidence(said(0, 5), here=said(10))
    languages = {}
    for prompt in ("20 q", "30 q", "20 q"):
        judge(evidence, prompt, vectors, (), languages)
    assert sorted(asked) == sorted(languages) == ["0 words", "10 words", "20 q", "30 q", "5 words"]


def test_the_first_day_of_somebody_who_corrects_recipes():
    vectors = VectorStore(DEFAULT_ENCODER)
    first = ask("How do I tie a tie?", "What is the capital of Italy?")
    first += ask("Explain gravity.", "Write a haiku about snow.")
    recipes = ask("How do I make pancakes?", "How do I make tomato soup?", "How do I make a rice salad?", time=9.0)
    opens = {
        prompt: judge(Evidence(recipes, left_alone=first), prompt, vectors).is_open
        for prompt in ("How do I make a lentil soup?", "How do I make a potato salad?")
        + ("Wie backe ich einen Kuchen?", "What is the capital of Norway?", "Write a short poem about rain.")
    }
    assert [*opens.values()] == [True, True, False, False, False], "in the language of the corrections"


def test_a_closed_loop_does_not_feed_itself():
    "Replies that used corrections and were left alone say nothing, so the gate doesn't open wider and wider."
    from personal_llm.data.reading import load_samples

    vectors = VectorStore(DEFAULT_ENCODER)
    texts = list(dict.fromkeys(row["prompt"] for row in load_samples() if len(row["prompt"]) <= 200))
    others = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:120]]
    recipes = ask("How do I make pancakes?", "How do I make tomato soup?", "How do I make a rice salad?")
    alone = list(ask("What is the capital of Italy?", "Write a haiku about snow.", "Explain gravity."))
    opened = []
    for number, prompt in enumerate(others):
        opened.append(judge(Evidence(recipes, left_alone=tuple(alone)), prompt, vectors).is_open)
        if not opened[-1]:
            alone.append(Dialogue(prompt, "(a reply)", time=10.0 + number))
    assert sum(opened[60:]) <= 3
    evidence = Evidence(recipes, left_alone=tuple(alone))
    assert judge(evidence, "How do I make an omelette?", vectors).is_open
