"What a reply reads: the scope by evidence, the newest of near-copies, the budget, the order, the instructions."

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from personal_llm import load_encoder
from personal_llm.base.core import Dialogue
from personal_llm.buffer.buffer import Buffer
from personal_llm.base.encoder import VectorStore
from personal_llm.memory.retrieval import NEAR, MemoryConfig, add_memories, find_newest, retrieve
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


def choose(answers, prompt, vectors, config=MemoryConfig(), count=count_words, shown=frozenset()):
    "Return what `retrieve` chooses."
    row, *rows = vectors.embed([prompt, *(d.prompt for d in answers)])
    return retrieve(answers, np.array(rows) @ row if rows else np.zeros(0), prompt, config, count, shown)


def test_the_nearest_are_chosen_and_the_budget_holds(vectors):
    rows = (memory(70, "one two", 1.0), memory(10, "three four", 2.0), memory(50, "five six " * 9, 3.0))
    assert choose(rows, "0 prompt", vectors) == [rows[0], rows[2], rows[1]], "the nearest last"
    assert choose(rows, "0 prompt", vectors, MemoryConfig(memories=1)) == [rows[1]]
    assert choose(rows, "0 prompt", vectors, MemoryConfig(memories=0)) == []
    assert choose(rows, "0 prompt", vectors, MemoryConfig(max_tokens=12)) == [rows[0], rows[1]], (
        "the long one is left out"
    )
    assert choose(rows, "0 prompt", vectors, MemoryConfig(max_tokens=5)) == [rows[1]], "a long one, if none fits"
    assert choose((), "0 prompt", vectors) == []
    assert choose(rows, "0 prompt", vectors, shown={rows[1].prompt}) == [rows[0], rows[2]]


def test_of_the_near_ones_the_newest_count_and_the_newest_is_last(vectors):
    near = [memory(angle, f"near {angle}", time) for time, angle in enumerate((5, 10, 15, 20))]
    limit = np.degrees(np.arccos(NEAR * np.cos(np.radians(5))))
    far = [memory(round(limit) + 2, "just too far", 9.0), memory(round(limit) - 2, "just near enough", 8.0)]
    assert choose([*near, far[0]], "0 prompt", vectors) == near[1:], "what is newer and far stays out"
    assert choose([*near, far[1]], "0 prompt", vectors) == [*near[2:], far[1]]
    assert choose([far[0], near[0]], "0 prompt", vectors) == [far[0], near[0]], "room that is left is used"


def test_a_correction_of_the_same_wording_is_never_lost_and_others_that_look_alike_do_not_replace_it(vectors):
    prompts = [
        "0 What is the capital of Iran?",
        *(f"{place} What is the capital of Ira{x}?" for place, x in enumerate("qklm")),
    ]
    rows = [Dialogue(prompt, "Yes.", time=float(i), origin="annotated") for i, prompt in enumerate(prompts)]
    assert choose(rows, prompts[0], vectors)[-1] == rows[0] and len(choose(rows, prompts[0], vectors)) == 3
    assert [*find_newest(["Tea?", "Coffee?", "tea", "?", "!"]).values()] == [2, 1, 3, 4]


def test_of_many_corrections_of_one_prompt_the_newest_counts(vectors):
    rows = [memory(1, "again", float(time), f"Version {time}") for time in range(40)]
    assert [d.response for d in choose(rows, "0 prompt", vectors)] == ["Version 39"]


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
