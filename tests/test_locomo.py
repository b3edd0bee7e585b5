"LoCoMo: the file that a user names, the authors' rules, and rows without a word of the conversations."

import gzip
import json
from pathlib import Path

import pytest

from personal_llm.base.core import InputError
from personal_llm.experiments import locomo
from personal_llm.experiments.locomo import (
    LOCOMO_VARIABLE,
    compute_recall,
    find_evidence,
    grade_reply,
    pair_turns,
    find_dialogues,
)
from personal_llm.experiments.harness import RESULTS


def test_another_file_is_refused(tmp_path, monkeypatch):
    locomo.read_conversations.cache_clear()
    monkeypatch.delenv(LOCOMO_VARIABLE, raising=False)
    with pytest.raises(InputError, match=LOCOMO_VARIABLE):
        locomo.read_conversations()
    other = tmp_path / "other.json.gz"
    other.write_bytes(gzip.compress(b"[]"))
    monkeypatch.setenv(LOCOMO_VARIABLE, str(other))
    with pytest.raises(InputError, match="not that of the plan"):
        locomo.read_conversations()


def test_recall_counts_the_evidence_turns_in_the_dialogues():
    turns = [dict(id=f"D1:{i}", speaker="Ann", text=f"Line {i}.", caption="a boat") for i in range(1, 6)]
    dialogues = pair_turns(dict(sessions=[dict(time="1 May", turns=turns)]))
    assert [d.labels["turns"] for d in dialogues] == [["D1:1", "D1:2"], ["D1:3", "D1:4"], ["D1:5"]]
    assert dialogues[0].prompt == "Ann: Line 1. [shares a boat]" and dialogues[2].response == "…"
    evidence = find_evidence(dict(evidence=["D1:2; D1:5", "D1:3"]))
    assert compute_recall(dialogues[:1], evidence) == pytest.approx(1 / 3)
    assert compute_recall(dialogues, evidence) == 1
    assert find_dialogues("bm25", dialogues, "Which is line 3?")[0] is dialogues[1]


@pytest.mark.parametrize(
    ("reply", "question", "score"),
    [
        ("She was running, and jumped.", dict(category=4, answer="runs; jumps"), 2 * 2 / (4 + 2)),
        ("2022", dict(category=2, answer=2022), 1.0),
        ("", dict(category=2, answer="May"), 0.0),
        ("tea, cakes", dict(category=1, answer="cake, tea"), 1.0),
        ("Likely no", dict(category=3, answer="Likely no; she likes the sea"), 1.0),
        ("No information available.", dict(category=5), 1.0),
        ("Nobody says", dict(category=5), 0.0),
    ],
)
def test_the_authors_rules(reply, question, score):
    assert grade_reply(reply, question) == pytest.approx(score)


@pytest.mark.parametrize("path", sorted(Path(RESULTS).glob("locomo*.jsonl")), ids=lambda path: path.stem)
def test_rows_hold_numbers_only(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        results = json.loads(line)["results"]
        assert results and all(isinstance(value, (int, float)) for value in results.values())
