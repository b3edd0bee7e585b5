"The command line: how it parses, what it refuses, and that every failure is one line."

import ast
import errno
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from personal_llm.app import arguments, cli
from personal_llm.app.arguments import COMMAND_GROUPS, COMMANDS, CommandResult, command, parse_arguments
from personal_llm.app.demo import DemoSettings
from personal_llm.app.personalize import PersonalizeSettings
from personal_llm.base import loading
from personal_llm.base.core import InputError
from typed import fails, invoke, rows, write


WIDE = dict(COLUMNS="80", TERM="xterm-256color")


class Terminal(io.TextIOWrapper):
    "A stdout that is a terminal."

    def __init__(self, **named):
        super().__init__(io.BytesIO(), **named)

    def isatty(self):
        return True

    def shown(self):
        self.flush()
        return self.buffer.getvalue().decode()


@pytest.fixture
def extra():
    "Commands of a test are gone after it."
    before = dict(COMMANDS)
    yield command
    COMMANDS.clear()
    COMMANDS.update(before)


def raising(error):
    def run():
        "Fail."
        raise error

    return run


def test_help_is_light_and_teaches():
    program = """
import sys
from personal_llm.app.arguments import COMMANDS
from personal_llm.app.cli import main
for words in [[], ["library"], *(name.split() for name in COMMANDS)]:
    assert main(words + ["--help"]) == 0
assert not {"torch", "transformers", "peft"} & set(sys.modules)
print(len(COMMANDS))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | WIDE)
    assert done.returncode == 0, done.stderr
    count = int(done.stdout.split()[-1])
    assert count >= 13 and done.stdout.count("Examples:") == count
    assert set(done.stdout) & set("\x1b─│╭") == set(), "plain text where nobody sees a terminal"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_is_coloured_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Terminal(encoding="utf-8"))
    assert cli.main(["forget", "--help"]) == 0
    shown = sys.stdout.shown()
    assert "\x1b[1m" in shown and "containing" in shown and "personal-llm forget" in shown


def test_help_is_no_markup_of_the_library_that_prints_it():
    "A bracket in a help text would be read as a colour."
    for one in COMMANDS.values():
        texts = [field.annotation.__metadata__[0].help for field in one.list_parameters()]
        assert all(texts) and not [text for text in [*texts, one.function.__doc__] if "[" in text], one.name


def test_every_command_says_what_it_does_and_shows_how():
    for name, one in COMMANDS.items():
        first = one.function.__doc__.split(".")[0]
        assert first[0].isupper() and len(first) < 66 and all(one.examples[1:]), (name, "whole in the list of commands")
    assert {name.split()[0] for name in COMMANDS if " " in name} == {*COMMAND_GROUPS}


@pytest.mark.parametrize("name", [*COMMANDS])
def test_examples_are_valid(name):
    for example in COMMANDS[name].examples:
        words = shlex.split(example.split("<")[0].split(">")[0])
        assert parse_arguments([*name.split(), *words])[0] is COMMANDS[name]


def completions(*words):
    "What a shell gets that asks for the end of the last word."
    line = shlex.join(["personal-llm", *words])
    asked = dict(_PERSONAL_LLM_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line, COMP_WORDS=line)
    run = [sys.executable, "-m", "personal_llm.app.cli"]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | asked)
    return done.stdout


def test_the_shell_completes_commands_options_and_names():
    assert "personalize" in completions("per")
    assert "--finetune-every" in completions("personalize", "--fine")
    assert "sdss" in completions("personalize", "--policy", "s")
    assert "bfloat16" in completions("check", "--dtype", "b") and "nurse" in completions("demo", "--user", "n")


@pytest.mark.parametrize("command, settings", [("demo", DemoSettings), ("personalize", PersonalizeSettings)])
def test_settings_exist_once(command, settings):
    "Help, type, range and default of an option are those of the field."
    options = {one.name: one for one in COMMANDS[command].list_parameters()}
    shared = [field for field in fields(settings) if field.name in options and field.name != "ask_when"]
    assert len(shared) >= 6
    for field in shared:
        option = options[field.name]
        kind, facts = option.annotation.__origin__, option.annotation.__metadata__[0]
        assert option.default == field.default and facts.help == field.metadata["help"], field.name
        assert kind is int or not isinstance(field.default, int), field.name
        if kind is int:
            assert (facts.min, facts.max) == (field.metadata["low"], field.metadata["high"]), field.name


def test_a_command_of_ones_own_is_one_function(extra, capsys):
    @extra("shout")
    def shout(word: str):
        "Say a word loudly."
        return CommandResult(dict(said=word.upper()), [word.upper()], 1)

    assert invoke(capsys, "shout", "hello") == (1, "HELLO\n", "")
    assert invoke(capsys, "shout", "hello", "--json") == (1, '{"said": "HELLO"}\n', "")


@pytest.mark.parametrize(
    "argv, wanted",
    [
        ([], "Missing command; personal-llm --help shows the commands"),
        (["fly"], "No such command 'fly'"),
        (["library"], "Missing command; personal-llm library --help"),
        (["library", "fly"], "No such command 'fly'"),
        (["personalize"], "--data"),
        (["personalize", "--data", "x", "--out", "y", "--steps", "many"], "'--steps': Input should be a valid integer"),
        (["personalize", "--data", "x", "--out", "y", "--nonsense"], "--nonsense"),
        (["personalize", "--data", "x", "--out", "y", "--ask-when", "sometimes"], "freeze"),
        (["personalize", "--data", "x", "--out", "y", "--policy", "fifo", "--ask-when", "policy"], "asks no questions"),
        (
            ["personalize", "--data", "x", "--out", "y", "--replay", "-1"],
            "'--replay': Input should be greater than or equal to 0",
        ),
        (["personalize", "--data", "x", "--out", "y", "--seed", "9" * 5000], "--seed"),
        (["demo", "--user", "nobody"], "'--user': 'nobody' is not one of 'nurse'"),
        (["demo", "--capacity", "0"], "capacity is 0"),
        (["demo", "--capacity", str(10**12)], "capacity"),
        (["demo", "--seed", "-1"], "'--seed': Input should be greater"),
        (["demo", "--seed", str(2**40)], "'--seed': Input should be less"),
        (["demo", "--length", str(10**12)], "'--length': Input should be less"),
        (["check", "--model", "no/such/folder"], "unknown model"),
        (["check", "--model", "pockett"], 'use "smollm2", "pocket"'),
        (["chat", "--adapter", "nowhere"], "nowhere: no adapter here"),
        (["status", "--out", "nowhere"], "no saved state here"),
        (["forget", "--out", "nowhere", "--all"], "no saved state here"),
        (["library", "list", "nowhere"], "nowhere: no library here"),
        (["library", "verify", "nowhere"], "no library here"),
        (["library", "show"], "NAME"),
        (["library", "build", "--out", "x", "--licence", "x"], "--adapter"),
        (["library", "build", "--out", "x", "--adapter", "y"], "--licence"),
        (["explain"], "--data FILE or --adapter DIR"),
        (["explain", "--data", "a", "--adapter", "b"], "b: no adapter here"),
        (
            [
                "library",
                "build",
                "--out",
                "x",
                "--licence",
                "x",
                "--adapter",
                "y",
                "--ray-address",
                "local",
                "--prompts",
                "z",
            ],
            "chats are not sent",
        ),
        (["explain", "--data", "a", "--library", "nowhere"], "no library here"),
        (["select"], "--data"),
        (["select", "--data", "a", "--library", "nowhere"], "no library here"),
    ],
)
def test_mistakes_are_one_line_and_make_nothing(tmp_path, capsys, monkeypatch, argv, wanted):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, *argv)
    assert wanted in line and len(line) < 400 and list(tmp_path.iterdir()) == []


# functions that no command calls with a value of the user: their errors are for Python
PYTHON_ONLY = "get_latest_messages group_rows_by_subject check_dialogues correlated_stream candidate_words"
PYTHON_ONLY = {*PYTHON_ONLY.split(), "select", "__post_init__", "export_bundle"}
PYTHON_NAME = re.compile(r"\w+\(|\b[a-z]+_[a-z_]+\b|\b[A-Z][a-z]+[A-Z]\w*|\b[a-z]\w*=\S|\bpersonal_llm\.")
OTHER_NAMES = re.compile(r"\w+\.json\b|token_embd|lora_alpha|peft_type|num_hidden_layers|personal_llm\[\w+\]|NaN|LoRA")
PRODUCTS = re.compile("WhatsApp|ExecuTorch|SmolLM2|HuggingFaceTB")


def literals(node) -> str:
    "The fixed parts of an expression that makes a text."
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literals(part) if isinstance(part, ast.Constant) else "X" for part in node.values)
    inner = [
        child for child in ast.iter_child_nodes(node) if isinstance(child, (ast.Constant, ast.JoinedStr, ast.BinOp))
    ]
    return " ".join(map(literals, inner)) if isinstance(node, (ast.BinOp, ast.IfExp, ast.BoolOp)) else ""


def find_error_texts():  # (module, function, text)
    "The texts of problems and remedies in the modules that the command line runs."
    root = Path(arguments.__file__).parent.parent
    for file in sorted(root.glob("[abdest]*/*.py")) + sorted(root.glob("runtimes/*.py")):
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and file.parent.name != "experiments":
                nodes = [*ast.walk(function)]
                named = {
                    n.targets[0].id: n.value for n in nodes if isinstance(n, ast.Assign) and hasattr(n.targets[0], "id")
                }
                for call in nodes:
                    kind = getattr(call.func, "id", "") if isinstance(call, ast.Call) else ""
                    parts = call.args if kind == "InputError" else []
                    parts = [k.value for k in call.keywords if k.arg == "remedy"] if kind == "check" else parts
                    for part in parts:
                        yield file.stem, function.name, literals(named.get(getattr(part, "id", ""), part))


def test_errors_name_options_and_no_python():
    "Every error text of the package, as the command line shows it, but those that only a call in Python can raise."
    options = {option.name: None for one in COMMANDS.values() for option in one.list_parameters()}
    texts = [(*place, cli.name_options(text, options)) for *place, text in find_error_texts() if text]
    shown = [(module, name, text) for module, name, text in texts if name not in PYTHON_ONLY]
    wrong = [row for row in shown if PYTHON_NAME.search(PRODUCTS.sub("", OTHER_NAMES.sub("", row[2])))]
    assert len(shown) > 500 and wrong == []


def test_an_option_stands_where_python_has_a_parameter(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chats = write(tmp_path / "chats.jsonl", ["{"])
    base = ["personalize", "--data", chats, "--out", "y"]
    for words, wanted in (
        ([], "leave such rows out with --skip-invalid"),
        (["--max-questions", "-1"], "--max-questions"),
        (["--batch", "0"], "--batch"),
        (["--dropout", "2"], "--dropout is 2"),
        (["--policy", "sdss", "--ask-when", "policy"], "use --ask-when"),
    ):
        assert wanted in fails(capsys, *base, *words)
    assert cli.name_options("start x: neither; use start=None", ()) == "--start-from x: neither; use --start-from none"
    assert cli.name_options("the start is in batch_size.txt, not in /batch_size", ()).count("--") == 0


@pytest.mark.parametrize(
    "error, wanted",
    [
        (OSError(errno.ENOSPC, "No space left on device"), cli.DISK_FULL_MESSAGE),
        (RuntimeError("I/O error: No space left on device (os error 28)"), cli.DISK_FULL_MESSAGE),
        (OSError(errno.EACCES, "Permission denied", "file"), "file: Permission denied"),
        (json.JSONDecodeError("Expecting value", "{", 0), "damaged"),
        (InputError("a\nb", "c"), "a b; c"),
    ],
)
def test_failures_of_others_are_one_line_too(extra, capsys, error, wanted):
    extra("break")(raising(error))
    assert wanted in fails(capsys, "break")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel limits the memory")
def test_too_little_memory_is_one_line():
    "Torch needs more than 400 MB of addresses."
    command = f"ulimit -v 400000; exec {sys.executable} -m personal_llm.app.cli chat --quiet"
    done = subprocess.run(["bash", "-c", command], input="", capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not enough memory" in done.stderr, done.stderr
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
    ):
        assert cli.format_error(error) == cli.OUT_OF_MEMORY_MESSAGE
    assert cli.format_error(ValueError("not enough memory")) == ""


def test_an_interrupt_and_a_closed_pipe(extra, capsys, monkeypatch):
    extra("stop")(raising(KeyboardInterrupt()))
    extra("pipe")(raising(BrokenPipeError()))
    monkeypatch.setattr(os, "dup2", lambda *given: None)
    assert invoke(capsys, "stop") == (130, "", f"personal-llm: {cli.INTERRUPTED_MESSAGE}\n")
    assert invoke(capsys, "pipe") == (0, "", "")


def test_a_mistake_of_ours_keeps_its_traceback(extra):
    extra("ours")(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["ours"])


EVIL = "\x1b[2J\x9b1m\u202eevil\u2066\x07"


def test_escapes_of_others_are_shown(extra, tmp_path, capsys):
    "On stdout as lines and as JSON, on stderr as notes and as errors."

    @extra("evil")
    def evil():
        "Say it."
        arguments.print_note(EVIL)
        return CommandResult(dict(said=EVIL), [EVIL])

    extra("fail")(raising(InputError(EVIL, EVIL)))
    code, out, err = invoke(capsys, "evil")
    shown = [out, err, invoke(capsys, "evil", "--json")[1], fails(capsys, "fail")]
    shown.append(fails(capsys, "evaluate", "--data", write(tmp_path / "x.jsonl", [{EVIL: 1}]), "--adapter", "x"))
    shown.append(fails(capsys, "evaluate", "--data", "x", "--adapter", EVIL))
    shown.append(fails(capsys, EVIL))
    shown.append(fails(capsys, "demo", "--user", EVIL))
    for text in shown:
        assert not set(EVIL) - set("evil[2J1m") & set(text), ascii(text)
    assert json.loads(shown[2])["said"] == EVIL


def test_nothing_connects_without_being_asked(capsys, monkeypatch):
    def refuse(*given):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert invoke(capsys, "chat", "--quiet")[0] == 0 and os.environ["HF_HUB_OFFLINE"] == "1"


def test_check_tells_sound_from_damaged(tmp_path, capsys):
    "A copy of the pocket without its weights, and one whose template loses the answers."
    import shutil

    pocket = shutil.copytree(loading.ASSETS / "pocket", tmp_path / "pocket")
    (tmp_path / "template.jinja").write_text("{{ messages[-1]['content'] }}")
    template = ("--chat-template", tmp_path / "template.jinja")
    code, out, err = invoke(capsys, "check", "--quiet", "--model", pocket, *template, "--json")
    assert code == 1 and json.loads(out)["ok"] is False and "price" not in json.loads(out) and err == ""
    code, out, err = invoke(capsys, "check", "--quiet", "--model", pocket)
    assert code == 0 and "s to score a new dialogue of" in out and "MB of memory" in out
    for file in pocket.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    code, out, err = invoke(capsys, "check", "--quiet", "--model", pocket)
    assert code == 1 and out.startswith("FAIL loading") and out.count("\n") == 1 and err == ""


@pytest.mark.parametrize("name, rest", [("personalize", ["--out", "x"]), ("explain", []), ("select", [])])
def test_data_that_is_no_data(tmp_path, capsys, monkeypatch, name, rest):
    "Every command with --data words the reader's mistakes alike."
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.jsonl", [*rows(2), '{"prompt": "a", ', *rows(2)])
    line = fails(capsys, name, "--data", "bad.jsonl", *rest)
    assert "bad.jsonl line 3: broken JSON" in line and "--skip-invalid" in line
    assert "no such file" in fails(capsys, name, "--data", "nowhere.jsonl", *rest)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]
