"Statements: sentences about oneself, no pasted text, read where a prompt is about oneself, within a budget."

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue
from personal_llm.base.encoder import encode, load_encoder
from personal_llm.data.reading import load_replay
from personal_llm.memory.gate import General
from personal_llm.memory.retrieval import MemoryConfig, add_memories, choose_statements, find_updates
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.archive import Archive
from personal_llm.device.recall import Memory, load_general
from personal_llm.device.state import State
from personal_llm.memory.statements import Statement, add_days, describe_wishes, find_statements, is_private
from personal_llm.base.text import format_date
from personal_llm.memory.statements import FACT_KINDS, SECRET, find_kinds, find_names, list_own_sentences, read_prompt

SLOW = settings(deadline=None, max_examples=25)  # the encoder runs in each

count_words = lambda text: len(text.split())
GENERAL = General()  # nothing to compare with, so every statement bears on a prompt about oneself


class Angles:
    "An encoder whose texts end with their angle in degrees; others have the angle 0."

    def encode(self, texts, **options):
        last = [text.split()[-1].rstrip(".") for text in texts]
        angles = np.radians([float(word) if word.isdigit() else 0.0 for word in last])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def read_needed(said, rows, prompt, row, general=GENERAL, config=MemoryConfig(), time=0.0):
    least = general.measure_nearness(rows)
    return choose_statements(said, rows, least, read_prompt(prompt), row, config, count_words, time)


def choose(said, prompt, vectors, **options):
    "Return the statements that a reply uses, and those that newer ones update."
    rows = vectors.embed([prompt, *(s.text for s in said)])
    return read_needed(said, rows[1:], prompt, rows[0], GENERAL, MemoryConfig(**options))


TEXTS = json.loads(Path(__file__).with_name("statements.json").read_text(encoding="utf-8"))  # kind -> messages


def test_facts_and_wishes_are_kept_in_sixteen_languages():
    messages = TEXTS["a fact and a wish"]
    assert sum(list_own_sentences(message) == [message] for message in messages) >= 31, "of 32, none of them fitted"
    assert sum([*map(str, describe_wishes(wish))] == [f"kept: {wish}"] for wish in messages[1::2]) >= 15


@pytest.mark.parametrize("message, expected", TEXTS["kept"] + [[message, []] for message in TEXTS["nothing"]])
def test_a_statement_is_a_sentence_about_oneself(message, expected):
    "A question, a request, a secret and a text of others state nothing."
    assert list_own_sentences(message) == expected


@pytest.mark.parametrize("kind, most", [("supposed or wished for", 1), ("pasted", 2)])
def test_what_is_only_supposed_and_what_others_wrote_is_no_fact(kind, most):
    kept = [message for message in TEXTS[kind] if list_own_sentences(message)]
    assert len(TEXTS[kind]) >= 35 and len(kept) <= most, kept


@SLOW
@given(st.text(), st.sampled_from(["Summarise this page:", "Write a poem.", "Übersetze das:", "Fix my mail:\n"]))
def test_what_follows_a_request_never_comes_back(text, request_):
    assert list_own_sentences(f"{request_} {text}") == []


@SLOW
@given(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cc", "Cs", "Zl", "Zp"])))
def test_what_follows_a_colon_never_comes_back(text):
    assert list_own_sentences(f"I am vegan. My friend said: {text}") == ["I am vegan."]


@SLOW
@given(st.lists(st.text(st.sampled_from("I am my wo\n.?!:\"'> ")), max_size=8))
def test_any_message_is_read(texts):
    said = find_statements([Dialogue(text.strip() or "-", "", time=float(i)) for i, text in enumerate(texts)])
    assert all(s.text.strip() and not s.text.endswith(("?", ":")) for s in said)


@pytest.mark.parametrize("message, words", TEXTS["answered with"])
def test_a_wish_that_is_not_done_is_answered_with_what_to_do(message, words):
    lines = [*map(str, describe_wishes(message))]
    assert any(words in line for line in lines) if words else not lines


@pytest.mark.parametrize("prompt, expected", TEXTS["about oneself"])
def test_a_prompt_is_about_oneself_or_not(prompt, expected):
    assert read_prompt(prompt).is_about_self == expected


@pytest.mark.parametrize("statement, prompt, expected", TEXTS["of somebody"])
def test_what_the_person_said_of_somebody_is_read_where_the_name_is(statement, prompt, expected):
    assert find_names(statement).isdisjoint(read_prompt(prompt).words) != expected
    said = [Statement(statement)]
    rows = encode([prompt, statement])
    far = General(np.repeat(rows[:1], 3, axis=0))  # nothing is nearer than these
    chosen = read_needed(said, rows[1:], prompt, rows[0], far)[0]
    assert bool(chosen) == expected


@pytest.mark.parametrize("text, expected", TEXTS["with its day"])
def test_tomorrow_is_stored_with_the_day_that_it_meant(text, expected):
    assert add_days(text, 86_400.0 * 20_000 + 3600) == expected and add_days(text, 799.0) == text


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone can't be changed here")
def test_the_day_is_that_of_the_computer(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        evening = 1_709_515_800.0  # 3 March 2024, 20:30 in New York, and 4 March in UTC
        assert format_date(evening) == "3 March 2024"
        assert add_days("My flight is tomorrow.", evening) == "My flight is tomorrow (4 March 2024)."
    finally:
        monkeypatch.undo()
        time.tzset()


def make_memory(**messages):
    "Return a memory, and a state with messages of one talk."
    archive = Archive()
    state = State(archive, Buffer(4, "fifo"))
    for place, (id, prompt) in enumerate(messages.items()):
        archive.add(Dialogue(prompt, "Fine.", id=id, origin="model", time=float(place)), "monday")
        state.record("said", id, reads=[], statements=[])
    return Memory(archive), state


def test_statements_that_the_talk_shows_are_not_used_twice():
    memory, state = make_memory(a="I live in Oslo.", b="I live with my parents.")
    asked = Dialogue("Where do I live?", "", [("user", "I live in Oslo."), ("assistant", "Fine.")])
    assert [one.text for one in memory.find(state, asked, len).statements] == ["I live with my parents."]


def test_a_message_that_took_the_place_of_another_is_read_anew():
    memory, state = make_memory(a="I live in Oslo.")
    for text in ("I live in Oslo.", "I live in Linz."):
        memory.archive.add(Dialogue(text, "Fine.", id="a", origin="model"), "monday")
        assert [one.text for one in memory.list_statements(state)] == [text]


def test_forgotten_statements_do_not_stay_in_memory_and_others_are_not_read_again():
    memory, state = make_memory(a="I live in Oslo.", b="I am vegan.")
    kept = memory.list_statements(state)[1]
    del memory.archive.dialogues["a"], state.own["a"]
    memory.languages["I live in Oslo."] = "english"
    memory.clear()
    assert memory.said == {"b": ("I am vegan.", [kept])} and not memory.vectors.vectors and not memory.languages
    assert memory.list_statements(state)[0] is kept


@pytest.mark.parametrize("older, newer, expected", TEXTS["replaced by a change"])
def test_a_change_replaces_what_it_is_surely_about_and_nothing_that_still_holds(older, newer, expected):
    messages = ["My brother is called Paul.", "I have a blue bike.", older, newer]
    said = find_statements([Dialogue(text, "", time=float(place)) for place, text in enumerate(messages)])
    rows = encode([s.text for s in said])
    updates, _ = find_updates(said, rows, load_general(load_encoder()).measure_nearness(rows))
    assert {said[old].text: said[new].text for old, new in updates.items()} == ({older: newer} if expected else {})


@pytest.mark.parametrize(
    "first, second", [("I don't eat meat.", "I don't drink."), ("I live in Bonn.", "I live in Rome.")]
)
def test_statements_of_one_message_never_replace_each_other(first, second):
    said = find_statements([Dialogue(f"{first} {second}", "")])
    assert [s.text for s in said] == [first, second]
    assert find_updates(said, encode([first, second]), np.full(2, -1.0)) == ({}, {})


@pytest.mark.parametrize("message", TEXTS["introductions"])
def test_a_long_message_of_facts_alone_is_kept_and_another_long_one_is_not(message):
    own = list_own_sentences(message)
    assert len(own) >= 5 and message.startswith(" ".join(own))
    assert list_own_sentences(f"{message} The weather in Rome was bad.") == []


def test_what_security_names_as_missed_is_missed_and_the_rest_is_found():
    page = " ".join(Path(__file__).parents[1].joinpath("SECURITY.md").read_text(encoding="utf-8").split())
    assert [text for text in TEXTS["private, not recognised"] if text.rstrip(".") in page and not is_private(text)] == (
        TEXTS["private, not recognised"]
    )
    assert all(map(is_private, ("I have diabetes. What may I eat?", "My password is hunter2.")))


def test_what_ends_and_what_changes_is_told_from_what_lasts():
    "None of these is among the examples of the fit."
    texts = {kind.partition("facts: ")[2]: own for kind, own in TEXTS.items() if kind.startswith("facts: ")}
    found = {kind: [*find_kinds(own, FACT_KINDS).values()] for kind, own in texts.items()}
    shares = {kind: np.mean([one == kind for one in kinds]) for kind, kinds in found.items()}
    assert len(shares) == 5 and all(share >= 0.8 for share in shares.values()), shares
    assert sum(kind in ("state", "change") for kind in found["lasting"]) <= 2


def test_a_statement_is_read_where_it_bears_on_the_prompt():
    texts = [
        "I have type 2 diabetes.",
        "My wife is called Ruth.",
        "I work as a nurse in Graz.",
        "My dog is called Rex.",
    ]
    said = find_statements([Dialogue(text, "", time=float(i)) for i, text in enumerate(texts)])
    general = General(encode([d.prompt for d in load_replay(200)]))
    rows = encode([s.text for s in said])

    def read(prompt):
        chosen = read_needed(said, rows, prompt, encode([prompt])[0], general)[0]
        return [s.text for s in chosen]

    technical = """I need a regular expression for dates.|I have a function that returns None.|I forgot how to rebase.
My unit test is red.|I want to sort a list of tuples.|How do I reverse a string in my script?|My query is slow."""
    assert sum(bool(read(prompt)) for prompt in technical.replace("\n", "|").split("|")) <= 1
    asked = [
        "May I eat cake with my diabetes?",
        "Plan a present for my wife.",
        "Where do I work?",
        "What is my dog called?",
    ]
    assert sum(text in read(prompt) for text, prompt in zip(texts, asked)) == 4


def test_dates_are_written_as_people_write_them():
    moved = Statement("I moved\nto  Bonn.", 86_400.0 * 20_000)
    lines = [
        "Today is 5 October 2024. The user told you before:",
        "- on 4 October 2024: I moved to Bonn.",
        "- I like tea.",
    ]
    asked = Dialogue("Where do I live?", "", time=86_400.0 * 20_001)
    write = lambda d, said: [text for role, text in add_memories(d, [], said).history if role == "system"]
    assert write(asked, [moved, Statement("I like tea.", 3.0)]) == ["\n".join(lines)]
    assert write(Dialogue("Hi", ""), [moved])[0].startswith("The user told you before:") and write(asked, []) == []
    assert [format_date(time) for time in (0.0, 799.0, -1e12, 1e300)] == [""] * 4


NAMES = "ThinkPad-X1-Carbon-Gen11 FRITZ-Box-7590-XY lena-hofer-1984-graz llama-3-1-8b-instruct iPhone-15-Pro-Max-256GB"
KEYS = "sk-proj-Ab3dE6gH9jK2mN5pQ8rT ghp_16C7e42F292c6912E7710c838347Ae178B4a AKIAIOSFODNN7EXAMPLE A1B2-C3D4-E5F6-G7H8 "
KEYS += "550e8400-e29b-41d4-a716-446655440000 ABCDE-12345-FGHIJ-67890 "
KEYS += "xoxb-123456789012-AbCdEfGhIjKlMnOp sk-ant-api03-abcDEF1234-xyz"


def test_names_with_numbers_are_no_secrets_and_keys_are():
    assert not [name for name in NAMES.split() if SECRET.search(f"It is called {name}.")]
    assert not [key for key in KEYS.split() if not SECRET.search(f"It is {key}.")]
    assert list_own_sentences("My laptop is a ThinkPad-X1-Carbon-Gen11.")
