"""Each operation on a folder, cut short at each of its file operations in every way; run by `test_faults.py`.

Python starts this file with `faults.c` loaded before libc, so the cuts reach SQLite and Rust as well. Each case
runs in a child process. We then reopen the folder: it holds the old state or the new one. A retry gives the new one,
and no debris.
"""

import ctypes
import json
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import libraries
from devices import LEXICONS, TALK, Fake, User, fake_tune, start, watch, weights_hash
from kills import ended

from personal_llm.base.core import InputError
from personal_llm.base.files import compute_sha256, open_results_folder, publish_results, recover_results
from personal_llm.device import personalizer
from personal_llm.device.forgetting import forget_folder
from personal_llm.device.personalizer import load_personalizer
from personal_llm.device.store import OLD_STATE_FILE, read_state
from personal_llm.selection import cards
from personal_llm.selection import library as library_module
from personal_llm.selection.library import Library

KINDS = ("count", "kill", "torn", "full", "broken", "interrupted", "short", "nosync")
HARMLESS = ("interrupted", "short")  # the operation must go on and succeed
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
    facts = me.buffer.log, me.buffer.dialogues, rounds, sorted(me.asked_ids), sorted(me.exchange_hashes), me.session
    return repr((facts, reactions, adapter, me.cost.requests, me.buffer.random.bit_generator.state))


def lived(folder, tunes=1):
    "A personalizer with a few dialogues, a correction and fine-tunes, saved in the folder."
    me = start(folder, user=User())
    watch(me, TALK[:6])
    for _ in range(tunes):
        me.finetune(progress=False)
    me.feedback(me.buffer.dialogues[0].id, "better", "a better answer")
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
    me.feedback(me.buffer.dialogues[1].id, "edit", "rather like this")
    me.feedback(me.buffer.dialogues[2].id, "thumb_up")
    me.save()


def tune(folder):
    me = load(folder)
    me.finetune(progress=False)
    me.save()


def write_old_folder(folder):
    "The files of a version without a store."
    state = load_lived_state(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    content = state.buffer.to_bytes()
    name = f"buffer-{compute_sha256(content)[:16]}.safetensors"
    row = vars(state) | dict(rounds=[], buffer=name, cost=state.cost.to_dict(), asked_ids=sorted(state.asked_ids))
    (folder / name).write_bytes(content)
    (folder / OLD_STATE_FILE).write_text(json.dumps(row))


def load_lived_state(folder):
    me = start(folder, user=User())
    watch(me, TALK[:6])
    me.save()
    return read_state(folder)


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


def write_carelessly(folder, text="new"):
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(text)


def careless_files(folder) -> str:
    return repr([(folder / name).read_text() for name in ("a.txt", "b.txt")])


@dataclass
class Operation:
    prepare: Callable  # the old state
    work: Callable
    look: Callable = state_of


OPERATIONS = {
    "save a new folder": Operation(lambda folder: None, save_first),
    "observe": Operation(lived, observe),
    "feedback": Operation(lived, react),
    "fine-tune": Operation(lived, tune),
    "forget a text": Operation(lambda f: lived(f, 2), lambda f: forget_folder(f, text=TALK[2].prompt)),
    "forget all": Operation(lived, lambda f: forget_folder(f, everything=True)),
    "migrate": Operation(write_old_folder, observe),
    "publish": Operation(publish_old, publish, results_of),
    "library add": Operation(make_library, add_to_library, library_of),
    "library remove": Operation(make_library, remove_from_library, library_of),
    "careless": Operation(lambda f: write_carelessly(f, "old"), write_carelessly, careless_files),
}


def names_in(folder) -> list:
    "The files below a folder; SQLite's second files come and go."
    names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    return sorted(re.sub(r"\d+\.tmp", "N.tmp", name) for name in names if not name.endswith(("-wal", "-shm")))


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


def count_steps(faults, folder, work) -> int:
    faults.fault_arm(str(folder).encode(), -1, 0)
    work(folder)
    count = faults.fault_count()
    faults.fault_arm(b"", -1, 0)
    return count


def check_case(faults, name, step, kind, old, new, files) -> str:  # what is wrong, "" if nothing
    "Cut an operation once, reopen, and try again."
    operation = OPERATIONS[name]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place, "me")
        folder.mkdir()
        operation.prepare(folder)
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


def main(library: str, share: float, seed: int, only: str = ""):
    "Print a line of JSON an operation: steps, cases, what is wrong."
    faults = ctypes.CDLL(library)
    personalizer.tune = fake_tune
    library_module.SPACE_CLASSES["style"], cards.Explanation = libraries.Space, libraries.Words
    made = tempfile.mkdtemp()
    ADAPTERS.extend(libraries.four(Path(made)))
    sys.modules["torch"].set_num_threads(1)
    for name, operation in OPERATIONS.items():
        if only and only != name:
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            folder = Path(place, "me")
            folder.mkdir()
            operation.prepare(folder)
            old = operation.look(folder)
            steps = count_steps(faults, folder, operation.work)
            new, files = operation.look(folder), names_in(folder)
        assert old != new or name == "migrate", f"{name} changes nothing"
        cases = [(step, kind) for step in range(1, steps + 1) for kind in KINDS[1:]]
        draw = random.Random(f"{seed} {name}")
        cases = [case for case in cases if draw.random() < share]
        wrong = [(*case, text) for case in cases if (text := check_case(faults, name, *case, old, new, files))]
        print(json.dumps(dict(operation=name, steps=steps, cases=len(cases), wrong=wrong)), flush=True)
    shutil.rmtree(made)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
