"Distances, losses measured once, the race, and what a ranking says."

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.selection.ranking import BASE_NAME, PLLMLosses, cosine_distance, is_gain_certain, l1_distance
from personal_llm.selection.ranking import race_by_loss, sort_by_distance


class TableModel:
    "A stand-in for a model, whose losses stand in a table: name -> (nats, tokens) of each dialogue."

    def __init__(self, table):
        self.table, self.name = table, BASE_NAME

    @contextmanager
    def use_adapter(self, adapter):
        self.name = adapter.name if adapter else BASE_NAME
        yield

    def nll(self, dialogues):
        return np.array([self.table[self.name][int(d.prompt)] for d in dialogues], float)


def make_losses(tmp_path, table):
    library = {}
    for name in table:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "adapter_model.safetensors").write_bytes(bytes(100))
        library[name] = SimpleNamespace(adapter=tmp_path / name)
    count = len(next(iter(table.values())))
    return PLLMLosses(TableModel(table), library, [Dialogue(str(i), "yes") for i in range(count)])


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


def test_by_hand():
    rows = np.array([[1.0, 0.8], [0.2, 0.0]])
    assert np.allclose(l1_distance(rows, [0.3, 0.24]), [1.26, 0.34])
    assert np.allclose(cosine_distance(rows, [0.3, 0.24]), [0, 0.219], atol=1e-3)
    assert cosine_distance(rows, np.zeros(2)).tolist() == [1, 1]
    with pytest.raises(InputError, match="distance of 'broken'"):
        sort_by_distance([0.1, np.nan], ["fine", "broken"])


def test_each_loss_is_measured_once(tmp_path):
    losses = make_losses(tmp_path, {"a": [(2, 2), (8, 4), (1, 2), (1, 2)], BASE_NAME: [(3, 2)] * 4})
    assert losses.mean_loss("a", 2) == 1.5 and losses.mean_loss("a") == 1.0 and losses.mean_loss(BASE_NAME) == 1.5
    losses.model.table["a"] = [(99, 1)] * 4
    assert losses.mean_loss("a") == 1.0 and losses.bytes_moved == 100
    for wrong in ([(np.nan, 2)] * 4, [(1, 0)] * 4):
        with pytest.raises(InputError, match="remove that pLLM"):
            make_losses(tmp_path, {"b": wrong}).mean_loss("b")
    with pytest.raises(InputError, match="give 1 more"):
        make_losses(tmp_path, {"b": [(1, 1)] * 3})


def test_the_race_drops_who_is_behind_and_keeps_who_varies(tmp_path):
    gaps = dict(a=[0, 0, 0, 0], b=[0.5, 0.7, 0.6, 0.6], c=[2, -2, 2, -1.6])
    losses = make_losses(tmp_path, {name: [(2 + nats, 1) for nats in gap + [0] * 8] for name, gap in gaps.items()})
    assert set(race_by_loss(losses, gaps)) == {"a", "c"} and race_by_loss(losses, []) == {}
    assert [len(losses.known_sums[name]) for name in "abc"] == [12, 4, 12]


def test_a_certain_gain():
    even, wild = np.full(4, 0.1), np.array([-0.1, 0.3] * 2)
    assert is_gain_certain(even, 2.0, 0.005) and not is_gain_certain(wild, 2.0, 0.005)
    assert not is_gain_certain(even, 25.0, 0.005) and not is_gain_certain(even, 2.1, 0.05)
    assert not is_gain_certain(np.array([1.0]), 2.0, 0.005) and not is_gain_certain(even * np.nan, 2.0, 0.005)
