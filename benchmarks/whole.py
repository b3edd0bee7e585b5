"""A whole personalisation at true size with random weights: processor minutes and peak memory of reading and tuning.

A person's stream arrives a dialogue at a time, 32 of them are kept, the person corrects some, and 40 steps are taken.
Nothing is synthesised: random weights cannot rewrite a question.
"""

import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.sizes import ROWS, TOKENS, random_model
from benchmarks.tuning import in_a_child, machine
from personal_llm.base.models import load_model
from personal_llm.data.reading import load_samples
from personal_llm.data.people import user_stream
from personal_llm.device.personalizer import Personalizer
from personal_llm.experiments.people import PEOPLE
from personal_llm.buffer.buffer import Buffer
from personal_llm.tuning.config import TuningConfig

PERSON, ARRIVING, BINS, STEPS = "nurse", 64, 32, 40


def run(folder: Path, layers: int) -> dict:
    "One person, one model."
    torch.manual_seed(0)
    user, began = PEOPLE[PERSON], time.process_time()
    model = load_model((random_model(folder), AutoTokenizer.from_pretrained(folder)), max_length=TOKENS)
    stream = user_stream(user, load_samples(), ARRIVING, seed=0).stream
    shape = dict(target_modules="q_proj,v_proj", layers=layers, batch_size=ROWS, max_length=TOKENS)
    config = TuningConfig(steps=STEPS, learning_rate=3e-4, **shape)
    seconds = [time.process_time() - began]
    with tempfile.TemporaryDirectory() as place:
        me = Personalizer(model, Buffer(BINS), user, synthetic=0, config=config, folder=place)
        for dialogue in stream:
            me.observe(dialogue)
        seconds.append(time.process_time() - began - sum(seconds))
        adapter = me.finetune(progress=False)
        seconds.append(time.process_time() - began - sum(seconds))
    found = dict(layers=layers, kept=len(me.buffer), asked=me.cost.requests, steps=adapter.history[-1][0])
    return found | dict(zip(("loading", "reading", "tuning"), seconds))


def measure(folder: Path, names: list, layers: int, told=print) -> dict:
    "Every model once."
    rows = []
    for name in names:
        rows.append(in_a_child(lambda: run(folder / name, layers)) | dict(model=name))
        told(rows[-1], flush=True)
    settings = dict(person=PERSON, arriving=ARRIVING, bins=BINS, steps=STEPS, rows_a_batch=ROWS, tokens=TOKENS)
    return dict(machine=machine(), weights="random", settings=settings, rows=rows)
