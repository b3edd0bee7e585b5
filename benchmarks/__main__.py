"""`python -m benchmarks`: a fine-tune of ours beside the same work in transformers' Trainer and in TRL.

Each way takes the same optimiser steps on batches of the same size, with the same LoRA on all layers, in a forked child
of its own, the ways in turn in every round; *default* is what the package does if nothing is said, with fewer steps and
layers. What counts is processor time, and the ratio to Trainer within a round. TRL takes part where it is installed:
`pip install trl`.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

from personal_llm.base.core import Dialogue
from personal_llm.base.models import load_model
from personal_llm.data.reading import load_samples
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune

SOURCES = ("medquad", "dolly_6400", "openstax_anatomy_physiology", "synthetic_persona_chat")  # of mixed lengths


def make_dialogues(count: int) -> list:  # `Dialogue`s
    "Take sample rows of mixed lengths, the sources in turn."
    rows = [load_samples(source)[: count // len(SOURCES) + 1] for source in SOURCES]
    mixed = [row for part in zip(*rows) for row in part][:count]
    return [Dialogue(row["prompt"], row["response"]) for row in mixed]


def tune_ours(model, dialogues: list, config: TuningConfig, folder: str) -> None:
    "Tune by our loop."
    finetune(model, dialogues, config, out=Path(folder, "adapter"), progress=False)


def tune_default(model, dialogues: list, config: TuningConfig, folder: str) -> None:
    "Tune by our loop, with the defaults of the package."
    tune_ours(model, dialogues, TuningConfig(validation=0.0), folder)


def make_trainer_settings(config: TuningConfig, folder: str, kind=None, **more):  # kind: a class, `TrainingArguments`
    "Return settings of transformers' Trainer with our schedule, for training without reports."
    from transformers import TrainingArguments

    return (kind or TrainingArguments)(
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
        label_names=["labels"],
        **dict(remove_unused_columns=False) | more,
    )


def _lora(config: TuningConfig):
    from peft import LoraConfig

    shape = dict(r=config.rank, lora_alpha=config.alpha, target_modules=config.target_modules)
    return LoraConfig(task_type="CAUSAL_LM", **shape)


def tune_trainer(model, dialogues: list, config: TuningConfig, folder: str) -> None:
    "Tune with transformers' Trainer and peft."
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer

    samples = [model.encode(dialogue, config.max_length) for dialogue in dialogues]
    samples = [{name: sample[name] for name in ("input_ids", "labels")} for sample in samples]
    collator = DataCollatorForSeq2Seq(model.tokenizer, padding="longest")
    adapted = get_peft_model(model.model, _lora(config))
    batch = dict(per_device_train_batch_size=config.batch_size, save_strategy="no")
    arguments = make_trainer_settings(config, folder, **batch)
    Trainer(model=adapted, args=arguments, train_dataset=samples, data_collator=collator).train()


def tune_trl(model, dialogues: list, config: TuningConfig, folder: str) -> None:
    "Tune with TRL's SFTTrainer, which masks the prompts of prompt-completion rows by itself."
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    message = lambda role, text: [dict(role=role, content=text)]
    rows = [dict(prompt=message("user", d.prompt), completion=message("assistant", d.response)) for d in dialogues]
    batch = dict(per_device_train_batch_size=config.batch_size, save_strategy="no", remove_unused_columns=True)
    more = dict(max_length=config.max_length, gradient_checkpointing=False)
    arguments = make_trainer_settings(config, folder, SFTConfig, **batch, **more)
    given = dict(train_dataset=Dataset.from_list(rows), processing_class=model.tokenizer, peft_config=_lora(config))
    SFTTrainer(model=model.model, args=arguments, **given).train()


WAYS = {"default": tune_default, "ours": tune_ours, "Trainer": tune_trainer}
if find_spec("trl"):
    WAYS["TRL"] = tune_trl


def run_in_child(action) -> dict:  # processor and wall seconds, peak of memory in MB
    "Run something in a forked copy of this process, and measure it."
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            begin = time.process_time(), time.perf_counter()
            action()
            found = dict(processor=time.process_time() - begin[0], seconds=time.perf_counter() - begin[1])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            os.write(write, json.dumps(found | dict(peak_mb=round(peak))).encode())
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


def summarise(rows: list) -> dict:  # way -> medians over rounds; *ratio* is to Trainer within a round
    "Summarise the rounds."
    found = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        trainer = {row["round"]: row["processor"] for row in rows if row["way"] == "Trainer"}
        median = lambda name: statistics.median(row[name] for row in own)
        ratio = statistics.median(row["processor"] / trainer[row["round"]] for row in own)
        numbers = dict(processor=median("processor"), seconds=median("seconds"), peak_mb=median("peak_mb"), ratio=ratio)
        found[way] = {name: round(value, 3) for name, value in numbers.items()}
    return found


def measure(name: str, rounds: int, count: int, config: TuningConfig) -> dict:
    "Run every way in every round."
    from transformers import set_seed

    model, dialogues, rows = load_model(name), make_dialogues(count), []
    model.model.requires_grad_(False)  # loaded once, before the children
    for number in range(rounds):
        for way, tune in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                set_seed(number)
                found = run_in_child(lambda: tune(model, dialogues, config, folder))
            rows.append(dict(round=number, way=way) | found)
            print(rows[-1], flush=True)
    return dict(model=name, steps=config.steps, ways=summarise(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", default="pocket", help="a name, a folder or a GGUF file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=48, help="of all ways but the default")
    parser.add_argument("--dialogues", type=int, default=24)
    given = parser.parse_args()
    config = TuningConfig(layers=None, steps=given.steps, learning_rate=3e-4, validation=0.0)
    print(json.dumps(measure(given.model, given.rounds, given.dialogues, config), indent=1))
