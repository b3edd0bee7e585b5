"A personalizer's folder: what is read back, what a kill leaves, who may read it, what is refused."

import json
import os
import shutil
from pathlib import Path

import pytest
from devices import LEXICONS, TALK, Fake, User, bytes_below, fake_tune, start, told, watch
from kills import every_kill

from personal_llm.base.adapters import WEIGHTS_FILE
from personal_llm.base.core import InputError
from personal_llm.base.files import LOCK_FILE, lock_folder
from personal_llm.device import personalizer
from personal_llm.device.personalizer import load_personalizer
from personal_llm.device.store import (
    BUFFER_FILE_PATTERN,
    STATE_FILE,
    folder_status,
    read_state,
    remove_adapter,
    find_state_folders,
)
from personal_llm.tuning.config import TuningConfig


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    monkeypatch.setattr(personalizer, "tune", fake_tune)


def load(folder, user=None):
    return load_personalizer(folder, Fake(), user, LEXICONS)


def files_below(folder) -> list:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


# ---- there and back


@pytest.mark.parametrize("policy", ["sdss", "reservoir", "kcenter"])
def test_saved_and_loaded_goes_on_the_same_way(policy, tmp_path):
    given = dict(
        finetune_every=9,
        max_questions=7,
        ask_when="arrival",
        synthesis_mode="both",
        seed=3,
        config=TuningConfig(steps=2),
    )
    me = start(tmp_path, policy=policy, user=User(), **given)
    watch(me, TALK[:14])
    me.save()
    again = load(tmp_path, User())
    assert told(again) == told(me) and again.state().settings == me.state().settings
    assert again.config == me.config and again.ask_when == "arrival"
    for one in (me, again):
        watch(one, TALK[14:])
    assert told(again) == told(me) and again.status()["requests"] == me.status()["requests"]


def test_a_folder_may_move(tmp_path):
    me = start(tmp_path / "here")
    watch(me, TALK[:6])
    me.finetune(progress=False)
    elsewhere = me.finetune(out=tmp_path / "elsewhere", progress=False)
    me.save()
    shutil.move(tmp_path / "here", tmp_path / "there")
    again = load(tmp_path / "there")
    assert again.adapter.path == elsewhere.path == tmp_path / "elsewhere"
    assert Path(again.rounds[0].adapter) == tmp_path / "there" / "adapters" / "000"


def test_a_state_may_be_saved_elsewhere(tmp_path):
    me = start(tmp_path / "here")
    watch(me, TALK[:6])
    me.finetune(progress=False)
    me.save(tmp_path / "there")
    assert told(load(tmp_path / "there")) == told(me)


def test_a_status_has_no_word_of_what_was_said(tmp_path):
    me = start(tmp_path / "run-1", user=User())
    watch(me, TALK[:6])
    me.finetune(progress=False)
    me.save()
    found = folder_status(tmp_path)
    assert found == folder_status(tmp_path / "run-1")
    assert (found["bins"], found["seen"], found["requests"], found["finetunes"]) == ("4/4", 6, 4, 1)
    assert found["adapter"] == str(me.adapter.path) and found["bytes"] > found["buffer_bytes"] > 0
    shown = json.dumps(found) + json.dumps(me.status())
    assert "answer" not in shown and not any(d.prompt in shown for d in TALK)
    with pytest.raises(InputError, match="no saved state here"):
        folder_status(tmp_path / "run-1" / "adapters")


def test_the_newest_state_is_described(tmp_path):
    for number, seen in enumerate((3, 5)):
        me = start(tmp_path / f"run-{number}")
        watch(me, TALK[:seen])
        me.save()
        os.utime(tmp_path / f"run-{number}" / STATE_FILE, (number, number))
    assert folder_status(tmp_path)["seen"] == 5
    os.utime(tmp_path / "run-0" / STATE_FILE, (9, 9))
    assert folder_status(tmp_path)["seen"] == 3 and len(find_state_folders(tmp_path)) == 2


# ---- kills and debris


def more(me):
    watch(me, TALK[10:16])


def forget_kept(me):
    me.forget([me.buffer.dialogues[1].id])


def tune_again(me):
    me.finetune(progress=False)


def forget_learned(me):
    me.forget([me.rounds[0].parents[0]])


@pytest.mark.parametrize("change", [more, tune_again, forget_kept, forget_learned])
def test_a_kill_leaves_the_old_state_or_the_new_one(change, tmp_path):
    "At every file operation of a change and the save after it; then the next run removes what is left."
    user = User(lambda d: d.time > 2)
    template = start(tmp_path / "template", user=user, seed=1)
    watch(template, TALK[:8])
    template.finetune(progress=False)
    template.save()
    old = template.buffer.dialogues, len(template.rounds)

    def folder(step):
        return shutil.copytree(tmp_path / "template", tmp_path / f"{step}")

    def work(place):
        me = load(place, user)
        change(me)
        me.save()

    done = folder("done")
    work(done)
    new = load(done).buffer.dialogues, len(load(done).rounds)

    def check(place, step):
        me = load(place, user)
        me.save()
        names = files_below(place)
        assert sum(bool(BUFFER_FILE_PATTERN.fullmatch(name)) for name in names) == 1 and STATE_FILE in names, step
        adapters = {name.split("/")[1] for name in names if name.startswith("adapters/")}
        assert adapters == {Path(c.adapter).name for c in me.rounds}, (step, "debris")
        assert not any(".tmp" in name for name in names), (step, "debris")
        return me.buffer.dialogues, len(me.rounds)

    outcomes = every_kill(folder, work, check)
    assert all(one in (old, new) for one in outcomes), f"{change.__name__}: neither the old one nor the new one"
    assert outcomes == sorted(outcomes, key=lambda one: one == new)
    assert len(outcomes) > 8 and outcomes[0] == old and outcomes[-1] == new


def test_debris_goes_and_what_others_put_there_stays(tmp_path):
    me = start(tmp_path)
    watch(me, TALK[:6])
    me.finetune(progress=False)
    me.save()
    before = [name for name in files_below(tmp_path) if not BUFFER_FILE_PATTERN.fullmatch(name)]
    for name in ("adapters/007/" + WEIGHTS_FILE, "adapters/000/checkpoints/checkpoint-3/x", ".state.json.12.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / f"buffer-{'0' * 16}.safetensors").write_text("half")
    others = ["adapters/008/notes.txt", "adapters/thesis/a.txt", "buffer-of-mine.txt", "thesis.txt"]
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    load(tmp_path).save()
    found = files_below(tmp_path)
    assert [name for name in found if not BUFFER_FILE_PATTERN.fullmatch(name)] == sorted(before + others)
    assert sum(bool(BUFFER_FILE_PATTERN.fullmatch(name)) for name in found) == 1
    assert remove_adapter(tmp_path / "nowhere") == []


@pytest.mark.parametrize("operation", ["replace", "fsync", "open"])
def test_a_full_disk_is_one_line_and_leaves_the_old_state(operation, tmp_path, monkeypatch):
    me = start(tmp_path)
    watch(me, TALK[:6])
    me.save()
    before = told(me)
    watch(me, TALK[6:9])
    real = getattr(os, operation)

    def full(path, *given, **named):
        if isinstance(path, (str, Path)) and LOCK_FILE in str(path):
            return real(path, *given, **named)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, full)
        with pytest.raises(InputError, match="No space left"):
            me.save()
    assert told(load(tmp_path)) == before


# ---- who may read it


def test_only_the_owner_reads_it(tmp_path):
    me = start(tmp_path / "out" / "run-1")
    watch(me, TALK[:6])
    me.save()
    for path in (tmp_path / "out").rglob("*"):
        assert oct(path.stat().st_mode & 0o777) == ("0o700" if path.is_dir() else "0o600"), path
    assert oct((tmp_path / "out").stat().st_mode & 0o777) == "0o700"


def test_what_was_said_stands_in_one_file_only(tmp_path):
    me = start(tmp_path, user=User())
    watch(me, TALK[:6])
    me.finetune(progress=False)
    me.save()
    held = [name for name in files_below(tmp_path) if b"answer" in (tmp_path / name).read_bytes()]
    assert len(held) == 1 and BUFFER_FILE_PATTERN.fullmatch(held[0]) and b"answer" in bytes_below(tmp_path)


# ---- what is refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalizer, "tune", fake_tune)
        me = start(folder)
        watch(me, TALK[:6])
        me.finetune(progress=False)
        me.save()
    return folder


CONTENTS = ["", "{", "[]", "{}", "null", "5", '{"buffer": "x"}', '{"base": "other"}', "[" * 100_000, '{"buffer": 5}']


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_damaged_states_are_one_line(content, tmp_path):
    (tmp_path / STATE_FILE).write_text(content)
    for act in (load, folder_status):
        with pytest.raises(InputError, match="state.json") as caught:
            act(tmp_path)
        assert "\n" not in str(caught.value) and caught.value.remedy


CHANGES = dict(
    asked_ids_are_numbers=lambda s: s.update(asked_ids=[5, 6]),
    a_hash_is_a_list=lambda s: s.update(exchange_hashes=dict(a=[1])),
    a_loss_is_text=lambda s: s["rounds"][0].update(best_loss="low"),
    chat_turns_are_a_number=lambda s: s.update(session=dict(turns=5)),
    a_chat_turn_is_half=lambda s: s.update(session=dict(turns=[dict(id="a", prompt="b")])),
    a_chat_turn_is_text=lambda s: s.update(session=dict(turns=["a"])),
    a_chat_prompt_is_a_number=lambda s: s.update(session=dict(turns=[dict(id="a", prompt=1, response="", time=0)])),
    no_settings=lambda s: s.pop("settings"),
    settings_of_another_kind=lambda s: s.update(settings=[1]),
    unknown_setting=lambda s: s["settings"].update(colour="red"),
    no_config=lambda s: s["settings"].pop("config"),
    unknown_config=lambda s: s["settings"]["config"].update(colour="red"),
    negative_seed=lambda s: s["settings"].update(seed=-1),
    unknown_mode=lambda s: s["settings"].update(mode="x"),
    buffer_outside=lambda s: s.update(buffer="../" + s["buffer"]),
    buffer_missing=lambda s: s.update(buffer="buffer-0000000000000000.safetensors"),
    curve_is_text=lambda s: s.update(rounds="x"),
    a_round_is_text=lambda s: s.update(rounds=["x"]),
    a_round_lacks_numbers=lambda s: s["rounds"][0].pop("seen"),
    adapter_missing=lambda s: s["rounds"][0].update(adapter="adapters/123"),
    adapter_of_another_folder=lambda s: s["rounds"][0].update(adapter="../copy/" + s["rounds"][0]["adapter"]),
    adapter_is_a_number=lambda s: s["rounds"][0].update(adapter=5),
    cost_of_another_kind=lambda s: s.update(cost=dict(wages=1)),
    asked_is_a_number=lambda s: s.update(asked_ids=5),
    turns_are_a_list=lambda s: s.update(exchange_hashes=[5]),
    other_base=lambda s: s.update(base="other"),
    base_is_a_list=lambda s: s.update(base=[1]),
)


@pytest.mark.parametrize("change", CHANGES)
def test_contradictory_states_are_one_line(change, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    for file in folder.glob("buffer-*"):
        shutil.copy(file, tmp_path)
    state = json.loads((folder / STATE_FILE).read_text())
    CHANGES[change](state)
    (folder / STATE_FILE).write_text(json.dumps(state))
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and caught.value.remedy


def test_a_missing_folder_and_another_model_are_one_line(saved, tmp_path):
    for nowhere in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no saved state here"):
            load(nowhere)
    other = Fake()
    other.base = "other"
    with pytest.raises(InputError, match="saved with base base, this model is other"):
        load_personalizer(saved, other, None, LEXICONS)


def test_a_held_folder_is_not_written(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    me = load(folder)
    with lock_folder(folder):
        with pytest.raises(InputError, match="another run is at work"):
            me.save()
    me.save()
    assert read_state(folder).buffer.dialogues == me.buffer.dialogues


def test_a_stale_writer_is_refused(saved, tmp_path):
    "Three programs read a folder; who saves second would replace the dialogues of the first."
    from personal_llm.device.forgetting import forget_folder

    place = shutil.copytree(saved, tmp_path / "me")
    first, second, fresh = load(place), load(place), start(place)
    for me, row in ((first, 7), (second, 8), (fresh, 9)):
        watch(me, TALK[row : row + 1])
    first.save()
    before = bytes_below(place)
    for me in (second, fresh):
        for act in (me.save, lambda: me.finetune(progress=False), lambda: me.forget(text="answer")):
            with pytest.raises(InputError, match="another personalizer has saved its state here; load it") as caught:
                act()
            assert "\n" not in str(caught.value)
    assert bytes_below(place) == before
    watch(first, TALK[10:11])
    first.save()
    assert TALK[10].id in {d.id for d in load(place).buffer.dialogues}, "who saved last may go on"
    forget_folder(place, text="answer 10")
    with pytest.raises(InputError, match="another personalizer"):
        first.save()
    assert b"answer 10" not in bytes_below(place), "what was forgotten does not come back"


def test_the_folder_is_its_own_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    me = start(Path("me"))
    watch(me, TALK[:1])
    for folder in (None, tmp_path / "me", Path("me"), tmp_path / "elsewhere" / ".." / "me", None):
        me.save(folder)
    stale = load(Path("me"))
    watch(me, TALK[1:2])
    me.save()
    with pytest.raises(InputError, match="another personalizer"):
        stale.save(tmp_path / "me")
