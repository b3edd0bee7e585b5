"""Each operation on a folder, cut short at each of its file operations in every way; run by `test_faults.py`.

Python starts this file with `faults.c` loaded before libc, so the cuts reach SQLite and Rust as well. Each case
runs in a child process. We then reopen the folder: it holds the old state or the new one. A retry gives the new one,
and no debris. Where only the clock jumps, by a year, the operation must succeed.

    cc -shared -fPIC -o faults.so tests/faults.c -ldl
    LD_PRELOAD=./faults.so PYTHONPATH=.:tests python tests/fault_cases.py ./faults.so 1 1     # all cuts, seed 1
"""

import ctypes
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Callable
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import libraries
from devices import LEXICONS, TALK, Fake, User, fake_tune, open_talk, say, start, watch, weights_hash
from kills import ended
from servers import chat_server
from tiny import shared

from personal_llm.base.adapters import WEIGHTS_FILE, Adapter
from personal_llm.base.core import InputError
from personal_llm.base import models
from personal_llm.base.files import compute_sha256, open_results_folder, publish_results, recover_results
from personal_llm.device import background_training, personalizer
from personal_llm.device.forgetting import forget_folder
from personal_llm.device.personalizer import load_personalizer
from personal_llm.runtimes import idle
from personal_llm.selection import cards
from personal_llm.selection import library as library_module
from personal_llm.selection.library import Library
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune

KINDS = ("count", "kill", "torn", "full", "broken", "interrupted", "short", "nosync", "back", "ahead")
HARMLESS = ("interrupted", "short", "back", "ahead")  # the operation must go on and succeed
WRITE, SYNC = 1, 2  # as in `faults.c`
AT_WRITES = ("torn", "interrupted", "short")  # the other kinds but `nosync` strike at each operation
DIED, REFUSED = 9, 3


def load(folder):
    return load_personalizer(folder, Fake(), User(), LEXICONS)


def state_of(folder) -> str:
    "All of a personalizer that must survive, without what is drawn anew or measured by a clock."
    try:
        me = load(folder)
    except InputError as error:
        assert any(words in str(error) for words in ("no saved state", "nothing is stored")), error
        return "no state"
    rounds = [(r.seen, r.kept, r.parents, r.start, r.best_loss) for r in me.rounds]
    reactions = [(row["kind"], row["dialogue_id"], row["text"]) for row in me.feedback_rows]
    adapter = me.adapter and weights_hash(me.adapter)
    state = me.state
    facts = me.buffer.log, me.buffer.dialogues, rounds, sorted(me.asked_ids), sorted(me.memory.dialogues)
    facts += (state.turns, state.subject_turns, state.question_id)
    return repr((facts, reactions, adapter, me.cost.requests, me.buffer.random.bit_generator.state))


def lived(folder, tunes=1):
    "A personalizer with a few dialogues, a correction and fine-tunes, saved in the folder."
    me = start(folder, user=User())
    watch(me, TALK[:6])
    for _ in range(tunes):
        me.finetune(progress=False)
    me.react(me.buffer.dialogues[0].id, "better", "a better answer")
    me.save()
    return me


def observe(folder):
    me = load(folder)
    watch(me, TALK[6:9])
    me.save()


def save_first(folder):
    me = start(folder, user=User())
    watch(me, TALK[:5])
    me.save()


def react(folder):
    me = load(folder)
    me.react(me.buffer.dialogues[1].id, "edit", "rather like this")
    me.react(me.buffer.dialogues[2].id, "thumb_up")
    me.save()


def tune(folder):
    me = load(folder)
    me.finetune(progress=False)
    me.save()


def publish(folder):
    with open_results_folder(folder, "report.json", "words.txt") as owned:
        publish_results(owned, {"report.json": json.dumps(dict(loss=1.5)), "words.txt": "new " * 5000})


def publish_old(folder):
    with open_results_folder(folder, "report.json", "words.txt") as owned:
        publish_results(owned, {"report.json": "{}", "words.txt": "old " * 5000})


def results_of(folder) -> str:
    recover_results(folder)
    return repr(
        {name: (folder / name).read_text() for name in ("report.json", "words.txt") if (folder / name).exists()}
    )


ADAPTERS = []  # four, made once


def make_library(folder):
    folder.rmdir()
    libraries.small(folder, ADAPTERS)


def add_to_library(folder):
    library = Library(folder)
    if "d" not in library:
        library.add("d", ADAPTERS[3], libraries.words(3), similarity=0.9, style="loud", **libraries.GIVEN)


def remove_from_library(folder):
    with suppress(KeyError):
        Library(folder).remove("b")


def library_of(folder) -> str:
    library = Library(folder)
    return repr(
        [(name, compute_sha256((folder / name / "adapter_model.safetensors").read_bytes())) for name in library]
    )


def check_stored(messages: list) -> None:
    "Raise `InputError` if a session told its user that something is not stored."
    if messages:
        raise InputError(messages[0], "it is tried again")


@lru_cache
def count_turns() -> int:
    "The number of turns until the first question."
    with tempfile.TemporaryDirectory() as place, open_talk(Path(place)) as talk:
        for number, d in enumerate(TALK, 1):
            say(talk, d)
            if talk.question:
                return number


def talked(folder, turns=-1):
    with open_talk(folder) as talk:
        for d in TALK[: count_turns() + turns]:
            say(talk, d)


def ask(folder):
    with open_talk(folder) as talk:
        if len(talk.turns) < count_turns():
            say(talk, TALK[count_turns() - 1])
    check_stored(talk.messages_to_user)


def answer(folder):
    with open_talk(folder) as talk:
        if talk.question:
            talk.answer("a better answer")
    check_stored(talk.messages_to_user)


def serve(folder):
    "A page sends a correction."
    with chat_server(open_talk(folder)) as running:
        body = json.dumps(dict(id=running.session.turns[0]["id"], better="rather like this"))
        head = {"Authorization": f"Bearer {running.token}", "Content-Type": "application/json"}
        try:
            urlopen(Request(f"{running.address}/personal/feedback", body.encode(), head)).read()
        except HTTPError as error:  # such as a second try of what is stored already
            raise InputError(f"refused with {error.code}", "look at the page") from error
    check_stored(running.worker.notices)


def talk_of(folder) -> str:
    "A chat, without its times and ids."
    me = load(folder)
    turns = [(turn["prompt"], turn["response"]) for turn in me.turns]
    question = me.question and me.question.dialogue.prompt
    kept = [(d.prompt, d.response, d.origin) for d in me.buffer.dialogues]
    reactions = [(row["kind"], row["text"]) for row in me.feedback_rows]
    return repr((turns, question, kept, reactions, [(row.kept, row.reason) for row in me.buffer.log]))


def learn(folder):
    idle.finetune_folder(folder, Fake, None)


def train(folder):
    "Three steps and three checkpoints of a real model, of which a second try takes the last."
    config = TuningConfig(steps=3, checks=3, rank=2, layers=1)
    finetune(shared("llama"), TALK[:3], config, out=folder / "adapter", progress=False)


def weights_of(folder) -> str:
    try:
        return compute_sha256((Adapter.load(folder / "adapter").path / WEIGHTS_FILE).read_bytes())
    except InputError:
        return "none"


def write_carelessly(folder, text="new"):
    begin = time.time()
    for name in ("a.txt", "b.txt"):
        if 0 <= time.time() - begin < 60:
            (folder / name).write_text(text)


def careless_files(folder) -> str:
    return repr([(folder / name).read_text() for name in ("a.txt", "b.txt")])


@dataclass
class Operation:
    prepare: Callable  # the old state
    work: Callable
    look: Callable = state_of
    is_copied: bool = False  # prepared once: no file of it is known by its inode


OPERATIONS = {
    "save a new folder": Operation(lambda folder: None, save_first),
    "observe": Operation(lived, observe),
    "feedback": Operation(lived, react),
    "fine-tune": Operation(lived, tune),
    "forget a text": Operation(lambda f: lived(f, 2), lambda f: forget_folder(f, text=TALK[2].prompt)),
    "forget all": Operation(lived, lambda f: forget_folder(f, everything=True)),
    "publish": Operation(publish_old, publish, results_of, True),
    "ask": Operation(talked, ask, talk_of, True),
    "answer": Operation(lambda f: talked(f, 0), answer, talk_of, True),
    "serve": Operation(talked, serve, talk_of, True),
    "learn": Operation(lived, learn),
    "training": Operation(lambda folder: None, train, weights_of),
    "library add": Operation(make_library, add_to_library, library_of, True),
    "library remove": Operation(make_library, remove_from_library, library_of, True),
    "careless": Operation(lambda f: write_carelessly(f, "old"), write_carelessly, careless_files),
}


def names_in(folder) -> list:
    "The files below a folder; SQLite's second files come and go."
    names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    return sorted(re.sub(r"\d+\.tmp", "N.tmp", name) for name in names if not name.endswith(("-wal", "-shm")))


PREPARED = {}  # name of an operation -> a folder in its old state


def prepare(name: str, folder: Path) -> None:
    "Make a folder in the old state."
    operation = OPERATIONS[name]
    if operation.is_copied and name not in PREPARED:
        PREPARED[name] = Path(tempfile.mkdtemp(), "old")
        PREPARED[name].mkdir()
        operation.prepare(PREPARED[name])
    if operation.is_copied:
        shutil.copytree(PREPARED[name], folder)
    else:
        folder.mkdir()
        operation.prepare(folder)


def run_cut(faults, folder, work, step, kind) -> int:  # exit code
    "Do the work in a child process with a fault."
    child = os.fork()
    if not child:
        code = 1
        try:
            faults.fault_arm(str(folder).encode(), step, KINDS.index(kind))
            work(folder)
            code = 0
        except (InputError, OSError):  # the command line words both
            code = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return ended(child)


def list_steps(faults, folder, work) -> list:  # of each file operation: WRITE, SYNC or 0
    faults.fault_arm(str(folder).encode(), -1, 0)
    work(folder)
    operations = [faults.fault_operation(step) for step in range(1, faults.fault_count() + 1)]
    faults.fault_arm(b"", -1, 0)
    return operations


def list_cases(operations: list) -> list:  # (step, kind)
    "Return the cuts that change anything."
    kinds = {WRITE: set(KINDS) - {"nosync"}, SYNC: set(KINDS) - {"full", *AT_WRITES}}
    others = set(KINDS) - {"nosync", *AT_WRITES}
    every = ((step, kind, kinds.get(found, others)) for step, found in enumerate(operations, 1) for kind in KINDS[1:])
    return [(step, kind) for step, kind, strikes in every if kind in strikes]


def check_case(faults, name, step, kind, old, new, files) -> str:  # what is wrong, "" if nothing
    "Cut an operation once, reopen, and try again."
    operation = OPERATIONS[name]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place, "me")
        prepare(name, folder)
        code = run_cut(faults, folder, operation.work, step, kind)
        if code not in ((0,) if kind in HARMLESS else (0, DIED, REFUSED)):
            return f"ended with {code}"
        try:
            found = operation.look(folder)
            if found not in (old, new) or (code == 0 and found != new):
                return "a third state" if found not in (old, new) else "an acknowledged change is lost"
            with suppress(InputError):  # what is gone already cannot be forgotten again
                operation.work(folder)
            if operation.look(folder) != new and found != new:
                return "a retry does not give the new state"
        except Exception as error:
            return f"reopening: {type(error).__name__}: {str(error)[:200]}"
        left = sorted({*names_in(folder)} - {*files})
        return f"debris: {left[:3]}" if left and found == old else ""


def main(library: str, share: float, seed: int, only: str = ""):  # only: names, with commas
    "Print a line of JSON an operation: steps, cases, what is wrong."
    faults = ctypes.CDLL(library)
    personalizer.tune = fake_tune
    models.load_model = lambda name: Fake()
    Fake.model = None  # of which the hook is a stand-in, too
    idle.install_stop_hook = background_training.install_stop_hook = lambda inner, stop: SimpleNamespace(
        remove=lambda: None
    )
    library_module.SPACE_CLASSES["style"], cards.Explanation = libraries.Space, libraries.Words
    made = tempfile.mkdtemp()
    ADAPTERS.extend(libraries.four(Path(made)))
    sys.modules["torch"].set_num_threads(1)
    for name, operation in OPERATIONS.items():
        if only and name not in only.split(","):
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            folder = Path(place, "me")
            prepare(name, folder)
            old = operation.look(folder)
            steps = list_steps(faults, folder, operation.work)
            new, files = operation.look(folder), names_in(folder)
        assert old != new, f"{name} changes nothing"
        draw = random.Random(f"{seed} {name}")
        cases = [case for case in list_cases(steps) if draw.random() < share]
        wrong = [(*case, text) for case in cases if (text := check_case(faults, name, *case, old, new, files))]
        print(json.dumps(dict(operation=name, steps=len(steps), cases=len(cases), wrong=wrong)), flush=True)
    for place in (made, *(folder.parent for folder in PREPARED.values())):
        shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
