"""What an adapter adds to reading a dialogue: python -m benchmarks --observing (a minute).

A personalizer scores single dialogues as they arrive, without an adapter and with one, in turn. Compared are processor
seconds, which other programs change little; of them attaching alone; and the way with peft's layers in the model.
"""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.tuning import machine
from personal_llm.base import models
from personal_llm.buffer.buffer import Buffer
from personal_llm.data.reading import as_dialogues, load_samples
from personal_llm.device.personalizer import Personalizer
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune

ROUNDS, DIALOGUES = 12, 16  # of each way, in turn; dialogues of a round


def seconds_of(action, dialogues: list) -> float:  # processor seconds a dialogue
    "Call an action with each dialogue."
    began = time.process_time()
    for dialogue in dialogues:
        action(dialogue)
    return (time.process_time() - began) / len(dialogues)


def measure(model, told=print) -> dict:
    "Seconds a dialogue without and with an adapter, and their ratio in the same round."
    dialogues = as_dialogues([row for row in load_samples() if len(row["response"]) < 300][:DIALOGUES])
    with tempfile.TemporaryDirectory() as folder:
        adapter = finetune(model, dialogues, TuningConfig(steps=1), out=Path(folder), progress=False)
        me, rows = Personalizer(model, Buffer(8)), []

        def score(dialogue, used=None, max_merged=models.MAX_MERGED_BYTES):
            models.MAX_MERGED_BYTES, me.adapter = max_merged, used
            me.score([dialogue])

        def attach(dialogue):
            with model.use_adapter(adapter):
                pass

        ways = dict(without=score, adapted=lambda d: score(d, adapter), attaching=attach)
        ways |= dict(layers=lambda d: score(d, adapter, 0))
        for _ in range(ROUNDS):
            rows.append({})
            for name, way in ways.items():
                model._last_adapter = (None,) * 5
                way(dialogues[0])
                rows[-1][name] = seconds_of(way, dialogues)
    ratios = [row["adapted"] / row["without"] for row in rows]
    found = {f"{name}_ms": 1000 * statistics.median(row[name] for row in rows) for name in rows[0]}
    found |= dict(ratio=statistics.median(ratios), ratio_range=[min(ratios), max(ratios)])
    told(found, flush=True)
    return dict(machine=machine(), settings=dict(rounds=ROUNDS, dialogues=DIALOGUES)) | found
