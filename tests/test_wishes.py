"""A change of mind: which corrections a new one replaces, in replies, for the adapter, in a fine-tune, and on disk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue
from personal_llm.base.models import load_model
from personal_llm.buffer import retrieval, wishes
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.retrieval import retrieve_in_talk
from personal_llm.buffer.wishes import KnownCorrection, choose_wish, compute_help, find_replaced
from personal_llm.device import personalizer
from personal_llm.device.conversation import ChatSession
from personal_llm.device.personalizer import Personalizer
from personal_llm.device.replay import describe_training_benefit, read_state
from personal_llm.tuning.config import TuningConfig

ACHES = ["My knee hurts after a run.", "My elbow hurts after a run.", "My back hurts after a run."]
SMALL = dict(synthetic=0, config=TuningConfig(steps=2, validation=0))
OLD, NEW = "In short: rest it.", "* Rest it.\n* Walk a little."


def known(wish=0, help=1.0, prompt="a", **fields):
    return KnownCorrection(Dialogue(prompt, "b", origin="annotated", **fields), wish, help)


@pytest.fixture
def helps(monkeypatch):
    "Set the help of the next correction to each wish, by the first prompt of the corrections that it is compared with."
    table = {}
    monkeypatch.setattr(wishes, "compute_help", lambda model, correction, earlier: table[earlier[0].prompt])
    return table


def test_the_help_of_a_correction_is_the_mean_fall_of_the_losses():
    class Model:
        def nll(self, dialogues):
            return np.array([[6.0 - 2 * bool(d.history) - 1 * ("x" in d.prompt), 2] for d in dialogues])

    correction = Dialogue("q", "r", origin="annotated")
    assert compute_help(Model(), correction, [Dialogue("x", "y", (("user", "old talk"),)), Dialogue("a", "b")]) == 1.0


def test_a_correction_joins_the_wish_that_it_helps_most(helps):
    earlier = [known(0, None, "old"), known(0, 1.0), known(0, 1.2), known(1, None, "new"), known(1, 0.8), known(1, 1.0)]
    helps |= dict(old=0.6, new=0.9)
    assert choose_wish(None, known().dialogue, earlier) == (1, 0.9)
    helps |= dict(new=0.4)
    assert choose_wish(None, known().dialogue, earlier) == (0, 0.6)
    helps |= dict(old=0.5)
    assert choose_wish(None, known().dialogue, earlier) == (2, None)


def test_a_wish_of_one_correction_is_measured_by_what_is_usual_for_all(helps):
    earlier = [known(0, None, "old"), known(0, 1.0), known(0, 1.0), known(1, None, "new")]
    helps |= dict(old=0.1, new=0.6)
    assert choose_wish(None, known().dialogue, earlier) == (1, 0.6)
    helps |= dict(new=0.4)
    assert choose_wish(None, known().dialogue, earlier) == (2, None)


def test_only_the_newest_corrections_of_a_wish_are_compared(monkeypatch):
    seen = []
    monkeypatch.setattr(wishes, "compute_help", lambda model, c, earlier: seen.append(earlier) or 1.0)
    choose_wish(None, known().dialogue, [known(prompt=str(i)) for i in range(9)])
    assert [d.prompt for d in seen[0]] == ["5", "6", "7", "8"]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("xyz")), min_size=1, max_size=9))
def test_the_replaced_wishes_are_those_of_a_naive_twin(rows):
    estimate = lambda corrections, prompt: 0.9 if prompt in {d.prompt for d in corrections} else 0.2
    replaced = find_replaced([known(wish, prompt=subject) for wish, subject in rows], estimate)
    for i, (old, _) in enumerate(rows):
        subjects = {subject for wish, subject in rows if wish == old}
        ended = max(k for k, row in enumerate(rows) if row[0] == old)
        later = {wish for wish, _ in rows[ended + 1 :]} - {wish for wish, _ in rows[: ended + 1]}
        prompts = {subject for wish, subject in rows if wish in later}
        assert (i in replaced) == bool(prompts & subjects)


@pytest.fixture
def me(monkeypatch, tmp_path):
    "A personalizer of a model that counts as large, with two corrections of an old wish; a new one begins with a star."
    pocket = load_model("pocket")
    monkeypatch.setattr(pocket, "is_large", True)
    monkeypatch.setattr(retrieval, "MIN_CHECKED_ANSWERS", 1000)
    choose = lambda model, correction, earlier: (int(correction.response.startswith("*")), 1.0 if earlier else None)
    monkeypatch.setattr(personalizer, "choose_wish", choose)
    me = Personalizer(pocket, Buffer(8), folder=tmp_path / "me", **SMALL)
    for text in ACHES[:2]:
        correct(me, text, OLD)
    return me


def correct(me, prompt, better):
    d = Dialogue(prompt, "Walk more.", origin="model", time=float(len(me.memory.dialogues)))
    me.observe(d)
    me.react(d.id, "better", better)
    return d


def responses(me, prompt, adapter=None):
    return {d.response for d in me.retrieve_memories(prompt, adapter=adapter)}


def test_a_new_wish_replaces_the_old_one_from_the_next_reply_on(me):
    foot = "My foot hurts after a run."
    assert responses(me, foot) == {OLD}
    new = correct(me, ACHES[2], NEW)
    assert responses(me, foot) == {NEW}
    assert responses(me, ACHES[0]) == {NEW}, "also to a question that an old correction answered"
    assert len(me.list_memories()) == 3, "the old corrections stay stored"
    me.react(new.id, "better", OLD)
    assert responses(me, foot) == {OLD}
    me.react(new.id, "better", NEW)
    me.forget(ids=[new.id])
    assert responses(me, foot) == {OLD} and me.find_replaced_roots() == set()


def test_a_return_to_the_old_wish_lets_both_hold(me):
    correct(me, ACHES[2], NEW)
    correct(me, "My ear hurts after a run.", OLD)
    assert responses(me, "My foot hurts after a run.") == {OLD, NEW}


def test_wishes_are_read_from_disk(me, tmp_path):
    correct(me, ACHES[2], NEW)
    me.save()
    read = lambda folder: [(c.wish, c.help) for c in read_state(folder).list_corrections()]
    assert read(tmp_path / "me") == [(0, None), (0, 1.0), (1, 1.0)]


def test_a_fact_about_wishes_is_no_condition_for_a_reaction(me):
    "Programs before wishes recorded none."
    event = next(event for event in me.memory.events if event.kind == "reacted")
    del event.content["wish"], event.content["help"]
    me.state._apply_all()
    assert [(c.wish, c.help) for c in me.state.list_corrections()] == [(0, None), (0, 1.0)]


def test_the_adapter_reads_only_what_it_has_not_learned(me):
    foot = "My foot hurts after a run."
    me.finetune(progress=False)
    improved = me.rounds[-1].best_loss < me.rounds[-1].start_loss
    assert responses(me, foot, me.adapter) == (set() if improved else {OLD})
    assert improved and responses(me, foot) == {OLD}, "the base model reads them"
    assert responses(me, ACHES[0].lower(), me.adapter) == {OLD}, "the very same question"
    later = "In short: ice it."
    correct(me, ACHES[2], later)
    assert responses(me, foot, me.adapter) == {later}
    me.react(me.state.find_root(me.buffer.dialogues[0].id), "better", "In short: rest it for a week.")
    assert "In short: rest it for a week." in responses(me, foot, me.adapter), "corrected again, so not learned"


def test_a_fine_tune_that_changed_nothing_has_learned_nothing(me, monkeypatch):
    me.finetune(progress=False)
    last = me.rounds[-1]
    object.__setattr__(last, "best_loss", last.start_loss)
    assert me.find_learned_roots() == set()
    assert responses(me, "My foot hurts after a run.", me.adapter) == {OLD}


def test_an_outdated_adapter_does_not_write_and_the_next_fine_tune_begins_anew(me):
    foot = "My foot hurts after a run."
    me.finetune(progress=False)
    assert me.choose_adapter(foot) is me.adapter
    new = correct(me, ACHES[2], NEW)
    assert me.choose_adapter(foot) is None
    assert [d.response for d in me.select_trainable() if d.origin == "annotated"] == [NEW]
    me.finetune(progress=False)
    assert me.rounds[-1].start == "" and me.find_learned_roots() == {new.id}
    assert {d.id for d in me.list_memories()} <= me.rounds[-1].settled_ids, "nothing is left for another fine-tune"
    assert "nothing new" in describe_training_benefit(me.state)
    assert me.choose_adapter(foot) is me.adapter
    correct(me, "My ear hurts after a run.", NEW)
    me.finetune(progress=False)
    assert me.rounds[-1].start == "last"


def test_a_small_model_asks_for_no_wish(me, monkeypatch):
    monkeypatch.setattr(me.model, "is_large", False)
    monkeypatch.setattr(personalizer, "choose_wish", None)
    correct(me, ACHES[2], NEW)
    assert me.state.list_corrections()[-1].wish == 0


def test_a_chat_tells_what_a_correction_replaces_and_who_wrote(me, tmp_path):
    with ChatSession(me.model, tmp_path / "chat", **SMALL) as chat:
        for text, better, told in zip(ACHES, (OLD, OLD, NEW), ("", "", "unlike 2 earlier ones")):
            chat.open_conversation()
            "".join(chat.say(text))
            chat.correct(chat.turns[-1]["id"], better)
            assert told in " ".join(chat.messages_to_user) and bool(told) == bool(chat.messages_to_user)
        assert chat.count_new_answers() == 3
        chat.me.finetune(progress=False)
        assert chat.count_new_answers() == 0, "replaced corrections ask for no further fine-tune"
        "".join(chat.say("My foot hurts after a run."))
        learned = chat.me.find_learned_roots()
        told = "from a fine-tune on your corrections" if learned else "from 1 of your corrections"
        assert chat.describe_memories() == told


def test_in_a_talk_the_same_question_is_answered_alone_and_only_there(me):
    correct(me, ACHES[2], "In short: stretch.")
    memories, embedder = me.list_memories(), me.embedder or retrieval.PromptEmbedder(me.model)
    find = lambda *prompts: {d.response for d in retrieve_in_talk(memories, list(prompts), embedder)}
    assert find("Hello.", ACHES[2].upper() + " ") == {"In short: stretch."}
    assert find(ACHES[2], "My foot hurts after a run.") == {OLD, "In short: stretch."}
