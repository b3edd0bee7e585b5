"""Tuning on a small buffer: ours, Trainer + peft as a careful user sets it up, a plain PyTorch loop, and TRL's trainer.

Every way takes the same optimiser steps on the same batches with the same LoRA, in a forked child of its own, the ways
in turn in every round. What counts is processor time, so that a busy machine spoils little, and the ratio in one round.
TRL takes part where it is installed: `pip install trl`.
"""

import itertools
import json
import os
import platform
import resource
import statistics
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from personal_llm.base.core import Dialogue, seed_everything
from personal_llm.data.reading import load_samples
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import attach_trainable_lora
from personal_llm.tuning.speedups import FastForward
from personal_llm.tuning.training_loop import train
from personal_llm.tuning.validation import Checks

DIALOGUES, TOKENS, BATCH = 32, 128, 8  # bins, the longest dialogue, rows a batch
SOURCES = ("medquad", "dolly_6400", "openstax_anatomy_physiology", "synthetic_persona_chat")  # of mixed lengths
TOP = 2  # layers of those ways that tune the top
RATE = 1e-3  # of AdamW


class Clock(TrainerCallback):
    "Processor seconds of each step."

    def __init__(self):
        self.steps, self.losses = [], []

    def start(self, adapted) -> None:
        "Before anything runs."

    def on_step_begin(self, args, state, control, **rest):
        self.began = time.process_time()

    def on_step_end(self, args, state, control, **rest):
        self.steps.append(time.process_time() - self.began)

    def on_log(self, args, state, control, logs=None, **rest):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def arguments(folder: str, steps: int, bfloat16: bool, rate: float, kind=TrainingArguments, **more):
    "What a careful user sets: no checkpoints, no reports, bfloat16 where the machine has it."
    return kind(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=rate,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=bfloat16,
        seed=0,
        data_seed=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        **more,
    )


def with_trainer(kind, adapted, model, samples: list, steps: int, bfloat16: bool, clock: Clock, rate: float) -> None:
    "A run of transformers' Trainer, or of ours."
    with tempfile.TemporaryDirectory() as folder:
        collator = DataCollatorForSeq2Seq(model.tokenizer, padding="longest")
        given = dict(train_dataset=samples, data_collator=collator, callbacks=[clock])
        trainer = kind(model=adapted, args=arguments(folder, steps, bfloat16, rate), **given)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class NoChecks(Checks):
    "Checks that cost nothing, as nobody else's run checks."

    def compute_loss(self, adapted):
        return 0.0

    def is_finished(self, config):
        return max(self.losses, default=0) >= config.steps


def ours(adapted, model, samples, steps, clock, rate) -> None:
    "The package's own loop, at a constant rate after the first step."
    config = TuningConfig(steps=steps, checks=1, batch_size=BATCH, learning_rate=rate, warmup=0.0, dropout=0.0)
    checks = NoChecks([], model.tokenizer.pad_token_id, FastForward(adapted))
    clock.on_step_begin(None, None, None)
    for _, loss in train(adapted, samples, checks, config):
        clock.losses.append(loss)
        control = SimpleNamespace(should_training_stop=False)
        clock.on_step_end(None, None, control, model=adapted)
        if control.should_training_stop:
            break
        clock.on_step_begin(None, None, None)


def theirs(adapted, model, samples, steps, clock, rate) -> None:
    with_trainer(Trainer, adapted, model, samples, steps, True, clock, rate)


def trl(adapted, model, samples, steps, clock, rate) -> None:
    "TRL's SFTTrainer, without the recomputation that it does by default to save memory."
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(folder, steps, True, rate, SFTConfig, gradient_checkpointing=False, max_length=None)
        given = dict(train_dataset=Dataset.from_list(samples), processing_class=model.tokenizer, callbacks=[clock])
        trainer = SFTTrainer(model=adapted, args=settings, **given)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def loop(adapted, model, samples, steps, clock, rate) -> None:
    "A plain PyTorch loop under autocast, batches drawn as Trainer draws them."
    collator = DataCollatorForSeq2Seq(model.tokenizer, padding="longest")
    with tempfile.TemporaryDirectory() as folder:
        given = dict(args=arguments(folder, steps, True, rate), train_dataset=samples, data_collator=collator)
        loader = Trainer(model=adapted, **given).get_train_dataloader()
    learning = [p for p in adapted.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
    adapted.train()
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
        clock.on_step_begin(None, None, None)
        with torch.autocast("cpu", torch.bfloat16):
            loss = adapted(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        clock.losses.append(loss.item())
        clock.on_step_end(None, None, None, model=adapted)


WAYS = {  # name -> (what runs it, layers; 0: all)
    "ours, all layers": (ours, 0),
    "Trainer + peft, all layers": (theirs, 0),
    "loop, all layers": (loop, 0),
    "ours, top 2": (ours, TOP),
    "Trainer + peft, top 2": (theirs, TOP),
}
if find_spec("trl"):
    WAYS["TRL, all layers"] = (trl, 0)


def in_a_child(act) -> dict:
    "Run something in a forked copy of this process; its peak memory comes along."
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = act()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found |= dict(peak_mb=round(peak * 1024 / 1e6), more_mb=round((peak - before) * 1024 / 1e6))
            os.write(write, json.dumps(found).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a measurement failed; its message stands above")
    return json.loads(text)


def run_way(model, samples: list, way: str, steps: int, clock: Clock = None, rate: float = RATE) -> dict:
    "One way's run."
    (kind, layers), clock = WAYS[way], clock or Clock()
    seed_everything(0)
    config = TuningConfig(layers=layers, dropout=0.0, batch_size=BATCH, steps=steps)
    adapted = attach_trainable_lora(model, config)
    clock.start(adapted)
    began = time.process_time()
    kind(adapted, model, samples, steps, clock, rate)
    whole = time.process_time() - began
    return dict(way=way, steps=clock.steps, whole=whole, losses=clock.losses)


def matmul_peak(dtype, size: int = 1024, repeats: int = 12) -> float:  # FLOP a processor second
    "The fastest of several products of two square matrices."
    a, b, times = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype), []
    for _ in range(repeats):
        began = time.process_time()
        a @ b
        times.append(time.process_time() - began)
    return 2 * size**3 / min(times)


def flop_of(model, samples: list, layers: int) -> float:  # of matrix products in a step of ours
    "Counted by PyTorch as it runs, once everything is kept."
    adapted = attach_trainable_lora(model, TuningConfig(layers=layers, dropout=0.0)).train()
    forward, collator = FastForward(adapted), DataCollatorForSeq2Seq(model.tokenizer)
    batch = dict(collator(samples[:BATCH]))
    forward(batch).sum().backward()
    with FlopCounterMode(display=False) as counter:
        forward(batch).sum().backward()
    return float(counter.get_total_flops())


def machine() -> dict:
    "What was measured on, and with which versions."
    import peft
    import transformers

    names = [x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    return dict(processor=names[0] if names else platform.processor(), cores=os.cpu_count(), threads=1) | versions


def summary(rows: list, tokens: float) -> dict:  # way -> numbers; medians
    "Tokens a processor second once everything is kept, against Trainer + peft with the same layers in the same round."
    filling = -(-DIALOGUES // BATCH)  # steps in which dialogues are seen for the first time
    steady = {(r["round"], r["way"]): statistics.median(r["steps"][filling:]) for r in rows}
    first = {(r["round"], r["way"]): statistics.median(r["steps"][:filling]) for r in rows}
    rounds, found = sorted({r["round"] for r in rows}), {}
    for way, (_, layers) in WAYS.items():
        rival = "Trainer + peft, top 2" if layers else "Trainer + peft, all layers"
        ratios = [steady[i, rival] / steady[i, way] for i in rounds]
        found[way] = dict(
            step_seconds=statistics.median(steady[i, way] for i in rounds),
            first_step_seconds=statistics.median(first[i, way] for i in rounds),
            tokens_per_second=tokens * BATCH / statistics.median(steady[i, way] for i in rounds),
            faster=statistics.median(ratios),
            faster_range=[min(ratios), max(ratios)],
            faster_than_all_layers=statistics.median(
                steady[i, "Trainer + peft, all layers"] / steady[i, way] for i in rounds
            ),
            last_loss=statistics.median(r["losses"][-1] for r in rows if r["way"] == way),
            more_mb=statistics.median(r["more_mb"] for r in rows if r["way"] == way),
        )
    return found


def samples_of(model, start: int = 0, count: int = DIALOGUES) -> list:  # encoded dialogues
    "As many of each source, from a place on."
    each = count // len(SOURCES)
    texts = [r for source in SOURCES for r in load_samples(source)[start : start + each]]
    rows = [model.encode(Dialogue(r["prompt"], r["response"]), TOKENS) for r in texts]
    return [{name: row[name] for name in ("input_ids", "labels")} for row in rows]


def measure(model, rounds: int, steps: int, told=print) -> dict:
    "All ways in turn, `rounds` times."
    samples = samples_of(model)
    rows, peaks = [], []
    for i in range(rounds):
        for way in WAYS:
            rows.append(in_a_child(lambda: run_way(model, samples, way, steps)) | dict(round=i))
            told(f"round {i + 1} of {rounds}, {way}: {statistics.median(rows[-1]['steps']):.3f} s a step")
        peaks.append({str(d).rpartition(".")[2]: matmul_peak(d) for d in (torch.float32, torch.bfloat16)})
    flop = {str(layers): in_a_child(lambda: dict(flop=flop_of(model, samples, layers)))["flop"] for layers in (0, TOP)}
    tokens = statistics.mean(len(row["input_ids"]) for row in samples)
    settings = dict(dialogues=DIALOGUES, tokens=tokens, longest=TOKENS, batch=BATCH, steps=steps, rounds=rounds)
    peak = {name: max(p[name] for p in peaks) for name in peaks[0]}
    return dict(machine=machine(), settings=settings, peak=peak, flop=flop, ways=summary(rows, tokens), rows=rows)
