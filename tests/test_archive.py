"The archive: what is stored whole, what is refused, and what is left of deleted text."

import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.app.personalize import check_memory_folder
from personal_llm.base.core import Dialogue, InputError
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.archive import ARCHIVE_FILE, Archive, delete_dialogues, hold_folder, is_archive_file
from personal_llm.device.archive import load_vectors, open_archive, purge, read_model_name, store_vectors
from personal_llm.device.state import State, open_state


def say(archive, prompt, response="An answer.", history=(), talk="monday", **fields):
    dialogue = Dialogue(prompt, response, history, **fields)
    with archive.transaction():
        archive.add(dialogue, talk)
        archive.append("said", dialogue.id, dict(reads=[]))
    return dialogue


TEXT = st.text(min_size=1, max_size=40).filter(lambda text: text.strip())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=6))
def test_a_second_opening_reads_the_same_dialogues(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("archive")
    archive = Archive(folder)
    history = []
    said = []
    for number, (prompt, response, goes_on) in enumerate(rows):
        history = history if goes_on else []
        said.append(say(archive, prompt, response, history, time=float(number)))
        history = [*history, ("user", prompt), ("assistant", response)]
    archive.close()
    again = Archive(folder)
    clean = [d.prompt.encode("utf-8", "replace").decode() for d in said]
    assert [d.prompt for d in again.dialogues.values()] == clean
    if clean == [d.prompt for d in said] and len({(p, r) for p, r, _ in rows}) == len(rows):
        assert list(again.dialogues.values()) == said
    assert len(again.events) == len(said)
    again.close()


def test_a_full_disk_is_one_line_and_like_any_error_changes_nothing(tmp_path):
    archive = Archive(tmp_path)
    kept = say(archive, "Who wrote Emma?")
    pages = archive.execute("PRAGMA page_count")[0][0]
    archive.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(InputError, match="full.*free some space"):
        say(archive, "long " * 20_000)
    with pytest.raises(ZeroDivisionError), archive.transaction():
        archive.add(Dialogue("half", "a turn"))
        1 / 0
    assert list(archive.dialogues) == [kept.id]
    archive.execute("PRAGMA max_page_count = 100000")
    assert say(archive, "And Ulysses?").id in archive.dialogues


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1])
def test_a_file_that_was_cut_or_lost_a_page_is_reported(tmp_path, share):
    archive = Archive(tmp_path)
    for number in range(50):
        say(archive, f"Question {number}?", "An answer. " * 30)
    assert archive.execute("PRAGMA synchronous") == [(2,)], "FULL"
    query = "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE name = 'events_of_a_dialogue'"
    page, size = archive.execute(query)[0]
    archive.close()
    file = tmp_path / ARCHIVE_FILE
    content = file.read_bytes()
    zeroed = content[: (page - 1) * size] + bytes(size) + content[page * size :]
    file.write_bytes(content[: int(share * len(content))] if share < 1 else zeroed)
    with pytest.raises(InputError, match="damaged"):
        Archive(tmp_path)


def test_the_file_belongs_to_its_owner_alone(tmp_path):
    archive = Archive(tmp_path / "new")
    say(archive, "Who wrote Emma?")
    for file in (tmp_path / "new").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_deleting_takes_events_vectors_and_bytes_along(tmp_path):
    archive = Archive(tmp_path)
    gone = say(archive, "My dog is called Biscuit.", "What a lovely name, Biscuit!")
    kept = say(archive, "Who wrote Emma?", history=[("user", gone.prompt), ("assistant", gone.response)])
    store_vectors(archive, "encoder", {gone.id: [1.0, 0.0], kept.id: [0.0, 1.0]})
    delete_dialogues(archive, [gone.id])
    purge(archive)
    assert list(archive.dialogues) == [kept.id]
    assert archive.dialogues[kept.id].history == ()
    assert [event.dialogue for event in archive.events] == [kept.id]
    assert [*load_vectors(archive, "encoder")] == [kept.id]
    content = b"".join(file.read_bytes() for file in Path(tmp_path).iterdir())
    assert b"biscuit" not in content.lower()


@pytest.mark.parametrize(
    "error", [OSError(37, "No locks available"), PermissionError(13, "denied"), NotImplementedError("no flock")]
)
def test_a_disk_that_cannot_lock_is_one_line(tmp_path, monkeypatch, error):
    def fail(lock, *given, **named):
        raise error

    monkeypatch.setattr("personal_llm.device.archive.FileLock.acquire", fail)
    with pytest.raises(InputError, match=r"cannot be locked \((No locks available|denied|no flock)\); choose a folder"):
        hold_folder(tmp_path)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    archive = Archive("~/me")
    hold_folder("~/me").release()
    assert archive.file == tmp_path / "me" / ARCHIVE_FILE and sorted(p.name for p in tmp_path.iterdir()) == ["me"]


def test_an_archive_in_memory_needs_no_temporary_file():
    archive = Archive()
    assert archive.file is None and archive.execute("PRAGMA temp_store") == [(2,)], "MEMORY"
    say(archive, "My dog is called Biscuit.")
    purge(archive)


def test_a_folder_is_held_once_also_within_one_program(tmp_path):
    (tmp_path / ARCHIVE_FILE).touch()
    held = hold_folder(tmp_path)
    for read in (hold_folder, check_memory_folder):  # the second one before a model is loaded
        with pytest.raises(InputError, match="another program is at work.*me.close()"):
            read(tmp_path)
    held.release()
    check_memory_folder(tmp_path)
    hold_folder(tmp_path).release()


def test_the_name_of_the_last_model_is_read_without_the_rest(tmp_path):
    assert read_model_name(tmp_path) == "" and not [*tmp_path.iterdir()]
    archive = Archive(tmp_path)
    assert read_model_name(tmp_path) == ""
    for name in ("first", "second"):
        archive.append("configured", content=dict(base="b", model=name, settings={}, buffer=Buffer().header()))
        assert read_model_name(tmp_path) == name == open_state(archive).model
    archive.execute("UPDATE events SET content = '{' WHERE number = 2")
    archive.close()
    with pytest.raises(InputError, match="memory.sqlite: damaged"):
        read_model_name(tmp_path)


@pytest.mark.parametrize("folder", ["~nobody-of-this-name/me", "a\0b", "a" * 300, 5, b"me"])
def test_what_names_no_folder_is_one_line(folder):
    for read in (Archive, hold_folder, check_memory_folder):
        with pytest.raises(InputError, match="names no folder .*; choose another folder"):
            read(folder)


@pytest.mark.parametrize("other, is_damage", [(".lock", 0), ("memory.sqlite-journal", 0), ("adapters", 1)])
def test_an_empty_file_is_a_first_opening_that_was_interrupted_or_damage(other, is_damage, tmp_path):
    for name in (ARCHIVE_FILE, other):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="damaged .file is not a database" if is_damage else "no memory here"):
        open_archive(tmp_path)
    if is_damage:
        for read in (Archive, check_memory_folder, read_model_name):  # the last two before a model is loaded
            with pytest.raises(InputError, match="memory.sqlite: damaged"):
                read(tmp_path)
        assert (tmp_path / ARCHIVE_FILE).stat().st_size == 0
    else:
        Archive(tmp_path).close()


def write_foreign(file, query):
    with sqlite3.connect(file) as other:
        other.execute(query)
    other.close()


@pytest.mark.parametrize(
    "change",
    [
        "dialogues SET prompt = CAST(prompt || x'ff' AS TEXT)",
        "dialogues SET response = CAST(response AS BLOB)",
        "dialogues SET details = json_set(details, '$.origin', 'Berlin')",
        "dialogues SET time = 'Berlin'",
        "events SET content = json_set(content, '$.scope', 'Berlin') WHERE kind = 'scoped'",
        "events SET content = CAST(content || x'ff' AS TEXT)",
    ],
)
def test_a_damaged_field_is_named_with_its_file_and_without_its_text(change, tmp_path):
    archive = Archive(tmp_path)
    state = State(archive, Buffer(4, "fifo"))
    state.record("configured", base="b", model="m", settings={}, buffer=state.buffer.header())
    said = say(archive, "I live in Berlin.", "In Berlin?", origin="model")
    state.record("scoped", said.id, scope="here", act=1)
    archive.close()
    write_foreign(tmp_path / ARCHIVE_FILE, f"UPDATE {change}")
    with pytest.raises(InputError, match="^.*memory.sqlite: damaged .*restore a copy") as failure:
        open_state(Archive(tmp_path))
    assert "Berlin" not in str(failure.value)


@pytest.mark.parametrize("vector", ["x'00'", "x'0000807f'", "zeroblob(8)", "'text'"])
def test_a_damaged_vector_counts_as_missing(vector, tmp_path):
    archive = Archive(tmp_path)
    ids = [say(archive, prompt).id for prompt in ("Who wrote Emma?", "And Ulysses?")]
    store_vectors(archive, "encoder", dict.fromkeys(ids, [0.6, 0.8]))
    archive.execute(f"UPDATE dialogues SET vector = {vector} WHERE id = ?", (ids[0],))
    assert [*load_vectors(archive, "encoder")] == ids[1:]


@pytest.mark.parametrize(
    "content, line",
    [
        (b"my shopping list, " * 20, "damaged .file is not a database.; restore a copy"),
        (b"SQLite format 3\0" + bytes(4000), "damaged .file is not a database.; restore a copy"),
        (b"short", "damaged .file is not a database.; restore a copy"),
        ("CREATE TABLE recipes (name TEXT)", "not an archive of this version; choose another folder"),
        ("PRAGMA user_version = 0", "not an archive of this version; choose another folder"),  # an earlier one
    ],
)
def test_a_foreign_file_and_an_earlier_version_are_one_line_and_stay_as_they_are(content, line, tmp_path):
    file = tmp_path / ARCHIVE_FILE
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        if content.startswith("PRAGMA"):
            Archive(tmp_path).close()
        write_foreign(file, content)
    before = file.read_bytes()
    with pytest.raises(InputError, match=line):
        Archive(tmp_path)
    assert file.read_bytes() == before
    assert is_archive_file(file) == (content == "PRAGMA user_version = 0")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_copied_folder_is_closed_to_other_accounts_when_it_is_opened(tmp_path):
    (tmp_path / "adapters").mkdir()
    archive = Archive(tmp_path)
    say(archive, "I have gout.")
    archive.close()
    for name, mode in ((ARCHIVE_FILE, 0o644), ("adapters", 0o755)):
        (tmp_path / name).chmod(mode)
    hold_folder(tmp_path).release()
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in (ARCHIVE_FILE, "adapters")] == ["0o600", "0o700"]
