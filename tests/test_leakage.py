"Leakage: planted truth on a fake model, laws of the three measurements, and what is refused."

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.experiments.methods.canaries import compute_exposure, make_canaries
from personal_llm.runtimes.audit import (
    ATTACKS,
    Leakage,
    compute_advantage,
    compute_auc,
    measure_leakage,
    measure_membership,
    measure_overlap,
    score_membership,
)

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=20).map(lambda row: np.array(row, float))
TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=16).map(" ".join), max_size=3)


class Memory:
    "A model whose losses are random, and lower by `gain` on the dialogues that its adapter is a list of."

    def __init__(self, gain: float):
        self.gain, self.learned = gain, []

    @contextmanager
    def use_adapter(self, adapter):
        self.learned = adapter or []
        yield
        self.learned = []

    def reply(self, dialogues, max_new_tokens):
        return ["I do not know." for _ in dialogues]

    def nll(self, dialogues):
        luck = [np.random.default_rng(int(d.id, 16) % 2**32).normal(20, 3) for d in dialogues]
        return np.array([[x - self.gain * (d in self.learned), 10] for x, d in zip(luck, dialogues)])


def split(count: int = 40) -> tuple:  # members, others
    rows = [Dialogue(f"Question {i}?", f"Answer {i}.") for i in range(2 * count)]
    return rows[:count], rows[count:]


@given(SCORES, SCORES)
def test_a_monotone_change_of_the_scores_changes_no_attack(members, others):
    assert compute_auc(members, others) == compute_auc(2 * members + 1, 2 * others + 1)
    assert compute_advantage(members, others) == compute_advantage(members**3, others**3)
    assert compute_auc(members, others) == pytest.approx(1 - compute_auc(others, members))
    assert 0 <= compute_advantage(members, others) <= 1


@given(SCORES)
def test_equal_scores_give_an_attacker_nothing(scores):
    assert compute_auc(scores, scores) == pytest.approx(0.5) and compute_advantage(scores, scores) == 0


@pytest.mark.parametrize(("gain", "least", "most"), [(0, -0.2, 0.15), (2, 0.4, 1), (99, 1, 1)])
def test_a_planted_memory_is_measured(gain, least, most):
    members, others = split()
    found = measure_leakage(Memory(gain), members, members, others)
    assert least <= found.advantage <= most and found.is_high() == (gain > 0)


def test_a_never_trained_model_and_a_shuffled_membership_are_at_chance():
    members, others = split(60)
    mixed = members[::2] + others[::2], members[1::2] + others[1::2]
    for adapter, groups in ((None, (members, others)), (members, mixed)):
        scores = [score_membership(Memory(9), adapter, group) for group in groups]
        for attack in ATTACKS:
            found = measure_membership(*(one[attack] for one in scores))
            assert found.low <= 0.05 and abs(found.above_chance) < 0.15


def test_the_reference_attack_removes_what_is_easy_for_every_model():
    members, others = split()
    scores = [score_membership(Memory(3), members, group) for group in (members, others)]
    auc = {name: compute_auc(*(one[name] for one in scores)) for name in ATTACKS}
    assert auc["reference"] == 1 > auc["loss"] > 0.5


@given(st.floats(-50, 50), st.floats(0, 10), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_lower_loss_is_never_less_exposed(loss, less, seed):
    candidates = np.random.default_rng(seed).normal(size=60)
    for space in (None, 10**6):
        low, high = compute_exposure([loss, loss - less], candidates, space)
        assert 0 <= low <= high + 1e-9 and high <= np.log2(space or 61) + 1e-9


def test_a_code_of_all_codes_has_the_exposure_of_its_rank():
    losses = np.random.default_rng(1).permutation(64).astype(float)
    rank = 1 + int(np.sum(losses[1:] < losses[0]))
    assert compute_exposure(losses[0], losses[1:]) == pytest.approx(6 - np.log2(rank))


@given(TEXTS, TEXTS, TEXTS)
def test_the_longest_run_is_in_both_and_in_no_public_text(written, private, public):
    found = measure_overlap(written, private, public)
    inside = lambda texts, run: any(f" {run} " in f" {text} " for text in texts)
    for run in found.runs:
        assert len(run.split()) == found.longest >= 5
        assert inside(written, run) and inside(private, run) and not inside(public, run)
    assert measure_overlap(written, private, public + private) == (0, dict.fromkeys((5, 6, 7, 8), 0), ())
    assert all(0 <= share <= 1 for share in found.shares.values())


def test_case_and_punctuation_hide_no_copy():
    assert measure_overlap(["MY PIN: it is, I think, 4711!"], ["my pin it is i think 4711"]).longest == 7


def test_no_text_reaches_the_numbers_of_a_card():
    members, others = split()
    written = ["the secret word is plover and nothing else"]
    told = [d.derive(response=written[0]) for d in members]
    found = measure_leakage(Memory(3), told, told, others, written)
    assert found.longest == 8 and found.is_high()
    assert "plover" not in repr(found) + str(found.to_dict()) + "\n".join(found.lines())
    assert Leakage.from_dict(found.to_dict()) == found
    for name in found.to_dict():
        with pytest.raises(InputError):
            Leakage.from_dict(found.to_dict() | {name: written[0]})


def test_canaries_differ_and_depend_on_the_seed_and_the_thing():
    codes = [d.response for d in make_canaries("locker", 200)]
    assert len({*codes}) == 200 and codes != [d.response for d in make_canaries("locker", 200, seed=1)]
    assert codes[0].removeprefix("The code of your locker") not in make_canaries("safe", 1)[0].response


@pytest.mark.parametrize("scores", [[1.0] * 7, [float("nan")] * 9, [[1.0] * 9], "text"])
def test_scores_that_decide_nothing_are_refused(scores):
    with pytest.raises(InputError):
        measure_membership(scores, [0.0] * 9)
    with pytest.raises(InputError):
        measure_membership([0.0] * 9, scores)
