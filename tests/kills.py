"Processes that die at their k-th operation on a file or statement of SQL, so that nothing cleans up after them."

import builtins
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback

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


def ended(child, patience=180) -> int:
    "The exit code of a child; one that hangs is killed after so many seconds."
    for _ in range(int(patience / 0.01)):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start_child(step, work) -> int:  # its process id
    "Do some work in a child process that dies at an operation."
    child = os.fork()
    if not child:
        try:
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)  # the parent's other threads are not in the child
            at_operation(step, lambda: os._exit(9))
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def killed_at(step, work) -> bool:
    "Return whether some work died at an operation; a child that hangs, as after a fork it may, gets a second try."
    code = ended(start_child(step, work))
    if code == -signal.SIGKILL:
        code = ended(start_child(step, work))
    assert code in (0, 9), f"the work failed at operation {step}"
    return code == 9


def look_after_kills(folder, work, look) -> list:
    "Do some work on copies of a folder, each killed one operation later, and return what is seen of each copy."
    seen = []
    is_killed = True
    while is_killed:
        copy = folder.with_name(f"{folder.name} {len(seen)}")
        shutil.copytree(folder, copy)
        is_killed = killed_at(len(seen), lambda: work(copy))
        seen.append(look(copy))
        shutil.rmtree(copy)
    return seen
