"Processes that die at their k-th operation on a file or statement of SQL, so that nothing cleans up after them."

import builtins
import multiprocessing
import os
import shutil
import sqlite3
import sys
import traceback

import pytest

OPERATIONS = [(os, name) for name in ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "fsync", "open")]


def at_operation(step, act, change=setattr) -> list:
    "Let the step-th operation of this process on a file, or before a statement of SQL, `act` instead; the list counts."
    count = [0]

    def now() -> bool:
        count[0] += 1
        return count[0] == step + 1

    def guarded(operation):
        def call(*given, **named):
            return act() if now() else operation(*given, **named)

        return call

    for owner, name in OPERATIONS:
        change(owner, name, guarded(getattr(owner, name)))
    real = builtins.open

    def opened(file, mode="r", *given, **named):
        writes = set(mode) & set("wax+") and not isinstance(file, int)
        return act() if writes and now() else real(file, mode, *given, **named)

    def connect(*given, connect=sqlite3.connect, **named):
        connection = connect(*given, **named)
        connection.set_trace_callback(lambda statement: act() if now() else None)
        return connection

    change(builtins, "open", opened)
    change(sqlite3, "connect", connect)
    return count


# A child of a process that has computed may hang: threads of the parent hold locks that nobody frees. Children
# therefore come from a server that has imported everything, and computed nothing.
FORKS = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if FORKS:
    FORKS.set_forkserver_preload(["torch", "transformers", "peft", "personal_llm"])

needs_fork = pytest.mark.skipif(not FORKS, reason="kills need fork")


def die(step, environment, work, given, named) -> None:
    "Do some work, in a child process that ends at an operation."
    os.environ.update(environment)
    try:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        at_operation(step, lambda: os._exit(9))
        work(*given, **named)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def killed_at(step, work, *given, **named) -> bool:
    "Return whether some work died at an operation; the work is a function of a module."
    child = FORKS.Process(target=die, args=(step, dict(os.environ), work, given, named))
    child.start()
    child.join(180)
    child.kill()  # one that hangs
    child.join()
    assert child.exitcode in (0, 9), f"the work failed at operation {step}"
    return child.exitcode == 9


def look_after_kills(folder, work, look) -> list:
    "Do some work on copies of a folder, each killed one operation later, and return what is seen of each copy."
    seen = []
    is_killed = True
    while is_killed:
        copy = folder.with_name(f"{folder.name} {len(seen)}")
        shutil.copytree(folder, copy)
        is_killed = killed_at(len(seen), work, copy)
        seen.append(look(copy))
        shutil.rmtree(copy)
    return seen
