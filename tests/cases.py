"One test over many values: each failure names its value, and pytest need not keep a test for each."

from contextlib import contextmanager


@contextmanager
def case(*names):
    "Put the names of a value in front of a failed assertion."
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{', '.join(map(str, names))}: {type(error).__name__}: {error}") from error
