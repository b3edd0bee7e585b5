"""A change of mind: which corrections a new one replaces, in replies, for the adapter, in a fine-tune, and on disk."""

import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.buffer import retrieval, wishes
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.retrieval import retrieve_in_talk
from personal_llm.buffer.wishes import KnownCorrection, choose_wish, compute_help, find_replaced
from personal_llm.device import conversation, personalizer
from personal_llm.device.conversation import ChatSession
from personal_llm.device.personalizer import Personalizer, load_personalizer
from personal_llm.device.replay import describe_training_benefit, read_state
from personal_llm.tuning.config import TuningConfig

ACHES = ["My knee hurts after a run.", "My elbow hurts after a run.", "My back hurts after a run."]
SMALL = dict(synthetic=0, config=TuningConfig(steps=2, validation=0))
OLD, NEW = "In short: rest it.", "* Rest it.\n* Walk a little."
POCKET = load_model("pocket")


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
    helps |= dict(new=0.3)
    assert choose_wish(None, known().dialogue, earlier) == (0, 0.6)
    helps |= dict(old=0.4)
    assert choose_wish(None, known().dialogue, earlier) == (2, None)


def test_a_wish_that_begins_is_measured_by_a_quarter_nat_and_not_by_the_others(helps):
    earlier = [known(0, None, "old"), known(0, 1.0), known(0, 1.0), known(1, None, "new")]
    helps |= dict(old=0.39, new=0.1)
    assert choose_wish(None, known().dialogue, earlier) == (1, 0.1)
    helps |= dict(new=0.09)
    assert choose_wish(None, known().dialogue, earlier) == (2, None)
    earlier = [known(0, None, "old"), known(0, 1.0)]  # nothing is usual yet
    helps |= dict(old=-1.0)
    assert choose_wish(None, known().dialogue, earlier) == (0, -1.0)


def test_only_the_newest_corrections_of_a_wish_are_compared(monkeypatch):
    seen = []
    monkeypatch.setattr(wishes, "compute_help", lambda model, c, earlier: seen.append(earlier) or 1.0)
    choose_wish(None, known().dialogue, [known(prompt=str(i)) for i in range(10)])
    assert [d.prompt for d in seen[0]] == [*"23456789"]


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
    monkeypatch.setattr(personalizer, "MIN_LEARNED_DIALOGUES", 1)
    monkeypatch.setattr(conversation, "continues_subject", lambda model, question: True)
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


def test_a_fine_tune_on_few_answers_does_not_replace_memory(me, monkeypatch):
    monkeypatch.setattr(personalizer, "MIN_LEARNED_DIALOGUES", 3)
    me.finetune(progress=False)
    assert len(me.find_learned_roots()) == 2 and me.find_learned_roots(without_memory=True) == set()
    assert responses(me, "My foot hurts after a run.", me.adapter) == {OLD}
    assert "and through memory" in describe_training_benefit(me.state)


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


def test_a_correction_without_a_wish_makes_no_adapter_outdated(me, monkeypatch):
    me.state.wishes = dict(old=(0, 1.0), music=(2, 1.0), long=(None, None), new=(1, 1.0))
    monkeypatch.setattr(Personalizer, "find_learned_roots", lambda me: {"old", "music"})
    monkeypatch.setattr(Personalizer, "find_replaced_roots", lambda me: {"old"})
    assert not me._is_outdated([0.1, 0.5, 0.9, 0.2]), "the nearest one with a wish is about music"
    assert me._is_outdated([0.1, 0.5, 0.9, 0.6])


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


def test_a_question_that_was_corrected_within_a_talk_is_the_same_if_it_has_four_words(me, tmp_path):
    with ChatSession(me.model, tmp_path / "chat", **SMALL) as chat:
        for text, better in ((ACHES[0], OLD), (ACHES[2], "In short: stretch."), ("And tomorrow?", "In short: walk.")):
            "".join(chat.say(text))
            chat.correct(chat.turns[-1]["id"], better)
        "".join(chat.say(ACHES[2]))
        assert {d.response for d in chat.plan.memories} == {"In short: stretch."}
        chat.open_conversation()
        "".join(chat.say("And tomorrow?"))
        assert {d.response for d in chat.plan.memories} != {"In short: walk."}


def test_a_correction_that_is_too_long_for_memory_replaces_nothing(me, monkeypatch):
    foot = "My foot hurts after a run."
    long = correct(me, ACHES[2], "* Rest it.\n" * 60)
    assert me.state.wishes[long.id] == (None, None) and me.find_replaced_roots() == set()
    assert responses(me, foot) == {OLD}
    assert responses(me, ACHES[2]) == {OLD}, "the same question, whose correction cannot be read"
    seen = []
    choose = personalizer.choose_wish
    monkeypatch.setattr(personalizer, "choose_wish", lambda *given: seen.extend(given[2]) or choose(*given))
    correct(me, "My ear hurts after a run.", NEW)
    assert [c.wish for c in seen] == [0, 0], "no new correction is compared with it"
    assert responses(me, foot) == {NEW}


def test_a_model_that_fails_records_no_correction(me, monkeypatch):
    def fail(*given):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(personalizer, "choose_wish", fail)
    d = Dialogue(ACHES[2], "Walk more.", origin="model", time=9.0)
    me.observe(d)
    events, cost = len(me.memory.events), me.cost.to_dict()
    with pytest.raises(RuntimeError):
        me.react(d.id, "better", NEW)
    assert (len(me.memory.events), me.cost.to_dict(), d.id in me.state.versions) == (events, cost, False)


def test_the_thread_of_a_fine_tune_reads_no_prompt_with_the_model_that_replies(me, monkeypatch):
    threads, find = [], Personalizer.find_replaced_roots
    note = lambda self: threads.append(threading.current_thread().name) or find(self)
    monkeypatch.setattr(Personalizer, "find_replaced_roots", note)
    with ChatSession(me.model, me.folder.parent / "chat", **SMALL) as chat:
        "".join(chat.say(ACHES[0]))
        chat.correct(chat.turns[-1]["id"], OLD)
        chat.learn()
        chat.finish_training()
        assert len(chat.me.rounds) == 1 and "learning" not in threads


def test_a_forgotten_correction_that_a_fine_tune_left_out_leaves_no_id(me):
    old = me.state.get_dialogue(next(iter(me.state.wishes)))
    correct(me, ACHES[2], NEW)
    me.finetune(progress=False)
    assert old.id in me.rounds[-1].settled_ids
    me.save()
    me.forget(ids=[me.state.get_root(old)])
    assert len(me.rounds) == 1
    assert not any(old.id.encode() in file.read_bytes() for file in me.folder.rglob("*") if file.is_file())


def test_a_reply_by_an_adapter_from_elsewhere_is_not_from_your_corrections(me, tmp_path):
    me.finetune(progress=False)
    with ChatSession(me.model, tmp_path / "chat", **SMALL) as chat:
        chat.me.use_adapter(me.adapter)
        "".join(chat.say("Hello."))
        assert chat.reply.adapter_name != me.model.base and chat.describe_memories() == ""


def test_a_fine_tune_begins_at_the_folder_of_an_adapter_from_elsewhere(me):
    "As in `chat --adapter mine`, and then /learn."
    me.finetune(progress=False)
    other = Personalizer(me.model, Buffer(8), **SMALL)
    other.use_adapter(me.adapter.path)
    correct(other, ACHES[0], OLD)
    other.finetune(progress=False)
    assert other.rounds[-1].start == "last" and other.find_learned_roots() <= set(other.memory.dialogues)


def test_a_thumb_is_no_change_of_mind(me, monkeypatch, tmp_path):
    "A thumb may change for which prompts a wish holds, and so what it replaces."
    monkeypatch.setattr(Personalizer, "find_replaced_roots", lambda self: {row["kind"] for row in self.feedback_rows})
    with ChatSession(me.model, tmp_path / "chat", **SMALL) as chat:
        "".join(chat.say(ACHES[0]))
        chat.feedback("thumb_down")
        assert chat.messages_to_user == []


def test_a_reply_reads_a_memory_with_half_a_character(me):
    correct(me, ACHES[2], "In short: rest \ud800 it.")
    assert "In short: rest \ud800 it." in responses(me, "My foot hurts after a run.")
    me.reply("My foot hurts after a run.", max_tokens=2)


def test_a_dialogue_that_comes_twice_keeps_its_correction(me):
    d = correct(me, ACHES[2], NEW)
    wishes, memories = dict(me.state.wishes), me.list_memories()
    me.observe(d)
    assert (me.state.wishes, me.list_memories()) == (wishes, memories)
    assert sum(me.state.get_root(other) == d.id for other in me.buffer.dialogues) == 1


KINDS = ("better", "thumb_up", "thumb_down", "retry", "again", "forget", "reload")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.integers(0, 2)), max_size=12)


@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_wishes_are_those_of_the_corrections_in_their_order(steps):
    choose = lambda model, correction, earlier: (int(correction.response[-1]), None)
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        patched.setattr(POCKET, "is_large", True)
        patched.setattr(personalizer, "choose_wish", choose)
        me = Personalizer(POCKET, Buffer(3), folder=Path(folder) / "me", **SMALL)
        stream = [Dialogue(text, "Walk more.", origin="model") for text in (*ACHES, "Play a song.")]
        me.observe_all(stream, progress=False)
        twin = {}  # root -> wish
        for kind, place, number in steps:
            d = stream[place]
            with suppress(InputError):  # forgotten, or the same reaction again
                if kind == "forget":
                    me.forget(ids=[d.id])
                    twin.pop(d.id, None)
                elif kind == "again":
                    me.observe(d)
                elif kind == "reload":
                    me.save()
                    me = load_personalizer(me.folder, POCKET)
                else:
                    me.react(d.id, kind, f"Rest {number}" if kind == "better" else "")
                    if kind == "better":
                        twin.pop(d.id, None)
                        twin[d.id] = number
            assert [(root, wish) for root, (wish, _) in me.state.wishes.items()] == [*twin.items()]
            annotated = {me.state.get_root(row) for row in me.list_memories() if row.origin == "annotated"}
            assert annotated <= {*twin} and all(c.dialogue.origin == "annotated" for c in me.state.list_corrections())
            assert not twin or me.find_replaced_roots() < {*twin}, "the newest wish always holds"
        before = [*me.state.wishes.items()], me.state.versions, me.buffer.dialogues
        me.state.replay()
        assert ([*me.state.wishes.items()], me.state.versions, me.buffer.dialogues) == before
