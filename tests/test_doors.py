"Equal words through every door: the same correction teaches the policy the same, once."

import numpy as np
import pytest
from devices import LEXICONS, TALK, Fake, open_talk, say
from servers import chat_server

from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.correction_model import PRIOR_MEAN
from personal_llm.buffer.policies import get_policy
from personal_llm.device.personalizer import Personalizer

WORDS = "Dear friend, rest today."
FIRST, LAST = TALK[:5], TALK[5]


def talk_until_last(folder):
    "A chat whose newest turn has no answer, and no question about it."
    talk = open_talk(folder, iter(range(99)).__next__)
    for d in (*FIRST, LAST):
        say(talk, d)
        talk.skip()
    return talk


def weights(me) -> tuple:
    model = me.buffer.policy.correction_model
    return model.mean.tolist(), model.covariance.tolist()


def by_question(folder):
    with talk_until_last(folder) as talk:
        talk.me.open_question(talk.turns[-1]["id"])
        talk.answer(WORDS)
        return weights(talk.me)


def by_chat(folder):
    with talk_until_last(folder) as talk:
        talk.feedback("better", text=WORDS)
        return weights(talk.me)


def by_edit(folder):
    with talk_until_last(folder) as talk:
        talk.feedback("edit", text=WORDS)
        return weights(talk.me)


def by_endpoint(folder):
    from personal_llm.app.personal_endpoints import give_feedback

    with talk_until_last(folder) as talk:
        give_feedback(talk, talk.turns[-1]["id"], better=WORDS)
        return weights(talk.me)


def by_server(folder):
    import json
    from urllib.request import Request, urlopen

    with chat_server(talk_until_last(folder)) as running:
        body = json.dumps(dict(id=running.session.turns[-1]["id"], better=WORDS)).encode()
        head = {"Authorization": f"Bearer {running.token}", "Content-Type": "application/json"}
        urlopen(Request(f"{running.address}/personal/feedback", body, head)).read()
        return weights(running.session.me)


def by_react(folder):
    with talk_until_last(folder) as talk:
        talk.me.react(talk.turns[-1]["id"], "better", WORDS)
        return weights(talk.me)


def by_replay(folder):
    with talk_until_last(folder) as talk:
        talk.feedback("better", text=WORDS)
    from personal_llm.device.replay import read_state

    return weights(read_state(folder))


DOORS = [by_question, by_chat, by_edit, by_endpoint, by_react, by_replay]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_equal_words_leave_equal_weights(door, tmp_path):
    found, wanted = door(tmp_path / "a"), by_question(tmp_path / "b")
    assert found == wanted and found[0] != list(PRIOR_MEAN)


def test_the_server_is_a_door_like_the_others(tmp_path):
    pytest.importorskip("fastapi")
    assert by_server(tmp_path / "a") == by_question(tmp_path / "b")


def offered(labels):
    "A personalizer that reads a file, whose last row may carry a reaction."
    me = Personalizer(Fake(), Buffer(4, get_policy("active", horizon=6)), lexicons=LEXICONS, synthetic=0)
    last = LAST.derive(id=LAST.id, parents=(), labels=labels, origin="model")
    me.observe_all([*FIRST, last], progress=False)
    return me


def test_an_imported_thumb_weighs_as_one_that_is_pressed():
    imported, pressed = offered(dict(feedback=[dict(kind="thumb_up")])), offered({})
    pressed.react(LAST.id, "thumb_up")
    assert weights(imported) == weights(pressed) != weights(offered({}))


def test_a_correction_updates_the_model_once(tmp_path, monkeypatch):
    from personal_llm.buffer.correction_model import CorrectionModel

    updates, update = [], CorrectionModel.update
    monkeypatch.setattr(CorrectionModel, "update", lambda *given: (updates.append(given[2:]), update(*given))[1])
    by_chat(tmp_path)
    assert updates == [(True,)], "once, with the full weight"
    assert np.isfinite(offered({}).buffer.policy.correction_model.mean).all()
