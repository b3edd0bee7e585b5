"One list of checks over all policies, a user's own among them; then each rule on cases worked out by hand."

from dataclasses import replace

import numpy as np
import pytest
from candidates import candidate, reopen, stream

from personal_llm.base.core import Dialogue, InputError, make_generator
from personal_llm.buffer.buffer import Buffer, check_policy, open_buffer
from personal_llm.buffer.policies import POLICIES, Policy, get_policy
from personal_llm.buffer.scoring import ScoredDialogue, Scores, unit_vector


class Surprising(Policy):
    "A user's own: the entry with the lowest EOE leaves, unless the candidate is lower."

    def choose(self, view, candidate):
        slot = int(view.eoe.argmin())
        if candidate.scores.eoe <= view.eoe[slot]:
            return None, "nothing new in it"
        return slot, "says more than the dullest entry"


ALL = [*POLICIES, Surprising]
every_policy = pytest.mark.parametrize("kind", ALL, ids=lambda kind: getattr(kind, "__name__", kind))


def new(kind):
    "A policy to give to a buffer."
    return kind if isinstance(kind, str) else kind()


def filled(kind, candidates, capacity=5, seed=1, check=lambda buffer, decision: None):
    buffer = Buffer(capacity, new(kind), seed)
    for c in candidates:
        check(buffer, buffer.add(c))
    return buffer


# ---- what holds for every policy


@every_policy
def test_a_policy_passes_its_check(kind):
    "Slots and reasons, the same decisions again and after an interruption, one bin and five."
    check_policy(kind)


class Remembering(Surprising):
    turn = 0

    def choose(self, view, candidate):
        self.turn += 1
        return self.turn % len(view), "each in turn"


WRONG = {  # what is wrong -> (methods of a policy, the error)
    "a slot that is none": (dict(choose=lambda *given: ("first", "why")), "chose slot first of"),
    "no pair": (dict(choose=lambda *given: 0), "policy Wrong chose 0 of"),
    "no reason": (dict(choose=lambda *given: (0, "")), "gives no reason in words"),
    "a question of no form": (dict(decide_question=lambda *given: True), "policy Wrong raised TypeError"),
    "nothing": (dict(choose=lambda *given: None), "policy Wrong chose None of"),
    "several slots": (dict(choose=lambda *given: (np.array([0, 0]), "two")), "policy Wrong raised ValueError"),
    "no number": (dict(choose=lambda *given: (float("nan"), "none")), "chose slot nan"),
    "a dialogue twice": (dict(select_training_dialogues=lambda self, own: own[:1] * 2), "or one twice"),
    "arguments": (dict(__init__=lambda self, share: None), "policy Wrong raised TypeError"),
    "other dialogues": (dict(select_training_dialogues=lambda self, own: [*own, Dialogue("a", "b")]), "wasn't given"),
    "chance of its own": (
        dict(choose=lambda self, view, c: (int(np.random.default_rng().integers(len(view))), "luck")),
        "second",
    ),
    "a needed model": (dict(needs_model=True), "policy Wrong needs the model"),
}


@pytest.mark.parametrize("methods, error", WRONG.values(), ids=WRONG)
def test_the_check_names_what_would_go_wrong(methods, error):
    with pytest.raises(InputError, match=error):
        check_policy(type("Wrong", (Surprising,), methods))


def test_a_policy_that_remembers_fails_after_an_interruption():
    with pytest.raises(InputError, match="Remembering decides something else after an interruption"):
        check_policy(Remembering)


class Steepest(Policy):
    "A user's own: by what the model says."

    needs_model = True

    def __init__(self, share=0.5, by="loss"):
        self.share = share
        self.by = by

    def choose(self, view, candidate):
        return int(view.model.rank(candidate) * self.share) % len(view), self.by


class Ranker:
    def rank(self, candidate):
        return candidate.scores.tokens // 3


def test_a_policy_sees_the_model_if_it_asks_and_takes_arguments_by_name(monkeypatch):
    check_policy(Steepest, model=Ranker())
    monkeypatch.setitem(POLICIES, "steepest", Steepest)
    buffer = Buffer(4, "steepest:share=0.25,by=gradient", model=Ranker())
    policy = buffer.policy
    assert (policy.share, policy.by, policy.name) == (0.25, "gradient", "steepest:share=0.25,by=gradient")
    again = reopen(buffer)
    assert (again.policy.share, again.policy.by, again.header()) == (0.25, "gradient", buffer.header())
    assert Buffer(4, "fifo").view.model is None
    with pytest.raises(InputError, match="policy steepest raised TypeError: .*unexpected keyword argument 'k'"):
        get_policy("steepest:k=3")
    gone = open_buffer(buffer.header() | dict(policy="steepest:k=3"), None, "an archive")
    assert gone.header()["policy"] == "steepest:k=3", "a memory is read even so"


# ---- names and classes


def test_unknown_policies_are_one_line():
    for wrong in ("best", 5, None, dict, ["sdss"]):
        with pytest.raises(InputError, match="use one of sdss"):
            get_policy(wrong)


def test_a_dialogue_without_scores_is_one_line():
    with pytest.raises(InputError, match=r"the candidate is Dialogue; score it first: score\(model, \[dialogue\]\)"):
        Buffer(1, Surprising).add(Dialogue("How?", "So."))


def test_a_policy_without_a_choice_names_the_method_to_write():
    buffer = Buffer(1, Policy())
    buffer.add(stream(2)[0])
    with pytest.raises(InputError, match="needs a method `choose"):
        buffer.add(stream(2)[1])


def test_a_negative_slot_is_refused():
    wild = type("Wild", (Policy,), dict(choose=lambda self, view, candidate: (-1, "there")))
    with pytest.raises(InputError, match="chose slot -1 of 5 entries"):
        filled(wild, stream(9))


# ---- the controls


@pytest.mark.parametrize("capacity, seed", [(1, 0), (3, 1), (8, 2)])
def test_reservoir_is_algorithm_r(capacity, seed):
    "Written out: the n-th dialogue takes place r, drawn from 0 to n - 1, when there is such a bin."
    buffer, draws, bins = Buffer(capacity, "reservoir", seed), make_generator(seed, "buffer", "reservoir"), []
    for n, c in enumerate(stream(80), 1):
        buffer.add(c)
        place = len(bins) if len(bins) < capacity else int(draws.integers(n))
        if place < capacity:
            bins[place : place + 1] = [c.dialogue]
        assert buffer.dialogues == bins


def all_pairs(buffer, c, product):
    "Which bin K-center gives up for a candidate, every pair computed anew; None: the candidate goes."
    units = np.array([unit_vector(o.scores.embedding.astype(np.float64)) for o in buffer.entries])
    likeness = product(units, units)
    np.fill_diagonal(likeness, -np.inf)
    first, second = divmod(int(likeness.argmax()), len(units))
    if product(units, unit_vector(c.scores.embedding.astype(np.float64))[None]).max() >= likeness[first, second]:
        return None

    def next_nearest(slot, other):
        return np.delete(likeness[slot], other).max() if len(units) > 2 else -np.inf

    return first if next_nearest(first, second) >= next_nearest(second, first) else second


PAIRS = {
    "drawn from normals": (lambda rng: rng.normal(size=8), lambda a, b: a @ b.T),
    "ties": (lambda rng: rng.integers(-1, 2, 3) + [0, 0, 1e-9], lambda a, b: (a[:, None] * b).sum(-1)),
}


@pytest.mark.parametrize("capacity", [2, 3, 9])
@pytest.mark.parametrize("kind", PAIRS)
def test_kcenter_against_all_pairs(kind, capacity):
    "A matrix that changes by a row decides as one that is computed anew; reopened and rescored on the way."
    draw, product = PAIRS[kind]
    rng, buffer, kept = np.random.default_rng(capacity), Buffer(capacity, "kcenter"), 0
    for i in range(300):
        c = candidate(i, embedding=draw(rng))
        expected = all_pairs(buffer, c, product) if len(buffer) == buffer.capacity else len(buffer)
        evicted = "" if expected in (None, len(buffer)) else buffer.dialogues[expected].id
        decision = buffer.add(c)
        assert (decision.kept, decision.evicted) == (expected is not None, evicted), i
        kept += decision.kept
        if i == 100:
            buffer = reopen(buffer)
        if i == 200:
            turned = [replace(o.scores, embedding=o.scores.embedding[::-1].copy()) for o in buffer.entries]
            buffer.rescore([replace(o, scores=scores) for o, scores in zip(buffer.entries, turned)])
    assert capacity == 2 or kept > capacity, "nothing was decided"


# ---- policies that are not here, or fail


def test_a_policy_that_is_not_installed_is_missed_only_where_it_decides():
    header = filled("fifo", stream(3)).header() | dict(policy="gone")
    buffer = open_buffer(header, None, "an archive")
    assert buffer.header() == header and not buffer.wants_question(stream(1)[0], 9)
    for call in (lambda: buffer.add(stream(1)[0]), lambda: buffer.policy.select_training_dialogues([])):
        with pytest.raises(InputError, match="'gone' of this memory is not installed; install its package"):
            call()
    assert not len(buffer) and not buffer.log


def fail(*given):
    raise ZeroDivisionError("division\nby zero")


def test_a_policy_that_raises_is_one_line_and_changes_nothing(capsys):
    wild = type("Wilder", (Policy,), dict(choose=fail, decide_question=fail))
    buffer = filled(wild, stream(5))
    before = (buffer.dialogues, buffer.seen, len(buffer.log))
    with pytest.raises(InputError, match="policy Wilder raised ZeroDivisionError: division by zero; nothing was"):
        buffer.add(stream(9)[8])
    assert (buffer.dialogues, buffer.seen, len(buffer.log)) == before
    assert not buffer.wants_question(stream(9)[8], 9) and not buffer.wants_question(stream(9)[8], 9)
    assert capsys.readouterr().err.count("so it asks nothing") == 1


# the default policy keeps to its budget of questions


def turned(number, direction, origin="model", prompt=""):
    "A dialogue of no words in common with another."
    scores = Scores(0.5, 0.5, 0.1, "none", np.array(direction, np.float32), 1.0, 9, "base", 0.0)
    words = " ".join(f"w{number}x{k}" for k in range(9))
    return ScoredDialogue(Dialogue(prompt or words, f"Answer {number}", origin=origin, id=f"d{number}"), scores)


def episodes(count, seed=0):
    "Episodes of ten; the second direction is the subject that the user corrects."
    rng = np.random.default_rng(seed)
    is_subject = rng.random(count // 10 + 1) < 0.15
    rows = [(turned(i, np.eye(4)[int(is_subject[i // 10])] * 3 + rng.normal(size=4)), i) for i in range(count)]
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
        _, asked = run(episodes(600), questions, corrects=False)
        assert len(asked) == questions
    assert 8 <= sum(place < 200 for place, _ in asked) <= 13, "without a correction they are spread evenly"


def test_answers_find_the_subject_and_stay():
    rows = episodes(800, seed=3)
    buffer, asked = run(rows)
    hits = [place for place, is_corrected in asked if is_corrected]
    chance = np.mean([is_subject for _, is_subject in rows])
    assert len(hits) / len(asked) > 2.5 * chance
    assert sum(d.origin == "annotated" for d in buffer.dialogues) == len(hits), "every correction has a bin"
    assert all(d.origin != "model" for d in buffer.policy.select_training_dialogues(buffer.dialogues))


@pytest.mark.parametrize("cut", [1, 37, 150, 299])
def test_a_reopened_policy_goes_on_as_one_that_was_left_alone(cut):
    rows = episodes(300)
    whole, asked = run(rows, buffer=Buffer(16))
    half, first = run(rows[:cut], buffer=Buffer(16))
    again, both = run(rows[cut:], buffer=reopen(half), asked=first)
    assert again.dialogues == whole.dialogues and both == asked
