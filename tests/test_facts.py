"Facts that a person states once: which sentences, which questions, which fact for which question."

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted_facts import find_facts_by_words
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.app.chat import handle_line
from personal_llm.base.core import Dialogue
from personal_llm.base.decoding import ReplyOptions
from personal_llm.base.models import load_model
from personal_llm.base.text import set_language
from personal_llm.buffer.facts import (
    MAX_FACTS,
    MAX_LIKELY_FACTS,
    UNKNOWN_REPLY,
    asks_for_fact,
    compute_scores,
    compute_similarities,
    find_facts,
    is_surely_unknown,
    keep_facts,
    quote_fact,
    read_plainly,
    recall_fact,
    select_facts,
)
from personal_llm.device.conversation import ChatSession
from personal_llm.device.personalizer import Personalizer


class Model:
    "A question is as likely after any fact, and a fact after any question, but for planted pairs."

    def __init__(self, planted: dict = {}, unknown: dict = {}):  # (fact, question) -> nats; question -> nats
        self.planted, self.unknown, self.calls, self.words = planted, unknown, 0, {}
        table = SimpleNamespace(weight=torch.eye(64))
        self.model = SimpleNamespace(get_input_embeddings=lambda: table)

    def tokenizer(self, text, **_):
        return dict(input_ids=[self.words.setdefault(word, len(self.words)) % 64 for word in text.split()])

    def nll(self, dialogues):
        self.calls += 1
        return np.array([[self.measure(d.prompt, d.response), 5] for d in dialogues])

    def measure(self, prompt, response):
        if response == UNKNOWN_REPLY:
            return self.unknown.get(prompt, 0.1)
        fact = prompt.split('"')[1] if '"' in prompt else response
        question = response if '"' in prompt else prompt
        return 10 - self.planted.get((fact, question), 0) / 2


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


def test_states_that_last_are_kept_and_what_others_wrote_is_not():
    for text in ("I'm 34.", "I need insulin every day.", "I have to take warfarin.", "I don't have a car."):
        assert find_facts(text) == [text], text
    assert find_facts("I live in Washington D.C. and I love it.") == ["I live in Washington D.C."]
    assert find_facts("I'm 34 and I have two kids.") == ["I'm 34.", "I have two kids."]
    for text in (
        "I need a flight to Rome.",
        "I have to go now.",
        "If I had a dog, my dog would be Rex.",
        "Suppose my name is Bo.",
        "# my password is hunter2",
        "I can't remember, what is it?",
        "Summarise this mail: Dear Tom, my name is Sarah. I live in Hull.",
        "The train is late, so when does it go?",
    ):
        assert find_facts(text) == [], text


def test_the_numbers_of_words():
    own, foreign = " ".join(["my"] + ["horse"] * 39), " ".join(["the horse"] * 10)
    assert find_facts(own) and not find_facts(own + " horse"), "a fact has 40 words at most"
    assert find_facts(foreign) and not find_facts(foreign + " runs"), "without my, the prompt has 20"


def test_questions_for_facts_and_for_advice():
    for prompt in ("Where do I live?", "What's my dog called?", "Remind me who my boss is.", "Hm. Which car do I own?"):
        assert asks_for_fact(prompt), prompt
    for prompt in ("Where should I live?", "What is rain?", "My dog is big.", "What if I fall?", "Tell me about Rome."):
        assert not asks_for_fact(prompt), prompt
    for prompt in ("Where do I find my Windows key?", "What's my next move?", "What is my best option here?"):
        assert not asks_for_fact(prompt), prompt


def test_a_question_has_its_word_of_the_first_person_before_a_comma():
    assert asks_for_fact("What do I do for a living?") and asks_for_fact("When do I have to see the dentist?")
    for prompt in (
        "Who built it, do we know?",
        "How do I boil an egg?",
        "What do I do if it breaks?",
        "Who is it, I ask?",
    ):
        assert not asks_for_fact(prompt), prompt


def test_scores_equal_a_sum_by_hand():
    facts, question = ["I own a horse.", "My sister is tall.", "We have two cats."], "Which animal do I ride?"
    model = Model({(facts[0], question): 6.0, (facts[2], question): -1.0})
    assert np.allclose(compute_scores(question, facts, model), [6.0, 0.0, -1.0])  # half in each direction
    assert model.calls == 2


def test_only_the_most_similar_facts_are_measured():
    facts = [f"My friend {name} is tall." for name in map(chr, range(97, 123))] + ["I ride a horse."] * 8
    scores = compute_scores("Which horse do I ride?", facts, Model())
    assert np.isfinite(scores).sum() == MAX_LIKELY_FACTS and np.isfinite(scores[-8:]).all()


def test_similarities_count_rare_words_more():
    facts = ["my horse", "my dog", "my cat"]
    first, *others = compute_similarities("my horse", facts, Model())
    assert np.isclose(first, 1.0) and np.isclose(*others, atol=1e-6)
    often, rare = np.log(1 + 0.5 / 3.5), np.log(1 + 2.5 / 1.5)  # three facts have *my*, one has *horse*
    assert np.isclose(others[0], (often - rare / 63) / (often + rare))  # unlike tokens of 64, less their mean


def test_the_likelihood_decides_between_facts_of_equal_words():
    question, facts = "Where does my sister live?", ["My sister Ada is tall.", "My sister Eva moved to Porto."]
    for right in facts:
        assert recall_fact(question, facts, Model({(right, question): 20.0})) == right


def test_a_question_that_no_fact_answers_gets_none_and_others_cost_no_pass():
    model = Model()
    assert recall_fact("When was I born?", ["I own a bookshop.", "We have two cats."], model) == ""
    assert model.calls == 3
    assert recall_fact("What is rain?", ["I own a bookshop."], model) == ""
    assert recall_fact("When was I born?", [], model) == ""
    assert model.calls == 3


def test_a_question_that_is_not_about_the_user_needs_a_better_fact():
    fact, question = "I run 5 km a day.", "How many calories do I burn when I run?"
    planted = {(fact, question): 12.0}
    assert recall_fact(question, [fact], Model(planted)) == fact
    assert recall_fact(question, [fact], Model(planted, {question: 2.0})) == ""
    assert recall_fact(question, [fact], Model(planted, {question: 1.3})) == fact  # 12 - 6 · 1.3 is 4.2
    assert recall_fact(question, [fact], Model(planted, {question: 1.4})) == ""


@pytest.mark.parametrize("gain, answer", [(8.0, 1), (9.9, 1), (10.1, 0)])
def test_the_newest_of_nearly_equal_facts_answers(gain, answer):
    facts, question = ["I live in Leeds.", "We moved to York last week."], "Where do I live?"
    assert recall_fact(question, facts, Model({(facts[0], question): gain, (facts[1], question): 8.0})) == facts[answer]


def test_a_question_of_a_name_is_about_a_person_whom_the_user_introduced():
    sister, flight = "My little sister Anjali's birthday is 14 March.", "I have a flight to Oslo on Friday."
    assert select_facts("When is Anjali's birthday?", [flight, sister]) == [sister]
    cat, age = "I have a cat, and her name is Mochi.", "Mochi turned six in May."
    assert select_facts("How old is Mochi?", [flight, cat, age, sister]) == [cat, age]
    assert asks_for_fact("whats my wifes name") and asks_for_fact("Where’s my car?")
    for question in ("When is Ada's birthday?", "Where is Oslo?", "Tell me about Anjali.", "What is Python?"):
        assert select_facts(question, [flight, sister]) == [], question


def test_what_was_surely_not_told_is_said():
    loss = {"What is my blood type?": 0.24, "How many lengths do I swim?": 0.26, "What is rain?": 0.0}
    assert [is_surely_unknown(question, Model(unknown=loss)) for question in loss] == [True, False, False]
    assert quote_fact("I live in Rome.") == 'You told me: "I live in Rome."'


@settings(deadline=None)
@given(st.lists(st.sampled_from([f"My {w} is called {n}." for w in ("cat", "dog") for n in "Abel Bert Cleo".split()])))
def test_kept_facts_are_the_newest_distinct_ones_in_order(facts):
    kept = keep_facts(facts, 3)
    assert kept == [fact for i, fact in enumerate(facts) if fact in kept and fact not in facts[i + 1 :]]
    assert len(kept) == min(3, len(set(facts)))
    assert len(keep_facts([f"I own {i} cars." for i in range(MAX_FACTS + 9)])) == MAX_FACTS


@pytest.fixture
def large_model(monkeypatch):
    model = load_model("pocket")
    monkeypatch.setattr(model, "is_large", True)
    find_facts_by_words(monkeypatch)
    return model


def test_a_personalizer_finds_what_was_told_until_it_is_forgotten(large_model):
    me = Personalizer(large_model)
    me.observe_all([Dialogue("My dog is called Biscuit.", "Nice."), Dialogue("Boil an egg.", "Yes.")], progress=False)
    question = "What is the name of my dog?"
    _, fact, source = me.answer_from_facts(question)
    assert fact == "My dog is called Biscuit." and source.prompt == fact
    assert me.answer_from_facts("What is the name of the king?")[1:] == ("", None)
    me.observe(Dialogue("My sister Anjali's birthday is 14 March.", "Noted."))
    assert me.answer_from_facts("When is Anjali's birthday?")[1] == "My sister Anjali's birthday is 14 March."
    off = Personalizer(large_model, memories=0)
    off.observe(Dialogue("My dog is called Biscuit.", "Nice."))
    assert off.answer_from_facts(question) == ("", "", None)
    me.forget(text="Biscuit")
    assert me.answer_from_facts(question) == (UNKNOWN_REPLY, "", None)  # which is true again
    assert me.answer_from_facts(question, [("user", "It is Rex."), ("assistant", "Fine.")]) == ("", "", None)


def test_a_chat_says_which_fact_a_reply_read(large_model, tmp_path):
    with ChatSession(large_model, tmp_path / "talk") as session:
        for text in ("My dog is called Biscuit.", "What is the name of my dog?"):
            list(session.say(text))
        assert session.turns[-1]["response"] == 'You told me: "My dog is called Biscuit."'
        assert re.fullmatch(r"from what you said on \d{4}-\d\d-\d\d", session.describe_memories())
        assert "".join(handle_line(session, "/why")).endswith(f"\nthe newest reply is {session.describe_memories()}")
        assert session.me.turns[-1]["prompt"] == "What is the name of my dog?"
        list(session.say("Hello."))
        assert session.describe_memories() == "" and "newest reply" not in "".join(handle_line(session, "/why"))


@pytest.mark.parametrize("reaction", ["", "thumb_up", "better"])
def test_a_reply_that_told_a_forgotten_fact_goes(large_model, reaction, tmp_path):
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("My dog is called Biscuit."))
        source = session.turns[0]["id"]
        session.open_conversation()
        list(session.say("Name a tree."))
        list(session.say("What is the name of my dog?", history=[]))
        if reaction:
            session.feedback(reaction, session.newest_id, "It is Biscuit." * (reaction == "better"))
        report = session.forget(ids=[source])
        prompts = [row.dialogue.prompt for row in session.me.memory.dialogues.values()]
        assert prompts == ["Name a tree."] and report.replies == 1
        assert not any(source in str(event.content) for event in session.me.memory.events)


def test_a_program_that_asks_for_a_fact_keeps_its_own_history(large_model, tmp_path):
    question, own = "What is the name of my dog?", [("user", "Hello."), ("assistant", "Yes?")]
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("My dog is called Biscuit."))
        plan = session.plan_reply(Dialogue(question, "", own), is_own=False)
        assert plan.fixed == quote_fact("My dog is called Biscuit.") and list(plan.dialogue.history) == own
        told = [("user", "The name of my dog is Rex."), *own[1:]]
        plan = session.plan_reply(Dialogue(question, "", told), is_own=False)
        assert plan.fixed == quote_fact("The name of my dog is Rex.") and plan.memories == ()
        plan = session.plan_reply(Dialogue(question, "", [("system", "Reply in JSON."), *own]), is_own=False)
        assert plan.fixed == ""


def test_a_turn_that_quotes_a_message_of_a_program_is_observed(large_model, tmp_path):
    told = [("user", "My dog is called Biscuit."), ("assistant", "Nice.")]
    with ChatSession(large_model, tmp_path / "talk") as session:
        reply = "".join(session.say("What is the name of my dog?", history=told))
        assert reply == quote_fact("My dog is called Biscuit.")
        assert session.me.state.is_fixed(session.newest_id) and session.forget("Biscuit").dialogues == 1


def test_a_prompt_that_tells_what_it_asks_is_left_to_the_model(large_model):
    me = Personalizer(large_model)
    me.observe(Dialogue("I live in Leeds.", "Nice."))
    assert me.answer_from_facts("Where do I live?")[0] == quote_fact("I live in Leeds.")
    assert me.answer_from_facts("I moved to York. Where do I live now?") == ("", "", None)
    assert me.answer_from_facts("I have 12 eggs and break 3. How many do I have left?") == ("", "", None)


def test_nothing_learns_from_quotations(large_model, tmp_path):
    with ChatSession(large_model, tmp_path / "talk", early_questions=9) as session:
        list(session.say("My dog is called Biscuit."))
        for question in ("What is the name of my dog?", "Where did I go to school?"):
            session.open_conversation()
            list(session.say(question))
            assert session.plan.fixed and session.question is None
            session.feedback("thumb_up")
        told = {row.dialogue.response for row in session.me.memory.dialogues.values()} - {"Nice."}
        assert session.me.list_memories() == [] and {quote_fact("My dog is called Biscuit."), UNKNOWN_REPLY} <= told
        assert {d.prompt for d in session.me.list_stream()} == {"My dog is called Biscuit."}
        assert not {question, "What is the name of my dog?"} & {d.prompt for d in session.me.select_trainable()}
        list(session.retry())
        session.feedback("thumb_up")
        assert [d.prompt for d in session.me.list_memories()] == [question]  # the model wrote this one


def test_a_corrected_quotation_retires_its_fact(large_model, tmp_path):
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("I live in Leeds."))
        list(session.say("Where do I live?"))
        session.correct(session.newest_id, "I live in York now.")
        session.open_conversation()
        assert "".join(session.say("Where do I live?")) == "I live in York now."  # word by word
        assert "".join(session.say("Tell me where I live now, please.")) == quote_fact("I live in York now.")
        assert not any("Leeds" in fact for fact, _ in session.me.list_told())


def test_a_newer_fact_takes_the_place_of_a_correction(large_model, tmp_path):
    with ChatSession(large_model, tmp_path / "talk", clock=iter(range(1, 99)).__next__) as session:
        list(session.say("I live in Leeds."))
        list(session.say("Where do I live?"))
        session.correct(session.newest_id, "You live in Leeds, my dear.")
        assert "".join(session.say("Where do I live?")) == "You live in Leeds, my dear."
        list(session.say("My sister is tall."))
        assert "".join(session.say("Where do I live?")) == "You live in Leeds, my dear."
        list(session.say("We live in York now."))
        assert "".join(session.say("Where do I live?")) == quote_fact("We live in York now.")


def test_the_model_reads_no_quotation(large_model, tmp_path):
    fact = "My dog is called Biscuit."
    told = [
        ("user", "Hello."),
        ("assistant", "Yes?"),
        ("user", "What is my dog called?"),
        ("assistant", quote_fact(fact)),
    ]
    turns = [*told, ("user", "Where did I go to school?"), ("assistant", UNKNOWN_REPLY)]
    assert read_plainly(turns) == [*told[:3], ("assistant", fact)] and read_plainly(turns[:2]) == turns[:2]
    with ChatSession(large_model, tmp_path / "talk") as session:
        assert list(session.read_talk(Dialogue("Hm.", "", turns)).history) == read_plainly(turns)
        assert list(session.plan_reply(Dialogue("Hm.", "", turns), is_own=False).dialogue.history) == read_plainly(
            turns
        )


def test_a_fixed_reply_keeps_to_the_limits_of_a_program(large_model, tmp_path):
    question = "What is the name of my dog?"
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("My dog is called Biscuit."))
        whole = quote_fact("My dog is called Biscuit.")
        short = "".join(session.say(question, options=ReplyOptions(max_tokens=3)))
        assert whole.startswith(short) and 0 < len(short) < len(whole) and session.reply.end_reason == "length"
        assert "".join(session.say(question, options=ReplyOptions(stop=(" called",)))) == 'You told me: "My dog is'
        assert session.reply.end_reason == "stop"


def test_a_corrected_question_is_answered_by_the_correction_and_a_retry_by_the_model(large_model, tmp_path):
    question = "What is the name of my old dog?"
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("My dog is called Biscuit."))
        list(session.say(question))
        assert session.plan.fixed == session.turns[-1]["response"] == quote_fact("My dog is called Biscuit.")
        list(session.retry())
        assert session.turns[-1]["response"] not in ("", quote_fact("My dog is called Biscuit."))
        session.correct(session.newest_id, "He is Biscuit, my friend.")
        list(session.say(question))
        assert session.plan.fixed == session.plan.fact == "He is Biscuit, my friend."


@pytest.mark.parametrize("adapted", [False, True])
def test_the_base_model_quotes_nothing(large_model, adapted, tmp_path):
    with ChatSession(large_model, tmp_path / "talk") as session:
        list(session.say("My dog is called Biscuit."))
        list(session.say("What is the name of my dog?", with_adapter=adapted))
        assert bool(session.plan.fixed) == adapted


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
