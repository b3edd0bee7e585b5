"Reactions: three kinds, and the version that each of them makes."

import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.buffer.feedback import Feedback


@pytest.mark.parametrize(
    "values, problem",
    [
        (dict(kind="edit"), "the kind of feedback is 'edit'"),
        (dict(kind="better", text=" \n"), "better: no text"),
        (dict(kind="up", text="Rest it."), "up: it takes no text and no scope"),
        (dict(kind="down", text=3), "down: the text is 3"),
        (dict(kind="better", text="Rest.", scope="sometimes"), "the scope is 'sometimes'"),
        (dict(kind="down", scope="here"), "down: it takes no text and no scope"),
        (dict(kind="down", time="now"), "down: the time is 'now'"),
        (dict(kind="down", dialogue_id=""), "down: the id is ''"),
    ],
)
def test_wrong_reactions_are_one_line(values, problem):
    with pytest.raises(InputError) as error:
        Feedback(**dict(dialogue_id="d1") | values)
    assert error.value.problem == problem and error.value.remedy


def test_each_reaction_makes_a_version_with_all_earlier_ones_as_parents():
    reply = Dialogue("My knee hurts.", "Run.", origin="model")
    better = Feedback("better", reply.id, "Rest it.").apply(reply)
    assert (better.response, better.origin, better.parents) == ("Rest it.", "annotated", (reply.id,))
    down = Feedback("down", reply.id).apply(better)
    assert (down.response, down.origin, down.parents) == ("Rest it.", "model", (reply.id, better.id))
    assert Feedback("up", reply.id).apply(down).origin == "approved"


def test_a_reaction_that_changes_nothing_makes_no_version():
    reply = Dialogue("My knee hurts.", "Run.", origin="model")
    better = Feedback("better", reply.id, "Rest it.")
    assert better.apply(better.apply(reply)).parents == (reply.id,)
