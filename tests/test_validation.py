"Who judges and who trains: lineages are never split; a judge remembers the best."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import ttest_1samp

from personal_llm.base.core import Dialogue, InputError
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.validation import BestAdapter, as_dialogues, check_dialogues, lineages, validation_split


@st.composite
def families(draw):
    "Originals; corrected answers, synthetic children and grandchildren of one or two of them, in any order."
    out = [Dialogue(f"original {i}", "a") for i in range(draw(st.integers(1, 25)))]
    for i in range(draw(st.integers(0, 30))):
        parent, origin = (
            out[draw(st.integers(0, len(out) - 1))],
            draw(st.sampled_from(["synthetic", "synthetic", "annotated"])),
        )
        if origin == "annotated" and parent.origin == "synthetic":
            continue
        parents = {parent.id} | {out[k].id for k in draw(st.lists(st.integers(0, len(out) - 1), max_size=1))}
        out.append(Dialogue(f"child {i}", "a", origin=origin, parents=tuple(sorted(parents))))
    return draw(st.permutations(out))


@given(st.integers(1, 30), st.floats(0, 0.9), st.integers(0, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_children_of_what_judges_do_not_train(originals, share, seed, data):
    family = [Dialogue(f"original {i}", "a") for i in range(originals)]
    family += [
        Dialogue(f"child {i}", "a", origin="synthetic", parents=(family[p].id,))
        for i, p in enumerate(data.draw(st.lists(st.integers(0, originals - 1), max_size=30)))
    ]
    learn, judge = validation_split(family, share, seed)
    held = {d.id for d in judge}
    count = min(max(4, round(share * originals)), originals - 1) if share and originals >= 16 else 0
    assert len(judge) == count
    assert [d for d in family if d.id not in held and not held & set(d.parents)] == learn
    assert [d for d in family if d.id in held] == judge and all(d.origin == "user" for d in judge)


def components(dialogues):  # id -> all ids that are tied to it
    "The naive twin of `lineages`: sets that are joined until nothing changes."
    found = {d.id: {d.id, *d.parents} for d in dialogues}
    for _ in dialogues:
        for one in found.values():
            for other in found.values():
                if one & other:
                    one |= other
    return found


@given(families(), st.floats(0, 0.99), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_lineages_are_not_split(dialogues, share, seed):
    "No dialogue trains that descends from one that judges, or is an ancestor of one."
    learn, choose = validation_split(dialogues, share, seed)
    families = components(dialogues)
    held = {name for d in choose for name in families[d.id]}
    assert not held & {d.id for d in learn}, "a lineage on both sides"
    assert learn, "something must be left to learn from"
    assert all(d.origin != "synthetic" for d in choose) and [d for d in dialogues if d in learn] == learn
    assert all(d in learn or d.id in held for d in dialogues), "nothing is lost but lineages that judge"
    if share == 0:
        assert not choose
    again = validation_split(dialogues[::-1], share, seed)
    assert {d.id for d in again[1]} == {d.id for d in choose}, "the order does not count"


def test_parents_in_a_circle_are_refused():
    ring = [Dialogue(name, "a", id=name, parents=(to,)) for name, to in (("x", "y"), ("y", "z"), ("z", "x"))]
    ring.append(Dialogue("v", "a", id="v", parents=("w", "x")))  # and by way of a second parent
    for circle in (ring[:3], ring, [ring[3], Dialogue("x", "a", id="x", parents=("u", "v"))]):
        with pytest.raises(InputError, match="circle"):
            validation_split(circle, 0.1)
    with pytest.raises(InputError, match="circle"):
        validation_split(ring, 0.1)


def test_a_second_parent_ties_two_families():
    "A dialogue may not train whose second parent judges."
    first = [Dialogue(f"Question {i}?", "a") for i in range(20)]
    second = [Dialogue(f"Other {i}?", "b") for i in range(20)]
    both = [
        a.derive(prompt=f"Both {a.prompt}", parents=(a.id, b.id), origin="synthetic") for a, b in zip(first, second)
    ]
    for seed in range(5):
        learn, judge = validation_split(first + second + both, 0.5, seed)
        held = {d.id for d in judge}
        assert len(judge) == 20 and not any(held & {d.id, *d.parents} for d in learn)


def test_names_of_lineages():
    "One parent each: the oldest ancestor names the lineage, in the list or not; of several the lowest does."
    make = lambda name, *parents: Dialogue(name, "a", id=name, parents=parents)
    rows = [
        make("e", "d"),
        make("d", "gone"),
        make("b"),
        make("c", "b"),
        make("z", "c", "y"),
        make("y"),
        make("q", "z"),
    ]
    assert lineages(rows) == ["gone", "gone", "b", "b", "b", "b", "b"]
    chain = [make(f"{i:05d}", f"{i + 1:05d}") for i in range(5000)]
    assert set(lineages(chain)) == {"05000"}, "long chains are no recursion"


@pytest.mark.parametrize(
    "wrong", [["a"], [Dialogue("a", "b"), None], dict(prompt="a"), "text", (d for d in ()), None, 3]
)
def test_what_is_no_list_of_dialogues(wrong):
    with pytest.raises(InputError, match="dialogue"):
        check_dialogues(wrong)
    check_dialogues((Dialogue("a", "b"),))


def test_finished():
    judge, config = BestAdapter([], 0), TuningConfig(steps=6, patience=2)
    assert not judge.finished(config)
    judge.losses = {0: 3.0, 5: 2.0}
    assert not judge.finished(config)
    judge.waited = 2
    assert judge.finished(config)
    judge.losses, judge.waited = {0: 3.0, 6: 2.0}, 0
    assert judge.finished(config)


def test_what_is_used_up_by_a_look_is_refused():
    "A generator of dialogues is no list of them; so is one of rows."
    for rows in ((d for d in [Dialogue("a", "b")]), iter([dict(prompt="a", response="b")])):
        with pytest.raises(InputError, match="is no list of dialogues") as caught:
            as_dialogues(rows)
        assert caught.value.remedy == "give a list"


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_a_start_is_left_for_a_sure_gain_only(gains, look):
    "A twin by the t test's p: what is kept is better than the start at this look's part of a fifth."
    judge = BestAdapter([], 0, sure=True)
    judge.losses, judge.first = {step: 0.0 for step in range(look + 1)}, [2.0] * len(gains)
    judge.rates = [2.0 - gain for gain in gains]
    found = np.subtract(judge.first, judge.rates)
    if found.std() > 1e-6:
        p = ttest_1samp(found, 0, alternative="greater").pvalue
        assert judge.counts() == (p < 0.2 / (look * (look + 1)))
    assert BestAdapter([], 0).counts(), "from nothing any gain counts"


def test_one_judge_is_never_sure():
    judge = BestAdapter([], 0, sure=True)
    judge.losses, judge.first, judge.rates = {0: 2.0, 5: 1.0}, [2.0], [1.0]
    assert not judge.counts()


class Told(BestAdapter):
    "Judges by lists: the rates of six dialogues at each look."

    given = ()

    def loss(self, adapted):
        self.rates = self.given[len(self.losses)]
        return float(np.mean(self.rates))


def test_what_is_not_sure_is_looked_at_and_not_kept(tmp_path):
    "The lowest loss is chance, a higher one is sure; patience counts from the lowest; a stopped run goes on the same."
    module, judge = torch.nn.Linear(1, 1, bias=False), Told([], 0, sure=True)
    rows = [[2.0] * 6, [0.0, 2.0, 2.0, 2.0, 2.0, 2.0], [1.9, 1.8, 1.9, 1.8, 1.9, 1.8], [2.0] * 6]
    Told.given = rows
    for step in range(4):
        module.weight.data.fill_(step)
        judge.look(module, step)
        if step == 2:
            judge.save(tmp_path)
    judge.restore(module)
    assert judge.best == pytest.approx(1.85) and module.weight.item() == 2 and judge.waited == 2
    again = Told([], 0, sure=True)
    again.load(tmp_path)
    again.look(module, 3)
    assert again.losses == judge.losses and again.best == judge.best and again.first == judge.first
    lenient = Told([], 0)
    for step in range(4):
        lenient.look(module, step)
    assert lenient.best == pytest.approx(5 / 3)


@pytest.mark.parametrize("ratio, looks", [(1.4, 0), (2.0, 1), (2.6, 2), (3.1, 3)])
def test_later_looks_ask_for_more(ratio, looks):
    "Six gains, their mean so many standard errors; 1.48, 2.34, 2.91 and 3.36 are asked for (Student)."
    gains = ratio / 5**0.5 + np.array([1, -1, 1, -1, 1, -1])
    judge = BestAdapter([], 0, sure=True)
    judge.first, judge.rates, found = [9.0] * 6, (9 - gains).tolist(), []
    for look in range(1, 5):
        judge.losses = dict.fromkeys(range(look + 1), 9.0)
        found.append(judge.counts())
    assert found == [look < looks for look in range(4)]
