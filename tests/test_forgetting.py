"What is forgotten is in no byte of the folder, in no list of the memory, and in no adapter."

import gc
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from devices import LEXICONS, TALK, Fake, User, bytes_below, fake_tune, start, told, watch, weights_hash
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import every_kill

from personal_llm.base.adapters import ADAPTER_CARD_FILE, WEIGHTS_FILE
from personal_llm.base.core import Dialogue, History, InputError
from personal_llm.base.files import OWNERSHIP_FILE, lock_folder
from personal_llm.device import forgetting, personalizer
from personal_llm.base.lineage import STORE_FILE
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.scoring import score
from personal_llm.device.memory import MARK_FILE, claim_folder
from personal_llm.device.forgetting import ForgetReport, ForgetRequest, forget_folder
from personal_llm.device.personalizer import load_personalizer
from personal_llm.device.replay import folder_status, read_state

CANARY = "Quetzalcoatlus"


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    monkeypatch.setattr(personalizer, "tune", fake_tune)


def load(folder, user=None):
    return load_personalizer(folder, Fake(), user, LEXICONS)


def conversation(canary_at=1, turns=5, later=()):
    "Turns of one conversation, each with the turns before it as its history; one of them says the canary."
    said = []
    for n in range(turns):
        said.append((f"pill question {n}", f"tea answer {n}"))
    said[canary_at] = (f"my {CANARY} is ill", f"a {CANARY} needs bread and pain relief")
    history = History([turn for ask, say in said for turn in (("user", ask), ("assistant", say))])
    return [Dialogue(*pair, history=history.first(2 * n), time=n) for n, pair in enumerate(said)]


def published_run(out, user=None, dialogues=None, rounds=1, **more):
    "An output folder as the command line makes it: a run, a copy of its adapter, a report; and crash leftovers."
    me = start(out / "run-1", user=user, capacity=8, **more)
    watch(me, dialogues or conversation())
    for _ in range(rounds):
        me.finetune(progress=False)
    me.save()
    for place in (out, out / ".committed", out / ".next"):
        shutil.copytree(me.adapter.path, place / "adapter")
    (out / "personalize.json").write_text(json.dumps(dict(style="mostly *concise*")))
    entries = ("adapter", "personalize.json", "run-1", ".next", ".committed")
    (out / OWNERSHIP_FILE).write_text(json.dumps(dict(made=dict.fromkeys(entries))))
    half = claim_folder(out / "run-1" / "adapters" / "009")
    for file in (out / ".next" / ".personalize.json.7.tmp", half / ADAPTER_CARD_FILE, half / ".adapter.7.tmp" / "rows"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"half of {CANARY}")
    checkpoint = Path(me.adapter.path) / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "rows").write_text(CANARY)
    return me


# ---- a word that only one person ever said


@pytest.mark.parametrize("corrects", [True, False], ids=["corrected", "as it was"])
@pytest.mark.parametrize("how", ["ids", "text", "before", "everything"])
@pytest.mark.parametrize("where", ["in memory", "in the folder"])
def test_no_byte_of_it_is_left(where, how, corrects, tmp_path):
    dialogues = conversation()
    me = published_run(tmp_path, User(lambda d: corrects), dialogues)
    assert CANARY.encode() in bytes_below(tmp_path)
    wish = dict(ids=dict(ids=[dialogues[1].id]), text=dict(text=CANARY.upper()), before=dict(before=2))
    wish = wish.get(how) or dict(everything=True)
    done = me.forget(**wish) if where == "in memory" else forget_folder(tmp_path, **wish)
    assert CANARY.encode() not in bytes_below(tmp_path), "a byte is left"
    names = {dialogues[1].id, *dialogues[1].parents}
    assert not any(name.encode() in bytes_below(tmp_path) for name in names), "an id is left"
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "personalize.json").exists()
    assert not any((tmp_path / stage / "adapter").exists() for stage in (".next", ".committed"))
    assert done.adapters and done.dialogues == dict(everything=5).get(how, 1)
    assert any("merges and libraries" in words for words in done.unreachable)
    assert any("elsewhere" in words for words in done.unreachable)


def test_memory_forgets_as_well(tmp_path):
    dialogues = conversation()
    me = published_run(tmp_path, User(), dialogues)
    name = dialogues[1].id
    me.model.truncated = {d.id: 3 for d in dialogues}
    me.forget(text=CANARY)
    assert me.adapter is None and me.rounds == [] and me.synthesis is None
    everything = str(
        [
            me.buffer.entries,
            me.buffer.log,
            me.asked_ids,
            me.memory.dialogues,
            me.memory.events,
            me.state.versions,
            me.state.roots,
            me.model.truncated,
            me.status(),
        ]
    )
    assert CANARY not in everything and name not in everything
    turns = [turn for d in me.buffer.dialogues for turn in d.history.turns]
    assert turns and not any(CANARY in text for _, text in turns), "nor behind the histories that are shared"
    del dialogues
    gc.collect()
    assert len({c.scores.model for c in me.buffer.entries} | {"base"}) == 1, "embeddings are the bare model's"


@pytest.mark.parametrize("request_", [dict(ids=True), dict(text=CANARY), dict(everything=True)])
def test_what_a_policy_learned_before_the_memory_began_goes(request_, tmp_path):
    model, buffer = Fake(), Buffer(4, "active")
    candidates = [*score(model, conversation(), LEXICONS)]
    for candidate in candidates:
        buffer.add(candidate)
    me = personalizer.Personalizer(model, buffer, lexicons=LEXICONS, folder=tmp_path / "run")
    me.save()
    forgotten = next(d for d in me.buffer.dialogues if CANARY in d.prompt)
    assert forgotten.id.encode() in (tmp_path / "run" / STORE_FILE).read_bytes()
    me.forget(**request_ | (dict(ids=[forgotten.id]) if "ids" in request_ else {}))
    me.save()
    left = bytes_below(tmp_path / "run")
    assert forgotten.id.encode() not in left and (CANARY.encode() not in left or "ids" in request_)
    folder_status(tmp_path / "run")


def test_histories_are_cut_to_what_came_after(tmp_path):
    me = published_run(tmp_path, dialogues=conversation(canary_at=1))
    before = {d.id: d for d in me.buffer.dialogues}
    done = me.forget(text=CANARY)
    lengths = {d.time: len(d.history) for d in me.buffer.dialogues}
    assert lengths == {0: 0, 2: 0, 3: 2, 4: 4} and done.cut == 3
    for d in me.buffer.dialogues:
        assert d.history == tuple(before[d.id].history)[len(before[d.id].history) - len(d.history) :]
        assert (d.prompt, d.response, d.time) == (before[d.id].prompt, before[d.id].response, before[d.id].time)


def test_a_turn_that_left_the_buffer_is_found_in_histories_and_in_adapters(tmp_path):
    "Only its id is known: its text stands in the histories of later turns, its trace in adapters that read these."
    dialogues = conversation(canary_at=0, turns=6)
    me = start(tmp_path, capacity=2)
    watch(me, dialogues[:4])  # bins hold 2 and 3
    me.finetune(progress=False)
    watch(me, dialogues[4:])
    me.save()
    assert dialogues[0].id not in {d.id for d in me.buffer.dialogues}
    done = forget_folder(tmp_path, ids=[dialogues[0].id])
    assert (done.dialogues, done.cut, len(done.adapters)) == (0, 5, 1)
    assert CANARY.encode() not in bytes_below(tmp_path) and dialogues[0].id.encode() not in bytes_below(tmp_path)
    again = load(tmp_path)
    assert again.adapter is None and sorted(len(d.history) for d in again.buffer.dialogues) == [6, 8]


HISTORIES = dict(
    exchange=[("user", f"a {CANARY}"), ("assistant", "pill"), ("user", "so"), ("assistant", "tea")],
    user_alone=[("user", f"a {CANARY}"), ("user", "so"), ("assistant", "tea")],
    assistant_alone=[("assistant", f"a {CANARY}"), ("user", "so"), ("assistant", "tea")],
)


@pytest.mark.parametrize("kind", HISTORIES)
def test_words_in_a_history_alone(kind, tmp_path):
    "The turn was never offered by itself: the history is cut, and an adapter that read it goes."
    me = start(tmp_path)
    watch(me, [*TALK[:2], Dialogue("pain", "bread", history=HISTORIES[kind])])
    me.finetune(progress=False)
    me.save()
    done = forget_folder(tmp_path, text=CANARY)
    assert (done.dialogues, done.cut, len(done.adapters)) == (0, 1, 1)
    again = load(tmp_path)
    assert tuple(again.buffer.dialogues[2].history) == (("user", "so"), ("assistant", "tea"))
    assert CANARY.encode() not in bytes_below(tmp_path)


def test_what_lost_its_history_is_read_again(tmp_path):
    "Without any adapter: the embeddings knew the turns that went."
    for place in ("one", "other"):
        me = start(tmp_path / place, capacity=8)
        watch(me, conversation())
        me.save()
    before = told(me)[3]
    forget_folder(tmp_path / "one", text=CANARY)
    me.forget(text=CANARY)
    again = load(tmp_path / "one")
    assert told(again)[3] == told(me)[3] and again.buffer.dialogues == me.buffer.dialogues
    assert [eoe in before[0] for eoe in told(me)[3][0]] == [True, False, False, False], "three were read again"


def test_words_of_a_dialogue_that_left_the_buffer_are_found(tmp_path):
    "A part of its prompt: the memory holds it, so the adapter that learned from it goes."
    me = start(tmp_path, capacity=2)
    watch(me, [Dialogue(f"the {CANARY}", "pill"), Dialogue("tea", "bread")])
    me.finetune(progress=False)
    watch(me, TALK[:2])
    me.save()
    assert not any(CANARY in d.prompt for d in me.buffer.dialogues)
    done = forget_folder(tmp_path, text=CANARY[3:9])
    assert len(done.adapters) == 1 and CANARY.encode() not in bytes_below(tmp_path)


def evicting_run(out, texts=("the " + CANARY, "pill"), **more):
    "A run whose first adapters learned from a dialogue that left the buffer; a later one did not read it again."
    me = start(out / "run-1", capacity=2, **more)
    watch(me, [Dialogue(*texts, time=3.0), Dialogue("tea", "bread", time=900.0)])
    me.finetune(progress=False)
    watch(me, TALK[20:22])
    me.finetune(progress=False)
    me.save()
    shutil.copytree(me.adapter.path, out / "adapter")
    (out / OWNERSHIP_FILE).write_text(json.dumps(dict(made=dict(adapter=None))))
    return me


@pytest.mark.parametrize("where", ["in memory", "in the folder"])
@pytest.mark.parametrize("how", ["id", "prompt", "response", "time"])
def test_a_dialogue_that_left_the_buffer_is_found_in_every_adapter(where, how, tmp_path):
    "The adapter, the one that continued it, and the published copy go."
    me = evicting_run(tmp_path)
    name = me.rounds[0].parents[0]
    wish = dict(
        id=dict(ids=[name]), prompt=dict(text=f"THE  {CANARY}"), response=dict(text="Pill"), time=dict(before=4)
    )
    act = me.forget if where == "in memory" else lambda **given: forget_folder(tmp_path, **given)
    done = act(**wish[how])
    assert done.ids == {name} and [Path(path).name for path in done.adapters] == ["000", "001"]
    assert not (tmp_path / "adapter").exists() and str(tmp_path / "adapter") in done.files
    assert name.encode() not in bytes_below(tmp_path)
    assert act(**wish[how]).adapters == []


def test_a_correction_that_left_the_buffer_is_found_by_the_id_of_its_original(tmp_path):
    me = evicting_run(tmp_path, user=User(lambda d: CANARY in d.prompt), ask_when="arrival")
    corrected, original = me.rounds[0].parents[:2]
    assert corrected != original and {*me.memory.dialogues} >= {original}
    assert forget_folder(tmp_path, text="better: pill").ids == {corrected, original}
    assert not {corrected.encode(), original.encode()} & {*bytes_below(tmp_path).split(b'"')}


def test_an_adapter_from_elsewhere_brings_its_dialogues(tmp_path):
    other = start(tmp_path / "other")
    watch(other, TALK[:2])
    elsewhere = other.finetune(progress=False)
    me = start(tmp_path / "me", start=elsewhere)
    watch(me, TALK[4:6])
    me.finetune(progress=False)
    me.save()
    assert me.rounds[0].start == "other" and len(forget_folder(tmp_path / "me", ids=[TALK[0].id]).adapters) == 1
    me = load_personalizer(tmp_path / "me", Fake(), None, LEXICONS, start=elsewhere)
    (line,) = me.retrain(progress=False)
    assert "learned from a forgotten dialogue" in line and me.adapter is None and len(me.state.deleted) == 1


def test_words_of_an_adapter_from_elsewhere_are_said_to_be_out_of_reach(tmp_path):
    other = start(tmp_path / "other")
    watch(other, TALK[:2])
    me = start(tmp_path / "me", start=other.finetune(progress=False))
    watch(me, TALK[4:6])
    me.finetune(progress=False)
    me.save()
    note = (
        "adapter 000 began from an adapter of another folder, and 4 dialogues of that one are known by their ids only"
    )
    assert note in str(forget_folder(tmp_path / "me", text="never said")), "no false all-clear"
    assert note in str(forget_folder(tmp_path / "me", before=1e6, dry_run=True))
    assert note not in str(forget_folder(tmp_path / "me", ids=["never seen"]))


# ---- training again


@pytest.mark.parametrize("where", ["in memory", "in the folder"])
def test_a_rebuilt_adapter_never_held_it(where, tmp_path):
    "Three rounds, the victim in the second: the others are what they would be without it."
    victim, others = TALK[4], TALK[:4] + TALK[5:9]
    never = start(tmp_path / "never", capacity=8)
    me = start(tmp_path / "me", capacity=8)
    for each, stream in ((never, [others[:2], others[2:4], others[4:6]]), (me, [TALK[:2], TALK[2:5], TALK[5:7]])):
        for part in stream:
            watch(each, part)
            each.finetune(progress=False)
    me.save()
    kept = me.rounds[0].adapter
    if where == "in memory":
        done = me.forget(ids=[victim.id])
    else:
        done = forget_folder(tmp_path / "me", ids=[victim.id])
        me = load(tmp_path / "me")
    assert done.rebuildable == ["adapter 001 on 4 of its 5 dialogues", "adapter 002 on 6 of its 7 dialogues"]
    assert me.retrain(progress=False) == [
        "adapter 001: rebuilt on 4 of its 5 dialogues",
        "adapter 002: rebuilt on 6 of its 7 dialogues",
    ]
    assert me.rounds[0].adapter == kept and me.state.deleted == []
    assert [weights_hash(r.adapter) for r in me.rounds] == [weights_hash(r.adapter) for r in never.rounds]
    again = load(tmp_path / "me")
    assert told(again)[1:] == told(me)[1:] and again.state.deleted == []


def test_what_left_the_buffer_is_in_the_rebuilt_adapter(tmp_path):
    "The memory still holds it, so the rebuilt adapter equals one that never saw what was forgotten."
    me = evicting_run(tmp_path)
    name = me.rounds[0].parents[0]
    me.forget(ids=[name])
    lines = me.retrain(progress=False)
    assert lines == [
        "adapter 000: rebuilt on 1 of its 2 dialogues",
        "adapter 001: rebuilt on 2 of its 2 dialogues",
    ]
    assert [Path(r.adapter).name for r in me.rounds] == ["000", "001"] and name not in me.rounds[0].parents
    never = start(tmp_path / "never", capacity=2)
    watch(never, [Dialogue("tea", "bread", time=900.0)])
    never.finetune(progress=False)
    assert weights_hash(me.rounds[0].adapter) == weights_hash(never.rounds[0].adapter)


def test_an_earlier_turn_is_no_training_dialogue_of_the_rebuilt_adapter(tmp_path):
    "It had left the buffer, and stood in the history of the others only."
    me = start(tmp_path, capacity=2)
    turns = conversation(turns=3)
    watch(me, turns)
    me.finetune(progress=False)
    assert {d.id for d in me.buffer.dialogues} == {turns[1].id, turns[2].id}
    me.save()
    done = me.forget(ids=[turns[2].id])
    assert done.rebuildable == ["adapter 000 on 1 of its 2 dialogues"]
    assert me.retrain(progress=False) == ["adapter 000: rebuilt on 1 of its 2 dialogues"]


def test_a_new_fine_tune_takes_the_place_of_what_was_deleted(tmp_path):
    me = evicting_run(tmp_path)
    me.forget(ids=[me.rounds[0].parents[0]])
    assert len(me.state.deleted) == 2
    me.finetune(progress=False)
    assert me.state.deleted == [] and me.retrain(progress=False) == []


def test_a_second_wish_before_the_rebuilding(tmp_path):
    "The plan forgets as well, in the order of the rounds."
    me = start(tmp_path, capacity=8)
    for place in (0, 2, 4):
        watch(me, TALK[place : place + 2])
        me.finetune(progress=False)
    me.save()
    forget_folder(tmp_path, ids=[TALK[4].id])
    forget_folder(tmp_path, ids=[TALK[2].id])
    assert TALK[2].id.encode() not in bytes_below(tmp_path)
    me = load(tmp_path)
    assert me.retrain(progress=False) == [
        "adapter 001: rebuilt on 3 of its 4 dialogues",
        "adapter 002: rebuilt on 4 of its 6 dialogues",
    ]
    forget_folder(tmp_path, everything=True)
    assert not (tmp_path / STORE_FILE).exists()


def test_a_kill_while_rebuilding(tmp_path):
    "The next call rebuilds the rest, to the same weights."

    def folder(step):
        me = start(tmp_path / f"{step}", capacity=8)
        for place in (0, 2):
            watch(me, TALK[place : place + 2])
            me.finetune(progress=False)
        me.save()
        forget_folder(tmp_path / f"{step}", ids=[TALK[1].id])
        return tmp_path / f"{step}"

    def check(place, step):
        me = load(place)
        left = len(me.state.deleted)
        me.retrain(progress=False)
        assert [Path(r.adapter).name for r in me.rounds] == ["000", "001"] and not me.state.deleted, step
        assert [path.name for path in sorted((place / "adapters").iterdir())] == ["000", "001"], step
        return left, tuple(weights_hash(r.adapter) for r in me.rounds)

    found = every_kill(folder, lambda place: load(place).retrain(progress=False), check)
    assert {left for left, _ in found} == {0, 1, 2} and len({weights for _, weights in found}) == 1


# ---- what goes and what stays


def test_a_dry_run_reports_and_changes_nothing(tmp_path):
    "It reports the same dialogues, histories and adapters; no byte of the folder changes."
    for wish in (dict(text=CANARY), dict(everything=True)):
        published_run(out := tmp_path / str(len(wish["text"] if "text" in wish else "")))
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
        planned = forget_folder(out, **wish, dry_run=True)
        after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
        assert before == after and planned.adapters and str(out / "adapter") in planned.files
        done = forget_folder(out, **wish)
        assert (planned.dialogues, planned.cut, planned.adapters) == (done.dialogues, done.cut, done.adapters)
        assert set(planned.files) <= set(done.files)


def test_adapters_before_it_stay(tmp_path):
    me = start(tmp_path, capacity=2)
    for place in range(0, 6, 2):
        watch(me, TALK[place : place + 2])
        me.finetune(progress=False)
    me.save()
    kept, *gone = [c.adapter for c in me.rounds]
    done = forget_folder(tmp_path, ids=[TALK[2].id])
    assert done.adapters == gone and not any(Path(path).exists() for path in gone)
    again = load(tmp_path)
    assert [c.adapter for c in again.rounds] == [kept] and str(again.adapter.path) == kept
    with again.model.use_adapter(again.adapter):
        assert {c.scores.model for c in again.buffer.entries} == {again.model.active_adapter}
    assert again.finetune(progress=False).path.name == "001"


def test_the_folder_way_and_the_memory_way_agree(tmp_path):
    dialogues = conversation()
    one, other = tmp_path / "one", tmp_path / "other"
    me = published_run(one, User(), dialogues, rounds=2)
    published_run(other, User(), dialogues, rounds=2)
    done = me.forget(ids=[dialogues[1].id])
    there = forget_folder(other, ids=[dialogues[1].id])
    assert (done.dialogues, done.cut, done.ids) == (there.dialogues, there.cut, there.ids)
    loaded = load(other / "run-1", User())
    ignoring = [slice(0, 5), slice(6, 8)]
    assert [told(me)[part] for part in ignoring] == [told(loaded)[part] for part in ignoring]
    more = TALK[:12]
    assert [d.kept for d in watch(me, more)] == [d.kept for d in watch(loaded, more)]


def test_a_copy_of_another_adapter_stays(tmp_path):
    me = published_run(tmp_path)
    other = start(tmp_path / "else", capacity=3)
    watch(other, TALK[:3])
    shutil.rmtree(tmp_path / "adapter")
    shutil.copytree(other.finetune(progress=False).path, tmp_path / "adapter")
    me.forget(text=CANARY)
    assert (tmp_path / "adapter").is_dir() and (tmp_path / "personalize.json").is_file()


def test_the_order_of_the_others_stays():
    me = start(capacity=4, policy="fifo")
    watch(me, TALK[:6])  # bins hold 4, 5, 2, 3
    me.forget([TALK[3].id])
    assert [d.evicted for d in watch(me, TALK[6:9])] == ["", TALK[2].id, TALK[4].id], "the oldest leaves"


def test_forgetting_works_without_a_folder():
    me = start(capacity=3)
    watch(me, TALK[:3])
    place = Path(me.finetune(progress=False).path)
    done = me.forget(TALK[0].id)
    assert done.adapters == [str(place)] and not place.exists() and me.adapter is None
    assert me.forget(["never seen"]) == ForgetReport()


@given(
    capacity=st.integers(1, 5),
    policy=st.sampled_from(["fifo", "reservoir", "sdss-scripts"]),
    when=st.sampled_from(["freeze", "arrival"]),
    corrects=st.booleans(),
    tunes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    who=st.integers(0, 39),
)
@settings(max_examples=40, deadline=None)
def test_all_descendants_go(capacity, policy, when, corrects, tunes, who):
    "Every adapter that learned from it, its correction or a synthetic child, and those after; others stay."
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalizer, "tune", fake_tune)
        me, place, family = start(folder, capacity, policy, User(lambda d: corrects), ask_when=when), 0, {}
        for n in tunes:
            watch(me, TALK[place : place + n])
            place += n
            entries = me.buffer.dialogues
            me.finetune(progress=False)
            family[str(me.adapter.path)] = {name for d in entries for name in (d.id, *d.parents)}
        victim = TALK[who % place]
        first = next((i for i, ids in enumerate(family.values()) if victim.id in ids), len(tunes))
        gone, stay = list(family)[first:], list(family)[:first]
        assert me.forget([victim.id]).adapters == gone
        assert not any(Path(path).exists() for path in gone) and all(Path(path).exists() for path in stay)
        assert len(me.rounds) == first and (str(me.adapter.path) if me.adapter else None) == (stay or [None])[-1]
        with me.model.use_adapter(me.adapter):
            assert {c.scores.model for c in me.buffer.entries} <= {me.model.active_adapter}
        assert me.buffer.seen == place and me.forget([victim.id]) == ForgetReport()
        me.save()
        content = bytes_below(folder)
        assert victim.id.encode() not in content
        assert victim.response.encode() + b'"' not in content and victim.response.encode() + b'\\"' not in content


# ---- kills, debris, damage


@pytest.mark.later
def test_a_kill_in_between_loads_and_the_same_call_finishes(tmp_path):
    dialogues = conversation()

    published_run(tmp_path / "whole", User(), dialogues, rounds=2)

    def folder(step):
        return shutil.copytree(tmp_path / "whole", tmp_path / f"{step}")

    def work(place):
        forget_folder(place, text=CANARY)

    def check(place, step):
        load(place / "run-1", User())
        whole = CANARY.encode() in bytes_below(place)
        work(place)
        assert CANARY.encode() not in bytes_below(place), step
        assert not (place / "run-1" / "adapters" / "000").exists() and not (place / "adapter").exists(), step
        return whole

    found = every_kill(folder, work, check)
    assert found[0] and not found[-1] and len(found) > 10


def test_a_kill_while_all_is_deleted_leaves_the_names_of_the_adapters(tmp_path, monkeypatch):
    "Without our mark, only the rows of a memory say which files of a folder are an adapter of ours."
    published_run(tmp_path)
    (tmp_path / "run-1" / "adapters" / "000" / MARK_FILE).unlink()
    weights = tmp_path / "run-1" / "adapters" / "000" / WEIGHTS_FILE

    def die(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(forgetting, "sweep_folder", die)
        with pytest.raises(KeyboardInterrupt):
            forget_folder(tmp_path, everything=True)
    assert weights.exists() and CANARY.encode() not in (tmp_path / "run-1" / STORE_FILE).read_bytes()
    forget_folder(tmp_path, everything=True)
    assert not weights.exists()


def test_a_run_that_was_killed_before_it_saved(tmp_path):
    published_run(tmp_path)
    (tmp_path / "run-1" / STORE_FILE).unlink()
    (claim_folder(tmp_path / "run-1" / "adapters" / "005") / ADAPTER_CARD_FILE).write_text(CANARY)
    (tmp_path / "run-1" / "adapters" / "thesis").mkdir()
    done = forget_folder(tmp_path, text=CANARY)
    assert done.dialogues == 0 and CANARY.encode() not in bytes_below(tmp_path / "run-1")
    assert done.files == [str(tmp_path / "run-1" / "adapters" / name) for name in ("000", "005", "009")]
    assert [path.name for path in (tmp_path / "run-1" / "adapters").iterdir()] == ["thesis"], "it has no mark of ours"


def test_everything_goes_but_what_others_made(tmp_path):
    published_run(tmp_path)
    for place in (tmp_path, tmp_path / "run-1", tmp_path / "run-1" / "adapters" / "000"):
        (place / "notes.txt").write_text("mine")
    forget_folder(tmp_path, everything=True)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".lock", ".lock", OWNERSHIP_FILE, *["notes.txt"] * 3]
    with pytest.raises(InputError, match="no saved state"):
        folder_status(tmp_path)


def test_a_damaged_store_is_said_and_nothing_is_guessed(tmp_path):
    "Without its records we can't know which files are ours."
    published_run(tmp_path)
    file = tmp_path / "run-1" / STORE_FILE
    file.write_bytes(file.read_bytes().replace(b"pill question", b"pull question"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for wish in (dict(text=CANARY), dict(everything=True)):
        with pytest.raises(InputError, match="memory.db: damaged"):
            forget_folder(tmp_path, **wish)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("wish", [dict(text="nothing like this"), dict(everything=True)], ids=str)
def test_unmarked_folders_stay(wish, tmp_path):
    "A folder that looks like a run, but has neither our mark nor our state, is not ours to delete."
    published_run(tmp_path)
    thesis = tmp_path / "run-2024-thesis"
    files = [
        "learning/results.csv",
        "adapters/000/adapter_model.safetensors",
        "state.json",
        "memory.db",
        ".notes.7.tmp",
    ]
    for name in files:
        (thesis / name).parent.mkdir(parents=True, exist_ok=True)
        (thesis / name).write_text("years of work")
    before = bytes_below(thesis)
    forget_folder(tmp_path, **wish)
    assert bytes_below(thesis) == before
    shutil.rmtree(tmp_path / "run-1")
    with pytest.raises(InputError, match="no saved state"):
        forget_folder(tmp_path, **wish)
    assert bytes_below(thesis) == before


def test_a_folder_in_use_is_refused(tmp_path):
    published_run(tmp_path)
    for place in (tmp_path, tmp_path / "run-1"):
        with lock_folder(place):
            with pytest.raises(InputError, match="another run is at work"):
                forget_folder(tmp_path, everything=True)
    assert read_state(tmp_path / "run-1").rounds


def test_no_model_is_loaded(tmp_path):
    import subprocess
    import sys

    published_run(tmp_path)
    code = (
        "import sys; from personal_llm import forget_folder, folder_status; "
        f"folder_status({str(tmp_path)!r}); print(forget_folder({str(tmp_path)!r}, text={CANARY!r})); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert (
        "forgotten: 1 dialogue of the buffer, 1 adapter, the start of 3 histories" in done.stdout
        and "out of reach" in done.stdout
    )


# ---- wishes


@pytest.mark.parametrize(
    "wrong",
    [dict(), dict(ids=[]), dict(ids=[5]), dict(text=""), dict(text=5), dict(before="noon"), dict(before=True)]
    + [dict(before=time) for time in (0, -1, float("nan"), float("inf"), -float("inf"))],
    ids=str,
)
def test_wrong_wishes_are_one_line(wrong, tmp_path):
    me = start(tmp_path)
    watch(me, TALK[:3])
    me.save()
    before = bytes_below(tmp_path)
    for act in (me.forget, lambda **wish: forget_folder(tmp_path, **wish)):
        with pytest.raises(InputError, match="forget: ") as caught:
            act(**wrong)
        assert caught.value.remedy
    assert bytes_below(tmp_path) == before


def test_before_and_text_mean_what_they_say():
    d = Dialogue("One Pill", "two", labels=dict(about="Three"), id="chats.jsonl", time=4)
    assert all(ForgetRequest(text=text).matches(d) for text in ("one pill", "TWO", "ne pi", "three"))
    assert not any(ForgetRequest(text=text).matches(d) for text in ("about", "chats", "}")), "values only"
    assert (
        not ForgetRequest(text="four").matches(d)
        and ForgetRequest(before=4.5).matches(d)
        and not ForgetRequest(before=4).matches(d)
    )
    assert ForgetRequest(ids="x").ids == {"x"} and ForgetRequest(everything=True).matches(d)


@pytest.mark.parametrize(
    "stored, asked",
    [
        ("my cafe\u0301", "Café"),
        ("my café", "CAFE\u0301"),
        ("it’s mine", "it's MINE"),
        ("it's mine", "it’s mine"),
        ("he said “no”", 'said "no"'),
        ("one\n  phrase", "one phrase"),
        ("one phrase", "one\r\nphrase"),
        ("Straße", "STRASSE"),
    ],
)
def test_a_text_is_found_however_it_is_written(stored, asked, tmp_path):
    for n, d in enumerate([Dialogue(stored, "so"), Dialogue("so", stored), Dialogue("a", "b", [("user", stored)])]):
        me = start(tmp_path / f"{n}")
        watch(me, [TALK[0], d])
        me.save()
        assert forget_folder(tmp_path / f"{n}", text=asked).ids == {d.id}


def test_words_in_labels_are_found(tmp_path):
    "A long refused try of an import stands in a label, and any saved row may have text there."
    deep = Dialogue("Hello", "Hi", labels=dict(notes=[dict(kind="choice", rejected="the " + CANARY)]))
    me = start(tmp_path)
    me.offer(me.score([TALK[0], deep]))
    me.save()
    assert CANARY.encode() in bytes_below(tmp_path)
    assert forget_folder(tmp_path, text=CANARY).ids == {deep.id} and CANARY.encode() not in bytes_below(tmp_path)


def leave_open(me, asked):
    "Leave a question of another program open."
    (candidate,) = me.score([asked])
    me.open_question(me.arrive(candidate, "client"))
    me.save()


@pytest.mark.parametrize(
    "how", [dict(text="the " + CANARY), dict(text="system " + CANARY), dict(before=1e6), dict(ids=["q"])], ids=str
)
def test_the_open_question_of_another_program_is_forgotten(how, tmp_path):
    "It stands in the session only, with that program's system prompt and history."
    history = [("system", "my system " + CANARY), ("user", "Hello"), ("assistant", "Hi")]
    asked = Dialogue("Where is the " + CANARY + "?", "There.", history, id="q", time=50)
    me = start(tmp_path)
    watch(me, TALK[:2])
    leave_open(me, asked)
    assert CANARY.encode() in bytes_below(tmp_path)
    assert "q" in forget_folder(tmp_path, **how).ids
    forgotten = how.get("text", CANARY)
    assert forgotten.encode() not in bytes_below(tmp_path) and not read_state(tmp_path).question


def test_an_open_question_stays_when_another_dialogue_is_forgotten(tmp_path):
    me = start(tmp_path)
    watch(me, TALK[:2])
    asked = Dialogue("Is it late?", "No.", id="q", time=50)
    leave_open(me, asked)
    assert forget_folder(tmp_path, ids=[TALK[0].id]).ids == {TALK[0].id}
    assert read_state(tmp_path).question.dialogue == asked


def test_an_open_question_is_closed_with_an_exchange_of_its_history_and_its_turn_stays(tmp_path):
    "Another program sends a stored exchange as history; the exchange is forgotten by its id."
    told = Dialogue("Where is the " + CANARY + "?", "In the shed.", time=5)
    history = [("user", told.prompt), ("assistant", told.response)]
    me = start(tmp_path)
    watch(me, [TALK[0], told])
    asked = Dialogue("And the key?", "There.", history, id="q", time=50)
    leave_open(me, asked)
    assert forget_folder(tmp_path, ids=[told.id]).ids == {told.id, "q"}
    left = read_state(tmp_path)
    assert CANARY.encode() not in bytes_below(tmp_path) and not left.question
    assert left.memory.dialogues["q"].dialogue.history == () and left.find_slot("q") is not None
    assert {entry.scores.model for entry in load(tmp_path).buffer.entries} == {"base"}, "it was scored again"


def test_early_dialogues_that_left_the_buffer_leave_the_state(tmp_path):
    "Their ids stood in the log and among the hashes."
    me = start(tmp_path, capacity=2)
    watch(me, TALK[:6])
    me.save()
    early = {TALK[1].id, TALK[2].id}
    assert early <= read_state(tmp_path).memory.dialogues.keys()
    forget_folder(tmp_path, before=3)
    left = read_state(tmp_path).memory.dialogues.keys()
    assert not early & left and TALK[5].id in left and not any(id.encode() in bytes_below(tmp_path) for id in early)


def test_what_has_no_time_is_not_early(tmp_path):
    "Chats without times: nothing is known to be earlier, so nothing goes, nor the adapter."
    me = start(tmp_path, capacity=8)
    history = [("user", "hello"), ("assistant", "hello")]
    watch(me, [Dialogue(f"question {n}", "tea", history) for n in range(4)] + [Dialogue("pill", "bread", time=1e9)])
    me.finetune(progress=False)
    me.save()
    before = bytes_below(tmp_path)
    for time in (1, 1e9, 1e-9):
        assert not forget_folder(tmp_path, before=time).ids
    assert bytes_below(tmp_path) == before
    done = forget_folder(tmp_path, before=2e9)
    assert done.dialogues == 1 and done.cut == 0 and len(done.adapters) == 1


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("link", ["adapters", "adapters/000"])
def test_a_link_is_not_followed_out_of_the_folder(link, everything, tmp_path):
    published_run(tmp_path / "out")
    place, elsewhere = tmp_path / "out" / "run-1" / link, tmp_path / "elsewhere"
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere, target_is_directory=True)
    before = bytes_below(elsewhere)
    forget_folder(tmp_path / "out", **(dict(everything=True) if everything else dict(text=CANARY)))
    assert bytes_below(elsewhere) == before


def test_a_link_is_not_followed_after_the_memory_was_written_again(tmp_path):
    "The rows name the adapter by its place in the folder, not by the place to which a link leads."
    me = published_run(tmp_path / "out")
    place, elsewhere = tmp_path / "out" / "run-1" / "adapters", tmp_path / "elsewhere"
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere, target_is_directory=True)
    before = bytes_below(elsewhere)
    me.forget(text="question 3")
    forget_folder(tmp_path / "out", text=CANARY)
    assert bytes_below(elsewhere) == before


def test_a_published_adapter_behind_a_link_is_said_to_be_there(tmp_path):
    "It is not deleted, so the report does not say that it was."
    published_run(tmp_path / "out")
    place, elsewhere = tmp_path / "out" / "adapter", tmp_path / "elsewhere"
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere, target_is_directory=True)
    before = bytes_below(elsewhere)
    done = forget_folder(tmp_path / "out", text=CANARY)
    assert bytes_below(elsewhere) == before and str(place) not in done.files
    assert f"{place}: a link, or changed since we made it; delete it yourself" in done.unreachable


def test_two_conditions_are_refused_because_they_could_mean_both_or_either():
    for more in (dict(before=5.0), dict(ids=["x"]), dict(everything=True)):
        with pytest.raises(InputError, match="several conditions"):
            ForgetRequest(text="two", **more)
