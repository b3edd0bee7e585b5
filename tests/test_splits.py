"Splits: groups, the leak audit, held-out sets."

import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.data.splits import get_dialogue_group, get_row_group, remove_leaks, split_test_dialogues
from personal_llm.recipes.data import audit_leaks

THIRTEEN = " ".join(map(str, range(13)))


def row(prompt, response, **more):
    return dict(prompt=prompt, response=response) | more


def test_groups_of_each_source():
    assert get_row_group(row("Hi!", "Yes.", source="synthetic_persona_chat", persona="p1")) == "p1"
    assert get_row_group(row("Hi!", "Yes.", source="synthetic_persona_chat")) == "hi"
    assert get_row_group(row("Hi!", "Yes.", source="medquad", topic="Cough")) == "Cough"
    labels = dict(source="medquad", topic="Cough")
    assert get_dialogue_group(Dialogue("Hi!", "Yes.", labels=labels)) == "Cough"


def test_a_leak_fails():
    with pytest.raises(InputError, match="1 pairs are in both") as caught:
        audit_leaks([row("hi", "YES")], [row("Hi?", "yes!")])
    assert caught.value.remedy == "split by group"
    with pytest.raises(InputError, match="100.00% of the reserved 13-word runs") as caught:
        audit_leaks([], [row("q", THIRTEEN)], [f"and {THIRTEEN}"])
    assert "0.50%" in caught.value.remedy
    assert audit_leaks([], [row("q", THIRTEEN)], [f"and {THIRTEEN}"], limit=1.0)["share"] == 1


MANY = [Dialogue(f"Question {i}?", f"Answer {i}.") for i in range(2000)]
TALK = [d.derive(labels=dict(group="one conversation")) for d in MANY[:6]]


@pytest.mark.parametrize(
    "dialogues, sizes",
    [
        (MANY, [1936, 64]),
        ([d.derive(labels=dict(group=f"talk {i // 200}")) for i, d in enumerate(MANY)], [1800, 64]),
        ([d.derive(response=f"{d.response} {THIRTEEN}") for d in MANY[:60]], [54, 6]),
        ([d for d in MANY[:60] for _ in range(3)], [162, 6]),
        (MANY[:40], [40, 0]),
        (TALK * 20, [120, 0]),
        ([MANY[0]] * 40 + [MANY[1]] * 40, [80, 0]),
    ],
    ids=("many", "conversations", "boilerplate", "copies", "few", "one conversation", "two that repeat"),
)
def test_a_tenth_is_held_out_whole_and_none_of_too_few(dialogues, sizes):
    stream, test = split_test_dialogues(dialogues)
    assert [len(stream), len(test)] == sizes and (test or stream == dialogues)


def test_a_candidate_without_a_stream_is_no_leak():
    assert remove_leaks(TALK, []) == TALK
