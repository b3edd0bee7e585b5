"What becomes of chats of other programs: `talks.json` has rules, each with files or rows and what is read of them."

import json
from collections import Counter
from pathlib import Path

import pytest
from cases import case, pairs, save

from personal_llm.base.core import InputError
from personal_llm.data.reading import read_dialogues
from personal_llm.extras.marks import GAP, SETUP, UNLEARNED

TALKS = json.loads(Path(__file__).with_name("talks.json").read_text(encoding="utf-8"))
REASONS = {GAP: "gap", SETUP: "set-up", UNLEARNED: "not learned"}


def describe(given, options, folder):
    "Return what is read of rows or of a file, as the table has it: pairs, a dictionary, or the error's words."
    source = given
    if isinstance(given, dict):
        ((name, content),) = given.items()
        is_binary = isinstance(content, dict) and "latin-1" in content
        source = save(folder / name, content["latin-1"].encode("latin-1") if is_binary else content)
    try:
        found = read_dialogues(source, **options)
    except InputError as error:
        assert "\n" not in str(error) and error.remedy
        return str(error)
    return dict(
        pairs=[[*pair] for pair in pairs(found)],
        histories=[[[*turn] for turn in d.history] for d in found],
        times=[d.time for d in found],
        user=found.user,
        skipped=len(found.skipped),
    ) | {"left out": {REASONS.get(reason, reason): count for reason, count in found.left_out.items()}}


@pytest.mark.parametrize("rule", TALKS)
def test_a_rule_holds(rule, tmp_path):
    for given, expected, *options in TALKS[rule]:
        with case(str(given)[:300], expected):
            found = describe(given, dict(*options), tmp_path)
            if isinstance(expected, str):
                assert isinstance(found, str) and expected in found, found
            else:
                wanted = expected if isinstance(expected, dict) else dict(pairs=expected)
                assert isinstance(found, dict), found
                assert {name: found[name] for name in wanted} == wanted
                assert "left out" in wanted or not Counter(found["left out"]).total(), found
