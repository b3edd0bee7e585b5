"Verify: every kind of damage is a problem with a remedy, nothing sound is, and looking changes nothing."

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

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
from personal_llm.selection.gradient_match import load_sketch
from personal_llm.selection.library import Library
from personal_llm.selection.verify import MAX_SIZE_RATIO, LibraryProblem, compute_update_norm, find_size_problems
from tiny import shared, tiny


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


def look(root, model=None):
    "What is found, each with its remedy, and nothing is changed."
    before = files(root)
    found = [p for p in Library(root).verify(model) if p.name != "sketch-8.npy"]
    assert files(root) == before
    for problem in found:
        assert isinstance(problem, LibraryProblem) and problem.problem and problem.remedy
        assert not set("\x1b\n\u202e") & set("".join(problem))
    return found


def names(root, model=None):
    return [problem.name for problem in look(root, model)]


def test_a_sound_library_has_no_problem(root):
    assert names(root) == names(root, shared("llama")) == []


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


def test_the_size_is_that_of_the_whole_change(root):
    config = json.loads((root / "b" / "adapter_config.json").read_text())
    tensors = load_file(root / "b" / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    changes = [scale * tensors[n.replace("lora_A", "lora_B")] @ A for n, A in tensors.items() if "lora_A" in n]
    assert compute_update_norm(root / "b") == pytest.approx(sum((c**2).sum() for c in changes) ** 0.5, rel=1e-5)


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


# ---- the sketch


@pytest.fixture
def sketched(root):
    load_sketch(Library(root))
    return root


def sketch_fault(root):
    "What is found of the sketch, and nothing else is."
    found = Library(root).verify()
    assert [p.name for p in found] == ["sketch-8.npy"] and found[0].remedy
    return found[0].problem


def turn(root, change):
    "Other directions, with the stamp that selection looks at."
    file = root / "sketch-8.safetensors"
    with safe_open(file, "numpy") as kept:
        stamp = kept.metadata()
    save_file(change(load_file(file)), file, metadata=stamp)


def test_a_sketch_of_this_library_is_no_problem(sketched):
    assert Library(sketched).verify() == []


def test_the_sketch_of_another_library_is_named(sketched, tmp_path):
    "Of the same pLLMs, explained anew: selection would not use it."
    rows = np.load(sketched / "index.npy") + 1
    for i, name in enumerate("abc"):
        edit(sketched / name / "card.json", explanation=dict(row=rows[i].tolist(), space="space-1"))
    rewrite(sketched, rows)
    assert "before a change" in sketch_fault(sketched)


def test_a_missing_sketch_is_named(root, sketched):
    (sketched / "sketch-8.npy").unlink()
    assert "missing" in sketch_fault(root)


@pytest.mark.parametrize("file", ["sketch-8.npy", "sketch-8.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04.", None])
def test_a_damaged_sketch_is_named(sketched, file, content):
    if content is None:
        content = (sketched / file).read_bytes()[:-40]
    (sketched / file).write_bytes(content)
    assert "damaged" in sketch_fault(sketched)


ROWS = {
    "not finite": ("finite", lambda rows: rows * np.nan),
    "one less": ("damaged", lambda rows: rows[:-1]),
    "doubles": ("damaged", lambda rows: rows.astype(float)),
    "flat": ("damaged", lambda rows: rows.reshape(len(rows), -1)),
    "another order": ("not that of the adapters (a, c)", lambda rows: rows[::-1]),
    "turned round": ("not that of the adapters (a, b, c)", lambda rows: -rows),
    "one steeper than all": ("not that of the adapters (b)", lambda rows: rows * [[[1]], [[9]], [[1]]]),
}


@pytest.mark.parametrize("how", ROWS)
def test_rows_of_a_sketch_that_are_not_the_adapters_are_named(sketched, how):
    says, change = ROWS[how]
    rows = np.load(sketched / "sketch-8.npy")
    changed = change(rows)
    np.save(sketched / "sketch-8.npy", changed if how == "doubles" else changed.astype(np.float16))
    assert says in sketch_fault(sketched)


def without_one(found):
    layer = min(found).rpartition(".")[0]
    return {key: side for key, side in found.items() if not key.startswith(layer + ".")}


DIRECTIONS = {
    "longer": ("orthonormal", lambda found: {key: 2 * side for key, side in found.items()}),
    "not finite": ("orthonormal", lambda found: {key: side * np.nan for key, side in found.items()}),
    "turned": ("not that of", lambda found: {key: np.roll(side, 1, 1) for key, side in found.items()}),
    "of another model": ("not that of", lambda found: {key: side[:, :-1] * 0 for key, side in found.items()}),
    "of other layers": ("not that of", lambda found: {"other." + key: side for key, side in found.items()}),
    "half a pair": ("damaged", lambda found: {key: side for key, side in found.items() if "left" in key}),
    "a layer less": ("damaged", without_one),
}


@pytest.mark.parametrize("how", DIRECTIONS)
def test_directions_of_a_sketch_that_are_wrong_are_named(sketched, how):
    says, change = DIRECTIONS[how]
    turn(sketched, change)
    assert says in sketch_fault(sketched)


def test_a_sketch_that_leaves_out_a_layer_is_named(sketched):
    "In rows and directions alike, so that they agree."
    turn(sketched, without_one)
    np.save(sketched / "sketch-8.npy", np.load(sketched / "sketch-8.npy")[:, 1:])
    assert "not that of the adapters (a, b, c)" in sketch_fault(sketched)


def test_a_sketch_is_looked_at_where_pllms_are_sound(sketched):
    (sketched / "a" / "adapter_model.safetensors").write_bytes(b"cut")
    assert [p.name for p in Library(sketched).verify()] == ["a"]


# ---- the matrix and the model


def test_rows_that_are_not_finite(sketched):
    rows = np.load(sketched / "index.npy")
    rows[1, 2] = np.nan
    rewrite(sketched, rows)
    for library in (Library(sketched), Library(sketched, skip_invalid=True)):
        (problem,) = library.verify()
        assert problem.name == "b" and "finite" in problem.problem


def test_rows_that_are_not_the_cards(root):
    rows = np.load(root / "index.npy")
    rows[[0, 2]] = rows[[2, 0]]
    rewrite(root, rows)
    assert names(root) == ["a", "c"]


def test_an_explanation_that_cannot_be_read(root):
    edit(root / "b" / "card.json", explanation=dict(words=["loud"]))
    (problem,) = look(root)
    assert problem.name == "b" and "explanation" in problem.problem


def test_with_a_model(root, tmp_path):
    assert names(root, tiny("llama", seed=1)) == ["index.json"]
    adapter(tmp_path / "stray", tiny("qwen2"), 2, targets=["down_proj", "k_proj"])
    os.remove(tmp_path / "stray" / "adapter.json")  # nothing tells its base
    Library(root).add("d", tmp_path / "stray", words(3), **GIVEN)
    model = shared("llama")
    before = model.model.state_dict().keys()
    assert names(root) == [] and names(root, model) == ["d"] and model.model.state_dict().keys() == before
