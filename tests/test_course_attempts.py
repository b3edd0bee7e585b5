"""Answers as learners would type them: wrong ones are refused with a reason, right ones are accepted.

About half were written before the checks were read. The others were written with the checks open, and the checks were
mended after them, so the shares below say less about those.
"""

import collections

import pytest
from attempts import read_attempts, tasks_of, value_of

from personal_llm.course.checks import check

ATTEMPTS = read_attempts()
GENERAL = ("go through the example", "right in ", "which is not right; does it", "not right; ")  # fit any wrong answer
PLACES = list(dict.fromkeys((a.lesson, a.task) for a in ATTEMPTS))


def has_own_sentence(task, verdict) -> bool:
    "Whether the reason names the mistake, or a property of this answer."
    return bool(verdict.wrong) or not any(part in verdict.reason for part in (*GENERAL, task.hint))


def verdicts(lesson: int) -> list:  # (attempt, verdict)
    return [(a, check(tasks_of(a.lesson)[a.task], value_of(a))) for a in ATTEMPTS if a.lesson == lesson]


def test_there_are_enough_attempts_at_every_task():
    wrong = collections.Counter((a.lesson, a.task) for a in ATTEMPTS if not a.is_right)
    assert sum(wrong.values()) >= 400 and sum(a.is_right for a in ATTEMPTS) >= 150
    assert len({(a.lesson, a.task, a.source) for a in ATTEMPTS}) == len(ATTEMPTS), "no attempt twice"
    assert all(len([a for a in ATTEMPTS if (a.lesson, a.task) == place]) >= 5 for place in PLACES)


def rows_of_troubles(wrong: list) -> list:
    "Rows for the table of troubles in the notes: wrong answers of each lesson, and the mistakes named most often."
    rows = []
    for lesson in sorted({a.lesson for a, _ in wrong}):
        named = collections.Counter((v.wrong, a.task) for a, v in wrong if a.lesson == lesson and v.wrong)
        often = "; ".join(f"{name} ({task}) {count}" for (name, task), count in named.most_common(4))
        rows.append(f"| {lesson} | {sum(a.lesson == lesson for a, _ in wrong)} | {often} |")
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wrong_answers_are_refused_and_right_ones_are_accepted():
    judged = [pair for lesson in range(1, 11) for pair in verdicts(lesson)]
    wrong = [(a, v) for a, v in judged if not a.is_right]
    accepted = [a for a, v in wrong if v]
    refused = [(a, v) for a, v in judged if a.is_right and not v]
    own = [has_own_sentence(tasks_of(a.lesson)[a.task], v) for a, v in wrong if not v]
    named = [v.wrong for _, v in wrong if v.wrong]
    for row in rows_of_troubles(wrong):
        print(row)
    print(f"{len(wrong)} wrong: {len(accepted)} accepted, {len(named)} named, {sum(own)} with a sentence of their own")
    print(f"{len(judged) - len(wrong)} right: {len(refused)} refused")
    assert len(accepted) <= 0.01 * len(wrong), accepted
    assert len(refused) <= 0.02 * (len(judged) - len(wrong)), refused
    assert sum(own) >= 0.6 * len(wrong)
