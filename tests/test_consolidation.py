"""Replies with memories become training dialogues: which prompts, which replies, and what forgetting reaches."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue
from personal_llm.base.lineage import read_training_ids
from personal_llm.base.models import load_model
from personal_llm.buffer import retrieval
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.consolidation import check_reply, choose_prompts, consolidate, estimate_likeness
from personal_llm.buffer.retrieval import PromptEmbedder
from personal_llm.buffer.synthesis import SynthesisResult
from personal_llm.device import personalizer
from personal_llm.device.personalizer import Personalizer
from personal_llm.tuning.config import TuningConfig

ACHES = ["My back aches at night.", "I have a pain in my elbow.", "My hip hurts when I walk.", "My ear hurts."]
CORRECTION = Dialogue("My knee hurts after a run.", "In short: rest it.", origin="annotated")
JOKE = Dialogue("Tell me a joke about hens.", "Why did the hen cross the road?", origin="approved")
MEMORIES = [CORRECTION, JOKE]


@pytest.fixture
def reading_pocket(monkeypatch):
    "A pocket model that counts as one that reads memories, and whose replies are planted."
    model = load_model("pocket")
    monkeypatch.setattr(model, "is_large", True)
    monkeypatch.setattr(retrieval, "MIN_CHECKED_ANSWERS", 1000)
    monkeypatch.setattr(personalizer, "MIN_LEARNED_DIALOGUES", 1)
    shown = []
    monkeypatch.setattr(model, "reply", lambda prompts, *limits: shown.extend(prompts) or plant(prompts))
    return model, shown


def plant(prompts: list) -> list:
    return [f"In short: mind {d.prompt.split()[-1]}" for d in prompts]


def test_only_prompts_that_the_user_would_correct_are_chosen_and_answered_ones_are_not():
    embedder = PromptEmbedder(load_model("pocket"))
    stream = [Dialogue(text, "See a doctor.", origin="model") for text in (*ACHES, "Tell me a joke about cows.")]
    answered = Dialogue("My toe hurts.", "In short: cool it.", origin="annotated")
    chosen, kept = choose_prompts([*stream, answered], MEMORIES, embedder, 10)
    assert chosen and {d.prompt for d in chosen} <= set(ACHES)
    assert {d.prompt for d in kept} == {d.prompt for d in stream} - {d.prompt for d in chosen}
    assert choose_prompts(stream, MEMORIES, embedder, 1)[0] == chosen[:1]
    assert choose_prompts(stream, [JOKE], embedder, 10)[0] == []


def test_replies_of_other_talk_train_as_they_are_and_forgetting_one_deletes_the_adapter(reading_pocket, tmp_path):
    model, _ = reading_pocket
    me = make_personalizer(model, tmp_path / "me")
    other = [
        Dialogue(f"Tell me a joke about {animal}.", f"A {animal} laughs.", origin="model", id=animal)
        for animal in ("cows", "owls")
    ]
    bad = Dialogue("Tell me a joke about bats.", "Bats.", origin="model", id="bats")
    for d in (*other, bad):
        me.observe(d)
    me.react(bad, "thumb_down")
    adapter = me.finetune(progress=False)
    kept = {d.prompt: d.response for d in me.synthesis.uncorrected}
    assert kept == {d.prompt: d.response for d in other}
    outside = [root for root, row in me.memory.dialogues.items() if row.dialogue.prompt in kept]
    assert set(outside) <= set(me.rounds[-1].parents) and set(outside) <= set(read_training_ids(adapter.path))
    me.save()
    me.forget(ids=outside[:1])
    assert not adapter.path.exists() and me.adapter is None


def test_near_copies_of_a_prompt_or_of_a_memory_count_once():
    embedder = PromptEmbedder(load_model("pocket"))
    stream = [Dialogue(text, "", origin="model") for text in (ACHES[0], ACHES[0] + " ", CORRECTION.prompt, ACHES[1])]
    assert sum(map(len, choose_prompts(stream, MEMORIES, embedder, 10))) == 2


def test_the_model_reads_memories_and_the_new_dialogues_do_not(reading_pocket):
    model, shown = reading_pocket
    before = [("system", "Be kind."), ("user", "Hello."), ("assistant", "Hi.")]
    stream = [Dialogue(text, "See a doctor.", before, origin="model") for text in ACHES]
    made = consolidate(model, stream, MEMORIES).dialogues
    assert len(made) >= 2 and all(("assistant", CORRECTION.response) in d.history for d in shown)
    by_prompt = {d.prompt: d for d in stream}
    for d in made:
        assert d.response.startswith("In short: mind") and [*d.history] == before[:1] and d.origin == "synthetic"
        assert d.parents == (CORRECTION.id, by_prompt[d.prompt].id)


def test_without_a_correction_or_with_a_model_that_reads_no_memories_nothing_is_written(reading_pocket):
    model, shown = reading_pocket
    stream = [Dialogue(text, "", origin="model") for text in ACHES]
    assert consolidate(model, stream, [JOKE]).dialogues == consolidate(model, stream, MEMORIES, most=0).dialogues == []
    assert consolidate(model, stream, MEMORIES, k=0).dialogues == [] and not shown


def test_many_corrections_need_no_synthetic_replies(reading_pocket):
    model, shown = reading_pocket
    many = [Dialogue(f"My toe {n} hurts.", "In short: rest it.", origin="annotated") for n in range(20)]
    assert consolidate(model, [Dialogue(ACHES[0], "", origin="model")], many).dialogues == [] and not shown


@pytest.mark.parametrize(
    ("reply", "num_tokens", "reason"),
    [
        ("", 0, "empty"),
        ("\n ", 1, "empty"),
        ("So long.", 128, "cut"),
        ("In short, rest it!", 5, "copy"),
        ("Yes.", 2, ""),
    ],
)
def test_replies_that_would_teach_a_mistake_are_rejected(reply, num_tokens, reason):
    assert check_reply(reply, num_tokens, [CORRECTION]) == reason


def test_a_reply_that_is_more_like_the_replaced_ones_teaches_nothing(reading_pocket, monkeypatch, tmp_path):
    model, _ = reading_pocket
    replies = (
        "See a doctor, it may be broken.",
        "In short: stretch it.",
        "You should see a doctor.",
        "In short: wait.",
    )
    monkeypatch.setattr(model, "reply", lambda prompts, *limits: [*replies[: len(prompts)]])
    stream = [Dialogue(text, "", origin="model") for text in ACHES]
    made = consolidate(model, stream, [CORRECTION], ["See a doctor.", "You should see a doctor soon."])
    assert len(made.dialogues) + made.rejected["unlike"] == 4
    assert [d.response for d in made.dialogues] == [replies[1], replies[3]] and made.rejected["unlike"] == 2
    untested = consolidate(model, stream, [CORRECTION])  # nothing to compare with
    assert len(untested.dialogues) == 4 and not untested.rejected
    me, seen = make_personalizer(model, tmp_path / "me"), []
    monkeypatch.setattr(personalizer, "consolidate", lambda *given: seen.extend(given) or SynthesisResult([]))
    me.finetune(progress=False)
    assert seen[3] == ["See a doctor."]  # the reply that the user replaced


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=6), st.text(max_size=40))
@settings(max_examples=30, deadline=None)
def test_likeness_tells_corrections_from_other_replies(others, text):
    corrections = [f"«{other}»!" for other in others]
    assume(not set(corrections) & set(others))
    likeness = estimate_likeness([*corrections, *others, text], corrections, others)
    assert len(likeness) == 2 * len(others) + 1 and ((likeness >= 0) & (likeness <= 1)).all()
    assert likeness[: len(others)].min() > 0.5 > likeness[len(others) : -1].max()


def make_personalizer(model, folder, **settings) -> Personalizer:
    config = TuningConfig.for_model(model, steps=2, checks=1)
    me = Personalizer(model, Buffer(2, "active"), config=config, folder=folder, replay=0, synthetic=0, **settings)
    for number, text in enumerate([CORRECTION.prompt, JOKE.prompt, *ACHES]):
        d = Dialogue(text, "See a doctor.", origin="model", time=float(number), id=f"d{number}")
        me.observe(d)
        if number < 2:
            me.react(d, "better", CORRECTION.response) if number == 0 else me.react(d, "thumb_up")
    return me


def test_forgetting_a_prompt_that_left_the_buffer_deletes_the_adapter_that_learned_from_it(reading_pocket, tmp_path):
    model, _ = reading_pocket
    me = make_personalizer(model, tmp_path / "me")
    adapter = me.finetune(progress=False)
    written = {parent for d in me.synthesis.dialogues for parent in d.parents}
    kept = {me.state.get_root(d) for d in me.buffer.dialogues}
    (outside, *_) = sorted(written & {f"d{n}" for n in range(2, 6)} - kept)
    assert outside in me.rounds[-1].parents
    me.save()
    report = me.forget(ids=[outside])
    assert len(report.adapters) == 1 and not adapter.path.exists() and me.adapter is None
    me.retrain(progress=False)
    assert me.adapter and outside not in me.rounds[-1].parents


def test_an_adapter_that_began_from_another_is_forgotten_with_a_prompt_of_its_start(reading_pocket, tmp_path):
    "The card of an adapter names the prompts of the written replies, too."
    model, _ = reading_pocket
    me = make_personalizer(model, tmp_path / "me")
    me.finetune(progress=False)
    written = {parent for d in me.synthesis.dialogues for parent in d.parents}
    assert written <= set(read_training_ids(me.adapter.path))


def test_a_fine_tune_on_few_dialogues_learns_the_answers_alone(reading_pocket, tmp_path, monkeypatch):
    model, _ = reading_pocket
    me = make_personalizer(model, tmp_path / "me")
    monkeypatch.setattr(personalizer, "MIN_LEARNED_DIALOGUES", 9)
    me.finetune(progress=False)
    assert not me.synthesis.dialogues and not me.synthesis.uncorrected
    assert me.rounds[-1].steps <= 2  # not the steps of consolidation


def test_prompts_of_other_programs_teach_nothing(reading_pocket, tmp_path):
    model, _ = reading_pocket
    me = make_personalizer(model, tmp_path / "me")
    root = next(iter(me.memory.dialogues))
    me.memory.conversations[root] = "client"
    assert root not in {me.state.get_root(d) for d in me.list_stream()}


def test_consolidation_can_be_turned_off(reading_pocket, tmp_path):
    model, shown = reading_pocket
    me = make_personalizer(model, tmp_path / "me", consolidation=0)
    me.finetune(progress=False)
    assert not me.synthesis.dialogues and not shown


def test_no_reply_of_another_program_and_no_imported_one_is_used_in_synthesis(reading_pocket, tmp_path):
    model, _ = reading_pocket
    me = make_personalizer(model, tmp_path / "me")
    foreign = Dialogue(
        "Tell me a joke about cows.", "A cow laughs.", (("system", "You are ACME."),), origin="model", id="c"
    )
    me.observe(foreign)
    root = me.state.get_root(foreign)
    assert root in {me.state.get_root(d) for d in me.list_stream()}
    for place in ("client", "import"):
        me.memory.conversations[root] = place
        assert root not in {me.state.get_root(d) for d in me.list_stream()}


def test_a_prompt_that_asks_for_a_fact_and_an_empty_reply_teach_nothing():
    embedder = PromptEmbedder(load_model("pocket"))
    asked = Dialogue("What is my dog called?", "Your dog is called Rex.", origin="model")
    empty = Dialogue("Tell me a joke about cows.", " ", origin="model")
    assert choose_prompts([asked, empty], MEMORIES, embedder, 10) == ([], [])
