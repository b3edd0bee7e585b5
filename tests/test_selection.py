"The selectors on planted libraries and on the shipped one; slopes against finite differences."

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from personal_llm.base.adapters import WEIGHTS_FILE, factor_inner_product, read_factors
from personal_llm.base.core import InputError
from personal_llm.explanation.explanation import Explanation
from personal_llm.extras.space import select_by_style, sort_by_distance
from personal_llm.selection.gradient_match import compute_slopes, get_linear_layer
from personal_llm.selection.library import Library
from personal_llm.selection.ranking import BASE_NAME, PLLMLosses, Ranking, SelectionRequest
from personal_llm.selection.selection import SELECTORS, select, select_by_loss
from tiny import ARCHITECTURES, random_adapter, shared
from ways import LOUD, spoken


# ---- slopes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slopes_are_finite_differences(architecture, tmp_path):
    import torch

    model = shared(architecture)
    random_adapter(model, tmp_path, lora_alpha=4)
    dialogues = spoken(LOUD, 3)
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    slope = compute_slopes(model, dialogues, dict(one=tmp_path))["one"]
    factors = read_factors(tmp_path)
    length = factor_inner_product(factors, factors) ** 0.5

    def loss(step):
        changed = []
        with torch.no_grad():
            for module, (A, B) in factors.items():
                layer = get_linear_layer(model, module)
                change = step * (B @ A) / length
                changed.append((layer.weight, change.T if type(layer).__name__ == "Conv1D" else change))
            for weight, change in changed:
                weight += change
            nats, tokens = model.nll(dialogues).T
            for weight, change in changed:
                weight -= change
        return (nats / tokens).mean()

    assert slope == pytest.approx((loss(0.05) - loss(-0.05)) / 0.1, rel=0.05, abs=1e-3)
    for name, parameter in model.model.named_parameters():
        assert parameter.grad is None and torch.allclose(parameter, before[name], atol=1e-5)
    other = shutil.copytree(tmp_path, tmp_path.with_suffix(".other"))
    weights = load_file(other / WEIGHTS_FILE)
    save_file({name.replace(".model.", ".model.no."): weight for name, weight in weights.items()}, other / WEIGHTS_FILE)
    hooks = [dict(layer._forward_hooks) for layer in model.model.modules()]
    with pytest.raises(InputError, match="isn't a linear layer"):
        compute_slopes(model, dialogues, dict(one=tmp_path, other=other))
    assert hooks == [dict(layer._forward_hooks) for layer in model.model.modules()]


# ---- match


# ---- select


def planted(row, strength=5.0, space="planted"):
    "The explanation of a user, with just what a selector by rows reads."
    return SimpleNamespace(row=np.asarray(row, np.float32), strength=strength, space=space)


@pytest.mark.parametrize(
    "explanation, library_space, problem",
    [
        (None, "planted", "no explanation of the user"),
        (planted([0.5, 0.5], space="other"), "planted", "the explanation is of space other"),
        (planted([0.5]), "planted", "has 1 coordinates, not 2"),
        (planted([0.5, np.nan]), "planted", "not finite"),
        (planted([0.5, 0.5], strength=np.nan), "planted", "not finite"),
        (planted([0.5, 0.5]), "another", "a was explained in space another, not in planted"),
        (planted([0.5, 0.5], space=None), None, "this library has no space; use a method that compares no rows"),
    ],
)
def test_an_explanation_that_does_not_fit_is_refused(explanation, library_space, problem):
    with pytest.raises(InputError, match=problem):
        select_by_style(SelectionRequest(planted_library(library_space), explanation))


def planted_library(space="planted"):
    "A library of one row, as a selector by rows needs it."
    card = dict(explanation=Explanation(1, "panels", space=space, row=np.ones(2)).to_dict())
    known = SimpleNamespace(id="planted", threshold=1.0, width=2, columns=dict(coordinates=(0, 2)))
    return SimpleNamespace(path="here", space=space and known, names=["a"], card=lambda name: card)


@pytest.mark.parametrize(
    "request_, problem",
    [
        (dict(method="no such"), "unknown method 'no such'; use one of match, loss, style, xpert"),
        (dict(model=SimpleNamespace(base="another"), dialogues=[]), "the library is for base"),
        (dict(method="match"), "match needs the personal dialogues and the model"),
        (dict(), "no explanation of the user"),
        (dict(model=SimpleNamespace(base=Library("pocket").base), dialogues=[None] * 2), "a loss needs at least 4"),
    ],
)
def test_a_request_that_lacks_something_is_refused(request_, problem):
    with pytest.raises(InputError, match=problem):
        select(Library("pocket"), **request_)


@pytest.mark.parametrize(
    "selector, problem",
    [
        (lambda request: "ward-round", "selector mine returned no ranking of Library"),
        (lambda request: Ranking("nobody", ("nobody",), (0.0,)), "selector mine returned no ranking"),
        (lambda request: Ranking(None, ("plain",), ()), "selector mine returned no ranking"),
        (lambda request: Ranking("plain", ("plain",), (np.nan,)), "selector mine returned no ranking"),
        (lambda request: Ranking("plain", ("plain", "plain"), (0.0, 1.0)), "selector mine returned no ranking"),
        (lambda request: Ranking("plain", ("plain",), ("near",)), "selector mine raised ValueError"),
        (lambda request: None, "selector mine returned no ranking"),
        (lambda request: 1 / 0, "selector mine raised ZeroDivisionError"),
    ],
)
def test_a_selector_that_fails_is_blamed_by_name(monkeypatch, selector, problem):
    monkeypatch.setitem(SELECTORS, "mine", selector)
    with pytest.raises(InputError, match=problem):
        select(Library("pocket"), method="mine")


def test_a_selector_need_not_say_that_it_starts_from_the_best():
    found = select(Library("pocket"), method=lambda request: Ranking("plain", ("plain",), (0.0,)))
    assert found.start == "plain" and found.adapter.name == "plain"


def test_the_loss_selector_takes_the_lowest_of_all():
    losses = PLLMLosses(None, None, [None] * 4)
    losses.known_sums |= {name: np.array([(nats, 2)] * 4) for name, nats in dict(a=4, b=2, c=6).items()}
    found = select_by_loss(SelectionRequest(["a", "b", "c"], losses=losses))
    assert found.best == "b" and found.names == ("b", "a", "c") and found.distances == (1, 2, 3)
    with pytest.raises(InputError, match="loss needs the personal dialogues"):
        select(Library("pocket"), method="loss")


# ---- ranking


def test_numbers_that_are_not_finite_are_refused():
    order = sort_by_distance(np.array([0.3, 0.1, 0.1, 0.9]), ["d", "c", "b", "a"])
    assert order == [("b", 0.1), ("c", 0.1), ("d", 0.3), ("a", 0.9)], "b before c: by name"
    with pytest.raises(InputError, match="the distance of 'broken' is not a finite number"):
        sort_by_distance(np.array([0.1, np.nan]), ["fine", "broken"])
    with pytest.raises(InputError, match="select again"):
        Ranking("a", ("a",), (0.0,), start="a").adapter
    for name, remedy in ((BASE_NAME, "give other dialogues"), ("a", "remove that pLLM")):
        losses = PLLMLosses(None, None, [None] * 4)
        losses.known_sums[name] = np.array([(np.nan, 2)] * 4)
        with pytest.raises(InputError, match=remedy):
            losses.mean_loss(name)
