"""A whole fine-tune to equal held-out loss, and what each speed-up buys.

Every way trains the same LoRA for the same steps at the same schedule with dropout .05, checks six times on the same
validation dialogues and keeps the best weights; Trainer and the package also write a checkpoint at each check. The
held-out loss is measured afterwards on other dialogues. The ways run in turn in every round, each in a forked child,
and a ratio is taken within a round.
"""

import statistics
import tempfile
import time

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from benchmarks.tuning import in_a_child, machine
from personal_llm.base.core import Dialogue, seed_everything
from personal_llm.base.tokens import collate_samples
from personal_llm.data.reading import load_samples
from personal_llm.tuning import speedups, training_loop
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import attach_trainable_lora
from personal_llm.tuning.speedups import FastForward
from personal_llm.tuning.training_loop import compute_learning_rate, response_nll, train
from personal_llm.tuning.validation import Checks

SOURCES = {
    "short chats": ("synthetic_persona_chat",),
    "long rows": ("medquad", "dolly_6400", "openstax_anatomy_physiology", "synthetic_persona_chat"),
}
TRAINING, VALIDATION, HELD_OUT = 32, 8, 32  # dialogues
HABIT = " Keep well, Ana"  # what all ways learn
OURS, TRAINER, LOOP = "ours", "Trainer + peft", "plain loop"


def make_samples(model, kind: str) -> tuple:  # (training, validation, held out), encoded
    "Return dialogues of one kind; no dialogue is in two lists."
    sources, count = SOURCES[kind], TRAINING + VALIDATION + HELD_OUT
    texts = [load_samples(source)[: count // len(sources)] for source in sources]
    rows = [row for together in zip(*texts) for row in together]
    samples = [model.encode(Dialogue(row["prompt"], row["response"] + HABIT), 256) for row in rows]
    samples = [{name: sample[name] for name in ("input_ids", "labels")} for sample in samples]
    return samples[:TRAINING], samples[TRAINING : TRAINING + VALIDATION], samples[TRAINING + VALIDATION :]


def run_ours(adapted, model, training, validation, config, seed) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(validation, model.tokenizer.pad_token_id, FastForward(adapted))
        for _ in train(adapted, training, checks, config, seed, folder):
            pass


def make_trainer_settings(config, folder: str, **more) -> TrainingArguments:
    "Return settings of transformers' Trainer with our schedule, for training without reports."
    return TrainingArguments(
        output_dir=folder,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=round(config.warmup * config.steps),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
        **more,
    )


def run_trainer(adapted, model, training, validation, config, seed) -> None:
    "transformers' Trainer as a careful user sets it up."
    sizes = dict(per_device_train_batch_size=config.batch_size, per_device_eval_batch_size=config.batch_size)
    checks = dict(eval_strategy="steps", eval_steps=config.check_interval, save_steps=config.check_interval)
    checks |= dict(save_total_limit=1, load_best_model_at_end=True, logging_steps=config.check_interval)
    with tempfile.TemporaryDirectory() as folder:
        settings = make_trainer_settings(config, folder, seed=seed, data_seed=seed, **sizes, **checks)
        collator = DataCollatorForSeq2Seq(model.tokenizer, padding="longest")
        data = dict(train_dataset=training, eval_dataset=validation, data_collator=collator)
        trainer = Trainer(model=adapted, args=settings, **data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def run_loop(adapted, model, training, validation, config, seed) -> None:
    "A plain loop over random batches, with the model's own loss and no checkpoints."
    weights = [p for p in adapted.parameters() if p.requires_grad]
    optimiser, generator = torch.optim.AdamW(weights, weight_decay=0.0), np.random.default_rng(seed)
    pad_token_id, order, lowest, best = model.tokenizer.pad_token_id, [], float("inf"), None
    held = collate_samples(validation, pad_token_id)
    for step in range(1, config.steps + 1):
        if not order:
            order = np.array_split(generator.permutation(len(training)), len(training) // config.batch_size)
        for group in optimiser.param_groups:
            group["lr"] = compute_learning_rate(config, step)
        adapted.train()
        batch = collate_samples([training[i] for i in order.pop()], pad_token_id)
        adapted(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % config.check_interval == 0 or step == config.steps:
            with torch.no_grad():
                loss = adapted.eval()(**held, use_cache=False).loss.item()
            if loss < lowest:
                lowest, best = loss, [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p, value in zip(weights, best):
            p.copy_(value)


def run_without(name: str):
    "Return our run without one speed-up."

    def run(adapted, model, *rest):
        if name == "shared dropout":
            speedups.share_dropout = lambda adapted: []
        if name == "length batches":
            real = training_loop.select_step_batches
            training_loop.select_step_batches = lambda lengths, *more: real([1] * len(lengths), *more)
        if name == "label logits only":
            speedups.supports_partial_logits = lambda adapted: False
        run_ours(adapted, model, *rest)

    return run


WAYS = {OURS: (run_ours, 0), TRAINER: (run_trainer, 0), LOOP: (run_loop, 0), "ours, top 2": (run_ours, 2)}
WAYS |= {
    f"without {name}": (run_without(name), 0) for name in ("shared dropout", "length batches", "label logits only")
}


def run_way(model, kind: str, way: str, steps: int, seed: int, threads: int) -> dict:
    "Return processor and wall seconds of one whole fine-tune, and its held-out loss."
    torch.set_num_threads(threads)
    run, layers = WAYS[way]
    training, validation, held_out = make_samples(model, kind)
    config = TuningConfig(steps=steps, patience=steps, layers=layers)
    seed_everything(seed)
    adapted = attach_trainable_lora(model, config)
    started, used = time.perf_counter(), time.process_time()
    run(adapted, model, training, validation, config, seed)
    seconds = dict(wall=time.perf_counter() - started, processor=time.process_time() - used)
    batch = collate_samples(held_out, model.tokenizer.pad_token_id)
    with torch.no_grad():
        nats = response_nll(adapted.eval(), batch).sum().item()
    return seconds | dict(held_out=nats / int((batch["labels"][:, 1:] != -100).sum()))


def summarize(rows: list, clock: str) -> dict:  # way -> numbers; medians over rounds
    "Return how many times as long each way takes as ours in the same round, and its held-out loss."
    seconds = {(row["round"], row["way"]): row[clock] for row in rows}
    rounds, summary = sorted({row["round"] for row in rows}), {}
    for way in dict.fromkeys(row["way"] for row in rows):
        rival = "ours, top 2" if way.startswith("top 2") else OURS
        ratios = [seconds[i, way] / seconds[i, rival] for i in rounds]
        losses = [row["held_out"] for row in rows if row["way"] == way]
        summary[way] = dict(
            seconds=statistics.median(seconds[i, way] for i in rounds), held_out=statistics.median(losses)
        )
        summary[way] |= dict(times_ours=statistics.median(ratios), times_ours_range=[min(ratios), max(ratios)])
    return summary


def measure(model, rounds: int, steps: int, threads: int = 1, report=print) -> dict:
    "Run all ways in turn on both kinds of dialogues."
    rows = {kind: [] for kind in SOURCES}
    for kind, found in rows.items():
        for i in range(rounds):
            for way in WAYS:
                row = in_a_child(lambda: run_way(model, kind, way, steps, i, threads))
                found.append(row | dict(round=i, way=way))
                report(
                    f"{kind}, round {i + 1}, {way}: {row['processor']:.2f} s, {row['held_out']:.3f} nats", flush=True
                )
    settings = dict(steps=steps, rounds=rounds, threads=threads, training=TRAINING, dropout=TuningConfig.dropout)
    clock = "processor" if threads == 1 else "wall"
    summaries = {kind: summarize(found, clock) for kind, found in rows.items()}
    return dict(machine=machine() | dict(threads=threads), settings=settings, ways=summaries, rows=rows)
