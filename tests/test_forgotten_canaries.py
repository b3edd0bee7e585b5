"A planted code that was forgotten: no byte of it on the disk, and no exposure in the rebuilt adapter."

import gc
import json

import numpy as np
import pytest
from planted_facts import find_facts_by_words

from personal_llm import personalize
from personal_llm.app import personalize as module
from personal_llm.base import models
from personal_llm.base.core import Dialogue
from personal_llm.tuning.config import TuningConfig
from personal_llm.experiments.methods.canaries import compute_exposure, make_canaries
from tiny import tiny
from typed import found, rows

THINGS = ("locker", "safe", "bicycle", "alarm")
CANDIDATES = 60
LARGEST_CHANCE = 2.8  # bits: 95 of 100 means of four exposures without training lie below


def mean_exposure(model, adapter) -> float:  # bits
    values = []
    for thing in THINGS:
        with model.use_adapter(adapter):
            nats = model.nll(make_canaries(thing, CANDIDATES + 1))[:, 0]
        values.append(compute_exposure(nats[0], nats[1:]))
    return float(np.mean(values))


def bytes_below(folder) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
def model(monkeypatch):
    made = tiny("llama", seed=3)
    monkeypatch.setattr(models, "load_model", lambda name="pocket", **named: made)
    config = lambda model, settings: TuningConfig(learning_rate=1e-2, steps=settings.steps)
    monkeypatch.setattr(module, "make_tuning_config", config)
    monkeypatch.setattr(module, "MAX_MEASURED_REPLY_TOKENS", 4)
    return made


def test_a_forgotten_code_is_neither_on_the_disk_nor_in_the_rebuilt_adapter(model, tmp_path, capsys):
    canaries = [make_canaries(thing, 1)[0] for thing in THINGS]
    texts = [dict(prompt=d.prompt, response=d.response) for d in canaries]
    own, out = rows(8) + texts, tmp_path / "out"
    personalize(own, out, capacity=16, steps=60, progress=False, synthetic=0, replay=0)
    secrets = [d.response.encode() for d in canaries]
    assert mean_exposure(model, out / "adapter") > 4 > LARGEST_CHANCE > mean_exposure(model, None)
    assert any(secret in bytes_below(tmp_path) for secret in secrets)
    done = found(capsys, "forget", "--out", out, "--containing", "The code of your", "--retrain")
    assert done["rebuilt"] and not any(secret in bytes_below(tmp_path) for secret in secrets)
    assert mean_exposure(model, out / "adapter") <= LARGEST_CHANCE


CANARY = "vorticellapex"


def list_holders(word: str) -> list:  # descriptions
    "Find the objects of this process that hold a text with a word; tuples of texts are seen through what holds them."
    gc.collect()
    holders = []
    for holder in gc.get_objects():
        parts = gc.get_referents(holder)
        parts += [text for part in parts if type(part) is tuple and not gc.is_tracked(part) for text in part]
        if any(type(text) is str and word in text.lower() for text in parts):
            holders.append(f"{type(holder).__name__}: {str(holder)[:200]}")
    return holders


@pytest.mark.parametrize("is_complete", [False, True])
def test_no_place_of_a_served_chat_keeps_a_forgotten_word(tmp_path, monkeypatch, is_complete):
    """Turns, titles, corrections, choices, programs, imports, an open question, fine-tunes, caches and answers.

    A fine-tune runs, or is complete and not in use yet; we hold it, as the server's watching task does for a while.
    """
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    from servers import chat_server
    from test_server import ask, fresh, messages, say, until

    from personal_llm.buffer.active import ActivePolicy

    word = CANARY.title()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(list_holders(CANARY))
    with chat_server(fresh(tmp_path / "me")) as running:
        post, session = lambda path, **body: ask(running, "POST", path, body), running.session
        monkeypatch.setattr(session.model, "is_large", True)  # it reads facts and corrections
        find_facts_by_words(monkeypatch)
        say(running, "My knee hurts.")
        first = say(running, f"I live in {word}.")["id"]
        assert post("/personal/feedback", id=first, kind="edit", better=f"Dear friend of {word}, rest.")[0] == 200
        assert post("/personal/rename", key="", title=f"About {word}")[0] == 200
        second = say(running, "Where do I live?")["id"]
        assert word in session.plan.fact
        replies = dict(rejected=f"{word}?", response=f"In {word}.")
        running.worker.executor.submit(lambda: session.me.react(second, "choice", f"In {word}.", **replies)).result()
        post("/personal/learn")
        until(lambda: ask(running, "GET", "/personal/status")[1]["rounds"] == 1)
        other = f"new {word}"
        say(running, other)
        assert post("/personal/again", keeps_both=True)[0] == 200  # an open choice
        talk = [dict(role="system", content=f"You know {word}."), *messages(f"{word}?", f"{word}!", "And?")]
        body = dict(model="personal", max_tokens=4)
        for change in (dict(), dict(store=False), dict(stream=True)):
            assert post("/v1/chat/completions", **body, messages=talk, **change)[0] == 200
        labels = dict(source=f"of {word}", feedback=[dict(kind="choice", rejected=f"{word} again")])
        rows = [Dialogue("Tea?", "Yes.", id="a", labels=labels), Dialogue(f"{word}?", "Far.", id="b")]
        rows += [Dialogue("How far?", f"As far as {word}.", id="c"), Dialogue("So?", "So.", [("user", word)], id="d")]
        content = "\n".join(json.dumps(row.to_dict()) for row in rows).encode()
        assert ask(running, "POST", f"/personal/import?name={word}.jsonl", content)[0] == 200
        ask(running, "POST", f"/personal/import?name={word}.jsonl", f'{{"{word}": '.encode())
        for path in ("conversations", "memory"):
            assert word in json.dumps(ask(running, "GET", f"/personal/{path}?q={CANARY}")[1])
        monkeypatch.setattr(ActivePolicy, "decide_question", lambda *given: (True, "it always asks"))
        assert post("/v1/chat/completions", **body, messages=talk)[0] == 200 and session.question
        own = messages(f"I live in {word}.", "Nice.", "Where do I live?")
        assert post("/v1/chat/completions", **body, messages=own, store=False)[0] == 200
        assert session.question and word in session.plan.fact and session.me.embedder is not None
        assert CANARY.encode() in bytes_below(tmp_path).lower() and len(list_holders(CANARY)) > before + 10
        running.worker.finish_training = lambda: None  # a complete fine-tune waits
        session.me.config = TuningConfig(steps=2 if is_complete else 1000)
        assert post("/personal/learn")[0] == 200
        training = session.background_training
        if is_complete:
            training.thread.join()
        assert bool(training.prepared) == is_complete
        talk = body = labels = rows = content = other = replies = own = None
        report = post("/personal/forget", text=word)[1]
        assert report["dialogues"] and report["adapters"] == 1, report
        assert CANARY.encode() not in bytes_below(tmp_path).lower()
        for path in "conversations conversation memory export status learning style examples".split():
            assert CANARY not in json.dumps(ask(running, "GET", f"/personal/{path}")[1]).lower(), path
        assert [turn["prompt"] for turn in session.turns][0] == "My knee hurts."
        own = "cell:", "SplitResult:", "list: ['\"A planted code"  # of this test, its client and its source
        assert [text for text in list_holders(CANARY) if not text.startswith(own)] == [] and training.is_done()
    assert CANARY.encode() not in bytes_below(tmp_path).lower()
