"The policy `active`: its model against numbers, the pace of questions, repeated prompts, silent users, memory."

from dataclasses import replace

import numpy as np
import pytest
from candidates import reopen
from devices import open_talk, say, start

from personal_llm.base.core import NO_ANSWER, Dialogue
from personal_llm.buffer.active import (
    EARLY_CORRECTIONS,
    EARLY_QUESTION_GAP,
    MAX_UNCORRECTED_ANSWERS,
    NO_TRAITS,
    ActivePolicy,
    expect_log_odds,
)
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.correction_model import (
    Answer,
    CorrectionModel,
    RELEVANCE_WEIGHTS,
    StreamStatistics,
    compute_answer_features,
    estimate_relevance,
)
from personal_llm.buffer.scoring import ScoredDialogue, Scores
from personal_llm.device.conversation import ChatSession


def stream(n, seed=0, subject=0.15):
    "Episodes of ten; the second direction is the subject."
    rng = np.random.default_rng(seed)
    signal = rng.random(n // 10 + 1) < subject
    found = []
    for i in range(n):
        mine = bool(signal[i // 10])
        direction = np.eye(4)[int(mine)] * 3 + rng.normal(size=4)
        scores = Scores(0.5, 0.5, 0.1, "none", direction.astype(np.float32), 1.0, 9, "base", float(rng.normal() + mine))
        words = " ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 30))
        found.append((ScoredDialogue(Dialogue(f"{words} {i}", f"Answer {i}", origin="model"), scores), mine))
    return found


def run(rows, requests=32, corrects=True, buffer=None, asked=None):
    "Offer a stream; answer the policy's questions. Places of the questions, and whether they were corrected."
    buffer = Buffer(32, ActivePolicy(len(rows))) if buffer is None else buffer  # an empty one is falsy
    asked = [] if asked is None else asked
    for i, (c, mine) in enumerate(rows):
        if buffer.policy.decide_question(buffer.view, c, requests - len(asked))[0]:
            better = mine and corrects
            buffer.policy.learn_from_answer(buffer.view, c, better)
            asked.append((i, better))
            told = dict(origin="annotated", response="Better") if better else dict(origin="approved")
            c = ScoredDialogue(c.dialogue.derive(**told), c.scores)
        buffer.add(c)
    return buffer, asked


@pytest.mark.parametrize("answers", [[True], [False, True], [True] * 5, [False] * 8])
def test_beliefs_come_near_the_posterior(answers):
    correction_model, x, weights = CorrectionModel(np.zeros(1), np.eye(1)), np.ones(1), np.linspace(-8, 8, 4001)
    log = -(weights**2) / 2
    for answer in answers:
        correction_model.update(x, answer)
        log = log - np.log1p(np.exp(-weights if answer else weights))
    p = np.exp(log - log.max())
    exact = (p / (1 + np.exp(-weights))).sum() / p.sum()
    assert abs(correction_model.predict_probability(x) - exact) < 0.03 and correction_model.covariance[0, 0] < 1


def test_requests_are_never_exceeded_and_last():
    rows = stream(600)
    for requests in (0, 1, 12, 32):
        _, asked = run(rows, requests)
        assert len(asked) <= requests
    assert len(asked) >= 24 and sum(i < 200 for i, _ in asked) <= 20, "not all in the first third"


def test_answers_find_the_subject_in_several_episodes():
    rows = stream(800, seed=3)
    buffer, asked = run(rows)
    hits = [i for i, corrected in asked if corrected]
    chance = np.mean([mine for _, mine in rows])
    assert len(hits) / len(asked) > 3 * chance and len({i // 10 for i in hits}) >= 4
    assert sum(d.origin == "annotated" for d in buffer.dialogues) == len(hits), "every correction has a bin"
    assert all(d.origin != "model" for d in buffer.policy.select_training_dialogues(buffer.dialogues))


def test_what_was_nearly_said_before_is_neither_asked_about_nor_kept():
    (c, _), *_ = stream(10)
    buffer = Buffer(4, "active")
    buffer.add(c)
    again = ScoredDialogue(Dialogue("So, " + c.dialogue.prompt, "Another answer", origin="model"), c.scores)
    assert buffer.policy.decide_question(buffer.view, again, 9) == (False, "nearly the same prompt came before")
    assert not buffer.add(again).kept


def test_who_never_corrects_leaves_requests_for_the_freeze():
    buffer, asked = run(stream(800), corrects=False)
    assert len(asked) == MAX_UNCORRECTED_ANSWERS < 32
    order = buffer.policy.order_questions(buffer.view)
    worth = [estimate_relevance(buffer.policy.traits[buffer.dialogues[slot].id]) for slot in order]
    assert worth == sorted(worth, reverse=True)


@pytest.mark.parametrize("answer", [lambda i: True, lambda i: i % 2 == 0], ids=["always", "contradictory"])
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
    assert set(buffer.policy.answers) <= kept and buffer.policy.stream_statistics.num_directions == 4
    answers = list(buffer.policy.answers.values())
    assert answers and all(np.isclose(buffer.view.units @ a.direction, 1).any() for a in answers), "computed anew"


def row(i, direction=(1.0, 0.0), origin="model", prompt=""):
    "One dialogue of no words in common with another."
    scores = Scores(0.5, 0.5, 0.1, "none", np.array(direction, np.float32), 1.0, 9, "base", 0.0)
    return ScoredDialogue(
        Dialogue(prompt or " ".join(f"w{i}x{k}" for k in range(9)), "A", origin=origin, id=f"d{i}"), scores
    )


def test_the_share_that_is_asked_about_is_paced():
    "1.3 times what would spend the requests evenly: ten left, eighty-one dialogues to come, 16 %."
    policy, view = ActivePolicy(horizon=100), Buffer(4).view
    for i in range(20):
        _, why = policy.decide_question(view, row(i), 10)
    assert "top 16% of the last" in why, why
    policy.after_finetune(Buffer(4))
    _, why = policy.decide_question(view, row(20), 10)
    assert "top 13% of the last" in why, "the horizon begins anew: 1.3 x 10 / 100"
    for i in range(21, 118):
        _, why = policy.decide_question(view, row(i), 10)
    assert "top 100% of the last" in why, "all that is left may be spent"


def test_corrections_sate_for_an_episode_only():
    policy, view = ActivePolicy(), Buffer(4).view
    for i in range(3):
        one = policy.observe_candidate(row(i))
        policy.learn_from_answer(view, row(i), i > 0)
    assert np.isclose(policy.discount_probability(one), one.correction_probability * 0.85**2)
    for i in range(3, 9):
        one = policy.observe_candidate(row(i))
    assert np.isclose(policy.discount_probability(one), one.correction_probability * 0.85**2), (
        "six dialogues later it is still the episode"
    )
    one = policy.observe_candidate(row(9))
    assert policy.discount_probability(one) == one.correction_probability, "after seven it is over"


def test_what_was_called_fine_has_a_bin_though_nearly_said_before():
    buffer = Buffer(4, "active")
    buffer.add(row(0, prompt="what helps against a cold in winter"))
    again = row(1, prompt="so, what helps against a cold in winter", origin="approved")
    assert buffer.add(again).kept


def test_equals_do_not_replace_each_other():
    buffer = Buffer(1, "active")
    assert buffer.add(row(0)).kept
    policy, new = buffer.policy, row(1)
    policy.traits = {"d0": NO_TRAITS, "d1": NO_TRAITS}
    assert policy.choose(buffer.view, new)[0] is None
    policy.traits["d1"] = NO_TRAITS * 0.99
    assert estimate_relevance(policy.traits["d1"]) > estimate_relevance(NO_TRAITS)
    assert policy.choose(buffer.view, new)[0] == 0


def test_among_corrections_the_older_of_the_most_alike_leaves():
    buffer = Buffer(4, "active")
    for i, angle in enumerate((0.0, 1.0, 2.2, 2.1)):
        buffer.add(row(i, direction=(np.cos(angle), np.sin(angle)), origin="annotated"))
    slot, why = buffer.policy.choose(buffer.view, row(9, direction=(0.0, -1.0), origin="annotated"))
    assert buffer.dialogues[slot].id == "d2" and "most similar" in why


def test_an_answer_moves_the_weights():
    policy, view = ActivePolicy(), Buffer(4).view
    one = policy.observe_candidate(row(0))
    policy.learn_from_answer(view, row(0), True)
    assert policy.correction_model.predict_probability(one.features) > one.correction_probability, (
        "the same views, a correction later"
    )


def test_what_repeats_leaves_no_numbers():
    policy = ActivePolicy()
    policy.observe_candidate(row(0, prompt="what helps against a cold in winter"))
    policy.observe_candidate(row(1, prompt="so, what helps against a cold in winter"))
    assert (
        policy.stream_statistics.num_directions == 1
        and len(policy.stream_statistics.columns["loss"]) == 1
        and policy.seen == 2
    )


def test_worth_is_remembered_for_bins_and_a_few_more():
    buffer, _ = run(stream(200), buffer=Buffer(4, ActivePolicy(200)))
    assert len(buffer.policy.traits) <= 2 * 4 + len(buffer.policy.sample)
    assert {d.id for d in buffer.dialogues} - {d.id for d in buffer.dialogues if d.parents} <= set(buffer.policy.traits)


def recorded(directions, ranks=()):
    "Statistics of a stream with these directions."
    statistics = StreamStatistics()
    for i, direction in enumerate(directions):
        statistics.record(row(i, direction), np.array(ranks[i] if ranks else [0.0] * 4))
    return statistics


def test_what_all_directions_share_is_taken_away():
    stream_statistics = recorded([(1.0, 0.0), (0.0, 1.0)])
    assert np.allclose(stream_statistics.centre_directions(np.array([0.5, 1.0])), (0, 1)), "the centre is (.5, .5)"
    assert np.allclose(stream_statistics.centre_directions(np.array([0.5, 0.5])), 0), (
        "the centre itself has no direction"
    )


def test_ranks_are_smoothed_over_four_dialogues():
    stream_statistics = recorded([(1.0, 0.0)] * 5, ranks=[[k] * 4 for k in (9.0, 9.0, 0.1, 0.2, 0.3)])
    assert np.allclose(stream_statistics.smooth_ranks(np.full(4, 0.6)), 0.3), "(.1 + .2 + .3 + .6) / 4"


def test_features_of_answers_by_hand():
    statistics = recorded([(0.0, 0.0)])  # directions stand as they are
    statistics.last_directions.clear()
    answer = lambda time, angle, corrected: Answer(time, np.array([np.cos(angle), np.sin(angle)]), corrected, "")
    answers = [answer(0, 0.1, True), answer(10, 0.2, False), answer(12, 1.0, True)]
    features = compute_answer_features(statistics, answers, 16, np.array([1.0, 0.0]))
    assert np.isclose(features["recent corrections"], np.exp(-16 / 4) + np.exp(-4 / 4))
    assert np.isclose(features["recent approvals"], np.exp(-6 / 4))
    assert np.isclose(features["near a correction"], np.cos(1.0)), "the first is too old, the second an approval"
    many = [answer(16, 0.0, True)] * 9
    features = compute_answer_features(statistics, many, 16, np.array([1.0, 0.0]))
    assert features["recent corrections"] == 2.5, "nine at once count no more than 2.5"


def test_a_candidate_keeps_its_own_relevance_when_the_table_is_pruned():
    buffer = Buffer(2, "active")
    for i in range(12):
        buffer.add(row(i))
        assert f"d{i}" in buffer.policy.traits and len(buffer.policy.traits) <= 4 + len(buffer.policy.sample)


def test_silence_is_no_approval_but_counts_as_a_question():
    me = start(None, 2, "active", lambda d: NO_ANSWER, max_questions=4)
    me.offer([row(0)])
    me.collect_training_dialogues()
    assert me.buffer.dialogues[0] == row(0).dialogue and me.cost.requests == 1
    me.buffer.policy.decide_question = lambda view, candidate, left: (True, "")
    me.offer([row(1)])
    assert me.buffer.dialogues[1].origin == "model" and me.cost.requests == 2 and not me.buffer.policy.answers


def test_an_answer_about_an_older_dialogue_counts_it_once():
    rows = [c for c, _ in stream(40)]
    buffer, _ = run([(c, False) for c in rows], requests=0)
    policy, old = buffer.policy, rows[-6]
    prompts, seen = policy.recent_prompts.to_list(), policy.seen
    columns = {name: list(values) for name, values in policy.stream_statistics.columns.items()}
    policy.learn_from_answer(buffer.view, old, True)
    buffer.add(ScoredDialogue(old.dialogue.derive(origin="annotated", response="Better"), old.scores))
    assert policy.seen == seen and policy.recent_prompts.to_list() == prompts, "the stream did not go on"
    assert policy.stream_statistics.columns == columns
    assert policy.answers[old.dialogue.id].step == seen - 6 == policy.last_correction
    assert policy.current.id == rows[-1].dialogue.id and policy.episode_corrections == 1


def test_reactions_find_the_subject_without_any_answer():
    rows = stream(800, seed=3)
    shares = []
    for reacts in (False, True):
        rng, buffer = np.random.default_rng(1), Buffer(32, ActivePolicy(len(rows)))
        subject = {c.dialogue.id for c, mine in rows if mine}
        for c, mine in rows:
            buffer.add(c)
            if reacts and rng.random() < (0.3 if mine else 0.02):
                buffer.policy.learn_from_reaction(buffer.view, c, 0.9)
                buffer.add(c)
        shares.append(np.mean([d.id in subject for d in buffer.dialogues]))
    assert shares[1] > 0.6 and shares[1] > shares[0] + 0.1, shares
    assert not buffer.policy.answers and all(0.0 <= r <= 1.0 for r in buffer.policy.compute_relevance(buffer.entries))


def test_expected_log_odds_equal_those_of_scikit_learn():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    rng = np.random.default_rng(0)
    traits, angles = rng.normal(size=(9, len(NO_TRAITS))), rng.uniform(0, 6, 9)
    traits[:, 1:-1], traits[:, 0], traits[:, -1] = 0.0, 1.0, 1000.0 * np.arange(9)  # far apart in time
    points = np.column_stack([traits, np.cos(angles), np.sin(angles)])
    targets, noise = rng.choice([-2.0, 2.0], 7), rng.uniform(1, 5, 7)
    prior = 0.5 * RELEVANCE_WEIGHTS[0]
    # exp((cos − 1) / .5) is a Gaussian of the distance on the circle: |x − z|² = 2 − 2 cos
    covariance = 2.25 * RBF(np.sqrt(0.5)) + 1.0
    known = GaussianProcessRegressor(covariance, alpha=noise + 1.0, optimizer=None)  # 1 is the dialogue's own place
    known.fit(points[2:, -2:], targets - prior)
    expected = prior + known.predict(points[:2, -2:])
    assert np.allclose(expect_log_odds(points, 2, targets, noise), expected)


@pytest.mark.parametrize("later", [1, 20, 200])
def test_a_late_reaction_leaves_what_was_known_of_its_dialogue(later):
    rows = [c for c, _ in stream(later + 30)]
    buffer, policy = run([(c, False) for c in rows[:30]], requests=0)[0], None
    policy, old = buffer.policy, buffer.entries[0]
    for c in rows[30:]:
        buffer.add(c)
    kept = [e for e in buffer.entries if e.dialogue.id == old.dialogue.id] or buffer.entries[:1]
    traits, seen = policy.traits[kept[0].dialogue.id].copy(), policy.seen
    policy.learn_from_reaction(buffer.view, kept[0], 0.9)
    assert (policy.traits[kept[0].dialogue.id] == traits).all() and policy.seen == seen


def test_a_corrected_dialogue_of_the_sample_is_no_sign_against_its_subject():
    found = []
    for is_answered in (False, True):
        policy, old, new = ActivePolicy(), row(0), row(1)
        policy.traits = dict.fromkeys(("d0", "d1", "d2", "far"), NO_TRAITS)
        policy.sample = {"d0": old.direction, "far": -old.direction}
        policy.reactions["d2"] = Answer(0, -old.direction, 0.9, "d2")
        if is_answered:
            policy.answers["d0"] = Answer(0, old.direction, True, "d0")
        found.append(policy.compute_relevance([new])[0])
    assert found[1] > found[0]


def test_a_state_with_other_traits_is_refused():
    state = run(stream(30), buffer=Buffer(4, ActivePolicy(30)))[0].policy.state()
    state["traits"]["d0"] = [1.0]
    with pytest.raises(ValueError, match="traits"):
        ActivePolicy().restore(state)


def test_a_reaction_without_certainty_changes_no_belief():
    (c, _), *_ = stream(10)
    buffer = Buffer(4, "active")
    buffer.add(c)
    mean = buffer.policy.correction_model.mean.copy()
    before = buffer.policy.compute_relevance(buffer.entries)
    buffer.policy.learn_from_reaction(buffer.view, c, 0.5)
    assert (buffer.policy.correction_model.mean == mean).all()
    assert (buffer.policy.compute_relevance(buffer.entries) == before).all()


def hold_talk(answer, num_dialogues=60, capacity=32, early=4, max_questions=None, seed=0):
    "Offer a stream to a personalizer; `answer` takes the number of a question. Places of the questions, and it."
    asked, place = [], 0

    def user(dialogue):
        asked.append(place)
        return answer(len(asked))

    settings = dict(early_questions=early, max_questions=max_questions)
    me = start(None, capacity, "active", user, **settings)
    for place, (candidate, _) in enumerate(stream(num_dialogues, seed)):
        me.offer([candidate])
    return asked, me


CORRECTS, APPROVES, IS_SILENT = lambda number: "Better", lambda number: None, lambda number: NO_ANSWER


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("answer", [CORRECTS, APPROVES, IS_SILENT, lambda n: [None, "Better", NO_ANSWER][n % 3]])
def test_at_most_one_question_in_five_turns_while_a_bin_is_free(answer, seed):
    asked, me = hold_talk(answer, 32, seed=seed)
    assert asked and asked[0] == 2 and (np.diff(asked) >= EARLY_QUESTION_GAP).all()
    assert sum(place < 20 for place in asked) in (2, 3, 4) and me.buffer.policy.num_early <= 4


def test_the_budget_of_questions_holds_for_early_ones_too():
    for most in (0, 1, 2):
        asked, me = hold_talk(APPROVES, max_questions=most)
        assert len(asked) == me.cost.requests <= most and (len(asked) == most)
    asked, me = hold_talk(APPROVES, 8, early=1)
    assert asked == [2] and me.buffer.policy.num_early == 1


def test_without_early_questions_all_is_as_before():
    "The decisions are those of a policy that never heard of them, whatever the user leaves without an answer."
    rows = [c for c, _ in stream(200, seed=3)]
    _, plain = hold_talk(IS_SILENT, 200, early=0, max_questions=20, seed=3)
    policy, view, asked = ActivePolicy(), Buffer(32).view, 0
    for c in rows:
        asked += policy.decide_question(view, c, 20 - asked)[0]
    assert asked == plain.cost.requests and plain.buffer.policy.num_early == 0


def test_corrections_that_nobody_asked_for_end_the_early_questions():
    asked, place, me = [], 0, start(None, 32, "active", lambda d: asked.append(place), early_questions=4)
    for place, (c, _) in enumerate(stream(8)):
        me.offer([c])
        if place < EARLY_CORRECTIONS and place != 2:
            me.react(c.dialogue, "better", "Better")
    assert asked == [2, 7]
    me.react(c.dialogue, "better", "Better")
    assert not me.buffer.policy.is_early_question_due(me.buffer.view), "three are known"


def test_silence_doubles_the_pause_and_an_answer_ends_that():
    asked, _ = hold_talk(IS_SILENT, 80, capacity=99, early=9)
    assert asked == [2, 12, 32, 72]
    asked, _ = hold_talk(lambda n: NO_ANSWER if n == 1 else None, 25, capacity=99, early=9)
    assert asked == [2, 12, 17, 22]


def test_no_early_question_when_the_bins_are_full():
    policy, buffer = ActivePolicy(), Buffer(2, "active")
    policy.early_questions, policy.seen = 4, 9
    assert policy.is_early_question_due(buffer.view) and policy.find_wait(buffer.view) == EARLY_QUESTION_GAP
    for i in range(2):
        buffer.add(row(i))
    assert not policy.is_early_question_due(buffer.view) and policy.find_wait(buffer.view) == 1


def test_early_questions_are_replayed_and_saved(tmp_path):
    from personal_llm.device.replay import PersonalizerState

    asked, me = hold_talk(lambda n: [None, "Better", NO_ANSWER][n % 3], 50)
    again = PersonalizerState(me.memory, Buffer(32, "active"))
    assert again.buffer.policy.state() == me.buffer.policy.state() and me.buffer.policy.num_early > 1
    policy = ActivePolicy()
    policy.restore(me.buffer.policy.state())
    assert policy.state() == me.buffer.policy.state()


def test_a_large_model_asks_early_and_the_toy_does_not():
    from types import SimpleNamespace

    from personal_llm.buffer.policies import Policy
    from personal_llm.device.personalizer import EARLY_QUESTIONS, PersonalizerSettings

    most = lambda is_large, **given: (
        PersonalizerSettings(**given).complete(SimpleNamespace(is_large=is_large), Policy).early_questions
    )
    assert most(True) == EARLY_QUESTIONS == 4 and most(False) == 0
    assert most(True, early_questions=0) == 0 and most(False, early_questions=2) == 2


def test_an_unanswered_question_of_a_chat_lowers_asking(tmp_path):
    talk = open_talk(tmp_path / "me")
    talk.me.settings = replace(talk.me.settings, early_questions=4)
    rows = [c.dialogue for c, _ in stream(9)]
    for d in rows[:3]:
        say(talk, d)
    assert talk.question.dialogue.prompt == rows[2].prompt and talk.me.buffer.policy.num_unanswered == 0
    say_next = lambda d: (talk.settle_pending(), say(talk, d))
    say_next(rows[3])
    assert talk.question is None and talk.me.buffer.policy.num_unanswered == 1 and talk.me.cost.requests == 0
    talk.feedback("better", text="Better")
    assert talk.me.buffer.policy.num_unanswered == 0, "an answer, though unasked"
    talk.close()
    with ChatSession(talk.model, tmp_path / "me", early_questions=0) as again:
        say(again, rows[4])
        assert again.me.buffer.policy.early_questions == 0, "turned off for a stored chat"


def test_a_thumb_down_at_a_question_is_no_silence(tmp_path):
    talk = open_talk(tmp_path / "me")
    talk.me.settings = replace(talk.me.settings, early_questions=4)
    for c, _ in stream(3):
        say(talk, c.dialogue)
    talk.feedback("thumb_down")
    talk.settle_pending()
    assert talk.question is None and talk.me.buffer.policy.num_unanswered == 0
    talk.close()
