"The selectors on planted libraries and on the shipped one; slopes against finite differences."

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from personal_llm.base.adapters import WEIGHTS_FILE, factor_inner_product, read_factors
from personal_llm.base.core import InputError
from personal_llm.base.models import load_model
from personal_llm.recipes.people import USERS, user_stream
from personal_llm.data.reading import load_samples
from personal_llm.selection.gradient_match import compute_slopes, get_linear_layer
from personal_llm.selection.library import Library
from personal_llm.selection.ranking import BASE_NAME, PLLMLosses, Ranking, SelectionRequest, cosine_distance
from personal_llm.selection.ranking import l1_distance, sort_by_distance
from personal_llm.selection import selection
from personal_llm.selection.selection import SELECTORS, select, select_by_match
from tiny import ARCHITECTURES, shared
from ways import LOUD, spoken


class Planted(SimpleNamespace):
    "What selectors by rows need of a library."

    def __len__(self):
        return len(self.names)

    def columns(self, name):
        return self.rows


def planted(rows, threshold=1.0):
    space = SimpleNamespace(id="planted", threshold=threshold, columns=dict(coordinates=(0, np.shape(rows)[1])))
    return Planted(rows=np.asarray(rows, float), names=[f"p{i}" for i in range(len(rows))], space=space)


def me(row, strength=5.0, space="planted"):
    return SimpleNamespace(row=np.asarray(row, float), strength=strength, space=space)


# ---- distances


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), d=st.integers(1, 8))
def test_distances_against_naive_twins(seed, n, d):
    rng = np.random.default_rng(seed)
    rows, z = rng.normal(size=(n, d)), rng.normal(size=d)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    cosine = [1 - dot(row, z) / (dot(row, row) * dot(z, z)) ** 0.5 for row in rows]
    assert np.allclose(cosine_distance(rows, z), cosine)
    assert np.allclose(l1_distance(rows, z), [sum(abs(a - b) for a, b in zip(row, z)) for row in rows])
    assert np.allclose(cosine_distance(rows, 7 * z), cosine), "strength does not count"
    names = [f"p{i}" for i in range(n)]
    order = sort_by_distance(l1_distance(rows, z), names)
    assert sorted(name for name, _ in order) == sorted(names) and all(a[1] <= b[1] for a, b in zip(order, order[1:]))


# ---- rows


def test_the_papers_rule_and_the_direction_by_hand():
    library = planted([[1, 0], [0, 2], [3, 3]])
    l1 = select(library, me([0.5, 0.5]))
    assert (l1.method, l1.best, l1.distances) == ("xpert", "p0", (1.0, 2.0, 5.0)) and l1.start == "p0"
    assert select(library, me([0.5, 0.5]), "style").best == "p2"


def test_planted_users_are_found_at_every_strength():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(28, 12))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    library = planted(directions)
    for share, least in ((0.9, 28), (0.3, 26)):
        users = share * directions + rng.normal(0, 0.04, directions.shape)
        assert sum(select(library, me(z), "style").best == f"p{i}" for i, z in enumerate(users)) >= least


def test_default_text_gets_no_pllm():
    weak = select(planted([[1, 0], [0, 2]]), me([0.5, 0.1], strength=0.4))
    assert weak.best is weak.start is weak.adapter is None and weak.names == ("p0", "p1")
    assert "strength 0.40, the threshold is 1.00" in weak.reason


# ---- slopes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slopes_are_finite_differences(architecture, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    model = shared(architecture)
    settings = dict(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(model.model, LoraConfig(**settings))
    adapted.save_pretrained(str(tmp_path))
    model.model = adapted.unload().eval()
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
    with pytest.raises(InputError, match="no linear layer"):
        compute_slopes(model, dialogues, dict(one=tmp_path, other=other))
    assert hooks == [dict(layer._forward_hooks) for layer in model.model.modules()]


# ---- match


def request_of(monkeypatch, losses, slopes, dialogues=12):
    "A request whose losses and slopes stand in tables."

    class Known(PLLMLosses):
        def __init__(self):
            self.model, self.dialogues, self.num_dialogues = None, [], dialogues

        def dialogue_losses(self, name, count=None):
            return np.full(count or dialogues, losses[name]) + np.arange(count or dialogues) * 1e-6

    monkeypatch.setattr(selection, "compute_slopes", lambda model, dialogues, adapters: dict(slopes))
    library = {name: SimpleNamespace(adapter=name) for name in slopes}
    return SelectionRequest(library, None, Known())


def test_match_takes_the_lowest_loss_of_the_steepest(monkeypatch):
    losses = {BASE_NAME: 3.0, "plain": 2.5, "a": 2.0, "b": 1.9, "c": 1.0}
    slopes = dict(plain=-9.0, a=-3.0, b=-2.0, c=-1.0)
    got = select_by_match(request_of(monkeypatch, losses, slopes), num_raced=2)
    assert got.best == got.start == "b" and got.names == ("b", "a", "c") and "c" not in got.losses
    assert got.losses[BASE_NAME] == pytest.approx(3.0, abs=1e-4) and "plain" in got.losses and got.best is not None


@pytest.mark.parametrize(
    "losses, start",
    [({BASE_NAME: 3.0, "plain": 2.0, "a": 1.995}, "plain"), ({BASE_NAME: 1.9, "plain": 2.0, "a": 1.895}, None)],
)
def test_match_abstains_without_a_certain_gain(monkeypatch, losses, start):
    got = select_by_match(request_of(monkeypatch, losses, dict(plain=-1.0, a=-2.0)))
    assert got.best is None and got.start == start and "no near pLLM" in got.reason and got.names == ("a",)


def test_without_a_plain_pllm_the_gain_must_be_larger(monkeypatch):
    for loss, best in ((2.94, None), (2.80, "a")):
        assert select_by_match(request_of(monkeypatch, {BASE_NAME: 3.0, "a": loss}, dict(a=-1.0))).best == best
    only_plain = select_by_match(request_of(monkeypatch, {BASE_NAME: 3.0, "plain": 2.0}, dict(plain=-1.0)))
    assert only_plain.best is None and only_plain.start == "plain" and only_plain.names == ()


# ---- select


@pytest.fixture(scope="module")
def nurse():
    return user_stream(USERS["nurse"], load_samples(), length=300).test_signal[:8]


def test_select_on_the_shipped_library(nurse):
    model, library = load_model("pocket"), Library("pocket")
    got = select(library, model=model, dialogues=nurse)
    assert got.best == "ward-round" and got.method == "match" and got.adapter == library["ward-round"].adapter
    assert got.cost.backward == 8 and got.cost.tokens > 0 and got.cost.bytes_moved > 0
    assert {"best", "start", "losses"} < set(got.to_dict()) and "library" not in got.to_dict()
    assert str(got).startswith("match: ward-round")


def test_a_selector_of_ones_own_and_wrong_calls(nurse):
    model, library = load_model("pocket"), Library("pocket")

    def last(request):
        return Ranking(library.names[-1], tuple(library.names), tuple(range(9)), "by hand", library.names[-1])

    assert select(library, method=last).best == "ward-round" and select(library, method=last).method == "last"
    for wrong, message in (
        (dict(method="telepathy"), f"use one of {', '.join(SELECTORS)}"),
        (dict(method="match"), "give both model and dialogues"),
        (dict(), "no explanation"),
        (dict(model=model, dialogues=nurse[:2]), "give 2 more"),
        (dict(model=SimpleNamespace(base="another"), dialogues=nurse), "the library is for base"),
    ):
        with pytest.raises(InputError, match=message):
            select(library, **wrong)
