"Reactions: three kinds, what goes together, and the version that follows."

import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.memory.feedback import Reaction


@pytest.mark.parametrize(
    "values, problem",
    [
        (dict(kind="better", text=" \n"), "better: no text"),
        (dict(kind="down", text=3), "down: the text is 3"),
        (dict(kind="down", text="No."), "down: it takes no text"),
        (dict(kind="up", scope="here"), "up: it takes no scope"),
        (dict(kind="better", text="Yes.", scope="today"), "the scope is 'today'"),
        (dict(kind="scope"), "the kind of reaction is 'scope'"),
        (dict(kind="star"), "the kind of reaction is 'star'"),
        (dict(kind="down", time="now"), "down: the time is 'now'"),
        (dict(kind="down", target=""), "down: the target is ''"),
    ],
)
def test_wrong_reactions_are_one_line(values, problem):
    with pytest.raises(InputError) as error:
        Reaction(**dict(target="d1") | values)
    assert error.value.problem == problem and error.value.remedy


def test_a_reaction_that_changes_nothing_makes_no_version():
    reply = Dialogue("My knee hurts.", "Run.", origin="model")
    better = Reaction("better", reply.id, "Rest it.")
    assert better.apply(better.apply(reply)).parents == (reply.id,)
