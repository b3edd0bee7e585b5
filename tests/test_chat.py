"A live talk: streamed, scored by the same passes, asked about rarely, learned from, interrupted, full disks and all."

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from dataclasses import replace

import numpy as np
import pytest

from personal_llm.base import files
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.tokens import encode_prompt
from personal_llm.device import background_training, replay
from personal_llm.device.personalizer import Personalizer
from personal_llm.device.conversation import delay_interrupts
from personal_llm.device.conversation import QUESTION_TEXT, ChatSession
from personal_llm.device.forgetting import SOURCE_FILE_NOTE, forget_folder
from personal_llm.app import chat, library_commands
from personal_llm.app.chat import (
    ask_at_terminal,
    ANSWER_PROMPT,
    CHAT_COMMANDS,
    COMMANDS_HINT,
    DISLIKE_MESSAGE,
    LEARN_AGAIN_MESSAGE,
    LONG_MESSAGE_NOTE,
    handle_line,
    pop_notes,
    run_conversation,
    run_turn,
    say_thanks,
    select_own_answers,
)
from personal_llm.base.lineage import STORE_FILE
from personal_llm.device.memory import claim_folder
from personal_llm.device.memory import get_state_version
from personal_llm.device.replay import read_state
from personal_llm.base.decoding import ReplyOptions, choose_next_token, read_reply
from personal_llm.device.streaming import ReplyStream
from personal_llm.buffer.policies import get_policy
from personal_llm.buffer.buffer import Buffer
from personal_llm.tuning.config import TuningConfig
from devices import fill_disk
from tiny import ARCHITECTURES, random_adapter, shared, tiny
from typed import fails, invoke

PARTS = "head back knee neck arm leg foot ear toe hip hand nose eye chest wrist ankle thumb jaw".split()
LINES = [f"My {part} hurts when I {verb}." for part, verb in zip(PARTS, itertools.cycle(["sit", "run", "lie down"]))]
QUICK = dict(synthetic=0, replay=0)
BETTER = "Dear friend, rest today and call me tonight."


def fresh(folder, horizon=6, steps=8, clock=None, **more):
    "A talk with the tiny model, asked about often."
    buffer = Buffer(4, get_policy("active", horizon=horizon))
    given = QUICK | dict(config=TuningConfig(steps=steps), buffer=buffer) | more
    return ChatSession(shared("llama"), folder, clock or itertools.count(1.0).__next__, **given)


def reply(talk, line):
    return "".join(handle_line(talk, line))


def until_asked(talk, lines):
    for line in lines:
        reply(talk, line)
        if talk.question:
            return line
    raise AssertionError("it never asked")


def summary(state) -> str:
    "The buffer, its log and the policy's knowledge."
    buffer = state.buffer
    entries = [(e.dialogue, {**vars(e.scores), "embedding": e.scores.embedding.tolist()}) for e in buffer.entries]
    return repr((entries, buffer.log, buffer.seen, buffer.random.bit_generator.state, buffer.policy.state()))


def disk(folder):
    "All visible files' content."
    found = [p for p in sorted(Path(folder).rglob("*")) if p.is_file() and p.name != files.LOCK_FILE]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


# a reply and its scores


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_reading_is_that_of_a_pass_over_the_whole(architecture, monkeypatch):
    "Naive twin: the same tokens at once, without a cache."
    import torch

    model, fed = shared(architecture), []
    feed = ReplyStream.feed
    monkeypatch.setattr(ReplyStream, "feed", lambda self, ids: (fed.extend(ids), feed(self, ids))[1])
    d = Dialogue("My knee hurts.", "", history=(("user", "Hello."), ("assistant", "Hello!")))
    stream = ReplyStream(model, d, options=ReplyOptions(20))
    assert "".join(stream) == stream.text
    asked = len(encode_prompt(model.tokenizer, d, model.max_length - 20)["input_ids"])
    ids = torch.tensor([fed])
    with torch.inference_mode():
        whole = model.model(ids, output_hidden_states=True, use_cache=False)
    nats = torch.nn.functional.cross_entropy(whole.logits[0, :-1].float(), ids[0, 1:], reduction="none").numpy()
    found = stream.reading
    assert np.allclose(found.hidden, whole.hidden_states[-1][0].numpy(), atol=1e-4)
    assert np.isclose(found.nll, nats[asked - 1 :].sum(), rtol=1e-4) and found.tokens == len(fed) - asked
    assert np.isclose(found.prompt_nll, nats[: asked - 1].sum(), rtol=1e-4) and found.prompt_tokens == asked - 1
    assert fed[-1] == model.tokenizer.eos_token_id and found.model == model.active_adapter


def test_a_whole_turn_takes_one_token_more_than_its_reply(tmp_path):
    "Passes and tokens are counted, not seconds: scoring adds one step of one token to what generation needs."
    talk, seen, whole = fresh(tmp_path / "me"), [], []
    hook = talk.model.model.get_input_embeddings().register_forward_hook(
        lambda m, given, out: seen.append(out.shape[1])
    )
    try:
        for line in LINES[:4]:
            seen.clear()
            reply(talk, line)
            stream = talk.reply
            asked, said = stream.reading.prompt_tokens + 1, stream.reading.tokens - 1
            num_cut = sum(seen) - (seen[0] + said + 1)  # of a loop, and the token before it
            assert seen[0] <= asked and sum(seen) == stream.num_tokens_fed and num_cut >= 0
            whole.append(num_cut == 0)
            assert len(seen) <= 1 + said + num_cut + 1, "a pass for what is asked, one for each token, one for the end"
        assert any(whole)
    finally:
        hook.remove()
        talk.close()


def test_what_the_turn_before_has_read_is_not_read_again(tmp_path):
    "The numbers are those of a reading anew; another adapter, or other words in front, are read anew indeed."
    model = tiny("llama", max_length=256)
    one = ReplyStream(model, Dialogue(LINES[0], ""), options=ReplyOptions(8))
    list(one)
    turns = (("user", LINES[0]), ("assistant", one.text))
    for text, history, reused in ((LINES[1], turns, True), (LINES[1], turns[:1] + (("assistant", "No."),), True)):
        anew, short = (
            ReplyStream(model, Dialogue(text, "", history=history), options=ReplyOptions(8), previous_stream=e)
            for e in (None, one)
        )
        assert (
            "".join(anew) == "".join(short)
            and (short.num_tokens_fed < anew.num_tokens_fed) == reused
            and one.cache is None
        )
        assert np.allclose(anew.reading.hidden, short.reading.hidden, atol=1e-4)
        assert np.isclose(anew.reading.prompt_nll, short.reading.prompt_nll, rtol=1e-4)
        assert np.isclose(anew.reading.nll, short.reading.nll, rtol=1e-4)
        one = ReplyStream(model, Dialogue(LINES[0], ""), options=ReplyOptions(8))
        list(one)
    with model.use_adapter(random_adapter(model, tmp_path / "adapter")):
        short = ReplyStream(model, Dialogue(LINES[1], "", history=turns), options=ReplyOptions(8), previous_stream=one)
        list(short)
    assert short.num_tokens_fed == len(short.ids) and short.reading.model == short.adapter_name != model.base
    one = ReplyStream(model, Dialogue(LINES[0], ""), options=ReplyOptions(8), previous_stream=one)
    next(iter(one))
    short = ReplyStream(model, Dialogue(LINES[1], "", history=turns), options=ReplyOptions(8), previous_stream=one)
    list(short)
    assert short.num_tokens_fed == len(short.ids), "a reply that was broken off is not built on"


def test_the_penalty_counts_the_reply_only():
    "Over four turns with the same words: each token is the one that a penalty on the reply alone would choose."
    import torch

    model, stream, history = tiny("llama", max_length=256), None, ()
    for turn in range(4):
        d = Dialogue("Hello there, how are you?", "", history=history)
        stream = ReplyStream(model, d, options=ReplyOptions(8), previous_stream=stream)
        text = "".join(stream)
        (prompt_ids,) = model.encode_prompts([d], 200)
        reply_ids = stream.ids[len(prompt_ids) : -1]
        for place, token in enumerate(reply_ids):
            with torch.inference_mode():
                logits = model.model(torch.tensor([stream.ids[: len(prompt_ids) + place]])).logits[0, -1]
            reply = read_reply(model.tokenizer, reply_ids[:place])
            assert choose_next_token(logits, reply, stream.rules) == token, turn
            repeated = [t for t in reply_ids[:place]]
            best = int(logits.argmax())
            assert token == best or best in repeated or place == 0, "a word of an earlier turn is free"
        history = (*history, ("user", d.prompt), ("assistant", text or "So."))


def test_pieces_are_whole_letters():
    model, shown = shared("llama"), []
    stream = ReplyStream(model, Dialogue("Hello", ""))
    ids = model.tokenizer(" héllo ☃ 😀 end", add_special_tokens=False)["input_ids"]
    for i in range(1, len(ids) + 1):
        shown.append(stream.decode_new_text(ids[:i]))
    assert "".join(shown) == "héllo ☃ 😀 end" and not any("\ufffd" in piece for piece in shown)


# what is learned


def test_what_was_corrected_is_likelier_after_learning(tmp_path):
    "Planted: one person wants the same kind of answer; learning goes on while the talk does."
    talk = fresh(tmp_path / "me", steps=30)
    for line in LINES:
        reply(talk, line)
        if talk.question:
            reply(talk, f"/better {BETTER}")
    corrected = [d for d in talk.me.buffer.dialogues if d.origin == "annotated"]
    assert len(corrected) >= 2 and all(d.response == BETTER for d in corrected)
    corrected = [replace(d, history=()) for d in corrected]  # the turns before a prompt take no part in the training
    before = talk.model.nll(corrected).sum(0)
    assert "in the background" in reply(talk, "/learn")
    assert reply(talk, "What shall I cook?") and talk.me.buffer.seen > len(LINES)
    talk.finish_training()
    with talk.model.use_adapter(talk.me.adapter):
        after = talk.model.nll(corrected).sum(0)
    assert after[0] / after[1] < 0.9 * before[0] / before[1]
    assert any(line.startswith("learned:") for line in talk.pop_messages())
    said = reply(talk, "And my other knee?")
    assert said and talk.reply.reading.model.endswith(talk.me.buffer.entries[0].scores.model.split("+")[1])
    talk.close()


def test_only_what_was_answered_is_learned(tmp_path):
    talk = fresh(tmp_path / "me")
    assert "the buffer is empty" in reply(talk, "/learn") or "nothing to learn" in reply(talk, "/learn")
    reply(talk, LINES[0])
    assert "no reply was corrected" in reply(talk, "/learn") and talk.background_training is None
    talk.close()


def test_questions_are_sparse_and_within_the_budget(tmp_path):
    talk, asked = fresh(tmp_path / "me", max_questions=2), 0
    for line in LINES:
        reply(talk, line)
        if talk.question:
            asked += 1
            reply(talk, "")
    assert asked == talk.me.cost.requests == 2
    assert {d.origin for d in talk.me.buffer.dialogues} <= {"model", "approved"}
    talk.close()


def test_no_answer_costs_nothing(tmp_path):
    talk = fresh(tmp_path / "me")
    until_asked(talk, LINES)
    seen = talk.me.buffer.seen
    reply(talk, "/skip")
    assert talk.question is None and talk.me.cost.requests == 0 and talk.me.buffer.seen == seen + 1
    assert "no question is open" in reply(talk, "/skip")
    talk.close()


def test_a_message_while_a_question_is_open_is_no_answer(tmp_path):
    "Only an empty line and a command answer it; of /better the question gets the answer, also about an earlier turn."
    with fresh(tmp_path / "me") as talk:
        asked = until_asked(talk, LINES)
        num_turns = len(talk.turns)
        reply(talk, "What shall I cook?")
        assert talk.turns[-1]["prompt"] == "What shall I cook?" and len(talk.turns) == num_turns + 1
        assert talk.me.cost.requests == 0 and talk.me.feedback_rows == []
        talk.skip()
        talk.me.open_question(talk.turns[-2]["id"])
        assert talk.question.dialogue.prompt == asked
        assert "0 answered, 1 open, at most 3 more" in reply(talk, "/status")
        assert "[#N]   " in reply(talk, "/help")
        assert "thank you" in reply(talk, f"/better {BETTER}")
        assert talk.question is None and talk.me.cost.requests == 1
        assert [row["dialogue_id"] for row in talk.me.feedback_rows] == [talk.turns[-2]["id"]]


def test_a_pipe_is_asked_only_if_a_line_follows(tmp_path, capsys, monkeypatch):
    with fresh(tmp_path / "me") as talk:
        until_asked(talk, LINES)
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        run_conversation(talk)
        assert capsys.readouterr() == ("", "") and talk.question is not None
        monkeypatch.setattr(sys, "stdin", io.StringIO("/up\n"))
        run_conversation(talk)
        out, err = capsys.readouterr()
        assert err == f"{QUESTION_TEXT}\n{ANSWER_PROMPT}> " and "thank you" in out and talk.me.cost.requests == 1


@pytest.mark.parametrize("is_terminal", [False, True])
def test_an_empty_line_approves_at_a_terminal_only(tmp_path, capsys, monkeypatch, is_terminal):
    with fresh(tmp_path / "me") as talk:
        until_asked(talk, LINES)
        stdin = io.StringIO(" \n")
        monkeypatch.setattr(stdin, "isatty", lambda: is_terminal)
        monkeypatch.setattr(sys, "stdin", stdin)
        run_conversation(talk)
        assert ("thank you" in capsys.readouterr().out) == (talk.question is None) == is_terminal
        assert talk.me.cost.requests == len(talk.me.feedback_rows) == is_terminal


def test_a_bare_word_of_leaving_is_a_message_with_a_hint_and_quit_takes_any_text(tmp_path, capsys, monkeypatch):
    with fresh(tmp_path / "me") as talk:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Help\nI quit.\nexit\n/help me\n/quit now\nHello\n"))
        run_conversation(talk)
        out, err = capsys.readouterr()
        assert [turn["prompt"] for turn in talk.turns] == ["Help", "I quit.", "exit"]
    assert err.count(COMMANDS_HINT) == 2 and "this list" in out and "is no command" not in out


def test_a_new_conversation_reads_no_earlier_turn(tmp_path):
    with fresh(tmp_path / "me") as talk:
        reply(talk, LINES[0])
        assert "a new conversation" in reply(talk, "/new") and talk.turns == [] and list(talk.history()) == []
        reply(talk, LINES[1])
        assert [turn["prompt"] for turn in talk.turns] == [LINES[1]] and len(talk.me.state.conversations) == 2
    with ChatSession(shared("llama"), tmp_path / "me") as talk:
        assert [turn["prompt"] for turn in talk.turns] == [LINES[1]], "the newest conversation goes on"


# leaving and coming back


def test_an_open_question_is_shown_with_its_reply_to_a_person_who_comes_back(tmp_path, capsys, monkeypatch):
    with fresh(tmp_path / "me") as talk:
        asked = until_asked(talk, LINES)
    stdin = io.StringIO("")
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    with ChatSession(shared("llama"), tmp_path / "me") as talk:
        run_conversation(talk)
        out, err = capsys.readouterr()
        assert out.strip() == talk.turns[-1]["response"] and f"an open question is about the reply to: {asked}" in err
        assert QUESTION_TEXT in err and talk.question is not None


@pytest.mark.later
def test_leaving_after_every_line_makes_no_difference(tmp_path):
    lines = [*LINES[:10], "", f"/better {BETTER}", *LINES[10:14]]
    lines += ["/why", "/undo", "/why", LINES[14], "/forget chest", LINES[15]]
    straight, clock = fresh(tmp_path / "a"), itertools.count(1.0).__next__
    fresh(tmp_path / "b").close()
    questions = 0
    for line in lines:
        again = ChatSession(shared("llama"), tmp_path / "b", clock)
        assert reply(straight, line) == reply(again, line), line
        assert (straight.question is None) == (again.question is None)
        questions += again.question is not None
        again.close()
    straight.close()
    one, other = (read_state(tmp_path / name) for name in "ab")
    assert questions and one.asked_ids == other.asked_ids and [*one.memory.dialogues] == [*other.memory.dialogues]
    assert (one.turns, one.subject_turns) == (other.turns, other.subject_turns)
    assert one.buffer.dialogues == other.buffer.dialogues
    for d, e in zip(one.buffer.log, other.buffer.log, strict=True):
        assert (d.id, d.kept, d.evicted, d.reason, d.scores["domain"]) == (
            e.id,
            e.kept,
            e.evicted,
            e.reason,
            e.scores["domain"],
        )
        assert all(np.isclose(d.scores[name], e.scores[name], atol=1e-4) for name in ("eoe", "dss", "idd"))


def test_what_was_learned_is_there_tomorrow(tmp_path, monkeypatch):
    "In a folder that is named from where one stands."
    monkeypatch.chdir(tmp_path)
    talk = fresh("me")
    until_asked(talk, LINES)
    reply(talk, f"/better {BETTER}")
    reply(talk, "/learn")
    talk.finish_training()
    one = reply(talk, "And now?")
    reply(talk, "/undo")
    talk.close()
    again = ChatSession(shared("llama"), "me", itertools.count(99.0).__next__)
    assert again.me.adapter is not None and reply(again, "And now?") == one
    again.close()


# what goes wrong


def test_a_broken_reply_leaves_no_trace(tmp_path):
    talk = fresh(tmp_path / "me")
    for line in LINES[:3]:
        reply(talk, line)
    before, state = disk(tmp_path / "me"), summary(talk.me.state)
    for taken in (0, 1, 5):
        pieces = talk.say("And my other knee?")
        for _ in range(taken):
            next(pieces)
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt)
    left = talk.say("Nobody listens")
    next(left)
    assert reply(talk, LINES[3]), "a reply that nobody took to its end does not stand in the way"
    talk.undo()
    assert talk.model.active_adapter == talk.model.base
    assert [t["prompt"] for t in talk.turns] == LINES[:3] and talk.me.buffer.seen == 4
    assert all(name.startswith(STORE_FILE) for name in before) and state
    talk.close()


def test_ctrl_c_waits_until_a_turn_is_written_down(tmp_path, monkeypatch):
    talk, write = fresh(tmp_path / "me"), Personalizer.save

    def disturbed(me, **given):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return write(me, **given)

    reply(talk, LINES[0])
    monkeypatch.setattr(Personalizer, "save", disturbed)
    with pytest.raises(KeyboardInterrupt):
        reply(talk, LINES[1])
    monkeypatch.undo()
    assert summary(read_state(tmp_path / "me")) == summary(talk.me.state) and talk.me.buffer.seen == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    talk.close()


def test_another_thread_need_not_be_undisturbed():
    done = []

    def work():
        with delay_interrupts():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def test_learning_that_is_stopped_or_fails_leaves_all_as_it_was(tmp_path, monkeypatch):
    talk = fresh(tmp_path / "me", steps=2000)
    until_asked(talk, LINES)
    reply(talk, f"/better {BETTER}")
    before = summary(talk.me.state)
    reply(talk, "/learn")
    assert "a fine-tune is running" in reply(talk, "/learn")
    talk.stop_learning()
    assert talk.background_training is None and not (tmp_path / "me/adapters/000").exists() and talk.me.rounds == []
    full = InputError("adapter: cannot be written (No space left on device)", "free some space")
    monkeypatch.setattr(background_training.Personalizer, "train_adapter", lambda *given: (_ for _ in ()).throw(full))
    reply(talk, "/learn")
    talk.finish_training()
    assert any("the disk is full" in line and "as it was" in line for line in talk.pop_messages())
    assert summary(talk.me.state) == before and talk.me.adapter is None and reply(talk, "And now?")
    talk.close()


def test_a_turn_while_it_learns_sweeps_nothing_away(tmp_path, monkeypatch):
    "The folder of what is being learned survives every turn, and goes where a killed process left it."
    talk, go = fresh(tmp_path / "me"), threading.Event()
    until_asked(talk, LINES)
    reply(talk, f"/better {BETTER}")
    study = background_training.Personalizer.train_adapter
    monkeypatch.setattr(background_training.Personalizer, "train_adapter", lambda *given: (go.wait(), study(*given))[1])
    reply(talk, "/learn")
    mark = tmp_path / "me" / "adapters" / "000" / "mark"
    mark.write_text("half an adapter")
    reply(talk, "And now?")
    assert mark.exists()
    mark.unlink()
    go.set()
    talk.finish_training()
    assert len(talk.me.rounds) == 1 and talk.me.adapter.path == tmp_path / "me" / "adapters" / "000"
    talk.close()
    left = claim_folder(tmp_path / "me" / "adapters" / "001")  # of a killed process
    again = ChatSession(shared("llama"), tmp_path / "me")
    reply(again, "Hello")
    assert not left.exists()
    again.close()


def test_a_full_disk_is_said_and_the_talk_goes_on(tmp_path, monkeypatch):
    talk = fresh(tmp_path / "me")
    reply(talk, LINES[0])
    fill_disk(monkeypatch)
    assert reply(talk, LINES[1]) and reply(talk, LINES[2])
    monkeypatch.undo()
    assert "the disk is full" in talk.pop_messages()[0] and read_state(tmp_path / "me").buffer.seen == 1
    reply(talk, LINES[3])
    assert talk.pop_messages() == [] and read_state(tmp_path / "me").buffer.seen == 4
    talk.close()


@pytest.mark.parametrize("line", ["", " ", "\n", "\x00", "\x1b\x07", " \t\u202e\ud800 "])
def test_nothing_is_no_turn(tmp_path, line):
    talk = fresh(tmp_path / "me")
    assert reply(talk, line) == "" and talk.me.buffer.seen == 0 and not get_state_version(tmp_path / "me")
    talk.close()


def test_a_paste_of_a_megabyte_is_cut_and_said(tmp_path):
    talk = fresh(tmp_path / "me")
    assert reply(talk, "x" * 10**6 + " What about my knee?")
    assert "are left out" in talk.pop_messages()[0]
    (turn,) = talk.turns
    assert turn["prompt"].endswith("What about my knee?") and len(turn["prompt"]) <= max(talk.max_characters, 32_000)
    assert sum(len(content) for content in disk(tmp_path / "me").values()) < 100_000
    talk.close()


def test_a_long_message_is_noted_before_the_model_reads_it(tmp_path, capsys, monkeypatch):
    with fresh(tmp_path / "me") as talk:
        noted, stream = [], talk.stream_reply
        monkeypatch.setattr(talk, "stream_reply", lambda *a: noted.append(capsys.readouterr().err) or stream(*a))
        for line in ("x" * 10**6, "x" * 30_000, "Hello."):
            run_turn(talk, line)
    assert "are left out" in noted[0] and "the model reads at most" in noted[1] and noted[2] == ""
    assert all(LONG_MESSAGE_NOTE in text for text in noted[:2])


def test_control_characters_reach_neither_model_nor_disk(tmp_path):
    talk = fresh(tmp_path / "me")
    reply(talk, "My\x00 knee\x1b[31m hurts\u202e.\r\nBadly\ud800")
    (turn,) = talk.turns
    assert turn["prompt"] == "My  knee [31m hurts .\nBadly"
    with pytest.raises(InputError, match="the turn is 7"):
        list(talk.say(7))
    talk.close()


def test_folders_that_are_not_its_own(tmp_path):
    talk = fresh(tmp_path / "me")
    with pytest.raises(InputError, match="another run is at work"):
        fresh(tmp_path / "me")
    reply(talk, "Hello")
    with pytest.raises(InputError, match="another run is at work"):
        forget_folder(tmp_path / "me", everything=True)
    talk.close()
    with pytest.raises(InputError, match="this model is"):
        ChatSession(tiny("llama", seed=7), tmp_path / "me")
    ChatSession(shared("llama"), tmp_path / "me").close()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("Dear mother")
    (tmp_path / "file").write_text("x")
    for name, line in (("letters", "holds no conversation, but mother.txt"), ("file", "a file, not a folder")):
        with pytest.raises(InputError, match=line):
            fresh(tmp_path / name)
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["mother.txt"]
    (tmp_path / "mine" / "adapter").mkdir(parents=True)  # what personalize writes
    with pytest.raises(InputError, match="or try the adapter there: personal-llm chat --adapter .*mine$"):
        fresh(tmp_path / "mine")
    (tmp_path / "me" / STORE_FILE).write_text('{"base": "x"}')
    with pytest.raises(InputError, match="damaged"):
        fresh(tmp_path / "me")


@pytest.mark.parametrize("architecture", ("qwen2", "gpt2"))
def test_every_model_has_a_style(architecture, tmp_path):
    "The description needs no library, so it is not for the model in the package only."
    with ChatSession(shared(architecture), tmp_path / "me", buffer=Buffer(16), **QUICK) as talk:
        rows = [Dialogue(line, f"Dear friend, {line.lower()}", origin="annotated") for line in LINES[:10]]
        talk.add_scored(talk.score_imported(rows[:7]))
        assert "7 different texts" in reply(talk, "/style") and "a style needs 8" in reply(talk, "/style")
        talk.add_scored(talk.score_imported(rows[7:]))
        style = reply(talk, "/style")
        assert "opens with “Dear friend," in style and "10 of 10" in style


@pytest.mark.parametrize("is_chat", [True, False])
def test_the_base_reads_no_corrected_turn_of_a_chat(is_chat, tmp_path, capsys, monkeypatch):
    "Else it would follow the corrections, and seem to have the user's habits; dialogues of a file keep histories."
    history, read = (("user", "Hello."), ("assistant", "Dear friend, hello!")), []
    note = lambda histories: read.append([list(one) for one in histories])
    monkeypatch.setattr(chat, "sample_responses", lambda m, a, rows: note(d.history for d in rows) or rows)
    with ChatSession(shared("llama"), tmp_path / "me", buffer=Buffer(16), **QUICK) as talk:
        rows = [Dialogue(line, f"Dear friend, {line}", history, origin="annotated") for line in LINES[:8]]
        talk.add_scored(talk.score_imported(rows))
        reply(talk, "/style")
    assert read.pop() == [[]] * 8

    def stop_explaining(model, dialogues, *_):
        note(d.history for d in dialogues)
        raise InputError("read", "stop here")

    monkeypatch.setattr(library_commands, "explain", stop_explaining)
    monkeypatch.setattr(replay.PersonalizerState, "is_chat", is_chat)
    assert "stop here" in fails(capsys, "explain", "--out", tmp_path / "me")
    assert read == [[[] if is_chat else list(history)] * 8]


def test_equal_corrections_are_no_style(tmp_path):
    "Marks and capitals do not make a text different."
    with ChatSession(shared("llama"), tmp_path / "me", buffer=Buffer(16), **QUICK) as talk:
        texts = ["Aye, fine it is, mate.", "aye fine it is mate!"]
        rows = [Dialogue(line, texts[i % 2], origin="annotated") for i, line in enumerate(LINES[:10])]
        talk.add_scored(talk.score_imported(rows))
        assert reply(talk, "/style").startswith("1 different text among the replies")


def test_a_saved_chat_is_named_and_explained(tmp_path, capsys):
    "Status calls it a chat; explain reads what the user wrote, and none of the model's replies."
    folder = tmp_path / "my talk"
    with ChatSession(shared("llama"), folder, buffer=Buffer(16), **QUICK) as talk:
        reply(talk, LINES[0])
        rows = [Dialogue(line, f"Dear friend, {line}", origin="annotated") for line in LINES[1:9]]
        talk.add_scored(talk.score_imported(rows[:7]))
        reply(talk, LINES[10])
        status = [line.partition(", 1 open")[0] for line in reply(talk, "/status").splitlines()]
    shown = invoke(capsys, "status", "--out", folder)[1]
    assert "a saved chat with its last 2 turns" in shown and f"personal-llm chat --out '{folder}' goes on" in shown
    assert "answers    7 corrected, 0 approved, in the buffer" in status
    assert shown.splitlines()[2:] == ["adapter    none", *status], "the same labels and figures"
    line = fails(capsys, "explain", "--out", folder)
    assert "7 different texts among the replies" in line and "a style needs 8" in line
    assert "give --out DIR alone" in fails(capsys, "explain", "--out", folder, "--data", "a")
    with ChatSession(shared("llama"), folder) as talk:
        talk.add_scored(talk.score_imported(rows[7:]))
    assert {d.response for d in select_own_answers(read_state(folder).buffer.dialogues)} == {d.response for d in rows}


def test_thanks_say_what_is_trained_on(tmp_path):
    with ChatSession(shared("llama"), tmp_path / "me", buffer=Buffer(16), **QUICK) as talk:
        reply(talk, LINES[0])
        assert reply(talk, "/down") == DISLIKE_MESSAGE and "/better TEXT" in DISLIKE_MESSAGE
        assert reply(talk, "/up") == "thank you; noted, and /learn trains on it"
        assert [d.origin for d in talk.me.select_trainable()] == ["approved"]
        turn = talk.turns[-1]["id"]
        talk.me.buffer.clear()
        assert say_thanks(talk, turn) == "thank you; noted, but the buffer did not keep this turn"


def test_a_stopped_training_names_the_command_that_starts_it_again(tmp_path):
    talk = fresh(tmp_path / "me", steps=10**5)
    reply(talk, LINES[0])
    assert "thank you" in reply(talk, f"/better {BETTER}")
    assert "in the background" in reply(talk, "/learn") and pop_notes(talk) == []
    reply(talk, "/forget nothing of this kind")
    assert pop_notes(talk) == ["learning was stopped; nothing of it stays", LEARN_AGAIN_MESSAGE]
    assert pop_notes(talk) == [] and "in the background" in reply(talk, "/learn")
    talk.close()


def test_only_an_import_has_a_file_of_chats(tmp_path):
    "A chat was read from no file; after an import the report names that file, even when no imported dialogue is left."
    with ChatSession(shared("llama"), tmp_path / "me", **QUICK) as talk:
        reply(talk, LINES[0])
        reply(talk, LINES[1])
        talk.add_scored(talk.score_imported([]))
        assert SOURCE_FILE_NOTE in reply(talk, "/forget head")
    with ChatSession(shared("llama"), tmp_path / "other", **QUICK) as talk:
        reply(talk, LINES[0])
        reply(talk, LINES[1])
        said = reply(talk, "/forget head")
        assert said.startswith("forgotten: 2 turns of the talk") and SOURCE_FILE_NOTE not in said
    assert SOURCE_FILE_NOTE not in str(forget_folder(tmp_path / "other", everything=True))


MISTAKES = {
    "/dance": "is no command",
    "/": "is no command",
    "/why": "no turn was decided yet",
    "/undo": "no turn to take back",
    "/learn": "nothing to learn",
    "/style": "0 different texts",
    "/skip": "no question is open",
    "/forget": "write /forget TEXT",
    "/status now": "takes no argument",
    "/forget a text that nobody said": "no stored turn contains it",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, line):
    talk = fresh(tmp_path / "me")
    said = reply(talk, line)
    assert MISTAKES[line] in said and "\n" not in said and talk.me.buffer.seen == 0
    assert all(name in reply(talk, "/help") for name in CHAT_COMMANDS)
    talk.close()


# taking back


def test_forget_without_a_text_deletes_nothing_and_shows_the_last_messages(tmp_path):
    with fresh(tmp_path / "me") as talk:
        for line in (*LINES[:3], "My\nthumb " + "x" * 200):
            reply(talk, line)
        before = disk(tmp_path / "me")
        first, _, *lines = reply(talk, "/forget ").splitlines()
        assert first == "write /forget TEXT" and lines == [f"  {LINES[1]}", f"  {LINES[2]}", f"  My thumb {'x' * 91}"]
        assert disk(tmp_path / "me") == before and len(talk.turns) == 4


def test_forget_leaves_no_byte(tmp_path):
    talk = fresh(tmp_path / "me")
    reply(talk, "My sister Zanzibarquux has a cough.")
    until_asked(talk, LINES)
    reply(talk, "/better Ask Zanzibarquux tonight.")
    reply(talk, "/learn")
    talk.finish_training()
    assert any(b"Zanzibarquux" in content for content in disk(tmp_path / "me").values())
    said = reply(talk, "/forget zanzibarquux")
    assert "1 adapter" in said and talk.me.adapter is None
    assert not any(b"anzibarquux" in content for content in disk(tmp_path / "me").values())
    assert not any(b"adapter_model" in name.encode() for name in disk(tmp_path / "me"))
    assert reply(talk, "Hello again") and talk.me.buffer.seen > 2
    talk.close()
    other = fresh(tmp_path / "other")
    reply(other, "My sister Zanzibarquux has a cough.")
    other.close()
    done = forget_folder(tmp_path / "other", text="zanzibarquux")
    assert done.turns == 1 and not any(b"anzibarquux" in content for content in disk(tmp_path / "other").values())


def test_an_import_cannot_name_itself_after_a_stored_turn(tmp_path):
    "Rows with the id of a stored turn, or with it among their parents, would stand as the owner's correction."
    talk = fresh(tmp_path)
    for line in LINES[:3]:
        reply(talk, line)
    turn = talk.turns[-1]
    rows = [
        Dialogue("Theirs", "a foreign text", id=turn["id"], origin="user"),
        Dialogue("Theirs too", "another one", parents=(turn["id"],), origin="annotated"),
    ]
    talk.add_scored(talk.score_imported(rows))
    mine = [d for d in talk.me.buffer.dialogues if turn["id"] in (d.id, *d.parents)]
    assert not any("foreign" in d.response or "another" in d.response for d in mine)
    talk.forget(text="Theirs")
    assert turn["id"] in [row["id"] for row in talk.turns], "their row takes no turn of the owner along"
    talk.close()


def test_undo_takes_back_the_last_turn_and_its_question(tmp_path):
    talk = fresh(tmp_path / "me")
    last = until_asked(talk, LINES)
    assert reply(talk, "/undo") == f"taken back: {last}" and talk.question is None
    assert last.encode() not in b"".join(disk(tmp_path / "me").values())
    assert last not in [d.prompt for d in talk.me.buffer.dialogues]
    talk.close()


def test_an_open_question_survives_that_an_adapter_is_forgotten_elsewhere(tmp_path, monkeypatch):
    "Its scores would be of an adapter that is gone: it is dropped, and nothing breaks."
    monkeypatch.setattr(replay, "MAX_STORED_TURNS", 1)  # the talk itself holds no word of what is forgotten
    talk = fresh(tmp_path / "me")
    until_asked(talk, LINES)
    reply(talk, f"/better {BETTER}")
    reply(talk, "/learn")
    talk.finish_training()
    until_asked(talk, [f"What about my {thing}?" for thing in "car cat house boat garden piano dinner tax".split()] * 3)
    talk.close()
    forget_folder(tmp_path / "me", text="call me tonight")
    again = ChatSession(shared("llama"), tmp_path / "me")
    assert again.question is None and again.me.adapter is None and reply(again, "Hello again")
    again.close()


# as it is typed


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A tiny model in a folder."
    model, folder = tiny("llama"), tmp_path_factory.mktemp("model")
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def command(small, *words):
    return [sys.executable, "-m", "personal_llm.app.cli", "chat", "--model", str(small), *map(str, words)]


ENVIRONMENT = os.environ | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONPATH=str(Path(__file__).parents[1]))


@pytest.mark.later
def test_lines_through_a_pipe(small, tmp_path, capsys):
    lines = b"Hello\n\n/why\n\xff\xfe\x00 knee\n/status\n"
    first = subprocess.run(
        command(small, "--out", tmp_path / "me"), input=lines, capture_output=True, env=ENVIRONMENT, timeout=300
    )
    assert first.returncode == 0, first.stderr.decode()
    assert b"kept: a bin was free" in first.stdout and b"2/32 dialogues of 2" in first.stdout
    assert first.stderr.count(b"personal-llm:") == 1, "the hint, and nothing else"
    assert "this model is" in fails(capsys, "chat", "--model", "pocket", "--out", tmp_path / "me", "--quiet")
    assert read_state(tmp_path / "me").buffer.seen == 2


def test_a_better_reply_of_several_lines_is_stored_whole(tmp_path):
    talk = fresh(tmp_path)
    reply(talk, LINES[0])
    assert "thank you" in reply(talk, "/better\nDear Tom,\n\nall is well.\n")
    assert talk.me.state.get_dialogue(talk.turns[-1]["id"]).response == "Dear Tom,\n\nall is well."
    talk.close()


@pytest.mark.later
def test_ctrl_c_at_a_terminal(small, tmp_path):
    "In a reply it ends the reply, at the prompt it leaves; what was said before is kept."
    pexpect = pytest.importorskip("pexpect")
    program, *words = command(small, "--out", tmp_path / "me")
    person = pexpect.spawn(program, words, env=ENVIRONMENT, timeout=300, encoding="utf-8")
    person.expect("> ")
    person.sendline("My knee hurts.")
    person.expect("\n> ")
    person.sendline("And my back?")
    person.expect("back")
    time.sleep(0.02)
    person.sendintr()
    person.expect("> ")
    person.sendintr()
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == 0
    state = read_state(tmp_path / "me")
    assert state.turns[0]["prompt"] == "My knee hurts." and state.buffer.seen in (1, 2)
    assert len(state.turns) == state.buffer.seen


def test_help_teaches(capsys):
    code, out, err = invoke(capsys, "chat", "--help")
    assert code == 0 and "--out" in out and "Examples:" in out and "goes on" in out and err == ""


# options of a program, and corrections without a question


@pytest.mark.later
def test_a_stop_text_never_shows_a_piece_of_itself():
    model, d = shared("llama"), Dialogue("My knee hurts.", "")
    whole = "".join(ReplyStream(model, d))
    for width in (1, 2, 5):
        for start in range(2, len(whole) - width, 3):
            stop = whole[start : start + width]
            stream = ReplyStream(model, d, ReplyOptions(stop=("never there", stop)))
            assert "".join(stream) == stream.text == whole.partition(stop)[0] and stream.end_reason == "stop"
            assert stream.reading is not None


def test_the_same_seed_draws_the_same_reply():
    draws = [
        "".join(ReplyStream(shared("llama"), Dialogue("Hello", ""), ReplyOptions(12, temperature=2.0, seed=seed)))
        for seed in (1, 1, 2, 3)
    ]
    assert draws[0] == draws[1] and len({*draws}) > 1


def test_a_program_with_its_own_conversation_does_not_change_ours(tmp_path):
    with fresh(tmp_path / "me") as talk:
        list(talk.say(LINES[0]))
        turns, history = [*talk.turns], [("user", "Hello\x1b[2J"), ("assistant", "Hello!")]
        list(talk.say(LINES[1], history))
        assert talk.turns == turns and talk.me.buffer.seen == 2
        assert talk.me.buffer.dialogues[-1].history[0] == ("user", "Hello [2J")
        before = disk(tmp_path / "me")
        list(talk.say(LINES[2], history, is_observed=False, with_adapter=False))
        assert disk(tmp_path / "me") == before and len(talk.me.memory.dialogues) == 2


def test_a_discarded_turn_is_corrected_and_forgotten_with_all_its_versions(tmp_path):
    with fresh(tmp_path / "me", horizon=10**6) as talk:
        for line in LINES[:12]:
            list(talk.say(line))
        kept = {d.id for d in talk.me.buffer.dialogues}
        lost = next(row for row in talk.turns if row["id"] not in kept)
        for better in (BETTER, "Sir, walk."):
            talk.correct(lost["id"], better)
            assert [d.response for d in talk.me.buffer.dialogues if lost["id"] in d.parents] == [better]
        talk.forget(ids=[lost["id"]])
        texts = b"".join(disk(tmp_path / "me").values())
        assert lost["prompt"].encode() not in texts and b"Sir, walk" not in texts and BETTER.encode() not in texts
        with pytest.raises(InputError, match="no reply .* is stored"):
            talk.correct(lost["id"], BETTER)


def test_the_personalizer_of_a_closed_talk_may_go_on(tmp_path):
    with fresh(tmp_path / "me") as talk:
        list(talk.say(LINES[0]))
    talk.me.save()
    assert talk.me.forget(text=LINES[0]).dialogues == 1


def test_a_full_disk_while_forgetting_is_said_and_the_deletion_tried_again(tmp_path, monkeypatch):
    talk = fresh(tmp_path / "me")
    reply(talk, LINES[0])
    reply(talk, LINES[1])
    fill_disk(monkeypatch)
    told = reply(talk, f"/forget {LINES[0]}")
    assert "the disk is full" in told and "still holds" in told and len(told.splitlines()) == 1
    monkeypatch.undo()
    assert LINES[0].encode() in b"".join(disk(tmp_path / "me").values())
    reply(talk, LINES[2])
    assert [turn["prompt"] for turn in talk.turns] == [LINES[2]]
    assert LINES[0].encode() not in b"".join(disk(tmp_path / "me").values())
    talk.close()


def test_what_a_terminal_would_obey_is_shown_in_a_question(capsys):
    assert ask_at_terminal(Dialogue("a\x1b]0;b\x07", "\x1b[2J"), read=lambda question: " ") is None
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and r"\x1b[2J" in shown
