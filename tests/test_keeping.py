"Status and forget on the command line: a canary is in no byte, and what is out of reach is said."

import os

import pytest

from personal_llm import personalize
from personal_llm.app.arguments import ModelOptions
from personal_llm.base.files import COMMITTED_RESULTS, STAGED_RESULTS, write_entry
from personal_llm.base.core import Dialogue
from personal_llm.base.files import OwnedFolder, lock_folder
from tiny import shared
from typed import fails, found, invoke

CANARY = "zanzibarquux"
SETTINGS = dict(model=None, capacity=12, synthetic=0, steps=1, progress=False)


@pytest.fixture
def out(tmp_path):
    chats = [Dialogue(f"What is thing {i}?", f"Thing {i} is a pot.", time=float(i + 1)) for i in range(10)]
    chats[4] = chats[4].derive(response=f"It is a {CANARY}.", parents=())
    personalize(chats, tmp_path / "out", **SETTINGS | dict(model=shared("llama")))
    return tmp_path / "out"


def bytes_of(folder):
    return b"\n".join(p.read_bytes() + str(p).encode() for p in folder.rglob("*") if p.is_file())


def test_status_says_what_is_kept_and_no_word(out, capsys):
    status = found(capsys, "status", "--out", out)
    assert (status["bins"], status["seen"], status["finetunes"]) == ("10/12", 10, 1)
    code, shown, err = invoke(capsys, "status", "--out", out)
    assert code == 0 and "10/12 dialogues of 10" in shown and "1 time; last" in shown and CANARY not in shown + err


def test_forget_a_text(out, capsys):
    assert CANARY.encode() in bytes_of(out)
    code, shown, err = invoke(capsys, "forget", "--out", out, "--containing", CANARY)
    assert code == 0 and "forgotten: 1 dialogue of the buffer, 1 adapter" in shown and shown.count("out of reach:") >= 2
    assert CANARY.encode() not in bytes_of(out) and CANARY not in err
    assert not (out / "adapter" / "adapter_model.safetensors").exists() and not (out / "personalize.json").exists()
    assert found(capsys, "status", "--out", out)["bins"] == "9/12"
    assert f"personal-llm forget --out {out} --retrain trains" in shown and "the file of chats" in shown


def test_a_folder_that_stays_is_called_removed_once(out, capsys):
    "It holds a file of yours; the second call deletes nothing there, and neither would a third."
    (out / "adapter" / "mine.txt").write_text("yours")
    forget = lambda *words: invoke(capsys, "forget", "--out", out, "--containing", *words)[1]
    assert f"removed: {out / 'adapter'}\n" in forget(CANARY)
    assert f"removed: {out / 'adapter'}\n" not in forget("thing 1", "--dry-run")
    assert f"removed: {out / 'adapter'}\n" not in forget("thing 1")
    assert [path.name for path in (out / "adapter").iterdir()] == ["mine.txt"]


def test_forget_with_retrain_names_no_retrain(out, capsys, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda self: shared("llama"))
    shown = invoke(capsys, "forget", "--out", out, "--containing", CANARY, "--retrain", "--quiet")[1]
    assert "rebuilt on" in shown and "--retrain" not in shown


def test_no_match_is_a_mistake_that_changes_nothing(out, capsys):
    before = found(capsys, "status", "--out", out)
    for words in (["--containing", "xylophone"], ["--id", "nobody"], ["--before", "0.5"]):
        for more in ([], ["--dry-run"], ["--json"], ["--retrain"]):
            line = fails(capsys, "forget", "--out", out, *words, *more)
            assert "no stored dialogue matches; nothing was deleted" in line
    assert found(capsys, "status", "--out", out) | dict(bytes=0) == before | dict(bytes=0)
    assert CANARY.encode() in bytes_of(out)


def test_forget_by_time_by_id_and_all(out, capsys):
    assert found(capsys, "forget", "--out", out, "--before", "4")["dialogues"] == 3
    assert found(capsys, "forget", "--out", out, "--all")["dialogues"] == 7
    assert b"Thing" not in bytes_of(out) and CANARY.encode() not in bytes_of(out)
    assert "no saved state here" in fails(capsys, "status", "--out", out)


def test_forget_without_a_condition_names_the_options(out, capsys):
    before = bytes_of(out)
    for words in ([], ["--all", "--id", "a"], ["--containing", "a", "--before", "3"]):
        assert "give --containing, --id, --before or --all" in fails(capsys, "forget", "--out", out, *words)
    assert bytes_of(out) == before


def test_a_search_for_a_time_counts_the_dialogues_without_one(tmp_path, capsys):
    chats = [Dialogue(f"What is thing {i}?", f"Thing {i} is a pot.") for i in range(10)]
    personalize(chats, tmp_path / "out", **SETTINGS | dict(model=shared("llama")))
    line = fails(capsys, "forget", "--out", tmp_path / "out", "--before", "2024-05-31")
    assert "no stored dialogue matches" in line and "10 stored dialogues without a time" in line


@pytest.mark.parametrize("where", [STAGED_RESULTS, COMMITTED_RESULTS])
def test_forget_reaches_what_a_killed_run_left(out, capsys, where):
    "A copy of the adapter that was being written, or was committed, and the report beside it."
    owned = OwnedFolder(out)
    write_entry(out / "adapter", owned.claim(where) / "adapter")
    write_entry(CANARY, out / where / "personalize.json")
    write_entry(CANARY, out / f".personalize.json.{os.getpid()}.tmp")
    assert invoke(capsys, "forget", "--out", out, "--containing", CANARY)[0] == 0
    assert CANARY.encode() not in bytes_of(out) and not (out / where).exists()
    assert not (out / "adapter" / "adapter_model.safetensors").exists()


def test_the_next_run_replaces_what_forget_left(out, capsys):
    assert invoke(capsys, "forget", "--out", out, "--containing", CANARY)[0] == 0
    chats = [Dialogue(f"What is thing {i}?", f"Thing {i} is a pot.", time=float(i)) for i in range(9)]
    result = personalize(chats, out, **SETTINGS | dict(model=shared("llama")))
    assert [str(p) for p in out.glob("run-*")] == [result["state"]] and result["kept"] == 9


def test_a_folder_in_which_a_run_is_at_work_is_left_alone(out, capsys):
    with lock_folder(out):
        for command in (["status"], ["forget", "--all"]):
            assert "another run is at work" in fails(capsys, *command, "--out", out)
    assert CANARY.encode() in bytes_of(out)


def test_a_folder_of_others_is_refused_untouched(tmp_path, capsys):
    (tmp_path / "run-2024-thesis").mkdir()
    (tmp_path / "run-2024-thesis" / "chapter.tex").write_text("years")
    for command in (["status"], ["forget", "--containing", "years"], ["forget", "--all"]):
        assert "no saved state here" in fails(capsys, *command, "--out", tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["run-2024-thesis", "chapter.tex"]


def test_the_thesis_beside_our_run_stays(out, capsys):
    (out / "run-2024-thesis").mkdir()
    (out / "run-2024-thesis" / "chapter.tex").write_text("years")
    assert invoke(capsys, "forget", "--out", out, "--all")[0] == 0
    assert (out / "run-2024-thesis" / "chapter.tex").read_text() == "years"
