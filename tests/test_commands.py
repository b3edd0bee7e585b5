"Evaluate, check and chat on the command line."

import io
import itertools
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from personal_llm import Buffer, Dialogue, Personalizer, TuningConfig, personalize, read_dialogues
from personal_llm.app import personalize as module
from personal_llm.app.arguments import ModelOptions
from personal_llm.base.core import InputError
from personal_llm.base.files import COMMITTED_RESULTS, write_entry
from personal_llm.base import decoding, models
from personal_llm.base.adapters import CONFIG_FILE, WEIGHTS_FILE
from personal_llm.base.files import OwnedFolder, delete_path, write_json
from personal_llm.base.ledger import get_ledger_file, record_egress
from personal_llm.base.lineage import read_training_ids
from personal_llm.device.memory import remove_adapter
from personal_llm.device.replay import TrainingRound, read_state
from personal_llm.tuning.evaluation import Evaluation
from tiny import shared, tiny
from typed import fails, found, invoke, rows, snapshot, write


@pytest.fixture(autouse=True, scope="module")
def quick():
    patch, other = pytest.MonkeyPatch(), tiny("llama", seed=1)
    patch.setattr(models, "load_model", lambda name="pocket", **named: other if name == "other" else shared("llama"))
    patch.setattr(module, "MAX_MEASURED_REPLY_TOKENS", 4)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def world(tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp("world")
    write(folder / "few.jsonl", rows(12))
    personalize(folder / "few.jsonl", folder / "mine", capacity=8, synthetic=0, steps=1, progress=False)
    return folder


def fail_to_load():
    raise InputError("no model", "install one")


def test_evaluate_says_when_it_tests_on_what_was_learned(world, capsys):
    code, out, err = invoke(capsys, "evaluate", "--data", world / "few.jsonl", "--adapter", world / "mine", "--json")
    result = json.loads(out)
    assert code == 0 and result["data"]["learned_from"] == 8 and result["change"]["loss"]["n"] == 12
    assert err.count("\n") == 1 and "8 of 12 dialogues" in err
    assert result["replies"] == dict(max_new_tokens=4, repetition_penalty=decoding.TOY_REPETITION_PENALTY)


def test_a_published_card_names_no_dialogue(world, tmp_path, capsys):
    "The ids are in the store beside it, so we know them and a reader of a copy does not."
    run = next((world / "mine").glob("run-*"))
    ids = read_training_ids(world / "mine" / "adapter")
    assert len(ids) == 8 and ids == {*read_state(run).rounds[-1].parents}
    copy = shutil.copytree(world / "mine" / "adapter", tmp_path / "copy")
    content = b"".join(file.read_bytes() for file in copy.iterdir())
    assert not any(id.encode() in content for id in ids) and read_training_ids(copy) == set()
    assert found(capsys, "evaluate", "--data", world / "few.jsonl", "--adapter", copy)["data"]["learned_from"] == 0


def test_evaluate_for_people(world, capsys):
    command = ("evaluate", "--data", world / "few.jsonl", "--adapter", world / "mine" / "adapter")
    code, out, err = invoke(capsys, *command)
    assert code == 0 and "response loss (nats a token)" in out and "[" in out and "repetition penalty 1.3" in out


def test_evaluate_finishes_what_a_killed_run_committed(world, tmp_path, capsys):
    "The new adapter was committed, and is half in its place."
    mine = shutil.copytree(world / "mine", tmp_path / "mine")
    write_entry(mine / "adapter", OwnedFolder(mine).claim(COMMITTED_RESULTS) / "adapter")
    delete_path(mine / "adapter")
    assert found(capsys, "evaluate", "--data", world / "few.jsonl", "--adapter", mine)["model"]
    assert (mine / "adapter").is_dir() and not (mine / COMMITTED_RESULTS).exists()


@pytest.mark.parametrize(
    "name, content",
    [
        ("adapter_model.safetensors", b"\x08\0\0\0\0\0\0\0garbage!"),
        ("adapter.json", b"{"),
        ("adapter.json", b"[" * 100_000),
        ("adapter_config.json", None),
    ],
)
def test_damaged_adapters_are_one_line(world, tmp_path, capsys, name, content):
    folder = shutil.copytree(world / "mine" / "adapter", tmp_path / "adapter")
    (folder / name).write_bytes(content) if content else (folder / name).unlink()
    new = write(tmp_path / "new.jsonl", rows(4, 100))
    fails(capsys, "evaluate", "--data", new, "--adapter", folder)


def test_another_models_adapter_is_refused(world, capsys):
    command = ("evaluate", "--data", world / "few.jsonl", "--adapter", world / "mine", "--model", "other")
    assert "made for base" in fails(capsys, *command)


def test_chat_with_an_adapter_answers_and_keeps_nothing(world, capsys, monkeypatch):
    before = snapshot(world / "mine")
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n/up\n/status\n\x1b[31mtwo\n"))
    code, out, err = invoke(capsys, "chat", "--quiet", "--adapter", world / "mine")
    assert "thank you; noted until you leave, and /learn" in out and "stored" not in out
    assert code == 0 and "1/32 dialogues" in out and "\x1b" not in out and snapshot(world / "mine") == before
    fails(capsys, "chat", "--adapter", world / "mine", "--out", world / "mine")
    fails(capsys, "chat", "--out", world / "mine")


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_model_loads(command, tmp_path, capsys, monkeypatch):
    if command == "serve":
        pytest.importorskip("uvicorn")
    (tmp_path / "file").touch()
    loads = []
    monkeypatch.setattr(ModelOptions, "load", lambda self: loads.append(self) or fail_to_load())
    assert "cannot be made" in fails(capsys, command, "--out", tmp_path / "file" / "x", "--quiet") and not loads
    assert "no model" in fails(capsys, command, "--out", tmp_path / "new" / "x", "--quiet")
    assert len(loads) == 1 and [path.name for path in tmp_path.iterdir()] == ["file"], "no new folder is left"


def test_chat_prints_json_lines_when_asked(world, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n/status\n"))
    code, out, err = invoke(capsys, "chat", "--quiet", "--json")
    turns = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [turn["line"] for turn in turns] == ["one", "/status"]
    assert turns[0]["output"] and "1/32 dialogues" in turns[1]["output"]


def test_one_dialogue_is_counted_in_the_singular():
    with pytest.raises(InputError, match="^1 dialogue, too few"):
        module.check_dialogue_count(module.PersonalizeSettings(), None, [Dialogue("a", "b")])
    assert str(Evaluation([], dict(n=1))) == "evaluation: 1 dialogue"
    losses = dict(num_validation_dialogues=1, kept=2, synthetic=0, cut=0, start_loss=2.0, best_loss=1.0, steps=3)
    assert "(on 1 validation dialogue)" in TrainingRound.__str__(SimpleNamespace(**losses))


def test_chat_without_an_input_ends(capsys, monkeypatch):
    "A service manager closes stdin; Python then has none."
    monkeypatch.setattr(sys, "stdin", None)
    assert invoke(capsys, "chat", "--quiet")[:2] == (0, "")


def test_status_names_the_adapter_that_personalize_named(world, tmp_path, capsys):
    mine = shutil.copytree(world / "mine", tmp_path / "mine")
    status = found(capsys, "status", "--out", mine)
    assert status["adapter"] == str(mine / "adapter")
    shutil.rmtree(mine / "adapter")
    assert found(capsys, "status", "--out", mine)["adapter"].startswith(status["folder"])


def test_a_dry_run_of_forget_deletes_nothing(world, tmp_path, capsys):
    mine = shutil.copytree(world / "mine", tmp_path / "mine")
    before = snapshot(mine)
    forget = ("forget", "--out", mine, "--containing", "thing number 3")
    code, out, err = invoke(capsys, *forget, "--dry-run")
    assert code == 0 and "nothing was deleted" in out and snapshot(mine) == before
    planned = found(capsys, *forget, "--dry-run")
    done = found(capsys, *forget)
    assert planned["dry_run"] and planned["dialogues"] == done["dialogues"] and snapshot(mine) != before


@pytest.mark.later
def test_a_rebuilt_adapter_equals_one_that_never_saw_the_dialogue(tmp_path, capsys):
    "To the byte: the weights and settings of a run on the other dialogues. They are published again."
    own, out, settings = rows(12), tmp_path / "out", dict(capacity=16, steps=3, progress=False, synthetic=1)
    victim = read_dialogues(own)[5]
    personalize(own, out, **settings)
    personalize([d for d in read_dialogues(own) if d.id != victim.id], tmp_path / "never", **settings)
    forget = ("forget", "--out", out, "--id", victim.id)
    with_it = (out / "adapter" / WEIGHTS_FILE).read_bytes()
    planned = found(capsys, *forget, "--retrain", "--dry-run")
    assert planned["rebuildable"] == ["adapter 000 on 11 of its 12 dialogues"] and planned["rebuilt"] == []
    assert (out / "adapter" / WEIGHTS_FILE).read_bytes() == with_it
    assert found(capsys, *forget)["adapters"] and not (out / "adapter").exists(), "refused until it is rebuilt"
    done = found(capsys, "forget", "--out", out, "--retrain")
    assert done["rebuilt"] == ["adapter 000: rebuilt on 11 of its 12 dialogues"]
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        assert (out / "adapter" / name).read_bytes() == (tmp_path / "never" / "adapter" / name).read_bytes() != with_it
    assert found(capsys, "forget", "--out", out, "--retrain")["rebuilt"] == ["no deleted adapter can be rebuilt"]


def test_forget_names_what_left_the_device(world, tmp_path, capsys, monkeypatch):
    "An export and a bundle are out of reach; the ledger knows both, and neither ids nor words."
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert found(capsys, "ledger") == dict(ledger=[])
    assert invoke(capsys, "ledger")[1] == "nothing has left this device\n"
    mine, ids = shutil.copytree(world / "mine", tmp_path / "mine"), [d.id for d in read_dialogues(rows(12))]
    found(capsys, "export", tmp_path / "for vllm", "--to", "vllm", "--adapter", mine)
    for name, parents in (("bundle", ids[:8]), ("other", ["x"])):
        write_json(tmp_path / name / "manifest.json", dict(card=dict(parents=parents)))
    for name in ("bundle", "other", "moved"):
        with record_egress("bundle", tmp_path / name) as row:
            row["bytes"] = 7
    listed = found(capsys, "ledger")["ledger"]
    assert [(row["kind"], row["place"]) for row in listed][0] == ("export", str(tmp_path / "for vllm"))
    assert all(row["bytes"] > 0 for row in listed) and len(listed) == 4
    ledger = get_ledger_file().read_bytes()
    assert not any(name.encode() in ledger for name in ids) and b"thing" not in ledger
    forget = ("forget", "--out", mine, "--all")
    for more in (("--dry-run",), ()):
        out = " ".join(found(capsys, *forget, *more)["unreachable"])
        assert "export of 20" in out and str(tmp_path / "for vllm") in out
        assert str(tmp_path / "bundle") in out and str(tmp_path / "moved") in out, "a moved one may hold it"
        assert str(tmp_path / "other") not in out


def test_export_refuses_a_full_folder_before_it_loads_a_model(world, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    monkeypatch.setattr(ModelOptions, "load", lambda self: pytest.fail("a model was loaded"))
    assert "exists already" in fails(capsys, "export", tmp_path / "full", "--to", "vllm", "--adapter", world / "mine")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.tex"]


@pytest.fixture
def talk(tmp_path, quick):
    "The saved folder of a personalizer with four corrections."
    folder, clock = tmp_path / "talk", itertools.count(1.0).__next__
    me = Personalizer(models.load_model(), Buffer(8, "fifo"), folder=folder, synthetic=0, config=TuningConfig(steps=1))
    for n, word in enumerate("sea moon tea bread rain song glass hill".split()):
        me.observe(d := Dialogue(f"What is the {word}?", f"It is a {word}.", time=clock()))
        if n % 2:
            me.react(d, "better", f"Dear friend, a {word}.")
    me.finetune(progress=False)
    me.save()
    return folder


def test_forget_names_a_copy_of_an_example(talk, tmp_path, capsys, monkeypatch):
    "The Modelfile holds texts of the user: whoever forgets one of them learns where its copy lies."
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    adapter = read_state(talk).rounds[-1].adapter
    places = [tmp_path / name for name in ("here", "moved", "alone")]
    done = [found(capsys, "export", place, "--to", "ollama", "--adapter", talk) for place in places[:2]]
    assert all("the Modelfile holds 4 answers of yours as examples" in each["usage"] for each in done)
    assert (places[0] / "adapter.gguf").is_file() and found(capsys, "ledger")["ledger"][0]["id_file"] == "Modelfile"
    same = found(capsys, "export", tmp_path / "by adapter", "--to", "ollama", "--adapter", adapter)
    assert "4 answers" in same["usage"]
    shutil.copytree(adapter, tmp_path / "copy")
    done = found(capsys, "export", places[2], "--to", "ollama", "--adapter", tmp_path / "copy")
    assert "no examples" in done["usage"] and "MESSAGE" not in (places[2] / "Modelfile").read_text()
    text, state = (places[0] / "Modelfile").read_text(), read_state(talk)
    ids = [id for id in state.memory.dialogues if f"# dialogue {id}" in text]
    assert len(ids) == 4 and not any(id.encode() in get_ledger_file().read_bytes() for id in state.memory.dialogues)
    shutil.move(places[1], tmp_path / "elsewhere")
    remove_adapter(Path(adapter))
    for id, is_copied in ((ids[0], True), (next(id for id in state.memory.dialogues if id not in ids), False)):
        notes = found(capsys, "forget", "--out", talk, "--id", id, "--dry-run")["unreachable"]
        assert any(str(places[0]) in note for note in notes) == is_copied
        assert any(str(places[1]) in note for note in notes), "a moved one may hold it"
        assert not any(str(places[2]) in note for note in notes)
