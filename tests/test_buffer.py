"The buffer under any sequence of events, against naive twins."

from dataclasses import replace

import numpy as np
import pytest
from candidates import candidate, naive_fresh, naive_idd, reopen, sound, stream
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from personal_llm.base.core import InputError
from personal_llm.buffer import buffer as module
from personal_llm.buffer.buffer import Buffer, open_buffer
from personal_llm.buffer.policies import POLICIES, Policy

settings.register_profile("brief", max_examples=60, deadline=None)
settings.load_profile("brief")


LEVELS = st.integers(0, 3).map(lambda n: n / 3)  # few levels: ties are common


class AnySequence(RuleBasedStateMachine):
    "add, reopen, rescore, remove in any order."

    @initialize(capacity=st.integers(1, 4), policy=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 9))
    def begin(self, capacity, policy, seed):
        self.buffer, self.offers, self.generation = Buffer(capacity, policy, seed), 0, 0

    @rule(
        eoe=LEVELS,
        scripts=LEVELS,
        dss=LEVELS,
        domain=st.sampled_from(["a", "b", "none"]),
        embedding=st.tuples(*[st.integers(-2, 2)] * 3).filter(any),
        again=st.booleans(),
    )
    def add(self, eoe, scripts, dss, domain, embedding, again):
        buffer, name = self.buffer, "same" if again else f"new {self.offers}"
        c = candidate(name, eoe, dss, embedding, domain, scripts, f"model {self.generation}")
        before, fresh, idd = list(buffer.entries), naive_fresh(buffer), naive_idd(buffer, embedding, domain)
        full, present = len(buffer) == buffer.capacity, c.dialogue.id in {d.id for d in buffer.dialogues}
        decision = buffer.add(c)
        self.offers += 1
        assert decision == buffer.log[-1] and decision.step == self.offers - 1 and decision.reason
        assert decision.id == c.dialogue.id
        assert decision.scores == dict(eoe=eoe, dss=dss, idd=pytest.approx(idd, abs=1e-6), domain=domain)
        came = [o for o in buffer.entries if not any(o is b for b in before)]
        gone = [o for o in before if not any(o is b for b in buffer.entries)]
        assert [o.dialogue.id for o in gone] == [decision.evicted] * bool(decision.evicted)
        assert len(came) == decision.kept and all(o is c for o in came)
        if present:
            assert not decision.kept
        elif full:
            assert decision.kept == bool(decision.evicted)
            victim = next((i for i, o in enumerate(before) if o.dialogue.id == decision.evicted), None)
            self.as_the_rule_says(c, before, fresh, idd, victim)
        else:
            assert decision.kept and not decision.evicted

    def as_the_rule_says(self, c, before, fresh, idd, victim):
        "The dominance policies, each entry compared by hand."
        name, s = self.buffer.policy.name, c.scores
        if name in ("sdss", "eoe", "dss", "idd"):
            leads = dict(
                eoe=[s.eoe - o.scores.eoe for o in before],
                dss=[s.dss - o.scores.dss for o in before],
                idd=[idd - value for value in fresh],
            )
            asked = ("eoe", "dss", "idd") if name == "sdss" else (name,)
            slack = dict(eoe=0, dss=0, idd=1e-7)  # sums in another order
            if victim is not None:
                assert all(leads[n][victim] > -slack[n] for n in asked), "strictly beaten on all"
            else:
                beaten = [all(leads[n][i] > slack[n] for n in asked) for i in range(len(before))]
                assert not any(beaten), "somebody was beaten"

    @rule()
    def reopen(self):
        again = reopen(self.buffer)
        assert again.random.bit_generator.state == self.buffer.random.bit_generator.state
        self.buffer = again

    @rule(turn=st.permutations(range(3)))
    def rescore(self, turn):
        arrivals = self.buffer.view.arrival.copy()
        self.generation += 1
        new = []
        for c in self.buffer.entries:
            changes = dict(eoe=1 - c.scores.eoe, model=f"model {self.generation}")
            new.append(replace(c, scores=replace(c.scores, embedding=c.scores.embedding[list(turn)], **changes)))
        self.buffer.rescore(new)
        assert np.array_equal(self.buffer.view.arrival, arrivals), "who came first"

    @rule(place=st.integers(0, 3))
    def remove(self, place):
        dialogues, arrivals = self.buffer.dialogues, self.buffer.view.arrival.tolist()
        if place >= len(dialogues):
            return
        self.buffer.remove({place})
        assert self.buffer.dialogues == dialogues[:place] + dialogues[place + 1 :]
        assert self.buffer.view.arrival.tolist() == arrivals[:place] + arrivals[place + 1 :]

    @invariant()
    def holds(self):
        if hasattr(self, "buffer"):
            sound(self.buffer)
            assert self.buffer.seen == len(self.buffer.log) == self.offers


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_embeddings_of_zeros():
    "A direction of nothing: its cosine with anything is 0, its own included."
    buffer = Buffer(3)
    for i in range(3):
        buffer.add(candidate(i, embedding=(0, 0, 0) if i < 2 else (1, 0, 0)))
    sound(buffer)
    assert buffer.view.idd.tolist() == [1, 1, 1]


def test_a_view_is_a_snapshot():
    "Neither a later event nor a column that is asked for afterwards changes it, nor what a later view shows."
    buffer = Buffer(2, "fifo")
    for c in stream(2):
        buffer.add(c)
    before, idd = buffer.view, naive_fresh(buffer)
    for c in stream(9, seed=1)[5:]:
        buffer.add(c)
    assert np.allclose(before.idd, idd) and np.allclose(buffer.view.idd, naive_fresh(buffer))
    assert before.dialogues != buffer.view.dialogues


def test_the_same_request_is_refused_once_its_answer_was_corrected():
    buffer = Buffer(4, "fifo")
    buffer.add(candidate("What is a tendon?"))
    buffer.replace_dialogue(0, buffer.dialogues[0].derive(response="A cord.", origin="annotated"))
    again = candidate("What is a tendon?")
    offer = lambda **changes: buffer.add(replace(again, dialogue=again.dialogue.derive(**changes)))
    assert offer(time=1.0).reason == "the same text is in the buffer"
    assert offer(history=(("user", "Hi"), ("assistant", "Hello"))).kept, "another conversation"
    assert offer(prompt="☕").kept and offer(prompt="👍").kept, "texts without a word"


def test_the_log_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGGED_DECISIONS", 5)
    buffer = Buffer(2, "fifo")
    for c in stream(12):
        buffer.add(c)
    assert [line.step for line in buffer.log] == [7, 8, 9, 10, 11] and buffer.seen == 12


# ---- what a buffer refuses


class WrongSlot(Policy):
    def choose(self, view, candidate):
        return len(view) + 3, "a slot that does not exist"


def test_a_refused_dialogue_changes_nothing():
    buffer = Buffer(1, WrongSlot())
    buffer.add(candidate("a"))
    foreign = replace(candidate("c").scores, model="base+adapter")
    for wrong, problem in (
        (candidate("b"), "policy WrongSlot chose slot 4 of 1 entries in 1 bins"),
        (replace(candidate("c"), scores=foreign), "was embedded by base.adapter"),
    ):
        with pytest.raises(InputError, match=problem):
            buffer.add(wrong)
    assert len(buffer) == buffer.seen == len(buffer.log) == 1


def reopened(filled_by, policy):
    return open_buffer(Buffer(2, filled_by).header(), policy, "an archive")


def rescored():
    buffer = Buffer(3, "fifo")
    buffer.add(candidate("b"))
    buffer.rescore([replace(e, scores=replace(e.scores, model="base+adapter")) for e in buffer.entries])
    return buffer


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: Buffer(capacity=0), "capacity is 0"),
        (lambda: Buffer(capacity=10**12), "capacity is 1000000000000"),
        (lambda: Buffer(seed=-1), "the seed is -1"),
        (lambda: Buffer(policy="best"), "unknown policy 'best'"),
        (lambda: reopened(WrongSlot(), None), "the policy 'WrongSlot' of this memory is not installed"),
        (lambda: reopened("sdss", WrongSlot()), "filled by policy 'sdss', not by 'WrongSlot'"),
        (rescored, "score all of them with the same model and adapter"),
    ],
)
def test_settings_policies_and_models_that_do_not_fit_are_refused(make, problem):
    with pytest.raises(InputError, match=problem):
        make().add(candidate("a"))


@pytest.mark.parametrize("embedding", [[np.nan] * 8, [np.inf, *[0.0] * 7], [1.0] * 9])
def test_an_embedding_that_is_not_finite_or_of_another_width_is_refused(embedding):
    buffer = Buffer(3, "kcenter")
    first = candidate(0)
    first = replace(first, scores=replace(first.scores, embedding=np.ones(8, "f4")))
    buffer.add(first)
    second = candidate(1)
    with pytest.raises(InputError, match="its embedding has"):
        buffer.add(replace(second, scores=replace(second.scores, embedding=np.array(embedding, "f4"))))
    assert len(buffer) == 1
