"A person's month: six days of one person, with the engine that stands in for a model."

import pytest

from personal_llm.base.models import load_model
from personal_llm.experiments.month import CHANGE_DAY, FIRST_CORRECTIONS, SCOPE_DAY, Life, Message, StandIn
from personal_llm.experiments.month import find_wish, is_judged, list_complaints, list_forms, list_messages, score

pytest.importorskip("fastapi", reason="a program's requests go through the server's function")
DAYS = range(FIRST_CORRECTIONS, FIRST_CORRECTIONS + 6)


@pytest.fixture(scope="module")
def row(tmp_path_factory) -> dict:
    "Return six days of a person who corrects, and says on one of them that this belongs everywhere."
    life = Life("kofi", load_model("pocket"), tmp_path_factory.mktemp("month"), StandIn(list_forms("kofi")))
    return life.live(DAYS)


def test_each_message_of_six_days_has_a_row(row):
    sent = [message for message in list_messages("kofi") if message.day in DAYS]
    assert [message["day"] for message in row["messages"]] == [message.day for message in sent]
    assert [day["day"] for day in row["days"]] == [*DAYS]
    assert all(day["bytes"] > 0 for day in row["days"])


def test_what_a_person_says_acts_on_later_days(row):
    first = row["messages"][0]
    assert first["form"] == "none" and not first["opens"], "nothing was corrected before"
    later = [message for message in row["messages"] if message["day"] >= SCOPE_DAY and message["place"] != "program"]
    assert later and all(message["opens"] for message in later)
    assert {message["form"] for message in later if "form" in message} == {"current"}


def test_complaints_are_days_of_the_month(row):
    assert set(list_complaints(row)) <= set(list_complaints(row, is_strict=True)) <= set(DAYS)
    assert score(row)["complaint_days"] <= len(DAYS)


def test_a_wish_changes_and_a_program_has_none():
    before, later = list_forms("carmen")
    own = Message(CHANGE_DAY - 1, "own", "?", "cocina de verduras")
    assert find_wish("carmen", own) == (before, None)
    assert find_wish("carmen", own._replace(day=CHANGE_DAY)) == (later, before)
    for name in ("carmen", "kofi"):
        assert find_wish(name, Message(20, "program", "?")) == (None, None)
    assert find_wish("kofi", Message(1, "general", "?")) == (["lower"], None)
    assert not is_judged("kofi", Message(1, "told", "?")) and is_judged("carmen", Message(1, "told", "?"))
