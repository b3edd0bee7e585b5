"The command line: what it refuses, and that every failure is one line."

import errno
import subprocess
import sys

import pytest
import typer

import personal_llm
from personal_llm.app import cli
from personal_llm.app.commands import app
from personal_llm.base.core import InputError
from typed import fails, found, invoke, snapshot

GROUPS = typer.main.get_command(app).commands
NAMES = [[name] for name in GROUPS if not hasattr(GROUPS[name], "commands")]
NAMES += [[name, word] for name in GROUPS for word in getattr(GROUPS[name], "commands", ())]


@pytest.fixture
def failing():
    "A command that raises an error."
    errors = []

    @app.command("fail", epilog="Example: personal-llm fail")
    def fail():
        "Fail."
        raise errors[0]

    yield errors
    app.registered_commands.pop()


def test_help_is_light_and_every_command_shows_an_example():
    program = """
import sys
from personal_llm.app.cli import main
for words in __import__("json").loads(sys.argv[1]):
    assert main([*words, "--help"]) == 0
assert not {"torch", "transformers", "peft", "sentence_transformers"} & set(sys.modules)
"""
    words = __import__("json").dumps([[], *NAMES])
    done = subprocess.run([sys.executable, "-c", program, words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Example: personal-llm") == len(NAMES) >= 16


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"personal-llm {personal_llm.__version__}\n"


def test_the_example_of_a_command_names_its_options():
    for words in NAMES:
        command = GROUPS[words[0]] if len(words) == 1 else GROUPS[words[0]].commands[words[1]]
        options = {name for one in command.params for name in one.opts}
        given = [word for word in command.epilog.split() if word.startswith("--")]
        assert set(given) <= options and command.help, words


@pytest.mark.parametrize(
    "words, line",
    [
        ("demo --steps many", "--steps"),
        ("demo --policy luck", "--policy"),
        ("personalize --data few.jsonl --out new", "3 distinct dialogues, too few to learn from"),
        ("personalize --data chats.jsonl --out new --start pocket --capacity 4", "capacity is 4"),
        ("personalize --data chats.jsonl --out new --policy fifo --ask-when policy", "policy fifo does not say"),
        ("personalize --data chats.jsonl --out new --start nowhere", "nowhere"),
        ("personalize --data chats.jsonl --out=", "argument 4 is empty"),
        ("personalize --data chats.jsonl --out new --model no/such/folder", "no/such/folder"),
        ("personalize --data chats.jsonl --out .", "other files"),
        ("personalize --data chats.jsonl --out few.jsonl", "few.jsonl"),
        ("chat --out few.jsonl", "few.jsonl"),
        ("chat --out .", "other files, such as"),
        ("chat --out new --memories much", "'--memories'"),
        ("evaluate --data chats.jsonl --adapter nowhere", "nowhere"),
        ("explain", "one of"),
        ("explain --data few.jsonl", "takes at least 8 dialogues, and you have 3; add or correct 5 more"),
        ("select --data few.jsonl", "takes at least 8 dialogues, and you have 3"),
        ("select --data chats.jsonl --library nowhere", "nowhere"),
        ("library build new --adapter nowhere --licence CC0-1.0", "nowhere"),
        ("forget --out nowhere --everything", "no such folder"),
        ("forget --out few.jsonl --everything", "a file, not a folder"),
        ("forget --out empty --containing me", "no memory here"),
        ("status --out empty", "no memory here"),
        ("export new --to merged --adapter nowhere", "nowhere"),
        ("export new --to bogus --adapter new", "Invalid value for '--to'"),
        ("get nothing", "nothing"),
        ("--chat-template nowhere status --out empty", "nowhere"),
        ("learn --out nowhere", "no memory here"),
        ("learn --out empty --learning-rate 0", "learning_rate is 0.0"),
        ("learn --out empty --dropout 2", "--dropout"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(tmp_path, capsys, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    rows = ['{"prompt": "What is thing %d?", "response": "Thing %d is a toy."}\n' % (i, i) for i in range(12)]
    (tmp_path / "chats.jsonl").write_text("".join(rows))
    (tmp_path / "few.jsonl").write_text("".join(rows[:3]))
    (tmp_path / "copies.jsonl").write_text(rows[0] * 9)  # reading it prints a note
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "memory.sqlite").touch()
    before = snapshot(tmp_path)
    code, out, err = invoke(capsys, *words.split())
    assert code == 2 and out == "" and line in err.splitlines()[-1], err
    needs_model = words.startswith(("chat --out few", "personalize --data chats.jsonl --out new --model", "demo"))
    assert err.count("\n") == 1 or needs_model, "a mistake is reported before the model is loaded"
    assert snapshot(tmp_path) == before


class PanicException(BaseException):
    "As the tokenizers' own, no `Exception`."


@pytest.mark.parametrize(
    "error, line",
    [
        (PanicException("index out of bounds"), "a library stopped (index out of bounds)"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied"),
        (MemoryError(), "not enough RAM"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough RAM"),
        (InputError("a\nb", "c"), "a b; c"),
    ],
)
def test_failures_of_others_are_one_line(failing, capsys, error, line):
    failing.append(error)
    assert line in fails(capsys, "fail")


def test_an_interrupt_is_130_and_a_bug_keeps_its_traceback(failing, capsys):
    failing.append(KeyboardInterrupt())
    line = "interrupted; everything stored is intact, and the same command continues"
    assert invoke(capsys, "fail") == (130, "", f"personal-llm: {line}\n")
    failing[0] = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])


def test_results_are_on_stdout_as_lines_or_as_one_object(capsys):
    rows = found(capsys, "library", "list")["pllms"]
    code, out, err = invoke(capsys, "library", "list")
    assert code == 0 and err == "" and len(out.splitlines()) == len(rows) + 1
    assert {"pocket", "qwen2.5-coder-0.5b"} <= {row["name"] for row in found(capsys, "models")["models"]}


def test_the_package_runs_as_a_module_and_without_words_shows_its_help():
    done = subprocess.run([sys.executable, "-m", "personal_llm"], capture_output=True, text=True)
    assert done.returncode == 0 and "personalize" in done.stdout and "Traceback" not in done.stderr


def test_the_program_starts_without_the_extras():
    "After a plain install no package of the server is there; `serve` alone says so."
    code = "import sys; sys.modules.update(dict.fromkeys(('uvicorn', 'fastapi', 'starlette', 'pandas', 'selenium'))); "
    code += "from personal_llm.app.cli import main; sys.exit(main(sys.argv[1:]))"
    listed, refused = (
        subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        for words in (["models"], ["serve", "--out", "unused"])
    )
    assert listed.returncode == 0 and "pocket" in listed.stdout
    assert refused.returncode == 2 and 'pip install "personal_llm[serve]"' in refused.stderr
