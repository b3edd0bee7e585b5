"What a reply reads: the scope by evidence, the newest of near-copies, the budget, the order, the instructions."

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personal_llm import load_encoder
from personal_llm.base.core import Dialogue
from personal_llm.buffer.buffer import Buffer
from personal_llm.base.encoder import VectorStore
from personal_llm.memory.retrieval import Evidence, MemoryConfig, add_memories, belongs
from personal_llm.memory.retrieval import should_read, find_near, find_replaced, retrieve
from personal_llm.device.archive import Archive
from personal_llm.device.memory import Memory
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


similarities = st.lists(st.floats(-1, 1), min_size=1, max_size=9).map(np.array)


@given(similarities, similarities, st.floats(-3, 3), st.floats(0.5, 2))
def test_the_rule_needs_no_scale_and_no_order(supporting, opposing, shift, scale):
    gap = sum(supporting) / len(supporting) + max(supporting) - sum(opposing) / len(opposing) - max(opposing)
    if abs(gap) > 1e-6:
        decided = belongs(supporting, opposing)
        assert decided == (gap > 0)
        assert decided == belongs(scale * supporting + shift, scale * opposing + shift)
        assert decided == belongs(supporting[::-1], np.sort(opposing))


def test_the_four_kinds_of_evidence(vectors):
    answers, far = (memory(0), memory(20)), (memory(90, origin="model"), memory(150, origin="model"))
    decide = lambda prompt, **fields: should_read(Evidence(answers, **fields), prompt, vectors)
    assert not should_read(Evidence(accepted=answers), "0 q", vectors), "there is nothing to read"
    assert decide("100 q"), "nothing was left alone"
    assert decide("15 q", left_alone=far) and not decide("85 q", left_alone=far)
    assert decide("85 q", left_alone=far, accepted=(memory(84), memory(86), memory(85), memory(85)))
    assert not decide("85 q", left_alone=far, accepted=(memory(30),))
    taken_out = (memory(16),)
    assert not decide("15 q", left_alone=far, plain=taken_out) and decide("1 q", left_alone=far, plain=taken_out)
    again = (memory(45, time=2.0),)
    before = (memory(45, "alpha!", time=1.0, origin="model"),)
    assert should_read(Evidence(again, left_alone=before), "45 alpha", vectors), "answered later"
    assert not should_read(Evidence(before, left_alone=again), "45 alpha", vectors), "left alone later"
    italy, sky = (memory(40, time=2.0),), memory(90, time=3.0, origin="model")
    france = memory(45, time=1.0, origin="model")
    assert should_read(Evidence(italy, left_alone=(france, sky)), "48 spain", vectors), "corrected near it, later"
    near_france = memory(46, time=1.5, origin="model")
    assert not should_read(Evidence(italy, left_alone=(france, near_france)), "48 spain", vectors)
    assert not should_read(Evidence(italy, left_alone=(memory(45, time=4.0),)), "48 spain", vectors), "left alone later"


def test_of_near_copies_the_newest_counts_even_if_an_older_one_is_nearer(vectors):
    words = "please tell me how I should water my fern in winter"
    rows = [memory(1, words, 1.0, "Old"), memory(2, "what about a cactus", 2.0), memory(1, words + "?", 3.0, "New")]
    assert [d.response for d in find_near(rows, "0 prompt", vectors)] == ["New", "In short: yes."]
    assert list(find_near([], "0 prompt", vectors)) == []


def test_the_nearest_are_chosen_the_newest_stands_last_and_the_budget_holds(vectors):
    rows = (memory(30, "one two", 1.0), memory(10, "three four", 2.0), memory(20, "five six " * 9, 3.0))
    choose = lambda **options: retrieve(Evidence(rows), "0 prompt", vectors, MemoryConfig(**options), count_words)
    assert choose() == [*rows]
    assert choose(memories=1) == [rows[1]] and choose(memories=0) == []
    assert choose(max_tokens=12) == [rows[0], rows[1]], "the long one is left out, the next one fits"
    assert choose(max_tokens=5) == []
    assert retrieve(Evidence(), "0 prompt", vectors, MemoryConfig(), count_words) == []
    shown = {rows[1].prompt}
    assert retrieve(Evidence(rows), "0 prompt", vectors, MemoryConfig(), count_words, shown) == [rows[0], rows[2]]


def test_what_belongs_everywhere_is_read_first(vectors):
    evidence = Evidence((memory(0, time=1.0),), left_alone=(memory(90, time=5.0),), everywhere=(memory(180, time=2.0),))
    choose = lambda prompt, most=6: retrieve(evidence, prompt, vectors, MemoryConfig(most), count_words)
    assert choose("90 q") == [*evidence.everywhere]
    assert choose("0 q") == [*evidence.answers, *evidence.everywhere] and choose("0 q", 1) == [*evidence.everywhere]


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


@pytest.mark.parametrize("rivals", [1, 3, 256])
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4))
def test_a_reply_left_alone_is_replaced_by_a_later_answer_as_near_as_any_other(rivals, seed, num_left, num_answers):
    rng = np.random.default_rng(seed)
    answers, left_alone = rng.integers(-2, 3, (num_answers, 2)) * 1.0, rng.integers(-2, 3, (num_left, 2)) * 1.0
    times = rng.integers(0, 5, num_answers + num_left)
    dialogues = [SimpleNamespace(time=time) for time in times]
    evidence = Evidence(answers=tuple(dialogues[:num_answers]), left_alone=tuple(dialogues[num_answers:]))
    near = np.flatnonzero(rng.integers(0, 2, num_left))
    expected = set()
    for i in near.tolist():
        later = [answers[j] @ left_alone[i] for j in range(num_answers) if times[j] > times[num_answers + i]]
        others = [left_alone[k] @ left_alone[i] for k in range(num_left) if k != i]
        if later and max(later) >= max([-1.0, *others]):
            expected.add(i)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personal_llm.memory.retrieval.NUM_RIVALS", rivals)
        assert {*find_replaced(evidence, answers, left_alone, near).tolist()} == expected


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
