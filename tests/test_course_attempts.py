"""Answers as learners would type them: wrong ones are refused with a reason, right ones are accepted.

About half of `course_attempts.txt` was written before the checks were read; the checks were mended after the others.
`course_attempts_unseen.txt` holds 897 answers to 82 tasks, all but those of `ADDED_LATER`. Their author read
the lessons only, and gave each answer its verdict before the checks were opened (five joined after a mend), and
its verdicts stay as they were.
"""

import collections

import attempts
import pytest
from attempts import read_attempts, tasks_of, value_of

from personal_llm.course.checks import check

ATTEMPTS = read_attempts()
UNSEEN = read_attempts(attempts.LINES.with_name("course_attempts_unseen.txt"))
GENERAL = ("go through the example", "right in ", "which is not right; does it", "not right; ")  # fit any wrong answer
ADDED_LATER = {(10, "belongs")}
TASKS = {(lesson, name) for lesson in range(1, 11) for name in tasks_of(lesson)}


def has_own_sentence(task, verdict) -> bool:
    "Whether the reason names the mistake, or a property of this answer."
    return bool(verdict.wrong) or not any(part in verdict.reason for part in (*GENERAL, task.hint))


def test_there_are_attempts_of_both_kinds_at_every_task():
    assert len({(a.lesson, a.task, a.source) for a in ATTEMPTS}) == len(ATTEMPTS) >= 550, "no attempt twice"
    kinds = collections.defaultdict(set)
    for attempt in UNSEEN:
        kinds[attempt.lesson, attempt.task].add(attempt.is_right)
    assert len(UNSEEN) == 897 and set(kinds) == TASKS - ADDED_LATER
    for place in ADDED_LATER:
        kinds[place] = {a.is_right for a in ATTEMPTS if (a.lesson, a.task) == place}
    assert all(found == {True, False} for found in kinds.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("answers", [ATTEMPTS, UNSEEN], ids=["seen", "unseen"])
def test_few_wrong_answers_pass_and_few_right_ones_fail(answers):
    judged = [(a, check(tasks_of(a.lesson)[a.task], value_of(a))) for a in answers]
    wrong = [(a, verdict) for a, verdict in judged if not a.is_right]
    accepted = [a for a, verdict in wrong if verdict]
    refused = [(a, verdict) for a, verdict in judged if a.is_right and not verdict]
    print(f"{len(wrong)} wrong, {len(accepted)} accepted; {len(judged) - len(wrong)} right, {len(refused)} refused")
    assert len(accepted) <= 0.01 * len(wrong), accepted
    assert len(refused) <= 0.02 * (len(judged) - len(wrong)), refused
    if answers is ATTEMPTS:
        own = [has_own_sentence(tasks_of(a.lesson)[a.task], verdict) for a, verdict in wrong if not verdict]
        assert sum(own) >= 0.6 * len(wrong)
