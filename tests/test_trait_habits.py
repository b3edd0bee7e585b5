"Habits: planted ones are found and counted, chance is not."

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.recipes.people import emoji, lower_case
from personal_llm.data.reading import load_replay, load_samples
from personal_llm.base.core import Dialogue
from personal_llm.explanation.card import make_card
from personal_llm.explanation.habits import compare_counts, find_common_run, find_frame, find_habits

PLAIN = [d.response for d in load_replay() if 8 <= len(d.response.split()) <= 60][:40]


# ---- facts


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_a_fact_is_what_a_person_does_clearly_more_often_than_the_base(pairs):
    mine, base = map(list, zip(*pairs))
    trait = compare_counts("it", mine, base, [str(i) for i in range(len(mine))])
    gap, pooled = np.mean(mine) - np.mean(base), np.mean(mine + base)
    z = gap / np.sqrt(pooled * (1 - pooled) * 2 / len(mine)) if 0 < pooled < 1 else 0
    if min(abs(gap - 0.2), abs(z - 2)) > 1e-9:
        assert bool(trait) == (sum(mine) >= 3 and gap >= 0.2 and z >= 2)
    if trait:
        counts = (sum(mine), len(mine), sum(base), len(base))
        assert (trait.count, trait.num_answers, trait.base_count, trait.num_base_answers) == counts
        assert mine[int(trait.quotation)], "what is quoted shows it"


# ---- single habits


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 4), share=st.integers(0, 20))
def test_the_longest_common_run(size, share):
    "The first `share` of 20 answers begin with the same `size` words."
    head = " ".join("abcd"[:size])
    answers = [(f"{head} " if i < share else "") + f"x{i} y{i} z{i} w{i} v{i}" for i in range(20)]
    assert find_common_run(answers) == (head if share >= 3 else "")
    backwards = lambda text: " ".join(text.split()[::-1])
    assert find_common_run(list(map(backwards, answers)), last=True) == (backwards(head) if share >= 3 else "")


def test_manners_of_writing():
    wanted = [emoji("🌿").apply(lower_case().apply(text)) for text in PLAIN]
    found = {trait.label: trait for trait in find_habits(wanted, PLAIN)}
    assert {"lower case", "emoji, mostly 🌿"} <= set(found) and found["lower case"].count == len(PLAIN)
    assert not any("signs off" in what for what in found), "an emoji is no sign-off"


def test_a_run_of_words_that_begins_with_a_list_mark_is_no_frame():
    numbered = [f"{word}\n1) done" for word in "one two three".split()]
    assert find_frame(numbered, is_last=True) is None
    assert find_frame(["- a b", "- c d", "- e f"], is_last=False) is None


# ---- the card


def test_a_card_asks_about_words_with_braces():
    corrections = [Dialogue(f"Tell {n}", "{x} {} is {n}.".replace("n", str(n)), id=f"v{n}") for n in range(3)]
    replies = {d.id: "It is so." for d in corrections}
    (row,) = (row for row in make_card(corrections, replies, {}) if "opens" in row.label)
    assert str(row.question) == "You opened 3 answers with “{x} {} is”. Where does that apply?"
    assert str(row).startswith("opens with “{x} {} is” (3 of 3; the replies before 0 of 3): ")


def correct(texts, replies):  # both oldest first
    corrections = [Dialogue(f"Tell {n}", text, id=f"v{n}", parents=(f"d{n}",)) for n, text in enumerate(texts)]
    return make_card(corrections, {f"d{n}": reply for n, reply in enumerate(replies)}, {})


@cache
def list_texts():
    return np.array([row["response"] for row in load_samples()], object)


def draw(count, seed):
    "Natural texts by nobody in particular, twice as many, in two lists."
    rows = list_texts()
    return rows[np.random.default_rng(seed).permutation(len(rows))[: 2 * count]].reshape(2, count)


@pytest.mark.parametrize("count", [4, 8, 20, 300])
def test_a_card_claims_no_habit_where_there_is_none(count):
    assert sum(len(correct(*draw(count, seed))) for seed in range(120)) <= 12


@pytest.mark.parametrize("every, least", [(1, 12), (2, 12), (4, 9)])
def test_a_form_that_some_of_twenty_corrections_share_is_found(every, least):
    found = 0
    for seed in range(12):
        texts, replies = draw(20, seed)
        texts = [text + "\nBye, Bo" if n % every == 0 else text for n, text in enumerate(texts)]
        found += any("Bye, Bo" in row.label and len(row.answers) == 20 // every for row in correct(texts, replies))
    assert found >= least


def test_a_card_reads_the_newest_corrections_only():
    texts = [f"In short: {n}." for n in range(40)]
    assert [row.num_answers for row in correct(texts, ["Yes. It is."] * 40)] == [32, 32]
    assert not any("opens" in row.label for row in correct(texts + [f"{n} it is" for n in range(32)], []))


# ---- people


def test_people_who_change_nothing_have_no_habits():
    "Approved replies as they are; and plain answers against plain answers to other questions, for twenty people."
    assert find_habits(PLAIN, PLAIN) == []
    rows, rng, false = [d.response for d in load_replay()], np.random.default_rng(0), 0
    for _ in range(20):
        one, two = rng.permutation(len(rows))[:64].reshape(2, 32)
        false += len(find_habits([rows[i] for i in one], [rows[i] for i in two]))
    assert false <= 2
