"A personalizer's folder: what is read back, what a kill leaves, who may read it, what is refused."

import json
import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from devices import LEXICONS, TALK, Fake, User, bytes_below, fake_tune, fill_disk, start, told, watch
from kills import every_kill

from personal_llm.base.adapters import WEIGHTS_FILE
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import is_full_disk, lock_folder
from personal_llm.base.lineage import STORE_FILE
from personal_llm.buffer import buffer as buffer_module
from personal_llm.device import memory, personalizer
from personal_llm.device.memory import claim_folder, hold_store, open_store, remove_adapter
from personal_llm.device.personalizer import load_personalizer
from personal_llm.device.memory import find_state_folders, get_state_version
from personal_llm.device.replay import folder_status, read_state
from personal_llm.tuning.config import TuningConfig


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    monkeypatch.setattr(personalizer, "tune", fake_tune)


def load(folder, user=None):
    return load_personalizer(folder, Fake(), user, LEXICONS)


def files_below(folder) -> list:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def start_and_tune(folder) -> tuple:  # (a saved personalizer, its adapter's folder)
    me = start(folder)
    watch(me, TALK[:6])
    place = me.finetune(progress=False).path
    me.save()
    return me, place


# ---- there and back


@pytest.mark.parametrize("policy", ["sdss", "reservoir", "kcenter"])
def test_saved_and_loaded_goes_on_the_same_way(policy, tmp_path):
    given = dict(
        finetune_every=9,
        max_questions=7,
        ask_when="arrival",
        seed=3,
        config=TuningConfig(steps=2),
    )
    me = start(tmp_path, policy=policy, user=User(), **given)
    watch(me, TALK[:14])
    me.save()
    again = load(tmp_path, User())
    assert told(again) == told(me) and again.state.settings == me.state.settings
    assert again.config == me.config and again.settings.ask_when == "arrival"
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
        os.utime(tmp_path / f"run-{number}" / STORE_FILE, (number, number))
    assert folder_status(tmp_path)["seen"] == 5
    os.utime(tmp_path / "run-0" / STORE_FILE, (9, 9))
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


LATER = [pytest.param(change, marks=pytest.mark.later) for change in (tune_again, forget_kept)]


@pytest.mark.parametrize("change", [more, *LATER, forget_learned])
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
        assert STORE_FILE in names and not any(name.startswith(f"{STORE_FILE}-") for name in names), step
        adapters = {name.split("/")[1] for name in names if name.startswith("adapters/")}
        assert adapters == {Path(c.adapter).name for c in me.rounds}, (step, "debris")
        assert not any(".tmp" in name for name in names), (step, "debris")
        return me.buffer.dialogues, len(me.rounds)

    outcomes = every_kill(folder, work, check)
    assert all(one in (old, new) for one in outcomes), f"{change.__name__}: neither the old one nor the new one"
    assert outcomes == sorted(outcomes, key=lambda one: one == new)
    assert len(outcomes) > 1 and outcomes[0] == old and outcomes[-1] == new


def test_debris_goes_and_what_others_put_there_stays(tmp_path):
    me = start(tmp_path)
    watch(me, TALK[:6])
    me.finetune(progress=False)
    me.save()
    before = files_below(tmp_path)
    half = claim_folder(tmp_path / "adapters" / "007")
    for place in (half / WEIGHTS_FILE, half / "checkpoints" / "x", tmp_path / "adapters/000/checkpoints/3"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("half")
    others = ["adapters/007/notes.txt", "adapters/008/" + WEIGHTS_FILE, "adapters/thesis/a.txt", "thesis.txt"]
    others += [".state.json.12.tmp", "buffer-0123456789abcdef.safetensors"]
    others += ["adapters/000/x.txt"]
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    load(tmp_path).save()
    assert files_below(tmp_path) == sorted(before + others)
    assert remove_adapter(tmp_path / "nowhere") == []


def test_a_foreign_adapter_is_not_overwritten(tmp_path):
    "A folder of yours in the place of ours: the adapter gets the next number, a fine-tune in the background refuses."
    for name in ("adapters/000", "learning"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / WEIGHTS_FILE).write_text("mine")
    me = start(tmp_path)
    watch(me, TALK[:6])
    assert [me.finetune(progress=False).path.name for _ in range(2)] == ["001", "002"]
    me.save()
    me.forget(everything=True)
    assert not [name for name in ("001", "002") if (tmp_path / "adapters" / name).exists()]
    with pytest.raises(InputError, match="learning: not made by this package"):
        claim_folder(tmp_path / "learning")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="not made by this package"):
        claim_folder(tmp_path / "link")
    assert [(tmp_path / name / WEIGHTS_FILE).read_text() for name in ("adapters/000", "learning")] == ["mine"] * 2


def test_a_file_that_took_the_place_of_ours_stays(tmp_path):
    "Its folder has no mark of ours, and its hash is not recorded."
    me, place = start_and_tune(tmp_path)
    os.replace(place, tmp_path / "moved")
    place.mkdir()
    (place / WEIGHTS_FILE).write_text("mine")
    me.forget(everything=True)
    assert (place / WEIGHTS_FILE).read_text() == "mine"


def test_a_changed_adapter_is_refused(tmp_path):
    "At 200 places of each file: no bit is accepted."
    me, place = start_and_tune(tmp_path)
    for file in sorted(place.iterdir()):
        content = file.read_bytes()
        for at in range(0, len(content), len(content) // 200 + 1):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
            with pytest.raises(InputError):
                load(tmp_path)
        file.write_bytes(content)
    assert load(tmp_path).adapter.path == place


@pytest.mark.later
def test_a_flipped_bit_of_the_store_is_refused_or_changes_nothing(tmp_path):
    me = start(tmp_path / "me", user=User())
    watch(me, TALK[:30])
    me.finetune(progress=False)
    me.save()
    whole, before, num_refused = (tmp_path / "me" / STORE_FILE).read_bytes(), told(load(tmp_path / "me")), 0
    for at in range(0, len(whole), len(whole) // 400 + 1):
        (tmp_path / "me" / STORE_FILE).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            assert told(load(tmp_path / "me")) == before, at
        except InputError as error:
            assert "\n" not in str(error)
            num_refused += 1
    assert num_refused > 100


def test_a_full_disk_is_one_line_and_leaves_the_old_state(tmp_path, monkeypatch):
    me = start(tmp_path)
    watch(me, TALK[:6])
    me.save()
    before = told(me)
    watch(me, TALK[6:9])
    with monkeypatch.context() as patch:
        fill_disk(patch)
        with pytest.raises(InputError, match="database or disk is full") as caught:
            me.save()
        assert is_full_disk(caught.value)
    assert told(load(tmp_path)) == before


# ---- who may read it


def test_a_disk_that_breaks_while_a_store_is_held_is_one_line(saved, tmp_path, monkeypatch):
    def breaks(statement):
        raise sqlite3.OperationalError("disk I/O error")

    folder = shutil.copytree(saved, tmp_path / "copy")
    monkeypatch.setattr(memory, "connect_database", lambda file: SimpleNamespace(execute=breaks))
    with pytest.raises(InputError, match="memory.db: cannot be used"), hold_store(folder):
        pass


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
    assert held == [STORE_FILE] and b"answer" in bytes_below(tmp_path)


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


CONTENTS = ["{", "[]", "null", "SQLite format 3", "SQLite format 3\0" * 500]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_damaged_states_are_one_line(content, tmp_path):
    (tmp_path / STORE_FILE).write_text(content)
    for act in (load, folder_status):
        with pytest.raises(InputError, match="memory.db: damaged") as caught:
            act(tmp_path)
        assert "\n" not in str(caught.value) and caught.value.remedy


def of_kind(kind, change):
    "Change the facts of the first event of a kind."
    return lambda events, rows: change(next(facts for name, facts in events if name == kind))


def settings_of(change):
    return of_kind("configured", lambda facts: change(facts["settings"]))


CHANGES = dict(
    a_loss_is_text=of_kind("tuned", lambda facts: facts.update(best_loss="low")),
    no_settings=of_kind("configured", lambda facts: facts.pop("settings")),
    settings_of_another_kind=of_kind("configured", lambda facts: facts.update(settings=[1])),
    no_config=settings_of(lambda settings: settings.pop("config")),
    negative_seed=settings_of(lambda settings: settings.update(seed=-1)),
    unknown_moment=settings_of(lambda settings: settings.update(ask_when="x")),
    no_buffer=of_kind("configured", lambda facts: facts.pop("buffer")),
    buffer_is_text=of_kind("configured", lambda facts: facts.update(buffer="x")),
    no_policy=of_kind("configured", lambda facts: facts["buffer"].pop("policy")),
    unknown_policy=of_kind("configured", lambda facts: facts["buffer"].update(policy="x")),
    a_round_lacks_numbers=of_kind("tuned", lambda facts: facts.pop("seen")),
    adapter_missing=of_kind("tuned", lambda facts: facts.update(adapter="adapters/123")),
    adapter_of_another_folder=of_kind("tuned", lambda facts: facts.update(adapter="../copy/" + facts["adapter"])),
    adapter_is_a_number=of_kind("tuned", lambda facts: facts.update(adapter=5)),
    a_warm_start_is_a_number=of_kind("tuned", lambda facts: facts.update(warm=5)),
    cost_of_another_kind=of_kind("offered", lambda facts: facts.update(cost=dict(wages=1))),
    other_base=of_kind("configured", lambda facts: facts.update(base="other")),
    base_is_a_list=of_kind("configured", lambda facts: facts.update(base=[1])),
    a_step_is_text=of_kind("kept", lambda facts: facts.update(step="first")),
    no_reason=of_kind("kept", lambda facts: facts.pop("reason")),
    a_generator_is_a_number=of_kind("kept", lambda facts: facts.update(random=5)),
    a_score_is_text=of_kind("scored", lambda facts: facts["scores"].update(eoe="high")),
    a_domain_is_a_number=of_kind("scored", lambda facts: facts["scores"].update(domain=5)),
    an_embedding_is_no_base64=of_kind("scored", lambda facts: facts["scores"].update(embedding="?")),
    facts_are_a_list=of_kind("offered", lambda facts: facts.clear()),
    no_version=of_kind("learned", lambda facts: facts.pop("version")),
)


def rewrite(folder, change) -> None:
    "Change the facts of events, with right checksums."
    with open_store(folder, writes=True) as store:
        rows = [list(row) for row in store.execute("SELECT * FROM events ORDER BY number")]
        events = [(row[1], json.loads(row[3])) for row in rows]
        change(events, rows)
        for row, (_, facts) in zip(rows, events):
            values = (*row[:3], json.dumps(facts))
            store.execute(
                "UPDATE events SET content = ?, checksum = ? WHERE number = ?",
                (values[3], memory._hash_row(values), row[0]),
            )


@pytest.mark.parametrize("change", CHANGES)
def test_contradictory_states_are_one_line(change, saved, tmp_path):
    "Also where every checksum is right."
    folder = shutil.copytree(saved, tmp_path / "copy")
    rewrite(folder, CHANGES[change])
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize("value", [False, True])
def test_a_folder_with_a_setting_that_this_version_does_not_know_opens(value, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    former, former_config = dict(preferences=value, synthesis_mode="both"), dict(gradient_accumulation_steps=1 + value)
    rewrite(folder, settings_of(lambda all: all.update(former, config=all["config"] | former_config)))
    assert folder_status(folder)["seen"] == folder_status(saved)["seen"]
    me = load(folder)
    assert me.settings == load(saved).settings and me.config == load(saved).config
    me.save()
    assert load(folder).status() == me.status()


@pytest.mark.parametrize("column", ["prompt", "scores", "history", "labels", "parents", "origin", "time"])
def test_a_damaged_dialogue_is_one_line(column, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    with open_store(folder, writes=True) as store:
        store.execute(f"UPDATE dialogues SET {column} = 5")
    with pytest.raises(InputError, match="memory.db: damaged"):
        folder_status(folder)
    with open_store(folder, writes=True) as store:
        for row in store.execute("SELECT * FROM dialogues").fetchall():
            store.execute("UPDATE dialogues SET checksum = ? WHERE id = ?", (memory._hash_row(row[:-1]), row[0]))
    if column != "time":  # a number is a time
        with pytest.raises(InputError, match="memory.db: damaged"):
            folder_status(folder)


def test_a_missing_row_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    with open_store(folder, writes=True) as store:
        store.execute("DELETE FROM events WHERE kind = 'configured'")
    with pytest.raises(InputError, match="no saved state here"):
        load(folder)


def test_a_missing_folder_and_another_model_are_one_line(saved, tmp_path):
    for nowhere in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no saved state here"):
            load(nowhere)
    other = Fake()
    other.base = "other"
    with pytest.raises(InputError, match="saved with base fake, base, this model is other"):
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


# ---- many turns


def test_each_turn_writes_its_own_rows_only(tmp_path):
    "A log of many blocks: after each turn the stored state equals the one in memory."
    me = start(tmp_path, capacity=3, policy="reservoir")
    for n in range(0, 300, 10):
        watch(me, [Dialogue(f"{n + k} pill", "tea", time=n + k) for k in range(10)])
        me.save()
        assert told(load(tmp_path)) == told(me), n
    version = get_state_version(tmp_path)
    me.save()
    assert get_state_version(tmp_path) == version, "nothing has changed"
    me.forget([me.buffer.log[5].id])
    assert told(load(tmp_path))[:2] == told(me)[:2] and me.buffer.log[5].step == 6
    watch(me, TALK[:1])
    me.save()
    assert told(load(tmp_path)) == told(me)


def test_the_log_of_a_long_life_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(buffer_module, "MAX_LOGGED_DECISIONS", 5)
    me = start(tmp_path, policy="reservoir")
    watch(me, TALK)
    me.save()
    assert told(load(tmp_path)) == told(me) and len(me.buffer.log) == 5 and len(me.memory.dialogues) == 40


def test_a_state_that_replaces_another_one_leaves_nothing_of_it(tmp_path):
    first, second = start(tmp_path), start()
    watch(first, [Dialogue(f"{k} pill", "tea", time=k) for k in range(200)])
    first.save()
    watch(second, TALK[:3])
    second.save(tmp_path)
    assert told(load(tmp_path))[:5] == told(second)[:5]
    assert load(tmp_path).memory.dialogues.keys() == second.memory.dialogues.keys()


def test_a_later_version_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    with open_store(folder, writes=True) as store:
        store.execute("PRAGMA user_version=9")
    before = (folder / STORE_FILE).read_bytes()
    with pytest.raises(InputError, match="damaged, or of a later version; update this package"):
        load(folder)
    assert (folder / STORE_FILE).read_bytes() == before
