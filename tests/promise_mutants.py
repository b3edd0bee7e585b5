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
SECONDS = 900  # of the tests of a row; a broken server may run for ever
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
    ("`serve` lets no page", "app/server_guard.py", """if frame_sites == "'none'":""", "if False:"),
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
        "worker.session.add_scored(await worker.run(worker.session.score_imported, part))",
    ),
    ("Our files are readable", "base/files.py", "os.O_CREAT | os.O_TRUNC, 0o600", "os.O_CREAT | os.O_TRUNC, 0o644"),
    ("Two processes never", "base/files.py", "if not try_lock(f):", "if False:"),
    ("We delete a file only", "device/memory.py", ".items() if hashes.get(name) == digest]", ".items()]"),
    (
        "We follow no link",
        "device/memory.py",
        "if not folder.is_dir() or _is_linked(folder):",
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
        "fold_text(self.text) in fold_text(value)",
        "self.text in value",
    ),
    ("A dry run changes", "device/forgetting.py", "if not dry_run:", "if True:"),
    ("`forget --before`", "device/forgetting.py", 'if request.is_early(facts["time"]) or ', "if "),
    (
        "A reply that became",
        "device/forgetting.py",
        'if not facts["is_given"] and facts["text"] in replies}',
        "if False}",
    ),
    (
        "An adapter that began from one",
        "device/forgetting.py",
        "for name, ids in cited if ids]",
        "for name, ids in cited if False]",
    ),
    (
        "We connect to another",
        "base/loading.py",
        "source = resolve_model(name)",
        'source = resolve_model(name); __import__("socket").socket().connect_ex(("127.0.0.1", 9))',
    ),
    (
        "A model that is on your disk",
        "base/loading.py",
        "return load_from_files(source, device, dtype)",
        "return load_from_files(source, device, dtype, local=False)",
    ),
    ("From the address of a library", "selection/remote_library.py", 'if "/" not in name:', "if True:"),
    ("Requests to a library", "base/ledger.py", "    key = _write_entry(row)\n", "    key = None\n"),
    ("Only an export for Ollama", "device/forgetting.py", 'if row.get("id_file") and not is_copy:', "if False:"),
    (
        "We upload nothing.",
        "runtimes/export.py",
        "else model.name\n",
        "else Path(model.name).absolute().as_posix()\n",
    ),
    ("We read weights from safetensors", "base/loading.py", "use_safetensors=True)", "use_safetensors=None)"),
    ("No code of a model", "base/loading.py", "trust_remote_code=False", "trust_remote_code=True"),
    ("We refuse links, pipes", "selection/cards.py", "if file.suffix.lower() in PICKLE_SUFFIXES:", "if False:"),
    (
        "A server of a library that lies",
        "selection/remote_library.py",
        "if compute_sha256(content) != sha256:",
        "if False:",
    ),
    ("A server that is slow", "selection/remote_library.py", "if self.num_bytes > self.max_bytes:", "if False:"),
    (
        "Only `https` addresses",
        "selection/remote_library.py",
        'if parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS:',
        "if False:",
    ),
    (
        "Of an adapter's folder only",
        "runtimes/cluster.py",
        "for file in _JOB_FILES if",
        "for file in [one.name for one in Path(folder).iterdir()] if",
    ),
    (
        "A file of chats gives",
        "data/records.py",
        'except UnicodeDecodeError as error:\n            problem = f"not',
        'except EOFError as error:\n            problem = f"not',
    ),
    (
        "A damaged state",
        "base/ledger.py",
        '        [(row["kind"] + row["place"] + row["adapter"], row["time"] + (row["bytes"] or 0)) for row in rows]',
        "        rows",
    ),
    (
        "A phone bundle whose steps",
        "runtimes/phone_bundle.py",
        "if not steps or any(rows.shape != shape for rows, _ in batches):",
        "if not steps:",
    ),
    ("A model that looks ahead", "data/records.py", ".read(MAX_UNZIPPED_BYTES + 1)", ".read()"),
    ("Control characters of others", "app/arguments.py", "join(map(escape_controls, lines))", "join(lines)"),
    (
        "Progress messages, logs",
        "device/personalizer.py",
        "return dict(model=self.model.name) | self.state.status()",
        "return dict(model=self.model.name, newest=str(self.buffer.dialogues[-1:])) | self.state.status()",
    ),
    (
        "A process that is killed",
        "device/memory.py",
        "CHECKPOINTS_FOLDER, MERGE_FOLDER, MARK_FILE)",
        "CHECKPOINTS_FOLDER, MARK_FILE)",
    ),
    ("A full or broken disk", "base/files.py", "            os.fsync(f.fileno())\n", "            pass\n"),
    ("A clock that goes back", "base/ledger.py", "ORDER BY key", "ORDER BY json_extract(content, '$.time')"),
    ("A full disk leaves", "base/files.py", 'FULL_DISK_MESSAGES += ("database or disk is full",)', "0"),
    ("An adapter that you trained", "base/files.py", "os.getpid() == process and delete_path(path)", "None"),
    (
        "Training on an idle machine",
        "runtimes/idle.py",
        "        return self.busy_seconds > BUSY_SECONDS",
        "        return False",
    ),
    (
        "A folder that nobody can write",
        "base/database.py",
        "is_fixed = not (writes or has_new_rows or os.access(Path(file).parent, os.W_OK))",
        "is_fixed = False",
    ),
    (
        "A killed `forget`",
        "device/forgetting.py",
        'last.events = [event for event in last.events if event.kind == "tuned"]',
        "last.events = []",
    ),
    (
        "A secret code",
        "device/forgetting.py",
        "num_left = next((n for n, round in enumerate(state.rounds) if ids & {*round.parents}), len(state.rounds))",
        "num_left = len(state.rounds)",
    ),
    (
        "After you forget words in the page",
        "device/background_training.py",
        "= [], [], None, None, None",
        "= [], [], self.prepared, None, None",
    ),
    (
        "A dialogue that trained",
        "device/forgetting.py",
        "if root in named or request.matches(d)}",
        "if (root in named or request.matches(d)) and state.find_slot(root) is not None}",
    ),
    (
        "`forget --retrain` rebuilds",
        "device/replay.py",
        'for event in own if event.kind == "learned" and event.content["is_direct"] == is_direct]',
        'for event in own if event.kind == "learned"]',
    ),
    (
        "A library holds no ids",
        "selection/cards.py",
        'Adapter(place, card["base"]).card())',
        'Adapter(place, card["base"], parents=Adapter.load(adapter).parents).card())',
    ),
    ("The published copy", "base/lineage.py", 'if name != "parents"}', "}"),
    (
        "The card of a pLLM",
        "explanation/explanation.py",
        "plain_responses, topic_texts, compared_with)",
        "plain_responses, None, compared_with)",
    ),
    (
        "`library publish` shows",
        "app/library_commands.py",
        'if sys.stdin.readline().strip().lower() not in ("y", "yes"):',
        "if False:",
    ),
    (
        "The measured leak",
        "runtimes/audit.py",
        '        check(self.attack, "choice", "attack", choices=ATTACKS)\n',
        "",
    ),
    (
        "The report of a warm start",
        "selection/warm_start.py",
        "explanation = self.explanation.without_quotations()",
        "explanation = self.explanation",
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
        is_killed, code = None, "timeout"  # look yourself: a slow machine, or a server that never ends
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
