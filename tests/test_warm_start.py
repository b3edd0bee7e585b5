"Warm start: one, several or nobody; what is measured, merged, billed and said."

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel

from libraries import four, small, stand_in
from personal_llm.base.adapters import Adapter
from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.base.adapters import concatenate_factors, read_factors
from personal_llm.base.models import Model
from personal_llm.selection import warm_start as module
from personal_llm.selection.merging import START_ROW_NORM
from personal_llm.selection.ranking import Ranking
from personal_llm.selection.warm_start import get_start_adapter, warm_start
from personal_llm.tuning.config import TuningConfig
from tiny import random_adapter, shared, tiny

MINE = [
    Dialogue(f"What is {word}?", f"A secret: {word}.") for word in "tea rain bread snow music salt wool glass".split()
]
MIXTURE = dict(a=0.5, b=0.3)


class Shelf(dict):
    "A library whose pLLMs are folders."

    base, space = "base", SimpleNamespace(id="planted")

    def __init__(self, folder):
        super().__init__({name: SimpleNamespace(adapter=folder / name) for name in "abc"})


class Said(SimpleNamespace):
    "An explanation."

    def __str__(self):
        return "mostly *concise*"

    def without_quotations(self):
        return self

    def to_dict(self):
        return dict(words=["concise"])


class Stages:
    "Stand-ins for explain, select and combine_adapters that write down what they were given."

    def __init__(self, patch, best="a", weights=(), losses=(("a", 2.0), ("b", 2.5))):
        self.calls = []
        self.best, self.weights, self.losses = best, dict(weights), dict(losses)
        for name in ("explain", "select", "combine_adapters"):
            patch.setattr(module, name, getattr(self, name))

    def explain(self, model, dialogues, space, seed):
        self.calls.append(("explain", len(dialogues), space.id, seed))
        return Said(cost=Cost(seconds=100, tokens=7))

    def select(self, library, mine, method, model, dialogues, seed):
        self.calls.append(("select", len(dialogues), seed))
        cost = Cost(seconds=20, forward=3, tokens=5)
        nobody = self.best is None
        return Ranking(
            self.best,
            ("a", "b", "c"),
            (0.1, 0.2, 0.3),
            self.weights,
            nobody,
            "why",
            cost,
            "match",
            self.losses,
            library,
        )

    def combine_adapters(self, library, weights, out, rank):
        assert rank == TuningConfig.rank, "a start is no larger than a fresh adapter"
        self.calls.append(("combine", dict(weights), out))
        return Adapter(Path(out or "temporary"), "base", tuple(weights))


class Fake:
    track_cost = Model.track_cost

    def __init__(self):
        self.cost = Cost()


@pytest.mark.parametrize(
    "planted, weights, steps",
    [
        (dict(), dict(a=1.0), "explain select"),
        (dict(weights=dict(a=1.0)), dict(a=1.0), "explain select"),
        (dict(best=None, weights=MIXTURE), MIXTURE, "explain select combine"),
        (dict(best=None), {}, "explain select"),
    ],
    ids=["single", "single by weight", "mixture", "nobody"],
)
def test_one_several_or_nobody(planted, weights, steps, monkeypatch, tmp_path):
    stages, model = Stages(monkeypatch, **planted), Fake()
    warm = warm_start(model, Shelf(tmp_path), MINE, out=tmp_path / "m", seed=5)
    assert " ".join(call[0] for call in stages.calls) == steps and warm.weights == weights
    assert stages.calls[0] == ("explain", 8, "planted", 5) and stages.calls[1] == ("select", 8, 5)
    if "combine" in steps:
        assert stages.calls[-1] == ("combine", weights, tmp_path / "m") and warm.adapter.parents == tuple(weights)
    else:
        assert warm.adapter == (tmp_path / "a" if weights else None)
    assert warm.cost.forward == 3 and warm.cost.tokens == 12 and 120 <= warm.cost.seconds < 121


def test_what_it_says(monkeypatch, tmp_path):
    Stages(monkeypatch, best=None, weights=MIXTURE)
    warm = warm_start(Fake(), Shelf(tmp_path), MINE)
    assert str(warm).splitlines()[:3] == ["start: 0.50 a, 0.30 b", "because: why", "style: mostly *concise*"]
    row = warm.to_dict()
    assert row["weights"] == MIXTURE and row["style"] == "mostly *concise*" and row["reason"] == "why"
    assert row["explanation"] == dict(words=["concise"]) and row["ranking"]["names"] == ["a", "b", "c"]
    stored = json.dumps(row)
    assert "secret" not in stored and str(tmp_path) not in stored, "no word of the dialogues, no path of the machine"
    Stages(monkeypatch, best=None)
    assert str(warm_start(Fake(), Shelf(tmp_path), MINE)).startswith("start: the bare model\n")


def test_a_stage_that_fails_merges_nothing(monkeypatch, tmp_path):
    stages = Stages(monkeypatch, best=None, weights=MIXTURE)

    def refuse(*given):
        raise InputError("too few dialogues", "give more")

    monkeypatch.setattr(module, "explain", refuse)
    with pytest.raises(InputError, match="too few"):
        warm_start(Fake(), Shelf(tmp_path), MINE, out=tmp_path / "m")
    assert stages.calls == [] and not (tmp_path / "m").exists()


# ---- a ranking alone


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        return small(tmp_path_factory.mktemp("whole") / "lib", four(tmp_path_factory.mktemp("adapters")))


def ranking(library, best=None, weights=(), **more):
    return Ranking(best, ("a", "b", "c"), (1, 2, 3), dict(weights), best is None, library=library, **more)


def test_start_of_a_ranking(library, tmp_path):
    assert get_start_adapter(ranking(library)) is None, "nobody helps"
    assert get_start_adapter(ranking(library, "b")) == library.path / "b"
    assert get_start_adapter(ranking(library, "b", dict(a=0.5, b=0.5))) == library.path / "b", "the best stands first"
    merged = get_start_adapter(ranking(library, None, dict(a=0.5, c=0.25)), tmp_path / "m")
    assert merged.parents == ("a", "c") and merged.path == tmp_path / "m"
    with shared("llama").use_adapter(merged):
        pass
    assert get_start_adapter(ranking(None)) is None
    with pytest.raises(InputError, match="library") as error:
        get_start_adapter(ranking(None, "b"))
    assert error.value.remedy == "select again"


def start_of(library, weights, out=None):
    "The adapter of a ranking that is a mixture."
    return get_start_adapter(Ranking(None, (), (), weights, library=library), out)


def test_an_adapter_for_weights(library, tmp_path):
    assert start_of(library, {}) is None
    assert start_of(library, dict(a=1.0)) == library.path / "a"
    half = start_of(library, dict(a=0.5), tmp_path / "m")
    assert half.parents == ("a",) and half.path == tmp_path / "m", "half of one is not that one"
    with pytest.raises(InputError, match="'z'"):
        start_of(library, dict(z=1.0))


def test_a_start_of_many_is_no_larger_than_a_fresh_adapter(tmp_path):
    "The nearest sum of the default rank, its rows of A of one length, in an adapter that plain peft takes."
    model = shared("llama")
    made = {name: random_adapter(model, tmp_path / name, 4, seed=i) for i, name in enumerate("abcde")}
    many = {name: SimpleNamespace(adapter=folder) for name, folder in made.items()}
    weights = dict(zip("abcde", (0.9, -0.2, 0.1, 0.05, 0.02)))
    start = start_of(many, weights, tmp_path / "start")
    pairs = read_factors(start.path)
    assert {len(A) for A, _ in pairs.values()} == {TuningConfig.rank}
    exact = concatenate_factors([(read_factors(one.adapter), weights[name]) for name, one in many.items()])
    for name, (A, B) in pairs.items():
        assert torch.allclose(A.norm(dim=1), torch.tensor(START_ROW_NORM)), "every row is as long"
        whole = exact[name][1] @ exact[name][0]
        U, s, V = torch.linalg.svd(whole)
        assert torch.allclose(B @ A, (U[:, :8] * s[:8]) @ V[:8], atol=1e-4), "the nearest of that rank"
    few = start_of(many, dict(a=0.5, b=0.5), tmp_path / "few")
    pairs = read_factors(few.path)
    halves = concatenate_factors([(read_factors(many[name].adapter), 0.5) for name in "ab"])
    assert all(torch.allclose(B @ A, halves[m][1] @ halves[m][0], atol=1e-4) for m, (A, B) in pairs.items()), "exact"
    bare = tiny("llama")
    bare.model = PeftModel.from_pretrained(bare.model, str(start.path)).eval()
    with model.use_adapter(start):
        assert np.allclose(model.nll(MINE), bare.nll(MINE), rtol=1e-5)
