"""What a person did with a folder, and what they may expect of it: a second, plain account beside the state's.

It keeps the turns and acts in the order in which they happened, without an archive, and derives all else anew.
"""

import zlib
from dataclasses import dataclass, field
from types import SimpleNamespace

from personal_llm.base.core import ANSWERED_ORIGINS, Dialogue
from personal_llm.device.state import FILE
from personal_llm.explanation.card import is_taken_out, make_card
from personal_llm.base.text import format_date
from personal_llm.memory.gate import Evidence, General
from personal_llm.memory.statements import Statement
from plain import dot, follow, judge_plainly, lay_out, read_corrections

GATE_WORDS = dict(here_too="wanted", not_here="plain")  # kind of a reaction -> the group of its reply


def is_private(text: str) -> bool:
    return "milk" in text


def place(text: str) -> list:
    "Return a small vector for a text."
    return [zlib.crc32(text.encode()) // 5**power % 5 - 2 for power in range(3)]


@dataclass
class Turn:
    "A message and its reply, with what the reply had read."

    id: str
    prompt: str
    reply: str
    talk: str
    time: float
    step: int  # when it was said
    before: list  # ids of the turns that it read
    reads: list = field(default_factory=list)  # ids of the corrected replies that it used
    said: list = field(default_factory=list)  # ids of the messages that it used
    has_read: bool = False  # it used what is forgotten
    is_tuned: bool = False
    is_silent: bool = False
    origin: str = "model"


@dataclass
class Act:
    "Something that can be taken back."

    ids: list  # of turns; none of an instruction
    kind: str
    text: str = ""
    time: float = 0.0
    scope: str = None  # None: it says nothing about the place
    is_plain: bool = False
    number: int = 0  # of an instruction
    step: int = 0


class Life:
    "All that a person did, and what follows from it."

    def __init__(self):
        self.turns = {}  # id -> `Turn`, in order
        self.acts = []
        self.replaced = {}  # id -> id of the next try
        self.num_steps = 0
        self.num_instructions = 0
        self.rounds = []  # with name, base, step, and what was learned: id -> (text, whether it was an answer)
        self.base = ""
        self.asked = set()  # ids of corrections whose place was asked about

    def step(self) -> int:
        self.num_steps += 1
        return self.num_steps

    # ---- what happens

    def say(self, turn: Turn, rest: list) -> None:
        "A new turn, in the place of others."
        if turn.id in self.turns:  # the reply to it had been forgotten
            for act in self.acts:
                act.ids = [id for id in act.ids if id != turn.id]
            self.acts = [act for act in self.acts if act.ids or act.kind == "always"]
            turn.step = self.turns[turn.id].step
            self.turns[turn.id].__dict__.update(vars(turn))
        else:
            self.turns[turn.id] = turn
        self.replaced |= dict.fromkeys(rest, turn.id)

    def react(self, id: str, kind: str, text: str, time: float, scope) -> str:  # the kind as it counts
        "A reaction; a better reply without a scope belongs where the ones belong that the reply had used."
        version, is_plain = self.newest(id), False
        if kind == "better":
            is_placed = scope is not None or version.scope is not None
            scope = (version.scope or "") if scope is None else scope
            if not scope:
                used = [self.newest(other).reply for other in self.turns[id].reads]
                is_plain = is_taken_out(used, self.turns[id].reply, text)
                scope = "" if is_plain or is_placed else self.used_scope(id)
            if text == version.reply and not version.is_own:
                kind, text, scope = "up", "", None
        self.acts.append(Act([id], kind, text, time, scope, is_plain, step=self.step()))
        return kind

    def scope(self, ids: list, scope: str) -> None:
        self.asked |= {*ids}
        self.acts.append(Act([*ids], "scope", scope=scope, step=self.step()))

    def instruct(self, number: int, text: str, time: float) -> None:
        same = [act.number for act in self.instructions().values() if act.text == text]
        number = number or next(iter(same), 0)  # the same instruction twice is one
        self.num_instructions += not number
        self.acts.append(Act([], "always", text, time, number=number or self.num_instructions, step=self.step()))

    def undo(self) -> None:
        self.acts.pop()

    def forget(self, gone: list, emptied: list = ()) -> None:
        "Turns that go, and replies that go."
        for id in gone:
            del self.turns[id]
            self.replaced.pop(id, None)
        self.asked -= {*gone}
        for turn in self.turns.values():
            turn.has_read = turn.has_read or not {*turn.reads}.isdisjoint(gone)
            for name in ("reads", "said", "before"):
                setattr(turn, name, [id for id in getattr(turn, name) if id not in gone])
        corrected = {id for act in self.acts if act.kind == "better" for id in act.ids}
        lost = {*gone, *(id for id in emptied if id not in corrected)}
        for act in self.acts:
            act.ids = [id for id in act.ids if id not in lost]
        self.acts = [act for act in self.acts if act.ids or act.kind == "always"]
        for one in self.rounds:
            one.learned = {id: row for id, row in one.learned.items() if id not in lost}
        for id in emptied:
            self.turns[id].reply = ""

    # ---- what follows

    def newest(self, id: str):
        "A reply as the acts have left it."
        turn = self.turns[id]
        own = SimpleNamespace(reply=turn.reply, origin=turn.origin, kind="", scope=None, is_plain=False, time=turn.time)
        own.is_own = False
        for act in self.acts:
            if id not in act.ids:
                continue
            own.scope = own.scope if act.scope is None else act.scope
            if act.kind == "scope":
                continue
            own.kind, own.time = act.kind, max(own.time, act.time)
            own.is_plain = act.is_plain or own.is_plain and act.kind != "better"
            if act.kind == "better":
                own.reply, own.origin = act.text, "annotated"
            elif act.kind in ("up", "down"):
                liked = "annotated" if own.is_own else "approved"
                own.origin = liked if act.kind == "up" else "model"
            own.is_own = own.is_own or act.kind == "better"
        return own

    def as_dialogue(self, id: str) -> Dialogue:
        own = self.newest(id)
        return Dialogue(self.turns[id].prompt, own.reply, id=id, time=own.time, origin=own.origin)

    def is_answered(self, id: str) -> bool:
        own = self.newest(id)
        return own.origin in ANSWERED_ORIGINS and bool(own.reply)

    def used_scope(self, id: str) -> str:
        scopes = {self.newest(other).scope or "" for other in self.turns[id].reads}
        return scopes.pop() if len(scopes) == 1 else ""

    def uses_form(self, id: str) -> bool:
        turn = self.turns[id]
        has_seen = any(self.newest(other).origin in ANSWERED_ORIGINS for other in turn.before)
        return bool(turn.reads or turn.has_read or turn.is_tuned or has_seen)

    def find_group(self, id: str) -> str:
        "What a reply says about where corrections belong."
        own, turn = self.newest(id), self.turns[id]
        if not own.reply:
            return ""
        if own.origin in ANSWERED_ORIGINS:
            scope = own.scope or (self.used_scope(id) if own.origin == "approved" else "")
            if not scope and own.is_plain:
                return "plain"
            return "approved" if own.origin == "approved" and not self.uses_form(id) else scope or "answers"
        later = []
        while (last := (later or [id])[-1]) in self.replaced and self.replaced[last] in self.turns:
            later.append(self.replaced[last])
        if own.kind in GATE_WORDS and not any(self.newest(other).kind in GATE_WORDS for other in later):
            return GATE_WORDS[own.kind]
        is_second_try = any(
            new == id and old in self.turns and self.uses_form(old) for old, new in self.replaced.items()
        )
        is_silent = own.kind or id in self.replaced or turn.is_silent or is_second_try or turn.talk == FILE
        return "" if is_silent or self.uses_form(id) else "left_alone"

    def by_reaction(self) -> list:  # ids
        "Turns without a reaction, and then the others in the order of their newest one."
        reacted = [id for act in self.acts if act.kind not in ("scope", "always") for id in act.ids]
        reacted = [*dict.fromkeys(reversed(reacted))][::-1]
        return [id for id in self.turns if id not in reacted] + reacted

    def evidence(self) -> Evidence:
        groups = {}
        for id in self.by_reaction():
            groups.setdefault(self.find_group(id), []).append(self.as_dialogue(id))
        if not any(groups.get(name) for name in ("answers", "here", "everywhere")):
            groups["answers"] = groups.get("approved", [])
        names = Evidence.__dataclass_fields__
        return Evidence(**{name: tuple(sorted(groups.get(name, []), key=lambda d: d.time)) for name in names})

    def answered(self) -> list:  # `Dialogue`s, in the order in which they were said
        found = [self.as_dialogue(id) for id in self.by_reaction() if self.is_answered(id)]
        return sorted(found, key=lambda d: self.turns[d.id].time)

    def corrected(self) -> list:  # ids, the one that was corrected last at the end
        ids = [act.ids[0] for act in self.acts if act.kind == "better" and act.ids]
        return [id for id in [*dict.fromkeys(reversed(ids))][::-1] if self.newest(id).origin == "annotated"]

    def describe_places(self, ids: list) -> list:  # names of sentences
        "Where corrections apply now, one sentence for each scope."
        scopes = {id: self.newest(id).scope or "" for id in ids}
        evidence, names = self.evidence(), []
        for scope in dict.fromkeys(scopes.values()):
            own = [id for id in ids if scopes[id] == scope]
            if scope:
                names.append(f"applies_{scope}")
            elif all(self.newest(id).is_plain for id in own):
                is_everywhere = any(self.newest(other).scope == "everywhere" for other in self.turns)
                names += ["line", "counts_against", *["everywhere_still_applies"] * is_everywhere]
            else:
                answers = evidence.answers
                is_wide = bool(answers) and self.judge(evidence, answers[-1].prompt)[2]
                names.append("applies_widely" if is_wide else "applies_auto")
        return names

    def acts_on(self, verb: str) -> list:  # ids
        "What an act of the last step was about, if it was a reaction."
        is_reaction = verb in ("better", "up", "down", "here_too", "not_here")
        return self.acts[-1].ids if is_reaction and self.acts else []

    def card(self) -> list:  # `Habit`s
        "The habits of the corrections that kept the form, beside the replies that had none."
        own = [d for d in self.answered() if d.origin == "annotated" and not self.newest(d.id).is_plain]
        replies = {d.id: self.turns[d.id].reply for d in own if not self.uses_form(d.id)}
        return make_card(own, replies, {d.id: self.newest(d.id).scope or "" for d in own})

    def habit_question(self):  # a `Habit`, or None
        return next(
            (row for row in self.card() if not any(row.scopes) and not {d.id for d in row.answers} & self.asked), None
        )

    def instructions(self) -> dict:  # number -> its newest act
        found = {}
        for act in self.acts:
            if act.kind == "always":
                found.pop(act.number, None)
                found |= {act.number: act} if act.text else {}
        return found

    def talk(self, key: str) -> list:  # ids
        return [id for id, turn in self.turns.items() if turn.talk == key and id not in self.replaced]

    def statements(self) -> list:  # `Turn`s whose message says something of the person
        own = [turn for id, turn in self.turns.items() if turn.talk != FILE and id not in self.replaced]
        return [turn for turn in own if turn.prompt.startswith("I am ")]

    def adapter(self, prompt: str):  # None for none
        "The adapter that writes the reply to a prompt."
        last = next((one for one in reversed(self.rounds) if one.base == self.base), None)
        if last is None or not any(is_answer for _, is_answer in last.learned.values()):
            return last and last.name  # what was learned from a file applies everywhere
        is_in = lambda name, d: name not in ("answers", "here", "everywhere") or d.id in last.learned
        groups = vars(self.evidence()).items()
        part = Evidence(**{name: tuple(d for d in group if is_in(name, d)) for name, group in groups})
        return last.name if part.taught and self.judge(part, prompt)[1] else None

    def judge(self, evidence: Evidence, prompt: str) -> tuple:
        vectors = {d.prompt: place(d.prompt) for group in vars(evidence).values() for d in group}
        return judge_plainly(evidence, vectors, place(prompt), General(), set())

    def find_page(self, key: str) -> list:
        "What the page shows of each turn of a talk."
        rows = []
        for id in self.talk(key):
            turn, own = self.turns[id], self.newest(id)
            row = dict(id=id, prompt=turn.prompt, reply=own.reply, reaction=own.kind or None, scope=own.scope or "")
            row |= dict(read=[self.turns[other].prompt for other in turn.reads], is_own=own.origin == "annotated")
            row |= dict(said=[self.turns[other].prompt for other in turn.said], is_silent=turn.is_silent)
            row |= dict(is_writing=False, is_cut=False)
            rows.append(row | dict(is_corrected=bool(turn.reads) or turn.is_tuned))
        return rows

    def list_talks(self, words: str) -> list:  # (key, title, time), the newest first
        talks = {}
        for id, turn in self.turns.items():
            if turn.talk != FILE and id not in self.replaced:
                talks.setdefault(turn.talk, []).append(turn)
        has = lambda turn: words in f"{turn.prompt} {self.newest(turn.id).reply}".lower()
        found = [(key, own[0].prompt, own[-1].time) for key, own in talks.items() if any(map(has, own))]
        return sorted(found, key=lambda row: -row[2])

    def find_prompt(
        self, prompt: str, key: str, rest: list, time: float, config, is_elsewhere: bool, num_turns: int = 6
    ):
        "What the model receives for a message in a talk, in the place of others, and what of it is whose."
        before = [id for id in self.talk(key) if self.newest(id).reply and id not in rest][-num_turns:]
        shown = [
            pair for id in before for pair in (("user", self.turns[id].prompt), ("assistant", self.newest(id).reply))
        ]
        evidence = self.evidence()
        applying, _, _, reasons = self.judge(evidence, prompt) if evidence.taught else ([], False, False, [])
        likeness = {d.prompt: dot(place(d.prompt), place(prompt)) for d in applying}
        told = {text for _, text in shown}
        sizes = {d: len(d.prompt.split()) + len(d.response.split()) for d in applying}
        unseen = {d.prompt for d in applying if {d.prompt, d.response} <= told}
        if is_elsewhere:  # another computer writes the reply
            unseen |= {d.prompt for d in follow(applying, likeness, prompt) if is_private(d.text)}
        reads = read_corrections(applying, likeness, prompt, config, sizes, unseen)
        asked = {text for role, text in shown if role == "user"}
        said = [turn for turn in self.statements() if turn.prompt not in asked and turn.id not in rest]
        said = [] if is_elsewhere else said
        said = [*{turn.prompt: turn for turn in said}.values()]
        said = sorted(said, key=lambda turn: -dot(place(turn.prompt), place(prompt)))
        said = sorted(said[: config.statements], key=lambda turn: turn.step)
        rules = [SimpleNamespace(text=act.text, time=act.time) for act in self.instructions().values()]
        today = f"Today is {format_date(time)}. The user told you before:"
        told = [today, *(Statement(turn.prompt, turn.time).line for turn in said)] if said else []
        history, text = lay_out(Dialogue(prompt, "", shown), reads, told, rules, config.sentence)
        found = dict(history=history, prompt=text, reads=[d.id for d in reads], said=[turn.id for turn in said])
        found |= dict(before=before, adapter=self.adapter(prompt), reasons=reasons)
        return SimpleNamespace(**found, is_silent=bool(applying) and not reads)

    def find_lost(self, ids: list, keep=()) -> tuple:  # keep: ids -> (turns, replies, adapters)
        "Which turns go with some, which replies, since they read what goes, and which adapters."
        gone = {*ids}
        while more := {old for old, new in self.replaced.items() if new in gone and old in self.turns} - gone:
            gone |= more
        since = dict.fromkeys(gone, float("inf"))  # from when on its text is the person's own
        emptied = []
        for id, turn in self.turns.items():
            is_lost = lambda other: turn.step < since.get(other, 0)
            has_read = any(map(is_lost, [*turn.before * (id not in keep), *turn.reads])) or not gone.isdisjoint(
                turn.said
            )
            if id not in gone and has_read and turn.reply and turn.origin == "model":
                emptied.append(id)
                own = [act.step for act in self.acts if act.kind == "better" and id in act.ids]
                since[id] = min(own, default=float("inf"))
        learned = [[id for id in one.learned if self.is_lost(id, one, since)] for one in self.rounds]
        first = next((number for number, ids in enumerate(learned) if ids), len(learned))
        return [id for id in self.turns if id in gone], emptied, [one.name for one in self.rounds[first:]]

    def is_lost(self, id: str, one, since: dict) -> bool:
        "Whether what a fine-tune learned goes: of a reply that goes only a correction stays, from when on it was one."
        text, _ = one.learned[id]
        return id in since and (since[id] == float("inf") or text == self.turns[id].reply or one.step < since[id])
