"Fine-tuning on tiny models: what is learned, what is kept, interrupts, kills, full disks."

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kills import killed_at
from personal_llm.base.adapters import Adapter
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.tokens import collate
from personal_llm.tuning import finetune as tuning
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import Lesson, finetune
from personal_llm.tuning.validation import validation_split
from tiny import ARCHITECTURES, shared, tiny

BRIEF = TuningConfig(rank=2, steps=3, batch_size=4, max_length=64, checks=3, learning_rate=1e-2)
TALK = [
    Dialogue(f"Question number {i}: what is {w}?", f"It is {w}, of course.")
    for i, w in enumerate("tea rain bread snow music salt wool glass iron silk oak mint rice clay rope lamp".split())
]
TEST = [Dialogue("What is coal?", "It is coal, of course."), Dialogue("Hi", "Hello.")]


def weights(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same(model, before):
    return before.keys() == model.model.state_dict().keys() and all(
        torch.equal(before[n], v) for n, v in model.model.state_dict().items()
    )


def bits(folder):
    return (Path(getattr(folder, "path", folder)) / "adapter_model.safetensors").read_bytes()


def files(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}


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
    adapter = finetune(model, TALK, BRIEF, out=tmp_path / "a", progress=False)
    assert same(model, before) and np.array_equal(model.nll(TEST), losses), "the base is what it was"
    assert adapter.best_loss < adapter.start_loss and [h[0] for h in adapter.history] == [1, 2, 3]
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter.json",
    } and [p.name for p in tmp_path.iterdir()] == ["a"]
    with model.using(adapter):
        adapted = model.nll(TEST)
    assert not np.allclose(adapted, losses)
    plain = tiny(architecture)
    plain.model = PeftModel.from_pretrained(plain.model, str(adapter.path)).eval()
    assert np.array_equal(plain.nll(TEST), adapted)
    card = Adapter.load(tmp_path / "a")
    assert card == adapter and card.parents == tuple(d.id for d in TALK) and card.base == model.base and card.nbytes > 0
    assert card.cost.backward == 3 * BRIEF.batch_size


def test_seeds():
    "The same seed gives the same bits, another one other bits; torch's global generator goes on as if nothing had happened."
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = finetune(shared("llama"), TALK, BRIEF, seed=1, progress=False)
    assert torch.equal(torch.rand(2), expected)
    assert (
        bits(one)
        == bits(finetune(shared("llama"), TALK, BRIEF, seed=1, progress=False))
        != bits(finetune(shared("llama"), TALK, BRIEF, seed=2, progress=False))
    )


def test_collate_pads_on_the_right_without_loss():
    got = collate([dict(input_ids=[5, 6, 7], labels=[-100, 6, 7]), dict(input_ids=[8], labels=[8])], 9)
    assert (
        got["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
        and got["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        and got["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    )


@pytest.mark.parametrize("bad", [[], [Dialogue("a", "")], TALK[:3] + [Dialogue("a", "")]])
def test_nothing_to_learn_is_refused(bad, tmp_path):
    with pytest.raises(InputError):
        finetune(shared("llama"), bad, BRIEF, out=tmp_path / "a")
    with pytest.raises(InputError, match="max_length"):
        finetune(shared("llama"), TALK, TuningConfig(max_length=2), out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        dict(rank=0),
        dict(steps=0),
        dict(batch_size=-1),
        dict(checks=0),
        dict(validation=1.0),
        dict(validation=-0.1),
        dict(patience=0),
        dict(accumulate=0),
        dict(steps=2.5),
        dict(steps=10**12),
        dict(learning_rate=float("nan")),
        dict(learning_rate=0),
        dict(rank="8"),
        dict(rank=True),
        dict(targets=["q_proj"]),
        dict(dropout=1.0),
        dict(weight_decay=-1),
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TuningConfig(**wrong)


def test_modules_that_are_not_there():
    model = tiny("llama")
    before = weights(model)
    with pytest.raises(InputError):
        finetune(model, TALK, TuningConfig(targets="nonsense", steps=1), progress=False)
    assert same(model, before)


@st.composite
def families(draw):
    "Originals; corrected answers, synthetic children and grandchildren of any of them, in any order."
    out = [Dialogue(f"original {i}", "a") for i in range(draw(st.integers(1, 25)))]
    for i in range(draw(st.integers(0, 30))):
        parent, origin = (
            out[draw(st.integers(0, len(out) - 1))],
            draw(st.sampled_from(["synthetic", "synthetic", "annotated"])),
        )
        if origin == "annotated" and parent.origin == "synthetic":
            continue
        out.append(Dialogue(f"child {i}", "a", origin=origin, parents=(parent.id,)))
    return draw(st.permutations(out))


@given(st.integers(1, 30), st.floats(0, 0.9), st.integers(0, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_children_of_what_judges_do_not_train(originals, share, seed, data):
    family = [Dialogue(f"original {i}", "a") for i in range(originals)]
    family += [
        Dialogue(f"child {i}", "a", origin="synthetic", parents=(family[p].id,))
        for i, p in enumerate(data.draw(st.lists(st.integers(0, originals - 1), max_size=30)))
    ]
    learn, judge = validation_split(family, share, seed)
    held = {d.id for d in judge}
    count = min(max(4, round(share * originals)), originals - 1) if share and originals >= 16 else 0
    assert len(judge) == count
    assert [d for d in family if d.id not in held and not held & set(d.parents)] == learn
    assert [d for d in family if d.id in held] == judge and all(d.origin == "user" for d in judge)


@given(families(), st.floats(0, 0.99), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_lineages_are_not_split(dialogues, share, seed):
    "No dialogue trains that descends from one that judges, or is an ancestor of one."
    learn, choose = validation_split(dialogues, share, seed)
    parent = {d.id: d.parents[0] for d in dialogues if d.parents}

    def top(i):
        while i in parent:
            i = parent[i]
        return i

    assert not {top(d.id) for d in learn} & {top(d.id) for d in choose}, "a lineage on both sides"
    assert learn, "something must be left to learn from"
    assert all(d.origin != "synthetic" for d in choose) and [d for d in dialogues if d in learn] == learn
    held = {top(d.id) for d in choose}
    assert all(d in learn or top(d.id) in held for d in dialogues), "nothing is lost but lineages that judge"
    if share == 0:
        assert not choose
    again = validation_split(dialogues[::-1], share, seed)
    assert {d.id for d in again[1]} == {d.id for d in choose}, "the order does not count"


def test_parents_in_a_circle_are_refused():
    ring = [Dialogue(name, "a", id=name, parents=(to,)) for name, to in (("x", "y"), ("y", "z"), ("z", "x"))]
    with pytest.raises(InputError, match="circle"):
        validation_split(ring, 0.1)


def test_what_trains_and_what_judges():
    "Samples of the learning side train, the others judge; with too few lineages the originals stand guard."
    model, config = shared("llama"), TuningConfig(rank=2, steps=1, batch_size=2, validation=0.25, max_length=64)
    children = [d.derive(prompt=f"Say: {d.prompt}", origin="synthetic") for d in TALK]
    learn, judge = validation_split(TALK + children, 0.25, 0)
    assert (len(judge), len(learn)) == (4, 24)
    lesson = Lesson.of(model, TALK + children, config, 0)
    assert lesson.learn == [model.encode(d, 64) for d in learn] and lesson.judged_on == 4
    assert lesson.judge == [model.encode(d, 64) for d in judge]
    few = Lesson.of(model, TALK[:4] + children[:4], config, 0)
    assert few.judge == [model.encode(d, 64) for d in TALK[:4]] and few.judged_on == 0 and len(few.learn) == 8


def test_the_card_says_on_how_many_it_was_judged(tmp_path):
    "Thirty-two bins are judged on four dialogues that do not train; eight by what trains."
    bins = [Dialogue(f"Question {i}?", f"Answer {i}.") for i in range(32)]
    config = TuningConfig(rank=2, steps=1, batch_size=2, max_length=64)
    adapter = finetune(shared("llama"), bins, config, out=tmp_path, progress=False)
    assert adapter.judged_on == Adapter.load(tmp_path).judged_on == 4
    assert finetune(shared("llama"), bins[:8], config, progress=False).judged_on == 0


@pytest.mark.parametrize(
    "rate,dialogues", [(3.0, TALK), (1e-2, TALK), (3.0, TALK[:4])], ids=["wrecked", "learning", "few"]
)
def test_never_worse_than_the_start_on_the_judged_dialogues(rate, dialogues, old):
    model, config = (
        shared("llama"),
        TuningConfig(rank=2, steps=6, batch_size=4, checks=6, learning_rate=rate, validation=0.4, max_length=64),
    )
    adapter = finetune(model, dialogues, config, start=old, progress=False)
    choose = validation_split(dialogues, 0.4)[1] or dialogues
    assert adapter.judged_on == (len(choose) if dialogues is TALK else 0)
    with model.using(old):
        start = per_token(model, choose)
    with model.using(adapter):
        end = per_token(model, choose)
    assert start == pytest.approx(adapter.start_loss, abs=1e-4) and end == pytest.approx(adapter.best_loss, abs=1e-4), (
        "what is reported is what is returned"
    )
    assert end <= start + 1e-6 and adapter.best_loss == min([adapter.start_loss] + [h[2] for h in adapter.history])
    if rate == 3.0:
        assert adapter.history[-1][0] < 6 or adapter.best_loss < adapter.start_loss, "stops when nothing improves"


def interrupt_at(monkeypatch, step):
    from transformers import TrainerCallback

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == step:
                raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "progress_bar", lambda steps: Interrupt())


RUN = TuningConfig(rank=2, steps=6, batch_size=4, max_length=64, checks=3, learning_rate=1e-2, validation=0.4)


@pytest.fixture(scope="module")
def straight():
    return finetune(shared("qwen2"), TALK, RUN, seed=2, progress=False)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_resumed_is_bit_equal(step, straight, monkeypatch, tmp_path):
    model = shared("qwen2")
    before = weights(model)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            finetune(model, TALK, RUN, out=tmp_path, seed=2)
    assert same(model, before)
    steps = []
    from transformers import TrainerCallback

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            steps.append(state.global_step)

    monkeypatch.setattr(tuning, "progress_bar", lambda n: Count())
    again = finetune(model, TALK, RUN, out=tmp_path, seed=2)
    assert bits(again) == bits(straight) and again.history == straight.history and again.best_loss == straight.best_loss
    assert steps == list(range(step // 2 * 2 + 1, 7)), "it goes on from the last checkpoint"
    assert not (tmp_path / "checkpoints").exists()


def test_interrupted_while_the_checkpoint_is_written(straight, monkeypatch, tmp_path):
    "Half a checkpoint must not block the next call."
    import safetensors.torch

    real = safetensors.torch.save_file

    def stop(tensors, path, *a, **k):
        if "keeper" in str(path) and "checkpoint-4" in str(path):
            raise KeyboardInterrupt
        return real(tensors, path, *a, **k)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(shared("qwen2"), TALK, RUN, out=tmp_path, seed=2, progress=False)
    assert bits(finetune(shared("qwen2"), TALK, RUN, out=tmp_path, seed=2, progress=False)) == bits(straight)


OTHERS = {
    "dialogues": (TALK[:8], RUN, 2),
    "seed": (TALK, RUN, 3),
    "settings": (TALK, TuningConfig(rank=2, steps=6, batch_size=2, max_length=64, checks=3, validation=0.4), 2),
    "answers under the same ids": ([Dialogue(d.prompt, "No idea.", id=d.id) for d in TALK], RUN, 2),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_run_is_not_used(what, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            finetune(shared("qwen2"), TALK, RUN, out=tmp_path / "a", seed=2)
    dialogues, config, seed = OTHERS[what]
    mixed = finetune(shared("qwen2"), dialogues, config, out=tmp_path / "a", seed=seed, progress=False)
    assert bits(mixed) == bits(
        finetune(shared("qwen2"), dialogues, config, out=tmp_path / "b", seed=seed, progress=False)
    )


def test_going_on_from_an_adapter(old, tmp_path):
    model = shared("llama")
    further = finetune(model, TALK[:6], BRIEF, start=old, progress=False)
    assert further.start_loss == pytest.approx(old.best_loss, abs=1e-5) and further.best_loss <= further.start_loss
    assert bits(finetune(model, TALK[:6], BRIEF, start=str(old.path), progress=False)) == bits(further), "by its path"


def test_a_start_keeps_its_shape(old, tmp_path):
    "Rank 2 goes on at rank 2, whatever the defaults are; the card tells the settings that were in force."
    config = TuningConfig(steps=1, batch_size=2, max_length=64)
    further = finetune(shared("llama"), TALK[:6], config, start=old, out=tmp_path / "a", progress=False)
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (
        (settings["r"], settings["lora_alpha"]) == (2, BRIEF.alpha) == (further.config["rank"], further.config["alpha"])
    )
    assert Adapter.load(tmp_path / "a").config == further.config
    for other in (dict(rank=4), dict(alpha=3.0), dict(targets="q_proj")):
        with pytest.raises(InputError, match="start from the bare model"):
            finetune(shared("llama"), TALK[:6], TuningConfig(**other), start=old, out=tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()


def test_going_on_asks_no_hub(old, tmp_path, monkeypatch):
    "An adapter from a library names its base by a name that is no folder."
    import peft.utils.save_and_load as saving

    def refuse(*given):
        raise AssertionError("a question to the hub")

    monkeypatch.setattr(saving, "check_file_exists_on_hf_hub", refuse)
    shutil.copytree(old.path, tmp_path / "start")
    file = tmp_path / "start" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(base_model_name_or_path="pocket")))
    finetune(shared("llama"), TALK[:6], BRIEF, start=tmp_path / "start", out=tmp_path / "out", progress=False)


def test_a_start_that_does_not_fit_is_refused(old, tmp_path):
    for model, start in ((tiny("llama", seed=1), old), (tiny("gpt2"), old), (tiny("llama"), tmp_path / "nothing")):
        before = weights(model)
        with pytest.raises(InputError):
            finetune(model, TALK, BRIEF, start=start, out=tmp_path / "out", progress=False)
        assert same(model, before) and not (tmp_path / "out" / "adapter.json").exists()


@pytest.mark.parametrize("content", [b"\x08\0\0\0\0\0\0\0garbage!", None], ids=["garbage", "cut"])
def test_a_damaged_start_leaves_the_model_bare(content, old, tmp_path):
    "peft finds out when its layers are in the model already."
    model = tiny("llama")
    shutil.copytree(old.path, tmp_path / "start")
    file = tmp_path / "start" / "adapter_model.safetensors"
    file.write_bytes(content or file.read_bytes()[:500])
    before, losses, modules = weights(model), model.nll(TEST), [type(m) for m in model.model.modules()]
    with pytest.raises(InputError, match="start: the adapter does not fit this model or is damaged"):
        finetune(model, TALK, BRIEF, start=tmp_path / "start", out=tmp_path / "out", progress=False)
    assert (
        same(model, before)
        and [type(m) for m in model.model.modules()] == modules
        and not hasattr(model.model, "peft_config")
        and np.array_equal(model.nll(TEST), losses)
    )
    assert not (tmp_path / "out" / "adapter.json").exists()
    assert finetune(model, TALK[:6], BRIEF, start=old, progress=False).start_loss == pytest.approx(
        old.best_loss, abs=1e-5
    ), "and goes on"


@pytest.mark.parametrize(
    "steps, checks, looks", [(3, 3, [1, 2, 3]), (4, 9, [1, 2, 3, 4]), (5, 2, [2, 4, 5]), (3, 1, [3])]
)
def test_steps_between_checks(steps, checks, looks):
    "The last step is always a check, so that the last weights can be kept; the training loss is logged there too."
    config = TuningConfig(rank=2, steps=steps, checks=checks, patience=9, batch_size=2, max_length=64)
    adapter = finetune(shared("llama"), TALK, config, progress=False)
    assert [step for step, _, _ in adapter.history] == looks
    assert all(training is not None and loss is not None for _, training, loss in adapter.history)


def test_the_weights_after_the_last_check_can_be_kept():
    config = TuningConfig(rank=2, steps=5, checks=2, batch_size=4, max_length=64, learning_rate=1e-2)
    adapter = finetune(shared("llama"), TALK[:6], config, progress=False)
    losses = [loss for _, _, loss in adapter.history]
    assert losses[-1] == min(losses) == adapter.best_loss, "the loss still fell at the fifth step"


KILLED = TuningConfig(rank=2, steps=2, batch_size=2, max_length=64, checks=2)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_kill_leaves_pairs_and_the_next_run_removes_the_rest(stride, monkeypatch, tmp_path):
    "At file operations of a fine-tune over an older adapter: every fifth, and with --slow every one."
    model, out = shared("llama"), tmp_path / "mine"
    older = finetune(model, TALK[:5], BRIEF, out=tmp_path / "older", progress=False)
    wanted, kept = ["adapter.json", "adapter_config.json", "adapter_model.safetensors"], set()
    for step in range(0, 500, stride):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(older.path, out)
        killed = killed_at(step, monkeypatch, lambda: finetune(model, TALK[5:], KILLED, out=out, progress=False))
        found = Adapter.load(out)
        assert found.parents in (older.parents, tuple(d.id for d in TALK[5:]))
        same_weights = bits(out) == bits(older)
        assert same_weights == (found.parents == older.parents), f"step {step}: weights and card do not belong together"
        kept.add(found.parents)
        if step % (3 * stride) == 0 or not killed:
            finetune(model, TALK[5:], KILLED, out=out, progress=False)
            assert sorted(p.name for p in out.iterdir()) == wanted, f"step {step}: debris"
            assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "older"]
        if not killed:
            break
    assert step > 20 and len(kept) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_in_the_trainers_checkpoint_is_one_line(error, monkeypatch, tmp_path):
    model, real = shared("llama"), torch.save
    older = finetune(model, TALK[:5], BRIEF, out=tmp_path, progress=False)
    before, base = files(tmp_path), weights(model)

    def full(*given, **named):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(InputError, match="cannot be written"):
            finetune(model, TALK[5:], KILLED, out=tmp_path, progress=False)
    assert torch.save is real and files(tmp_path) == before and same(model, base)
    assert Adapter.load(tmp_path) == older
    finetune(model, TALK[5:], KILLED, out=tmp_path, progress=False)
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_leaves_the_older_adapter(monkeypatch, tmp_path):
    "Whichever file cannot be put in its place: the older adapter lies there, or once it was committed the new one, whole."
    model, full = shared("llama"), OSError(28, "No space left on device")
    older = finetune(model, TALK[:5], BRIEF, out=tmp_path / "a", progress=False)
    before, base, real = files(tmp_path / "a"), weights(model), os.replace
    new = TuningConfig(rank=3, steps=1, batch_size=4, max_length=64)
    for k in range(1, 20):
        calls = []

        def replace(*a, **kw):
            calls.append(a)
            if len(calls) == k:
                raise full
            return real(*a, **kw)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                finetune(model, TALK[5:], new, out=tmp_path / "a", progress=False)
            except InputError as error:
                assert "No space" in str(error)
            else:
                assert len(calls) < k
                break
        if Adapter.load(tmp_path / "a").parents != older.parents:  # the new one was committed, and is whole
            assert bits(Adapter.load(tmp_path / "a")) and k > 2
            older = finetune(model, TALK[:5], BRIEF, out=tmp_path / "a", progress=False)
            before = files(tmp_path / "a")
        assert files(tmp_path / "a") == before, f"changed by a failure at replacement {k}: {calls[-1]}"
        assert Adapter.load(tmp_path / "a") == older and same(model, base)
        with model.using(older):
            pass
    assert k > 2 and Adapter.load(tmp_path / "a").parents == tuple(d.id for d in TALK[5:])
