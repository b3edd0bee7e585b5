"Verbs at random: the live state is the state computed anew, and the state read from disk."

import shutil

import pytest
from candidates import replace_models
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from servers import pocket

from personal_llm.base.core import Dialogue, InputError
from personal_llm.device import personalizer
from personal_llm.device.archive import Archive
from personal_llm.device.chat import ChatSession
from personal_llm.device.evidence import get_evidence, list_answered, list_unlearned
from personal_llm.device.forgetting import trim
from personal_llm.device.recall import Memory, Recall
from personal_llm.device.state import begin_state, open_state

POLICIES = ["answers-first", "sdss", "kcenter", "random"]
SCOPES = ["", "here", "everywhere"]


def find(self, state, dialogue, *_):
    return Recall(dialogue, memories=tuple(list_answered(state)[-2:]))


def pick(items, number):
    return [*items][number % len(items)]


def do(session, verb, number):  # number: what it is done to, or with
    me = session.me
    ids = [*me.state.own]
    match verb:
        case "say":
            "".join(session.say(f"Question {number}?"))
        case "replace" if session.turns:
            "".join(session.say(f"Question {number}, again?", replaces=pick(session.turns, number).id))
        case "file":
            me.observe_all([Dialogue(f"From a file {number}?", "Yes.", time=float(number))], progress=False)
        case "talk":
            session.open_talk()
        case "better" | "up" | "down" if ids:
            me.react(
                me.state.newest(pick(ids, number)),
                verb,
                f"In short: {number % 3}." if verb == "better" else "",
                2e9 + number,
            )
        case "scope" if ids:
            session.scoping.scope_correction(pick(SCOPES, number), pick(ids, number))
        case "always":
            known = [*me.state.instructions]
            me.instruct(f"Be {number}.", pick(known, number) if known and number % 2 else 0, 2e9 + number)
        case "undo":
            session.undo()
        case "settle":
            me.settle()
        case "learn":
            me.finetune(progress=False)
        case "unlearn":
            me.undo_finetune()
        case "base":
            me.state.record("configured", base=f"base {number % 2}", model="m", settings=me.state.settings)
        case "forget" if ids:
            me.forget(ids=[pick(ids, number)])
        case "trim":
            trim(me.state, 4000)


VERBS = ["say"] * 4 + ["better"] * 3 + ["settle", "undo"] * 2
VERBS += ["replace", "file", "talk", "up", "down", "scope", "always", "learn", "unlearn", "base", "forget", "trim"]


def describe(state):
    "All fields of a state as text."
    parts = {name: value for name, value in vars(state).items() if name not in ("archive", "buffer", "spent")}
    parts = {name: sorted(value) if isinstance(value, set) else value for name, value in parts.items()}
    buffer = state.buffer
    entries = [(entry.dialogue, entry.scores.embedding.tolist()) for entry in buffer.entries]
    parts |= dict(entries=entries, arrivals=buffer.arrivals, random=buffer.random.bit_generator.state)
    parts |= dict(vacated=buffer.vacated, rescored=buffer.rescored)
    return str({**parts, "evidence": get_evidence(state), "unlearned": list_unlearned(state), "seen": buffer.seen})


def open_session(folder, policy):
    clock = map(float, range(10**9, 2 * 10**9)).__next__
    buffer = personalizer.Buffer(4, policy)
    options = dict(buffer=buffer, memories=0, ask_when="policy" if policy == "answers-first" else None)
    return ChatSession(pocket(), folder, clock=clock, idle_seconds=999.0, **options)


# the reply that a question was about is forgotten
QUESTION_FORGOTTEN = (
    "say better settle say say say up say:8 learn better:1 say say learn say better:4 replace:2 forget:7"
)
QUESTION_FORGOTTEN = [step.partition(":")[::2] for step in f"{QUESTION_FORGOTTEN} say:9".split()]
QUESTION_FORGOTTEN = [(verb, int(number or 0)) for verb, number in QUESTION_FORGOTTEN]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=26, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@example(QUESTION_FORGOTTEN)
@given(st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 9)), min_size=12, max_size=30))
def test_live_computed_anew_and_read_from_disk_are_one_state(policy, tmp_path_factory, verbs):
    folder = tmp_path_factory.mktemp("me")
    with pytest.MonkeyPatch.context() as patch:
        replace_models(patch, lambda dialogue: f"So it is {len(dialogue.prompt)}.")
        patch.setattr(Memory, "find", find)
        with open_session(folder, policy) as session:
            state = session.me.state
            for verb, number in verbs:
                before = describe(state)
                try:
                    do(session, verb, number)
                except InputError:
                    is_same = describe(state) == before
                    assert is_same or verb == "learn", "a refusal changes nothing, but `learn` first takes over scores"
                assert describe(begin_state(state.archive, state.buffer)) == describe(state), verb
                if verb == "learn" and number % 2:
                    assert list_unlearned(state) == [], "what was learned is not learned again"
        shutil.copytree(folder, folder / "copy")
        archive = Archive(folder / "copy")
        assert describe(open_state(archive)) == describe(state)
        archive.close()
    shutil.rmtree(folder)
