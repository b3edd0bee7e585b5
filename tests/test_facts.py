"Facts that a person states once: which sentences, which questions, which fact for which question."

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.app.chat import handle_line
from personal_llm.base.core import Dialogue
from personal_llm.base.models import load_model
from personal_llm.base.text import set_language
from personal_llm.buffer.facts import (
    MAX_FACTS,
    add_fact,
    asks_for_fact,
    compute_word_scores,
    find_facts,
    get_content_words,
    keep_facts,
    recall_fact,
)
from personal_llm.device.conversation import ChatSession
from personal_llm.device.personalizer import Personalizer


class Encoder:
    "One dimension for each of the first words that it meets."

    def __init__(self):
        self.places = {}

    def encode(self, texts):
        rows = np.zeros((len(texts), 64))
        for row, text in zip(rows, texts):
            for word in text.lower().split():
                row[self.places.setdefault(word, len(self.places)) % 64] += 1
        return rows


class Model:
    "A question is as likely after any statement, but for a planted pair."

    def __init__(self, planted: dict):
        self.planted, self.calls = planted, 0

    def nll(self, dialogues):
        self.calls += 1
        return np.array([[10.0 - self.planted.get((d.prompt, d.response), 0.0), 5] for d in dialogues])


def test_statements_are_found_and_what_passes_is_not():
    stated = {
        "I live in Rome.": ["I live in Rome."],
        "My boss is Ann Lee, and she is late!": ["My boss is Ann Lee, and she is late."],
        "I’m allergic to nuts, so what can I eat?": ["I’m allergic to nuts."],
        "Hi! We have two cats. Do you like cats?": ["We have two cats."],
        "Hi, my name is Priya and I live in Leeds.": ["My name is Priya.", "I live in Leeds."],
        "I'm glad to be here, and my name is Ann.": ["My name is Ann."],
        "I work as a nurse and my wife is too.": ["I work as a nurse and my wife is too."],
        "My dog is called Rex and he ate my shoes.": ["My dog is called Rex and he ate my shoes."],
    }
    for text, facts in stated.items():
        assert find_facts(text) == facts, text
    for text in (
        "I'm going to bed.",
        "I would like tea.",
        "I love it.",
        "Is my bus late?",
        "",
        "I am ok.",
        "Cats purr.",
    ):
        assert find_facts(text) == [], text


def test_questions_for_facts_and_for_advice():
    for prompt in ("Where do I live?", "What's my dog called?", "Remind me who my boss is.", "Hm. Which car do I own?"):
        assert asks_for_fact(prompt), prompt
    for prompt in ("Where should I live?", "What is rain?", "My dog is big.", "What if I fall?", "Tell me about Rome."):
        assert not asks_for_fact(prompt), prompt


def test_word_scores_equal_a_sum_by_hand():
    facts = ["I have a horse called Thunder.", "I live near a horse in Lyon.", "I teach maths."]
    scores = compute_word_scores("What was the name of my horse?", facts)
    rarity = math.log(1 + 1.5 / 2.5)  # two of three facts have the word
    sizes = [len(get_content_words(fact)) for fact in facts]
    assert sizes == [2, 4, 2]
    assert np.allclose(scores, [rarity / 1.1, rarity / 1.2, 0])


def test_the_likelihood_decides_between_facts_of_equal_words():
    question, facts = "Where does my sister live?", ["My sister Ada is tall.", "My sister Eva moved to Porto."]
    for right in facts:
        assert recall_fact(question, facts, Model({(right, question): 20.0}), Encoder()) == right


def test_a_question_that_no_fact_answers_gets_none_and_others_cost_no_pass():
    model = Model({})
    assert recall_fact("When was I born?", ["I own a bookshop.", "We have two cats."], model, Encoder()) == ""
    assert model.calls == 1
    assert recall_fact("What is rain?", ["I own a bookshop."], model, Encoder()) == ""
    assert recall_fact("When was I born?", [], model, Encoder()) == ""
    assert model.calls == 1


@pytest.mark.parametrize("newer", ["I live in York now.", "We moved to York last week."])
def test_the_newest_of_equal_facts_answers_and_a_fact_about_others_does_not(newer):
    facts, question = ["I live in Leeds.", newer, "My parents live in Cork."], "Where do I live?"
    gains = {(facts[0], question): 4.0}
    assert recall_fact(question, facts, Model(gains), Encoder()) == newer
    assert recall_fact(question, facts[::2], Model(gains), Encoder()) == facts[0]
    assert recall_fact(question, facts, Model({(facts[0], question): 30.0}), Encoder()) == facts[0]


OTHERS = {  # question -> an older fact that answers it, and a newer one about something else
    "When is my birthday?": ("My birthday is 3 May.", "My son's birthday is 9 June."),
    "Where do I live?": ("I live in Leeds.", "I live with my two sisters."),
    "Where do I work?": ("I work at the harbour.", "I work late on Fridays."),
    "Where does my father live?": ("My father lives in Rome.", "My father's brother lives in Leeds."),
}


@pytest.mark.parametrize("question", OTHERS)
def test_a_newer_fact_about_something_else_does_not_replace_the_answer(question):
    older, newer = OTHERS[question]
    assert recall_fact(question, [older, newer], Model({(older, question): 4.0}), Encoder()) == older


def test_a_question_of_a_name_alone_is_not_about_the_user():
    facts = ["My dog Einstein is old.", "I use my old Python book."]
    for question in ("Who was Einstein?", "What is Python?"):
        assert recall_fact(question, facts, Model({}), Encoder()) == ""
    james = ["My brother James lives in Rome."]
    assert recall_fact("Where does James live?", james, Model({}), Encoder()) == james[0]


def test_a_newer_fact_about_something_else_of_the_dog_does_not_answer():
    facts, question = ["My dog is called Rex.", "My dog is old and fat."], "What is my dog called?"
    assert recall_fact(question, facts, Model({(facts[0], question): 3.0}), Encoder()) == facts[0]


def test_a_question_about_a_named_person_needs_all_its_words_in_a_fact():
    sister, flight = "My sister Anjali's birthday is 14 March.", "I have a flight to Oslo on Friday."
    assert recall_fact("When is Anjali's birthday?", [flight, sister], Model({}), Encoder()) == sister
    for question in ("Where does Anjali work?", "When is Ada's birthday?", "Where is Oslo?", "Tell me about Anjali."):
        assert recall_fact(question, [flight, sister], Model({}), Encoder()) == "", question


@pytest.mark.parametrize(
    "right, question", [("My name is Priya.", "What is my name?"), ("I work as a pharmacist.", "What's my job?")]
)
def test_the_likelihood_is_measured_for_a_fact_with_frequent_or_linked_words(right, question):
    others = [f"We own {thing}." for thing in "land boats hens bees goats tents drums kites looms maps".split()]
    assert recall_fact(question, [*others, right], Model({(right, question): 4.0}), Encoder()) == right


@settings(deadline=None)
@given(st.lists(st.sampled_from([f"My {w} is called {n}." for w in ("cat", "dog") for n in "Abel Bert Cleo".split()])))
def test_kept_facts_are_the_newest_distinct_ones_in_order(facts):
    kept = keep_facts(facts, 3)
    assert kept == [fact for i, fact in enumerate(facts) if fact in kept and fact not in facts[i + 1 :]]
    assert len(kept) == min(3, len(set(facts)))
    assert len(keep_facts([f"I own {i} cars." for i in range(MAX_FACTS + 9)])) == MAX_FACTS


@pytest.mark.parametrize("history", [[], [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")]])
def test_a_fact_stands_in_the_prompt_and_the_system_prompt_stays_first(history):
    dialogue = Dialogue("Where do I live?", "", history)
    shown = add_fact(dialogue, "I live in Rome.")
    assert shown.prompt == 'Earlier I told you: "I live in Rome."\nWhere do I live?'
    roles = [role for role, _ in history] + ["user", "assistant"] * 2  # the examples stand directly before the prompt
    assert [role for role, _ in shown.history] == roles
    assert dialogue.prompt == "Where do I live?"


@pytest.fixture
def large_model(monkeypatch):
    model = load_model("pocket")
    monkeypatch.setattr(model, "is_large", True)
    return model


def test_a_personalizer_finds_what_was_told_until_it_is_forgotten(large_model):
    me = Personalizer(large_model)
    me.observe_all([Dialogue("My dog is called Biscuit.", "Nice."), Dialogue("Boil an egg.", "Yes.")], progress=False)
    question = "What is the name of my dog?"
    fact, source = me.find_fact(question)
    assert fact == "My dog is called Biscuit." and source.prompt == fact
    assert me.find_fact("What is the name of the king?") == ("", None)
    me.observe(Dialogue("My sister Anjali's birthday is 14 March.", "Noted."))
    assert me.find_fact("When is Anjali's birthday?")[0] == "My sister Anjali's birthday is 14 March."
    off = Personalizer(large_model, memories=0)
    off.observe(Dialogue("My dog is called Biscuit.", "Nice."))
    assert off.find_fact(question) == ("", None)
    me.forget(text="Biscuit")
    assert me.find_fact(question) == ("", None)


def test_a_chat_says_which_fact_a_reply_read(large_model, tmp_path):
    with ChatSession(large_model, tmp_path / "talk") as session:
        for text in ("My dog is called Biscuit.", "What is the name of my dog?"):
            list(session.say(text))
        assert session.describe_memories() == 'from what you said: "My dog is called Biscuit."'
        assert "".join(handle_line(session, "/why")).endswith(f"\nthe newest reply is {session.describe_memories()}")
        assert session.me.turns[-1]["prompt"] == "What is the name of my dog?"
        list(session.say("Hello."))
        assert session.describe_memories() == "" and "newest reply" not in "".join(handle_line(session, "/why"))


@pytest.mark.parametrize("reacts", [False, True])
def test_a_reply_that_told_a_forgotten_fact_goes(large_model, reacts, tmp_path):
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("My dog is called Biscuit."))
        source = session.turns[0]["id"]
        session.open_conversation()
        list(session.say("Name a tree."))
        list(session.say("What is the name of my dog?", history=[]))
        if reacts:
            session.feedback("thumb_up", session.newest_id)
        report = session.forget(ids=[source])
        prompts = [row.dialogue.prompt for row in session.me.memory.dialogues.values()]
        assert prompts == ["Name a tree.", *["What is the name of my dog?"] * reacts]
        assert report.replies == 1 - reacts
        assert not any(source in str(event.content) for event in session.me.memory.events)


def test_a_program_that_asks_for_a_fact_keeps_its_own_history(large_model, tmp_path):
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("My dog is called Biscuit."))
        own = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Yes?")]
        shown = session.add_talk_memories(Dialogue("What is the name of my dog?", "", own), is_own=False)
    assert session.reply_fact and [turn for turn in shown.history if turn in own] == own


def test_a_correction_stands_for_each_equal_turn_of_a_talk(large_model, tmp_path):
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("Hello."))
        session.observe(Dialogue("Hello.", "", session.history(), time=2e9), session.reply)
        first, second = session.turns
        assert first["response"] == second["response"] and first["id"] != second["id"]
        session.correct(first["id"], "Good day to you.")
        replies = [text for role, text in session.correct_history(session.history()) if role == "assistant"]
        assert replies == ["Good day to you."] * 2


def test_other_languages_have_no_facts():
    set_language("german")
    try:
        assert find_facts("I live in Rome.") == [] and not asks_for_fact("Where do I live?")
    finally:
        set_language(None)
    assert find_facts("I live in Rome.") == ["I live in Rome."]
