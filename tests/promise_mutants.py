"""One broken line for a promise of SECURITY.md: do the tests that its row names see it? Run by hand.

    python tests/promise_mutants.py                 all of them, one after the other
    python tests/promise_mutants.py 3 "A dry run"   those whose row begins with a text, or by number

Each line of the output is a JSON object. We copy the project into a temporary folder, change one line there, and run
the tests of the row until the first one fails. Tests that need a browser are left out.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60  # of the tests of a row; a broken server may run for ever
MUTANTS = [  # (beginning of the row, file below personal_llm, old, new)
    ("Only this computer", "app/server_guard.py", "if token is None and not is_loopback(host):", "if False:"),
    (
        "Every request for data",
        "app/server_guard.py",
        "hmac.compare_digest(token.strip().encode(), self.token)",
        "len(token) == len(self.token)",
    ),
    ("The token is kept", "app/server.py", "not file.stat().st_mode & 0o077", "True"),
    ("Foreign `Host`", "app/server_guard.py", "if is_foreign or origin not in", "if is_foreign and origin not in"),
    ("The page holds no data", "app/server_guard.py", "default-src 'none'", "default-src 'self'"),
    ("The Markdown of a reply", "app/personal_endpoints.py", "if address.lower().startswith(LINK_STARTS)", "if True"),
    (
        "A conversation that you delete",
        "app/personal_endpoints.py",
        'turn["id"] for turn in turns)]',
        'turn["id"] for turn in turns[1:])]',
    ),
    ("`serve` lets no page", "app/server_guard.py", '{"X-Frame-Options": "DENY"} if', "{} if"),
    ("Size, time, rate", "app/server_guard.py", "if len(body) > limit:", "if len(body) > 100 * limit:"),
    ("An error shows its place", "app/chat_completions.py", "at {place}; please report it", "at {place}: {error}"),
    ("The server never acknowledges what it did not", "app/chat_completions.py", "    if unsaved:", "    if False:"),
    ("No value of a field", "app/chat_completions.py", "logprobs: only(False) = None", "logprobs: Any = None"),
    (
        "The packages of the server",
        "../settings.ini",
        "serve_requirements = fastapi>=0.120,<0.141",
        "serve_requirements = fastapi>=0.120",
    ),
    ("A request that a program", "app/chat_completions.py", "and self.store is not False", ""),
    (
        "An import that fails",
        "app/personal_endpoints.py",
        "candidates += await worker.run(worker.session.score_imported, part)",
        "await worker.run(worker.session.add_dialogues, part)",
    ),
    ("Our files are readable", "base/files.py", "os.O_CREAT | os.O_TRUNC, 0o600", "os.O_CREAT | os.O_TRUNC, 0o644"),
    ("Two processes never", "base/files.py", "if not try_lock(f):", "if False:"),
    ("A folder of an older", "device/memory.py", "if old := [name for name", "if False and [name for name"),
    ("We delete a file only", "device/memory.py", 'if event.content["files"].get(name) == digest:', "if True:"),
    (
        "We follow no link",
        "device/memory.py",
        "if not folder.is_dir() or folder.is_symlink() or folder.parent.is_symlink():",
        "if not folder.is_dir():",
    ),
    ("We refuse a changed bit", "device/memory.py", "if _hash_row(tuple(values)) != checksum:", "if False:"),
    ("After `forget`, no file", "device/memory.py", "            truncate_journal(folder)\n", "            pass\n"),
    (
        "Forgetting reaches an open",
        "device/forgetting.py",
        "self.is_in((d.prompt, d.response, d.labels))",
        "self.is_in((d.prompt, d.response))",
    ),
    ("An imported file cannot", "device/conversation.py", "d.derive(id=rename(d.id),", "d.derive(id=d.id,"),
    (
        "A search ignores case",
        "device/forgetting.py",
        "normalize_text(self.text) in normalize_text(value)",
        "self.text in value",
    ),
    ("A dry run changes", "device/forgetting.py", "            if dry_run:", "            if False:"),
    ("`forget --before`", "device/forgetting.py", ' or request.is_early(event.content["time"])', ""),
    (
        "A reply that became",
        "device/forgetting.py",
        'copies = {event.dialogue for event in reactions if not event.content["is_given"]}',
        "copies = set()",
    ),
    (
        "An adapter that began from one",
        "device/forgetting.py",
        '        if event.content["elsewhere"]:',
        "        if False:",
    ),
]


def find_row(beginning: str) -> str:
    "Return the row of a promise."
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {beginning}")]
    return row


def list_tests(row: str) -> list:
    "Return the tests that a row names, without those of a browser."
    return [f"{file}::{name}" for file, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", row) if "test_page" not in file]


def run_mutant(place: Path, number: int) -> dict:
    "Change a line in a copy, and run the tests of its row."
    beginning, file, old, new = MUTANTS[number]
    source, begin = place / "personal_llm" / file, time.monotonic()
    text = source.read_text(encoding="utf-8")
    assert text.count(old) == 1, (beginning, text.count(old))
    source.write_text(text.replace(old, new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *list_tests(find_row(beginning))]
    settings = os.environ | dict(PYTHONPATH=str(place))
    try:
        done = subprocess.run(command, cwd=place, env=settings, capture_output=True, timeout=SECONDS)
        is_killed, code = done.returncode == 1, done.returncode
    except subprocess.TimeoutExpired:
        is_killed, code = True, "timeout"
    source.write_text(text, encoding="utf-8")
    seconds = round(time.monotonic() - begin, 1)
    return dict(number=number, promise=beginning, killed=is_killed, code=code, seconds=seconds)


def main(wanted: list) -> None:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        place = Path(folder, "project")
        skipped = shutil.ignore_patterns(".git", ".venv", "nbs", "papers", "__pycache__")
        shutil.copytree(ROOT, place, ignore=skipped, symlinks=True)
        for number, (beginning, *_) in enumerate(MUTANTS):
            if not wanted or str(number) in wanted or any(beginning.startswith(text) for text in wanted):
                print(json.dumps(run_mutant(place, number)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
