"The clock of a device goes back, jumps a year or stands still: nothing changes but the dates."

import itertools
from contextlib import closing

import pytest
from devices import TALK, bytes_below, fake_tune, open_talk, say

from personal_llm.base import ledger
from personal_llm.device import personalizer
from personal_llm.device.forgetting import forget_folder
from personal_llm.device.store import read_state

NOW, YEAR = 1.7e9, 365 * 86400.0
CLOCKS = dict(
    goes_back=[NOW + n - YEAR * (n > 2) for n in range(99)],
    jumps=[NOW + n + YEAR * (n > 2) for n in range(99)],
    swings=[NOW + n + YEAR * (n % 3 - 1) for n in range(99)],
    stands_still=[NOW] * 99,
    begins_in_1970=[float(n) if n < 4 else NOW + n for n in range(1, 99)],
    is_before_1970=[-5.0 - n for n in range(99)],
)


def live(folder, times) -> dict:
    "Six turns, an answer, a reaction and two sessions; return all that must not depend on the clock."
    clock = iter(times).__next__
    for part in (TALK[:4], TALK[4:8]):
        with open_talk(folder, clock) as talk:
            for d in part:
                say(talk, d)
                if talk.question:
                    talk.answer("a better answer")
            talk.feedback("thumb_up")
            me = talk.me
    names = {turn["id"]: turn["prompt"] for turn in me.session["turns"]}
    return dict(
        turns=[turn["prompt"] for turn in me.session["turns"]],
        decisions=[(row.step, row.kept, row.reason) for row in me.buffer.log],
        kept=[(d.prompt, d.response, d.origin, tuple(d.history)) for d in me.buffer.dialogues],
        questions=[names[id] for id in sorted(me.asked_ids, key=[*names].index)],
        reactions=[(names[row["dialogue_id"]], row["kind"], row["text"]) for row in me.feedback_rows],
        left=me.questions_left(),
    )


@pytest.mark.parametrize("name", CLOCKS)
def test_decisions_questions_and_reactions_are_those_of_a_true_clock(name, tmp_path):
    found, wanted = live(tmp_path / "a", CLOCKS[name]), live(tmp_path / "b", itertools.count(NOW))
    assert found == wanted and found["questions"] and len(found["turns"]) == 8


@pytest.mark.parametrize("name", CLOCKS)
def test_what_was_learned_is_saved_read_and_continued(name, tmp_path, monkeypatch):
    monkeypatch.setattr(personalizer, "tune", fake_tune)
    live(tmp_path, CLOCKS[name])
    with closing(open_talk(tmp_path, iter(CLOCKS[name]).__next__)) as talk:
        talk.me.finetune(progress=False)
        parents, kept = talk.me.rounds[-1].parents, [d.id for d in talk.me.buffer.dialogues]
    state = read_state(tmp_path)
    assert state.rounds[-1].parents == parents and [d.id for d in state.buffer.dialogues] == kept


@pytest.mark.parametrize("name", CLOCKS)
def test_forget_goes_by_the_dates_that_were_written_down(name, tmp_path):
    "A turn goes if it or a reaction to it has an earlier date, also out of the histories of the others."
    live(tmp_path, CLOCKS[name])
    turns, rows = read_state(tmp_path).session["turns"], read_state(tmp_path).feedback_rows
    ids = {row["dialogue_id"] for row in rows if row["time"] < NOW + 2}
    early = [turn for turn in turns if turn["time"] < NOW + 2 or turn["id"] in ids]
    if early:
        report = forget_folder(tmp_path, before=NOW + 2)
        assert report.turns == len(early)
    left, content = read_state(tmp_path).session["turns"], bytes_below(tmp_path)
    assert [turn["id"] for turn in left] == [turn["id"] for turn in turns if turn not in early]
    assert not any(turn["prompt"].encode() in content for turn in early if turn["prompt"].count(" ") > 1)


def test_the_ledger_is_in_the_order_of_what_left(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for moment in (NOW, NOW - YEAR, NOW + YEAR):
        monkeypatch.setattr(ledger.time, "time", lambda moment=moment: moment)
        with ledger.record_egress("push", f"me/{moment:.0f}"):
            pass
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert [row["time"] for row in ledger.read_ledger()] == [NOW, NOW - YEAR, NOW + YEAR]
