"The policy `answers-first`: answers stay, questions keep to their budget."

import numpy as np
import pytest
from candidates import reopen

from personal_llm.base.core import Dialogue
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.scoring import ScoredDialogue, Scores


def candidate(number, direction, origin="model", prompt=""):
    "A dialogue of no words in common with another."
    scores = Scores(0.5, 0.5, 0.1, "none", np.array(direction, np.float32), 1.0, 9, "base", 0.0)
    words = " ".join(f"w{number}x{k}" for k in range(9))
    return ScoredDialogue(Dialogue(prompt or words, f"Answer {number}", origin=origin, id=f"d{number}"), scores)


def stream(count, seed=0):
    "Episodes of ten; the second direction is the subject that the user corrects."
    rng = np.random.default_rng(seed)
    is_subject = rng.random(count // 10 + 1) < 0.15
    rows = [(candidate(i, np.eye(4)[int(is_subject[i // 10])] * 3 + rng.normal(size=4)), i) for i in range(count)]
    return [(c, bool(is_subject[i // 10])) for c, i in rows]


def run(rows, questions=32, corrects=True, buffer=None, asked=None):
    "Offer a stream; answer the policy's questions. Places of the questions, and whether they were corrected."
    if buffer is None:
        buffer = Buffer(32)
        buffer.policy.horizon = len(rows)
    asked = [] if asked is None else asked
    for c, is_subject in rows:
        if buffer.policy.decide_question(buffer.view, c, questions - len(asked))[0]:
            is_better = is_subject and corrects
            asked.append((buffer.seen, is_better))
            answer = dict(origin="annotated", response="Better") if is_better else dict(origin="approved")
            c = ScoredDialogue(c.dialogue.derive(**answer), c.scores)
        buffer.add(c)
    return buffer, asked


def test_questions_are_never_exceeded_and_last():
    for questions in (0, 1, 12, 32):
        _, asked = run(stream(600), questions, corrects=False)
        assert len(asked) == questions
    assert 8 <= sum(place < 200 for place, _ in asked) <= 13, "without a correction they are spread evenly"


def test_answers_find_the_subject_and_stay():
    rows = stream(800, seed=3)
    buffer, asked = run(rows)
    hits = [place for place, is_corrected in asked if is_corrected]
    chance = np.mean([is_subject for _, is_subject in rows])
    assert len(hits) / len(asked) > 2.5 * chance
    assert sum(d.origin == "annotated" for d in buffer.dialogues) == len(hits), "every correction has a bin"
    assert all(d.origin != "model" for d in buffer.policy.select_training_dialogues(buffer.dialogues))


def test_a_repeated_prompt_is_not_asked_about():
    buffer = Buffer(4)
    buffer.add(candidate(0, (1, 0), "annotated", prompt="How long does the flight to Rome take on Monday?"))
    again = candidate(1, (1, 0), prompt="So, how long does the flight to Rome take on Monday?")
    assert buffer.policy.decide_question(buffer.view, again, 9) == (False, "nearly the same prompt is in the buffer")
    assert buffer.policy.decide_question(buffer.view, candidate(2, (1, 0)), 9)[0]


def test_the_horizon_begins_anew():
    buffer = Buffer(4)
    buffer.policy.horizon = 100
    buffer.seen = 100
    buffer.add(candidate(0, (1, 0), "approved"))
    for seen, is_due in ((108, False), (111, False), (112, True)):  # 92 / 8, 89 / 8 and 88 / 8 dialogues
        buffer.seen = seen
        assert buffer.policy.decide_question(buffer.view, candidate(1, (0, 1)), 8)[0] == is_due, seen


@pytest.mark.parametrize("cut", [1, 37, 150, 299])
def test_a_reopened_policy_goes_on_as_one_that_was_left_alone(cut):
    rows = stream(300)
    whole, asked = run(rows, buffer=Buffer(16))
    half, first = run(rows[:cut], buffer=Buffer(16))
    again, both = run(rows[cut:], buffer=reopen(half), asked=first)
    assert again.dialogues == whole.dialogues and both == asked
