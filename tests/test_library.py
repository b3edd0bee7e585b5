"The library folder: round trips, interrupts at every step, ten thousand pLLMs, and everything that is refused."

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from safetensors.torch import load_file, save_file

from libraries import (
    GIVEN,
    Space,
    adapter,
    edit,
    files,
    four,
    rewrite,
    settings_and_sum,
    sha256,
    small,
    stand_in,
    widen,
    words,
)
from personal_llm.base.core import InputError
from personal_llm.selection.cards import MAX_PLLM_RANK, PLLM, write_index
from personal_llm.selection.library import Library
from personal_llm.selection.ranking import cosine_distance, find_nearest
from personal_llm.selection.merging import merge
from tiny import shared, tiny


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    stand_in(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return four(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        return small(tmp_path_factory.mktemp("whole") / "lib", made)


@pytest.fixture
def lib(whole, tmp_path):
    return Library(shutil.copytree(whole.path, tmp_path / "lib"))


def problems(library):
    "Names of what `verify` finds."
    return [p.name for p in library.verify()]


# ---- reading


def test_round_trip(lib):
    again = Library(lib.path)
    assert again.names == list("abc") == list(again) and len(again) == 3
    assert "b" in again and "z" not in again and None not in again and again.base == shared("llama").base
    assert isinstance(again.rows, np.memmap) and not again.rows.flags.writeable and again.rows.dtype == np.float32
    assert np.array_equal(again.rows, np.stack([words(i).row for i in range(3)]))
    assert np.array_equal(again.columns("coordinates"), again.rows[:, :3])
    assert again.columns("stylometry").shape == (3, 1)
    assert np.shares_memory(again.columns("coordinates"), again.rows)
    assert problems(again) == []
    assert isinstance(again.space, Space)
    found = sorted(p.name for p in lib.path.iterdir())
    assert found == ["a", "b", "c", "index.json", "index.npy", "space.json"]
    assert merge(again, dict(a=0.5, c=0.5)).base == lib.base


def test_one_pllm(lib, made):
    b = lib["b"]
    assert isinstance(b, PLLM) and b.name == "b" and np.array_equal(b.explanation.row, words(1).row)
    source, copy = (folder / "adapter_model.safetensors" for folder in (made[1], b.adapter))
    assert copy.read_bytes() == source.read_bytes() and b.card["sha256"] == sha256(source)
    assert b.card["bytes"] == copy.stat().st_size
    known = dict(rank=2, samples=30, similarity=0.9, style="loud", licence="CC0-1.0", base=lib.base, space="space-1")
    assert {k: b.card[k] for k in known} == known
    with shared("llama").use_adapter(b.adapter):
        pass


def test_the_list_is_of_plain_values(lib):
    lines = lib.list()
    line = dict(name="b", style="loud", words="mostly *loud*", rank=2, samples=30, similarity=0.9, licence="CC0-1.0")
    assert [r["name"] for r in lines] == list("abc") and lines[1] == line | dict(MB=lines[1]["MB"])
    assert lines[1]["MB"] == round(lib.card("b")["bytes"] / 1e6, 2) and json.dumps(lines)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["index.npy", "index.next.npy", "space.json", "space.safetensors", "sketch-8.npy"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_shared_files_that_never_end_are_refused(lib, name, kind):
    file = lib.path / name
    file.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(file)
        reader = os.open(file, os.O_RDWR)  # so that a program that opens it is not blocked
        os.write(reader, b"0" * 64)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    with pytest.raises(InputError, match=f"{re.escape(name)}: neither a file nor missing"):
        Library(lib.path)


def test_no_private_things_are_copied(lib, made, tmp_path):
    "Neither the ids of dialogues nor the paths of the machine that made the adapter."
    assert "d" not in json.loads((lib["a"].adapter / "adapter.json").read_text()).get("parents", [])
    mine = Path(shutil.copytree(made[3], tmp_path / "mine"))
    edit(mine / "adapter_config.json", base_model_name_or_path="/home/ana/models/pocket")
    (mine / "notes.txt").write_text("private")
    lib.add("d", mine, words(3), **GIVEN)
    assert json.loads((lib["d"].adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "pocket"
    own = {"adapter_model.safetensors", "adapter_config.json", "adapter.json", "card.json"}
    assert {p.name for p in lib["d"].adapter.iterdir()} == own
    assert not any(b"/home/ana" in content or b"private" in content for content in files(lib.path).values())


def test_an_adapter_does_not_fit_another_model(lib):
    with pytest.raises(InputError, match="made for base"):
        with tiny("llama", seed=1).use_adapter(lib["a"].adapter):
            pass


def test_empty(tmp_path):
    lib = Library.create(tmp_path / "new", Space("base"))
    for one in (lib, Library(tmp_path / "new")):
        assert len(one) == 0 and one.names == [] and one.rows.shape == (0, 4)
        assert one.columns("coordinates").shape == (0, 3) and one.verify() == [] and one.list() == []
        with pytest.raises(InputError, match="empty"):
            one["a"]


def test_ten_thousand_open_without_reading_a_card(tmp_path, monkeypatch):
    "Only index.json, space.json and the matrix's header are there to be read."
    lib = Library.create(tmp_path / "big", Space("base"))
    names = [f"pllm-{i:05}" for i in range(10_000)]
    rows = np.random.default_rng(0).normal(size=(10_000, 4)).astype(np.float32)
    write_index(lib.path, lib.index.head, names, rows)
    opened, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self.name) or real(self))
    big = Library(tmp_path / "big")
    assert opened == [] and len(big) == 10_000 and big.names[-1] == "pllm-09999"
    assert isinstance(big.rows, np.memmap) and np.array_equal(big.rows, rows) and opened == ["index.npy"]
    assert big.columns("coordinates")[1234].tolist() == rows[1234, :3].tolist() and opened == ["index.npy"], "read once"
    with pytest.raises(InputError, match="pllm-01234.*missing"):
        big["pllm-01234"]


def test_names_that_are_not_there(lib):
    for name in ("zz", "../a", None, 3, ["a"]):
        with pytest.raises(InputError) as error:
            lib[name]
        assert error.value.remedy
        with pytest.raises(InputError):
            lib.remove(name)
    with pytest.raises(InputError, match="such as a"):
        lib["aa"]
    assert lib.names == list("abc")


# ---- changes


def test_a_name_is_taken_once(lib, made):
    lib.add("d", made[3], words(3), **GIVEN)
    for name in "dD":
        with pytest.raises(InputError, match="already"):
            lib.add(name, made[0], words(0), **GIVEN)
    assert Library(lib.path).names == list("abcd") and problems(lib) == []
    harm(lib.path, "card cut")
    with pytest.raises(InputError, match="already"):
        Library(lib.path).add("b", made[3], words(3), **GIVEN)
    assert Library(lib.path).names == list("abcd")


def test_remove(lib):
    lib.remove("b")
    for one in (lib, Library(lib.path)):
        assert one.names == ["a", "c"] and problems(one) == []
        assert np.array_equal(one.rows, np.stack([words(0).row, words(2).row]))
        with pytest.raises(InputError):
            one["b"]
    assert not (lib.path / "b").exists()
    before = files(lib.path)
    with pytest.raises(InputError):
        lib.remove("b")
    assert files(lib.path) == before


@pytest.mark.parametrize("read", [True, False], ids=["matrix read before", "not yet"])
def test_a_change_of_somebody_else_is_not_lost(read, lib, made):
    other = Library(lib.path)
    assert len(lib.rows if read else lib) == 3
    other.add("d", made[3], words(3), **GIVEN)
    for act in (lambda: lib.remove("a"), lambda: lib.add("e", made[0], words(0), **GIVEN)):
        with pytest.raises(InputError, match="changed since") as error:
            act()
        assert error.value.remedy == "open it again"
    assert Library(lib.path).names == list("abcd") and (lib.path / "a").is_dir()


def test_a_change_leaves_no_sketch_of_the_library_that_was(lib, made):
    for act in (lambda: lib.remove("a"), lambda: lib.add("d", made[3], words(3), **GIVEN)):
        for name in ("sketch-8.npy", "sketch-8.safetensors"):
            (lib.path / name).write_bytes(b"old")
        act()
        assert not [*lib.path.glob("sketch-*")] and lib.verify() == []


class Life(RuleBasedStateMachine):
    "Any order of additions and removals, with reopening, against a dict."

    made = None

    def __init__(self):
        super().__init__()
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.lib, self.twin = Library.create(Path(self.place.name) / "lib", Space(shared("llama").base)), {}

    @rule(name=st.sampled_from(["a", "B", "c-1", "d.x"]), i=st.integers(0, 3))
    def add(self, name, i):
        try:
            self.lib.add(name, self.made[i], words(i), **GIVEN)
        except InputError:
            assert name in self.twin
        else:
            assert name not in self.twin
            self.twin[name] = i

    @rule(name=st.sampled_from(["a", "B", "c-1", "d.x"]))
    def remove(self, name):
        try:
            self.lib.remove(name)
        except InputError:
            assert name not in self.twin
        else:
            del self.twin[name]

    @rule()
    def reload_index(self):
        self.lib = Library(self.lib.path)

    @invariant()
    def agrees(self):
        assert self.lib.names == list(self.twin)
        assert [r.tolist() for r in self.lib.rows] == [words(i).row.tolist() for i in self.twin.values()]

    def teardown(self):
        assert problems(self.lib) == []
        self.place.cleanup()


def test_any_life(made):
    Life.made = made
    run_state_machine_as_test(Life, settings=settings(max_examples=10, stateful_step_count=8, deadline=None))


# ---- interrupts


class Dead(BaseException):
    "The process is gone."


def dies_at(patch, k, error):
    "The k-th replacement or deletion does not happen; nothing after it does."
    calls, real, erase = [], os.replace, shutil.rmtree

    def step(act, *a, **kw):
        calls.append(a)
        if len(calls) == k or (len(calls) > k and isinstance(error, Dead)):
            if isinstance(error, OSError) and kw.get("ignore_errors"):
                return
            raise error
        return act(*a, **kw)

    patch.setattr(os, "replace", lambda *a, **kw: step(real, *a, **kw))
    rmtree = lambda path, ignore_errors=False, **kw: step(erase, path, ignore_errors=ignore_errors)
    patch.setattr(shutil, "rmtree", rmtree)
    return calls


def half_removed(lib):
    "index.json is new, index.npy the old one."
    with pytest.MonkeyPatch.context() as patch:
        real = os.replace

        def replace(a, b):
            if Path(b).name == "index.npy":
                raise Dead()
            return real(a, b)

        patch.setattr(os, "replace", replace)
        with pytest.raises(Dead):
            lib.remove("b")
    assert (lib.path / "index.next.npy").exists() and Library(lib.path).names == ["a", "c"]


def holds(library, names):
    rows = dict(a=0, b=1, c=2, d=3)
    return library.names == names and [r.tolist() for r in library.rows] == [words(rows[n]).row.tolist() for n in names]


@pytest.mark.parametrize("error", [Dead(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("what", ["add", "remove", "add, after half a removal", "remove, after half a removal"])
def test_interrupted_anywhere(what, error, lib, made, tmp_path):
    "Whichever step fails: reopened, it is the library of before or after, it works, and the same call makes it whole."

    def act(one):
        return one.remove("a") if what.startswith("remove") else one.add("d", made[3], words(3), **GIVEN)

    if "after" in what:
        half_removed(lib)
    before = Library(lib.path).names
    after = [n for n in before if n != "a"] if what.startswith("remove") else before + ["d"]
    for k in range(1, 40):
        copy = Path(shutil.copytree(lib.path, tmp_path / f"copy{k}"))
        one = Library(copy)
        with pytest.MonkeyPatch.context() as patch:
            calls = dies_at(patch, k, error)
            try:
                act(one)
                failed = False
            except (Dead, InputError):
                failed = True
        if len(calls) < k:
            break
        again = Library(copy)
        assert holds(again, before) or holds(again, after), (k, calls[-1])
        for name in again.names:
            again[name]
        if isinstance(error, OSError):
            assert one.names == again.names and failed == (again.names == before), "memory and disk agree"
        if again.names == before or (copy / "a").is_dir() and what.startswith("remove"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 7)  # the same call, of another process
                act(again)
            assert not [*copy.rglob(".*.tmp")]
        assert holds(Library(copy), after)
        assert set(problems(Library(copy))) <= {"b"}, Library(copy).verify()  # of the half removal before
    assert k > 3 and len(calls) < k


def test_only_what_an_interrupted_removal_left_is_deleted(lib):
    "A folder with other files in it, and one whose name differs from a pLLM's by upper case, stay."
    shutil.copytree(lib.path / "a", lib.path / "d")
    lib.remove("d")
    assert not (lib.path / "d").exists() and problems(lib) == []
    shutil.copytree(lib.path / "a", lib.path / "C")
    shutil.copytree(lib.path / "a", lib.path / "e")
    (lib.path / "e" / "notes.txt").write_text("mine")
    (lib.path / "f").symlink_to(lib.path / "a")
    before = files(lib.path)
    for name in ("C", "e", "f", "..", "index.npy"):
        with pytest.raises(InputError):
            lib.remove(name)
    assert files(lib.path) == before and lib.names == list("abc")


def test_a_full_disk_leaves_nothing_behind(lib, made, monkeypatch):
    before, real = files(lib.path), os.replace

    def full(a, b):
        if Path(b).name == "d":
            raise OSError(28, "No space left on device")
        return real(a, b)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space"):
        lib.add("d", made[3], words(3), **GIVEN)
    assert files(lib.path) == before and problems(lib) == []


def test_an_orphan_is_ignored_reported_and_replaced(lib, made):
    shutil.copytree(lib.path / "a", lib.path / "d")
    again = Library(lib.path)
    assert again.names == list("abc") and problems(again) == ["d"]
    with pytest.raises(InputError):
        again["d"]
    again.add("d", made[3], words(3), **GIVEN)
    assert problems(again) == [] and np.array_equal(again["d"].explanation.row, words(3).row)


def test_a_link_in_the_way_is_replaced_not_followed(lib, made, tmp_path):
    for name in ("d", f".e.{os.getpid()}.tmp"):
        (tmp_path / name).mkdir()
        (lib.path / name).symlink_to(tmp_path / name)
    lib.add("d", made[3], words(3), **GIVEN)
    lib.add("e", made[3], words(3), **GIVEN)
    assert problems(lib) == [] and not any((tmp_path / "d").iterdir()), "nothing was written to where it led"


# ---- what is refused when adding

REFUSED = dict(
    twice=("a", {}, {}),
    upper=("A", {}, {}),
    climbs=("../d", {}, {}),
    a_file=("notes", {}, {}),
    the_librarys_own=("index.npy", {}, {}),
    space=("d", dict(space="other"), {}),
    width=("d", dict(row=np.ones(5)), {}),
    nan=("d", dict(row=np.array([1, np.nan, 1, 1])), {}),
    licence=("d", {}, dict(licence=" ")),
    no_licence=("d", {}, dict(licence=None)),
    samples=("d", {}, dict(samples=-1)),
    samples_text=("d", {}, dict(samples="many")),
    samples_bool=("d", {}, dict(samples=True)),
    similarity=("d", {}, dict(similarity=90)),
    style=("d", {}, dict(style=7)),
)


@pytest.mark.parametrize("case", REFUSED)
def test_additions_that_are_refused(case, lib, made):
    (lib.path / "notes").write_text("x")
    name, said, more = REFUSED[case]
    before = files(lib.path)
    with pytest.raises(InputError) as error:
        lib.add(name, made[3], dataclasses.replace(words(3), **said), **GIVEN | more)
    assert error.value.remedy and "\n" not in str(error.value)
    assert files(lib.path) == before and lib.names == list("abc")


def test_numbers_of_numpy_are_numbers(lib, made):
    lib.add("d", made[3], words(3), licence="CC0-1.0", samples=np.int64(7), similarity=np.float32(0.5))
    assert (lib["d"].card["samples"], lib["d"].card["similarity"]) == (7, 0.5)


def other_adapter(folder, how, source):
    shutil.copytree(source, folder)
    if how == "base":
        edit(folder / "adapter.json", base="another")
    elif how == "cut":
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
    elif how == "pickle":
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    elif how == "gone":
        shutil.rmtree(folder)
    elif how == "rank":
        shutil.rmtree(folder)
        adapter(folder, shared("llama"), MAX_PLLM_RANK + 1, targets=["q_proj"])
    elif how == "scale":
        edit(folder / "adapter_config.json", lora_alpha=999)
    else:
        edit(folder / "adapter_config.json", **{how: True})
    return folder


KINDS = ["base", "cut", "pickle", "gone", "rank", "scale", "use_rslora", "use_dora", "lora_bias"]


@pytest.mark.parametrize("how", KINDS)
def test_adapters_that_are_refused(how, lib, made, tmp_path):
    bad, before = other_adapter(tmp_path / "bad", how, made[3]), files(lib.path)
    with pytest.raises(InputError):
        lib.add("d", bad, words(3), **GIVEN)
    assert files(lib.path) == before and problems(Library(lib.path)) == []


# ---- what is refused when reading


def harm(root, how):
    "Damage pLLM b."
    b = root / "b"
    card, weights = b / "card.json", b / "adapter_model.safetensors"
    if how == "card gone":
        card.unlink()
    elif how == "card cut":
        card.write_text(card.read_text()[:40])
    elif how == "card no dict":
        card.write_text("[]")
    elif how == "card bytes":
        card.write_bytes(b"\xff\xfe{}")
    elif how == "card of another":
        edit(card, name="a")
    elif how in ("card base", "card space"):
        edit(card, **{how.split()[1]: "another"})
    elif how == "adapter base":
        edit(b / "adapter.json", base="another")
    elif how == "weights gone":
        weights.unlink()
    elif how == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "weights exchanged":
        save_file({n: t * 2 for n, t in load_file(weights).items()}, weights)
    elif how == "settings changed":
        edit(b / "adapter_config.json", lora_alpha=9)
    elif how == "settings gone":
        (b / "adapter_config.json").unlink()
    elif how == "folder gone":
        shutil.rmtree(b)
    elif how == "wide":
        widen(b, MAX_PLLM_RANK + 1)
    elif how.startswith("settings"):
        settings_and_sum(b, **dict([json.loads(how.removeprefix("settings "))]))


HARMS = """card gone|card cut|card no dict|card bytes|card of another|card base|card space|adapter base
weights gone|weights cut|weights exchanged|settings changed|settings gone|folder gone|wide""".replace("\n", "|").split(
    "|"
)
SETTINGS = ["use_rslora", "use_dora", "lora_bias"]


@pytest.mark.parametrize("how", [*HARMS, *(f'settings ["{name}", true]' for name in SETTINGS), 'settings ["r", 5]'])
def test_a_bad_pllm_is_named_and_can_be_removed(how, lib):
    harm(lib.path, how)
    one = Library(lib.path)  # opening does not look
    assert one.names == list("abc") and len(one.rows) == 3
    with pytest.raises(InputError, match="b") as error:
        one["b"]
    assert error.value.remedy and "\n" not in str(error.value) and one["a"].name == "a" and one["c"].name == "c"
    found = one.verify()
    assert [p.name for p in found] == ["b"] and found[0].problem and found[0].remedy
    with pytest.raises(InputError):
        merge(one, dict(a=0.5, b=0.5))
    one.remove("b")
    assert Library(lib.path).names == one.names == ["a", "c"] and [r["name"] for r in one.list()] == ["a", "c"]
    assert np.array_equal(one.rows, np.stack([words(0).row, words(2).row]))
    assert problems(Library(lib.path)) == [] and not os.path.lexists(lib.path / "b")


def test_removing_a_link_leaves_what_it_points_to(lib):
    (lib.path / "b").rename(lib.path.parent / "outside-b")
    (lib.path / "b").symlink_to(lib.path.parent / "outside-b")
    Library(lib.path).remove("b")
    assert (lib.path.parent / "outside-b" / "card.json").is_file()


def test_additions_keep_a_bad_pllm(lib, made):
    harm(lib.path, "card cut")
    one = Library(lib.path)
    one.add("d", made[3], words(3), **GIVEN)
    assert one.names == Library(lib.path).names == list("abcd") and len(one.rows) == 4


def test_rows_that_are_not_finite(lib):
    rows = np.load(lib.path / "index.npy")
    rows[1, 2] = np.nan
    rewrite(lib.path, rows)
    one = Library(lib.path)
    with pytest.raises(InputError, match="the distance of 'b' is not a finite number; remove that pLLM"):
        find_nearest(cosine_distance(one.rows, np.ones(rows.shape[1])), one.names)
    one.remove("b")
    assert one.names == ["a", "c"] and np.isfinite(one.rows).all()


def test_an_index_that_does_not_agree_with_its_checksum(lib):
    raw = bytearray((lib.path / "index.npy").read_bytes())
    raw[-1] ^= 1
    (lib.path / "index.npy").write_bytes(raw)
    one = Library(lib.path)
    with pytest.raises(InputError, match="checksum"):
        one.rows
    with pytest.raises(InputError, match="checksum"):
        one.add("d", one.path / "a", words(3), **GIVEN)
    assert problems(one) == ["index.npy", "d"]


INDEXES = {
    "gone": lambda r: (r / "index.json").unlink(),
    "cut": lambda r: (r / "index.json").write_text("{"),
    "brackets": lambda r: (r / "index.json").write_text("[" * 100_000),
    "no dict": lambda r: (r / "index.json").write_text("[]"),
    "names no list": lambda r: edit(r / "index.json", names="abc"),
    "twice": lambda r: edit(r / "index.json", names=["a", "b", "a"]),
    "upper": lambda r: edit(r / "index.json", names=["a", "b", "B"]),
    "climbs": lambda r: edit(r / "index.json", names=["a", "b", "../c"]),
    "absolute": lambda r: edit(r / "index.json", names=["a", "b", "/etc"]),
    "device": lambda r: edit(r / "index.json", names=["a", "b", "nul"]),
    "own file": lambda r: edit(r / "index.json", names=["a", "b", "space.json"]),
    "number": lambda r: edit(r / "index.json", names=["a", "b", 3]),
    "one more": lambda r: edit(r / "index.json", names=["a", "b", "c", "d"]),
    "width": lambda r: edit(r / "index.json", width=5),
    "width text": lambda r: edit(r / "index.json", width="4"),
    "columns": lambda r: edit(r / "index.json", columns=dict(coordinates=[0, 9])),
    "columns no dict": lambda r: edit(r / "index.json", columns=[1]),
    "columns of text": lambda r: edit(r / "index.json", columns=dict(coordinates="ab")),
    "base": lambda r: edit(r / "index.json", base=None),
    "matrix gone": lambda r: (r / "index.npy").unlink(),
    "matrix cut": lambda r: (r / "index.npy").write_bytes((r / "index.npy").read_bytes()[:-4]),
    "matrix empty": lambda r: (r / "index.npy").write_bytes(b""),
    "doubles": lambda r: rewrite(r, np.ones((3, 4))),
    "objects": lambda r: np.save(r / "index.npy", np.array([{}] * 3, dtype=object), allow_pickle=True),
    "zip": lambda r: np.savez(open(r / "index.npy", "wb"), x=np.ones((3, 4), np.float32)),
    "pickle": lambda r: (r / "index.npy").write_bytes(b"\x80\x04."),
    "folder gone": lambda r: shutil.rmtree(r),
}


@pytest.mark.parametrize("how", INDEXES)
def test_a_damaged_index_does_not_open(how, lib):
    INDEXES[how](lib.path)
    with pytest.raises(InputError, match="lib") as error:
        Library(lib.path)
    assert error.value.remedy and "\n" not in str(error.value)


def test_spaces(lib, tmp_path):
    other = Space("another")
    with pytest.raises(InputError, match="another"):
        Library(lib.path, other)
    assert Library(lib.path, lib.space).space is lib.space
    for broken in ('{"kind": "dream"}', '{"kind": ["style"]}', "{", "[]", "3"):
        (lib.path / "space.json").write_text(broken)
        with pytest.raises(InputError, match="space.json"):
            Library(lib.path).space
        assert problems(Library(lib.path)) == ["space.json"]
    with pytest.raises(InputError, match="no columns 'dreams'"):
        lib.columns("dreams")
    before = files(lib.path)
    with pytest.raises(InputError, match="already"):
        Library.create(lib.path, other)
    assert files(lib.path) == before
    narrow = Space("b")
    narrow.width = 0
    with pytest.raises(InputError, match="no columns"):
        Library.create(tmp_path / "n", narrow)
