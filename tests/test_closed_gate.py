"Where the gate is closed, the base model replies as if nobody had ever taught it anything."

from types import SimpleNamespace

import pytest
from servers import pocket

from personal_llm.base.core import Dialogue
from personal_llm.base.encoder import DEFAULT_ENCODER, VectorStore
from personal_llm.base.models import load_model
from personal_llm.base.replies import ReplyOptions, ReplyStream
from personal_llm.base.weights import DEFAULT_MODEL, find_weights
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.personalizer import Personalizer
from personal_llm.device.evidence import get_evidence
from personal_llm.tuning.config import TuningConfig

RECIPES = ("How do I make pancakes?", "How do I make tomato soup?", "How do I make a rice salad?")
ALONE = ("What is the capital of Italy?", "Write a haiku about snow.", "Explain gravity.")
INSIDE = "How do I make a lentil soup?"
OUTSIDE = ("What is the capital of Norway?", "Write a short poem about rain.")


def reply(model, dialogue, adapter=None):
    with model.use_adapter(adapter):
        return "".join(ReplyStream(model, dialogue, ReplyOptions(12)))


def teach(model, steps):
    "A person who corrected three recipes, left three other replies alone, and learned overnight."
    me = Personalizer(model, Buffer(4), config=TuningConfig(steps=steps, batch_size=2, learning_rate=5e-3))
    me.memory.vectors = VectorStore(DEFAULT_ENCODER)
    me.memory.is_loaded = True
    for number, prompt in enumerate([*ALONE, *RECIPES]):
        dialogue = Dialogue(prompt, "It depends.", time=float(number), origin="model")
        me.arrive(dialogue, f"talk {number}")
        if prompt in RECIPES:
            me.react(dialogue, "better", "- first\n- then\nEnjoy your meal!")
    me.finetune(progress=False)
    return me


def compare_with_the_base(me, fresh):
    inside = me.recall(Dialogue(INSIDE, ""))
    assert len(inside.memories) == 3 and inside.adapter is not None and "which you corrected" in inside.verdict.reason
    changed = reply(me.model, inside.dialogue, inside.adapter)
    assert changed != fresh[INSIDE], "the treatment can act"
    for prompt in OUTSIDE:
        recalled = me.recall(Dialogue(prompt, ""))
        assert recalled.dialogue == Dialogue(prompt, "", id=recalled.dialogue.id), "no example and no sentence"
        assert recalled.adapter is None and "which you left as it was" in recalled.verdict.reason
        assert reply(me.model, recalled.dialogue, recalled.adapter) == fresh[prompt]
    assert reply(me.model, inside.dialogue, inside.adapter) == changed


def test_in_pytorch():
    model = pocket()
    fresh = {prompt: reply(model, Dialogue(prompt, "")) for prompt in (INSIDE, *OUTSIDE)}
    me = teach(model, 4)
    compare_with_the_base(me, fresh)
    me.close()


@pytest.mark.later
@pytest.mark.skipif(not find_weights(DEFAULT_MODEL), reason="the default model is not on this machine")
def test_in_llama_cpp_with_the_adapter_beside_the_base():
    model = load_model(DEFAULT_MODEL)
    fresh = {prompt: reply(model, Dialogue(prompt, "")) for prompt in (INSIDE, *OUTSIDE)}
    me = teach(model, 3)
    compare_with_the_base(me, fresh)
    me.close()


@pytest.mark.parametrize("memories", [0, 3])
def test_a_reply_that_could_use_no_correction_is_no_evidence(memories, monkeypatch):
    "Since it uses none at all, or since another computer writes and what was taught is private."
    me = Personalizer(pocket(), memories=memories)
    private = Dialogue("I have diabetes. What should I eat?", "It depends.", time=1.0, origin="model")
    me.arrive(private, "monday")
    me.react(private, "better", "In short: vegetables.", scope="everywhere")
    monkeypatch.setattr(me.model, "engine", SimpleNamespace(is_here=memories == 0))
    recalled = me.recall(Dialogue(RECIPES[0], ""))
    me.arrive(Dialogue(RECIPES[0], "It depends.", time=2.0, origin="model"), "tuesday", recalled)
    assert recalled.memories == () and get_evidence(me.state).left_alone == ()
    me.close()


def test_an_adapter_that_stays_closed_while_a_correction_applies_is_told_with_its_reason():
    me = teach(pocket(), 1)
    me.arrive(Dialogue("How many legs has a spider?", "It depends.", id="new", time=9.0, origin="model"), "talk")
    me.react(me.state.newest("new"), "better", "Eight.", time=10.0, scope="everywhere")
    recalled = me.recall(Dialogue(OUTSIDE[0], ""))
    assert recalled.memories and recalled.adapter is None
    applies, left, closed = map(str, recalled.reasons)
    assert applies == "1 correction applies: you said: all replies" and left.startswith("3 corrections don't apply: ")
    assert closed.startswith("your fine-tune doesn't apply: more similar to “What is the capital of Italy?”")
    me.close()
