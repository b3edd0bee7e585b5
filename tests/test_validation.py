"Validation: lineages are never split, and the best weights are kept."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.training_loop import load_checkpoint, save_checkpoint
from personal_llm.tuning.validation import Checks, find_lineages, select_users_answers, validation_split


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
def test_children_of_validation_dialogues_do_not_train(originals, share, seed, data):
    family = [Dialogue(f"original {i}", "a") for i in range(originals)]
    family += [
        Dialogue(f"child {i}", "a", origin="synthetic", parents=(family[p].id,))
        for i, p in enumerate(data.draw(st.lists(st.integers(0, originals - 1), max_size=30)))
    ]
    learn, validation = validation_split(family, share, seed)
    held = {d.id for d in validation}
    fewest = min(4, max(2, originals // 4))
    count = min(max(fewest, round(share * originals)), originals - 1) if share and originals >= 4 else 0
    assert len(validation) == count
    assert [d for d in family if d.id not in held and not held & set(d.parents)] == learn
    assert [d for d in family if d.id in held] == validation and all(d.origin == "user" for d in validation)


def components(dialogues):  # id -> all ids that are tied to it
    "The naive twin of `find_lineages`: sets that are joined until nothing changes."
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
    "No dialogue trains that descends from a validation dialogue or is an ancestor of one."
    learn, choose = validation_split(dialogues, share, seed)
    families = components(dialogues)
    held = {name for d in choose for name in families[d.id]}
    assert not held & {d.id for d in learn}, "a lineage on both sides"
    assert learn, "something must be left to learn from"
    assert all(d.origin != "synthetic" for d in choose) and [d for d in dialogues if d in learn] == learn
    assert all(d in learn or d.id in held for d in dialogues), "nothing is lost but validation lineages"
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
    "A dialogue may not train whose second parent validates."
    first = [Dialogue(f"Question {i}?", "a") for i in range(20)]
    second = [Dialogue(f"Other {i}?", "b") for i in range(20)]
    both = [
        a.derive(prompt=f"Both {a.prompt}", parents=(a.id, b.id), origin="synthetic") for a, b in zip(first, second)
    ]
    for seed in range(5):
        learn, validation = validation_split(first + second + both, 0.5, seed)
        held = {d.id for d in validation}
        assert len(validation) == 20 and not any(held & {d.id, *d.parents} for d in learn)


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
    assert find_lineages(rows) == ["gone", "gone", "b", "b", "b", "b", "b"]
    chain = [make(f"{i:05d}", f"{i + 1:05d}") for i in range(5000)]
    assert set(find_lineages(chain)) == {"05000"}, "long chains are no recursion"


def test_finished():
    checks, config = Checks([], 0), TuningConfig(steps=6, patience=2)
    assert not checks.is_finished(config)
    checks.losses = {0: 3.0, 5: 2.0}
    assert not checks.is_finished(config)
    checks.checks_without_gain = 2
    assert checks.is_finished(config)
    checks.losses, checks.checks_without_gain = {0: 3.0, 6: 2.0}, 0
    assert checks.is_finished(config)


class PlannedChecks(Checks):
    "Judges by lists: the rates of six dialogues at each look."

    given = ()

    def compute_loss(self, adapted):
        return float(np.mean(self.given[len(self.losses)]))


def test_the_lowest_check_is_kept(tmp_path):
    "Patience counts from the lowest check, and a stopped run goes on the same."
    module, checks = torch.nn.Linear(1, 1, bias=False), PlannedChecks([], 0)
    weights = dict(module.named_parameters())
    optimiser = torch.optim.AdamW(weights.values())
    PlannedChecks.given = [[2.0] * 6, [1.9, 1.8, 1.9, 1.8, 1.9, 1.8], [0.0, 2.0, 2.0, 2.0, 2.0, 2.0], [2.0] * 6]
    for step in range(4):
        module.weight.data.fill_(step)
        checks.run_check(module, step)
        if step == 2:
            save_checkpoint(tmp_path, step, weights, optimiser, checks)
    checks.restore(module)
    assert checks.best_loss == pytest.approx(5 / 3) and module.weight.item() == 2 and checks.checks_without_gain == 1
    again = PlannedChecks([], 0)
    assert load_checkpoint(tmp_path, weights, optimiser, again) == 2
    module.weight.data.fill_(3)
    again.run_check(module, 3)
    assert again.losses == checks.losses and again.best_loss == checks.best_loss


ORIGINS = st.sampled_from(("model", "user", "approved", "annotated", "synthetic"))


@given(st.lists(ORIGINS, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_surest_answers_count(origins):
    "A naive twin: corrections alone if there is one, else all that the user wrote or approved."
    dialogues = [Dialogue(f"Question {i}?", "a", origin=origin) for i, origin in enumerate(origins)]
    wanted = {"annotated"} if "annotated" in origins else {"user", "approved"}
    assert select_users_answers(dialogues) == [d for d in dialogues if d.origin in wanted]


def test_only_the_users_answers_validate():
    "Uncorrected replies of the model train, and never validate; beside corrections, no other answer does."
    users = [Dialogue(f"Question {i}?", "a") for i in range(16)]
    models = [Dialogue(f"Other {i}?", "b", origin="model") for i in range(40)]
    corrected = [models[i].derive(response="c", origin="annotated") for i in range(20)]
    for seed in range(3):
        training, validation = validation_split(users + models, 0.5, seed)
        assert len(validation) == 8 and all(d.origin == "user" for d in validation)
        training, validation = validation_split(users + models + corrected, 0.5, seed)
        assert len(validation) == 10 and all(d.origin == "annotated" for d in validation)
        assert not {d.id for d in training} & {p for d in validation for p in d.parents}
    assert validation_split(users + corrected[:3], 0.5)[1] == [], "three corrections are too few to hold some back"
    assert validation_split(models, 0.5)[1] == []
