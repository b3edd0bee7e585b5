"The state: computed anew from the events, it is the same."

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from candidates import ROUND

from personal_llm.base.core import Dialogue, InputError
from personal_llm.buffer.buffer import Buffer
from personal_llm.memory.feedback import SCOPES, Scope
from personal_llm.memory.gate import Evidence
from personal_llm.buffer.scoring import Scores
from personal_llm.device.archive import ARCHIVE_FILE, Archive, count_bytes, delete_dialogues
from personal_llm.device.forgetting import trim
from personal_llm.device.state import State, count_questions, decide, open_state, scores_to_dict
from personal_llm.device.evidence import describe_state, get_evidence, list_answered, list_unlearned


def make_scores(rng, model="base"):
    numbers = rng.random(4).round(6)
    fields = dict(eoe=numbers[0], eoe_scripts=numbers[1], dss=numbers[2], loss=1 + numbers[3])
    fields = {name: float(value) for name, value in fields.items()}
    domain = ["none", "medical/drug", "emotion/fear"][rng.integers(3)]
    return Scores(**fields, domain=domain, embedding=rng.normal(size=8).astype("f4"), tokens=9, model=model)


def open_new(policy, capacity=3):
    state = State(Archive(), Buffer(capacity, policy, seed=7))
    state.record("configured", base="base", model="m", settings=dict(max_questions=5), buffer=state.buffer.header())
    return state


def tell(state, number, talk="monday", turns=(), id="", **used):  # turns: ids; used: content of the event
    d = Dialogue(f"Question {number}?", f"Answer {number}.", id=id, time=float(number), origin="model")
    state.archive.add(d, talk, turns)
    state.record("said", d.id, **dict(reads=[], statements=[]) | used)
    return d


def react(state, id, kind="better", text="Short.", time=5.0, **content):
    text = text if kind == "better" else ""
    state.record("reacted", id, kind=kind, text=text, asked=False, time=time, **content)


def give_scores(state, d, rng, is_considered=False, **spent):
    state.record("scored", d.id, scores=scores_to_dict(make_scores(rng)), is_considered=is_considered, **spent)


def say(state, number, rng, is_considered=False):
    d = tell(state, number)
    give_scores(state, d, rng, is_considered)
    return decide(state, d.id)


def describe(state):
    buffer = state.buffer
    entries = [(e.dialogue, e.scores.embedding.tolist(), e.scores.loss) for e in buffer.entries]
    parts = [entries, buffer.arrivals, buffer.seen, buffer.random.bit_generator.state]
    own = [state.versions, state.reactions, state.asked, state.question, [*state.pending], state.rounds, state.talk]
    own += [state.cost, count_questions(state), get_evidence(state), state.list_own(), state.list_talks()]
    return parts + own + [list_answered(state), list_unlearned(state)]


@pytest.mark.parametrize(
    "kind, content", [("tuned", {}), ("scored", dict(scores={})), ("kept", {}), ("no such kind", {})]
)
def test_an_event_that_fails_leaves_archive_and_state_as_they_were(kind, content):
    state = open_new("fifo")
    rng = np.random.default_rng(0)
    for number in range(3):
        say(state, number, rng)
    d = tell(state, 3)
    before, events = str(describe(state)), list(state.archive.events)
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        state.record(kind, d.id, **content)
    assert str(describe(state)) == before and state.archive.events == events


def test_an_error_in_a_block_takes_back_all_of_it():
    state = open_new("fifo")
    before = str(describe(state))
    with pytest.raises(ZeroDivisionError), state.change():
        tell(state, 0)
        state.record("named", next(iter(state.archive.dialogues)), text="A title")
        1 / 0
    assert str(describe(state)) == before and state.titles == {} and not state.archive.dialogues


def test_nothing_waits_for_the_score_of_a_deleted_reply():
    state = open_new("fifo")
    state.archive.add(Dialogue("Question?", "", id="0", origin="model"), "monday")
    state.record("said", "0", reads=[], statements=[])
    react(state, "0", "up", is_new=True)
    assert not state.pending
    react(state, "0", text="Mine.", is_new=True)
    assert [*state.pending] == ["0"]
    state.record("taken_back", events=[state.acts[-1].number])
    assert not state.pending and len(state.buffer) == 0
    assert not open_state(state.archive).pending


def test_a_reply_written_anew_in_its_place_begins_without_a_past():
    state = open_new("fifo")
    tell(state, 0, id="0", is_silent=True, is_tuned=True)
    react(state, "0", "up")
    state.archive.add(Dialogue("Question 0?", "Another answer.", id="0", origin="model"), "monday")
    state.record("said", "0", reads=[], statements=[])
    for one in (state, open_state(state.archive)):
        assert one.newest("0").response == "Another answer." and not one.reactions and not one.acts
        assert [d.id for d in get_evidence(one).left_alone] == ["0"]


def test_a_turn_written_anew_is_the_newest_live_and_after_opening():
    state = open_new("fifo")
    for id in ("0", "1", "2"):
        tell(state, 0, id=id)
    state.archive.add(Dialogue("Question 1?", "Anew.", id="1", origin="model"), "monday", ["0"])
    state.record("said", "1", reads=[], statements=[])
    for one in (state, open_state(state.archive)):
        assert [*one.pending] == ["0", "2", "1"]


@pytest.mark.parametrize("is_undone", [False, True])
def test_an_answer_that_another_base_learned_is_not_learned_by_this_one(is_undone):
    state = open_new("answers-first")
    tell(state, 0, id="0")
    state.record("reacted", "0", kind="better", text="Mine.", asked=False, time=1.0)
    state.record("tuned", **ROUND | dict(adapter="a0"))
    state.record("learned", "0", is_answer=True)
    state.record("reacted", "0", kind="better", text="Mine again.", asked=False, time=2.0)
    state.record("configured", base="other", model="n", settings={})
    state.record("tuned", **ROUND | dict(adapter="a1"))
    state.record("learned", "0", is_answer=True)
    assert list_unlearned(state) == []
    if is_undone:
        state.record("undone")
    state.record("configured", base="base", model="m", settings={})
    assert list_unlearned(state) == list_unlearned(open_state(state.archive)) == ["0"]


def test_an_answer_that_changed_while_it_was_learned_is_not_learned():
    state = open_new("answers-first")
    tell(state, 0, id="0")
    react(state, "0", text="So.")
    state.record("tuned", **ROUND)
    state.record("learned", "0", is_old=True)
    assert list_unlearned(state) == ["0"] == list_unlearned(open_state(state.archive))


def test_a_reply_that_used_what_was_trimmed_stays_without_a_say():
    state = open_new("fifo")
    for number in range(2):
        tell(state, number, id=f"{number}", talk=f"talk {number}")
    tell(state, 2, "talk 2", id="2", reads=["0"])
    delete_dialogues(state.archive, ["0"])
    assert [d.id for d in get_evidence(open_state(state.archive)).left_alone] == ["1"]


def test_an_undone_answer_waits_for_a_new_one_and_the_status_counts_it():
    state = open_new("answers-first")
    say(state, 0, np.random.default_rng(3))
    (id,) = state.archive.dialogues
    for number in range(2):
        react(state, id, text=f"So {number}.")
        assert list_unlearned(state) == [id] and describe_state(state)["unlearned"] == 1
        state.record("tuned", **ROUND)
        state.record("learned", id)
        assert list_unlearned(state) == [] and describe_state(state)["unlearned"] == 0
    state.record("undone")
    state.record("undone")
    assert list_unlearned(state) == [], "a night does not learn it again"
    assert describe_state(state)["unlearned"] == 1, "but you can"
    for kind, text in (("up", ""), ("better", "So 1.")):
        react(state, id, kind, text)
        assert list_unlearned(state) == [], "the text is the same"
    react(state, id, text="So be it.")
    assert list_unlearned(state) == [id]


def test_a_turn_that_waits_for_its_score_stays_in_a_full_archive():
    state = open_new("fifo", capacity=1)
    for number in range(3):
        say(state, number, np.random.default_rng(number))
    d = tell(state, 9)
    seen = state.buffer.seen
    state = trim(state, 1)
    assert [*state.archive.dialogues] == [state.buffer.dialogues[0].id, d.id]
    again = open_state(state.archive)
    assert [*again.pending] == [d.id] and again.buffer.seen == seen


def test_an_archive_of_nothing_but_the_buffer_keeps_a_turn_that_waits_only_if_it_was_answered():
    state = open_new("fifo", capacity=1)
    say(state, 0, np.random.default_rng(0))
    answered, _ = tell(state, 1), tell(state, 2)
    react(state, answered.id, "up")
    state = trim(state, 0)
    assert [*state.archive.dialogues] == [state.buffer.dialogues[0].id, answered.id]


def test_talks_are_told_apart():
    state = open_new("fifo")
    for number, talk in enumerate(["a", "client", "b", "a", ""]):
        tell(state, number, talk=talk)
    assert {key: len(ids) for key, ids in state.list_talks().items()} == dict(a=2, b=1)
    assert [d.time for d in state.list_turns("a")] == [0.0, 3.0]
    assert [d.time for d in state.list_own()] == [0.0, 2.0, 3.0] and state.talk == "a"


def test_what_was_spent_is_added_up_and_a_deletion_keeps_the_sum():
    state = open_new("fifo")
    for number, seconds in enumerate((1.0, 2.0)):
        spent = dict(seconds=seconds, tokens=5)
        give_scores(state, tell(state, number), np.random.default_rng(number), spent=spent)
    for one in (state, open_state(state.archive)):
        assert (one.cost.seconds, one.cost.tokens) == (3.0, 10)
    state.pending.clear()
    assert trim(state, 0).cost.seconds == 3.0 and not state.archive.dialogues


def test_a_new_scope_is_one_row(monkeypatch):
    monkeypatch.setitem(SCOPES, "nowhere", Scope(group=""))
    state = open_new("fifo")
    tell(state, 0, id="0")
    state.record("reacted", "0", kind="better", text="Short.", scope="nowhere", asked=False, time=5.0)
    assert get_evidence(state) == Evidence() and [d.response for d in list_answered(state)] == ["Short."]
    state.record("scoped", "0", scope="everywhere")
    assert [d.response for d in get_evidence(state).everywhere] == ["Short."]


def test_a_reply_is_stored_with_the_corrections_that_it_had_read_and_not_with_later_ones():
    state = open_new("fifo")
    say(state, 1, np.random.default_rng(1))
    id = next(iter(state.archive.dialogues))
    react(state, id)
    shown = state.newest(id)
    d = Dialogue("And?", "So.", [("user", shown.prompt), ("assistant", "Short.")], id="later", origin="model")
    state.archive.add(d, "monday", [id])
    state.record("said", d.id, reads=[], statements=[])
    react(state, id, text="Longer.")
    state.archive.load()
    assert open_state(state.archive).newest("later") == d


def test_the_oldest_dialogues_leave_a_full_archive():
    state = open_new("fifo")
    rng = np.random.default_rng(0)
    for number in range(60):
        say(state, number, rng)
    said = [*state.archive.dialogues]
    budget = count_bytes(state.archive) // 2
    state = trim(state, budget)
    left = [*state.archive.dialogues]
    assert count_bytes(state.archive) <= budget and 3 < len(left) < 60 and left == said[-len(left) :]
    assert trim(state, budget) is state and state.buffer.seen == 60


def test_the_sums_of_an_earlier_version_are_read_and_added_to():
    state = open_new("fifo")
    for number in range(2):
        d = tell(state, number, id=f"{number}")
        scores = scores_to_dict(make_scores(np.random.default_rng(number)))
        sums = dict(seconds=2.0 * number, tokens=5, joules=1.0, requests=number)  # as they were written until then
        state.archive.append("scored", d.id, dict(scores=scores, is_considered=False, cost=sums))
        state = open_state(state.archive)
        decide(state, d.id)
    assert (state.cost.seconds, state.cost.requests) == (2.0, 1)
    state.record("reacted", "0", kind="up", text="", asked=True, time=9.0, spent=dict(seconds=1.5))
    for one in (state, open_state(state.archive)):
        assert (one.cost.seconds, one.cost.tokens, one.cost.requests) == (3.5, 5, 2)


def test_a_text_of_the_persons_own_is_no_reply_that_was_left_alone():
    state = open_new("fifo")
    state.archive.add(Dialogue("Question?", "Mine.", id="0", origin="user"), "monday")
    state.record("said", "0", reads=[], statements=[])
    assert get_evidence(state) == Evidence()


def test_each_fine_tune_allows_as_many_questions_as_there_are_bins():
    state = open_new("fifo")
    state.record("configured", base="base", model="m", settings={})
    for number in range(2):
        d = tell(state, number)
        state.record("asked", d.id, is_open=False)
        assert count_questions(state) == 2
        state.record("tuned", **ROUND | dict(adapter=f"a{number}", requests=number + 1))
        assert count_questions(state) == 3


def test_an_act_from_before_a_failed_change_can_be_taken_back():
    state = open_new("fifo")
    state.record("instructed", number=1, text="Be brief.", time=0.0)
    with pytest.raises(ZeroDivisionError), state.change():
        1 / 0
    state.record("taken_back", events=[state.acts[-1].number])
    assert state.instructions == open_state(state.archive).instructions == {}


def test_a_folder_made_by_an_earlier_state_of_the_package_opens_with_all_that_it_knew(tmp_path):
    "`old_folder.sql` was written on an earlier day by other code, of a chat with the model pocket."
    connection = sqlite3.connect(tmp_path / ARCHIVE_FILE)
    connection.executescript(Path(__file__).with_name("old_folder.sql").read_text(encoding="utf-8"))
    connection.close()
    state = open_state(Archive(tmp_path))
    evidence = {name: [d.response for d in group] for name, group in vars(get_evidence(state)).items()}
    assert evidence == dict(
        answers=["In short: Rome.", "In short: Lima."],
        here=["In short: Madrid."],
        everywhere=["In short: Shakespeare."],
        left_alone=["I'm glad you told"],  # later replies used corrections, which counted as left alone then
        plain=[],
        wanted=[],
    )
    talks = [[state.newest(id).prompt for id in ids] for ids in state.list_talks().values()]
    assert [len(talk) for talk in talks] == [1, 1, 1, 1, 2, 1, 1]
    assert talks[4:6] == [["Write a poem about the sea.", "And one about the moon."], ["How long do I boil an egg?"]]
    assert [one.text for one in state.instructions.values()] == ["Be brief."]
    assert state.scopes["55bfc877b4fdd731"] == "here" and state.buffer.seen == 8
    answers = [text for name in ("answers", "here", "everywhere") for text in evidence[name]]
    others = ["I'm glad you told", "I see. I'm", "You can boil an"]
    assert sorted(d.response for d in state.buffer.dialogues) == sorted(answers + others)


@pytest.mark.parametrize(
    "kind, change, words",
    [("tuned", dict(adapter="../victim"), "damaged .an adapter in '../victim'"), ("tuned", dict(adapter=""), "damaged")]
    + [("tuned", dict(adapter="/tmp/victim"), "damaged"), ("tuned", dict(adapter="adapters/../../x"), "damaged")]
    + [
        ("tuned", dict(adapter=7), "damaged"),
        ("said", dict(reads=5), "damaged"),
        ("scored", dict(scores={}), "damaged"),
    ]
    + [("scored", dict(scores=dict(embedding="?")), "damaged"), ("learned", {}, "damaged"), ("odd", {}, "damaged")],
)
def test_a_folder_of_somebody_else_or_a_damaged_event_is_one_line_and_deletes_nothing(tmp_path, kind, change, words):
    victim = tmp_path / "victim"
    victim.mkdir()
    archive = Archive(tmp_path / "me")
    state = State(archive, Buffer(3))
    state.record("configured", base="base", model="m", settings={}, buffer=state.buffer.header())
    tell(state, 1)
    content = dict(reads=[], statements=[]) | dict(ROUND) | change
    archive.append(kind, next(iter(archive.dialogues)), content)
    archive.close()
    with pytest.raises(InputError, match=words) as raised:
        open_state(Archive(tmp_path / "me"))
    assert "restore a copy" in str(raised.value) and "\n" not in str(raised.value) and victim.is_dir()


def test_an_event_that_is_no_json_is_one_line(tmp_path):
    archive = Archive(tmp_path)
    archive.append("asked_habit", "", dict(ids=[]))
    archive.execute("UPDATE events SET content = '{'")
    archive.close()
    with pytest.raises(InputError, match="memory.sqlite: damaged .*restore a copy"):
        Archive(tmp_path)


def test_the_newer_correction_is_the_later_one_also_if_the_clock_goes_back():
    state = open_new("answers-first")
    for number, time in ((1, 50.0), (2, 20.0), (3, 30.0)):
        react(state, tell(state, number).id, text=f"Form {number}.", time=time)
    assert [d.response for d in get_evidence(state).answers] == ["Form 1.", "Form 2.", "Form 3."]


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '{"buffer": 3}'])
def test_a_damaged_event_is_one_line(tmp_path, content):
    archive = Archive(tmp_path)
    State(archive, Buffer(3)).record("configured", base="", model="m", settings={}, buffer=Buffer(3).header())
    archive.close()
    with sqlite3.connect(tmp_path / ARCHIVE_FILE) as rows:
        rows.execute("UPDATE events SET content = ?", (content,))
    with pytest.raises(InputError, match=f"{ARCHIVE_FILE}: damaged"):
        open_state(Archive(tmp_path))
