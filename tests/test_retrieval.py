"What a reply reads: the scope by evidence, the newest of near-copies, the budget, the order, the instructions."

import threading

import numpy as np
import pytest

from personal_llm import load_encoder
from personal_llm.base.core import Dialogue
from personal_llm.buffer.buffer import Buffer
from personal_llm.base.encoder import VectorStore
from personal_llm.memory.retrieval import MemoryConfig, retrieve
from personal_llm.device.archive import Archive
from personal_llm.device.recall import Memory
from personal_llm.device.state import State


count_words = lambda text: len(text.split())


class Angles:
    "An encoder whose texts begin with their angle in degrees; it counts what it encodes."

    def __init__(self):
        self.num_encoded = 0

    def encode(self, texts):
        self.num_encoded += len(texts)
        angles = np.radians([float(text.split()[0]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture
def vectors():
    return VectorStore(Angles())


def memory(angle, words="alpha", time=0.0, response="In short: yes.", origin="annotated"):
    return Dialogue(f"{angle} {words}", response, time=time, origin=origin)


def test_a_text_is_encoded_once_until_the_store_is_cleared(vectors):
    first = vectors.embed(["0 a", "90 b", "0 a"])
    assert first.shape == (3, 2) and vectors.encoder.num_encoded == 2 and np.allclose(first[0], first[2])
    vectors.embed(["90 b"])
    assert vectors.encoder.num_encoded == 2
    vectors.clear()
    vectors.embed(["90 b"])
    assert vectors.encoder.num_encoded == 3


def choose(answers, prompt, vectors, config=MemoryConfig(), count=count_words, shown=frozenset()):
    "Return what `retrieve` chooses."
    row, *rows = vectors.embed([prompt, *(d.prompt for d in answers)])
    return retrieve(answers, np.array(rows) @ row if rows else np.zeros(0), prompt, config, count, shown)


def test_after_a_change_of_form_new_prompts_read_the_newest_form_last():
    vectors = VectorStore("use-multilingual-v3")
    old = ("pancakes", "tomato soup", "potato salad")
    new = ("an omelette", "lentil soup", "garlic bread")
    rows = [Dialogue(f"How do I make {dish}?", "-", time=float(i)) for i, dish in enumerate(old + new)]
    dishes = ("apple pie", "guacamole", "rice pudding", "chicken curry", "fried rice", "onion soup")
    last = [choose(rows, f"How do I make {dish}?", vectors)[-1] for dish in dishes]
    assert sum(d in rows[3:] for d in last) >= 5


def test_a_large_archive_costs_no_more_tokens_than_a_small_one(vectors):
    rows = [memory(angle / 100, f"number {angle} " + "long " * 300, angle) for angle in range(600)]
    counted = []

    def count(text):
        counted.append(text)
        return len(text.split())

    assert choose(rows, "0 prompt", vectors, MemoryConfig(max_tokens=400), count)
    assert len(counted) <= 64


def test_a_reply_and_the_loading_of_vectors_never_wait_for_each_other():
    archive = Archive()
    state = State(archive, Buffer(4, "fifo"))
    memory = Memory(archive)
    load_encoder()

    def reply():
        with archive.lock:
            loading = threading.Thread(target=memory.warm, args=(state,), daemon=True)
            loading.start()
            loading.join(1)  # it waits for the archive now, and must hold nothing that the reply needs
            memory.find(state, Dialogue("Who am I?", ""), len)

    thread = threading.Thread(target=reply, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
