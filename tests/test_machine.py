"A personalizer in any order of events: talk, answers, reactions, fine-tunes, wishes to forget, crashes, two processes."

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from devices import LEXICONS, TALK, Fake, User, bytes_below, fake_tune, start, watch
from fault_cases import load, state_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from personal_llm.base.core import Dialogue, InputError
from personal_llm.device import personalizer
from personal_llm.device.forgetting import forget_folder
from personal_llm.device.personalizer import load_personalizer

WORDS = ("pill", "tea", "pain", "bread")


def roots(d) -> set:
    return {d.id, *d.parents}


class AnyLife(RuleBasedStateMachine):
    "What was saved is never lost, what was forgotten is never found, and the log explains the buffer."

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(personalizer, "tune", fake_tune)
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a real disk waits at each fsync
        self.place = Path(tempfile.mkdtemp(prefix="machine-", dir=memory))
        self.folder = self.place / "me"
        self.said = self.reactions = 0  # dialogues and reactions, to number their texts
        self.offered, self.forgotten = set(), []  # ids; (ids, words) of each wish
        self.log_start = 0  # decisions before the last wish are not replayed

    def teardown(self):
        self.patch.undo()
        shutil.rmtree(self.place, ignore_errors=True)

    @initialize(
        capacity=st.integers(1, 5),
        policy=st.sampled_from(["fifo", "reservoir", "sdss", "active"]),
        corrects=st.booleans(),
        when=st.sampled_from(["freeze", "arrival"]),
    )
    def begin(self, capacity, policy, corrects, when):
        self.user = User(lambda d: corrects)
        self.me = start(self.folder, capacity, policy, self.user, ask_when=when)
        self.kept = set()  # roots of the entries, by the log alone
        self.root = {}  # id -> root
        self.save()

    def learn_names(self):
        for d in self.me.buffer.dialogues:
            oldest = d.parents[0] if d.parents else d.id
            for name in (d.id, *d.parents):
                self.root.setdefault(name, self.root.get(oldest, oldest))

    def reread(self):
        self.me = load_personalizer(self.folder, Fake(), self.user, LEXICONS)
        self.log_start = self.me.buffer.seen
        self.learn_names()
        self.kept = {self.root[d.id] for d in self.me.buffer.dialogues}

    @rule(count=st.integers(1, 3), word=st.sampled_from(WORDS))
    def talk(self, count, word):
        for _ in range(count):
            self.said += 1
            d = Dialogue(f"{word} number {self.said}q", f"answer {self.said}a", time=self.said)
            self.offered.add(d.id)
            (decision,) = watch(self.me, [d])
            self.learn_names()
            if decision.evicted:
                self.kept.remove(self.root[decision.evicted])
            if decision.kept:
                self.kept.add(self.root[decision.id])

    @precondition(lambda self: len(self.me.buffer))
    @rule(which=st.integers(0, 4), kind=st.sampled_from(["better", "edit", "thumb_up", "thumb_down"]))
    def react(self, which, kind):
        d = self.me.buffer.dialogues[which % len(self.me.buffer)]
        self.reactions += 1
        text = f"rather {self.reactions}t" if kind in ("better", "edit") else ""
        try:
            self.me.react(d.id, kind, text)
        except InputError as error:
            assert "has the same feedback already" in str(error) and kind.startswith("thumb")
        self.learn_names()

    @precondition(lambda self: any(d.response.strip() for d in self.me.buffer.dialogues))
    @rule()
    def tune(self):
        try:
            self.me.finetune(progress=False)
        except InputError as error:
            assert "nothing to learn" in str(error)
        self.learn_names()

    @rule()
    def save(self):
        self.me.save()
        self.stored = state_of(self.folder)

    @rule()
    def crash(self):
        "A process dies: the last saved state is there."
        assert state_of(self.folder) == self.stored, "an acknowledged change is lost"
        self.reread()

    @rule()
    def restart(self):
        self.save()
        self.reread()
        assert state_of(self.folder) == self.stored

    @rule()
    def second_process(self):
        "Another process saves, so this one may not, and nothing of the other's is lost."
        other = load(self.folder)
        self.said += 1
        d = Dialogue(f"tea number {self.said}q", f"answer {self.said}a", time=self.said)
        self.offered.add(d.id)
        watch(other, [d])
        other.save()
        self.stored = state_of(self.folder)
        with pytest.raises(InputError, match="another personalizer has saved"):
            self.me.save()
        assert state_of(self.folder) == self.stored
        self.reread()

    @precondition(lambda self: self.said)
    @rule(which=st.integers(1, 40), how=st.sampled_from(["id", "text", "time", "in the folder"]))
    def forget(self, which, how):
        number = (which - 1) % self.said + 1
        wish = dict(time=dict(before=number + 0.5)).get(how, dict(text=f"number {number}q"))
        stored = [d for d in self.me.buffer.dialogues if f"number {number}q" in d.text]
        if how == "id":
            wish = dict(ids=[*roots(stored[0])]) if stored else dict(ids=["unknown"])
        gone = [f"{n}{end}" for n in (range(1, number + 1) if how == "time" else [number]) for end in "qa"]
        if how == "in the folder":
            self.save()
            forget_folder(self.folder, **wish)
        else:
            self.me.forget(**wish)
            self.me.save()
        if how != "id" or stored:
            self.forgotten += gone
        self.stored = state_of(self.folder)
        self.reread()

    @invariant()
    def the_buffer_is_sound(self):
        if hasattr(self, "me"):
            assert len(self.me.buffer) <= self.me.buffer.capacity
            assert self.me.buffer.view.capacity == self.me.buffer.capacity
            assert {self.root[d.id] for d in self.me.buffer.dialogues} == self.kept, "the log explains the buffer"

    @invariant()
    def lineages_are_closed(self):
        "Whatever trained an adapter, or stands in the buffer, was offered once or comes of what was."
        if hasattr(self, "me"):
            known = self.offered | {d.id for d in TALK}
            for d in self.me.buffer.dialogues:
                assert roots(d) & known
            for done in self.me.rounds:
                assert {*done.parents} & known

    @invariant()
    def what_is_forgotten_is_gone(self):
        if self.forgotten:
            content = bytes_below(self.folder)
            found = [words for words in self.forgotten if f" {words}".encode() in content]
            assert not found, f"still stored: {found}"


AnyLife.TestCase.settings = settings(max_examples=15, stateful_step_count=18, deadline=None)
TestAnyLife = AnyLife.TestCase
