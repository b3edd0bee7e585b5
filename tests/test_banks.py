"People of the experiments: none of the newer ones shares a prompt with anybody else."

import json
import re
from collections import Counter

import pytest

from personal_llm.base.files import ASSETS
from personal_llm.experiments.harness import RESULTS

OTHERS = [
    *map(RESULTS.parent.joinpath, ("gate_people", "person_people", "containment_people", "facts_items", "first_day"))
]
OTHERS = [path.with_suffix(".json") for path in OTHERS] + [ASSETS / "demo_person.json"]


def fold(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()


def list_texts(value) -> list:
    "Return all texts in a JSON value, keys too."
    if isinstance(value, str):
        return [fold(value)]
    rows = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for row in rows for text in list_texts(row)]


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def list_month() -> list:
    "Return the prompts of the people of `month`, but for a program's, of which some are one word."
    prompts = []
    for person in read(RESULTS.parent / "month_people.json")["people"].values():
        prompts += [prompt for items in person["own"].values() for prompt, _ in items]
        prompts += [prompt for texts in person["others"].values() for prompt in texts]
        prompts += [prompt for place in ("once", "general", "technical", "second") for prompt in person[place]]
        prompts += [text for fact in person["facts"] for text in fact["tells"] + fact["asks"]]
    return [*map(fold, prompts)]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_no_other_bank_has_a_prompt_of_the_month(path):
    assert not {*list_month()} & {*list_texts(read(path))}


def test_nobody_of_the_month_shares_a_prompt():
    assert Counter(list_month()).most_common(1)[0][1] == 1
