"Reactions: three kinds, and the version that each of them makes."

import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.memory.feedback import Feedback


@pytest.mark.parametrize(
    "values, problem",
    [
        (dict(kind="better", text=" \n"), "better: no text"),
        (dict(kind="down", text=3), "down: the text is 3"),
        (dict(kind="down", scope="here"), "down: it takes no text and no scope"),
        (dict(kind="down", time="now"), "down: the time is 'now'"),
        (dict(kind="down", dialogue_id=""), "down: the id is ''"),
    ],
)
def test_wrong_reactions_are_one_line(values, problem):
    with pytest.raises(InputError) as error:
        Feedback(**dict(dialogue_id="d1") | values)
    assert error.value.problem == problem and error.value.remedy


def test_a_reaction_that_changes_nothing_makes_no_version():
    reply = Dialogue("My knee hurts.", "Run.", origin="model")
    better = Feedback("better", reply.id, "Rest it.")
    assert better.apply(better.apply(reply)).parents == (reply.id,)
