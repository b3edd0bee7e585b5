"A pLLM on the disk: names, cards, folders and adapters that are refused, each with a remedy."

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from libraries import edit, files, four, settings_and_sum, small, stand_in, weights_and_sum, widen
from personal_llm.base.adapters import read_lora_config
from personal_llm.base.core import InputError
from personal_llm.base.files import read_sealed
from personal_llm.selection.cards import (
    MAX_PLLM_RANK,
    check_pllm_name,
    read_pllm,
    write_pllm,
    make_printable,
)
from personal_llm.selection.library import Library
from tiny import shared


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
def b(whole, tmp_path):
    "The folder of one pLLM, in a library of its own copy."
    return Path(shutil.copytree(whole.path, tmp_path / "lib")) / "b"


def read(folder):
    return read_pllm(folder, shared("llama").base, "space-1")


def refusal(act):
    "The one line of an `InputError`, with a remedy."
    with pytest.raises(InputError) as error:
        act()
    assert error.value.problem and error.value.remedy and "\n" not in str(error.value)
    return str(error.value)


# ---- names

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
    "~",
]
ON_SOME_DISK = ["a.", "con", "NUL", "aux.txt", "Com1", "lpt9.tar"]
OWN_FILES = ["index.npy", "index.next.npy", "Index.json", "space.json", "space.safetensors", "sketch-8.npy"]


@pytest.mark.parametrize("name", [*BAD_NAMES, *ON_SOME_DISK, *OWN_FILES, None, 7, ["a"], "\x1b[2J"])
def test_names_that_are_refused(name):
    assert "\x1b" not in refusal(lambda: check_pllm_name(name))


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "x" * 80, "index", "space-opera", "console", "lpt"])
def test_names_that_pass(name):
    assert check_pllm_name(name) == name


@given(st.text(max_size=90))
@settings(max_examples=200, deadline=None)
def test_names_that_pass_stay_in_the_folder(name):
    try:
        check_pllm_name(name)
    except InputError:
        return
    assert 1 <= len(name) <= 80 and name.isascii() and not name.startswith(".")
    assert not set(name) & set("/\\:\n\0 ") and os.path.normpath(name) == name
    assert Path("lib", name).resolve().parent == Path("lib").resolve()


# ---- cards


@pytest.mark.parametrize(
    "field, values",
    [
        ("name", [None, 3]),
        ("samples", [-1, 1.5, "30", True, None, 10**15]),
        ("rank", ["2", -1, None]),
        ("bytes", [-1, "big"]),
        ("similarity", [-0.1, 1.1, 90, float("nan"), "0.9", True]),
        ("licence", ["", "  ", None]),
        ("style", [3, ["loud"]]),
        ("explanation", [None, "loud", []]),
    ],
)
def test_fields_have_a_type_and_a_range(b, field, values):
    card = read_sealed(b / "card.json")
    assert read(b).card == card
    (b / "card.json").write_text(json.dumps({k: v for k, v in card.items() if k != field}))
    assert f"{field} is missing" in refusal(lambda: read(b))
    for value in values:
        (b / "card.json").write_text(json.dumps(card | {field: value}))
        assert field in refusal(lambda: read(b))


def test_a_card_is_shown_with_its_escapes_written_out(b):
    edit(b / "card.json", style="loud\x1b[2J\x1b]0;owned\x07", licence="CC0\u202e", similarity=0.5)
    card = read(b).card
    assert card["style"] == r"loud\x1b[2J\x1b]0;owned\x07" and card["licence"] == r"CC0\u202e"
    edit(b / "card.json", name="\x1b[1mb")
    assert "\x1b" not in refusal(lambda: read(b))
    edit(b / "card.json", name="b", base="\x1b[31mother")
    assert "\x1b" not in refusal(lambda: read(b))


@given(st.recursive(st.text() | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
@settings(max_examples=100, deadline=None)
def test_nothing_shown_holds_a_control_character(value):
    def texts(value):
        if isinstance(value, dict):
            return [*value, *(t for v in value.values() for t in texts(v))]
        return [t for v in value for t in texts(v)] if isinstance(value, list) else [value]

    assert not any(
        c in text for text in texts(make_printable(value)) if isinstance(text, str) for c in "\x1b\x07\x9b\u202e"
    )


def test_a_card_of_brackets_is_damage_not_a_crash(b):
    (b / "card.json").write_text("[" * 100_000)
    assert "card.json" in refusal(lambda: read(b))


# ---- adapters


@pytest.mark.parametrize("alpha", [0, -8, 2 * 33, 999])
def test_scales_that_are_refused(b, alpha):
    "alpha / rank above 32, at zero or below, in a file whose checksum agrees."
    settings_and_sum(b, lora_alpha=alpha)
    assert "lora_alpha / r" in refusal(lambda: read(b))


def test_scales_that_pass(b):
    settings_and_sum(b, lora_alpha=64)
    assert read(b).card["rank"] == 2


def test_the_largest_rank(b):
    widen(b, MAX_PLLM_RANK)
    edit(b / "card.json", rank=MAX_PLLM_RANK)
    assert read(b).card["rank"] == MAX_PLLM_RANK
    widen(b, MAX_PLLM_RANK + 1)
    assert "65" in refusal(lambda: read(b))


@pytest.mark.parametrize("lie", [dict(rank=3), dict(bytes=1)])
def test_a_card_that_lies_about_its_adapter(b, lie):
    edit(b / "card.json", **lie)
    assert "rank or bytes" in refusal(lambda: read(b))


def test_weights_that_are_not_finite(b):
    weights_and_sum(b, lambda name, tensor: tensor * float("nan"))
    assert "finite" in refusal(lambda: read(b))


def test_settings_name_no_path_and_no_code(b, tmp_path):
    for path in ("/home/ana/pocket", r"C:\Users\ana\pocket", "~/pocket", "../pocket", "ana/pocket", "pocket"):
        settings_and_sum(b, base_model_name_or_path=path, auto_mapping=dict(parent_library="os"))
        before, card = read_lora_config(b), json.loads((b / "card.json").read_text())
        write_pllm(tmp_path / "copy", b, card)
        config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
        assert config == before | dict(base_model_name_or_path="pocket", auto_mapping=None)


# ---- folders


def link_out(b):
    b.joinpath("adapter_model.safetensors").rename(b.parent.parent / "outside")
    b.joinpath("adapter_model.safetensors").symlink_to(b.parent.parent / "outside")


def link_home(b):
    b.rename(b.parent.parent / "elsewhere")
    b.symlink_to(b.parent.parent / "elsewhere")


def link_back(b):
    shutil.rmtree(b)
    b.symlink_to("../lib/a")


TRICKS = {
    "a link to weights elsewhere": link_out,
    "a link in the folder's place": link_home,
    "a link through ..": link_back,
    "an absolute link beside": lambda b: (b / "readme").symlink_to("/etc/hostname"),
    "a link to nothing": lambda b: (b / "readme").symlink_to("nothing"),
    "a link to itself": lambda b: (b / "loop").symlink_to("loop"),
    "a link in a folder": lambda b: ((b / "deep").mkdir(), (b / "deep" / "up").symlink_to("../../..")),
    "a pipe": lambda b: os.mkfifo(b / "notes"),
    "a pipe in the card's place": lambda b: ((b / "card.json").unlink(), os.mkfifo(b / "card.json")),
    "a pickle": lambda b: (b / "pytorch_model.bin").write_bytes(b"\x80\x04."),
    "a pickle in a folder": lambda b: ((b / "deep").mkdir(), (b / "deep" / "x.CKPT").write_bytes(b".")),
    "a twin by upper case": lambda b: (b / "Card.json").write_text("{}"),
    "an interrupted publication": lambda b: (b / ".adapter.next").mkdir(),
    "a half written file": lambda b: (b / ".card.json.1.tmp").write_text("{"),
}


@pytest.mark.parametrize("how", TRICKS)
def test_tricks_are_refused_and_left_alone(b, how):
    assert read(b).name == "b"
    TRICKS[how](b)
    before = files(b.parent)
    assert "/b" in refusal(lambda: read(b))
    assert [p.name for p in Library(b.parent).verify()] == ["b"]
    assert files(b.parent) == before


def test_what_a_file_is_called_reaches_no_terminal(b):
    (b / "x\x1b[31m.bin").write_bytes(b".")
    assert "\x1b" not in refusal(lambda: read(b)) and r"\x1b[31m" in refusal(lambda: read(b))
    assert np.isfinite(read(b.parent / "a").explanation.row).all(), "its neighbour is sound"
