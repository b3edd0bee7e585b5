"Commands on one memory: learned from a file, shown, evaluated, exported, talked with and forgotten."

import contextlib
import io
import json
import shutil
import sqlite3
import sys

import pytest

from personal_llm.app.personalize import find_adapter
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import ASSETS
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.policies import POLICIES
from personal_llm.data.reading import read_dialogues
from personal_llm.device.archive import hold_folder
from personal_llm.device.personalizer import Personalizer
from servers import pocket
from typed import fails, found, invoke, rows, snapshot, write

BRIEF = ("--steps", 2, "--rank", 3, "--dropout", 0.1, "--capacity", 8, "--quiet")


@pytest.fixture(scope="module", autouse=True)
def short_replies():
    "Of eight tokens where they are measured: nothing here is about a whole one."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[find_adapter.__module__], "MEASURED_TOKENS", 8)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with chats and the output of personalize."
    from personal_llm.app import cli

    home = tmp_path_factory.mktemp("home")
    chats = [d.to_dict() for d in read_dialogues(ASSETS / "samples" / "chats.jsonl")[:60]]
    write(home / "chats.jsonl", [dict(prompt=row["prompt"], response=row["response"]) for row in chats])
    words = ["personalize", "--data", home / "chats.jsonl", "--out", home / "mine", "--policy", "sdss", *BRIEF]
    assert cli.main(words) == 0
    return home


@pytest.fixture
def mine(home, tmp_path):
    "A copy of the memory, which a test may change."
    return shutil.copytree(home / "mine", tmp_path / "mine")


def test_status_shows_numbers_and_no_text(home, capsys):
    status = found(capsys, "status", "--out", home / "mine")
    assert status["finetunes"] == 1 and (status["bins"], status["policy"], status["seen"]) == ("8/8", "sdss", 54)
    text = str(status)
    assert not any(d.prompt in text for d in read_dialogues(home / "chats.jsonl"))


def test_evaluate_takes_an_output_folder_and_an_adapter(home, capsys):
    data = write(home / "few.jsonl", (home / "chats.jsonl").read_text().splitlines()[:2])
    first = found(capsys, "evaluate", "--data", data, "--adapter", home / "mine")
    assert invoke(capsys, "evaluate", "--data", data, "--adapter", home / "mine", "--quiet")[2] == ""
    second = found(capsys, "evaluate", "--data", data, "--adapter", find_adapter(home / "mine"), "--model", "pocket")
    assert first["change"] == second["change"] and first["change"]["loss"]["before"] > 0
    ids = [d.id for d in read_dialogues(data)]
    adapter = shutil.copytree(find_adapter(home / "mine"), home / "known")
    card = json.loads((adapter / "adapter.json").read_text())
    (adapter / "adapter.json").write_text(json.dumps(card | dict(parents=[*ids[:2], "another"])))
    words = ("evaluate", "--data", data, "--adapter", adapter, "--model", "pocket")
    assert "trained on 2 of these dialogues" in invoke(capsys, *words)[1] and first["learned"] <= 2


def test_a_second_file_goes_on_and_the_same_one_is_refused(home, mine, capsys):
    before = snapshot(mine)
    words = ("personalize", "--data", home / "chats.jsonl", "--out", mine, *BRIEF)
    code, out, err = invoke(capsys, *words)
    assert code == 2 and "learned before" in err and snapshot(mine) == before
    new = write(home / "new.jsonl", [dict(prompt=f"What is thing {i}?", response=f"A toy {i}.") for i in range(10)])
    code, out, err = invoke(capsys, "personalize", "--data", new, "--out", mine, *BRIEF, "--json")
    assert code == 0 and json.loads(out)["seen"] == 64 and err == "", "--quiet leaves no note"


def test_forget_lists_and_asks(mine, capsys, monkeypatch):
    prompt = sqlite3.connect(mine / "memory.sqlite").execute("SELECT prompt FROM dialogues LIMIT 1").fetchone()[0]
    words = ("forget", "--out", mine, "--containing", prompt)
    before = snapshot(mine)
    assert "without a terminal" in fails(capsys, *words)
    lock = hold_folder(mine)
    assert "program is at work" in fails(capsys, *words, "--yes")
    lock.release()
    code, out, _ = invoke(capsys, *words, "--dry-run")
    assert code == 0 and "dry run" in out and "dialogue: " in out
    monkeypatch.setattr("personal_llm.app.commands.is_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("no\n"))
    assert invoke(capsys, *words)[0] == 2 and snapshot(mine) == before
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert invoke(capsys, *words)[0] == 0
    assert prompt.encode() not in (mine / "memory.sqlite").read_bytes()
    assert "no stored dialogue matches" in fails(capsys, *words)
    assert "no dialogue 'nope' is stored" in fails(capsys, "forget", "--out", mine, "--id", "nope")
    assert "--everything alone" in fails(capsys, "forget", "--out", mine)
    assert "--everything alone" in fails(capsys, *words, "--everything", "--yes"), "never more than what was named"


def test_everything_goes_even_from_a_damaged_folder(mine, capsys):
    content = bytearray((mine / "memory.sqlite").read_bytes())
    content[200:] = b"x" * (len(content) - 200)
    (mine / "memory.sqlite").write_bytes(content)
    (mine / "notes.txt").write_text("mine")
    assert "damaged" in fails(capsys, "status", "--out", mine)
    assert found(capsys, "forget", "--out", mine, "--everything", "--yes")["deleted"]
    assert [file.name for file in mine.iterdir() if file.name != ".lock"] == ["notes.txt"]


def test_export_writes_new_files(mine, tmp_path, capsys):
    result = found(capsys, "export", tmp_path / "vllm", "--to", "vllm", "--adapter", mine)
    assert "adapter_model.safetensors" in result["files"]
    assert "vllm" in fails(capsys, "export", tmp_path / "vllm", "--to", "vllm", "--adapter", mine).splitlines()[-1]
    assert "forgetting doesn't delete copies" in fails(capsys, "export", mine / "v", "--to", "vllm", "--adapter", mine)


def test_chat_reads_a_pipe_and_goes_on(mine, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is tea?\n/better In short: a drink.\n"))
    code, out, err = invoke(capsys, "chat", "--out", mine)
    assert code == 0 and "Applies to similar prompts" in out and "loading the model pocket" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("/always Write as Ana.\n/status\n"))
    out = invoke(capsys, "chat", "--out", mine)[1]
    assert "replies corrected       1" in out and "Ana" not in out, "numbers, and no text"
    latin = io.TextIOWrapper(io.BytesIO("/always Un café\nDu th\xe9 ?\n".encode("latin-1")), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", latin)
    code, out, err = invoke(capsys, "chat", "--out", mine)
    assert code == 0 and out.count("the text is not UTF-8; nothing of it was stored") == 2
    assert found(capsys, "status", "--out", mine)["stored"] == 55, "54 of the file, and one turn"


def test_learn_trains_on_what_was_corrected(tmp_path, capsys, monkeypatch):
    me = tmp_path / "me"
    given = ("--steps", 2, "--learning-rate", 2e-3, "--batch-size", 1, "--max-length", 99)

    def learn_after(talk: str, *more) -> bool:
        monkeypatch.setattr(sys, "stdin", io.StringIO(talk))
        invoke(capsys, "chat", "--out", me)
        return found(capsys, "learn", "--out", me, *given, *more)["learned"]

    assert not learn_after("What is milk?\n")
    assert learn_after("What is tea?\n/better In short: a drink.\n", "--rank", 3, "--dropout", 0.1)
    assert learn_after("What is rain?\n/better In short: water.\n")
    config = json.loads((find_adapter(me) / "adapter.json").read_text())["config"]
    assert [config[name.lstrip("-").replace("-", "_")] for name in given[::2]] == [*given[1::2]]
    assert (config["rank"], config["dropout"]) == (3, 0.1), "those of the first fine-tune"


def test_a_memory_whose_policy_is_not_installed_is_read_and_forgotten(tmp_path, capsys, monkeypatch):
    out = tmp_path / "me"
    monkeypatch.setitem(POLICIES, "theirs", type("Theirs", (POLICIES["fifo"],), {}))
    POLICIES["theirs"].name = "theirs"
    chats = write(tmp_path / "chats.jsonl", rows(9))
    with contextlib.closing(Personalizer(pocket(), Buffer(4, "theirs"), folder=out)) as me:
        me.observe_all(read_dialogues(str(chats)), progress=False)
    monkeypatch.delitem(POLICIES, "theirs")
    assert found(capsys, "status", "--out", out)["policy"] == "theirs"
    deleted = found(capsys, "forget", "--out", out, "--containing", "thing number 3", "--yes")["deleted"]
    assert deleted == ["dialogue: What is thing number 3 of 3?"]
    assert b"thing number 3" not in b"".join(file.read_bytes() for file in out.rglob("*") if file.is_file())
    with contextlib.closing(Personalizer(pocket(), folder=out)) as me:
        count = len(me.archive.events)
        with pytest.raises(InputError, match="'theirs' of this memory is not installed"):
            me.observe(Dialogue("Another one?", "Yes.", time=99.0))
        assert len(me.archive.events) == count and len(me.state.archive.dialogues) == 8
