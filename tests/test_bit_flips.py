"No changed bit of a folder is accepted with another meaning."

import pytest

from bit_flips import run_flips


def check(count: int, least_refused: float) -> None:
    found = run_flips(count, 1)
    assert {name: row["wrong"] for name, row in found.items()} == dict.fromkeys(found, [])
    assert sum(row["flips"] for row in found.values()) > 0.98 * count
    assert sum(row["refused"] for row in found.values()) > least_refused * count, "most bits mean something"


def test_a_tenth_of_the_flips():
    check(300, 0.5)


@pytest.mark.slow
def test_all_flips():
    check(3000, 0.5)
