"Replies by both engines: the same tokens, adapters that come and go, stops, limits, and no network port."

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from llama_cpp import our_log_probabilities, write_base
from tiny import UPPER, random_adapter, tiny

from personal_llm.base import replies
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import Model, load_model
from personal_llm.base.replies import ReplyOptions, ReplyStream
from personal_llm.device.chat import ChatSession
from personal_llm.tuning.evaluation import evaluate

PROMPTS = """Hello, how are you?|What is a tendon?|Define the medical term: fever.|What should I cook tonight?|Why?
I am tired.|Tell me a story.|Where is the hospital?|Thank you.|Good morning!|What is your name?|Do you like tea?
Book me a table for two.|What is the weather like?|Name a colour.|How old are you?|What is pain?|Is it late?
My knee hurts.|See you soon.""".replace("\n", "|").split("|")
SHORT = ReplyOptions(max_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "The pocket model, with its weights in a GGUF file too."
    pytest.importorskip("xllamacpp")
    file = tmp_path_factory.mktemp("gguf") / "pocket.gguf"
    pocket = load_model("pocket", device="cpu", dtype="float32")
    write_base(pocket, file)
    return Model(pocket.model, pocket.tokenizer, "pocket", base=pocket.base, gguf=file)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    return random_adapter(model, tmp_path_factory.mktemp("adapter"))


def by_transformers(model):
    "The same model without its GGUF file."
    return Model(model.model, model.tokenizer, "pocket", base=model.base)


def write(model, prompt: str, options=SHORT):
    stream = ReplyStream(model, prompt, options)
    assert "".join(stream) == stream.text
    return stream


class Says:
    "An engine that says a text in pieces."

    def __init__(self, text: str, size: int):
        self.pieces = [text[start : start + size] for start in range(0, len(text), size)]

    def write(self, dialogue, options):
        yield from self.pieces
        return replies.ReplyEnd("stop", 1, len(self.pieces))


THOUGHTS = json.loads(Path(__file__).with_name("marks.json").read_text(encoding="utf-8"))["thoughts"]


@pytest.mark.parametrize("text", THOUGHTS)
def test_a_thought_is_never_a_reply(text):
    pocket = load_model("pocket")
    for size in (1, 2, 3, 5, 8, 13, 1000):
        pocket.engine = Says(text, size)
        stream = ReplyStream(pocket, "Is 7 prime?")
        shown = [*stream]
        assert stream.text == "Yes.", size
        thoughts = [place for place, piece in enumerate(shown) if isinstance(piece, replies.Thought)]
        assert "".join(shown) == "Yes." or text.startswith("Hm") and "".join(shown[thoughts[-1] :]) == "Yes."
    pocket.engine = Says(text, 3)
    with ChatSession(pocket, None, idle_seconds=999.0) as session:
        assert "".join(session.say("Is 7 prime?")).endswith("Yes.") and session.turns[0].response == "Yes."


@pytest.mark.parametrize(
    "text", [" Write `<think>` first.\n```\n<think>\n```\n", "Use <think> and </think>.", "Thinking...\nI fell."]
)
def test_marks_that_somebody_wrote_about_stay(text):
    pocket = load_model("pocket")
    for size in (1, 4, 1000):
        pocket.engine = Says(text, size)
        stream = ReplyStream(pocket, "How do models think?")
        assert "".join(stream) == stream.text == text.strip()


def likeliest(model, ids: list) -> dict:  # token -> nats
    engine = replies.find_engine(model)
    engine.prepare()
    weight = 0.0 if model.adapter_folder is None else 1.0
    request = dict(prompt=ids, max_tokens=1, logprobs=20, temperature=0.0, lora=[dict(id=0, scale=weight)])
    (place,) = engine.server.handle_completions(request)["choices"][0]["logprobs"]["content"]
    return {row["id"]: row["logprob"] for row in place["top_logprobs"]}


def test_both_engines_give_the_same_probabilities(model, adapter, tmp_path):
    "Of the twenty likeliest tokens after twenty prompts, with an adapter of all layers or the upper one, and without."
    for folder in (None, adapter, random_adapter(model, tmp_path / "upper", **UPPER), None):
        with model.use_adapter(folder):
            for prompt in PROMPTS:
                (ids,) = model.encode_prompts([prompt], 100)
                ours = our_log_probabilities(model, ids)
                theirs = likeliest(model, ids)
                assert np.abs([ours[token] - nats for token, nats in theirs.items()]).max() < 0.02


def test_a_reply_is_that_of_transformers_with_and_without_an_adapter(model, adapter):
    ports = {(row.laddr, row.status) for row in psutil.Process().net_connections(kind="inet")}
    texts = set()
    for folder in (None, adapter, None):
        with model.use_adapter(folder):
            theirs = write(model, "What is a tendon?")
            ours = write(by_transformers(model), "What is a tendon?")
        assert (theirs.num_prompt_tokens, theirs.num_tokens) == (ours.num_prompt_tokens, ours.num_tokens)
        assert theirs.text == ours.text and theirs.end_reason == ours.end_reason
        texts.add(theirs.text)
    assert len(texts) == 2, "the adapter changes the reply, and goes"
    assert {(row.laddr, row.status) for row in psutil.Process().net_connections(kind="inet")} == ports


def test_a_system_without_affinity_and_unix_sockets_replies_too(model, adapter, monkeypatch):
    "macOS has no `cpu_affinity`, Windows no `AF_UNIX`: llama.cpp then listens on this computer's address, with a key."
    import http.client

    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    monkeypatch.delattr(socket, "AF_UNIX")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None)
    other = Model(model.model, model.tokenizer, "pocket", base=model.base, gguf=model.gguf)
    with other.use_adapter(adapter), model.use_adapter(adapter):
        assert write(other, "Hi").text == write(model, "Hi").text
    address = other.engine.server.listening_address.removeprefix("http://")
    assert address.startswith("127.0.0.1:")
    connection = http.client.HTTPConnection(address)
    connection.request("POST", "/v1/completions", '{"prompt": "Hi", "max_tokens": 1}')
    assert connection.getresponse().status == 401
    connection.close()


def test_a_temporary_folder_with_a_long_path_holds_no_socket(model, tmp_path, monkeypatch):
    "The path of a Unix socket has 104 bytes on macOS, whose temporary folders have long names."
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    other = Model(model.model, model.tokenizer, "pocket", base=model.base, gguf=model.gguf)
    assert write(other, "Hi").text == write(model, "Hi").text
    assert other.engine.server.listening_address.startswith("http://127.0.0.1:")


def test_writing_leaves_an_idle_core_to_a_program_that_starts_later(model, monkeypatch):
    import xllamacpp

    threads = []

    def load(parameters):
        threads.append((parameters.cpuparams_batch.n_threads, parameters.cpuparams.n_threads))

    monkeypatch.setattr(xllamacpp, "Server", load)
    for count in (1, 2, 8):
        monkeypatch.setattr(replies, "count_idle_cores", lambda: count)
        replies.LlamaCpp(model).prepare()
    assert threads == [(1, 1), (2, 1), (8, 7)]


def test_an_adapter_is_loaded_once(model, adapter):
    servers = set()
    for folder in (adapter, None, adapter):
        with model.use_adapter(folder):
            write(model, "Hi")
            servers.add(model.engine.server)
    assert len(servers) == 1


def test_what_is_measured_is_written_by_the_engine_that_a_person_meets(model, monkeypatch):
    monkeypatch.setattr(replies.Torch, "complete", None)
    texts = model.reply(["Hi", "Tell me a story."], 12)
    assert texts == [write(model, "Hi").text, write(model, "Tell me a story.").text]
    theirs = evaluate(model, [Dialogue("Hi", "Hello.")], max_tokens=12)
    assert theirs.items[0]["reply"] == texts[0]


@pytest.mark.parametrize("kind", ["llama.cpp", "transformers"])
def test_two_replies_at_once_wait_in_order(kind, model, monkeypatch):
    "Each is whole, and no work begins before the work before it has ended."
    model = model if kind == "llama.cpp" else by_transformers(model)
    engine = replies.find_engine(model)
    alone = [write(model, prompt).text for prompt in PROMPTS[:4]]
    busy, most = [], []
    complete = engine.complete

    def watch(*arguments):
        busy.append(1)
        most.append(len(busy))
        try:
            return complete(*arguments)
        finally:
            busy.pop()

    monkeypatch.setattr(engine, "complete", watch)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: write(model, prompt).text, PROMPTS[:4]))
    assert together == alone and most == [1] * 4


@pytest.mark.parametrize("kind", ["llama.cpp", "transformers"])
def test_stops_limits_and_a_reader_who_goes_away(kind, model):
    model = model if kind == "llama.cpp" else by_transformers(model)
    whole = write(model, "Tell me a story.")
    assert whole.end_reason == "length" and whole.num_tokens == 12 and whole.text == whole.text.strip()
    stop = whole.text[6:9]
    cut = write(model, "Tell me a story.", replace(SHORT, stop=("☃", stop)))
    assert cut.text == whole.text[: whole.text.index(stop)].strip() and cut.end_reason == "stop"
    pieces = iter(ReplyStream(model, "Tell me a story.", replace(SHORT, max_tokens=150)))
    next(pieces)
    pieces.close()
    assert write(model, "Tell me a story.").text == whole.text, "the next reply comes"
    drawn = replace(SHORT, temperature=1.0, top_p=0.9, seed=3)
    assert write(model, "Tell me a story.", drawn).text == write(model, "Tell me a story.", drawn).text


def test_a_reply_that_ends_with_the_last_token_that_it_may_have_is_not_cut(model, monkeypatch):
    end = next(iter(replies.find_end_tokens(model)))
    for new, told in (([5, 6, end], ("stop", 2)), ([5, 6, 7], ("length", 3)), ([5, 6], ("stop", 2))):
        monkeypatch.setattr(replies, "continue_rows", lambda *given, new=new, **options: [new])
        assert replies.Torch(model).complete([1], ReplyOptions(3), None, None) == told


def test_what_llama_cpp_cannot_load_is_written_by_transformers(model, tmp_path, capsys):
    "A file whose table is larger than its list of tokens, say, or DoRA; said once."
    file = tmp_path / "cut.gguf"
    file.write_bytes(model.gguf.read_bytes()[:100_000])
    broken = Model(model.model, model.tokenizer, "pocket", base=model.base, gguf=file)
    assert write(broken, "Hi").text == write(broken, "Hi").text == write(by_transformers(model), "Hi").text
    assert capsys.readouterr().err.count("cut.gguf: llama.cpp cannot load it, so transformers replies") == 1
    adapter = random_adapter(model, tmp_path / "dora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | dict(use_rslora=True)))
    with model.use_adapter(adapter):
        assert write(model, "Hi").text == write(by_transformers(model), "Hi").text
    assert "use_rslora is set; only plain LoRA is taken" in capsys.readouterr().err


def test_without_the_package_transformers_writes(model, monkeypatch):
    monkeypatch.setattr(replies.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(model, "engine", None)
    assert write(model, "Hi").text and isinstance(model.engine, replies.Torch)


def test_a_table_larger_than_the_tokenizer_never_ends_a_reply():
    "Rows without a text are never drawn: neither in a stream nor in a batch."
    model = tiny("llama")
    size = len(model.tokenizer)
    with torch.no_grad():
        model.model.resize_token_embeddings(size + 64)
        rows = 100 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
        model.model.lm_head.weight[size:] = torch.cat([rows, -rows])  # the largest score is one of these
    assert write(model, "Hello").text
    assert write(model, "Hello", replace(SHORT, temperature=1.0)).text
    assert model.generate(["Hello"], max_new_tokens=8) != [""]


@pytest.mark.parametrize("name, wrong", [("max_tokens", 0), ("max_tokens", -5), ("top_p", 1.5), ("temperature", -1.0)])
def test_an_option_out_of_range_is_refused_before_the_model_runs(name, wrong):
    with pytest.raises(InputError, match=f"{name} is {wrong}"):
        ReplyOptions(**{name: wrong})
    if name == "max_tokens":
        with pytest.raises(InputError, match="max_tokens is"):
            replies.reply(None, ["Hello"], wrong)


def test_one_text_that_ends_a_reply_is_one_stop_and_not_its_letters():
    assert ReplyOptions(stop="END") == ReplyOptions(stop=["", "END"]) == ReplyOptions(stop=("END",))
    assert ReplyOptions(stop=None).stop == ()
