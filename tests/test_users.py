"Simulated users: what they like, and streams that leak nothing into their tests."

import numpy as np
import pytest

from personal_llm.base.core import InputError
from personal_llm.data.reading import load_samples
from personal_llm.data.splits import dialogue_group, group_of, held_out, is_reserved, leak_audit
from personal_llm.data.users import TEST_ROWS, USERS, places_of, user_stream

ROWS = load_samples()


@pytest.mark.parametrize("name", USERS)
def test_every_user_likes_their_own_answers(name):
    someone = USERS[name]
    mine = [r for r in ROWS if (r["source"], r["domain"]) in someone.signal]
    for row in mine:
        wanted = someone.reply(row["response"])
        assert someone.adherence(wanted) == 1 and someone.reply(wanted) == wanted, row["response"]
    plain = np.mean([someone.adherence(r["response"]) for r in mine])
    assert plain < 0.8  # an answer without personalisation misses something


def test_there_are_eight_users_known_by_their_names():
    assert len(USERS) == 8 and all(user.name == name for name, user in USERS.items())


@pytest.mark.parametrize("name", ["nurse", "quiz"])
def test_annotator(name):
    someone = USERS[name]
    stream = user_stream(someone, ROWS, length=200).stream
    for d in stream:
        wanted = someone(d)
        if d.labels["kind"] != "signal":
            assert wanted is None
        elif wanted is not None:
            assert someone(d.derive(response=wanted)) is None  # what was asked for is accepted
            assert someone(d.derive(response="I do not know.")) == wanted  # the reference is remembered
    others = [u for u in USERS.values() if not set(u.signal) & set(someone.signal)]
    assert all(u(d) is None for u in others for d in stream)


@pytest.mark.parametrize("signal", [0.1, 0.25])
def test_share_of_signal(signal):
    streams = [user_stream(USERS["student"], ROWS, signal=signal, seed=seed).stream for seed in range(3)]
    shares = [np.mean([d.labels["kind"] == "signal" for d in stream]) for stream in streams]
    assert all(abs(s - signal) < signal / 2 for s in shares) and abs(np.mean(shares) - signal) < signal / 4


@pytest.mark.parametrize("name,seed", [("clinic", 0), ("storyteller", 1), ("quiz", 2)])
def test_user_stream_is_clean_and_repeatable(name, seed):
    data = user_stream(USERS[name], ROWS, seed=seed)
    assert data == user_stream(USERS[name], ROWS, seed=seed)
    assert data.stream != user_stream(USERS[name], ROWS, seed=seed + 7).stream
    tests = data.test_signal + data.test_rare + data.test_keep
    assert min(map(len, (data.test_signal, data.test_rare, data.test_keep))) >= 60
    assert max(len(data.test_signal), len(data.test_rare)) <= TEST_ROWS
    assert not {dialogue_group(d) for d in tests} & {dialogue_group(d) for d in data.stream}
    assert held_out(tests, data.stream) == tests
    assert all(is_reserved(dialogue_group(d)) for d in tests + data.stream)
    rows = lambda found: [dict(prompt=d.prompt, response=d.response) for d in found]
    assert leak_audit(rows(data.stream), rows(tests))["pairs_shared"] == 0
    assert all({"kind", "domain", "source", "licence"} <= set(d.labels) for d in tests + data.stream)
    assert {d.origin for d in tests} == {"user"} and {d.origin for d in data.stream} == {"model"}
    talk = [d for d in data.stream if d.labels["kind"] == "small talk"]
    assert 0.2 < np.mean(["copy_of" in d.labels for d in talk]) < 0.4


def test_rows_that_are_not_reserved_stay_outside():
    seen = [row | dict(prompt=f"{row['prompt']} ({i})") for i, row in enumerate(ROWS) if row["source"] == "gsm8k"]
    seen = [row for row in seen if not is_reserved(group_of(row))]
    assert len(seen) > 400
    assert user_stream(USERS["pupil"], ROWS + seen) == user_stream(USERS["pupil"], ROWS)


def test_small_talk_is_never_a_users_own_subject():
    for user in USERS.values():
        talk = [place for place, kind, _ in places_of(user) if kind == "small talk"]
        assert talk and not {*user.signal, user.rare} & set(talk)


@pytest.mark.parametrize("wrong", [dict(signal=-0.1), dict(signal=0.9, rare=0.2), dict(seed=-1), dict(seed=10**12)])
def test_what_a_user_stream_refuses(wrong):
    with pytest.raises(InputError) as caught:
        user_stream(USERS["nurse"], ROWS, **wrong)
    assert caught.value.remedy


def test_missing_rows_are_named():
    with pytest.raises(InputError, match="no reserved rows of medquad medical, which user 'nurse' needs"):
        user_stream(USERS["nurse"], [row for row in ROWS if row["source"] != "medquad"])
