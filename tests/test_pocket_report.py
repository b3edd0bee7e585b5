"What the report on the pocket model counts of its rewrites."

from personal_llm.recipes.pocket_report import (
    shares_by_bound,
    count_rewrites,
    find_own_prompt,
    evaluate_rewrites,
    own_prompt_shares,
)

WORDINGS = {"What is your age?": "age", "How old are you?": "age", "Tell me a joke": "joke", "A new joke": "joke"}


def test_rewrites_are_judged_each_against_those_before():
    texts = ["How old are you?", "Tell me a joke"]
    replies = ["[How old are you now?]", "[How old are you now!]", "[Tell me a new joke]", "[tell me a joke]"]
    rows = evaluate_rewrites(texts, replies)
    assert [reason for *_, reason in rows] == ["", "repeat", "", "copy"] and rows[2][0] == "Tell me a joke"
    assert count_rewrites(rows) == dict(parsed=1, copies=0.5, accepted=0.5)


def test_the_original_does_not_count_as_a_wording():
    "A copy finds its intent only where another wording is nearest."
    assert find_own_prompt([("How old are you?", "How old are you?")], WORDINGS).tolist() == [True]
    alone = {"How old are you?": "age", "Tell me a joke": "joke", "A new joke": "joke"}
    assert find_own_prompt([("How old are you?", "How old are you?")], alone).tolist() == [False]


def test_shares_before_and_after_the_check():
    rows = evaluate_rewrites(["How old are you?"], ["[How old are you now?]", "[How is your joke?]", "none"])
    assert own_prompt_shares(rows, WORDINGS) == dict(own_of_parsed=0.5, own_of_accepted=1.0)
    assert own_prompt_shares(rows[2:], WORDINGS) == dict(own_of_parsed=0.0, own_of_accepted=0.0)
    shares = shares_by_bound(["How old are you?"], ["[How old are you now?]", "[How is your joke?]"], WORDINGS)
    assert shares["0.0"] == dict(accepted=1.0, own=0.5) and shares["0.45"] == dict(accepted=0.5, own=1.0)
