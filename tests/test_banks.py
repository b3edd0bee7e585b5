"People of the experiments: none of the newer ones shares a prompt with anybody else."

import json
import re
from collections import Counter

import pytest

from personal_llm.base.files import ASSETS
from personal_llm.experiments.harness import RESULTS
from personal_llm.experiments.person import has_form, is_right

PARTS = ("development", "test")
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


LAW = read(RESULTS.parent / "law_people.json")


def list_law() -> list:
    "Return the prompts of the people of the law."
    prompts = [item[0] for items in LAW["subjects"].values() for item in items]
    prompts += [prompt for texts in LAW["stream"].values() for prompt in texts]
    return [*map(fold, prompts + LAW["plain_prompts"])]


BANKS = dict(month=list_month, law=list_law)


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_no_other_bank_has_one_of_the_prompts(path, bank):
    assert not {*BANKS[bank]()} & {*list_texts(read(path))}


def test_nobody_shares_a_prompt():
    assert Counter(list_month() + list_law()).most_common(1)[0][1] == 1


def test_each_subject_of_the_law_has_three_people_with_different_forms():
    people = LAW["people"].values()
    for subject in LAW["stream"]:
        forms = [form for p in people for own, form in zip(p["own"], p["forms"]) if own == subject]
        assert len(forms) == 3 and len({*map(tuple, forms)}) == 3, subject
    assert len({tuple(form) for p in people for form in p["forms"]}) == 2 * len(people)
    for p in people:
        assert len({*p["own"], *p["seen"], *p["unseen"]}) == 6
    parts = [{s for p in people if p["set"] == part for s in p["own"] + p["seen"] + p["unseen"]} for part in PARTS]
    assert [len(part) for part in parts] == [8, 16] and not parts[0] & parts[1]


def test_no_other_bank_has_a_form_of_the_law():
    texts = {text for path in OTHERS for text in list_texts(read(path))}
    assert not {fold(form[1]) for p in LAW["people"].values() for form in p["forms"]} & texts


@pytest.mark.parametrize("subject", LAW["subjects"])
def test_a_plain_reply_of_the_law_is_right_and_has_no_form(subject):
    forms = [form for p in LAW["people"].values() for form in p["forms"]]
    for _, keys, first, second in LAW["subjects"][subject]:
        assert is_right(keys, f"{first} {second}")
        assert not any(has_form(*form, f"{first} {second}") for form in forms)
