"""Damaged and strange files for every reader: a clear refusal or a result, never a traceback, a hang or much memory."""

import json
import random
import resource
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import libraries
from candidates import stream
from devices import TALK, fake_tune, start, watch
from pytest import MonkeyPatch
from test_exports import CHATGPT
from test_formats import RECORDS

from personal_llm.base.adapters import Adapter, read_factors, read_lora_config
from personal_llm.base.core import InputError
from personal_llm.base.files import read_json_lines
from personal_llm.buffer.buffer import Buffer, load_buffer
from personal_llm.data.reading import read_dialogues
from personal_llm.device import personalizer
from personal_llm.device.store import folder_status, read_state
from personal_llm.selection import cards
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
    for read in (read_state, folder_status):
        with suppress(InputError):
            read(folder)


def make_buffer(folder):
    buffer = Buffer(3, "fifo")
    for candidate in stream(5):
        buffer.add(candidate)
    buffer.save(folder / "buffer.safetensors")


def read_buffer(folder):
    with suppress(InputError):
        load_buffer(folder / "buffer.safetensors")


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


def make_targets(place: Path) -> dict:  # name -> (folder of a whole input, reader)
    "Whole inputs, made once."
    library_module.SPACE_CLASSES["style"], cards.Explanation = libraries.Space, libraries.Words
    made = {name: place / name for name in ("personalizer", "buffer", "adapter", "library", "lines")}
    for name in ("personalizer", "buffer", "adapter", "lines"):
        made[name].mkdir()
    make_personalizer(made["personalizer"])
    make_buffer(made["buffer"])
    (adapters := place / "adapters").mkdir()
    four = libraries.four(adapters)
    shutil.rmtree(made["adapter"])
    shutil.copytree(four[0], made["adapter"])
    libraries.small(made["library"], four)
    (made["lines"] / "rows.jsonl").write_bytes(b'{"a": 1}\n{"b": [2, "x"]}\n')
    readers = dict(personalizer=read_personalizer, buffer=read_buffer, adapter=read_adapter, library=read_library)
    targets = {name: (made[name], read) for name, read in (readers | dict(lines=read_lines)).items()}
    for name, content in make_chats().items():
        folder = place / "chats" / name
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        targets[f"chats {name}"] = folder, read_chats
    return targets


def choose_file(folder: Path, draw: random.Random) -> Path:
    "Draw a file of a folder, small or large alike."
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return draw.choice(files)


def hit_limit(signal_number, frame):
    raise TimeoutError(f"longer than {SECONDS} s")


def run_case(target: Path, read, draw: random.Random) -> str:  # what is wrong, "" if nothing
    "Damage one file of an input, and read it."
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, target.name)
        shutil.copytree(target, folder)
        file = choose_file(folder, draw)
        content = damage(file.read_bytes(), draw)
        file.write_bytes(content)
        signal.alarm(SECONDS)
        try:
            read(folder)
        except Exception as error:
            return f"{file.relative_to(folder)} ({content[:200]!r}): {type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.alarm(0)
    return ""


def run_cases(count: int, seed: int) -> dict:  # target -> what is wrong
    "Damage inputs, each target in turn."
    signal.signal(signal.SIGALRM, hit_limit)
    wrong = {}
    with tempfile.TemporaryDirectory() as place:
        targets = make_targets(Path(place))
        limits = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
        try:
            for number in range(count):
                name, (target, read) = list(targets.items())[number % len(targets)]
                if text := run_case(target, read, random.Random(f"{seed} {number}")):
                    wrong.setdefault(name, []).append(f"case {number}: {text}")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    return wrong
