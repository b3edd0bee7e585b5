"Sentence encoders: their ids, their files, one choice for all chapters, and threads that share one."

import threading
import time
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from personal_llm.base import encoder
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.encoder import DEFAULT_ENCODER, MAX_CHARACTERS, OTHER_ENCODER, PACKAGE_FILES, VectorStore
from personal_llm.base.encoder import encode, get_encoder_id, load_encoder
from personal_llm.base.files import ASSETS
from personal_llm.base.weights import find_weights
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.archive import Archive, load_vectors, store_vectors
from personal_llm.device.recall import BLOCK_SIZE, Memory
from personal_llm.device.state import State


def test_encoders_have_ids():
    name, copy = get_encoder_id(), deepcopy(load_encoder())
    assert name == get_encoder_id(load_encoder(str(ASSETS / "encoder"))) == get_encoder_id(copy) and len(name) == 16
    with torch.no_grad():
        next(copy.parameters()).view(-1)[-1] += 1
    assert len({get_encoder_id(deepcopy(copy)), name, get_encoder_id(DEFAULT_ENCODER)}) == 3
    for wrong in ("no/such/encoder", ASSETS / "pockett"):
        with pytest.raises(InputError, match="unknown encoder"):
            load_encoder(wrong)


def test_one_choice_of_an_encoder_reaches_every_chapter(monkeypatch):
    class Vowels:
        calls = []

        def encode(self, texts):
            self.calls.append(list(texts))
            return np.array([[text.count("a") + 1, 1.0] for text in texts])

    own = Vowels()
    with monkeypatch.context() as patch:
        patch.setenv("PERSONAL_LLM_ENCODER", "own")
        patch.setattr(encoder, "LOADERS", {"own": lambda name: own})
        rows = VectorStore().embed(["a", "b"])
        assert load_encoder() is own is load_encoder(own) and own.calls == [["a", "b"]]
        assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), 1)
        encoder._encoders.pop("own")
    monkeypatch.setenv("PERSONAL_LLM_ENCODER", str(ASSETS / "encoder"))
    assert load_encoder() is load_encoder(ASSETS / "encoder") is load_encoder("pocket")
    monkeypatch.setenv("PERSONAL_LLM_ENCODER", "no/such/encoder")
    with pytest.raises(InputError, match="unknown encoder"):
        load_encoder()


def test_a_function_of_a_text_is_an_encoder():
    rows = VectorStore(lambda text: [len(text), 0]).embed(["a", "bc"])
    assert rows.tolist() == [[1, 0], [1, 0]] and rows.dtype == np.float32, "of length 1"


@pytest.mark.parametrize(
    "embed, problem",
    [
        (lambda text: [np.nan, 1], "the encoder returned shape"),
        (lambda text: 1, "the encoder returned shape"),
        (lambda text: [[1, 2]], "the encoder returned shape"),
        (lambda text: None, "the encoder returned shape"),
        (lambda text: [1] * len(text), "the encoder raised ValueError"),
        (lambda text: 1 / 0, "the encoder raised ZeroDivisionError"),
        (SimpleNamespace(encode=lambda texts: np.ones((1, 3))), "for 2 texts"),
    ],
)
def test_an_encoder_that_returns_nonsense_is_one_line(embed, problem):
    with pytest.raises(InputError, match=problem):
        encode(["a", "bc"], embed)


@pytest.mark.parametrize("name", [DEFAULT_ENCODER, OTHER_ENCODER])
def test_other_words_and_other_languages_of_one_meaning_are_near(name, monkeypatch):
    if name == OTHER_ENCODER and find_weights(name) is None:
        pytest.skip(f"needs {name}")
    monkeypatch.delenv("PERSONAL_LLM_ENCODER")
    assert load_encoder() is load_encoder(DEFAULT_ENCODER), "nothing is chosen"
    statements = ["My dog is called Biscuit.", "I moved to Leipzig in May.", "I cannot eat peanuts."]
    questions = ["What is the name of my pet?", "Which city do I live in?", "What am I allergic to?"]
    similarities = encode(questions, name) @ encode(statements, name).T
    assert similarities.argmax(1).tolist() == [0, 1, 2]
    if name == DEFAULT_ENCODER:
        german = ["Wie heißt mein Haustier?", "In welcher Stadt wohne ich?", "Wogegen bin ich allergisch?"]
        assert (encode(german, name) @ encode(questions, name).T).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["", " ", "\x00", "\ud800", "\U0001f600" * 3, "x" * 100_000])
def test_every_text_has_a_vector(text):
    (row,) = encode([text], DEFAULT_ENCODER)
    assert row.shape == (512,) and row.dtype == np.float32 and abs(np.linalg.norm(row) - 1) < 1e-5


def test_a_long_text_is_cut(monkeypatch):
    seen = []
    one = load_encoder(DEFAULT_ENCODER)
    network = SimpleNamespace(encode=lambda texts: seen.extend(texts) or np.ones((len(texts), 2)))
    monkeypatch.setattr(one, "network", network)
    one.encode(["a" * 10**6])
    assert [len(text) for text in seen] == [MAX_CHARACTERS]


def test_two_threads_leave_the_number_of_threads_as_it_was(monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    count = lambda: [(pool["filepath"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()]
    one = load_encoder(DEFAULT_ENCODER)
    network = one.network
    at_work = []
    most = []

    def slowly(texts):
        at_work.append(texts)
        most.append(len(at_work))
        time.sleep(0.02)
        rows = network.encode(texts)
        at_work.pop()
        return rows

    monkeypatch.setattr(one, "network", SimpleNamespace(encode=slowly))
    before = count()
    threads = [threading.Thread(target=one.encode, args=(["a"] * num_texts,)) for num_texts in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count() == before and most == [1, 1, 1]


@pytest.fixture
def corrected():
    "A state with answers, whose vectors another encoder made, and which have no meaning for this one."
    archive = Archive()
    state = State(archive, Buffer(4, "fifo"))
    for number in range(BLOCK_SIZE + 3):
        archive.add(Dialogue(f"Question {number}?", "Fine.", id=f"d{number}", origin="model", time=number), "monday")
        state.record("said", f"d{number}", reads=[], statements=[])
        state.record("reacted", f"d{number}", kind="better", text="Yes.", asked=False, time=number + 0.5)
    store_vectors(archive, "another", {id: np.ones(3) for id in archive.dialogues})
    return state


def test_vectors_of_another_encoder_are_made_anew_in_the_background(corrected):
    archive = corrected.archive
    thread = threading.Thread(target=Memory(archive).warm, args=[corrected])
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and load_vectors(archive, "another") == {}
    stored = load_vectors(archive, get_encoder_id())
    assert {*stored} == {*archive.dialogues}
    rows = encode([d.prompt for d in archive.dialogues.values()])
    assert np.allclose(np.stack([stored[id] for id in archive.dialogues]), rows, atol=1e-6)


def test_what_is_forgotten_meanwhile_gets_no_vector(corrected, monkeypatch):
    memory = Memory(corrected.archive)

    def forget_meanwhile(texts):
        if len(texts) > 1:
            memory.clear()
        return encode(texts)

    monkeypatch.setattr("personal_llm.device.recall.encode", forget_meanwhile)
    memory.warm(corrected)
    assert memory.vectors.vectors == {} and load_vectors(corrected.archive, get_encoder_id()) == {}


def test_a_reply_need_not_wait_while_vectors_are_made(corrected, monkeypatch):
    memory = Memory(corrected.archive)
    waits = threading.Event()
    goes_on = threading.Event()

    def wait(texts):
        if len(texts) > 1:
            waits.set()
            assert goes_on.wait(60)
        return encode(texts)

    monkeypatch.setattr("personal_llm.device.recall.encode", wait)
    thread = threading.Thread(target=memory.warm, args=[corrected], daemon=True)
    thread.start()
    assert waits.wait(60)
    assert memory.find(corrected, Dialogue("Question 1?", ""), len).memories
    goes_on.set()
    thread.join(60)
    assert not thread.is_alive() and len(load_vectors(corrected.archive, get_encoder_id())) == BLOCK_SIZE + 3


@pytest.mark.parametrize("content", [None, b"", b"0" * PACKAGE_FILES["sp.model"][0]], ids=["missing", "empty", "other"])
def test_files_with_another_hash_are_refused(tmp_path, monkeypatch, content):
    (tmp_path / "resources").mkdir()
    if content is not None:
        (tmp_path / "resources" / "sp.model").write_bytes(content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(encoder, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    monkeypatch.setattr(encoder, "_encoders", {})
    with pytest.raises(InputError, match="sp.model is missing or was changed; pip install --force-reinstall"):
        load_encoder(DEFAULT_ENCODER)
    monkeypatch.setattr(encoder, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="is missing"):
        load_encoder(DEFAULT_ENCODER)
