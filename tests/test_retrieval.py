"What a reply reads: the scope by evidence, the newest of near-copies, the budget, the order, the instructions."

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from personal_llm import load_encoder
from personal_llm.base.core import Dialogue
from personal_llm.buffer.buffer import Buffer
from personal_llm.base.encoder import VectorStore
from personal_llm.memory.retrieval import MemoryConfig, add_memories
from personal_llm.memory.retrieval import find_near, retrieve
from personal_llm.device.archive import Archive
from personal_llm.device.recall import Memory
from personal_llm.device.state import State
from personal_llm.memory.statements import Statement

MOVED = Statement("I moved.")

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


def test_of_near_copies_the_newest_counts_even_if_an_older_one_is_nearer(vectors):
    words = "please tell me how I should water my fern in winter"
    old, other = memory(1, words, 1.0, "Old"), memory(2, "what about a cactus", 2.0)
    rows = [old, other, memory(1, words + "?", 3.0, "New")]
    assert [d.response for d in find_near(rows, "0 prompt", vectors)] == ["New", "In short: yes."]
    assert list(find_near([], "0 prompt", vectors)) == []


def test_the_nearest_are_chosen_the_nearest_stands_last_and_the_budget_holds(vectors):
    rows = (memory(30, "one two", 1.0), memory(10, "three four", 2.0), memory(20, "five six " * 9, 3.0))

    def choose(shown=frozenset(), **options):
        return retrieve(rows, "0 prompt", vectors, MemoryConfig(**options), count_words, shown)

    assert choose() == [rows[0], rows[2], rows[1]]
    assert choose(memories=1) == [rows[1]] and choose(memories=0) == []
    assert choose(max_tokens=12) == [rows[0], rows[1]], "the long one is left out, the next one fits"
    assert choose(max_tokens=5) == []
    assert retrieve((), "0 prompt", vectors, MemoryConfig(), count_words) == []
    assert choose({rows[1].prompt}) == [rows[0], rows[2]]


def test_a_large_archive_costs_no_more_than_a_small_one(vectors):
    rows = [memory(angle / 100, f"number {angle} " + "long " * 300, angle) for angle in range(6000)]
    counted = []

    def count(text):
        counted.append(text)
        return len(text.split())

    assert retrieve(rows, "0 prompt", vectors, MemoryConfig(max_tokens=400), count)
    assert len(counted) <= 64


def test_the_prompt_keeps_its_parts_in_order():
    history = [("system", "Be kind."), ("user", "Hello."), ("assistant", "Hi!")]
    asked = Dialogue("And now?", "", history)
    texts = (("Be brief.", 1.0), ("Be exact.", 2.0), ("Be Sam.", 9.0))
    instructions = [SimpleNamespace(text=text, time=time) for text, time in texts]
    memories = [memory(1, time=1.0), memory(2, time=2.0)]
    shown = add_memories(asked, memories, [MOVED], MemoryConfig(sentence="As before."), instructions)
    roles = [role for role, _ in shown.history]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert shown.history[0][1].split("\n") == [
        *("Be kind.", "Be brief.", "Be exact.", "As before."),
        *("The user told you before:", "- I moved."),
    ]
    assert shown.history[-1] == ("assistant", "Hi!") and shown.prompt == "And now?\n(Be Sam.)"
    assert asked.history[0] == ("system", "Be kind."), "the dialogue itself stays"


def test_without_memories_nothing_is_added():
    asked = Dialogue("And now?", "")
    assert add_memories(asked, []) is asked
    silent = add_memories(asked, [memory(1)], config=MemoryConfig(sentence=""))
    assert [role for role, _ in silent.history] == ["user", "assistant"]
    assert [role for role, _ in add_memories(asked, [], [MOVED]).history] == ["system"]


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


def test_a_near_copy_is_found_behind_neighbours_that_are_none(vectors):
    "Seven newer texts are nearer to the old one than the text that took its place."
    others = ["Tea?", "Who is Ada?", "A poem.", "Where is Oslo?", "Add it up.", "Bake bread.", "Fix my bike."]
    texts = ["My knee hurts since the last long run.", *others, "My knee hurts since the last long run!"]
    angles = np.radians([0, *[1] * len(others), 2])
    vectors.add(texts, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    items = [Dialogue(text, "Yes.", time=float(place)) for place, text in enumerate(texts)]
    assert {d.prompt for d in find_near(items, texts[-1], vectors)} == {*texts[1:]}
