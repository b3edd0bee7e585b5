"Values that are refused: each in one line that names the value, shows it, and says what to give."

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from personal_llm.base.core import Dialogue, InputError, check
from personal_llm.base.core import hash_history, import_extra

NUMBER = 10**400

REFUSED = [  # value, kind, other arguments, the end of the line
    (True, "whole number", dict(low=1), "x is True; give a whole number of at least 1"),
    (2.0, "whole number", dict(low=1, high=100), "x is 2.0; give a whole number from 1 to 100"),
    (11, "whole number", dict(high=10), "x is 11; give a whole number of at most 10"),
    (float("nan"), "number", {}, "x is nan; give a finite number"),
    (NUMBER, "number", {}, "0…; give a finite number"),
    (float("inf"), "positive number", {}, "x is inf; give a finite number above 0"),
    (0, "positive number", {}, "x is 0; give a finite number above 0"),
    (1.5, "share", {}, "x is 1.5; give a number from 0 to 1"),
    (1, "share", dict(high=0.99), "x is 1; give a number from 0 to 0.99"),
    (None, "text", {}, "x is None; give text"),
    (" ", "name", {}, "x is ' '; give text that is not empty"),
    (1, "yes or no", {}, "x is 1; give True or False"),
    ("f", "function", {}, "x is 'f'; give a function"),
    ("noon", "choice", dict(choices=("freeze", "arrival")), "x is 'noon'; use one of freeze, arrival"),
    (1, "choice or none", dict(choices=("1",)), "x is 1; use one of 1"),
    ("adapter", dict, {}, "x is 'adapter'; give an instance of dict"),
    (object(), "text", dict(remedy="leave it out"), "x is object; leave it out"),
]


@pytest.mark.parametrize("value, kind, options, line", REFUSED, ids=lambda part: str(part)[:20])
def test_a_wrong_value_is_one_line(value, kind, options, line):
    with pytest.raises(InputError) as raised:
        check(value, kind, "x", **options)
    assert str(raised.value).startswith("x is ") and str(raised.value).endswith(line)


def test_a_right_value_comes_back_as_a_plain_one():
    assert type(check(np.int64(3), "whole number", "x")) is int and type(check(np.float32(3), "number", "x")) is float
    assert check(None, "number or none", "x") is None and check(print, "function", "x") is print
    assert check(0.25, "share", "x") == 0.25 and check("b", "choice", "x", choices=("a", "b")) == "b"


@pytest.mark.parametrize(
    "wrong, line",
    [
        (dict(prompt=" ", response="x"), "empty prompt"),
        (dict(prompt="x", response=None), "the response is None; give text"),
        (dict(prompt="x", response="y", origin="dream"), "origin is 'dream'; use one of model, user, approved"),
        (dict(prompt="x", response="y", parents="abc"), "parents is 'abc'"),
        (dict(prompt="x", response="y", id=7), "id is 7; give text, or leave it out"),
        (dict(prompt="x", response="y", labels=["a"]), "labels is ..a..; give names and values"),
        (dict(prompt="x", response="y", id="abc", parents=["abc"]), "dialogue abc is its own parent"),
        (dict(prompt="x", response="y", time="noon"), "the time is 'noon'; give seconds"),
        (dict(prompt="x", response="y", history=["Hello"]), "a turn of the history is 'Hello'"),
        (dict(prompt="x", response="y", history=[("user", 3)]), "a turn of the history is"),
        (dict(prompt="x", response="y", history=[("user", "a", 0)]), "a turn of the history is"),
    ],
)
def test_a_wrong_dialogue_fails_when_it_is_made(wrong, line):
    with pytest.raises(InputError, match=line):
        Dialogue(**wrong)


def test_a_dialogue_does_not_change_and_a_row_has_no_unknown_field():
    with pytest.raises(FrozenInstanceError):
        Dialogue("Hi", "Hello.").response = "changed"
    with pytest.raises(InputError, match="unknown dialogue fields .'mood'.; use .'prompt'"):
        Dialogue.from_dict(dict(prompt="Hi", response="", mood="good"))


def test_the_hash_of_a_history_does_not_depend_on_what_was_read_before():
    talk = (("user", "Hello"), ("assistant", "Hi."), ("user", "How are you?"), ("assistant", "Fine."))
    digest = hash_history(talk[:2])
    assert hash_history(()) == "" and hash_history(talk) != digest
    assert hash_history(talk[:2]) == digest
    again = Dialogue("Yes", "Good.", [*map(list, talk)])
    assert again.history == talk and again.id == Dialogue("Yes", "Good.", talk).id


def test_a_missing_package_says_what_to_type():
    with pytest.raises(InputError, match=r'a voyage needs the package ships.*pip install "personal_llm\[sea\]"'):
        import_extra("ships", "sea", "a voyage")
