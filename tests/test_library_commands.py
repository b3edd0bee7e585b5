"Style and libraries at the command line."

import pytest

from personal_llm.app import library_commands
from personal_llm.base.files import ASSETS
from typed import fails, found, invoke

NURSE = ASSETS / "samples" / "chats.jsonl"


def test_list_and_show_name_what_a_card_says(capsys):
    rows = found(capsys, "library", "list")["pllms"]
    assert len(rows) == 9 and {"name", "licence", "words"} <= rows[0].keys()
    card = found(capsys, "library", "show", "pocket", "ward-round")
    assert card["name"] == "ward-round" and "In short:" in str(card["explanation"])


@pytest.mark.later
def test_explain_describes_chats(capsys):
    lines = invoke(capsys, "explain", "--data", NURSE)[1]
    assert "In short:" in lines and "Take care, Ana" in lines


@pytest.mark.later
def test_select_ranks_a_library(capsys):
    ranking = found(capsys, "select", "--data", NURSE, "--library", "pocket")
    assert ranking["best"] == "ward-round" or ranking["abstained"]


@pytest.mark.later
def test_build_adds_adapters_to_a_library_and_remove_takes_one_away(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "others"
    adapters = [ASSETS / "library" / name for name in ("plain", "quiz-night")]
    words = [word for adapter in adapters for word in ("--adapter", adapter)]
    with monkeypatch.context() as stopped:
        stopped.setattr(library_commands, "prepare_probes", lambda *given: exec("raise KeyboardInterrupt"))
        assert invoke(capsys, "library", "build", folder, *words, "--licence", "CC0-1.0", "--quiet")[0] == 130
    assert "its build did not end" in invoke(capsys, "library", "list", folder)[1]
    result = found(capsys, "library", "build", folder, *words, "--licence", "CC0-1.0", "--quiet")
    assert found(capsys, "library", "list", folder)["is_complete"]
    assert "quiz-night" in result["added"] and "plain" in result["skipped"], "the plain one was tuned before"
    again = invoke(capsys, "library", "build", folder, *words, "--licence", "CC0-1.0", "--quiet")
    assert again[0] == 1 and "exists already" in again[1]
    found(capsys, "library", "remove", folder, "quiz-night")
    assert "no pLLM" in fails(capsys, "library", "show", folder, "quiz-night")
