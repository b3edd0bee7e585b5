"Fine-tuning on tiny models: what is learned, what is kept, interrupts, kills, full disks."

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from personal_llm.base.adapters import Adapter
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.tokens import collate_samples
from personal_llm.tuning import finetune as tuning
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import find_lineages, finetune, trainable_adapter, validation_split
from personal_llm.tuning.training_loop import TrainingState, choose_step_samples, train
from tiny import ARCHITECTURES, break_seal, same, shared, tiny, weights
from hypothesis import given, settings, strategies as st

BRIEF = TuningConfig(rank=2, steps=3, batch_size=4, max_length=64, checks=3, learning_rate=1e-2)
HOLD_BACK = replace(BRIEF, validation=0.4)  # six of sixteen dialogues validate
WORDS = "tea rain bread snow music salt wool glass iron silk oak mint rice clay rope lamp".split()
TALK = [Dialogue(f"Question number {i}: what is {w}?", f"It is {w}, of course.") for i, w in enumerate(WORDS)]
TEST = [Dialogue("What is coal?", "It is coal, of course."), Dialogue("Hi", "Hello.")]


def bits(folder):
    return (Path(getattr(folder, "path", folder)) / "adapter_model.safetensors").read_bytes()


def files(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}


WHOLE = ["adapter.json", "adapter_config.json", "adapter_model.safetensors"]


def per_token(model, dialogues):
    return model.nll(dialogues)[:, 0].sum() / model.nll(dialogues)[:, 1].sum()


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    "An adapter of the tiny Llama."
    return finetune(shared("llama"), TALK[:6], BRIEF, out=tmp_path_factory.mktemp("old"), progress=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_and_plain_peft_loads_it(architecture, tmp_path):
    from peft import PeftModel

    model = tiny(architecture)
    before, losses = weights(model), model.nll(TEST)
    rows = []
    log = lambda step, loss: rows.append((step, loss))
    adapter = finetune(model, TALK, BRIEF, out=tmp_path / "a", progress=False, on_step=log)
    assert rows == [(step, loss) for step, loss, _ in adapter.history]
    assert same(model, before) and np.array_equal(model.nll(TEST), losses), "the base is what it was"
    assert adapter.best_loss < adapter.start_loss and [h[0] for h in adapter.history] == [1, 2, 3]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == WHOLE
    assert [*tmp_path.iterdir()] == [tmp_path / "a"]
    with model.use_adapter(adapter):
        adapted = model.nll(TEST)
    assert not np.allclose(adapted, losses)
    plain = tiny(architecture)
    plain.model = PeftModel.from_pretrained(plain.model, str(adapter.path)).eval()
    assert np.allclose(plain.nll(TEST), adapted, rtol=1e-5)
    card = Adapter.load(tmp_path / "a")
    assert card == adapter and card.parents == tuple(d.id for d in TALK)
    assert card.base == model.base and card.nbytes > 0
    assert card.cost.backward == 3 * BRIEF.batch_size


def test_seeds():
    "The same seed gives the same bits, another other bits; torch's global generator goes on as before."
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    learn = lambda seed: bits(finetune(shared("llama"), TALK, BRIEF, seed=seed, progress=False))
    one = learn(1)
    assert torch.equal(torch.rand(2), expected)
    assert one == learn(1) != learn(2)


@pytest.mark.parametrize(
    "bad",
    [[], [Dialogue("a", "")], TALK[:3] + [Dialogue("a", "")]]
    + [["text"], [TALK[0], None], dict(prompt="a"), iter(TALK)],
    ids=range(7),
)
def test_nothing_to_learn_is_refused(bad, tmp_path):
    model = shared("llama")
    before = weights(model)
    with pytest.raises(InputError):
        finetune(model, bad, BRIEF, out=tmp_path / "a")
    with pytest.raises(InputError, match="the seed is -1"):
        finetune(model, TALK, BRIEF, out=tmp_path / "a", seed=-1)
    with pytest.raises(InputError, match="max_length"):
        finetune(model, TALK, TuningConfig(max_length=2), out=tmp_path / "a")
    with pytest.raises(InputError, match="nonsense"):
        finetune(model, TALK, replace(BRIEF, target_modules="nonsense"), out=tmp_path / "a" / "b", progress=False)
    assert same(model, before) and not list(tmp_path.iterdir()), "no empty folder is left"


def seen_samples(monkeypatch, dialogues, config, **rest) -> tuple:  # encoded training and validation dialogues
    seen = []

    def look(adapted, samples, validation, config, *others):
        seen.extend([samples, validation])
        return train(adapted, samples, validation, config, *others)

    monkeypatch.setattr(tuning, "train", look)
    finetune(shared("llama"), dialogues, replace(config, steps=1), progress=False, **rest)
    return tuple([sample["input_ids"] for sample in samples] for samples in seen)


def encode(dialogues) -> list:
    return [shared("llama").encode(d, 64)["input_ids"] for d in dialogues]


def test_what_trains_and_what_validates(monkeypatch):
    "Relatives of the validation dialogues do not train."
    children = [d.derive(prompt=f"Say: {d.prompt}", origin="synthetic") for d in TALK]
    learn, held = validation_split(TALK + children, 0.25, 0)
    assert (len(held), len(learn)) == (4, 24)
    found = seen_samples(monkeypatch, TALK + children, replace(BRIEF, validation=0.25))
    assert found == (encode(learn), encode(held))


def test_turns_before_a_prompt_do_not_train(monkeypatch):
    "The samples are those of the dialogues alone; a system turn stays."
    turns = (("system", "Be brief."), ("user", "Good morning"), ("assistant", "Hello."))
    talk = [replace(d, history=turns) for d in TALK[:4]]
    assert seen_samples(monkeypatch, talk, BRIEF)[0] == encode([replace(d, history=turns[:1]) for d in talk])


def test_few_answers_all_train(tmp_path):
    "Without validation the last weights stay, and the losses on the card are those of training."
    adapter = finetune(shared("llama"), TALK[:3], replace(BRIEF, checks=2, steps=5), out=tmp_path, progress=False)
    assert adapter.num_validation_dialogues == 0 and "warning" not in adapter.notes
    assert [(step, validation) for step, _, validation in adapter.history] == [(2, None), (4, None), (5, None)]
    assert adapter.best_loss == adapter.history[-1][1] < adapter.start_loss
    assert Adapter.load(tmp_path).num_validation_dialogues == 0


@pytest.mark.parametrize(
    "steps, checks, looks", [(3, 3, [1, 2, 3]), (4, 9, [1, 2, 3, 4]), (5, 2, [2, 4, 5]), (3, 1, [3])]
)
def test_steps_between_checks(steps, checks, looks):
    "The last step is always a check, so that the last weights can be kept."
    config = replace(HOLD_BACK, steps=steps, checks=checks)
    adapter = finetune(shared("llama"), TALK, config, progress=False)
    assert [step for step, _, _ in adapter.history] == looks
    assert all(training is not None and loss is not None for _, training, loss in adapter.history)


@pytest.mark.parametrize("rate", [3.0, 1e-2], ids=["wrecked", "learning"])
def test_never_worse_than_the_start_on_the_validation_dialogues(rate, old):
    "What is reported is what is returned."
    model, config = shared("llama"), replace(HOLD_BACK, steps=6, checks=6, learning_rate=rate)
    adapter = finetune(model, TALK, config, start=str(old.path), progress=False)
    held = validation_split(TALK, 0.4)[1]
    assert adapter.num_validation_dialogues == len(held) == 6
    with model.use_adapter(old):
        start = per_token(model, held)
    with model.use_adapter(adapter):
        end = per_token(model, held)
    assert start == pytest.approx(adapter.start_loss, abs=1e-4)
    assert end == pytest.approx(adapter.best_loss, abs=1e-4)
    assert end <= start + 1e-6 and adapter.best_loss == min([adapter.start_loss] + [h[2] for h in adapter.history])


RUN = TuningConfig(rank=2, steps=6, batch_size=4, max_length=64, checks=3, learning_rate=1e-2, validation=0.4)


def run(out=None, stop=None, dialogues=TALK, config=RUN, seed=2) -> tuple:  # (the adapter, the steps that trained)
    "Fine-tune, with an interrupt at the step `stop`."
    steps = []

    def on_step(now, loss):
        steps.append(now)
        if now == stop:
            raise KeyboardInterrupt

    return finetune(shared("qwen2"), dialogues, config, out=out, seed=seed, progress=False, on_step=on_step), steps


def result(adapter):
    "All that must be equal, to the bit."
    one = Adapter.load(adapter.path)
    losses = one.history, one.start_loss, one.best_loss, one.num_validation_dialogues
    return bits(one), losses, one.config, one.cost.backward


@pytest.fixture(scope="module")
def straight():
    return run()[0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    "A folder whose run was interrupted at the fifth of six steps."
    out = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        run(out, stop=5)
    return out


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_resumed_is_bit_equal(step, straight, tmp_path):
    model = shared("qwen2")
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=step)
    assert same(model, before)
    again, steps = run(tmp_path)
    assert result(again) == result(straight)
    assert steps == list(range(step // 2 * 2 + 1, 7)), "it goes on from the last checkpoint"
    assert not (tmp_path / "checkpoints").exists()


ENDS = {
    "all steps": RUN,
    "no validation": replace(RUN, validation=0),
    "last step between checks": replace(RUN, steps=5, checks=2),
    "whole epochs, in passes": replace(RUN, steps=4, checks=2, batch_size=10),
}


@pytest.mark.parametrize("config", ENDS.values(), ids=ENDS)
def test_stopped_between_the_last_step_and_the_end(config, monkeypatch, tmp_path):
    "Nothing is left to train: the same call publishes what an uninterrupted one does."
    wanted, steps = run(config=config)
    assert steps[-1] == config.steps, "it ends as it should"
    real = tuning.remove_checkpoints

    def stop(*given, **keep):
        if keep:  # not the end: the run only begins
            return real(*given, **keep)
        raise KeyboardInterrupt

    for name in ("stage_adapter", "commit_adapter", "remove_checkpoints"):
        with monkeypatch.context() as patch:
            patch.setattr(tuning, name, stop)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, config=config)
    again, steps = run(tmp_path, config=config)
    assert result(again) == result(wanted) and steps == []
    assert sorted(p.name for p in tmp_path.iterdir()) == WHOLE


@pytest.mark.parametrize("place", [0, 63, 64, 1000, -1])
def test_a_flipped_bit_of_a_checkpoint_costs_time_and_nothing_else(place, stopped, straight, tmp_path):
    "The training begins anew, and ends with the bytes of a run that was never interrupted."
    shutil.copytree(stopped, tmp_path / "a")
    (file,) = (tmp_path / "a").rglob("checkpoint")
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)
    again, steps = run(tmp_path / "a")
    assert result(again) == result(straight) and steps == [1, 2, 3, 4, 5, 6]


OTHERS = {
    "dialogues": dict(dialogues=TALK[:8]),
    "seed": dict(seed=3),
    "settings": dict(config=replace(RUN, batch_size=2)),
    "answers under the same ids": dict(dialogues=[Dialogue(d.prompt, "No idea.", id=d.id) for d in TALK]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_run_is_not_used(what, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "a")
    _, steps = run(tmp_path / "a", **OTHERS[what])
    assert steps == [1, 2, 3, 4, 5, 6] and sorted(p.name for p in (tmp_path / "a").iterdir()) == WHOLE


def theirs(folder):
    "Everything below a folder, with its content."
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def write_there(*names):
    def write(folder, stopped):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("a thesis")

    return write


def link_checkpoints(folder, stopped):
    shutil.copytree(stopped / "checkpoints", folder / "theirs")
    (folder / "mine").mkdir()
    (folder / "mine" / "checkpoints").symlink_to(folder / "theirs")


NOT_OURS = "not made by this package"
OF_OTHERS = {
    "a file in place of the checkpoints": (write_there("mine/checkpoints"), NOT_OURS),
    "an adapter": (write_there("mine/adapter_model.safetensors", "mine/adapter_config.json"), NOT_OURS),
    "a linked folder of checkpoints": (link_checkpoints, NOT_OURS),
    "a file above": (write_there("mine"), "not a folder that we may write to"),
}


@pytest.mark.parametrize("what", OF_OTHERS)
def test_what_others_made_is_refused_untouched(what, stopped, tmp_path):
    make, problem = OF_OTHERS[what]
    make(tmp_path, stopped)
    before = theirs(tmp_path)
    with pytest.raises(InputError, match=problem):
        run(tmp_path / "mine" / "adapter" if what == "a file above" else tmp_path / "mine", seed=3)
    assert theirs(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoint-900/model.bin", "run", "notes.txt"])
def test_files_of_others_beside_checkpoints_stay(name, stopped, straight, tmp_path):
    "A run goes on beside them, and removes its own checkpoints only."
    out, file = tmp_path / "mine", tmp_path / "mine" / "checkpoints" / name
    shutil.copytree(stopped, out)
    file.parent.mkdir(exist_ok=True)
    file.write_text("a thesis")
    again, steps = run(out)
    assert result(again) == result(straight) and steps == [5, 6]
    assert [p for p in (out / "checkpoints").rglob("*") if p.is_file()] == [file]
    assert file.read_text() == "a thesis"


def test_going_on_asks_no_hub(old, tmp_path, monkeypatch):
    "An adapter from a library names its base by a name that is no folder."
    import peft.utils.save_and_load as saving

    def refuse(*given):
        raise AssertionError("a question to the hub")

    monkeypatch.setattr(saving, "check_file_exists_on_hf_hub", refuse)
    shutil.copytree(old.path, tmp_path / "start")
    break_seal(tmp_path / "start")
    file = tmp_path / "start" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(base_model_name_or_path="pocket")))
    finetune(shared("llama"), TALK[:6], BRIEF, start=tmp_path / "start", out=tmp_path / "out", progress=False)


def test_a_start_that_does_not_fit_is_refused(old, tmp_path):
    for model, start in ((tiny("llama", seed=1), old), (tiny("gpt2"), old), (tiny("llama"), tmp_path / "nothing")):
        before = weights(model)
        with pytest.raises(InputError):
            finetune(model, TALK, BRIEF, start=start, out=tmp_path / "out", progress=False)
        assert same(model, before) and not (tmp_path / "out").exists()


def test_a_full_disk_in_a_checkpoint_is_one_line(monkeypatch, tmp_path):
    model, real = shared("llama"), os.replace
    older = finetune(model, TALK[:5], BRIEF, out=tmp_path, progress=False)
    before, base = files(tmp_path), weights(model)

    def full(source, target):
        if str(target).endswith("checkpoint"):
            raise OSError(28, "No space left on device")
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match="cannot be written"):
            finetune(model, TALK[5:], BRIEF, out=tmp_path, progress=False)
    assert files(tmp_path) == before and same(model, base)
    assert Adapter.load(tmp_path) == older
    finetune(model, TALK[5:], BRIEF, out=tmp_path, progress=False)
    assert not (tmp_path / "checkpoints").exists()


def test_an_adapter_that_learned_nothing_says_so(old, tmp_path):
    model, wrecking = shared("llama"), replace(HOLD_BACK, learning_rate=1e3, steps=1, checks=1)
    with pytest.raises(InputError, match="the loss isn.t finite"):
        finetune(model, TALK, replace(HOLD_BACK, learning_rate=1e30), progress=False)
    for start, what in ((None, "the base model"), (old, "its start")):
        adapter = finetune(model, TALK, wrecking, start=start, out=tmp_path / "a", progress=False)
        assert what in Adapter.load(tmp_path / "a").notes["warning"] and adapter.best_loss == adapter.start_loss
    assert "warning" not in finetune(model, TALK, HOLD_BACK, progress=False).notes


def trainer_losses(adapted, samples, config, seed) -> list:
    "The losses of transformers' Trainer on the batches of our loop."
    from transformers import Trainer, TrainerCallback, TrainingArguments

    lengths, rows = [len(sample["input_ids"]) for sample in samples], []

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            rows.extend([logs["loss"]] if "loss" in logs else [])

    class OurBatches(Trainer):
        def get_train_dataloader(self):
            steps = range(1, config.steps + 1)
            chosen = [choose_step_samples(lengths, config.batch_size, seed, step) for step in steps]
            return torch.utils.data.DataLoader(
                samples, batch_sampler=chosen, collate_fn=lambda found: collate_samples(found, 0)
            )

    schedule = dict(learning_rate=config.learning_rate, lr_scheduler_type="cosine")
    schedule |= dict(max_steps=config.steps, warmup_steps=round(config.warmup * config.steps))
    schedule |= dict(weight_decay=config.weight_decay)
    quiet = dict(report_to="none", disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False)
    rows_as_they_are = dict(remove_unused_columns=False, label_names=["labels"], use_cpu=True, logging_steps=1)
    settings = TrainingArguments("unused", **schedule, **quiet, **rows_as_they_are)
    OurBatches(model=adapted, args=settings, train_dataset=samples, callbacks=[Log()]).train()
    return rows


@pytest.mark.parametrize("max_length", [512, 60], ids=["one pass", "passes"])
@pytest.mark.parametrize("architecture", ["llama", pytest.param("qwen2", marks=pytest.mark.later)])
def test_the_loop_has_the_losses_of_trainer(architecture, max_length):
    "On the same batches, without dropout: warm-up, schedule, clipping, optimiser and weight decay are Trainer's."
    more = dict(weight_decay=0.1, max_length=max_length)
    config = TuningConfig(rank=4, steps=8, batch_size=4, learning_rate=1e-2, warmup=0.25, **more)
    found = []
    for run in ("ours", "Trainer"):
        model = tiny(architecture)
        samples = [model.encode(d, 64) for d in TALK]
        samples = [{name: sample[name] for name in ("input_ids", "labels")} for sample in samples]
        torch.manual_seed(0)
        with trainable_adapter(model, config) as adapted:
            if run == "ours":
                found.append([loss for _, loss in train(adapted, samples, [], config, 0, TrainingState(), seed=3)])
            else:
                found.append(trainer_losses(adapted, samples, config, seed=3))
    ours, trainers = map(np.array, found)
    assert len(ours) == len(trainers) == 8 and ours[0] - ours[-1] > 0.1
    assert np.abs(ours - trainers).max() < 1e-3


# the settings


@pytest.mark.parametrize(
    "wrong",
    [dict(rank=0), dict(batch_size=-1), dict(checks=0), dict(validation=-0.1), dict(dropout=1.0)]
    + [dict(weight_decay=-1), dict(steps=10**12), dict(batch_size=np.float64(4))]
    + [dict(rank=np.bool_(True)), dict(alpha=np.float32("inf"))]
    + [dict(learning_rate=0), dict(target_modules=["q_proj"]), dict(target_modules=" "), dict(rank="8")]
    + [dict(learning_rate=float("nan")), dict(validation=1), dict(steps=2.0)],
)
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TuningConfig(**wrong)


START = dict(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "a.v_proj"])


def test_a_start_without_dropout_has_none():
    bare = {name: value for name, value in START.items() if name != "lora_dropout"}
    assert TuningConfig(dropout=0.5).match_adapter(bare, "mine").dropout == 0, "peft's default"


@pytest.mark.parametrize("targets", [None, [], [3], 7])
def test_a_start_without_targets_is_refused(targets):
    with pytest.raises(InputError, match="target modules"):
        TuningConfig().match_adapter(START | dict(target_modules=targets), "mine")


def test_the_defaults_are_those_of_the_rows():
    "LoRA's shape is that of the paper; an experiment chose layers, steps and rate together."
    config = TuningConfig()
    assert (config.rank, config.alpha, config.target_modules) == (8, 16, "all-linear")
    assert (config.layers, config.steps, config.learning_rate) == (0, 24, 1e-3)


# what validates


@st.composite
def families(draw):
    "Originals; corrected answers, synthetic children and grandchildren of one or two of them, in any order."
    out = [Dialogue(f"original {i}", "a") for i in range(draw(st.integers(1, 25)))]
    for i in range(draw(st.integers(0, 30))):
        parent, origin = (
            out[draw(st.integers(0, len(out) - 1))],
            draw(st.sampled_from(["synthetic", "synthetic", "annotated"])),
        )
        if origin == "annotated" and parent.origin == "synthetic":
            continue
        parents = {parent.id} | {out[k].id for k in draw(st.lists(st.integers(0, len(out) - 1), max_size=1))}
        out.append(Dialogue(f"child {i}", "a", origin=origin, parents=tuple(sorted(parents))))
    return draw(st.permutations(out))


def components(dialogues):  # id -> all ids that are tied to it
    "The naive twin of `find_lineages`: sets that are joined until nothing changes."
    found = {d.id: {d.id, *d.parents} for d in dialogues}
    for _ in dialogues:
        for one in found.values():
            for other in found.values():
                if one & other:
                    one |= other
    return found


@given(families(), st.floats(0, 0.99), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_lineages_are_not_split(dialogues, share, seed):
    "No dialogue trains that descends from a validation dialogue or is an ancestor of one."
    learn, choose = validation_split(dialogues, share, seed)
    families = components(dialogues)
    held = {name for d in choose for name in families[d.id]}
    assert not held & {d.id for d in learn}, "a lineage on both sides"
    assert learn, "something must be left to learn from"
    assert all(d.origin != "synthetic" for d in choose) and [d for d in dialogues if d in learn] == learn
    assert all(d in learn or d.id in held for d in dialogues), "nothing is lost but validation lineages"
    if share == 0:
        assert not choose
    again = validation_split(dialogues[::-1], share, seed)
    assert {d.id for d in again[1]} == {d.id for d in choose}, "the order does not count"


def test_long_chains_are_no_recursion():
    make = lambda name, *parents: Dialogue(name, "a", id=name, parents=parents)
    rows = [make("e", "d"), make("d", "gone"), make("b"), make("c", "b"), make("z", "c", "y"), make("y")]
    assert find_lineages(rows) == ["d", "d", "b", "b", "b", "b"], "the lowest id, in the list or not"
    chain = [make(f"{i:05d}", f"{i + 1:05d}") for i in range(2000)]
    assert set(find_lineages(chain)) == set(find_lineages(chain[::-1])) == {"00000"}
