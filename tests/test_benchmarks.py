"The benchmark takes the same work in each way, compares within a round, and does not pass over a child's failure."

import pytest

from benchmarks.__main__ import make_dialogues, run_in_child, summarise, tune_ours, tune_trainer
from personal_llm.tuning.config import TuningConfig
from tiny import tiny


def test_both_ways_run(tmp_path):
    config = TuningConfig(steps=2, batch_size=2, max_length=64, validation=0.0)
    dialogues = make_dialogues(4)
    assert len(dialogues) == 4
    for way in (tune_ours, tune_trainer):
        found = run_in_child(lambda: way(tiny("llama"), dialogues, config, str(tmp_path / way.__name__)))
        assert found["processor"] > 0 and found["peak_mb"] > 0


def test_a_summary_by_hand():
    "A round in which the machine was slow does not change a ratio."
    rows = []
    for number, slow in enumerate((1.0, 10.0, 1.0)):
        for way, seconds in (("ours", 1.0), ("Trainer", 2.0)):
            rows.append(dict(round=number, way=way, processor=slow * seconds, seconds=slow * seconds, peak_mb=5))
    assert summarise(rows) == {
        "ours": dict(processor=1.0, seconds=1.0, peak_mb=5, ratio=1.0),
        "Trainer": dict(processor=2.0, seconds=2.0, peak_mb=5, ratio=0.5),
    }


def test_a_child_that_fails(capfd):
    with pytest.raises(RuntimeError, match="measurement failed"):
        run_in_child(lambda: 1 / 0)
