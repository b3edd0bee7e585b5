"Splits: groups, the leak audit, held-out sets."

import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.data.splits import get_dialogue_group, get_row_group
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
