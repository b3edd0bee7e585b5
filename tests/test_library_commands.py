"Style and libraries at the command line."

import pytest

from personal_llm.base.adapters import WEIGHTS_FILE
from personal_llm.base.core import Dialogue
from personal_llm.base.files import ASSETS
from personal_llm.base.models import load_model
from personal_llm.extras.cluster import make_pllms
from personal_llm.extras.space import StyleSpace
from personal_llm.selection.library import Library
from typed import fails, found, invoke

NURSE = ASSETS / "samples" / "chats.jsonl"


@pytest.mark.later
def test_explain_describes_chats(capsys):
    lines = invoke(capsys, "explain", "--data", NURSE)[1]
    assert "In short:" in lines and "Take care, Ana" in lines


@pytest.mark.later
def test_select_ranks_a_library(capsys):
    ranking = found(capsys, "select", "--data", NURSE, "--library", "pocket")
    assert ranking["best"] in ("ward-round", None)


@pytest.mark.later
def test_build_adds_adapters_to_a_library(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "others"
    adapters = [ASSETS / "library" / name for name in ("plain", "quiz-night")]
    words = [word for adapter in adapters for word in ("--adapter", adapter)]
    with monkeypatch.context() as stopped:
        stopped.setattr(StyleSpace, "prepare_probes", lambda *given, **named: exec("raise KeyboardInterrupt"))
        assert invoke(capsys, "library", "build", folder, *words, "--licence", "CC0-1.0", "--quiet")[0] == 130
    result = found(capsys, "library", "build", folder, *words, "--licence", "CC0-1.0", "--quiet")
    assert "quiz-night" in result["added"] and "plain" in result["skipped"], "the plain one was tuned before"
    again = invoke(capsys, "library", "build", folder, *words, "--licence", "CC0-1.0", "--quiet")
    assert again[0] == 1 and "exists already" in again[1]
    assert len(found(capsys, "library", "list", folder)["pllms"]) == 2


def test_build_refuses_two_sources_of_one_name_and_none(tmp_path, capsys):
    chats = tmp_path / "ana.jsonl"
    chats.write_text(NURSE.read_text(encoding="utf-8"), encoding="utf-8")
    both = ("--data", chats, "--data", tmp_path / "more" / "ana.csv")
    folder = tmp_path / "others"
    assert "two sources are named ana" in fails(capsys, "library", "build", folder, *both, "--licence", "CC0-1.0")
    assert "no --adapter and no --data" in fails(capsys, "library", "build", folder, "--licence", "CC0-1.0")
    assert not folder.exists()


@pytest.mark.later
def test_two_workers_make_the_pllms_of_one_process():
    "The files are equal, and a card has the held-out loss."
    ray = pytest.importorskip("ray", reason="the extra is not installed: pip install ray")
    model = load_model("pocket")
    library = Library(ASSETS / "library")
    plain = library["plain"].adapter
    probes = library.space.prepare_probes(model, plain=plain)
    chats = [Dialogue(f"What is {number}?", f"It is {number}. Bye!") for number in range(60)]
    sources = {"friend": chats, "quiz": library["quiz-night"].adapter}
    alone = dict(make_pllms(model, library, probes, sources))
    start = ray.init
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ray, "init", lambda address, **options: start(address, num_cpus=2, **options))
        divided = dict(make_pllms(model, library, probes, sources, ray="local"))
    assert alone["friend"]["files"][WEIGHTS_FILE] == divided["friend"]["files"][WEIGHTS_FILE]
    assert alone["quiz"]["explanation"].to_dict() == divided["quiz"]["explanation"].to_dict()
    assert alone["friend"]["test_loss"] == divided["friend"]["test_loss"] and alone["friend"]["test_loss"][0] > 0
