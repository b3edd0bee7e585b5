"A reply that does not fit the corrections is written again: when, how, and what a person and a program see."

import sys
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from personal_llm.app.chat import erase, run_turn, take_feedback
from personal_llm.app.chat_completions import CompletionRequest, generate
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.buffer import retrieval, self_check, wishes
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.self_check import compute_usual_help, improve_reply
from personal_llm.buffer.wishes import KnownCorrection
from personal_llm.device import conversation, personalizer
from personal_llm.device.conversation import ChatSession, Draft
from personal_llm.device.personalizer import Personalizer
from personal_llm.device.streaming import ReplyOptions
from personal_llm.tuning.config import TuningConfig

ACHES = ["My knee hurts after a run.", "My elbow hurts after a run.", "My back hurts after a run."]
NEXT = "My foot hurts after a run."
BETTER = "In short: rest."


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture
def reading_pocket(monkeypatch, pocket):
    "A pocket model that counts as large enough; each correction helps by 1 nat a token."
    monkeypatch.setattr(pocket, "is_large", True)
    monkeypatch.setattr(retrieval, "MIN_CHECKED_ANSWERS", 1000)
    monkeypatch.setattr(wishes, "compute_help", lambda *given: 1.0)
    monkeypatch.setattr(conversation, "continues_subject", lambda model, question: True)
    return pocket


@pytest.fixture
def checks(monkeypatch):
    "The calls of `improve_reply`, which returns `BETTER`."
    calls = []
    for place in (personalizer, conversation):
        monkeypatch.setattr(place, "improve_reply", lambda *given: calls.append(given) or BETTER)
    return calls


def correct(me, texts, kind="better"):
    dialogues = [Dialogue(text, "Walk more.", time=float(i), origin="model") for i, text in enumerate(texts)]
    me.observe_all(dialogues, progress=False)
    for i, d in enumerate(dialogues):
        me.react(d.id, kind, f"In short: rest {i}." if kind == "better" else "")


def test_a_reply_is_checked_from_the_third_correction_on(reading_pocket, checks):
    me = Personalizer(reading_pocket, Buffer(8))
    correct(me, ACHES[:2])
    assert me.reply(NEXT, max_tokens=4) != BETTER and not checks
    correct(me, ACHES[2:])
    assert me.reply(NEXT, max_tokens=4) == BETTER
    ((model, text, question, memories, usual, limit),) = checks
    assert (question.prompt, usual, limit) == (NEXT, 1.0, 4) and len({d.id for d in memories}) == 3
    assert me.reply(ACHES[0], max_tokens=4) != BETTER, "the very same question reads its correction alone"


def test_approvals_and_corrections_without_a_form_check_nothing(reading_pocket, checks, monkeypatch):
    me = Personalizer(reading_pocket, Buffer(8))
    correct(me, ACHES, kind="thumb_up")
    monkeypatch.setattr(wishes, "compute_help", lambda *given: 0.2)
    other = Personalizer(reading_pocket, Buffer(8))
    correct(other, ACHES)
    assert me.find_check(Dialogue(NEXT, ""), me.retrieve_memories(NEXT)) == ()
    assert other.reply(NEXT, max_tokens=4) != BETTER and not checks


def test_the_usual_help_is_that_of_the_wishes_that_the_reply_read(reading_pocket, checks):
    me = Personalizer(reading_pocket, Buffer(8))
    correct(me, ACHES)
    roots = list(me.state.wishes)
    me.state.wishes |= {roots[1]: (0, 2.0), roots[2]: (0, 4.0), "of another wish": (1, 99.0)}
    me.state.list_corrections = lambda: [
        KnownCorrection(Dialogue(str(root), "x"), *known) for root, known in me.state.wishes.items()
    ]
    assert me.find_check(Dialogue(NEXT, ""), me.retrieve_memories(NEXT))[2] == 3.0


def test_an_adapter_that_reads_nothing_is_compared_with_what_it_learned(reading_pocket, monkeypatch):
    me = Personalizer(reading_pocket, Buffer(8))
    correct(me, ACHES)
    monkeypatch.setattr(type(me), "find_learned_roots", lambda self, without_memory=False: set(self.state.wishes))
    adapter = object()
    assert me.retrieve_memories(NEXT, (), adapter) == []
    question, memories, usual = me.find_check(Dialogue(NEXT, ""), [], adapter)
    assert len({d.id for d in memories}) == 3 and all(d.response for d in memories)


class Writer:
    "A model that writes given replies, and notes what it was shown."

    def __init__(self, *replies):
        self.replies, self.shown = replies, []

    def reply(self, dialogues, max_new_tokens):
        self.shown, self.limit = dialogues, max_new_tokens
        return list(self.replies)

    def add_system_prompt(self, d):
        return d.derive(history=[("system", "Be kind."), *d.history])


def test_the_two_further_replies_amplify_the_memories_and_repeat_the_nearest_one(monkeypatch):
    memories = [Dialogue(text, f"In short: {i}.", origin="annotated") for i, text in enumerate(ACHES)]
    model, seen = Writer("one", "two"), []
    monkeypatch.setattr(self_check, "compute_help", lambda m, d, earlier: seen.append((d, earlier)) or len(d.response))
    question = Dialogue(NEXT, "", (("user", "Hello."), ("assistant", "Hi.")))
    assert improve_reply(model, "a", question, memories, 3.0, 7) == "one"  # the first of two that help as much
    amplified, repeated = model.shown
    assert amplified.labels["examples"].num_amplified == 6 and repeated.labels["examples"].num_amplified == 0
    texts = [text for role, text in repeated.history if role == "assistant"]
    assert texts == ["In short: 2."] * 3 + ["Hi."] and model.limit == 7
    assert repeated.history[0] == ("system", "Be kind.")
    assert {d.prompt for d, _ in seen} == {NEXT} and all(earlier == memories for _, earlier in seen)


@pytest.mark.parametrize(("count", "compared"), ((3, 3), (6, 4)))
def test_only_the_nearest_corrections_are_compared(monkeypatch, count, compared):
    memories = [Dialogue(str(i), str(i), origin="annotated" if i else "approved") for i in range(count + 1)]
    seen = []
    monkeypatch.setattr(self_check, "compute_help", lambda m, d, earlier: seen.append(earlier) or 1.0)
    assert improve_reply(Writer(), "a", Dialogue("q", ""), [*memories, memories[-1]], 1.0) == "a"
    assert [d.prompt for d in seen[0]] == [str(i) for i in range(count + 1)][-compared:]


@pytest.mark.parametrize("help", (0.8, 0.79))
def test_a_reply_fits_from_the_share_of_the_usual_help_on(monkeypatch, help):
    memories = [Dialogue(text, "x", origin="annotated") for text in ACHES]
    monkeypatch.setattr(self_check, "compute_help", lambda m, d, earlier: help if d.response == "a" else 2.0)
    assert improve_reply(Writer("b", "c"), "a", Dialogue("q", ""), memories, 1.0) == ("a" if help == 0.8 else "b")


@pytest.mark.parametrize("helps, kept", [((0.79, 0.5), "a"), ((0.8, 0.5), "a"), ((0.81, 0.5), "b"), ((0.81, 0.9), "c")])
def test_a_reply_that_does_not_fit_stays_if_the_others_fit_no_better(monkeypatch, helps, kept):
    memories = [Dialogue(text, "x", origin="annotated") for text in ACHES]
    known = dict(zip("abc", (0.1, *helps)))
    monkeypatch.setattr(self_check, "compute_help", lambda m, d, earlier: known[d.response])
    assert improve_reply(Writer("b", "c"), "a", Dialogue("q", ""), memories, 1.0) == kept
    assert improve_reply(Writer("b", "c"), " ", Dialogue("q", ""), memories, 1.0) == max("bc", key=known.get)


def test_an_unknown_help_is_not_compared():
    read = [Dialogue(text, "x", origin="annotated") for text in ACHES]
    known = [KnownCorrection(d, 0, help) for d, help in zip(read, (None, 1.0, 2.0))]
    assert compute_usual_help(read, known) == 1.5
    assert compute_usual_help(read, known[:2]) is None
    assert compute_usual_help([*read[:2], replace(read[1])], known) is None, "the same correction twice"


@pytest.fixture
def chat(reading_pocket, tmp_path):
    small = dict(buffer=Buffer(8), synthetic=0, config=TuningConfig(steps=2), replay=8, early_questions=0)
    with ChatSession(reading_pocket, tmp_path / "me", **small) as session:
        for text in ACHES:
            "".join(session.say(text))
            session.correct(session.turns[-1]["id"], f"In short: rest, {text[:7]}.")
        yield session


def test_a_talk_holds_a_reply_back_until_it_is_checked(chat, checks):
    assert [piece for piece in chat.say(NEXT) if piece] == [BETTER]
    assert chat.turns[-1]["response"] == chat.reply.text == BETTER and chat.reply.reading is not None
    kept = chat.me.state.get_candidate(chat.turns[-1]["id"])
    alone = chat.me.score([kept.dialogue])[0]
    assert np.isclose(kept.scores.loss, alone.scores.loss)
    assert chat.describe_memories() == "from 3 of your corrections"
    (given,) = checks
    assert given[2].history == tuple(chat.reply.dialogue.history[-6:]), "the talk, with your corrections"


def test_an_interface_may_show_drafts(chat, checks):
    *drafts, last = chat.say(NEXT, shows_drafts=True)
    assert drafts and all(isinstance(piece, Draft) for piece in drafts)
    assert last == BETTER and not isinstance(last, Draft)
    assert "".join(drafts) == checks[0][1]


def test_a_reply_that_fits_stays_as_it_was(chat, monkeypatch):
    monkeypatch.setattr(conversation, "improve_reply", lambda model, text, *given: text)
    replaced = []
    monkeypatch.setattr(conversation.ReplyStream, "replace_text", lambda *given: replaced.append(given))
    *drafts, last = chat.say(NEXT, shows_drafts=True)
    assert "".join(drafts) == last == chat.turns[-1]["response"] and not replaced


@pytest.mark.parametrize("is_terminal", (True, False))
def test_a_rewritten_reply_takes_the_place_of_its_draft(chat, checks, capsys, monkeypatch, is_terminal):
    "A terminal clears all lines of the draft, and a pipe gets no draft and no escape sequence."
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "1000")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    run_turn(chat, NEXT)
    draft, _, shown = capsys.readouterr().out.rpartition("\r")
    rows = sum(max(1, -(-len(line) // 20)) for line in draft.split("\n"))
    assert bool(draft) == is_terminal and draft == checks[0][1] * is_terminal
    assert shown == ("\x1b[A" * (rows - 1) + "\x1b[J") * is_terminal + f"{BETTER}\n"


ROWS = {  # a draft -> its rows in a terminal of seven columns
    "a" * 14: 2,
    "a" * 14 + "\n": 3,
    "漢" * 7: 3,  # three a row: the seventh column stays empty
    "a漢" * 4: 2,
    "e\u0301" * 7: 1,  # an accent of its own takes no place
    "नमस्ते": 1,
    "a\tb\tc": 1,  # a tab ends at the last column
}


@pytest.mark.parametrize("draft", ROWS)
def test_the_rows_of_a_draft_are_those_of_a_terminal(draft, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "7")
    monkeypatch.setenv("LINES", "24")
    erase(draft)
    assert capsys.readouterr().out == "\r" + "\x1b[A" * (ROWS[draft] - 1) + "\x1b[J"


def test_a_draft_that_is_longer_than_the_screen_stays_with_a_note(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "7")
    monkeypatch.setenv("LINES", "3")
    erase("a" * 21)
    assert capsys.readouterr().out == "\r\x1b[A\x1b[A\x1b[J"
    erase("a" * 22)
    shown = capsys.readouterr()
    assert shown.out == "\n" and "fits your corrections better" in shown.err


def test_a_reply_that_could_not_begin_has_no_source(reading_pocket, tmp_path, monkeypatch):
    "As where llama.cpp stops at the first message."
    refuse = Mock(side_effect=InputError("llama.cpp ended", "start it again"))
    with ChatSession(reading_pocket, tmp_path / "me", buffer=Buffer(8), synthetic=0) as session:
        monkeypatch.setattr(conversation, "ReplyStream", refuse)
        with pytest.raises(InputError):
            "".join(session.say(NEXT))
        assert session.describe_memories() == ""


@pytest.mark.parametrize("options", (ReplyOptions(temperature=0.7), ReplyOptions(stop=("zzz",))))
def test_a_reply_that_is_drawn_or_stopped_is_not_checked(chat, checks, options):
    "".join(chat.say(NEXT, options=options))
    assert not checks and chat.turns[-1]["response"] != BETTER


def test_base_and_another_try_are_not_checked(chat, checks):
    "".join(chat.say(NEXT, [], is_observed=False, with_adapter=False))
    list(chat.retry())
    assert not checks


def test_a_reply_that_is_stopped_before_its_check_is_not_stored(chat, checks):
    count, pieces = len(chat.turns), chat.say(NEXT, shows_drafts=True)
    assert isinstance(next(pieces), Draft)
    chat.stop_reply()
    assert len(chat.turns) == count and not checks


def test_a_program_gets_the_checked_reply_alone(chat, checks):
    messages = [dict(role="user", content=NEXT)]
    *pieces, summary = generate(chat, CompletionRequest(model="personal", messages=messages))
    assert [piece for piece in pieces if piece] == [BETTER] and summary["usage"][
        "completion_tokens"
    ] == chat.reply.reading.tokens - 1


def test_the_check_counts_as_a_cost_of_this_user(chat, monkeypatch):
    def work(model, text, *given):
        model.nll([Dialogue("one", "two")])
        return text

    monkeypatch.setattr(conversation, "improve_reply", work)
    before = chat.me.cost.forward
    "".join(chat.say(NEXT))
    with_check = chat.me.cost.forward - before
    monkeypatch.setattr(conversation, "improve_reply", lambda model, text, *given: text)
    before = chat.me.cost.forward
    "".join(chat.say("My hand hurts after a run."))
    assert with_check > chat.me.cost.forward - before


def test_a_rewritten_adapter_reply_has_the_scores_of_the_adapter_and_names_the_corrections(chat, checks, monkeypatch):
    chat.learn()
    chat.finish_training()
    monkeypatch.setattr(type(chat.me), "choose_adapter", lambda self, prompt: self.adapter)
    monkeypatch.setattr(type(chat.me), "find_learned_roots", lambda self, without_memory=False: set(self.state.wishes))
    "".join(chat.say(NEXT))
    assert chat.turns[-1]["response"] == BETTER and chat.describe_memories() == "from 3 of your corrections"
    kept = chat.me.state.get_candidate(chat.turns[-1]["id"])
    alone = chat.me.score([kept.dialogue])[0]
    assert np.isclose(kept.scores.loss, alone.scores.loss, rtol=1e-3) and kept.scores.model == alone.scores.model


def test_a_broken_pass_leaves_no_cache_to_the_next_reply(chat, checks, monkeypatch):
    def broken(self, ids):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(conversation.ReplyStream, "replace_text", replace_text_with(broken))
        list(chat.say(NEXT))
    assert chat.reply.reading is None


def replace_text_with(feed_part):
    "`replace_text` whose forward pass fails."
    whole = conversation.ReplyStream.replace_text

    def replace_text(self, text):
        self.feed_part = lambda ids: feed_part(self, ids)
        whole(self, text)

    return replace_text


def test_no_check_by_another_engine_and_none_of_a_fact(chat, checks, monkeypatch):
    memories = chat.me.retrieve_memories(NEXT)
    monkeypatch.setattr(chat.model, "engine", object())
    assert chat.me.find_check(Dialogue(NEXT, ""), memories) == ()
    monkeypatch.setattr(chat.model, "engine", None)
    assert chat.me.find_check(Dialogue(NEXT, ""), memories)
    assert chat.plan_reply(Dialogue(NEXT, "")).check and not chat.plan_reply(Dialogue(NEXT, ""), is_checked=False).check
    monkeypatch.setattr(chat.me, "answer_from_facts", lambda *given: ("My dog is Rex.", "", None))
    assert chat.plan_reply(Dialogue(NEXT, "")).check == ()


def test_the_limit_of_a_talk_is_that_of_the_further_replies(chat, checks):
    "".join(chat.say(NEXT, options=ReplyOptions(max_tokens=5)))
    assert checks[0][-1] == 5


def test_a_program_talks_about_its_own_history(chat, checks):
    history = [("user", ACHES[0]), ("assistant", "Walk more.")]
    "".join(chat.say(NEXT, history))
    assert checks[0][2].history == tuple(history)


def test_a_further_reply_loses_a_character_that_the_limit_has_cut(monkeypatch):
    memories = [Dialogue(text, "x", origin="annotated") for text in ACHES]
    monkeypatch.setattr(self_check, "compute_help", lambda m, d, earlier: 2.0 if d.response == "b" else 0.1)
    assert improve_reply(Writer("b \ufffd", "c"), "a", Dialogue("q", ""), memories, 1.0) == "b"


def test_a_chat_keeps_the_keys_and_values_of_its_talk(chat, checks, monkeypatch):
    reused, whole = [], conversation.ReplyStream.reuse_cache
    note = lambda self, previous, ids: reused.append(previous) or whole(self, previous, ids)
    monkeypatch.setattr(conversation.ReplyStream, "reuse_cache", note)
    run_turn(chat, "Tell me a joke.\n")
    first = chat.reply
    run_turn(chat, "And another one.\n")
    assert reused[-1] is first


def test_a_correction_may_begin_with_a_number_sign(chat):
    take_feedback(chat, "better", "# Rest it.")
    take_feedback(chat, "better", "#2 Rest the other one.")
    versions = [chat.me.state.get_dialogue(turn["id"]).response for turn in chat.turns[-2:]]
    assert versions == ["Rest the other one.", "# Rest it."]
    with pytest.raises(InputError, match="#9 is no reply"):
        take_feedback(chat, "better", "#9 Rest.")
