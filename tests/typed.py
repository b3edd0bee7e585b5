"Commands as they are typed, in this process, and chats to give them."

import hashlib
import json
from pathlib import Path

from personal_llm.app import cli


def rows(count, start=0):
    numbers = range(start, start + count)
    return [dict(prompt=f"What is thing number {i} of {i % 7}?", response=f"Thing {i} is a {i % 5}.") for i in numbers]


def write(path, items):
    path.write_text("".join((i if isinstance(i, str) else json.dumps(i)) + "\n" for i in items))
    return path


def snapshot(folder):
    "Content of every visible file below a folder."
    files = [p for p in sorted(Path(folder).rglob("*")) if p.is_file()]
    names = {str(p.relative_to(folder)): p for p in files}
    is_hidden = lambda name: name.endswith(("-wal", "-shm")) or any(part[0] == "." for part in name.split("/"))
    visible = {name: p for name, p in names.items() if not is_hidden(name)}  # SQLite's own two files come and go
    return {name: hashlib.sha1(p.read_bytes()).hexdigest() for name, p in visible.items()}


def invoke(capsys, *argv):
    "Exit code, stdout, stderr."
    capsys.readouterr()
    code = cli.main([str(a) for a in argv])
    got = capsys.readouterr()
    return code, got.out, got.err


def fails(capsys, *argv):
    "The one line of a mistake; its exit code is 2 and nothing is on stdout."
    code, out, err = invoke(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("personal-llm: "), (code, out, err)
    return err


def found(capsys, *argv):
    "What --json printed; the exit code is 0."
    code, out, err = invoke(capsys, *argv, "--json")
    assert code == 0 and out.count("\n") == 1, (code, out, err)
    return json.loads(out)
