"Habits: planted ones are found and counted, chance is not; only the person's own answers are read."

import numpy as np
from hypothesis import given, settings, strategies as st

from personal_llm.recipes.people import emoji, lower_case, opener, sign_off
from personal_llm.data.reading import load_replay
from personal_llm.explanation.description import describe_answers
from personal_llm.explanation.habits import compare_counts, find_common_run, find_habits

PLAIN = [d for d in load_replay() if 8 <= len(d.response.split()) <= 60][:40]


def with_habits(*habits, rows=PLAIN, origin="annotated"):
    "Dialogues put right by somebody with these habits, and the answers before."
    better = []
    for d in rows:
        text = d.response
        for habit in habits:
            text = habit.apply(text)
        better.append(d.derive(response=text, origin=origin))
    return better, [d.response for d in rows]


def habits_of(dialogues, base):
    return find_habits([d.response for d in dialogues], base)


def said(*habits, **more):
    return {fact.label: fact for fact in habits_of(*with_habits(*habits, **more))}


# ---- facts


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_a_fact_is_what_a_person_mostly_does_and_the_base_does_not(pairs):
    mine, base = map(list, zip(*pairs))
    found = compare_counts("it", mine, base, [str(i) for i in range(len(mine))])
    habit = sum(mine) / len(mine) >= 0.6 and sum(mine) / len(mine) - sum(base) / len(base) >= 0.4
    assert bool(found) == bool(habit)
    if found:
        trait, counts = found[0], (sum(mine), len(mine), sum(base), len(base))
        assert (trait.count, trait.num_answers, trait.base_count, trait.num_base_answers) == counts
        assert mine[int(trait.quotation)], "what is quoted shows it"


# ---- single habits


def test_openings_and_closings_are_found_with_their_counts():
    found = said(opener("Well, you see:"), sign_off("All the best, Kim"))
    assert {"opens with “Well, you see:”", "signs off “All the best, Kim”"} <= set(found)
    assert all(found[what].count == len(PLAIN) and found[what].base_count == 0 for what in list(found)[:2])


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 4), share=st.integers(0, 20))
def test_the_longest_common_run(size, share):
    "The first `share` of 20 answers begin with the same `size` words."
    head = " ".join("abcd"[:size])
    answers = [(f"{head} " if i < share else "") + f"x{i} y{i} z{i} w{i} v{i}" for i in range(20)]
    assert find_common_run(answers) == (head if share >= 12 else "")
    backwards = lambda text: " ".join(text.split()[::-1])
    assert find_common_run(list(map(backwards, answers)), last=True) == (backwards(head) if share >= 12 else "")


def test_a_sign_off_is_no_second_sentence():
    rows = [d.derive(response=f"One sentence, {i}, is here {i}.", parents=()) for i, d in enumerate(PLAIN)]
    base = ["One sentence. And another. And a third."] * len(rows)
    closed = [d.derive(response=d.response + "\nTake care. Ana", origin="user") for d in rows]
    assert any(fact.label.startswith("one sentence") for fact in habits_of(closed, base))


def test_manners_of_writing():
    found = said(lower_case(), emoji("🌿"))
    assert {"lower case", "emoji, mostly 🌿"} <= set(found) and found["lower case"].count == len(PLAIN)
    assert not any("signs off" in what for what in found), "an emoji is no sign-off"


# ---- whose words are read


def test_empty_texts_are_left_out():
    mine, base = with_habits(opener("Hark!"), rows=PLAIN[:20])
    pairs = [(d.response, text) for d, text in zip(mine, base)]
    empty = [(" ", text) for text in base] + [(d.response, "") for d in mine]
    assert describe_answers(pairs + empty) == describe_answers(pairs), "empty answers are left out"


# ---- people


def test_people_who_change_nothing_have_no_habits():
    "Approved replies as they are; and plain answers against plain answers to other questions, for twenty people."
    assert habits_of(PLAIN, [d.response for d in PLAIN]) == []
    rows, rng, false = load_replay(), np.random.default_rng(0), 0
    for _ in range(20):
        one, two = rng.permutation(len(rows))[:64].reshape(2, 32)
        false += len(habits_of([rows[i] for i in one], [rows[i].response for i in two]))
    assert false <= 2
