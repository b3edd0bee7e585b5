"What people do with a reply: stored, shown, forgotten with the dialogue; bad input is one line and changes nothing."

import itertools
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.app.chat import handle_line
from personal_llm.base.core import InputError
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.feedback import FEEDBACK_KINDS, MAX_FEEDBACK_CHARACTERS, SLOTS, TEXT_KINDS
from personal_llm.buffer.feedback import Feedback, add_feedback
from personal_llm.buffer.feedback import estimate_dissatisfaction
from personal_llm.buffer.policies import get_policy
from personal_llm.device.conversation import ChatSession
from personal_llm.device import memory
from personal_llm.device.memory import open_store
from personal_llm.device.replay import folder_status, read_state
from personal_llm.tuning.config import TuningConfig
from tiny import shared

BETTER = "Dear friend, rest today."


def start(folder, policy="active", **more):
    settings = dict(synthetic=0, replay=0, config=TuningConfig(steps=2), buffer=Buffer(4, get_policy(policy))) | more
    return ChatSession(shared("llama"), folder, itertools.count(1.0).__next__, **settings)


def say(talk, *lines):
    return ["".join(handle_line(talk, line)) for line in lines]


def everything(talk) -> str:
    "All that a session would store, as text."
    state = talk.me.state
    rows = [d.to_dict() for d in state.buffer.dialogues], state.feedback_rows, state.turns, sorted(state.asked_ids)
    return json.dumps(
        [rows, vars(state.cost) | dict(seconds=0, joules=0, peak_memory=0, tokens=0, forward=0)], default=str
    )


# rows

acts = st.tuples(st.sampled_from(FEEDBACK_KINDS), st.sampled_from("abc"), st.sampled_from(["yes", "no", "perhaps"]))


@settings(deadline=None)
@given(st.lists(acts, max_size=40))
def test_rows_keep_one_a_slot_and_refusals_change_nothing(acts):
    rows = []
    for kind, id, text in acts:
        before, copy = rows, json.dumps(rows)
        try:
            rows = add_feedback(rows, Feedback(kind, id, text if kind in TEXT_KINDS else "", "never"))
        except InputError as error:
            assert "\n" not in str(error) and rows is before
        assert json.dumps(before) == copy, "the old list stays as it is"
        slots = [(row["dialogue_id"], SLOTS.get(row["kind"], row["kind"])) for row in rows]
        assert len(slots) == len(set(slots))
    assert [vars(Feedback(**row)) for row in json.loads(json.dumps(rows))] == rows
    chances = estimate_dissatisfaction(rows)
    assert chances.keys() == {row["dialogue_id"] for row in rows} and all(0 < p < 1 for p in chances.values())


def test_a_text_of_the_longest_length_is_taken():
    assert Feedback("edit", "a", "x" * MAX_FEEDBACK_CHARACTERS)
    with pytest.raises(InputError, match="at most 20,000"):
        Feedback("edit", "a", "x" * (MAX_FEEDBACK_CHARACTERS + 1))


# in a session


def test_feedback_is_stored_shown_and_forgotten_with_its_dialogue(tmp_path):
    with start(tmp_path / "me") as talk:
        say(talk, "My knee hurts.", "My hip hurts.")
        assert say(talk, "/better #2 Call Zanzibarquux, dear.", "/down")[0].startswith("thank you")
        assert talk.me.status()["feedback"] == dict(better=1, thumb_down=1)
    assert folder_status(tmp_path / "me")["feedback"] == dict(better=1, thumb_down=1)
    with ChatSession(shared("llama"), tmp_path / "me") as talk:
        row = talk.me.feedback_rows[0]
        assert row["kind"] == "better" and row["text"].startswith("Call") and row["rejected"]
        assert row["time"] > 0 and row["is_given"] and row["probability"] == 1.0
        talk.forget("zanzibarquux")
        assert talk.me.status()["feedback"] == dict(thumb_down=1), "the other dialogue keeps its thumb"
    assert b"anzibarquux" not in b"".join(p.read_bytes() for p in (tmp_path / "me").rglob("*") if p.is_file())


def test_a_reaction_stays_when_its_dialogue_leaves_the_buffer(tmp_path):
    "The memory still holds both, until you forget the dialogue."
    with start(tmp_path / "me", "fifo", buffer=Buffer(1, "fifo")) as talk:
        say(talk, "My knee hurts.")
        id = talk.turns[-1]["id"]
        talk.feedback("better", id, BETTER)
        say(talk, "My hip hurts.")
        assert not talk.me.is_kept(id) and talk.me.feedback_rows[0]["text"] == BETTER
        talk.feedback("copy", id)
        talk.forget(ids=[id])
        assert talk.me.feedback_rows == [] and BETTER.encode() not in (tmp_path / "me" / "memory.db").read_bytes()


BAD = {  # name -> (a call that must fail, words of the line)
    "never said": (lambda talk, id: talk.feedback("thumb_up", "0" * 16), "it never came"),
    "an unknown kind": (lambda talk, id: talk.feedback("no such kind", id), "the kind of feedback is 'no such kind'"),
    "no text": (lambda talk, id: talk.feedback("edit", id), "no text"),
    "spaces only": (lambda talk, id: talk.feedback("better", id, " \n"), "no text"),
    "a text for a thumb": (lambda talk, id: talk.feedback("thumb_up", id, "x"), "it takes no text"),
    "no text but a number": (lambda talk, id: talk.feedback("edit", id, 5), "the text is 5"),
    "an edit of 10 MB": (lambda talk, id: talk.feedback("edit", id, "x" * 10**7), "10,000,000 characters"),
    "a probability of two": (lambda talk, id: talk.feedback("thanks", id, probability=2), "the probability is 2"),
    "equal replies": (lambda talk, id: talk.feedback("choice", id, "Yes.", rejected=" Yes. "), "are equal"),
    "no choice open": (lambda talk, id: talk.choose(1), "no choice is open"),
    "no question open": (lambda talk, id: talk.answer("x"), "no question is open"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_feedback_is_one_line_and_changes_nothing(name, tmp_path):
    with start(tmp_path / "me") as talk:
        say(talk, "My knee hurts.")
        before, (call, words) = everything(talk), BAD[name]
        with pytest.raises(InputError, match=words) as caught:
            call(talk, talk.turns[-1]["id"])
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
        assert everything(talk) == before


def test_feedback_on_a_forgotten_turn_and_before_any_turn(tmp_path):
    with start(tmp_path / "me") as talk:
        assert say(talk, "/up", "/retry", "/choose") == ["there is no reply yet; write something first"] * 3
        say(talk, "My knee hurts.")
        id = talk.turns[-1]["id"]
        talk.undo()
        with pytest.raises(InputError, match="forgotten"):
            talk.feedback("thumb_down", id)
        assert talk.me.feedback_rows == []


def test_ten_thousand_thumbs_leave_one_row(tmp_path):
    with start(tmp_path / "me") as talk:
        say(talk, "My knee hurts.")
        talk.feedback("thumb_down")
        before = everything(talk)
        talk.save = lambda: pytest.fail("a refused thumb writes nothing")
        for _ in range(10_000):
            with pytest.raises(InputError, match="already"):
                talk.feedback("thumb_down")
        del talk.save
        assert everything(talk) == before and len(talk.me.feedback_rows) == 1


def test_two_answers_to_one_question(tmp_path):
    with start(tmp_path / "me") as talk:
        say(talk, "My knee hurts.")
        talk.me.open_question(talk.turns[-1]["id"])
        assert say(talk, f"/better {BETTER}") == ["thank you; noted, and /learn trains on it"]
        before = everything(talk)
        with pytest.raises(InputError, match="no question is open"):
            talk.answer(BETTER)
        with pytest.raises(InputError, match="the same feedback already"):
            talk.feedback("better", text=BETTER)
        assert everything(talk) == before and talk.me.status()["feedback"] == dict(better=1)


# what a reaction does


def test_thumbs_turn_and_a_disliked_reply_is_no_target(tmp_path):
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, "My knee hurts.", "My hip hurts.")
        origins = lambda: [d.origin for d in talk.me.buffer.dialogues]
        say(talk, "/up", "/down #2")
        assert origins() == ["model", "approved"]
        assert [d.prompt for d in talk.me.collect_training_dialogues()] == ["My hip hurts."]
        say(talk, "/down")
        assert origins() == ["model", "model"] and talk.me.status()["feedback"] == dict(thumb_down=2)
        with pytest.raises(InputError, match="nothing to learn from"):
            talk.me.collect_training_dialogues()
        say(talk, f"/better {BETTER}")
        assert [d.response for d in talk.me.collect_training_dialogues()] == [BETTER]


def test_a_retry_takes_the_place_of_the_reply_in_every_store(tmp_path):
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, "My knee hurts.", "/down")
        turn = talk.turns[-1]
        (second,) = say(talk, "/retry")
        assert second != turn["response"] and talk.turns[-1] == turn | dict(response=second)
        assert [(d.id, d.response) for d in talk.me.buffer.dialogues] == [(turn["id"], second)]
        (row,) = talk.me.feedback_rows
        assert (row["kind"], row["rejected"]) == ("retry", turn["response"]), "the thumb was about the first reply"
        say(talk, "/retry", "And my hip?")
        assert len(talk.me.feedback_rows) == 1 and talk.me.buffer.dialogues[-1].history[1][1] != second
        talk.undo()
        talk.forget(ids=[turn["id"]])
        assert len(talk.me.buffer) == 0 and talk.me.feedback_rows == []


def test_a_retry_takes_an_approval_back(tmp_path):
    with start(tmp_path / "me", "active") as talk:
        say(talk, "My knee hurts.", "/up")
        assert [d.origin for d in talk.me.list_memories()] == ["approved"]
        (second,) = say(talk, "/retry")
        assert talk.me.list_memories() == [], "the approval was of the first reply"
        say(talk, "/up")
        assert [(d.origin, d.response) for d in talk.me.list_memories()] == [("approved", second)]


def test_a_broken_off_retry_changes_nothing(tmp_path):
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, "My knee hurts.")
        before, pieces = everything(talk), talk.retry()
        next(pieces)
        pieces.close()
        assert everything(talk) == before


@pytest.mark.parametrize("command", ["/choose", "/retry"])
@pytest.mark.parametrize("num_same", range(5))
def test_no_user_sees_two_equal_replies(command, num_same, tmp_path, monkeypatch):
    "Up to three more draws, with other seeds; then an error alone."
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, "My knee hurts.")
        first, seeds = talk.turns[-1]["response"], []
        other = first.rpartition(" ")[0] + " indeed, and more."

        def stream(session, options):
            seeds.append(options.seed)
            text = first if len(seeds) <= num_same else other
            session.reply = SimpleNamespace(text=text)
            yield from (text[i : i + 3] for i in range(0, len(text), 3))

        monkeypatch.setattr(ChatSession, "stream_reply", stream)
        (shown,) = say(talk, command)
        assert len({*seeds}) == len(seeds) == min(num_same + 1, 4)
        if num_same == 4:
            assert shown == "the model gave the same reply again; ask in other words"
            assert talk.choice is None and talk.turns[-1]["response"] == first and talk.me.feedback_rows == []
        else:
            assert shown == (f"1: {first}\n2: {other}\nwrite 1 or 2: which one is better?", other)[command == "/retry"]


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_choice_keeps_the_chosen_reply_and_the_pair(number, tmp_path):
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, "My knee hurts.")
        first = talk.turns[-1]["response"]
        (shown,) = say(talk, "/choose")
        second = talk.choice[1]
        assert shown == f"1: {first}\n2: {second}\nwrite 1 or 2: which one is better?"
        assert say(talk, number) == ["thank you; noted, and /learn trains on it"] and talk.choice is None
        chosen, rejected = (first, second) if number == "1" else (second, first)
        (row,) = talk.me.feedback_rows
        assert (row["kind"], row["text"], row["rejected"]) == ("choice", chosen, rejected)
        (d,) = talk.me.buffer.dialogues
        assert (d.response, d.origin) == (chosen, "approved") and talk.turns[-1]["response"] == chosen


def test_a_choice_is_dropped_by_the_next_line(tmp_path):
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, "My knee hurts.", "/choose", "Never mind.")
        assert talk.choice is None and talk.me.feedback_rows == [] and len(talk.turns) == 2


def test_a_damaged_reaction_is_a_damaged_state(tmp_path):
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, "My knee hurts.", "/up")
    for damage in (dict(kind="no such kind"), dict(probability="x"), dict(is_given=5), {}):
        with open_store(tmp_path / "me", writes=True) as store:
            row = store.execute("SELECT * FROM events WHERE kind = 'reacted'").fetchone()
            changed = (*row[:3], json.dumps(json.loads(row[3]) | damage))
            update = "UPDATE events SET content = ?, checksum = ? WHERE number = ?"
            store.execute(update, (changed[3], memory._hash_row(changed), row[0]))
        with pytest.raises(InputError) if damage else nullcontext():
            read_state(tmp_path / "me")
        with open_store(tmp_path / "me", writes=True) as store:
            store.execute(update, (row[3], row[4], row[0]))
    assert read_state(tmp_path / "me").feedback_rows[0]["kind"] == "thumb_up"


# what a next turn says

TALK = ("How can I treat a sore knee?", "that is not what I asked, shorter please", "thank you, that helped a lot")


def test_a_complaint_and_thanks_are_inferred_with_their_probabilities(tmp_path):
    with start(tmp_path / "me", "fifo", reads_turns=True) as talk:
        say(talk, *TALK)
        first, second, _ = talk.turns
        rows = {(row["kind"], row["dialogue_id"]): row for row in talk.me.feedback_rows}
        assert rows.keys() == {("complaint", first["id"]), ("thanks", second["id"]), ("better", first["id"])}
        assert all(not row["is_given"] and 0.5 <= row["probability"] <= 1 for row in rows.values())
        better = rows["better", first["id"]]
        assert (better["text"], better["rejected"]) == (second["response"], first["response"])
        corrected = next(d for d in talk.me.buffer.dialogues if first["id"] in d.parents)
        assert corrected.origin == "annotated" and corrected.prompt == TALK[0] and not corrected.history
        talk.forget(ids=[second["id"]])
        assert talk.me.feedback_rows == [], "the correction was a copy of the forgotten reply"
        assert not any(first["id"] in d.parents for d in talk.me.buffer.dialogues)


def test_turns_are_read_only_if_wanted_and_a_lost_reply_is_no_error(tmp_path, monkeypatch):
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, *TALK)
        assert talk.me.feedback_rows == []
    with start(tmp_path / "other", buffer=Buffer(1, "fifo"), reads_turns=True) as talk:
        say(talk, TALK[0])
        monkeypatch.setattr(talk.me, "react", lambda *given, **more: talk.me.state.find_root("lost" * 4))
        say(talk, TALK[1])
        assert talk.turns[-1]["prompt"] == TALK[1]


def test_the_same_thumb_again_computes_nothing(tmp_path):
    with start(tmp_path / "me", "fifo") as talk:
        say(talk, "My knee hurts.", "/down")
        talk.me.score = lambda dialogues: pytest.fail("refused before any forward pass")
        talk.me.buffer.clear()
        with pytest.raises(InputError, match="already"):
            talk.feedback("thumb_down")
