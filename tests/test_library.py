"The library folder: round trips, interrupts at every step, ten thousand entries, and everything that is refused."

import dataclasses, hashlib, json, os, shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from safetensors.torch import load_file, save_file

from personal_llm.start import library as module
from personal_llm.base.core import InputError
from personal_llm.start.library import LARGEST_RANK, Library, PLLM, check_name
from personal_llm.start.merging import merge
from test_merging import adapter
from tiny import shared, tiny


class Space:
    "A space of four columns."

    id, kind, width, columns, threshold = "space-1", "style", 4, dict(coordinates=(0, 3), stylometry=(3, 4)), 1.0

    def __init__(self, base):
        self.base = base

    def save(self, folder):
        (Path(folder) / "space.json").write_text(json.dumps(dict(kind="style", id=self.id, base=self.base)))

    @classmethod
    def load(cls, folder):
        return cls(json.loads((Path(folder) / "space.json").read_text())["base"])


@dataclasses.dataclass
class Words:
    "As much of an explanation as a library looks at."

    row: np.ndarray
    space: str = "space-1"

    def __str__(self):
        return f"mostly *{'loud' if self.row[0] > 0 else 'quiet'}*"

    def to_dict(self):
        return dict(row=[float(x) for x in self.row], space=self.space)

    @classmethod
    def from_dict(cls, d):
        return cls(np.asarray(d["row"], np.float32), d["space"])


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    "The space and the explanation of this file in place of the real ones."
    import sys, types

    place = types.ModuleType("personal_llm.explanation")
    place.Explanation, place.StyleSpace = Words, Space
    monkeypatch.setitem(sys.modules, "personal_llm.explanation", place)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place, model = tmp_path_factory.mktemp("adapters"), shared("llama")
    return [adapter(place / str(i), model, 1 + i % 3, seed=i, targets=["q_proj"]) for i in range(4)]


def words(i):
    return Words(np.array([i + 1, -i, 0.5, 7], np.float32))


GIVEN = dict(licence="CC0-1.0", samples=30)


@pytest.fixture
def lib(made, tmp_path):
    lib = Library.create(tmp_path / "lib", Space(shared("llama").base))
    with lib.adding():
        for i, name in enumerate("abc"):
            lib.add(name, made[i], words(i), similarity=0.9, style="loud", **GIVEN)
    return lib


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_round_trip(lib, made):
    again = Library(lib.path)
    assert (
        again.names == list("abc") == list(again)
        and len(again) == 3
        and "b" in again
        and "z" not in again
        and again.base == shared("llama").base
    )
    assert isinstance(again.rows, np.memmap) and not again.rows.flags.writeable and again.rows.dtype == np.float32
    assert np.array_equal(again.rows, np.stack([words(i).row for i in range(3)]))
    assert (
        np.array_equal(again.columns("coordinates"), again.rows[:, :3])
        and again.columns("stylometry").shape == (3, 1)
        and np.shares_memory(again.columns("coordinates"), again.rows)
    )
    b = again["b"]
    assert (
        isinstance(b, PLLM)
        and b.name == "b"
        and np.array_equal(b.explanation.row, words(1).row)
        and again.verify() == []
        and again.verify(shared("llama")) == []
    )
    assert (b.adapter / "adapter_model.safetensors").read_bytes() == (
        made[1] / "adapter_model.safetensors"
    ).read_bytes()
    assert b.card["sha256"] == hashlib.sha256((made[1] / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert {k: b.card[k] for k in ("rank", "samples", "similarity", "style", "licence", "base", "space")} == dict(
        rank=2, samples=30, similarity=0.9, style="loud", licence="CC0-1.0", base=lib.base, space="space-1"
    )
    assert b.card["bytes"] == (b.adapter / "adapter_model.safetensors").stat().st_size
    with shared("llama").using(b.adapter):
        pass
    assert isinstance(again.space, Space) and sorted(p.name for p in lib.path.iterdir()) == [
        "a",
        "b",
        "c",
        "index.json",
        "index.npy",
        "space.json",
    ]
    assert [r["name"] for r in again.list()] == list("abc") and again.list()[1] == dict(
        name="b",
        style="loud",
        words="mostly *loud*",
        rank=2,
        MB=round(b.card["bytes"] / 1e6, 2),
        samples=30,
        similarity=0.9,
        licence="CC0-1.0",
    )
    assert merge(again, dict(a=0.5, c=0.5)).base == lib.base


def test_no_private_things_are_copied(lib, made):
    "Neither the ids of dialogues nor the paths of the machine that made the adapter."
    assert json.loads((lib["a"].adapter / "adapter.json").read_text())["parents"] == []
    edit(made[3] / "adapter_config.json", base_model_name_or_path="/home/ana/models/pocket")
    (made[3] / "notes.txt").write_text("private")
    lib.add("d", made[3], words(3), **GIVEN)
    assert json.loads((lib["d"].adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "pocket"
    assert {p.name for p in lib["d"].adapter.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "adapter.json",
        "card.json",
    }


def test_an_adapter_does_not_fit_another_model(lib):
    with pytest.raises(InputError, match="made for base"):
        with tiny("llama", seed=1).using(lib["a"].adapter):
            pass


def test_empty(tmp_path):
    lib = Library.create(tmp_path / "new", Space("base"))
    for one in (lib, Library(tmp_path / "new"), Library(tmp_path / "new", skip_bad=True)):
        assert (
            len(one) == 0
            and one.names == []
            and one.rows.shape == (0, 4)
            and one.columns("coordinates").shape == (0, 3)
            and one.verify() == []
            and one.list() == []
        )
        with pytest.raises(InputError, match="empty"):
            one["a"]


def test_ten_thousand_open_without_reading_a_card(tmp_path, monkeypatch):
    "Only index.json, space.json and the matrix's header are there to be read."
    lib = Library.create(tmp_path / "big", Space("base"))
    names, rows = (
        [f"pllm-{i:05}" for i in range(10_000)],
        np.random.default_rng(0).normal(size=(10_000, 4)).astype(np.float32),
    )
    module._write_index(lib.path, lib._head, names, rows)
    opened = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self.name) or real(self))
    big = Library(tmp_path / "big")
    assert opened == [] and len(big) == 10_000 and big.names[-1] == "pllm-09999"
    assert isinstance(big.rows, np.memmap) and np.array_equal(big.rows, rows) and opened == ["index.npy"]
    assert big.columns("coordinates")[1234].tolist() == rows[1234, :3].tolist() and opened == ["index.npy"], "read once"
    with pytest.raises(InputError, match="pllm-01234.*missing"):
        big["pllm-01234"]


def test_many_additions_write_the_index_once(made, tmp_path, monkeypatch):
    lib, count, real = Library.create(tmp_path / "lib", Space(shared("llama").base)), [], module._write_index
    monkeypatch.setattr(module, "_write_index", lambda *a: count.append(1) or real(*a))
    with pytest.raises(ZeroDivisionError):
        with lib.adding():
            for i in range(3):
                lib.add(f"m{i}", made[i], words(i), **GIVEN)
            assert lib.names == []
            1 / 0
    assert len(count) == 1 and Library(lib.path).names == lib.names == ["m0", "m1", "m2"] and lib.verify() == []
    with lib.adding():
        pass
    assert len(count) == 1


def test_a_name_is_taken_before_the_index_says_so(lib, made):
    with lib.adding():
        lib.add("d", made[3], words(3), **GIVEN)
        for name in "dD":
            with pytest.raises(InputError, match="already"):
                lib.add(name, made[0], words(0), **GIVEN)
    assert Library(lib.path).names == list("abcd") and lib.verify() == []
    harm(lib.path, "card cut")
    rest = Library(lib.path, skip_bad=True)
    with pytest.raises(InputError, match="already"):
        rest.add("b", made[3], words(3), **GIVEN)
    assert Library(lib.path).names == list("abcd")


def test_remove(lib):
    lib.remove("b")
    for one in (lib, Library(lib.path)):
        assert (
            one.names == ["a", "c"]
            and np.array_equal(one.rows, np.stack([words(0).row, words(2).row]))
            and one.verify() == []
        )
        with pytest.raises(InputError):
            one["b"]
    assert not (lib.path / "b").exists()
    before = files(lib.path)
    with pytest.raises(InputError):
        lib.remove("b")
    assert files(lib.path) == before


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
    def reopen(self):
        self.lib = Library(self.lib.path)

    @invariant()
    def agrees(self):
        assert (
            self.lib.names == list(self.twin)
            and [r.tolist() for r in self.lib.rows] == [words(i).row.tolist() for i in self.twin.values()]
            and self.lib.verify() == []
        )

    def teardown(self):
        self.place.cleanup()


def test_any_life(made):
    Life.made = made
    run_state_machine_as_test(Life, settings=settings(max_examples=15, stateful_step_count=8, deadline=None))


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
    patch.setattr(
        shutil, "rmtree", lambda path, ignore_errors=False, **kw: step(erase, path, ignore_errors=ignore_errors)
    )
    return calls


@pytest.mark.parametrize("error", [Dead(), OSError(28, "No space left on device")])
@pytest.mark.parametrize(
    "what", ["add", "remove", "add after an interrupted removal", "remove after an interrupted removal"]
)
def test_interrupted_anywhere(what, error, lib, made, tmp_path):
    "Whichever step fails: reopened, it is the library before or the one after, it works, and the same call again makes it whole."

    def act(one):
        return one.remove("a") if what.startswith("remove") else one.add("d", made[3], words(3), **GIVEN)

    if "after" in what:  # index.json is new, index.npy the old one
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
    before = Library(lib.path).names
    after = [n for n in before if n != "a"] if what.startswith("remove") else before + ["d"]
    rows = dict(a=0, b=1, c=2, d=3)
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
        assert again.names in (before, after) and [r.tolist() for r in again.rows] == [
            words(rows[n]).row.tolist() for n in again.names
        ], (k, calls[-1])
        for name in again.names:
            again[name]
        if isinstance(error, OSError):
            assert one.names == again.names and failed == (again.names == before), (
                "what it says, what is in memory and what is on the disk agree"
            )
        if again.names == before:
            act(again)
        assert Library(copy).names == after and [r.tolist() for r in Library(copy).rows] == [
            words(rows[n]).row.tolist() for n in after
        ]
        assert {p.name for p in Library(copy).verify()} <= {n for n in (".d." + str(os.getpid()) + ".tmp", "a", "b")}, (
            Library(copy).verify()
        )
    assert k > 3 and len(calls) < k


def test_a_full_disk_leaves_nothing_behind(lib, made, monkeypatch):
    before, real = files(lib.path), os.replace

    def full(a, b):
        if Path(b).name == "d":
            raise OSError(28, "No space left on device")
        return real(a, b)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space"):
        lib.add("d", made[3], words(3), **GIVEN)
    assert files(lib.path) == before and lib.verify() == []


def test_an_orphan_is_ignored_reported_and_replaced(lib, made):
    shutil.copytree(lib.path / "a", lib.path / "d")
    again = Library(lib.path)
    assert again.names == list("abc") and [p.name for p in again.verify()] == ["d"]
    with pytest.raises(InputError):
        again["d"]
    again.add("d", made[3], words(3), **GIVEN)
    assert again.verify() == [] and np.array_equal(again["d"].explanation.row, words(3).row)


# ---- what is refused when adding

BAD_NAMES = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "../x",
    "/etc/passwd",
    "a\\b",
    "C:",
    "a b",
    "ä",
    "x" * 81,
    "a\n",
    "a\0",
    None,
    7,
    "~",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_refused(name, lib, made):
    before = files(lib.path)
    with pytest.raises(InputError, match="name"):
        lib.add(name, made[3], words(3), **GIVEN)
    assert files(lib.path) == before


@given(st.text(max_size=90))
@settings(max_examples=200, deadline=None)
def test_names_that_pass_stay_in_the_folder(name):
    try:
        check_name(name)
    except InputError:
        return
    assert (
        1 <= len(name) <= 80
        and name.isascii()
        and not name.startswith(".")
        and not set(name) & set("/\\:\n\0 ")
        and os.path.normpath(name) == name
        and Path("lib", name).resolve().parent == Path("lib").resolve()
    )


REFUSED = dict(
    twice=("a", {}, {}),
    upper=("A", {}, {}),
    a_file=("index.npy", {}, {}),
    space=("d", dict(space="other"), {}),
    width=("d", dict(row=np.ones(5)), {}),
    nan=("d", dict(row=np.array([1, np.nan, 1, 1])), {}),
    licence=("d", {}, dict(licence=" ")),
    no_licence=("d", {}, dict(licence=None)),
    samples=("d", {}, dict(samples=-1)),
    samples_text=("d", {}, dict(samples="many")),
    similarity=("d", {}, dict(similarity=90)),
)


@pytest.mark.parametrize("case", REFUSED)
def test_additions_that_are_refused(case, lib, made):
    name, said, more = REFUSED[case]
    before = files(lib.path)
    with pytest.raises(InputError) as error:
        lib.add(name, made[3], dataclasses.replace(words(3), **said), **GIVEN | more)
    assert (
        "\n" not in str(error.value)
        and ";" in str(error.value)
        and files(lib.path) == before
        and lib.names == list("abc")
    )


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
        adapter(folder, shared("llama"), LARGEST_RANK + 1, targets=["q_proj"])
    else:
        edit(folder / "adapter_config.json", **{how: True})
    return folder


@pytest.mark.parametrize("how", ["base", "cut", "pickle", "gone", "rank", "use_rslora", "use_dora", "lora_bias"])
def test_adapters_that_are_refused(how, lib, made, tmp_path):
    bad, before = other_adapter(tmp_path / "bad", how, made[3]), files(lib.path)
    with pytest.raises(InputError):
        lib.add("d", bad, words(3), **GIVEN)
    assert files(lib.path) == before and Library(lib.path).verify() == []


def test_the_largest_rank_is_taken(lib, tmp_path):
    lib.add("d", adapter(tmp_path / "wide", shared("llama"), LARGEST_RANK, targets=["q_proj"]), words(3), **GIVEN)
    assert lib["d"].card["rank"] == LARGEST_RANK


# ---- what is refused when reading


def settings_and_sum(folder, **changes):
    "A changed configuration with a checksum that agrees."
    edit(folder / "adapter_config.json", **changes)
    edit(folder / "card.json", config_sha256=hashlib.sha256((folder / "adapter_config.json").read_bytes()).hexdigest())


def harm(root, how):
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
    elif how == "card field gone":
        d = json.loads(card.read_text())
        del d["licence"]
        card.write_text(json.dumps(d))
    elif how == "card type":
        edit(card, rank="8")
    elif how == "card of another":
        edit(card, name="a")
    elif how == "card base":
        edit(card, base="another")
    elif how == "card space":
        edit(card, space="another")
    elif how == "adapter base":
        edit(b / "adapter.json", base="another")
    elif how == "weights gone":
        weights.unlink()
    elif how == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "weights exchanged":
        save_file({n: t * 2 for n, t in load_file(weights).items()}, weights)
    elif how == "settings changed":
        edit(b / "adapter_config.json", lora_alpha=999)
    elif how == "settings gone":
        (b / "adapter_config.json").unlink()
    elif how == "folder gone":
        shutil.rmtree(b)
    elif how == "rslora":
        settings_and_sum(b, use_rslora=True)
    elif how == "dora":
        settings_and_sum(b, use_dora=True)
    elif how == "bias":
        settings_and_sum(b, lora_bias=True)
    elif how == "false rank":
        settings_and_sum(b, r=5)
    elif how == "wide":
        adapter(b / "w", shared("llama"), LARGEST_RANK + 1, targets=["q_proj"])
        shutil.copy(b / "w/adapter_config.json", b)
        shutil.copy(b / "w/adapter_model.safetensors", b)
        shutil.rmtree(b / "w")
        settings_and_sum(b)
        edit(card, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    elif how.startswith("pickle"):
        (b / how.split()[1]).parent.mkdir(exist_ok=True)
        (b / how.split()[1]).write_bytes(b"\x80\x04.")
    elif how == "link to weights":
        outside = root.parent / "outside"
        weights.rename(outside)
        weights.symlink_to(outside)
    elif how == "link to folder":
        outside = root.parent / "outside-b"
        b.rename(outside)
        b.symlink_to(outside)
    elif how == "link to a sibling":
        shutil.rmtree(b)
        b.symlink_to(root / "a")
    elif how == "link inside":
        (b / "readme").symlink_to("/etc/hostname")


HARMS = [
    "card gone",
    "card cut",
    "card no dict",
    "card bytes",
    "card field gone",
    "card type",
    "card of another",
    "card base",
    "card space",
    "adapter base",
    "weights gone",
    "weights cut",
    "weights exchanged",
    "settings changed",
    "settings gone",
    "folder gone",
    "rslora",
    "dora",
    "bias",
    "false rank",
    "wide",
    "pickle x.bin",
    "pickle x.pt",
    "pickle X.PKL",
    "pickle deep/x.ckpt",
    "link to weights",
    "link to folder",
    "link to a sibling",
    "link inside",
]


@pytest.mark.parametrize("how", HARMS)
def test_a_bad_entry_is_named_and_can_be_skipped(how, lib):
    harm(lib.path, how)
    one = Library(lib.path)  # opening does not look
    assert one.names == list("abc") and len(one.rows) == 3
    with pytest.raises(InputError, match="b") as error:
        one["b"]
    assert "\n" not in str(error.value) and "; " in str(error.value) and one["a"].name == "a" and one["c"].name == "c"
    found = one.verify()
    assert [p.name for p in found] == ["b"] and found[0].what and found[0].remedy
    rest = Library(lib.path, skip_bad=True)
    assert (
        rest.names == ["a", "c"]
        and list(rest.skipped) == ["b"]
        and np.array_equal(rest.rows, np.stack([words(0).row, words(2).row]))
        and np.array_equal(rest.columns("coordinates"), rest.rows[:, :3])
    )
    assert [r["name"] for r in rest.list()] == ["a", "c"] and "1 skipped" in repr(rest)
    with pytest.raises(InputError, match="b"):
        rest["b"]
    with pytest.raises(InputError):
        merge(rest, dict(a=0.5, b=0.5))
    rest.remove("b")
    assert (
        Library(lib.path).names == rest.names == ["a", "c"]
        and rest.skipped == {}
        and Library(lib.path).verify() == []
        and not os.path.lexists(lib.path / "b")
    )


def test_removing_a_link_leaves_what_it_points_to(lib):
    harm(lib.path, "link to folder")
    Library(lib.path).remove("b")
    assert (lib.path.parent / "outside-b" / "card.json").is_file()


def test_additions_keep_what_is_skipped(lib, made):
    harm(lib.path, "card cut")
    rest = Library(lib.path, skip_bad=True)
    rest.add("d", made[3], words(3), **GIVEN)
    assert rest.names == ["a", "c", "d"] and len(rest.rows) == 3 and Library(lib.path).names == list("abcd")


def rewrite(root, rows=None, **changes):
    "Another index with a checksum that agrees."
    rows = np.load(root / "index.npy") if rows is None else rows
    np.save(root / "index.npy", rows)
    edit(root / "index.json", sha256=hashlib.sha256((root / "index.npy").read_bytes()).hexdigest(), **changes)


def test_rows_that_are_not_finite(lib):
    rows = np.load(lib.path / "index.npy")
    rows[1, 2] = np.nan
    rewrite(lib.path, rows)
    one = Library(lib.path)
    with pytest.raises(InputError, match="rows of b"):
        one.rows
    assert [(p.name, "finite" in p.what) for p in one.verify()] == [("b", True)]
    rest = Library(lib.path, skip_bad=True)
    assert rest.names == ["a", "c"] and np.isfinite(rest.rows).all()


def test_a_row_that_is_not_the_cards(lib):
    rows = np.load(lib.path / "index.npy")
    rows[[0, 2]] = rows[[2, 0]]
    rewrite(lib.path, rows)
    assert [p.name for p in Library(lib.path).verify()] == ["a", "c"]


def test_an_index_that_does_not_agree_with_its_checksum(lib):
    raw = bytearray((lib.path / "index.npy").read_bytes())
    raw[-1] ^= 1
    (lib.path / "index.npy").write_bytes(raw)
    one = Library(lib.path)
    with pytest.raises(InputError, match="checksum"):
        one.rows
    with pytest.raises(InputError, match="checksum"):
        one.add("d", one.path / "a", words(3), **GIVEN)
    assert [p.name for p in one.verify()] == ["index.npy", "d"]


INDEXES = {
    "gone": lambda r: (r / "index.json").unlink(),
    "cut": lambda r: (r / "index.json").write_text("{"),
    "no dict": lambda r: (r / "index.json").write_text("[]"),
    "names no list": lambda r: edit(r / "index.json", names="abc"),
    "twice": lambda r: edit(r / "index.json", names=["a", "b", "a"]),
    "upper": lambda r: edit(r / "index.json", names=["a", "b", "B"]),
    "climbs": lambda r: edit(r / "index.json", names=["a", "b", "../c"]),
    "absolute": lambda r: edit(r / "index.json", names=["a", "b", "/etc"]),
    "number": lambda r: edit(r / "index.json", names=["a", "b", 3]),
    "one more": lambda r: edit(r / "index.json", names=["a", "b", "c", "d"]),
    "width": lambda r: edit(r / "index.json", width=5),
    "width text": lambda r: edit(r / "index.json", width="4"),
    "columns": lambda r: edit(r / "index.json", columns=dict(coordinates=[0, 9])),
    "columns no dict": lambda r: edit(r / "index.json", columns=[1]),
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
    assert "\n" not in str(error.value) and ";" in str(error.value)


def test_spaces(lib, tmp_path):
    other = Space("another")
    with pytest.raises(InputError, match="another"):
        Library(lib.path, other)
    assert Library(lib.path, lib.space).space is lib.space
    (lib.path / "space.json").write_text('{"kind": "dream"}')
    with pytest.raises(InputError, match="dream"):
        Library(lib.path).space
    assert [p.name for p in Library(lib.path).verify()] == ["space.json"]
    (lib.path / "space.json").write_text("{")
    with pytest.raises(InputError, match="space.json"):
        Library(lib.path).space
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


def test_verify_names_every_problem(lib):
    "One of each kind at once, and nothing is changed by looking."
    harm(lib.path, "card cut")
    (lib.path / "a" / "x.pt").write_bytes(b".")
    shutil.copytree(lib.path / "c", lib.path / "orphan")
    (lib.path / ".d.1.tmp").mkdir()
    (lib.path / "all.pkl").write_bytes(b".")
    (lib.path / ".git").mkdir()
    (lib.path / "README.md").write_text("x")
    before = files(lib.path)
    assert (
        sorted(p.name for p in Library(lib.path).verify()) == [".d.1.tmp", "a", "all.pkl", "b", "orphan"]
        and files(lib.path) == before
    )


def test_verify_with_a_model(lib, made):
    assert [p.name for p in lib.verify(tiny("llama", seed=1))] == ["index.json"]
    stray = tiny("qwen2")
    path = lib.path.parent / "stray"
    adapter(path, stray, 2, targets=["down_proj", "k_proj"])
    (path / "adapter.json").unlink()  # nothing tells its base
    lib.add("d", path, words(3), **GIVEN)
    model = shared("llama")
    before = model.model.state_dict().keys()
    assert (
        lib.verify() == []
        and [p.name for p in lib.verify(model)] == ["d"]
        and model.model.state_dict().keys() == before
    )


def test_names_that_are_not_there(lib):
    for name in ("zz", "../a", None, 3, ["a"]):
        with pytest.raises(InputError):
            lib[name]
    with pytest.raises(InputError, match="such as a"):
        lib["aa"]
