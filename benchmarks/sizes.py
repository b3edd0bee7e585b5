"""Models of true size with random weights: seconds a step and peak memory. Speed needs no trained weights."""

import os
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from benchmarks.tuning import in_a_child, machine
from personal_llm.base.tokens import collate_samples
from personal_llm.tuning.speedups import FastForward, choose_top_layers

ROWS, TOKENS, LABELS = 4, 128, 64  # rows a batch, tokens a row, labelled ones
STEPS = 1  # that is measured, after one that is not


def random_model(folder: Path):
    "A model of true size in bfloat16; every matrix is filled from one block of random numbers."
    config = AutoConfig.from_pretrained(folder)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    block = (0.02 * torch.randn(2**20)).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            if parameter.dim() == 1:
                flat.fill_(1.0)
                continue
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)])
    return model.eval()


def run(folder: Path, layers: int, plain: bool) -> dict:
    "Steps of LoRA on q and v, by the model's own loss or ours."
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = random_model(folder)
    shape = choose_top_layers(model, ["q_proj", "v_proj"], layers)
    adapted = get_peft_model(model, LoraConfig(r=8, task_type="CAUSAL_LM", **shape)).train()
    ids = torch.randint(0, model.config.vocab_size, (ROWS, TOKENS)).tolist()
    batch = collate_samples([dict(input_ids=r, labels=[-100] * (TOKENS - LABELS) + r[-LABELS:]) for r in ids], 0)
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4)
    forward = None if plain else FastForward(adapted)

    def step(clock) -> float:  # seconds
        began = clock()
        loss = adapted(**batch, use_cache=False).loss if plain else forward(batch).sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return clock() - began

    times = [step(time.process_time) for _ in range(1 + STEPS)]
    found = dict(layers=layers, plain=plain, short=bool(forward and forward.partial_logits))
    found |= dict(first_seconds=times[0], step_seconds=statistics.median(times[1:]))
    torch.set_num_threads(os.cpu_count())  # now as one would use it: all cores, by the clock on the wall
    return found | dict(wall_seconds=min(step(time.perf_counter) for _ in range(1 + STEPS)))


def measure(folder: Path, names: list, told=print) -> dict:
    "Every model by the model's own loss, by ours, and by ours with the top four layers."
    rows = []
    for name in names:
        for layers, plain in ((0, True), (0, False), (4, False)):
            rows.append(in_a_child(lambda: run(folder / name, layers, plain)) | dict(model=name))
            told(rows[-1])
    return dict(machine=machine(), weights="random", rows_a_batch=ROWS, tokens=TOKENS, labels=LABELS, rows=rows)
