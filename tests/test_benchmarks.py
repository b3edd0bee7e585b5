"What is compared learns the same; ratios are taken within a round; a child's failure is not passed over."

import numpy as np
import pytest
from test_tuning import TALK
from tiny import tiny

from benchmarks import foreground, learning, tuning
from benchmarks.tuning import BATCH, DIALOGUES, TOP, WAYS, in_a_child, run_way, summary
from personal_llm.base.core import Dialogue, InputError
from personal_llm.data.people import UserData


def samples(model):
    return [{name: model.encode(d, 64)[name] for name in ("input_ids", "labels")} for d in TALK]


@pytest.mark.parametrize("layers", [0, TOP])
def test_all_ways_take_the_same_steps(layers, monkeypatch):
    "Ours and Trainer's own see the same batches, of all rows each, and have the same losses, up to rounding."
    monkeypatch.setattr(tuning, "TOP", 1)
    monkeypatch.setattr(tuning, "WAYS", {name: (kind, min(count, 1)) for name, (kind, count) in WAYS.items()})
    names = [name for name, (_, count) in WAYS.items() if count == layers]
    found = [run_way(tiny("llama"), samples(tiny("llama"))[:BATCH], name, 4) for name in names]
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


def look(*losses, seconds=1.0):
    return [(i, i * seconds, loss) for i, loss in enumerate(losses)]


def test_sooner_by_hand():
    "The goal is the rival's lowest loss in the round; each way's rate is that with which it came to it soonest."
    runs = {way: [look(4, 3, 2.5)] for way in learning.WAYS}
    runs["ours, top 2"] = [look(4, 3.5, 3, 2.5, seconds=0.1), look(4, 2.5, 2.6, seconds=0.1), look(4, 5, seconds=0.1)]
    tried = [dict(way=way, rate=i, looks=looks) for way, found in runs.items() for i, looks in enumerate(found)]
    assert learning.chosen_rates(tried) == {way: int(way == "ours, top 2") for way in learning.WAYS}
    rows = [row | dict(round=i) for i in range(3) for row in tried if row["rate"] == int(row["way"] == "ours, top 2")]
    found = learning.summary(rows)
    assert found["ours, top 2"]["sooner"] == pytest.approx(20) and found["ours, top 2"]["seconds"] == 0.1
    assert found[learning.RIVAL]["sooner"] == 1
    slow = [dict(way="ours, top 2", rate=i, looks=look(4, last)) for i, last in enumerate((2.9, 2.6, 2.8))]
    tried = slow + [row for row in tried if row["way"] != "ours, top 2"]
    assert learning.chosen_rates(tried)["ours, top 2"] == 1, "never at the goal: where it comes nearest"
    rows = [row | dict(looks=look(4, 3)) if row["way"] == "ours, top 2" else row for row in rows]
    assert learning.summary(rows)["ours, top 2"]["seconds"] is None, "never as good"


def test_where_nothing_is_learned_there_is_no_goal():
    with pytest.raises(InputError, match="2.900 at the start and never falls"):
        learning.goal_of(look(2.9, 2.895, 3.0))


def test_a_person_is_judged_on_other_dialogues(monkeypatch):
    "Nothing that is learned is held out, and both carry the person's habits."
    model = tiny("llama")
    learned, held = learning.rows_of(model, "nurse")
    texts = [{tuple(row["input_ids"]) for row in rows} for rows in (learned, held)]
    assert len(texts[0]) == len(learned) == DIALOGUES and len(held) == DIALOGUES and not texts[0] & texts[1]
    for rows in (learned, held):
        said = [model.tokenizer.decode([t for t in row["labels"] if t >= 0]) for row in rows]
        assert all(text.startswith("In short:") for text in said)
    monkeypatch.setattr(learning, "user_stream", lambda *a, **k: UserData(signal, signal, [], []))
    signal = [Dialogue("again?", "yes", labels=dict(kind="signal", source="medquad", domain="medical"))]
    with pytest.raises(InputError, match="learned and held out"):
        learning.rows_of(model, "nurse")


def test_what_is_noticed_in_front_by_hand():
    "A piece takes a tenth more while the slice runs, which takes 0.02 s of a core on which the work has 0.2."
    piece = lambda at, used: (at, at + 0.1, used)
    pieces = (
        [piece(at, 0.05) for at in (0.0, 0.2, 0.4)] + [piece(0.75, 9.0)] + [piece(at, 0.055) for at in (1.0, 1.2, 1.4)]
    )
    halves = [(0.0, 0.8, "off", 0.0), (1.0, 1.6, "on", 0.0165), (2.0, 3.0, "off", 0.0), (3.0, 4.0, "on", 0.0)]
    ((more, taken),) = foreground.pair_ratios(pieces, halves)
    assert more == pytest.approx(1.1) and taken == pytest.approx(0.1), (
        "a piece across two halves, and empty halves, do not count"
    )
    same, other = (foreground.case_of([(1.1, 0.1)] * 3, core) for core in (True, False))
    assert same["slower"] == pytest.approx(1.21) and other["slower"] == pytest.approx(1.1) and other["taken"] is None
