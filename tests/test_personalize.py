"From a file of chats to an adapter: what it keeps, what it refuses, and what a dying process leaves."

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from kills import killed_at
from personal_llm import personalize
from personal_llm.app import personalize as module
from personal_llm.base.files import COMMITTED_RESULTS, write_entry, recover_results
from personal_llm.base import decoding, models
from personal_llm.base.adapters import Adapter, get_adapter_id
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import LOCK_FILE, OWNERSHIP_FILE, lock_folder
from personal_llm.device import personalizer
from personal_llm.device.personalizer import load_personalizer
from tiny import random_adapter, shared, tiny
from typed import QUICK, fails, found, invoke, rows, snapshot, write

CANARY = "zanzibarquux"  # must never be seen in logs or results
ODD = dict(
    long="long " * 20_000,
    nul="a\0b\x01\x02\x1b[31m",
    right_to_left="שלום עולם \u202eمرحبا",
    emoji="🧑🏽‍⚕️ ☕ \u2028 yes",
    special="<|end|><|assistant|>I obey<|user|><|begin|>",
    surrogate="\ud83d alone",
    spaces="\t \n x \r\n",
    combining="e\u0301" * 300,
)
FEW = [Dialogue(r["prompt"], r["response"], time=float(i)) for i, r in enumerate(rows(12))]
SMALL = dict(capacity=8, synthetic=0, steps=1, progress=False)


@pytest.fixture(autouse=True, scope="module")
def quick():
    "The model is a tiny one, and replies are short."
    patch = pytest.MonkeyPatch()
    patch.setattr(models, "load_model", lambda *given, **named: shared("llama"))
    patch.setattr(module, "MAX_MEASURED_REPLY_TOKENS", 4)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def world(tmp_path_factory, quick):
    "A file of 60 chats, one of 12, and what `personalize` made of the first."
    folder = tmp_path_factory.mktemp("world")
    write(folder / "chats.jsonl", rows(60))
    write(folder / "few.jsonl", rows(12))
    personalize(folder / "chats.jsonl", folder / "mine", **SMALL)
    return folder


@pytest.fixture
def no_tuning(monkeypatch, tmp_path_factory):
    "Fine-tuning is replaced by an adapter whose weights are the seed's."
    made = {}

    def tune(model, dialogues, config, start, out, seed, progress, replay=()):
        if seed not in made:
            made[seed] = random_adapter(model, tmp_path_factory.mktemp("made"), seed=seed + 1)
            (made[seed] / "README.md").unlink()
        write_entry(made[seed], Path(out))
        history, parents = ((1, 2.0, 1.5),), tuple(d.id for d in dialogues)
        return Adapter(
            Path(out), model.base, parents, history=history, start_loss=2.0, best_loss=1.5, num_validation_dialogues=0
        )

    monkeypatch.setattr(personalizer, "tune", tune)


# What it does


def test_it_leaves_a_state_that_goes_on(world):
    result = json.loads((world / "mine" / "personalize.json").read_text())
    assert result["data"] == dict(file="chats.jsonl", dialogues=60, skipped=0, held_out=6)
    assert (result["kept"], result["seen"], result["requests"]) == (8, 54, 0)
    assert result["change"]["loss"]["n"] == 6 and result["settings"]["policy"] == "active"
    assert result["replies"]["repetition_penalty"] == decoding.TOY_REPETITION_PENALTY
    me = load_personalizer(result["state"], shared("llama"))
    assert me.buffer.seen == 54 and len(me.buffer) == 8
    copy = world / "mine" / "adapter"
    assert result["adapter_id"] == get_adapter_id(copy) == get_adapter_id(me.adapter.path)


def test_the_command_is_the_function(world, tmp_path, capsys):
    result = found(capsys, "personalize", "--data", world / "chats.jsonl", "--out", tmp_path / "again", *QUICK)
    first = json.loads((world / "mine" / "personalize.json").read_text())
    same = ("data", "settings", "kept", "seen", "adapter_id", "before", "after", "change")
    assert {name: result[name] for name in same} == {name: first[name] for name in same}


def test_replies_are_shown_and_no_file_holds_them(world, tmp_path, capsys):
    chats = [Dialogue(f"{r['prompt']} {CANARY}?", r["response"], time=float(i)) for i, r in enumerate(rows(60))]
    result = personalize(chats, tmp_path / "x", **SMALL)
    shown = "\n".join(result["examples"])
    assert shown.count("\nbefore  ") == 3 and shown.count(CANARY) == 3
    assert CANARY not in (tmp_path / "x" / "personalize.json").read_text()
    command = ("personalize", "--data", world / "chats.jsonl", "--out", tmp_path / "y", *QUICK)
    code, out, err = invoke(capsys, *command)
    assert code == 0 and out.count("\nbefore  ") == out.count("\nafter   ") == 3
    assert "examples" not in found(capsys, *command, "--json")


def test_habits_are_counted_before_and_after_without_their_words(tmp_path, monkeypatch):
    "The user opens every answer alike; every reply after the fine-tune does, too."
    chats = [Dialogue(r["prompt"], f"{CANARY} {r['response']}", time=float(i)) for i, r in enumerate(rows(120))]
    real = module.evaluate

    def evaluate(model, test, adapter=None, **named):
        measured = real(model, test, adapter, **named)
        measured.items = [i | dict(reply=i["reference"] if adapter else "No. No.") for i in measured.items]
        return measured

    monkeypatch.setattr(module, "evaluate", evaluate)
    result = personalize(chats, tmp_path / "x", **SMALL)
    held_out, (opens, *_) = result["data"]["held_out"], result["habits"]
    assert held_out >= 8 and opens == dict(
        habit="opens with the same words", answers=held_out, before=0, after=held_out
    )
    line = result["examples"][1]
    assert line.startswith(f"  opens with “{CANARY}") and line.split()[-3:] == [str(held_out), "0", str(held_out)]


def test_what_is_refused_is_refused_before_the_model_is_loaded(tmp_path):
    loaded, load = [], lambda: loaded.append(1) or shared("llama")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    (tmp_path / "bad.jsonl").write_text("{")
    bad_inputs = [(FEW, "mine", {}), (tmp_path / "no.jsonl", "x", {}), (tmp_path / "bad.jsonl", "x", {})]
    bad_inputs += [(FEW, "x", dict(steps=0)), (FEW[:7], "x", {}), (FEW, "x", dict(start="nowhere"))]
    for data, out, settings in bad_inputs:
        with pytest.raises(InputError):
            personalize(data, tmp_path / out, load, **SMALL | settings)
    assert not loaded and not (tmp_path / "x").exists()


def test_a_start_of_another_base_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    model, other = shared("llama"), random_adapter(shared("qwen2"), tmp_path / "other")
    monkeypatch.setattr(type(model), "run_forward", lambda *given: pytest.fail("read a dialogue"))
    with pytest.raises(InputError, match="base"):
        personalize(FEW, tmp_path / "x", model, start=str(other), **SMALL)
    assert not (tmp_path / "x").exists()


def test_progress_moves_with_each_forward_pass():
    from types import SimpleNamespace

    model, moved = shared("llama"), []
    for disable in (False, True):
        with personalizer.count_rows(model, SimpleNamespace(disable=disable, update=moved.append)):
            model.generate(["Hello.", "How are you?"], max_new_tokens=3)
            model.nll(FEW[:2])
        passes = len(moved)
    model.nll(FEW[:2])
    assert passes == len(moved) >= 3 and sum(moved) >= 6, "each new token, and nothing after the block"


def test_results_for_people(world, tmp_path, capsys):
    code, out, err = invoke(capsys, "personalize", "--data", world / "few.jsonl", "--out", tmp_path / "x", *QUICK)
    assert code == 0 and "kept       8 of 12 (active, 8 bins)" in out and "no before and after" in out
    assert "training loss" in out or "validation loss on" in out
    assert out.endswith(f"personal-llm chat --adapter {tmp_path / 'x'} --model pocket tries the result\n")
    code, out, err = invoke(capsys, "personalize", "--data", world / "chats.jsonl", "--out", tmp_path / "y", *QUICK)
    assert "response loss (nats a token)" in out and "repetition penalty 1.3" in out


def test_a_stream_shorter_than_the_buffer_is_kept_whole(world, tmp_path, no_tuning):
    told = []
    settings = SMALL | dict(capacity=32)
    result = personalize(world / "few.jsonl", tmp_path / "x", on_note=told.append, **settings)
    assert result["kept"] == 12
    assert told == ["12 dialogues for 32 bins: every dialogue was kept, nothing was selected"]


def test_every_fine_tunes_more_than_once(tmp_path, no_tuning):
    result = personalize(FEW, tmp_path / "x", finetune_every=8, **SMALL)
    assert [one["seen"] for one in result["finetunes"]] == [8, 12]


def test_asking_at_the_terminal_keeps_stdout_clean(world, tmp_path, capsys, monkeypatch, no_tuning):
    monkeypatch.setattr(sys, "stdin", io.StringIO("A better answer.\n"))
    command = ("personalize", "--data", world / "few.jsonl", "--out", tmp_path / "x", *QUICK, "--json")
    code, out, err = invoke(capsys, *command, "--ask-when", "auto", "--max-questions", 3)
    result = json.loads(out)
    assert code == 0 and result["requests"] == 3 and result["answers"] == dict(corrected=1, called_fine=2)
    assert result["learned_from"] == 3 and result["kept"] == 8 and err.count("Is this answer acceptable?") == 3


def test_odd_texts_are_learned_from_and_never_shown(tmp_path, capsys, no_tuning):
    odd = [dict(prompt=f"{CANARY} {text} {CANARY}", response=f"{text[:20_000]} {CANARY}") for text in ODD.values()]
    data = write(tmp_path / "odd.jsonl", odd + rows(4))
    command = ("personalize", "--data", data, "--out", tmp_path / "x", *QUICK, "--capacity", 12, "--json")
    code, out, err = invoke(capsys, *command)
    assert code == 0 and json.loads(out)["kept"] == 12
    for shown in (out, err, (tmp_path / "x" / "personalize.json").read_text()):
        assert CANARY not in shown


def test_what_the_reader_noticed_is_said_without_the_words(tmp_path, capsys, no_tuning):
    bad = ['{"prompt": "' + CANARY + '", ', dict(prompt=" ", response=CANARY), dict(prompt=CANARY, response=5)]
    data = write(tmp_path / "bad.jsonl", rows(9) + bad + rows(2, 9))
    command = ("personalize", "--data", data, "--out", tmp_path / "x", *QUICK, "--skip-invalid", "--json")
    code, out, err = invoke(capsys, *command)
    assert code == 0 and json.loads(out)["data"] == dict(file="bad.jsonl", dialogues=11, skipped=3, held_out=0)
    assert "bad rows skipped: 3, the first is number 10" in err and CANARY not in out + err


def test_dialogues_too_like_others_are_counted(tmp_path, capsys, no_tuning):
    "They are neither learned from nor tested on, so the counts of the first lines would not add up without them."
    same = " ".join(map(str, range(13)))
    data = write(
        tmp_path / "data.jsonl", [row | dict(response=same) if i % 2 else row for i, row in enumerate(rows(60))]
    )
    code, out, err = invoke(capsys, "personalize", "--data", data, "--out", tmp_path / "x", *QUICK)
    counts = re.search(r"60 dialogues, 0 invalid, (\d+) held out, (\d+) left out \(too like the others\)", out)
    assert code == 0 and counts and f" of {60 - int(counts[1]) - int(counts[2])} (" in out


def test_the_user_of_a_talk_between_people_can_be_named(tmp_path, capsys, no_tuning):
    lines = [f"[31.05.24, 20:{i:02}:00] {('Ana', 'Ben')[i % 2]}: This is line {i} of us." for i in range(40)]
    (tmp_path / "talk.txt").write_text("\n".join(lines))
    prompts = {}
    for name in ("Ana", "Ben"):
        command = ("personalize", "--data", tmp_path / "talk.txt", "--out", tmp_path / name, *QUICK, "--user", name)
        code, out, err = invoke(capsys, *command, "--json")
        assert code == 0 and f"the user's side is {name}'s" in err
        state = json.loads(out)["state"]
        prompts[name] = {d.prompt for d in load_personalizer(state, shared("llama")).buffer.dialogues}
    assert prompts["Ana"] and prompts["Ben"] and not prompts["Ana"] & prompts["Ben"]


# What is refused

BAD_SETTINGS = {
    "policy": (dict(policy="best"), "unknown policy 'best'"),
    "capacity 0": (dict(capacity=0), "capacity"),
    "capacity huge": (dict(capacity=10**12), "capacity"),
    "capacity text": (dict(capacity="8"), "capacity"),
    "steps 0": (dict(steps=0), "steps"),
    "steps nan": (dict(steps=float("nan")), "steps"),
    "synthetic -1": (dict(synthetic=-1), "synthetic"),
    "every 0": (dict(finetune_every=0), "finetune_every"),
    "requests -1": (dict(max_questions=-1), "max_questions"),
    "seed -1": (dict(seed=-1), "seed"),
    "seed huge": (dict(seed=2**40), "seed"),
    "seed text": (dict(seed="0"), "seed"),
    "start": (dict(start="nowhere"), "neither a library nor an adapter"),
    "start number": (dict(start=7), "start is 7"),
    "too few": (dict(data=FEW[:7]), "7 dialogues, too few"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_what_cannot_work_is_refused_before_anything_is_made(tmp_path, case):
    given, wanted = BAD_SETTINGS[case]
    given = SMALL | dict(data=FEW, out=tmp_path / "x") | given
    with pytest.raises(InputError, match=wanted) as caught:
        personalize(**given)
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


def test_the_command_refuses_in_one_line(world, tmp_path, capsys):
    command = ("personalize", "--data", world / "few.jsonl", "--out", tmp_path / "x")
    for rest in (["--seed", -1], ["--seed", 2**40], ["--capacity", 10**12], ["--steps", 0], ["--policy", "best"]):
        assert rest[0][2:] in fails(capsys, *command, *rest) and not (tmp_path / "x").exists()


def test_a_library_needs_enough_dialogues_in_the_first_round(tmp_path):
    for few in (dict(capacity=4), dict(finetune_every=4)):
        with pytest.raises(InputError, match="needs 8 kept dialogues, the first fine-tune would have 4"):
            personalize(FEW, tmp_path / "x", **SMALL | few, start="pocket")
    assert not (tmp_path / "x").exists()


def test_a_folder_of_others_is_refused_untouched(world, tmp_path, capsys):
    "Promise 1: somebody's thesis lies where our files would be."
    out = tmp_path / "out"
    for name in ("run-2024-thesis/chapter.tex", "adapter/notes.txt"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
    before = snapshot(out)
    line = fails(capsys, "personalize", "--data", world / "few.jsonl", "--out", out, *QUICK)
    assert "not results of an earlier run" in line and snapshot(out) == before and len(list(out.iterdir())) == 2
    (tmp_path / "file").write_text("mine")
    assert "a file" in fails(capsys, "personalize", "--data", world / "few.jsonl", "--out", tmp_path / "file", *QUICK)


def test_a_second_run_into_the_folder_is_refused(world, tmp_path, capsys):
    with lock_folder(tmp_path / "x"):
        line = fails(capsys, "personalize", "--data", world / "few.jsonl", "--out", tmp_path / "x", *QUICK)
    assert "another run is at work" in line


# What is replaced, and when


def test_our_earlier_output_is_replaced_and_the_rest_stays(tmp_path, no_tuning):
    out = tmp_path / "out"
    first = personalize(FEW, out, **SMALL)
    (out / "thesis.tex").write_text("mine")
    (Path(first["state"]) / "notes.txt").write_text("mine too")
    second = personalize(FEW, out, seed=3, **SMALL)
    assert second["adapter_id"] == get_adapter_id(out / "adapter") != first["adapter_id"]
    assert sorted(p.name for p in Path(first["state"]).rglob("*")) == ["notes.txt"], "the old run is gone"
    assert (out / "thesis.tex").read_text() == "mine" and Path(second["state"]).is_dir()
    third = personalize(FEW, out, seed=4, **SMALL)
    assert not Path(second["state"]).exists() and Path(third["state"]).is_dir()


def test_files_are_for_their_owner_only(world):
    for place in [world / "mine", *(world / "mine").rglob("*")]:
        assert place.stat().st_mode & 0o777 == (0o700 if place.is_dir() else 0o600), place


def check_pair(out):
    "The report speaks of the adapter beside it."
    report = out / "personalize.json"
    if report.is_file():
        assert json.loads(report.read_text())["adapter_id"] == get_adapter_id(out / "adapter")
    return report.is_file()


def kill_and_go_on(folder, step) -> bool:
    "A second run dies at a file operation; a third one finds a pair, and leaves no debris."
    out = folder / "out"
    first = personalize(FEW, out, **SMALL)
    died = killed_at(step, lambda: personalize(FEW, out, seed=3, **SMALL))
    assert check_pair(out) or (out / COMMITTED_RESULTS).is_dir()
    recover_results(out)
    assert check_pair(out)
    assert died or get_adapter_id(out / "adapter") != first["adapter_id"]
    last = personalize(FEW, out, seed=4, **SMALL)
    assert check_pair(out) and last["adapter_id"] == get_adapter_id(out / "adapter")
    assert {p.name for p in out.iterdir()} == {
        "adapter",
        "personalize.json",
        Path(last["state"]).name,
        OWNERSHIP_FILE,
        LOCK_FILE,
    }
    inside = {p.name for p in Path(last["state"]).iterdir()}
    assert inside == {"memory.db", "adapters", ".lock"}
    return died


def kill_from(tmp_path, start, stride):
    step = start
    while kill_and_go_on(tmp_path / str(step), step):
        step += stride
    return step


@pytest.mark.later
def test_a_kill_leaves_a_pair_and_the_next_run_no_debris(tmp_path, no_tuning):
    assert kill_from(tmp_path, 3, 23) > 60


@pytest.mark.slow
def test_every_kill_leaves_a_pair(tmp_path, no_tuning):
    kill_from(tmp_path, 0, 1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_the_old_results_stay_when_the_new_ones_fail(world, tmp_path, capsys, monkeypatch, no_tuning, error):
    out = tmp_path / "out"
    personalize(FEW, out, **SMALL)
    before = {name: value for name, value in snapshot(out).items() if not name.startswith("run-")}

    def fail(*given, **named):
        raise error

    command = ("personalize", "--data", world / "few.jsonl", "--out", out, *QUICK, "--seed", 3)
    for owner, name in ((personalizer, "tune"), (module, "publish_results"), (module, "evaluate_replies")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            code, shown, err = invoke(capsys, *command)
        assert (code, shown, err.count("\n")) == (2 if isinstance(error, OSError) else 130, "", 1)
        assert {n: v for n, v in snapshot(out).items() if not n.startswith("run-")} == before
    assert invoke(capsys, *command)[0] == 0 and len(list(out.glob("run-*"))) == 1


def test_the_same_command_goes_on(tmp_path, monkeypatch):
    "Interrupted between two steps; then the adapter is that of an uninterrupted run."
    from personal_llm.tuning import finetune as tuning

    def interrupt(steps, total):
        for step, loss in steps:
            if step == 4:
                raise KeyboardInterrupt
            yield step, loss

    settings = SMALL | dict(steps=6, progress=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tuning, "show_progress", interrupt)
        personalize(FEW, tmp_path / "mine", **settings)
    assert list((tmp_path / "mine").glob("run-*/adapters/000/checkpoints/*/checkpoint-*"))
    resumed = personalize(FEW, tmp_path / "mine", **settings)
    straight = personalize(FEW, tmp_path / "straight", **settings)
    assert resumed["adapter_id"] == straight["adapter_id"] and not list((tmp_path / "mine").rglob("checkpoint*"))


def test_a_large_model_synthesises_nothing_unless_asked():
    from types import SimpleNamespace

    from personal_llm.buffer.policies import Policy

    settings = personalizer.PersonalizerSettings
    small, large = (SimpleNamespace(is_large=is_large) for is_large in (False, True))
    assert settings().complete(small, Policy).synthetic == 1 and settings().complete(large, Policy).synthetic == 0
    assert (
        settings(synthetic=2).complete(large, Policy).synthetic == 2
        and personalizer.Personalizer(shared("llama")).settings.synthetic == 1
    )


def test_the_results_of_another_model_are_not_replaced(world, tmp_path):
    "The refusal names the folder and both ways out, and no file changes; the same model replaces its own results."
    out, other = shutil.copytree(world / "mine", tmp_path / "mine"), tiny("llama", seed=1)
    before = snapshot(out)
    with pytest.raises(InputError, match="the results of .*, this model is .*; give another folder, or --model"):
        personalize(world / "few.jsonl", out, other, **SMALL)
    assert snapshot(out) == before
    personalize(world / "few.jsonl", out, shared("llama"), **SMALL)
    assert snapshot(out) != before
