"""Damaged and strange files for every reader: a clear refusal or a result, never a traceback, a hang or much memory.

Each case changes one file of a whole input: some of its bytes, one place of its JSON, or one row of a store. In half of
the cases all checksums agree afterwards, as those of a person who changes a file on purpose.

    PYTHONPATH=.:tests python tests/fuzz_cases.py 100000 2     # cases, seed (and the first case's number)
"""

import json
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import traceback
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Callable

import libraries
from devices import TALK, fake_tune, start, watch
from pytest import MonkeyPatch
from test_exports import CHATGPT
from test_formats import RECORDS
from test_phone import bundle_in

from personal_llm.base import ledger
from personal_llm.base.adapters import Adapter, read_factors, read_lora_config
from personal_llm.base.core import InputError
from personal_llm.base.files import OwnedFolder, compute_sha256, open_results_folder, publish_results
from personal_llm.base.files import recover_results, seal
from personal_llm.data.reading import read_dialogues
from personal_llm.device import personalizer
from personal_llm.device.forgetting import forget_folder
from personal_llm.device.memory import _hash_row
from personal_llm.device.replay import folder_status, read_state
from personal_llm.experiments.harness import read_json_lines
from personal_llm.runtimes import phone, phone_bundle
from personal_llm.selection import cards, remote_library
from personal_llm.selection import library as library_module
from personal_llm.selection.library import Library

SECONDS, BYTES = 10, 2**30  # limits of a case
TOKENS = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"Infinity"]
TOKENS += [b"9" * 40, b"\\u0000", b"\\ud800", b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", "\u202e".encode(), b"[" * 2000]
TOKENS += [
    b'"id"',
    b'"parents"',
    b"../../x",
    b"/etc/passwd",
    b"\n",
    b"\r\n",
    b"\t",
    b"2024-13-45",
    b"1e400",
    b"{}" * 50,
]


def damage(content: bytes, draw: random.Random) -> bytes:
    "Change a few places of some bytes."
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        place, size = draw.randrange(len(content) + 1), draw.choice((1, 1, 2, 4, 16, 256))
        way = draw.randrange(6)
        if way == 0 and content:
            content[place % len(content)] ^= 1 << draw.randrange(8)
        elif way == 1:
            del content[place : place + size]
        elif way == 2:
            content[place:place] = draw.choice(TOKENS)
        elif way == 3:
            content[place : place + size] = draw.choice(TOKENS)
        elif way == 4:
            content[place:place] = content[place : place + size] * draw.choice((1, 2, 8))
        else:
            content[place : place + size] = draw.randbytes(size)
    return bytes(content)


ODD = [None, True, -1, 0, 5, 2**70, -1e308, float("nan"), float("inf"), "", "x" * 1000, "../../x", "\ud800", "\x1b[2J"]
ODD += [[], {}, [[]], [None], {"": None}, ["a", 1]]


def change_json(value, draw: random.Random):
    "Change one place of a JSON value."
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    if not keys or draw.random() < 0.1:
        return draw.choice(ODD)
    key, new = draw.choice(keys), value.copy()
    if draw.random() < 0.1:
        del new[key]
    else:
        new[key] = change_json(value[key], draw)
    return new


def change_row(file: Path, draw: random.Random) -> str:  # the new row
    "Change one value of a database of ours, with a checksum that agrees."
    if file.name == "memory.db":
        return change_memory(file, draw)
    with closing(sqlite3.connect(file)) as store:
        names = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [(t, *row) for t in names for row in store.execute(f"SELECT key, content FROM {t}")]
        table, key, content = draw.choice(rows)
        new = json.dumps(change_json(json.loads(content), draw))
        given = new, ledger.hash_entry(key, new), key
        with suppress(sqlite3.Error):  # a rule of the table refuses it
            store.execute(f"UPDATE {table} SET content = ?, checksum = ? WHERE key = ?", given)
            store.commit()
    return f"{table} {key}: {new[:400]}"


def change_memory(file: Path, draw: random.Random) -> str:  # the new row
    "Change one value of a dialogue or an event, with a checksum that agrees."
    with closing(sqlite3.connect(file)) as store:
        table = draw.choice(["dialogues", "events", "events"])
        row = list(draw.choice(store.execute(f"SELECT * FROM {table}").fetchall()))
        column = draw.randrange(len(row) - 1)
        try:
            row[column] = json.dumps(change_json(json.loads(row[column]), draw))
        except (TypeError, ValueError):
            row[column] = draw.choice(["", "x", 5, -1.5, b"?", None])
        names = [name for _, name, *_ in store.execute(f"PRAGMA table_info({table})")]
        values = (*row[:-1], _hash_row(tuple(row[:-1])))
        with suppress(sqlite3.Error):  # a rule of the table refuses it
            store.execute(f"REPLACE INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", values)
            store.commit()
    return f"{table}: {str(values)[:400]}"


def change_file(file: Path, draw: random.Random) -> str:  # a part of what it holds now
    "Change one place of a file, by its form or without a look at it."
    if file.suffix == ".db" and draw.random() < 0.7:
        return change_row(file, draw)
    if file.suffix == ".json" and draw.random() < 0.7:
        content = json.dumps(change_json(json.loads(file.read_text()), draw)).encode()
    else:
        content = damage(file.read_bytes(), draw)
    file.write_bytes(content)
    return repr(content[:400])


def update_json(file: Path, **changes) -> None:
    "Change fields of a JSON file and its checksum, where the file still allows this."
    with suppress(ValueError, AttributeError, TypeError, RecursionError, OSError):
        row = json.loads(file.read_text()) | changes
        file.write_text(json.dumps(seal(row) if "checksum" in row else row))


def mend_folder(folder: Path) -> None:
    "Make the checksums of sealed files agree."
    for file in folder.rglob("*.json"):
        update_json(file)


def mend_library(folder: Path) -> None:
    for card in folder.glob("*/card.json"):
        weights, config = card.with_name("adapter_model.safetensors"), card.with_name("adapter_config.json")
        hashes = dict(sha256=compute_sha256(weights.read_bytes()), config_sha256=compute_sha256(config.read_bytes()))
        update_json(card, **hashes, bytes=weights.stat().st_size)
    update_json(folder / "index.json", sha256=compute_sha256((folder / "index.npy").read_bytes()))
    mend_folder(folder)


def mend_site(folder: Path) -> None:
    mend_library(folder)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in (remote_library.MANIFEST_FILE, HEAD_FILE)]
    contents = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
    rows = {name: [len(content), compute_sha256(content)] for name, content in contents.items()}
    update_json(folder / remote_library.MANIFEST_FILE, files=rows)


def mend_bundle(folder: Path) -> None:
    with suppress(ValueError, RecursionError):
        manifest = json.loads((folder / phone_bundle.MANIFEST_FILE).read_text())
        with suppress(AttributeError, TypeError, KeyError, OSError):
            for name, row in manifest["files"].items():
                row["sha256"] = compute_sha256((folder / name).read_bytes())
        if isinstance(manifest, dict):
            (folder / phone_bundle.MANIFEST_FILE).write_text(json.dumps(seal(manifest)))


def make_chats() -> dict:  # name -> content
    "A small file in each format."
    rows = [json.dumps(record, default=str).encode() for _, record, _ in RECORDS]
    files = {f"{i}.jsonl": row + b"\n" + row + b"\n" for i, row in enumerate(rows)}
    files |= {f"{i}.json": row for i, row in enumerate(rows)}
    files["chatgpt.json"] = json.dumps(CHATGPT).encode()
    files["pairs.csv"] = b'prompt,response,time\nHi,Hello,1\n"a\nb",c,2\n'
    files["whatsapp.txt"] = (
        "12.01.24, 14:03 - Ana: Hi\n12.01.24, 14:04 - Bo: Hello\nand more\n[1/2/24, 2:05:06 PM] Ana: Bye\n".encode()
    )
    files["text.txt"] = b"One two three,\nfour five.\n\nSix.\n"
    return files


def read_chats(folder):
    for file in folder.iterdir():
        for invalid in (False, True):
            with suppress(InputError):
                read_dialogues(file, skip_invalid=invalid)


def make_personalizer(folder):
    with MonkeyPatch.context() as patch:
        patch.setattr(personalizer, "tune", fake_tune)
        me = start(folder, capacity=3)
        watch(me, TALK[:5])
        me.finetune(progress=False)
        me.save()


def read_personalizer(folder):
    for read in (read_state, folder_status, lambda place: forget_folder(place, text=TALK[0].prompt, dry_run=True)):
        with suppress(InputError):
            read(folder)


def read_adapter(folder):
    for read in (Adapter.load, read_lora_config, read_factors):
        with suppress(InputError):
            read(folder)


def read_library(folder):
    with suppress(InputError):
        library = Library(folder)
        for name in library:
            with suppress(InputError):
                library[name]
                library.card(name)


def read_lines(folder):
    with suppress(InputError):
        read_json_lines(folder / "rows.jsonl")


def make_bundle(folder):
    bundle_in(folder)
    (folder / "bundle").rename(folder.parent / "bundle itself")
    shutil.rmtree(folder)
    (folder.parent / "bundle itself").rename(folder)


def read_bundle(folder):
    "Open a bundle and train in it; the program is a stand-in."
    execute = lambda ids, targets, *vectors: (1.0, *vectors[:3])
    with suppress(InputError):
        phone.train_bundle(folder, folder / "out", execute)


def make_results(folder):
    with open_results_folder(folder, "report.json", "words.txt") as owned:
        publish_results(owned, {"report.json": "{}", "words.txt": "words"})


def read_results(folder):
    with suppress(InputError):
        recover_results(folder)
        OwnedFolder(folder).check_entries("report.json")


def at_ledger(folder):
    ledger.get_user_folder = lambda *given: folder


def make_ledger(folder):
    at_ledger(folder)
    for place in ("a", "https://b/c"):
        with ledger.record_egress("export", place, "0" * 16) as row:
            row["bytes"] = 5


def read_ledger(folder):
    at_ledger(folder)
    with suppress(InputError):
        ledger.read_ledger()
    with suppress(InputError), ledger.record_egress("export", "d"):
        pass


HEAD_FILE = "head of an answer"


def make_site(folder):
    ledger.get_user_folder = lambda *given: folder.parent / "ledger of requests"
    remote_library.publish_library(folder)
    (folder / HEAD_FILE).write_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: LENGTH\r\nConnection: close\r\n\r\n")


class Answer(StreamRequestHandler):
    "The head of the folder that is served now, and then one of its files."

    def handle(self):
        with suppress(OSError, IndexError):
            path = self.rfile.readline().split()[1].decode().lstrip("/")
            while self.rfile.readline().strip():
                pass
            content = (self.server.folder / path).read_bytes()
            head = (self.server.folder / HEAD_FILE).read_bytes().replace(b"LENGTH", str(len(content)).encode())
            self.wfile.write(head + content)


class Site(ThreadingTCPServer):
    daemon_threads, allow_reuse_address, folder = True, True, None

    def read(self, folder):
        "Use the library that a server of this folder offers."
        self.folder = folder
        ledger.get_user_folder = lambda *given: folder.parent / "ledger of requests"
        with suppress(InputError):
            address = f"http://127.0.0.1:{self.server_address[1]}"
            library = Library(address, folder=folder.parent / "downloaded")
            for name in library:
                with suppress(InputError):
                    library[name]


def read_site(folder):
    if not SITES:
        SITES.append(Site(("127.0.0.1", 0), Answer))
        threading.Thread(target=SITES[0].serve_forever, daemon=True).start()
    SITES[0].read(folder)


SITES = []  # the server of this process


@dataclass
class Target:
    "A kind of input: how a whole one is made, how it is read, and how its checksums are made to agree."

    make: Callable
    read: Callable
    mend: Callable = mend_folder
    file: str = ""  # that is changed; by default any
    share: int = 8  # of the cases; less where a case takes long


TARGETS = dict(
    personalizer=Target(make_personalizer, read_personalizer, share=4),
    adapter=Target(lambda folder: None, read_adapter),  # copied from elsewhere
    library=Target(lambda folder: None, read_library, mend_library, share=2),
    site=Target(make_site, read_site, mend_site, share=1),
    bundle=Target(make_bundle, read_bundle, mend_bundle),
    manifest=Target(make_bundle, read_bundle, mend_bundle, phone_bundle.MANIFEST_FILE),
    results=Target(make_results, read_results),
    ledger=Target(make_ledger, read_ledger),
    lines=Target(lambda f: (f / "rows.jsonl").write_bytes(b'{"a": 1}\n{"b": [2, "x"]}\n'), read_lines),
)


def make_inputs(place: Path) -> dict:  # name -> (folder of a whole input, target)
    "Whole inputs, made once."
    library_module.SPACE_CLASSES["style"], cards.Explanation = libraries.Space, libraries.Words
    (adapters := place / "adapters").mkdir()
    four, inputs = libraries.four(adapters), {}
    for name, target in TARGETS.items():
        folder = place / name
        if name == "adapter":
            shutil.copytree(four[0], folder)
        elif name in ("library", "site"):
            libraries.small(folder, four)
        else:
            folder.mkdir()
        target.make(folder)
        inputs[name] = folder, target
    for name, content in make_chats().items():
        folder = place / "chats" / name
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        inputs[f"chats {name}"] = folder, Target(None, read_chats)
    return inputs


def choose_file(folder: Path, draw: random.Random) -> Path:
    "Draw a file of a folder, small or large alike."
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return draw.choice(files)


def hit_limit(signal_number, frame):
    raise TimeoutError(f"longer than {SECONDS} s")


def run_case(source: Path, target: Target, draw: random.Random) -> str:  # what is wrong, "" if nothing
    "Change one file of an input, and read it."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place, source.name)
        shutil.copytree(source, folder)
        file = folder / target.file if target.file else choose_file(folder, draw)
        content = change_file(file, draw)
        if draw.random() < 0.5:
            target.mend(folder)
        signal.alarm(SECONDS)
        try:
            target.read(folder)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:200]} at {Path(place.filename).name}:{place.lineno}"
            return f"{file.relative_to(folder)}: {what}: {content}"
        finally:
            signal.alarm(0)
    return ""


def choose_input(inputs: dict, number: int) -> str:
    "Every second case is a file of chats."
    kind = [(name, target) for name, (_, target) in inputs.items() if name.startswith("chats") == bool(number % 2)]
    names = [name for name, target in kind for _ in range(target.share)]
    return names[number // 2 % len(names)]


def run_cases(count: int, seed: int, first: int = 0) -> dict:  # cases: reader -> number; wrong: reader -> lines
    "Change inputs, each kind in turn."
    signal.signal(signal.SIGALRM, hit_limit)
    cases, wrong = Counter(), {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        inputs = make_inputs(Path(place))
        limits = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
        try:
            for number in range(first, first + count):
                name = choose_input(inputs, number)
                source, target = inputs[name]
                cases[name.split()[0]] += 1
                if text := run_case(source, target, random.Random(f"{seed} {number}")):
                    wrong.setdefault(name, []).append(f"case {number}: {text}")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    return dict(cases=cases, wrong=wrong)


if __name__ == "__main__":
    print(json.dumps(run_cases(*map(int, sys.argv[1:])), indent=1))
