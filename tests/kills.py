"Processes that really die in the middle of their file operations."

import builtins
import itertools
import os

OPERATIONS = [(os, name) for name in ("replace", "unlink", "rmdir", "mkdir", "fsync", "open", "rename", "link")]


def at_operation(step, monkeypatch, act):
    "Let the step-th file operation of this process `act` instead."
    count = itertools.count()

    def guarded(operation):
        def call(*given, **named):
            return act() if next(count) == step else operation(*given, **named)

        return call

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    real = builtins.open

    def opened(file, mode="r", *given, **named):
        writes = set(mode) & set("wax+") and not isinstance(file, int)
        return act() if writes and next(count) == step else real(file, mode, *given, **named)

    monkeypatch.setattr(builtins, "open", opened)
    return count


def killed_at(step, monkeypatch, work) -> bool:
    "Run `work` in a child that dies at its step-th file operation; False when it ended before."
    child = os.fork()
    if not child:
        try:
            at_operation(step, monkeypatch, lambda: os._exit(9))
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, 9), f"the child failed at operation {step}"
    return ended == 9
