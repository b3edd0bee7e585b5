"Verify: every kind of damage is a problem with a remedy, nothing sound is, and looking changes nothing."

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from libraries import (
    GIVEN,
    adapter,
    edit,
    files,
    four,
    rewrite,
    settings_and_sum,
    small,
    stand_in,
    weights_and_sum,
    words,
)
from personal_llm.selection.library import Library
from personal_llm.selection.verify import MAX_SIZE_RATIO, LibraryProblem, find_size_problems
from tiny import tiny


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    stand_in(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        return small(tmp_path_factory.mktemp("whole") / "lib", four(tmp_path_factory.mktemp("adapters")))


@pytest.fixture
def root(whole, tmp_path):
    return Path(shutil.copytree(whole.path, tmp_path / "lib"))


def look(root):
    "What is found, each with its remedy, and nothing is changed."
    before = files(root)
    found = Library(root).verify()
    assert files(root) == before
    for problem in found:
        assert isinstance(problem, LibraryProblem) and problem.problem and problem.remedy
        assert not set("\x1b\n\u202e") & set("".join(problem))
    return found


def names(root):
    return [problem.name for problem in look(root)]


def test_a_sound_library_has_no_problem(root):
    assert names(root) == []


def test_every_problem_is_named(root):
    "One of each kind at once."
    (root / "b" / "card.json").write_text("{")
    (root / "a" / "x.pt").write_bytes(b".")
    shutil.copytree(root / "c", root / "orphan")
    (root / ".d.1.tmp").mkdir()
    (root / "all.pkl").write_bytes(b".")
    (root / ".git").mkdir()
    (root / "README.md").write_text("x")
    assert sorted(names(root)) == [".d.1.tmp", "a", "all.pkl", "b", "orphan"]


# ---- scale


@pytest.mark.parametrize("factor", [1e-3, 1 / (4 * MAX_SIZE_RATIO), 4 * MAX_SIZE_RATIO, 1e6])
def test_a_change_that_is_scaled_is_found(root, factor):
    weights_and_sum(root / "b", lambda name, tensor: tensor * factor if "lora_B" in name else tensor)
    (problem,) = look(root)
    assert problem.name == "b" and "size" in problem.problem


def test_a_change_that_is_scaled_by_its_settings_is_found(root):
    settings_and_sum(root / "c", lora_alpha=999)
    (problem,) = look(root)
    assert problem.name == "c" and "lora_alpha / r" in problem.problem


def test_an_adapter_that_changes_nothing_is_found(root):
    weights_and_sum(root / "b", lambda name, tensor: tensor * 0 if "lora_B" in name else tensor)
    (problem,) = look(root)
    assert problem == LibraryProblem("b", "its adapter changes nothing", "remove it")


def test_sizes_that_differ_as_pllms_do_are_no_problem():
    fine = {str(i): size for i, size in enumerate((3.0, 5.0, 6.0, 8.0, 20.0))}
    assert [*find_size_problems(fine)] == [] == [*find_size_problems({})] == [*find_size_problems(dict(a=1.0, b=1e9))]
    odd = [
        p.name
        for p in find_size_problems(
            fine | dict(loud=6 * MAX_SIZE_RATIO * 1.01, quiet=5 / MAX_SIZE_RATIO * 0.9, none=0.0)
        )
    ]
    assert odd == ["loud", "quiet", "none"]


# ---- what is said of samples


@pytest.mark.parametrize("samples", [-1, True, 2.5, "many", None, 10**15])
def test_samples_that_cannot_be_are_found(root, samples):
    edit(root / "b" / "card.json", samples=samples)
    (problem,) = look(root)
    assert problem.name == "b" and "samples" in problem.problem


# ---- links and paths

OUTSIDE = ["space.json", "index.npy", "index.json"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_link_at_the_top_is_found(root, name, tmp_path):
    (root / name).rename(tmp_path / name)
    (root / name).symlink_to(tmp_path / name)
    (problem,) = look(root)
    assert problem.name == name and "link" in problem.problem


def test_stray_links_at_the_top_are_found(root):
    (root / "up").symlink_to("..")
    (root / "passwd").symlink_to("/etc/passwd")
    (root / "nothing").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    assert names(root) == ["loop", "nothing", "passwd", "up"]


@pytest.mark.parametrize("path", ["/home/ana/pocket", "../../pocket", r"C:\models\pocket", "~ana/pocket"])
def test_a_path_in_the_settings_is_found(root, path):
    settings_and_sum(root / "b", base_model_name_or_path=path)
    (problem,) = look(root)
    assert problem.name == "b" and "path" in problem.problem
    settings_and_sum(root / "b", base_model_name_or_path="HuggingFaceTB/SmolLM2-135M")
    assert names(root) == []


def test_code_in_the_settings_is_found(root):
    settings_and_sum(root / "b", auto_mapping=dict(base_model_class="x", parent_library="os"))
    (problem,) = look(root)
    assert problem.name == "b" and "code" in problem.problem


def test_a_folder_of_another_case_is_found(root):
    if not (root / "B").exists():  # a disk that tells upper case
        shutil.copytree(root / "b", root / "B")
        assert names(root) == ["B"]


# ---- text for the terminal


def test_words_with_escapes_are_found(root):
    edit(root / "space.json", words=["loud", "qui\x1b[2Jet"])
    (problem,) = look(root)
    assert problem.name == "space.json" and r"\x1b[2J" in problem.problem


def test_names_on_the_disk_reach_no_terminal(root):
    (root / "x\x1b[31m.pkl").write_bytes(b".")
    (root / "y\x1b[31m").mkdir()
    assert names(root) == [r"x\x1b[31m.pkl", r"y\x1b[31m"]


# ---- the matrix


def test_rows_that_are_not_finite(root):
    rows = np.load(root / "index.npy")
    rows[1, 2] = np.nan
    rewrite(root, rows)
    (problem,) = look(root)
    assert problem.name == "b" and "its row in the index is not that of its card" in problem.problem


def test_rows_that_are_not_the_cards(root):
    rows = np.load(root / "index.npy")
    rows[[0, 2]] = rows[[2, 0]]
    rewrite(root, rows)
    assert names(root) == ["a", "c"]


def test_an_explanation_that_cannot_be_read(root):
    edit(root / "b" / "card.json", explanation=dict(words=["loud"]))
    (problem,) = look(root)
    assert problem.name == "b" and "explanation" in problem.problem


def test_an_adapter_whose_base_nobody_tells_is_sound(root, tmp_path):
    adapter(tmp_path / "stray", tiny("qwen2"), 2, targets=["down_proj", "k_proj"])
    os.remove(tmp_path / "stray" / "adapter.json")
    Library(root).add("d", tmp_path / "stray", words(3), **GIVEN)
    assert names(root) == []
