"A chat: pieces, turns, and work that nobody waits for."

import threading

import pytest
from candidates import Echo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personal_llm.app.chat import explain_reply
from personal_llm.base import replies
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.base.replies import ReplyOptions
from personal_llm.device import personalizer, recall
from personal_llm.base.text import clean_text
from personal_llm.device.chat import ChatSession
from personal_llm.device.idle import BackgroundWork, describe_error
from personal_llm.device.evidence import get_evidence
from personal_llm.device.personalizer import collect_training
from personal_llm.tuning.config import TuningConfig

FEW = ReplyOptions(max_tokens=5)


class Clock:
    def __init__(self):
        self.seconds = 1_000_000.0

    def __call__(self):
        self.seconds += 60.0
        return self.seconds


def open_chat(model, folder=None, **settings):
    settings = dict(config=TuningConfig(steps=2, batch_size=2)) | settings
    return ChatSession(model, folder, clock=Clock(), idle_seconds=999.0, **settings)


def say(session, text, **options):
    return "".join(session.say(text, options=FEW, **options))


def test_a_turn_is_stored_when_its_last_piece_is_taken(model, tmp_path):
    with open_chat(model, tmp_path) as session:
        text = say(session, "Hello\x07 there")
        assert [d.prompt for d in session.turns] == ["Hello  there"] and session.turns[0].response == text
        pieces = session.say("And you?", options=FEW)
        next(pieces, None)
        session.stop_reply()
        assert len(session.turns) == 1, "a stopped reply is not stored"
        pieces = session.say("Or you?", options=FEW)
        next(pieces)
        session.forget("zebra")
        assert [*pieces] == [] and len(session.turns) == 1, "forgetting stops it too"
        assert say(session, "  ") == "" and len(session.turns) == 1
    with open_chat(model, tmp_path) as again:
        assert [d.response for d in again.turns] == [text]


def test_an_empty_reply_is_told_and_not_stored(model, monkeypatch):
    monkeypatch.setattr("personal_llm.device.chat.ReplyStream", lambda *given: Echo(""))
    session = open_chat(model)
    assert say(session, "What is tea?") == "" and session.turns == [] and len(session.pop_messages()) == 1


def test_a_program_brings_its_own_history(model):
    session = open_chat(model)
    say(session, "Hello")
    say(session, "And?", history=[("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")])
    assert len(session.turns) == 1, "the program's talk is not ours"
    assert list(session.me.archive.talks.values())[-1] == "client"
    say(session, "Secret", is_observed=False)
    assert len(session.me.archive.dialogues) == 2


PROGRAMS = (  # system prompt of a program, what it sends in the user's name
    ("You are a translator. Translate the user's text into French and write nothing else.", "I need a doctor."),
    ("Answer in French.", "Is seven a prime number?"),
    ("Classify the sentiment of the text: positive, negative or neutral.", "My wife Ruth loved the film."),
    ("Write a commit message for the user's change.", "I changed the parser, and my tests pass."),
    ("Write a reply to the customer's message.", "My package has not arrived. I want my money back."),
    ("Return JSON with the keys name and city.", "I'm Tom, and I live in Graz."),
    ("Correct the spelling. Change nothing else.", "Is sevn a prime number?"),
    ("Summarise the text in three bullet points.", "I take antidepressants. My doctor is away."),
    ("You are a SQL expert. Return one query.", "Which customers bought seven things?"),
    ("Complete the code at the cursor. No prose.", "def is_prime(n):"),
    ("Erzeuge einen Titel mit höchstens fünf Wörtern.", "Ist sieben eine Primzahl?"),
    ("Extract all dates in ISO format.", "My appointment is on 3 May."),
    ("You are the narrator of a game. Stay in character.", "I open the door."),
    ("Répondez uniquement par oui ou non.", "Sept est-il premier ?"),
    ("Decide whether the message is spam: yes or no.", "You won a prize, is seven lucky?"),
    ("Rewrite the e-mail formally.", "hi, i'm ill today"),
    ("Give a shell command and nothing else.", "list my files by size"),
    ("You are a helpful assistant.", "Is eleven a prime number?"),
    ("Judge the answer on a scale from 1 to 5.", "Question: is seven prime? Answer: yes."),
    ("Explain it to a child of six.", "What is a prime number?"),
)


def test_a_programs_system_prompt_wins_and_its_turns_are_no_evidence(model):
    session = open_chat(model)
    session.instruct("Answer in rhyme.")
    for prompt in ("Is seven a prime number?", "Is nine a prime number?", "My wife is called Ruth. What shall I cook?"):
        say(session, prompt)
        session.react("better", "In short: ask Ruth.", scope="everywhere")
        session.open_talk()
    before = get_evidence(session.me.state)
    for system, prompt in PROGRAMS:
        say(session, prompt, history=[("system", system)])
        assert session.recalled.dialogue.messages()[:-1] == Dialogue(prompt, "", [("system", system)]).messages()[:-1]
        assert "X-Personal-Memory" in str(session.recalled.reasons[0])
        assert "of yours" not in session.describe_source()
    assert len(session.me.archive.dialogues) == 3 + len(PROGRAMS) and get_evidence(session.me.state) == before
    say(session, "Is eleven a prime number?", history=[("system", "Be brief.")], is_person=True)
    assert session.recalled.memories and session.recalled.instructions
    say(session, "Is eleven a prime number?", history=[("user", "Hi"), ("assistant", "Ho")])
    assert session.recalled.memories, "a program without a task of its own asks for the person"


def test_the_policy_asks_about_a_turn_and_the_answer_closes_the_question(model):
    session = open_chat(model)
    policy = session.me.buffer.policy
    policy.decide_question = lambda view, candidate, left: (True, "always")
    say(session, "Hello")
    say(session, "How are you?")
    session.work.score()
    session.work.collect(waits=True)
    asked = session.question
    assert asked is not None and asked.prompt == "Hello"
    session.react("better", "Good day!", id=asked.id)
    assert session.question is None and session.me.cost.requests == 1
    session.work.score()
    session.work.collect(waits=True)
    assert "Good day!" in [d.response for d in session.me.buffer.dialogues]


def test_a_new_message_leaves_a_question_without_an_answer(model):
    session = open_chat(model)
    session.me.buffer.policy.decide_question = lambda view, candidate, left: (True, "always")
    say(session, "Hello")
    session.work.score()
    session.work.collect(waits=True)
    say(session, "Secret", is_observed=False)
    assert session.question is not None, "a turn that is not stored leaves it open"
    say(session, "Let us go on")
    assert session.question is None and len(session.me.buffer) == 1


def test_a_question_that_a_fine_tune_overtook_is_decided_with_new_scores(model):
    session = open_chat(model)
    policy = session.me.buffer.policy
    policy.decide_question = lambda view, candidate, left: (candidate.dialogue.prompt == "And you?", "always")
    for text in ("Hello", "How are you?", "And you?"):
        say(session, text)
    session.me.settle()
    asked = session.question
    assert asked.prompt == "And you?" and len(session.me.buffer) == 2
    session.react("better", "In short: fine.", id=session.turns[0].id)
    session.me.finetune(progress=False)
    session.me.settle()
    assert {entry.scores.model for entry in session.me.buffer.entries} != {session.me.state.scores[asked.id].model}
    assert say(session, "Let us go on") and session.question is None
    session.me.settle()
    assert asked.id in [d.id for d in session.me.buffer.dialogues]
    assert len({entry.scores.model for entry in session.me.buffer.entries}) == 1


def test_a_turn_that_another_try_replaced_is_neither_scored_nor_learned(model):
    session = open_chat(model)
    for number in (7, 11):
        say(session, f"Is {number} a prime number?")
    old = [d.id for d in session.turns]
    session.work.score()
    session.work.collect(waits=True)
    assert [d.id for d in collect_training(session.me.state)] == old
    say(session, "Is 13 a prime number?", replaces=old[0])
    say(session, "Is 17 a prime number?", replaces=session.turns[0].id)
    newest = session.turns[-1].id
    assert [*session.me.state.pending] == [newest]
    session.me.settle()
    assert [d.id for d in collect_training(session.me.state)] == [newest]


def test_a_forgotten_reply_that_was_tried_again_is_shown_to_later_turns_as_after_reopening(model, tmp_path):
    with open_chat(model, tmp_path) as session:
        for text in ("My dog Bello is sick.", "What is iron?", "And zinc?"):
            say(session, text)
        session.react("better", "In short: a metal.")
        session.forget("Bello")
        assert [bool(d.response) for d in session.turns] == [False, True] and not session.turns[1].history
        say(session, "What is iron?", replaces=session.turns[0].id)
        turns, evidence = session.turns, get_evidence(session.me.state)
        assert [text for _, text in turns[1].history] == ["What is iron?", turns[0].response]
    with open_chat(model, tmp_path) as again:
        assert [d.id for d in again.turns] == [d.id for d in turns] and again.turns == turns
        assert get_evidence(again.me.state) == evidence


def teach(session, *prompts):
    "Correct the replies to prompts, with an opening in common; return their ids."
    for prompt in prompts:
        say(session, prompt)
        session.react("better", f"In short: so it is with {prompt[-4:]}")
    return [d.parents[0] for d in session.turns[-len(prompts) :]]


PROMPTS = ("What is tea?", "Who is Ada?", "Why do cats purr?")


def test_a_question_about_a_habit_counts_as_asked_when_it_was_seen_and_passed_over(model, tmp_path):
    with open_chat(model, tmp_path) as session:
        teach(session, *PROMPTS)
        assert session.scoping.show_habit_question() and session.scoping.show_habit_question() == "", "it is shown once"
    with open_chat(model, tmp_path) as session:  # closed before an answer
        assert session.scoping.show_habit_question()
        say(session, "Secret", is_observed=False)
        say(session, "And?", history=[("user", "Hi"), ("assistant", "Ho")])
        assert not session.me.state.asked_scopes, "another program's message passes over nothing"
        say(session, "Where is Oslo?")
        assert len(session.me.state.asked_scopes) == 3 and session.scoping.show_habit_question() == ""
    with open_chat(model, tmp_path) as session:
        assert session.scoping.show_habit_question() == ""
        teach(session, "Where is Rome?")
        assert session.scoping.show_habit_question() == "", "nor again with each correction more"


SAID = (  # a message, the correction of its reply, and whether both may leave the computer
    ("I have diabetes. What should I eat?", "In short: vegetables.", False),
    ("What should one eat?", "In short: with your diabetes, vegetables.", False),
    ("Is DE89 3704 0044 0532 0130 00 a valid IBAN?", "In short: yes.", False),
    ("Ich habe Diabetes. Was ist gesund?", "Kurz gesagt: Gemüse.", False),
    ("What is the capital of Italy?", "In short: Rome.", True),
    ("How do plants eat?", "In short: by light.", True),
)


@pytest.mark.parametrize("kind", ["better", "up"])
def test_what_you_said_in_other_talks_stays_on_this_computer(model, tmp_path, monkeypatch, kind):
    with open_chat(model, tmp_path) as session:  # at first the replies were written here
        for prompt, better, _ in SAID:
            say(session, prompt)
            session.react("better", better, scope="everywhere")
            session.react(kind, better if kind == "better" else "")
            session.open_talk()
    engine = model.engine
    for is_here in (False, True):
        monkeypatch.setattr(engine, "is_here", is_here, raising=False)
        read = set()
        with open_chat(model, tmp_path) as session:
            for prompt in ("I am hungry. What should I eat?", "Was soll ich essen?", "Is an IBAN valid?", "And Spain?"):
                session.open_talk()
                say(session, prompt, is_observed=False)
                read |= {text for _, text in session.recalled.dialogue.history}
                assert not session.recalled.statements or is_here
        sent = {prompt for prompt, better, _ in SAID if {prompt, better} & read}
        assert sent == {prompt for prompt, _, may_leave in SAID if may_leave or is_here}


def test_notes_are_in_the_language_of_your_messages(model):
    session = open_chat(model)
    say(session, "Wie viele Tage hat eine Woche?")
    session.react("better", "Sieben.")
    line = "deine Korrektur von „Wie viele Tage hat eine Woche?“"
    assert session.scoping.scope_correction("everywhere") == f"Gilt für alle Antworten: {line}"
    assert session.undo().startswith("zurückgenommen: ") and session.undo().startswith("zurückgenommen: ")
    say(session, "Please remember that I am vegan.")
    assert session.pop_messages() == ["kept: Please remember that I am vegan."]


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(["better", "up", "down", "always", "scope"]) | ODD
SCOPES = st.sampled_from(["", "everywhere", "here", "work"]) | ODD


@pytest.fixture(scope="module")
def fuzzed():
    session = open_chat(load_model("pocket"))
    teach(session, *PROMPTS)
    return session


def read_state(session):
    state = session.me.state
    events = [(event.kind, event.dialogue, event.content) for event in session.me.archive.events]
    return str((events, state.reactions, state.scopes, state.versions, state.instructions, state.question))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=KINDS, text=ODD, place=st.integers(0, 2) | ODD, scope=SCOPES)
def test_no_odd_value_changes_anything_or_raises_another_error(fuzzed, kind, text, place, scope):
    ids = list(fuzzed.me.archive.dialogues)
    id = ids[place] if place in (0, 1, 2) and isinstance(place, int) else place  # 0.0 is odd
    calls = [
        lambda: fuzzed.react(kind, text, id, scope),
        lambda: fuzzed.scoping.scope_correction(scope, id),
        lambda: fuzzed.scoping.scope_habit(text, scope),
        lambda: fuzzed.me.react(id, kind, text, 0.0, scope),
        lambda: fuzzed.me.scope(id, scope),
        lambda: fuzzed.instruct(text, place),
    ]
    for call in calls:
        before = read_state(fuzzed)
        try:
            call()
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            assert read_state(fuzzed) == before, "a refusal changes nothing"
        while len(fuzzed.me.state.acts) > 3:  # what was taken
            fuzzed.undo()


def test_a_fine_tune_that_is_stopped_leaves_nothing(model, tmp_path):
    with open_chat(model, tmp_path, config=TuningConfig(steps=500)) as session:
        say(session, "Is seven a prime number?")
        session.react("better", "In short: yes.")
        session.work.score()
        session.work.learn()
        assert not session.me.state.pending, "scores that are on their way are taken over first"
        session.work.stop_learning()
        assert session.me.rounds == [] and not session.work.is_learning
        assert session.pop_messages() == ["learning was stopped; your replies are as before"]
        session.work.learn()
        session.forget("zebra")
        assert session.me.rounds == [] and not session.work.is_learning, "also before something is forgotten"


def test_stopping_waits_until_the_thread_has_ended(model):
    goes_on = threading.Event()
    work = BackgroundWork(model, lambda copy: goes_on.wait(60))
    threading.Timer(0.3, goes_on.set).start()
    work.stop()
    assert goes_on.is_set() and work.is_done and work.model is None, "nothing computes with the copy any more"


def test_a_complete_fine_tune_is_used_when_the_chat_ends(model, tmp_path):
    with open_chat(model, tmp_path) as session:
        start_learning(session)
        session.work.running.thread.join()
    with open_chat(model, tmp_path) as session:
        assert len(session.me.rounds) == 1
        session.work.learn()
        session.work.running.thread.join()
        assert "undone" in str(session.work.undo_learning())
        assert len(session.me.rounds) == 1, "the fine-tune that nobody had collected goes, the one before it stays"
        session.work.learn()
        session.work.running.thread.join()
        session.work.stop_learning()
        assert len(session.me.rounds) == 2, "it was complete before the person stopped it"


def test_undoing_stops_a_running_fine_tune_and_keeps_the_one_before(model, tmp_path):
    with open_chat(model, tmp_path) as session:
        start_learning(session)
        session.work.finish()
    with open_chat(model, tmp_path, config=TuningConfig(steps=500)) as session:
        session.work.learn()
        with pytest.raises(InputError, match="a fine-tune is learning what you said"):
            session.undo()
        assert "an earlier one stays" in str(session.work.undo_learning())
        assert len(session.me.rounds) == 1 and not session.work.is_learning


class Panic(BaseException):
    "As Rust code raises it: no `Exception`."


ERRORS = [InputError("the disk is full", "free some space"), MemoryError(), Panic("index out of range\nnote: run with")]


def start_learning(session):
    say(session, "Is seven a prime number?")
    session.react("better", "In short: yes.")
    session.work.learn()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_thread_raises_is_one_message(model, tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    with open_chat(model, tmp_path) as session:
        monkeypatch.setattr(session.me, "train", fail)
        start_learning(session)
        session.work.finish()
        assert session.pop_messages() == [f"learning failed: {describe_error(error)}; all is as it was"]
        monkeypatch.setattr(personalizer, "score", fail)
        say(session, "Go on")
        session.work.score()
        session.work.collect(waits=True)
        assert session.pop_messages() == [f"the last turns are not scored: {describe_error(error)}"]
        monkeypatch.setattr(session.model, "clone", fail)
        session.work.score()
        assert session.work.running is None and len(session.pop_messages()) == 1
        assert session.me.state.pending, "they are scored another time"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_reply_that_fails_is_one_line_and_never_hangs(model, tmp_path, monkeypatch, error):
    def complete(self, ids, options, put, is_stopped):
        put("Hel")
        raise error

    outcome = []

    def run():
        try:
            say(session, "Hello")
        except BaseException as raised:
            outcome.append(raised)

    with open_chat(model, tmp_path) as session:
        monkeypatch.setattr(replies.Torch, "complete", complete)
        reader = threading.Thread(target=run, daemon=True)
        reader.start()
        reader.join(60)
        (raised,) = outcome
        assert isinstance(raised, InputError) and len(str(raised).splitlines()) == 1
        assert describe_error(error) in str(raised) and session.turns == []
        monkeypatch.undo()
        assert say(session, "Hello") and len(session.turns) == 1


def test_a_message_that_comes_while_the_thread_scores_is_neither_lost_nor_raced(model, tmp_path, monkeypatch):
    "The thread reads the lists of the state only while it holds the archive's lock."
    is_scoring = threading.Event()
    goes_on = threading.Event()

    class Watched:
        def __iter__(self):
            is_main = threading.current_thread() is threading.main_thread()
            assert is_main or session.me.archive.lock._is_owned(), "read without the lock"
            return super().__iter__()

    watch = lambda values: type("Watch", (Watched, type(values)), {})(values)

    def slow(*args, score=personalizer.score):
        is_scoring.set()
        goes_on.wait(60)
        return score(*args)

    monkeypatch.setattr(personalizer, "score", slow)
    with open_chat(model, tmp_path) as session:
        say(session, "Is seven a prime number?")
        session.react("better", "In short: yes.")
        session.me.state.pending = watch(session.me.state.pending)
        session.me.buffer.entries = watch(session.me.buffer.entries)
        session.work.learn()
        assert is_scoring.wait(60)
        say(session, "Go on meanwhile")
        replied = session.me.cost.tokens
        goes_on.set()
        session.work.finish()
        assert any(line.startswith("learned the repl") for line in session.pop_messages())
        assert [*session.me.state.pending] == [session.turns[-1].id]
        assert session.me.cost.tokens > replied, "both threads' costs count"
    with open_chat(model, tmp_path) as again:
        assert [d.prompt for d in again.turns] == ["Is seven a prime number?", "Go on meanwhile"]


def test_control_characters_become_spaces_and_what_is_no_utf_8_is_refused(model):
    assert clean_text("a\x1b[2J\r\nb\tc\x00") == "a [2J\nb\tc"
    session = open_chat(model)
    for write in (clean_text, lambda text: say(session, text), lambda text: session.instruct(text)):
        with pytest.raises(InputError, match="not UTF-8; nothing of it was stored"):
            write("caf\udce9")
    assert session.turns == [] and session.me.state.instructions == {}


def test_an_answer_that_no_reply_can_read_is_stored_and_told_as_such(model):
    session = open_chat(model)
    say(session, "Is seven a prime number?")
    short = session.describe_reaction(session.react("better", "In short: yes. " * 2))
    assert short.startswith("Applies to similar prompts") and "long" not in short
    line = session.describe_reaction(session.react("better", "In short: yes. " * 400))
    assert line.startswith("your correction is too long") and f"the limit is {model.max_length // 2}" in line


def write_words(count: int) -> str:
    return " ".join(f"word{i}" for i in range(count))


def test_a_correction_that_no_reply_can_read_is_never_said_to_be_used(model):
    session = open_chat(model)
    say(session, "What is a lake?")
    session.react("better", write_words(150))
    session.open_talk()
    say(session, "What is a pond?")
    assert session.recalled.verdict.answers and "from" not in session.describe_source()
    assert "too long" in list(map(str, explain_reply(session)))[1]
    reply = session.state.replies[session.stored]
    assert reply.reads == () and reply.is_silent
    say(session, "What is a pool?")
    session.react("better", "Water.")
    session.open_talk()
    say(session, "What is a pond, then?")
    assert [d.response for d in session.recalled.memories] == ["Water."], "one that fits is used instead"


def test_the_source_line_says_what_did_not_fit(model):
    session = open_chat(model)
    say(session, "What is a lake?")
    session.react("better", write_words(30))
    session.open_talk()
    say(session, "My knee hurts. " * 60)
    say(session, "What is a pond?")
    source = session.describe_source()
    assert "from" not in source and "of 1 answer of yours did not fit" in source
    lines = ["did not fit: your answer to “What is a lake?”", "generated without a fine-tuned adapter"]
    assert list(map(str, explain_reply(session)))[1:] == lines, "it is no example"
    reply = session.state.replies[session.stored]
    assert reply.reads == () and reply.is_silent
    say(session, write_words(400))
    assert "your message did not fit" in session.describe_source()


def test_the_source_line_names_a_statement_that_a_newer_one_seems_to_update(model):
    session = open_chat(model)
    for text in ("I live in Graz.", "I take metformin.", "I take ramipril.", "I moved to Linz.", "Where do I live?"):
        session.open_talk()
        say(session, text)
    left_out = "older, left out: “I live in Graz.”"
    assert session.describe_source().startswith("from what you said") and left_out in session.describe_source()
    assert "you said before, so it was left out: I live in Graz." in list(map(str, explain_reply(session)))
    session.open_talk()
    say(session, "Which medicines do I take?")
    assert [one.text for one in session.recalled.statements] == ["I take metformin.", "I take ramipril."]


def test_a_failed_reply_leaves_the_source_of_the_one_before(model, monkeypatch):
    session = open_chat(model)
    say(session, "What is a lake?")
    before = session.recalled
    monkeypatch.setattr(replies.LocalEngine, "write", lambda *a: 1 / 0)
    with pytest.raises(InputError, match="no reply"):
        say(session, "What is a pond?")
    assert session.recalled is before


@pytest.mark.parametrize("text", ["\u200b", " \u200b\n\u2060", "\ufeff", "\u3164", "\u2800\u2800", "\uffa0\ufe0f"])
def test_a_text_without_a_visible_letter_is_one_line_and_changes_nothing(model, tmp_path, text):
    with ChatSession(model, tmp_path) as session:
        "".join(session.say("Zebra?"))
        session.instruct("Be brief.")
        count = len(session.me.archive.events)
        for call in (
            lambda: session.say(text),
            lambda: session.react("better", text),
            lambda: session.instruct(text),
            lambda: session.instruct(text, 1),
        ):
            with pytest.raises(InputError) as raised:
                call()
            assert len(str(raised.value).splitlines()) == 1
        assert len(session.me.archive.events) == count and len(session.turns) == 1


def test_messages_are_read_once_and_what_was_found_goes_with_them(model, tmp_path, monkeypatch):
    read = []
    find = recall.find_statements
    monkeypatch.setattr(recall, "find_statements", lambda new: read.append([d.prompt for d in new]) or find(new))
    listed = []
    for fit in ("one", "one", "two"):
        monkeypatch.setattr(recall, "FIT", fit)
        with open_chat(model, tmp_path) as session:
            if not session.turns:
                say(session, "I have a dog called Rex.")
                say(session, "What is tea?")
            session.me.memory.warming.join()
            listed.append([vars(one) for one in session.me.memory.list_statements(session.me.state)])
    assert len(listed[0]) == 1 and listed[0] == listed[1] == listed[2]
    assert [prompts for prompts in read if prompts] in (
        [["I have a dog called Rex.", "What is tea?"]] * 2,
        [["I have a dog called Rex."], ["What is tea?"], ["I have a dog called Rex.", "What is tea?"]],
    )
    with open_chat(model, tmp_path) as session:
        session.forget("Rex")
    assert b"Rex" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    with open_chat(model, tmp_path) as session:
        assert session.me.memory.list_statements(session.me.state) == [] and len(session.turns) == 1


def test_nothing_is_acknowledged_in_a_folder_that_is_gone(model, tmp_path):
    session = open_chat(model, tmp_path / "me")
    say(session, "What is tea?")
    (tmp_path / "me").rename(tmp_path / "moved")
    for act in (lambda: session.react("better", "Leaves."), lambda: say(session, "And milk?"), session.undo):
        with pytest.raises(InputError, match="moved or deleted while it was in use|nothing to take back"):
            act()
    assert not get_evidence(session.me.state).answers and len(session.turns) == 1
    (tmp_path / "moved").rename(tmp_path / "me")
    assert session.react("better", "Leaves.").kind == "better"
    session.close()


def test_scores_that_are_being_computed_when_a_chat_ends_are_stored(model, tmp_path, monkeypatch):
    with open_chat(model, tmp_path) as session:
        say(session, "Is tea good?")
        go_on = threading.Event()
        score = session.me.score_due
        monkeypatch.setattr(session.me, "score_due", lambda model: go_on.wait(60) and score(model))
        session.work.score()
        threading.Timer(0.2, go_on.set).start()
    with open_chat(model, tmp_path) as again:
        assert not again.state.pending and again.state.buffer.seen == 1
