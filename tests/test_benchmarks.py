"What is compared learns the same; ratios are taken within a round; a child's failure is not passed over."

import numpy as np
import pytest
from test_tuning import TALK
from tiny import tiny

from benchmarks import tuning
from benchmarks.tuning import BATCH, DIALOGUES, TOP, WAYS, in_a_child, run_way, summary


def samples(model):
    return [{name: model.encode(d, 64)[name] for name in ("input_ids", "labels")} for d in TALK]


@pytest.mark.parametrize("layers", [0, TOP])
def test_all_ways_take_the_same_steps(layers, monkeypatch):
    "Ours and Trainer's own see the same batches and have the same losses, up to rounding."
    monkeypatch.setattr(tuning, "TOP", 1)
    monkeypatch.setattr(tuning, "WAYS", {name: (kind, min(count, 1)) for name, (kind, count) in WAYS.items()})
    names = [name for name, (_, count) in WAYS.items() if count == layers]
    found = [run_way(tiny("llama"), samples(tiny("llama")), name, 4) for name in names]
    assert len(found) >= 2 and all(len(f["steps"]) == len(f["losses"]) == 4 for f in found)
    assert np.allclose(found[0]["losses"], found[1]["losses"], atol=0.05)


def test_a_summary_by_hand():
    "Rounds in which the machine was slow do not change a ratio; first steps count apart."
    filling, rows = DIALOGUES // BATCH, []
    for i, slow in enumerate((1.0, 10.0, 1.0)):
        for way in WAYS:
            second = slow * (0.1 if way.startswith("ours") else 0.3)
            steps = [9.0] * filling + [second] * 3
            rows.append(dict(round=i, way=way, steps=steps, losses=[2.0], more_mb=5))
    found = summary(rows, tokens=50)
    assert found["ours, top 2"]["faster"] == pytest.approx(3) and found["ours, top 2"]["first_step_seconds"] == 9
    assert found["loop, all layers"]["faster"] == pytest.approx(1)
    assert found["ours, all layers"]["tokens_per_second"] == pytest.approx(50 * BATCH / 0.1)


def test_a_child_that_fails(capfd):
    assert in_a_child(lambda: dict(x=1))["x"] == 1
    with pytest.raises(RuntimeError, match="measurement failed"):
        in_a_child(lambda: 1 / 0)
