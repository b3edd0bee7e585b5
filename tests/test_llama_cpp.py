"Replies by llama.cpp: the same tokens as PyTorch, adapters that come and go, no network port, and refusals."

import sys
from dataclasses import replace

import psutil
import pytest

pytest.importorskip("xllamacpp")

from test_gguf import make_gguf, make_network  # noqa: E402
from tiny import random_adapter  # noqa: E402

from personal_llm.base.core import Dialogue, InputError  # noqa: E402
from personal_llm.base.models import load_model  # noqa: E402
from personal_llm.buffer.buffer import Buffer  # noqa: E402
from personal_llm.device.conversation import ChatSession  # noqa: E402
from personal_llm.device.personalizer import Personalizer  # noqa: E402
from personal_llm.device.streaming import ReplyOptions, ReplyStream  # noqa: E402
from personal_llm.runtimes.llama_cpp import LlamaCppEngine  # noqa: E402

GREEDY = ReplyOptions(max_tokens=12, soft_tokens=12, temperature=0.0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(place))
        network = make_network("smollm2", vocab_size=263)  # llama.cpp wants as many rows as tokens
        model = load_model(make_gguf(place / "tiny.gguf", network=network), device="cpu", dtype="float32")
    model.decoding = replace(model.decoding, repetition_penalty=1.0)
    model.engine = LlamaCppEngine(model)
    model.engine.num_threads = 1
    return model


def list_ports() -> set:
    return {(row.laddr, row.status) for row in psutil.Process().net_connections(kind="inet")}


def write(kind, model, prompt: str, options=GREEDY):
    stream = kind(model, Dialogue(prompt, ""), options)
    assert "".join(stream) == stream.text
    return stream


def test_a_reply_is_that_of_pytorch_with_and_without_an_adapter(model, tmp_path):
    ports, adapter, texts = list_ports(), random_adapter(model, tmp_path), set()
    for one in (None, adapter, None):
        with model.use_adapter(one):
            theirs, ours = (write(kind, model, "the thin cat") for kind in (model.engine, ReplyStream))
            (anew,) = model.run_forward([Dialogue("the thin cat", theirs.text)])
        assert theirs.text == ours.text and theirs.end_reason == ours.end_reason
        assert theirs.reading.model == ours.reading.model and theirs.reading.nll == pytest.approx(anew.nll, rel=1e-4)
        texts.add(theirs.text)
    assert len(texts) == 2, "the adapter changes the reply, and goes"
    assert list_ports() == ports, "a port is open"


def test_an_adapter_is_loaded_once(model, tmp_path, monkeypatch):
    adapter = random_adapter(model, tmp_path)
    servers = set()
    for _ in range(2):
        with model.use_adapter(adapter):
            write(model.engine, model, "the")
            servers.add(model.engine.server)
    assert len(servers) == 1


def test_stops_and_limits_are_ours(model):
    whole = write(model.engine, model, "the thin cat").text
    stop = whole[3:5]
    stream = write(model.engine, model, "the thin cat", replace(GREEDY, stop=(stop,)))
    assert stream.text == whole[: whole.index(stop)] and stream.end_reason == "stop"
    stream = write(model.engine, model, "the thin cat", replace(GREEDY, max_tokens=3, soft_tokens=3))
    assert stream.end_reason == "length" and whole.startswith(stream.text) and len(stream.text) < len(whole)


def test_a_reply_that_nobody_wants_ends(model):
    stream = model.engine(model, Dialogue("the thin cat", ""), replace(GREEDY, max_tokens=200, soft_tokens=200))
    pieces = iter(stream)
    next(pieces)
    pieces.close()
    assert stream.reading is None
    assert write(model.engine, model, "the thin cat").text, "the next reply comes"


def test_a_chat_and_a_personalizer_use_the_engine(model, tmp_path, monkeypatch):
    asked = []
    generate = LlamaCppEngine.generate
    monkeypatch.setattr(LlamaCppEngine, "generate", lambda *given: (asked.append(1), generate(*given))[1])
    me = Personalizer(model, Buffer(4))
    assert me.reply("the thin cat", max_tokens=8) and len(asked) == 1
    with ChatSession(model, tmp_path / "chat") as session:
        text = "".join(session.say("the thin cat", options=GREEDY))
        assert text and len(asked) == 2 and session.turns[-1]["response"] == text
        assert session.me.buffer.seen or session.question, "the turn was scored"


def test_what_cannot_run_is_one_line(model, monkeypatch):
    with pytest.raises(InputError, match="needs the base model as a GGUF file"):
        LlamaCppEngine(load_model("pocket"))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(InputError, match=r"not installed; pip install \"personal_llm\[llama\]\""):
        LlamaCppEngine(model)
