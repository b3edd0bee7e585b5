"The user's system prompt: in every reply, in no stored dialogue, and below a program's own."

import pytest

from personal_llm.app.chat import ReplyingModelOptions
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.conversation import ChatSession
from personal_llm.device.personalizer import Personalizer
from personal_llm.device.streaming import ReplyOptions

SHORT = ReplyOptions(max_tokens=6)
NURSE, COOK = "You are a nurse.", "You are a cook."


@pytest.fixture
def model(monkeypatch):
    model = load_model("pocket")
    model.system_prompt = NURSE
    prompts, encode = [], type(model).encode_prompts
    see = lambda self, dialogues, *a, **k: (prompts.extend(dialogues), encode(self, dialogues, *a, **k))[1]
    monkeypatch.setattr(type(model), "encode_prompts", see)
    model.seen = prompts
    return model


def list_system_prompts(model) -> list:
    return [[text for role, text in d.history if role == "system"] for d in model.seen]


def test_a_chat_reads_it_and_stores_none(model, tmp_path):
    with ChatSession(model, tmp_path) as session:
        assert all("".join(session.say(text, options=SHORT)) for text in ("My knee hurts.", "And my back."))
        assert list_system_prompts(model) == [[NURSE], [NURSE]]
        stored = [*session.me.buffer.dialogues, *([session.question.dialogue] if session.question else [])]
        assert stored and not any(role == "system" for d in stored for role, _ in d.history)
        for d in stored:
            scores = session.me.score([d])[0].scores
            known = next(
                e.scores for e in [*session.me.buffer.entries, session.question] if e and e.dialogue.id == d.id
            )
            assert known.tokens == scores.tokens and known.loss == pytest.approx(scores.loss, rel=1e-4)


def test_a_program_s_own_wins(model, tmp_path):
    with ChatSession(model, tmp_path) as session:
        for history in ([("system", COOK)], [("user", "Hi."), ("assistant", "Hello.")]):
            assert "".join(session.say("What is a tendon?", history=history, options=SHORT))
    assert list_system_prompts(model) == [[COOK], [NURSE]]


def test_a_personalizer_s_reply_reads_it(model):
    me = Personalizer(model, Buffer(4))
    me.reply("What is a tendon?", max_tokens=4), me.reply("What is a tendon?", [("system", COOK)], max_tokens=4)
    assert list_system_prompts(model) == [[NURSE], [COOK]]
    model.system_prompt = ""
    assert model.add_system_prompt(Dialogue("Hi", "")).history == Dialogue("Hi", "").history


def test_the_command_line_sets_it_and_refuses_an_engine_that_is_not_there(monkeypatch):
    assert ReplyingModelOptions(model="pocket", system=f" {NURSE}\n").load().system_prompt == NURSE
    assert ReplyingModelOptions(model="pocket").load().engine is None
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    monkeypatch.setattr("personal_llm.base.models.load_model", lambda *given, **named: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"personal_llm\[llama\]"):
        ReplyingModelOptions(model="pocket", engine="llama.cpp").load()
