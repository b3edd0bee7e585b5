"The loop on a fake model: budgets, where fine-tunes begin, what is refused."

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from devices import LEXICONS, TALK, Fake, User, begun_from, fake_tune, start, told, watch, weights_hash
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import ended

from personal_llm.base.adapters import WEIGHTS_FILE
from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.device import personalizer
from personal_llm.device.personalizer import Personalizer, load_personalizer
from personal_llm.device.replay import PersonalizerState
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.policies import POLICIES
from personal_llm.selection.ranking import Ranking
from personal_llm.tuning.config import TuningConfig


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    monkeypatch.setattr(personalizer, "tune", fake_tune)


# ---- asking


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    capacity=st.integers(1, 6),
    when=st.sampled_from(["freeze", "arrival"]),
    requests=st.none() | st.integers(0, 9),
    every=st.none() | st.integers(1, 12),
    blocks=st.lists(st.integers(0, 9), max_size=4),
    odd=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_requests_never_exceed_the_budget(policy, capacity, when, requests, every, blocks, odd):
    "And nobody is asked twice about the same dialogue, nor again about a corrected answer."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalizer, "tune", fake_tune)
        user = User(lambda d: odd and len(d.prompt) % 2)
        me, place = start(None, capacity, policy, user, ask_when=when, max_questions=requests, finetune_every=every), 0
        for n in blocks:
            watch(me, TALK[place : place + n])
            place += n
            if len(me.buffer):
                before = len(user.asked)
                me.finetune(progress=False)
                assert when == "arrival" or len(user.asked) - before <= capacity
    assert len(user.asked) == me.cost.requests <= (place if requests is None else requests)
    assert len(set(user.asked)) == len(user.asked) and set(user.asked) <= {d.id for d in TALK}
    assert me.buffer.seen == len(me.buffer.log) == place
    assert [c.requests for c in me.rounds] == sorted(c.requests for c in me.rounds)


def test_a_correction_replaces_the_answer():
    user = User(lambda d: d.id != TALK[1].id)
    me = start(user=user, max_questions=3)
    watch(me, TALK[:4])
    me.finetune(progress=False)
    assert user.asked == [d.id for d in TALK[:3]], "the oldest first"
    kept = me.buffer.dialogues
    assert (kept[0].response, kept[0].parents, kept[0].origin) == ("better: answer 0", (TALK[0].id,), "annotated")
    assert (kept[1].response, kept[1].parents, kept[1].origin) == (TALK[1].response, (TALK[1].id,), "approved")
    assert kept[3] == TALK[3]
    me.finetune(progress=False)
    assert len(user.asked) == 3 and me.synthesis.dialogues[0].response == "better: answer 0"


def test_a_correction_of_line_breaks_is_a_correction_and_one_of_spaces_is_none():
    me = start(policy="active")
    watch(me, TALK[:2])
    for d, text, origin in ((TALK[0], "answer\n0", "annotated"), (TALK[1], " answer  1 ", "approved")):
        me.react(d, "better", text)
        (kept,) = [kept for kept in me.buffer.dialogues if d.id in (kept.id, *kept.parents)]
        assert kept.origin == origin and kept.response == (text if origin == "annotated" else d.response)


@pytest.mark.parametrize("method", ["learn_from_answer", "learn_from_reaction", "decide_question"])
def test_an_event_that_fails_is_not_in_the_memory_and_changes_nothing(method, monkeypatch):
    me = start(policy="active", user=User())
    watch(me, TALK[:3])
    act = (
        (lambda: me.observe(TALK[3])) if method == "decide_question" else (lambda: me.react(TALK[0], "better", "Rest."))
    )
    describe_policy = lambda: (me.buffer.policy.seen, me.buffer.policy.correction_model.mean.tolist())
    describe = lambda: ([*me.memory.events], [*me.feedback_rows], sorted(me.asked_ids), describe_policy())
    before = describe()
    with monkeypatch.context() as patch:
        patch.setattr(type(me.buffer.policy), method, lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            act()
    assert describe() == before
    act()
    assert [event.number for event in me.memory.events] == [*range(1, me.memory.number + 1)]
    assert PersonalizerState(me.memory, Buffer(4, "active")).buffer.dialogues == me.buffer.dialogues


def test_a_policy_that_fails_leaves_a_memory_that_loads(monkeypatch, tmp_path):
    me = start(tmp_path, policy="active", user=User())
    watch(me, TALK[:3])
    kind = type(me.buffer.policy)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "decide_question", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            me.observe(TALK[3])
        assert TALK[3].id not in me.memory.dialogues, "its text is not stored, so there is nothing to forget"
        patch.undo()
        patch.setattr(kind, "after_finetune", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            me.finetune(progress=False)
    assert me.rounds == [] and "tuned" not in {event.kind for event in me.memory.events}
    me.save()
    again = load_personalizer(tmp_path, Fake(), User(), LEXICONS)
    with pytest.raises(InputError, match="no reply"):
        again.react(TALK[3], "thumb_up")
    again.observe(TALK[3])
    again.react(TALK[3], "thumb_up")
    assert TALK[3].id in again.memory.dialogues


def test_a_disliked_dialogue_is_not_learned_wherever_it_came_from():
    me = start(policy="fifo")
    watch(me, [replace(TALK[0], origin="user"), TALK[1]])
    assert {d.id for d in me.select_trainable()} == {d.id for d in me.buffer.dialogues}
    for d in me.buffer.dialogues:
        me.react(d.id, "thumb_down")
    assert me.select_trainable() == []


def test_assigned_settings_are_checked_and_completed():
    me = start(policy="fifo")
    before, count = me.settings, len(me.memory.events)
    policy_asks = replace(before, ask_when="policy")
    for wrong in (None, "x", dict(replay=0), policy_asks):
        with pytest.raises(InputError):
            me.settings = wrong
        assert me.settings is before and len(me.memory.events) == count
    me.settings = replace(before, synthetic=None, early_questions=None)
    assert me.settings == replace(before, synthetic=1, early_questions=0)
    assert len(me.memory.events) == count, "nothing is new"


def test_an_annotator_that_fails_is_asked_again_and_costs_nothing():
    answers = iter([OSError("the window was closed"), None, "better"])

    def shaky(dialogue):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    me = start(user=shaky, capacity=2)
    watch(me, TALK[:2])
    with pytest.warns(UserWarning, match="OSError; the question is left for later"):
        me.finetune(progress=False)
    assert me.cost.requests == 1 and len(me.rounds) == 1, "the second question was answered, nothing was lost"
    me.finetune(progress=False)
    assert me.cost.requests == 2 and "better" in [d.response for d in me.buffer.dialogues]


# ---- the order of things


@given(
    every=st.integers(1, 15),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    policy=st.sampled_from(["sdss", "reservoir"]),
)
@settings(max_examples=6, deadline=None)
def test_every_n_at_the_right_places(every, cuts, policy):
    "However the stream is handed over, fine-tunes come after every N-th dialogue and the log is the same."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalizer, "tune", fake_tune)
        whole, parts = (start(None, 5, policy, finetune_every=every) for _ in range(2))
        watch(whole, TALK)
        edges = sorted({0, *cuts, 40})
        for a, b in zip(edges, edges[1:]):
            if b - a == 1:
                parts.observe(TALK[a])
            else:
                watch(parts, TALK[a:b])
    assert [c.seen for c in whole.rounds] == list(range(every, 41, every)) == [c.seen for c in parts.rounds]
    assert whole.buffer.log == parts.buffer.log and whole.buffer.dialogues == parts.buffer.dialogues
    assert len({c.scores.model for c in whole.buffer.entries}) == 1


def test_the_scripts_policy_clears_and_goes_on():
    me = start(policy="sdss-scripts")
    watch(me, TALK[:10])
    me.finetune(progress=False)
    assert len(me.buffer) == 0 and me.rounds[0].kept == 4
    assert all(d.reason == "a bin was free" for d in watch(me, TALK[10:14]))
    assert me.buffer.entries[0].scores.model != "base"


def test_nothing_to_learn_from():
    with pytest.raises(InputError, match="the buffer is empty"):
        start().finetune()
    me = start()
    watch(me, [Dialogue("a question", " ")])
    with pytest.raises(InputError, match="no kept dialogue has an answer"):
        me.finetune(progress=False)


def test_what_was_cut_for_length_is_counted_and_said(monkeypatch):
    def tune(model, dialogues, *given):
        model.truncated = {d.id: 9 for d in dialogues[:3]} | dict(older=1)
        return fake_tune(model, dialogues, *given)

    monkeypatch.setattr(personalizer, "tune", tune)
    me = start()
    watch(me, TALK[:4])
    me.finetune(progress=False)
    assert me.rounds[0].cut == 3 and "3 cut for length" in me.status()["last"]


def test_costs_add_up():
    me = start(user=User())
    watch(me, TALK[:6])
    assert me.cost.forward == 6
    me.finetune(progress=False)
    assert me.cost.forward == 6 + 4 and me.cost.requests == 4, "four bins were read again"
    assert me.rounds[0].seconds >= 1.0 and me.rounds[0].steps == 2 and me.rounds[0].num_validation_dialogues == 0


# ---- where a fine-tune begins; the choice itself is tested in test_warm_start


class Shelf:
    "A library of three adapters, each a file that holds its name."

    base, space = "base", SimpleNamespace(id="planted")

    def __init__(self, folder):
        self.folder = folder
        for name in "abc":
            (folder / name).mkdir(parents=True)
            (folder / name / WEIGHTS_FILE).write_text(name)

    def __getitem__(self, name):
        return SimpleNamespace(adapter=self.folder / name)


def plant(monkeypatch, chosen="a", calls=None):
    "A warm start that chooses a name, or nobody."
    calls = [] if calls is None else calls

    def warm_start(model, library, dialogues, out=None, seed=0):
        calls.append(([d.response for d in dialogues], model.active_adapter))
        if len(dialogues) < 3:
            raise InputError("give more")
        weights = {chosen: 1.0} if chosen else {}
        said = dict(weights=weights, style="mostly *concise*", reason="nearest of 3", explanation=dict(words=["brief"]))
        adapter = library[chosen].adapter if chosen else None
        return SimpleNamespace(adapter=adapter, to_dict=lambda: said, cost=Cost(seconds=120, tokens=7, forward=3))

    monkeypatch.setattr(personalizer, "warm_start", warm_start)
    monkeypatch.setattr(personalizer, "Library", Shelf)
    return calls


@pytest.mark.parametrize("chosen", ["a", None])
def test_a_warm_start(chosen, monkeypatch, tmp_path):
    calls = plant(monkeypatch, chosen)
    shelf = Shelf(tmp_path / "shelf")
    me = start(tmp_path / "me", user=User(), start=shelf)
    watch(me, TALK[:6])
    first = me.finetune(progress=False)
    assert begun_from(first) == (weights_hash(shelf.folder / chosen) if chosen else None)
    assert calls == [([f"better: answer {i}" for i in (4, 5, 2, 3)], "base")], "corrected, by the bare model"
    warm = me.status()["warm"]
    weights = {chosen: 1.0} if chosen else {}
    assert warm == dict(weights=weights, style="mostly *concise*", reason="nearest of 3")
    assert me.rounds[0].seconds >= 121 and me.cost.tokens == 7, "what the choice cost counts"
    second = me.finetune(progress=False)
    assert begun_from(second) == weights_hash(first) and len(calls) == 1, "only the first one is warm"
    assert me.rounds[1].warm is None and me.status()["warm"] == warm
    me.save()
    again = load_personalizer(tmp_path / "me", Fake(), None, LEXICONS)
    assert told(again) == told(me) and again.status()["warm"] == warm
    assert me.rounds[0].start == ("library" if chosen else ""), "an abstention begins at the base model"
    again.forget(ids=[TALK[4].id])
    lines = again.retrain(progress=False)
    if chosen:
        assert lines == ["adapter 000: not rebuilt; it began from a library; give this library as the start"]
    else:
        assert len(lines) == 2 and [c.start for c in again.rounds] == ["", "last"], "no library is needed"
        assert begun_from(SimpleNamespace(path=again.rounds[0].adapter)) is None


def test_every_with_a_library_is_warm_once(monkeypatch, tmp_path):
    calls = plant(monkeypatch)
    me = start(tmp_path / "me", finetune_every=4, start=Shelf(tmp_path / "shelf"))
    watch(me, TALK[:12])
    assert len(calls) == 1 and [bool(c.warm) for c in me.rounds] == [True, False, False]


def test_a_warm_start_that_fails_changes_nothing(monkeypatch, tmp_path):
    plant(monkeypatch)
    shelf = Shelf(tmp_path / "shelf")
    me = start(tmp_path / "me", start=shelf)
    watch(me, TALK[:2])
    before = told(me)
    with pytest.raises(InputError, match="give more"):
        me.finetune(progress=False)
    assert told(me) == before and not [*(tmp_path / "me" / "adapters").rglob("*.json")]
    shelf.base = "other"
    with pytest.raises(InputError, match="library is for base other, this model is base"):
        start(start=shelf)


def test_a_fine_tune_that_is_killed_leaves_no_merge(monkeypatch, tmp_path):
    "Without one it makes no folder for one; the next process deletes the merge, and no folder of yours."
    temporary, shelf = tmp_path / "temporary", Shelf(tmp_path / "shelf")
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    merge = tmp_path / "me" / "adapters" / "000" / "merge"

    def write_merge(found, out=None):
        shutil.copytree(shelf["a"].adapter, out)
        return out

    def kill(begin) -> int:
        me = start(tmp_path / "me", replaces=True)
        watch(me, TALK[:5])
        me.save()
        with monkeypatch.context() as patch:
            patch.setattr(personalizer, "get_start_adapter", write_merge)
            patch.setattr(personalizer, "tune", lambda *given: os.kill(os.getpid(), signal.SIGKILL))
            if not (child := os.fork()):
                me.finetune(start=begin, progress=False)
            return ended(child)

    list_temporary = lambda: [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]
    assert kill(None) == -signal.SIGKILL and not list_temporary() and not merge.exists()
    assert kill(ranking(shelf, None, dict(a=0.5, b=0.3))) == -signal.SIGKILL and merge.is_dir()
    yours = tmp_path / "me" / "adapters" / "mine" / "merge"
    yours.mkdir(parents=True)
    me = load_personalizer(tmp_path / "me", Fake(), None, LEXICONS)
    me.save()
    assert not merge.parent.exists() and yours.is_dir() and not list_temporary()
    monkeypatch.setattr(personalizer, "get_start_adapter", write_merge)
    monkeypatch.setattr(personalizer, "Library", Shelf)
    me.finetune(start=ranking(shelf, None, dict(a=0.5, b=0.3)), progress=False)
    assert merge.parent.is_dir() and not merge.exists()


def ranking(shelf, best, weights):
    return Ranking(best, ("a", "b"), (0.1, 0.2), weights, not (best or weights), "because", library=shelf)


def test_fine_tunes_begin_where_they_are_told_to(monkeypatch, tmp_path):
    calls, shelf = plant(monkeypatch), Shelf(tmp_path / "shelf")
    merges = []

    def start_of(found, out=None):
        merges.append(found.weights)
        return shelf[found.best].adapter if found.best else shelf["c"].adapter if found.weights else None

    monkeypatch.setattr(personalizer, "get_start_adapter", start_of)
    me = start(tmp_path / "me")
    watch(me, TALK[:5])
    first = me.finetune(progress=False)
    a, b, c = (weights_hash(shelf.folder / name) for name in "abc")
    for begin, expected in [
        ("last", weights_hash(first)),
        (shelf.folder / "b", b),
        (SimpleNamespace(path=shelf.folder / "b"), b),
        (None, None),
        (shelf, a),
        (ranking(shelf, "b", {}), b),
        (ranking(shelf, None, dict(a=0.5, b=0.3)), c),
        (ranking(shelf, None, {}), None),
    ]:
        assert begun_from(me.finetune(start=begin, progress=False)) == expected, begin
    assert calls[0][1] == "base", "the adapter of before is not attached"
    assert [c.warm and c.warm["weights"] for c in me.rounds[-4:]] == [dict(a=1.0), dict(b=1.0), dict(a=0.5, b=0.3), {}]
    assert [c.start for c in me.rounds[-4:]] == ["library"] * 3 + [""]
    assert me.rounds[-1].warm["reason"] == "because" and json.dumps(me.rounds[-1].warm)
    assert len({c.adapter for c in me.rounds}) == 9


# ---- what is given wrongly


@pytest.mark.parametrize(
    "wrong",
    [
        dict(ask_when="never"),
        dict(ask_when=["freeze"]),
        dict(finetune_every=0),
        dict(finetune_every=-3),
        dict(finetune_every=2.5),
        dict(synthetic=-1),
        dict(synthetic="3"),
        dict(max_questions=-1),
        dict(max_questions=True),
        dict(seed=-1),
        dict(seed=10**30),
        dict(seed="0"),
        dict(config=8),
        dict(config=dict(steps=2)),
    ],
    ids=str,
)
def test_wrong_settings_are_one_line(wrong):
    with pytest.raises(InputError) as caught:
        start(**wrong)
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_wrong_objects_are_one_line():
    for wrong in (dict(buffer=32), dict(buffer="sdss"), dict(annotator="user")):
        with pytest.raises(InputError, match="give (an instance of Buffer|a function)"):
            Personalizer(Fake(), lexicons=LEXICONS, **wrong)
    assert Personalizer(Fake(), Buffer(2), lexicons=LEXICONS, config=TuningConfig(steps=1)).buffer.capacity == 2
    with pytest.raises(InputError, match="save: no folder"):
        start().save()


def test_two_runs_into_one_folder(tmp_path):
    "The second is refused before anybody is asked, whatever it wants."
    user = User()
    one, two = start(tmp_path / "me"), start(tmp_path / "me", user=user)
    watch(two, TALK[:4])
    acts = (lambda: two.finetune(progress=False), two.save, lambda: two.forget([TALK[0].id]))
    with one.locked():
        for act in acts:
            with pytest.raises(InputError, match="another run is at work"):
                act()
    assert user.asked == [] and len(two.buffer) == 4 and two.rounds == []
    for act in acts:
        act()


def test_methods_are_where_readers_look_for_them():
    for name in ("observe", "observe_all", "offer", "finetune", "save", "forget", "status"):
        assert getattr(Personalizer, name).__qualname__ == f"Personalizer.{name}"
    assert Path(personalizer.__file__).name == "personalizer.py"
