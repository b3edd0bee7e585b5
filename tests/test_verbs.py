"Verbs at random: what a person sees is what a plain account says, and the same live, computed anew and read from disk."

import random
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from candidates import replace_models
from life import Life, Turn, is_private, place
from plain import read_reasons
from servers import pocket

from personal_llm.app.chat import explain_reply
from personal_llm.base.core import ANSWERED_ORIGINS, Dialogue, InputError
from personal_llm.base.encoder import VectorStore
from personal_llm.base.models import Model
from personal_llm.device import chat, personalizer, recall
from personal_llm.base.notes import Note
from personal_llm.device.archive import Archive, count_bytes
from personal_llm.device.chat import ChatSession, describe_reaction, describe_source
from personal_llm.device.evidence import (
    GROUPS,
    get_evidence,
    list_answered,
    list_corrected,
    list_habits,
    list_unlearned,
)
from personal_llm.device.forgetting import trim
from personal_llm.device.idle import Background
from personal_llm.device.learning import record_round
from personal_llm.device.personalizer import Personalizer, describe_act
from personal_llm.device.recall import Memory, describe_scopes
from personal_llm.device.state import FILE, begin_state, open_state
from personal_llm.memory import gate
from personal_llm.memory.gate import General
from personal_llm.memory.statements import Asked, Statement

try:
    from personal_llm.extras import server
except InputError:  # without the extra `serve`
    server = None

POLICIES = ["answers-first", "sdss", "kcenter", "random"]
SCOPES = ["", "here", "everywhere"]


def pick(items, number):
    return [*items][number % len(items)]


class Pair:
    "A chat, and the plain account of what is done in it."

    def __init__(self, session, clock):
        self.session, self.clock = session, clock
        self.me, self.state = session.me, session.me.state
        self.life = Life()
        self.subject = []  # ids that a scope without a turn is about
        self.shown = []  # ids of corrections that a question was about, which was shown
        self.is_elsewhere = False
        self.questions = set()  # ids that the person was asked about
        self.note_base()

    def note_base(self):
        self.life.base = self.state.base
        self.me.adapter = personalizer.load_last_adapter(self.state, None)

    def say(self, prompt, replaces=None):
        session, life = self.session, self.life
        key = session.talk.key
        talk = life.talk(key)
        rest = talk[talk.index(replaces) :] if replaces else []
        expected = life.find_prompt(prompt, key, rest, self.clock.now + 1, session.memory.config, self.is_elsewhere)
        reply = "".join(session.say(prompt, replaces=replaces))
        if {*self.shown} - life.asked:
            self.subject = []
        life.asked |= {id for id in self.shown if id in life.turns}
        self.shown = []
        found = session.recalled
        assert ([*found.dialogue.history], found.dialogue.prompt) == (expected.history, expected.prompt)
        assert [self.state.root(d) for d in found.memories] == expected.reads
        assert [one.id for one in found.statements] == expected.said
        assert (found.adapter, found.is_silent) == (expected.adapter, expected.is_silent)
        if expected.reasons:
            reasons = [reason for _, _, reason in expected.reasons]
            assert [reason for _, _, reason in read_reasons(found.verdict)] == reasons
        self.compare_why(expected)
        is_anew = rest and not life.newest(rest[0]).reply
        turn = Turn(session.stored, prompt, reply, key, self.clock.now, life.step(), expected.before, expected.reads)
        turn.said, turn.is_tuned, turn.is_silent = expected.said, expected.adapter is not None, expected.is_silent
        assert not is_anew or turn.id == rest[0]
        life.say(turn, [] if is_anew else rest)

    def compare_why(self, expected):
        "The line below a reply and the answer to /why name what it read."
        notes = explain_reply(self.session)
        named = {name: [dict(note.fields) for note in notes if note.name == name] for name in EXPLAINED}
        rules = [act.text for act in self.life.instructions().values()]
        assert [row["prompt"] for row in named["example"]] == [self.life.turns[id].prompt for id in expected.reads]
        assert [row["text"] for row in named["you_said"]] == [self.life.turns[id].prompt for id in expected.said]
        assert [row["text"] for row in named["you_said_always"]] == rules
        assert bool(named["by_adapter"]) == bool(expected.adapter) != bool(named["by_base"])
        assert bool(named["shown_already"] or named["no_example"]) == expected.is_silent
        parts = describe_source(self.session.model, self.session.recalled, self.session.reply)
        told = [*dict.fromkeys(parts.list_names() if parts else [])]
        is_used = dict(of_answers=expected.reads, of_instructions=rules, of_statements_on=expected.said)
        is_used |= dict(of_finetune=expected.adapter)
        assert [name for name in told if name.startswith("of_")] == [name for name, used in is_used.items() if used]

    def show_habit(self):
        row = self.life.habit_question()
        ids = [d.id for d in row.answers] if row else []
        is_new = bool(ids) and not {*ids} & {*self.shown}
        assert bool(self.session.scoping.show_habit_question()) == is_new
        if is_new:
            self.subject = self.shown = ids

    def file(self, number):
        d = Dialogue(f"From a file {number}, {len(self.life.turns)}?", "Yes.", time=float(number))
        self.me.observe_all([d], progress=False)
        self.life.say(Turn(d.id, d.prompt, d.response, FILE, d.time, self.life.step(), [], origin=d.origin), [])

    def react(self, id, kind, text="", scope=None):
        is_own = self.life.newest(id).is_own
        stored = self.session.react(kind, text, id, scope)
        self.subject = [id] if kind == "better" else self.subject  # also if the words were the reply's own
        kind = self.life.react(id, kind, text, self.clock.now, scope)
        assert stored.kind == kind
        told = describe_reaction(self.session.memory, self.state, self.session.model, stored).list_names()
        if kind == "better":
            assert told == ["line", "sentences", *self.life.describe_places([id])]
        elif kind in GROUPS:
            assert told == [kind]
        else:
            ending = ["correction_ended" if is_own else "show_wanted"] * (kind == "down")
            assert told == ["line", "noted", *ending]

    def scope(self, id, scope):
        corrected = self.life.corrected()
        named = [id] if id else [one for one in self.subject if one in corrected] or corrected[-1:]
        self.session.scoping.scope_correction(scope, id)
        self.life.scope(named, scope)
        self.subject = named
        self.compare_places(named)

    def scope_all(self, scope):
        ids = self.life.corrected()
        self.me.scope([self.state.newest(id) for id in ids], scope)
        if ids:
            self.life.scope(ids, scope)
            self.compare_places(ids)

    def compare_places(self, ids):
        told = describe_scopes(self.session.memory, self.state, ids).list_names()
        assert told == ["sentences", *self.life.describe_places(ids)]

    def instruct(self, text, number):
        self.session.instruct(text, number)
        self.life.instruct(number, text, self.clock.now)

    def undo(self):
        if not self.life.acts:
            self.session.undo()  # is refused
            assert False
        act = self.life.acts[-1]
        before = [self.life.as_dialogue(id) for id in act.ids[:1]]
        line = self.session.undo()
        self.subject = act.ids
        self.life.undo()
        now = [self.life.as_dialogue(id) for id in act.ids[:1]]
        is_new = act.kind != "scope" and [(d.response, d.origin) for d in before] != [
            (d.response, d.origin) for d in now
        ]
        is_again = act.kind == "better" and not is_new  # the same words, said before
        is_back = (is_new or is_again) and now[0].origin == "annotated"
        rounds = [one for one in self.life.rounds if one.base == self.life.base]
        is_learned = is_new and before[0].response in [one.learned.get(before[0].id, ("",))[0] for one in rounds]
        holds = dict(
            earlier_applies=is_back and act.kind == "better", correction_applies=is_back and act.kind != "better"
        )
        holds["already_learned"] = is_learned and act.kind == "better"
        told = {name: self.session.tell(Note(name)) in line for name in holds}
        assert told == holds, line

    def learn(self):
        taught = [d.id for d in self.life.evidence().taught if d.id not in self.life.replaced]
        self.me.finetune(progress=False)
        last = self.state.find_last_round()
        if self.me.buffer.policy.learns_answers and taught:
            assert [*last.learned] == taught
        learned = {id: self.state.newest(id) for id in last.learned}
        rows = {id: (d.response, d.origin in ANSWERED_ORIGINS) for id, d in learned.items()}
        self.life.rounds.append(
            SimpleNamespace(name=last.adapter, base=self.life.base, learned=rows, step=self.life.step())
        )
        assert list_unlearned(self.state) == [], "what was learned is not learned again"

    def unlearn(self):
        self.me.undo_finetune()
        self.life.rounds.remove([one for one in self.life.rounds if one.base == self.life.base][-1])

    def set_base(self, number):
        self.state.record("configured", base=f"base {number}", model="m", settings=self.state.settings)
        self.note_base()

    def forget(self, ids):
        gone, emptied, adapters = self.life.find_lost(ids)
        if server is not None:
            shown = server.forget(self.session, server.Change(ids=ids, dry=True))
            can_stay = {id: id not in self.life.find_lost(ids, emptied)[1] for id in emptied}
            assert {row["id"]: row["can_stay"] for row in shown["rows"]} == can_stay
            assert len(shown["others"]) == len(gone) + len(adapters)
        plan = self.session.forget(ids=ids)
        assert (plan.dialogues, plan.replies, plan.adapters) == (tuple(gone), tuple(emptied), tuple(adapters))
        self.life.forget(gone, emptied)
        self.questions -= {*emptied}
        self.life.rounds = [one for one in self.life.rounds if one.name not in adapters]

    def trim(self, number):
        if number % 4:  # nothing waits for its score
            self.me.settle()
        trim(self.state, count_bytes(self.state.archive) - 1 if number % 2 else 0)
        self.life.forget([id for id in self.life.turns if id not in self.state.archive.dialogues])

    def do(self, verb, number):  # number: what it is done to, or with
        ids = [*self.state.own]
        id = pick(ids[-2:] if number % 2 else ids, number // 2) if ids else None
        self.clock.step = 0.0 if verb not in ("say", "replace") and number % 4 > 1 else 1.0  # in the same second
        number //= 20
        match verb:
            case "say":
                self.say(f"Question {number % 10}?" if number % 3 else f"I am {number % 10}.")
            case "replace" if self.session.turns:
                self.say(f"Question {number % 10}, again?", pick(self.life.talk(self.session.talk.key), number))
            case "file":
                self.file(number)
            case "talk":
                self.session.open_talk(pick([None, *self.state.list_talks()], number))
            case "better" if ids:
                own = self.life.newest(id).reply
                texts = ["In short: tea.", "In short: milk.", "In short: tea.", own.removeprefix("In short: "), own]
                is_plain = self.life.turns[id].reads and number % 2  # the form is taken out
                text, scope = pick(texts, number), [None, None, None, *SCOPES][number // 5 % 6]
                self.react(id, "better", *((texts[3], None) if is_plain else (text, scope)))
            case "up" | "down" | "here_too" | "not_here" if ids:
                self.react(id, verb)
            case "scope":
                self.scope(id if number % 3 else None, pick(SCOPES, number))
            case "scope_all":
                self.scope_all(pick(SCOPES, number))
            case "always":
                known = [*self.state.instructions]
                is_change = known and number % 2
                self.instruct(f"Be {number}." * bool(number % 5), pick(known, number) if is_change else 0)
            case "undo":
                self.undo()
            case "settle":
                self.me.settle()
            case "learn":
                self.learn()
            case "unlearn":
                self.unlearn()
            case "base":
                self.set_base(number % 2)
            case "forget" if ids:
                self.forget([id])
            case "trim":
                self.trim(number)
            case "habit":
                self.show_habit()
            case "elsewhere":
                self.is_elsewhere = not self.is_elsewhere
                self.session.model.engine.is_here = not self.is_elsewhere

    def compare(self):
        "What a person sees follows from what they did."
        state, life = self.state, self.life

        def show(dialogues):
            return [(state.root(d), d.prompt, d.response, d.origin, d.time) for d in dialogues]

        expected = vars(life.evidence()).items()
        assert {name: show(group) for name, group in vars(get_evidence(state)).items()} == {
            name: show(group) for name, group in expected
        }
        assert [d[:4] for d in show(list_answered(state))] == [d[:4] for d in show(life.answered())]
        assert list_corrected(state) == life.corrected()
        shown = {number: act.text for number, act in life.instructions().items()}
        assert {number: one.text for number, one in state.instructions.items()} == shown
        talk = life.talk(self.session.talk.key)
        assert [state.root(d) for d in self.session.turns] == talk
        assert [d.response for d in self.session.turns] == [life.newest(id).reply for id in talk]
        assert show_card(list_habits(state)) == show_card(life.card())
        self.compare_undo()
        if server is not None:
            self.compare_page()

    def compare_undo(self):
        note = describe_act(self.state)
        if not self.life.acts:
            assert note is None
            return
        last = self.life.acts[-1]
        kind = last.kind if last.kind != "always" else "instruction" if last.text else "ending"
        fields = dict(note.fields)
        assert note.name == f"act_{kind}" and fields.get("text", "") == last.text * (kind == "instruction")
        assert [*fields.get("prompts", ())] == [self.life.turns[id].prompt for id in last.ids]

    def compare_page(self):
        session, life = self.session, self.life
        for words in ("", "milk"):
            shown = server.list_talks(session, "", words)
            assert [(row["talk"], row["title"], row["time"]) for row in shown["talks"]] == life.list_talks(words)
            key = session.talk.key
            expected = life.find_page(key)
            assert len(shown["turns"]) == len(expected)
            for turn, row in zip(shown["turns"], expected):
                assert {name: turn[name] for name in row} == row
            assert shown["is_taught"] == bool(life.corrected())
            assert bool(shown["habit"]) == (life.habit_question() is not None)
        known = server.list_known(session)
        answers = [(d.id, d.response, life.newest(d.id).scope or "") for d in reversed(life.answered())]
        assert [(row["id"], row["reply"], row["scope"]) for row in known["answers"]] == answers
        assert [row["prompt"] for row in known["statements"]] == [t.prompt for t in reversed(life.statements())]
        rounds = [one.step for one in life.rounds if one.base == life.base]
        acts = [act.step for act in life.acts]
        assert server.find_undo(session)[0] == (
            "undo" if max(rounds, default=0) > max(acts, default=0) else "take_back"
        )


EXPLAINED = ("example", "you_said", "you_said_always", "by_adapter", "by_base", "shown_already", "no_example")


def show_card(rows):
    return [(row.label, row.count, row.num_answers, row.base_count, row.scopes) for row in rows]


VERBS = "settle undo replace scope learn file talk up down here_too not_here scope_all always unlearn habit elsewhere"
VERBS = VERBS.split()


def describe(state):
    "All fields of a state as text."
    parts = {name: value for name, value in vars(state).items() if name not in ("archive", "buffer", "spent")}
    parts = {name: sorted(value) if isinstance(value, set) else value for name, value in parts.items()}
    buffer = state.buffer
    entries = [(entry.dialogue, entry.scores.embedding.tolist()) for entry in buffer.entries]
    parts |= dict(entries=entries, arrivals=buffer.arrivals, random=buffer.random.bit_generator.state)
    parts |= dict(vacated=buffer.vacated, rescored=buffer.rescored)
    return str({**parts, "evidence": get_evidence(state), "unlearned": list_unlearned(state), "seen": buffer.seen})


class Clock:
    now = 1e9
    step = 1.0

    def __call__(self):
        self.now += self.step
        return self.now


class Places(VectorStore):
    "Vectors of small whole numbers."

    def embed(self, texts):
        return np.array([place(text) for text in texts], float).reshape(-1, 3)


def replace_encoder(patch):
    "Let the gate and the statements work without an encoder."
    patch.setattr(gate, "LENGTH_ERROR", np.inf)
    patch.setattr(recall, "VectorStore", Places)
    patch.setattr(recall, "load_general", lambda encoder: General())
    patch.setattr(recall, "load_encoder", lambda: None)
    patch.setattr(recall, "get_encoder_id", lambda: "places")
    patch.setattr(recall, "read_prompt", lambda prompt: Asked(set(), True))
    is_told = lambda d: d.prompt.startswith("I am ")
    patch.setattr(recall, "find_statements", lambda new: [Statement(d.prompt, d.time, d.id) for d in new if is_told(d)])
    patch.setattr(recall, "is_private", is_private)
    patch.setattr(pocket(), "engine", SimpleNamespace(is_here=True, reads_adapters=True))
    patch.setattr(Memory, "start_warming", lambda self, state: None)
    patch.setattr(chat, "describe_wishes", lambda message: [])
    patch.setattr(Background, "start_timer", lambda self: None)
    patch.setattr(Model, "use_adapter", lambda self, adapter: nullcontext(self))
    patch.setattr(
        personalizer, "load_last_adapter", lambda state, folder: getattr(state.find_last_round(), "adapter", None)
    )
    patch.setattr(Personalizer, "commit", commit)


def write(dialogue) -> str:  # a reply takes over the form of the corrections that it read
    return "In short: " * ("In short" in str(dialogue.history)) + f"so it is {len(dialogue.prompt)}."


def commit(self, prepared):
    record_round(self.state, prepared)
    self.adapter = prepared.content["adapter"]


def open_session(folder, policy, clock):
    buffer = personalizer.Buffer(4, policy)
    options = dict(buffer=buffer, ask_when="policy" if policy == "answers-first" else None)
    return ChatSession(pocket(), folder, clock=clock, idle_seconds=999.0, **options)


SEEDS = [
    pytest.param(range(90), id="some"),
    pytest.param(range(90, 600), id="many", marks=pytest.mark.later),
]


def draw_verbs(seed) -> tuple:  # (policy, (verb, number) pairs): a few kinds of verbs, each often
    draw = random.Random(seed)
    policy = draw.choice([POLICIES[0], *POLICIES])
    kinds = draw.sample(VERBS, draw.randint(3, 9)) + draw.sample(
        ["forget", "trim", "trim", "base"], draw.choice([0, 1])
    )
    first = draw.choice(["", "say better talk say better talk say better", "say say better say better"]).split()
    verbs = first + [draw.choice(["say", "better", *kinds]) for _ in range(draw.randint(10, 30))]
    return policy, [(verb, draw.randint(0, 9999)) for verb in verbs]


@pytest.mark.parametrize("seeds", SEEDS)
def test_what_follows_from_acts_is_what_a_plain_account_says_and_the_same_live_anew_and_from_disk(seeds, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        replace_models(patch, write)
        replace_encoder(patch)
        for seed in seeds:
            policy, verbs = draw_verbs(seed)
            clock = Clock()
            folder = tmp_path / f"{seed}"
            with open_session(folder, policy, clock) as session:
                try:
                    live(session, clock, verbs)
                except Exception as error:
                    error.add_note(f"seed {seed}, {policy}: {verbs}") if hasattr(error, "add_note") else None
                    raise
            archive = Archive(folder)
            assert describe(open_state(archive)) == describe(session.me.state)
            archive.close()
            shutil.rmtree(folder)


def live(session, clock, verbs):
    state = session.me.state
    state.archive.connection.execute("PRAGMA synchronous=OFF")
    session.model.engine.is_here = True
    pair = Pair(session, clock)
    for verb, number in verbs:
        before = describe(state)
        asked, num_requests, has_turns = state.question, state.cost.requests, bool(session.turns)
        try:
            pair.do(verb, number)
            is_passed = verb == "say" or verb == "replace" and has_turns or asked in pair.life.acts_on(verb)
            assert state.cost.requests == num_requests + bool(asked and is_passed), verb
        except InputError:
            is_same = describe(state) == before
            assert is_same or verb == "learn", "a refusal changes nothing, but `learn` first takes over scores"
        assert describe(begin_state(state.archive, state.buffer)) == describe(state), verb
        if state.question not in ("", asked):
            assert state.question not in pair.questions, "asked twice"
            pair.questions.add(state.question)
        pair.compare()
