"Reactions: three kinds, the newest counts, and a disliked reply trains nothing."

import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.buffer.feedback import FEEDBACK_KINDS, Feedback, drop_disliked, find_latest, get_first_id


@pytest.mark.parametrize(
    "values, problem",
    [
        (dict(kind="edit"), "the kind of feedback is 'edit'"),
        (dict(kind="better"), "better: no text"),
        (dict(kind="better", text=" \n"), "better: no text"),
        (dict(kind="up", text="Rest it."), "up: it takes no text"),
        (dict(kind="down", text=3), "down: the text is 3"),
        (dict(kind="down", time="now"), "down: the time is 'now'"),
        (dict(kind="down", dialogue_id=""), "down: the id is ''"),
    ],
)
def test_wrong_reactions_are_one_line(values, problem):
    with pytest.raises(InputError) as error:
        Feedback(**dict(dialogue_id="d1") | values)
    assert error.value.problem == problem and error.value.remedy


def test_only_a_thumb_up_is_no_correction():
    texts = dict(better="Rest it.")
    corrections = [Feedback(kind, "d1", texts.get(kind, "")).is_correction for kind in FEEDBACK_KINDS]
    assert corrections == [True, False, True]


def test_the_newest_reaction_counts_whatever_the_order():
    first, second = Feedback("down", "d1", time=1.0), Feedback("up", "d1", time=2.0)
    assert find_latest([first, second]) == find_latest([second, first]) == dict(d1=second)
    twice = [Feedback("down", "d1"), Feedback("up", "d1")]
    assert find_latest(twice)["d1"].kind == "up", "of equal times the last one"


def test_a_disliked_reply_trains_nothing_but_its_correction_does():
    reply = Dialogue("My knee hurts.", "Run.", origin="model")
    corrected = reply.derive(response="Rest it.", origin="annotated")
    again = corrected.derive(response="Rest it well.", parents=(*corrected.parents, corrected.id))
    assert get_first_id(reply) == get_first_id(corrected) == get_first_id(again) == reply.id
    down = Feedback("down", reply.id)
    assert drop_disliked([reply, corrected, again], [down]) == [corrected, again]
    assert drop_disliked([reply], [down, Feedback("up", reply.id, time=1.0)]) == [reply]
