"The chat in a terminal: lines, pasted lines, commands and the loop."

import io
import os
import pty
import sys
import threading
import time
import types

import pytest
from candidates import Echo

from personal_llm.app import chat
from personal_llm.base.core import InputError
from personal_llm.app.chat import ask_at_terminal, handle
from personal_llm.base.core import Dialogue
from personal_llm.base.replies import LlamaCpp
from personal_llm.device.chat import ChatSession
from personal_llm.device.evidence import find_habit_question, get_evidence, list_habits


@pytest.fixture
def session(model, tmp_path):
    with ChatSession(model, tmp_path) as session:
        yield session


def write(session, line):
    return "".join(handle(session, line))


def type_lines(monkeypatch, text, at_terminal=False):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.setattr(chat, "is_terminal", lambda: at_terminal)
    monkeypatch.setattr(chat, "has_waiting_line", lambda: False)


def test_a_correction_is_read_by_the_next_reply_and_not_where_replies_are_left_alone(session):
    for line in ("Zebra?", "/new", "Which animal is a zebra?", "/new", "What is a good breakfast?"):
        write(session, line)
    assert "similar prompts" in write(session, "/better Porridge\nwith honey.")
    assert session.turns[0].response == "Porridge\nwith honey."
    write(session, "/new")
    write(session, "What is a good breakfast today?")
    assert "example: “What is a good breakfast?” → Porridge" in write(session, "/why")
    write(session, "/new")
    write(session, "Zebra!")
    assert "do not apply" in write(session, "/why")
    assert write(session, "/everywhere").startswith("Applies to all replies: your correction of “")
    write(session, "Zebra!!")
    assert "Porridge" in write(session, "/why")
    write(session, "/here")
    write(session, "/new")
    write(session, "A zebra!")
    assert "Porridge" not in write(session, "/why")


@pytest.mark.parametrize("at_terminal", [True, False])
def test_the_engine_loads_while_a_person_writes(model, monkeypatch, at_terminal):
    engine = LlamaCpp(model)
    loaded = threading.Event()
    monkeypatch.setattr(engine, "prepare", loaded.set)
    monkeypatch.setattr(model, "engine", engine)
    type_lines(monkeypatch, "", at_terminal)
    monkeypatch.setattr(chat, "read_message", lambda prompt: "" if loaded.wait(5 * at_terminal) else "/quit")
    chat.run_chat(ChatSession(model, None))
    assert loaded.is_set() == at_terminal


def test_what_the_work_behind_a_chat_says_is_shown_before_a_line_and_at_the_end(model, monkeypatch, capsys):
    session = ChatSession(model, None)
    waiting = [["a fine-tune is complete"], ["the chats of May are scored"]]  # before the line, after leaving
    monkeypatch.setattr(session, "pop_messages", lambda: waiting.pop(0))
    type_lines(monkeypatch, "/quit\n")
    chat.run_chat(session)
    told = capsys.readouterr().err
    assert told.index("is complete") < told.index("are scored") and not waiting


def test_who_is_faster_than_the_loading_is_told(model, monkeypatch, capsys):
    engine = LlamaCpp(model)
    written = threading.Event()
    monkeypatch.setattr(engine, "prepare", lambda: written.wait(60))
    monkeypatch.setattr(model, "engine", engine)
    type_lines(monkeypatch, "", at_terminal=True)
    lines = iter(["Tea?", "/quit"])
    monkeypatch.setattr(chat, "read_message", lambda prompt: next(lines))
    monkeypatch.setattr(chat, "run_line", lambda session, line: written.set())
    chat.run_chat(ChatSession(model, None))
    assert "the model is loading" in capsys.readouterr().err


def test_a_hint_comes_once_and_after_the_first_reply(model, monkeypatch, capsys):
    type_lines(monkeypatch, "/help\nTea?\nMilk?\n")
    chat.run_chat(ChatSession(model, None), "a larger model fits here")
    assert capsys.readouterr().err.count("a larger model fits here") == 1
    type_lines(monkeypatch, "/help\n")
    chat.run_chat(ChatSession(model, None), "a larger model fits here")
    assert "a larger model" not in capsys.readouterr().err, "nothing was asked yet"


@pytest.mark.parametrize(
    "line",
    ["/dance", "/new talk", "/forget", "/forget x", "/undo", "/better", "/up", "/better x", "/why", "/unlearn"]
    + ["/learn", "/style", "/drop 1", "/here"]
    + ["/always caf\udce9", "/style 1 here", f"/drop {'9' * 5000}", f"/style {'9' * 5000} here"],
)
def test_a_mistake_is_one_line_and_changes_nothing(session, line):
    (answer,) = write(session, line).splitlines()
    problem, remedy = answer.split("; ", 1)
    assert problem and remedy and session.turns == [] and session.me.rounds == []


@pytest.mark.parametrize(
    "line, answer",
    [
        ("/better", "/better needs a text; write /better TEXT"),
        ("/drop", "/drop needs a number; write /drop N"),
        ("/drop 1", "no standing instruction; /always TEXT adds one"),
        ("/new talk", "/new takes no text; write /new"),
        ("/forget x", "nothing stored contains it; try other words"),
    ],
)
def test_a_wrong_or_missing_text_is_told_with_what_to_write(session, line, answer):
    assert write(session, line) == answer


def test_standing_instructions_are_read_until_they_are_dropped(session):
    assert "all replies" in write(session, "/always In two points.\nThen a question.")
    write(session, "/always Call me Sam.")
    write(session, "What is tea?")
    assert session.recalled.dialogue.prompt.endswith("(In two points.\nThen a question. Call me Sam.)")
    assert session.turns[-1].prompt == "What is tea?", "the turn is stored as you wrote it"
    assert "you said always: In two points." in write(session, "/why")
    assert "stay stored" in write(session, "/drop 1")
    write(session, "/always In short.")
    assert [line[:12] for line in write(session, "/always").splitlines()] == ["2. Call me S", "3. In short."]
    write(session, "/drop 2")
    write(session, "/better A drink.")
    write(session, "/new")
    write(session, "What is coffee?")
    read = session.recalled.dialogue
    assert dict(read.history)["system"].startswith("In short."), "the correction is newer"
    assert read.prompt == "What is coffee?"
    assert (
        write(session, "/drop 3")
        and write(session, "/undo") == "taken back: the end of an instruction; “In short.” applies again"
    )
    for line in ("/drop", "/drop one", "/drop 7"):
        assert len(write(session, line).splitlines()) == 1 and len(session.me.state.instructions) == 1


def test_three_answers_with_a_habit_make_one_question(session, monkeypatch):
    for number, prompt in enumerate(("What is tea?", "Who is Ada?", "Why do cats purr?")):
        write(session, prompt)
        assert find_habit_question(session.me.state) is None
        write(session, f"/better In short: answer {number}.")
    question = "You opened 3 answers with “In short: answer”. Where does that apply?"
    assert str(find_habit_question(session.me.state).question) == question
    assert session.scoping.show_habit_question() and session.scoping.show_habit_question() == "", "it is shown once"
    prompts = "“What is tea?”, “Who is Ada?”, “Why do cats purr?”"
    assert write(session, "/everywhere") == f"Applies to all replies: your corrections of {prompts}"
    counted = "(3 of 3; the replies before 0 of 1)"
    assert write(session, "/style").startswith(f"1. opens with “In short: answer” {counted}: All replies; from “What")
    wide = "nearly all prompts, since your corrections share no subject"
    assert write(session, "/auto") == f"Applies to {wide}: your corrections of {prompts}"
    assert get_evidence(session.me.state).everywhere == ()
    assert find_habit_question(session.me.state) is None, "it is not asked again"


def test_a_number_and_a_place_may_have_blanks_between_them(session):
    for prompt in ("What is tea?", "Who is Ada?", "Why do cats purr?"):
        write(session, prompt)
        write(session, "/better In short: so it is.")
    assert write(session, "/style 1   here").startswith("Applies to this subject only: your corrections of ")


def test_a_question_about_a_habit_waits_behind_that_of_the_policy(session, monkeypatch, capsys):
    for prompt in ("What is tea?", "Who is Ada?", "Why do cats purr?"):
        write(session, prompt)
        write(session, "/better In short: so it is.")
    write(session, "/new")
    write(session, "Where is Oslo?")
    open_question(session)
    type_lines(monkeypatch, "/up\n")
    chat.run_chat(session)
    err = capsys.readouterr().err
    assert err.index("acceptable") < err.index("Where does that apply?"), "it is shown when the other one was answered"


def test_after_a_restart_why_tells_what_the_archive_knows(model, tmp_path):
    with ChatSession(model, tmp_path) as session:
        write(session, "What is a good breakfast?")
        write(session, "/better Porridge.")
        write(session, "/new")
        write(session, "What is a good breakfast today?")
    with ChatSession(model, tmp_path) as session:
        before, example, writer = write(session, "/why").splitlines()
    assert before.startswith("the reply to “What is a good breakfast today?” is from before; its reason")
    assert (
        example == "example: “What is a good breakfast?” → Porridge."
        and writer == "generated without a fine-tuned adapter"
    )


def test_why_names_the_setting_that_keeps_corrections_out(model):
    session = ChatSession(model, None, memories=0)
    write(session, "What is tea?")
    write(session, "/better Leaves.")
    write(session, "What is coffee?")
    assert "do not apply: this memory uses no examples (--memories 0)" in write(session, "/why")


def test_a_chat_that_was_closed_answers_with_one_line(session):
    session.close()
    for line in ("Hello", "/why", "/undo", "/here", "/forget x", "/always Be brief."):
        assert write(session, line).strip() == "this chat was closed; open it again"
    for act, *given in ((session.undo,), (session.react, "up"), (session.instruct, "Be brief."), (session.forget, "x")):
        with pytest.raises(InputError, match="this chat was closed"):
            act(*given)


def test_a_form_that_a_reply_took_from_the_talk_is_still_a_habit(session, monkeypatch):
    texts = iter(["So it is. And so.", *["In short: so it is."] * 3])
    monkeypatch.setattr("personal_llm.device.chat.ReplyStream", lambda *given: Echo(next(texts)))
    for number, prompt in enumerate(("What is tea?", "Who is Ada?", "Why do cats purr?", "Where is Oslo?")):
        write(session, prompt)
        write(session, f"/better In short: {number}.")
    (row, *_) = list_habits(session.me.state)
    question = "You opened 4 answers with “In short:”. Where does that apply?"
    assert str(row.question) == question and row.base_count == 0, "the first reply alone had read no answer"


BEGINS, ENDS = "\x1b[200~", "\x1b[201~"


@pytest.fixture
def typed(monkeypatch):
    "A function that types into a terminal of this test, which is the chat's and marks no pastes by itself."
    monkeypatch.setenv("TERM", "dumb")
    master, slave = pty.openpty()
    with os.fdopen(slave) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        yield lambda text: os.write(master, text.encode())
    os.close(master)


@pytest.fixture
def pasted(typed, monkeypatch):
    "A function that pastes at the next prompt."
    read = chat.read_line

    def paste(text):
        monkeypatch.setattr(chat, "read_line", lambda prompt="": (prompt and typed(text), read(prompt))[1])

    return paste


def test_pasted_lines_belong_together(typed, pasted):
    pasted("/better one\ntwo\nthree\n")
    assert chat.read_message("> ") == "/better one\ntwo\nthree\n"
    pasted("alone\n")
    assert chat.read_message("> ") == "alone\n"


def test_lines_that_came_during_a_reply_are_one_message_and_no_command(typed):
    typed("A page.\n/always Be rude.\n")
    message = chat.read_message("> ")
    assert message == "A page.\n/always Be rude.\n" and isinstance(message, chat.Pasted)
    typed("/up\n")
    assert not isinstance(chat.read_message("> "), chat.Pasted), "a single line may be a command"


def test_lines_typed_ahead_in_a_terminal_that_marks_pastes_are_one_each(typed, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    lines = ["/better In short: a king.\n", "What is 2+2?\n", "/undo\n"]
    typed("".join(lines))
    messages = [chat.read_message("> ") for _ in lines]
    assert messages == lines and not any(isinstance(message, chat.Pasted) for message in messages)


@pytest.mark.parametrize("begins, ends", [("", ""), (BEGINS, ENDS)])
def test_no_line_has_a_limit_and_what_follows_is_read(typed, begins, ends, capsys):
    page = "né " * 30_000
    with chat.mark_pastes():
        typing = threading.Thread(target=typed, args=[f"{begins}{page}end{ends}\n"])
        typing.start()
        time.sleep(0.2)  # the terminal is full before we read
        message = chat.read_message("> ")
        typing.join()
        assert message == f"{page}end\n" and isinstance(message, chat.Pasted) == bool(begins)
        typed("/forget né\n")
        assert chat.read_message("> ") == "/forget né\n"
    assert page in capsys.readouterr().err


def test_keys_erase_letters_words_and_lines_and_ctrl_d_ends(typed, capsys):
    with chat.mark_pastes():
        typed("No words\x15Is 七八\x7f a priem\x17primee\x7f?\x1b[D\n")
        assert chat.read_message("> ") == "Is 七 a prime?\n"
        assert capsys.readouterr().err.endswith("primee\b \b?\n")
        typed("\x04")
        assert chat.read_message("> ") == ""


def test_a_paste_that_comes_in_parts_is_one_message(typed):
    later = threading.Timer(0.5, typed, ["/always Be rude.\nthree" + ENDS + "\n"])
    later.start()
    typed(f"{BEGINS}one\n/up\n")
    message = chat.read_message("> ")
    assert message == "one\n/up\n/always Be rude.\nthree\n" and isinstance(message, chat.Pasted)
    typed("/up\n")
    assert not isinstance(chat.read_message("> "), chat.Pasted)


@pytest.mark.parametrize(
    "text, is_command",
    [("/up\n", True), (f"{BEGINS}/up{ENDS}\n", False), ("/always a\n/up\n", False), ("a\n/up\n", False)]
    + [(f"/better {BEGINS}a\n/up{ENDS}\n", True), ("/better a\n/up\n", True), (f"/forget {BEGINS}a\nb{ENDS}\n", True)]
    + [("/u\x1b[Dp\n", True)],
)
def test_a_command_is_typed_as_a_single_line(pasted, session, monkeypatch, text, is_command):
    ran = []
    monkeypatch.setattr(chat, "run_command", lambda session, line: ran.append(line.strip()) or "")
    monkeypatch.setattr(session, "say", lambda line: iter([line]))
    pasted(text)
    said = write(session, chat.read_message("> "))
    assert bool(ran) == is_command and bool(said) != is_command and "\x1b" not in said
    assert not ran or ran[0] in ("/up", "/better a\n/up", "/forget a\nb")


def test_the_terminal_marks_pastes_during_the_chat_and_is_as_before_after_it(typed, model, monkeypatch, capsys):
    import termios

    before = termios.tcgetattr(sys.stdin)
    seen = []

    def read(prompt):
        seen.append(termios.tcgetattr(sys.stdin)[3] & (termios.ICANON | termios.ECHO))
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "read_message", read)
    chat.run_chat(ChatSession(model, None))
    told = capsys.readouterr().err
    assert seen == [0] and termios.tcgetattr(sys.stdin) == before
    assert "\x1b[?2004h" in told and told.endswith("\x1b[?2004l")


def test_on_windows_lines_that_wait_belong_together(monkeypatch):
    lines = ["/always a\n", "/up\n"]
    has_prompt = []
    monkeypatch.setattr(chat, "os", types.SimpleNamespace(name="nt"))
    monkeypatch.setattr(chat, "is_terminal", lambda: True)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(kbhit=lambda: bool(has_prompt and lines)))
    monkeypatch.setattr(chat, "read_line", lambda prompt="": has_prompt.append(prompt) or lines.pop(0))
    assert isinstance(message := chat.read_message("> "), chat.Pasted) and message == "/always a\n/up\n"


def open_question(session):
    "Let the policy ask about the newest turn."
    id = session.turns[-1].id
    session.me.settle()
    with session.me.state.change():
        session.me.state.record("asked", id, is_open=True)


@pytest.mark.parametrize("line, origin", [("/down", "model"), ("/up", "approved"), ("/better Leaves.", "annotated")])
def test_a_reaction_closes_the_open_question(session, line, origin):
    write(session, "What is tea?")
    open_question(session)
    write(session, line)
    assert session.question is None and session.turns[0].origin == origin and session.me.cost.requests == 1


def test_a_scope_is_that_of_the_newest_correction_while_a_question_is_open(session):
    write(session, "What is tea?")
    write(session, "/better Leaves.")
    corrected = session.turns[0].id
    write(session, "What is coffee?")
    open_question(session)
    write(session, "/everywhere")
    assert [id for id, scope in session.me.state.scopes.items() if scope] == [session.me.state.find_root(corrected)]


@pytest.mark.parametrize("at_terminal", [True, False])
def test_an_empty_line_approves_what_was_asked_about_and_at_a_terminal_only(session, monkeypatch, at_terminal):
    write(session, "What is tea?")
    type_lines(monkeypatch, "", at_terminal)
    write(session, "\n")
    assert session.turns[0].origin == "model", "nothing was asked"
    open_question(session)
    write(session, "\n")
    assert (session.turns[0].origin == "approved") == at_terminal


def test_ctrl_c_ends_a_reply_and_stores_no_turn(session, monkeypatch, capsys):
    def interrupted(*given):
        yield "half"
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "say", interrupted)
    chat.run_line(session, "What is tea?")
    assert "not stored" in capsys.readouterr().err and session.turns == []


def test_what_a_terminal_would_obey_is_shown(monkeypatch, capsys):
    type_lines(monkeypatch, "\n")
    assert ask_at_terminal(Dialogue("\x1b[2J?", "\x1b]0;x\x07!")) is None
    type_lines(monkeypatch, "Better.\n")
    assert ask_at_terminal(Dialogue("?", "!")) == "Better."
    type_lines(monkeypatch, "")
    assert ask_at_terminal(Dialogue("?", "!")) == ""
    assert "\x1b" not in capsys.readouterr().err
