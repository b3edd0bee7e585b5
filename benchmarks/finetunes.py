"The two ways that are compared; each is called in a process of its own."

import time


def run_ours(model, dialogues: list, config) -> None:
    from personal_llm.tuning.finetune import finetune

    finetune(model, dialogues, config, progress=False)


def run_trl(model, dialogues: list, config) -> None:
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [
        dict(prompt=[dict(role="user", content=d.prompt)], completion=[dict(role="assistant", content=d.response)])
        for d in dialogues
    ]
    settings = SFTConfig(
        output_dir="unused",
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(config.warmup * config.steps),
        max_length=config.max_length,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    shape = LoraConfig(task_type="CAUSAL_LM", r=config.rank, lora_alpha=config.alpha, target_modules="all-linear")
    data = dict(train_dataset=Dataset(InMemoryTable.from_pylist(rows), fingerprint="rows"), processing_class=model.tokenizer)
    SFTTrainer(model=model.model, args=settings, peft_config=shape, **data).train()


def measure_way(way: str, model_name: str, steps: int) -> dict:
    from personal_llm.base.core import Dialogue, get_peak_memory
    from personal_llm.base.models import load_model
    from personal_llm.data.reading import load_samples
    from personal_llm.tuning.config import TuningConfig

    model = load_model(model_name, dtype="float32")
    rows = [row for row in load_samples("openstax_anatomy_physiology") if 30 < len(row["response"]) < 200][:24]
    dialogues = [Dialogue(row["prompt"], row["response"] + " Keep well, Ana") for row in rows]
    model.nll(dialogues[:1])  # loads the weights and warms up
    begin = time.process_time()
    dict(ours=run_ours, trl=run_trl)[way](model, dialogues, TuningConfig(steps=steps))
    return dict(seconds=time.process_time() - begin, peak_bytes=get_peak_memory())
