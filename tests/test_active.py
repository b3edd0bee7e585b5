"The policy `active`: its model against numbers, the pace of questions, repeated prompts, memory."

import numpy as np
import pytest
from candidates import reopen

from personal_llm.base.core import Dialogue
from personal_llm.buffer.active import ActivePolicy
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.correction_model import (
    PRIOR_WEIGHTS,
    Answer,
    CorrectionModel,
    StreamStatistics,
    compute_features,
)
from personal_llm.buffer.scoring import ScoredDialogue, Scores


def stream(n, seed=0, subject=0.15):
    "Episodes of ten; the second direction is the subject."
    rng = np.random.default_rng(seed)
    signal = rng.random(n // 10 + 1) < subject
    rows = []
    for i in range(n):
        mine = bool(signal[i // 10])
        direction = np.eye(4)[int(mine)] * 3 + rng.normal(size=4)
        scores = Scores(0.5, 0.5, 0.1, "none", direction.astype(np.float32), 1.0, 9, "base", float(rng.normal() + mine))
        words = " ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 30))
        rows.append((ScoredDialogue(Dialogue(f"{words} {i}", f"Answer {i}", origin="model"), scores), mine))
    return rows


def run(rows, questions=32, corrects=True, buffer=None, asked=None):
    "Offer a stream; answer the policy's questions. Places of the questions, and whether they were corrected."
    buffer = Buffer(32, ActivePolicy(len(rows))) if buffer is None else buffer  # an empty one is falsy
    asked = [] if asked is None else asked
    for i, (c, mine) in enumerate(rows):
        if buffer.policy.decide_question(buffer.view, c, questions - len(asked))[0]:
            better = mine and corrects
            buffer.policy.learn_from_answer(buffer.view, c, better)
            asked.append((i, better))
            answer = dict(origin="annotated", response="Better") if better else dict(origin="approved")
            c = ScoredDialogue(c.dialogue.derive(**answer), c.scores)
        buffer.add(c)
    return buffer, asked


def row(i, direction=(1.0, 0.0), origin="model", prompt=""):
    "One dialogue of no words in common with another."
    scores = Scores(0.5, 0.5, 0.1, "none", np.array(direction, np.float32), 1.0, 9, "base", 0.0)
    prompt = prompt or " ".join(f"w{i}x{k}" for k in range(9))
    return ScoredDialogue(Dialogue(prompt, "A", origin=origin, id=f"d{i}"), scores)


@pytest.mark.parametrize("answers", [[True], [False, True], [True] * 5, [False] * 8])
def test_the_model_comes_near_the_posterior(answers):
    model = CorrectionModel(np.zeros(1), np.eye(1))
    x = np.ones(1)
    weights = np.linspace(-8, 8, 4001)
    log = -(weights**2) / 2
    for answer in answers:
        model.update(x, answer)
        log = log - np.log1p(np.exp(-weights if answer else weights))
    p = np.exp(log - log.max())
    exact = (p / (1 + np.exp(-weights))).sum() / p.sum()
    assert abs(model.predict_probability(x) - exact) < 0.03 and model.covariance[0, 0] < 1


def test_questions_are_never_exceeded_and_last():
    rows = stream(600)
    for questions in (0, 1, 12, 32):
        _, asked = run(rows, questions)
        assert len(asked) <= questions
    assert len(asked) >= 20 and sum(i < 200 for i, _ in asked) <= 24, "not all in the first third"


def test_answers_find_the_subject():
    rows = stream(800, seed=3)
    buffer, asked = run(rows)
    hits = [i for i, corrected in asked if corrected]
    chance = np.mean([mine for _, mine in rows])
    assert len(hits) / len(asked) > 2.5 * chance and len({i // 10 for i in hits}) >= 3
    assert sum(d.origin == "annotated" for d in buffer.dialogues) == len(hits), "every correction has a bin"
    assert all(d.origin != "model" for d in buffer.policy.select_training_dialogues(buffer.dialogues))


def test_a_repeated_prompt_is_neither_asked_about_nor_kept():
    (c, _), *_ = stream(10)
    buffer = Buffer(4, "active")
    buffer.add(c)
    again = ScoredDialogue(Dialogue("So, " + c.dialogue.prompt, "Another answer", origin="model"), c.scores)
    assert buffer.policy.decide_question(buffer.view, again, 9) == (False, "nearly the same prompt is in the buffer")
    assert not buffer.add(again).kept and buffer.policy.seen == 1
    approved = ScoredDialogue(again.dialogue.derive(origin="approved"), c.scores)
    assert buffer.add(approved).kept, "but its answer has a bin"


@pytest.mark.parametrize("answer", [lambda i: True, lambda i: i % 2 == 0, lambda i: False])
def test_odd_answers_break_nothing(answer):
    rows = [(c, answer(i)) for i, (c, _) in enumerate(stream(300))]
    buffer, asked = run(rows)
    assert len(buffer) == 32 and len(asked) <= 32 and np.isfinite(buffer.policy.correction_model.mean).all()


@pytest.mark.parametrize("cut", [1, 37, 150, 299])
def test_a_reopened_policy_goes_on_as_one_that_was_left_alone(cut):
    rows = stream(300)
    whole, asked = run(rows, buffer=Buffer(16, ActivePolicy(300)))
    half, first = run(rows[:cut], buffer=Buffer(16, ActivePolicy(300)))
    again, both = run(rows[cut:], buffer=reopen(half), asked=first)
    assert again.dialogues == whole.dialogues and again.policy.state() == whole.policy.state()
    assert [corrected for _, corrected in both] == [corrected for _, corrected in asked]


def test_directions_of_another_adapter_are_dropped():
    buffer, _ = run(stream(300), buffer=Buffer(4, ActivePolicy(300)))
    assert len(buffer.policy.answers) > 4
    buffer.policy.after_finetune(buffer)
    turned = lambda scores: Scores(**vars(scores) | dict(embedding=-scores.embedding))
    buffer.rescore([ScoredDialogue(c.dialogue, turned(c.scores)) for c in buffer.entries])
    kept = {id for d in buffer.dialogues for id in (d.id, *d.parents)}
    assert set(buffer.policy.answers) <= kept and buffer.policy.statistics.num_directions == 4
    answers = list(buffer.policy.answers.values())
    assert answers and all(np.isclose(buffer.view.units @ a.direction, 1).any() for a in answers), "computed anew"


def test_the_share_that_is_asked_about_is_paced():
    "1.3 times what would spend the questions evenly: ten left, eighty-one dialogues to come, 16 %."
    policy = ActivePolicy(horizon=100)
    view = Buffer(4).view
    for i in range(20):
        _, reason = policy.decide_question(view, row(i), 10)
    assert "top 16% of the last" in reason, reason
    policy.after_finetune(Buffer(4))
    _, reason = policy.decide_question(view, row(20), 10)
    assert "top 13% of the last" in reason, "the horizon begins anew: 1.3 x 10 / 100"
    for i in range(21, 118):
        _, reason = policy.decide_question(view, row(i), 10)
    assert "top 100% of the last" in reason, "all that is left may be spent"


def test_the_lowest_probability_leaves_and_equal_ones_stay():
    buffer = Buffer(1, "active")
    assert buffer.add(row(0)).kept
    policy = buffer.policy
    policy.probabilities = dict(d0=0.2, d1=0.2)
    assert policy.choose(buffer.view, row(1))[0] is None
    policy.probabilities["d1"] = 0.3
    assert policy.choose(buffer.view, row(1))[0] == 0
    assert policy.order_questions(buffer.view) == [0]


def test_among_corrections_the_older_of_the_most_alike_leaves():
    buffer = Buffer(4, "active")
    for i, angle in enumerate((0.0, 1.0, 2.2, 2.1)):
        buffer.add(row(i, direction=(np.cos(angle), np.sin(angle)), origin="annotated"))
    slot, reason = buffer.policy.choose(buffer.view, row(9, direction=(0.0, -1.0), origin="annotated"))
    assert buffer.dialogues[slot].id == "d2" and "most similar" in reason


def test_an_answer_moves_the_weights_once():
    policy = ActivePolicy()
    view = Buffer(4).view
    before = policy.observe(view, row(0))
    policy.learn_from_answer(view, row(0), True)
    after = policy.correction_model.predict_probability(policy.current_features)
    assert after > before, "the same features, a correction later"
    policy.learn_from_answer(view, row(0), False)
    assert policy.correction_model.predict_probability(policy.current_features) == after
    assert [answer.corrected for answer in policy.answers.values()] == [False], "the newest answer counts as neighbour"


def test_an_answer_about_an_older_dialogue_does_not_count_it_again():
    rows = [c for c, _ in stream(40)]
    buffer, _ = run([(c, False) for c in rows], questions=0)
    policy = buffer.policy
    policy.learn_from_answer(buffer.view, rows[-6], True)
    buffer.add(ScoredDialogue(rows[-6].dialogue.derive(origin="annotated", response="Better"), rows[-6].scores))
    assert policy.seen == 40 and policy.statistics.num_directions == 40 and policy.current_id == rows[-1].dialogue.id
    assert policy.answers[rows[-6].dialogue.id].corrected


def test_what_is_remembered_is_bounded():
    buffer, _ = run(stream(400), buffer=Buffer(4, ActivePolicy(400)))
    assert len(buffer.policy.probabilities) <= 150 + 2 * 4 and len(buffer.policy.statistics.scores) == 150


def recorded(directions, ranks=()):
    "Statistics of a stream with these directions."
    statistics = StreamStatistics()
    for i, direction in enumerate(directions):
        statistics.record(row(i, direction), np.array(ranks[i] if ranks else [0.0] * 4))
    return statistics


def test_what_all_directions_share_is_taken_away():
    statistics = recorded([(1.0, 0.0), (0.0, 1.0)])
    assert np.allclose(statistics.centre_directions(np.array([0.5, 1.0])), (0, 1)), "the centre is (.5, .5)"
    assert np.allclose(statistics.centre_directions(np.array([0.5, 0.5])), 0), "the centre itself has no direction"


def test_ranks_are_smoothed_over_four_dialogues():
    statistics = recorded([(1.0, 0.0)] * 5, ranks=[[k] * 4 for k in (9.0, 9.0, 0.1, 0.2, 0.3)])
    assert np.allclose(statistics.smooth_ranks(np.full(4, 0.6)), 0.3), "(.1 + .2 + .3 + .6) / 4"


def test_features_of_answers_by_hand():
    statistics = recorded([(0.0, 0.0)])  # directions stand as they are
    statistics.last_directions.clear()
    answer = lambda time, angle, corrected: Answer(time, np.array([np.cos(angle), np.sin(angle)]), corrected, "")
    answers = [answer(0, 0.1, True), answer(10, 0.2, False), answer(12, 1.0, True)]
    compute = lambda answers: dict(zip(PRIOR_WEIGHTS, compute_features(statistics, answers, 16, row(9)), strict=True))
    features = compute(answers)
    assert np.isclose(features["recent corrections"], np.exp(-16 / 4) + np.exp(-4 / 4))
    assert np.isclose(features["recent approvals"], np.exp(-6 / 4))
    assert np.isclose(features["near a correction"], np.cos(1.0)), "the first is too old, the second an approval"
    features = compute([answer(16, 0.0, True)] * 9)
    assert features["recent corrections"] == 2.5, "nine at once count no more than 2.5"


def test_a_damaged_state_is_refused():
    state = ActivePolicy().state()
    for damage in (dict(correction_model=dict(mean=[0.0], covariance=[[1.0]])), dict(statistics=dict(colour=1))):
        with pytest.raises((ValueError, TypeError, KeyError)):
            ActivePolicy().restore(state | damage)
