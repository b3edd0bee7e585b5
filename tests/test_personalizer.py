"The five verbs, on the pocket model."

import itertools
from dataclasses import replace

import pytest
from kills import look_after_kills, needs_fork
from tiny import break_seal

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.buffer.buffer import Buffer
from personal_llm.device import personalizer
from personal_llm.device.learning import choose_start
from personal_llm.device.personalizer import Personalizer, collect_training
from personal_llm.device.evidence import get_evidence, list_answered
from personal_llm.tuning.config import TuningConfig

SHORT = TuningConfig(steps=2, batch_size=2)
KILLED = TuningConfig(rank=2, steps=2, batch_size=2, max_length=64, checks=2)
STREAM = [Dialogue(f"Is {n} a prime number?", f"In short: {n} is what it is.", time=float(n)) for n in range(12)]


def make(model, folder=None, policy="fifo", capacity=4, **settings):
    return Personalizer(model, Buffer(capacity, policy), folder=folder, config=SHORT, **settings)


# observe


def test_an_annotator_is_asked_as_far_as_the_budget_goes(model):
    asked = []

    def annotate(dialogue):
        asked.append(dialogue.prompt)
        return "Yes." if len(asked) % 2 else None

    me = make(model, annotator=annotate, ask_when="arrival", max_questions=3)
    me.observe_all(STREAM[:6], progress=False)
    assert len(asked) == 3 == me.cost.requests
    assert [d.origin for d in list_answered(me.state)] == ["annotated", "approved", "annotated"]


def test_the_papers_policy_asks_each_time_an_entry_changes_and_tunes_at_intervals(model):
    asked = []

    def annotate(dialogue):
        asked.append(dialogue.id)
        return f"{dialogue.response} Done."

    buffer = Buffer(2, "sdss", 1)
    settings = dict(finetune_every=4, synthetic=1, synthesis_prompt="paper")
    me = Personalizer(model, buffer, annotator=annotate, config=TuningConfig(steps=1), **settings)
    decisions = me.observe_all(STREAM[:8], progress=False)
    assert asked == [d.id for d in decisions if d.kept] and len(asked) == me.cost.requests >= 2
    assert all(d.origin == "annotated" for d in me.buffer.dialogues)
    assert len(me.rounds) == 2


def test_an_annotator_that_fails_or_gives_no_answer_costs_nothing_else(model):
    def fail(dialogue):
        raise RuntimeError("gone")

    me = make(model, annotator=fail, ask_when="arrival")
    with pytest.warns(UserWarning, match="RuntimeError"):
        me.observe(STREAM[0])
    assert len(me.buffer) == 1 and me.cost.requests == 0
    silent = make(model, annotator=lambda dialogue: "", ask_when="arrival")
    silent.observe(STREAM[0])
    assert silent.cost.requests == 1 and list_answered(silent.state) == []


def test_a_fine_tune_asks_about_no_reply_that_was_corrected_unasked(model):
    asked = []
    me = make(model, annotator=lambda dialogue: asked.append(dialogue.prompt) or "", ask_when="freeze")
    me.observe_all(STREAM[:3], progress=False)
    me.react(STREAM[0], "better", "Yes, it is.")
    me.react(STREAM[1], "down")
    collect_training(me.state, me.annotator)
    assert asked == [STREAM[1].prompt, STREAM[2].prompt], "of a disliked reply we know no better one"


def test_the_strict_case_keeps_the_buffer_only(model, tmp_path):
    me = make(model, tmp_path, archive=0)
    me.observe_all(STREAM[:8], progress=False)
    assert len(me.archive.dialogues) == 4
    for dialogue in STREAM[8:]:  # as a chat does
        me.arrive(dialogue)
    me.settle()
    me.close()
    again = Personalizer(model, folder=tmp_path, config=SHORT)
    assert len(again.archive.dialogues) == len(again.buffer) == 4 and again.buffer.seen == 12
    again.close()


# react


def test_one_id_names_one_dialogue(model):
    me = make(model)
    me.observe_all(STREAM[:2], progress=False)
    assert me.forget(STREAM[0].id).dialogues == (STREAM[0].id,) and [*me.archive.dialogues] == [STREAM[1].id]


def test_a_corrected_dialogue_that_was_discarded_gets_another_chance(model):
    me = make(model, policy="answers-first", capacity=1)
    me.observe_all(STREAM[:4], progress=False)
    outside = next(d for d in STREAM[:4] if me.state.find_slot(d.id) is None)
    me.react(outside, "better", "In short: no.")
    me.settle()
    assert [d.response for d in me.buffer.dialogues] == ["In short: no."]


ODD = ["unknown", "", None, 7, ["a"], {}]


@pytest.mark.parametrize(
    "call, line",
    [
        (lambda me: me.react(STREAM[0], "better", ""), "better: no text"),
        (lambda me: me.react(STREAM[0], "up", "yes"), "up: it takes no text"),
        (lambda me: me.scope([STREAM[0]], "here"), "this reply was not corrected"),
        (lambda me: me.instruct("word " * 2000), "the limit is 240"),
        (lambda me: me.react(STREAM[0], "up", scope="here"), "takes no scope"),
        (lambda me: me.reply("Is 9 a prime number?", max_tokens=-1), "max_tokens is -1"),
        (lambda me: me.undo(), "nothing to take back"),
        *((lambda me, odd=odd: me.forget([odd]), None) for odd in ODD),
        *((lambda me, odd=odd: me.react(odd, "up"), None) for odd in ODD),
        *((lambda me, odd=odd: me.scope([odd], "here"), None) for odd in ODD),
        *((lambda me, odd=odd: me.instruct("x", odd), None) for odd in [*ODD, STREAM[1]]),
        *((lambda me, odd=odd: me.instruct("x", 0, odd), "time") for odd in (None, "today", float("nan"), True)),
    ],
)
def test_what_is_impossible_is_one_line_without_your_text_and_changes_nothing(model, call, line):
    me = make(model)
    me.observe_all(STREAM[:2], progress=False)
    events = list(me.archive.events)
    with pytest.raises(InputError, match=line) as raised:
        call(me)
    assert "damaged" not in str(raised.value) and "prime" not in str(raised.value)
    assert me.archive.events == events and len(me.archive.dialogues) == 2 and me.state.acts == []


# reply


# finetune


def test_a_fine_tune_learns_saves_and_can_be_undone(model, tmp_path):
    me = make(model, tmp_path)
    me.observe_all(STREAM[:4], progress=False)
    me.react(STREAM[1], "better", "In short: no, it is not.")
    first = me.finetune(progress=False)
    assert (tmp_path / "adapters" / "000" / "adapter_config.json").is_file()
    assert me.rounds[0].kept == len(me.rounds[0].learned) > 0
    second = me.finetune(progress=False)
    assert second.path != first.path and me.rounds[1].start == "last" and second.seed == first.seed + 1
    me.settle()
    assert {entry.scores.model for entry in me.buffer.entries} != {model.base}, "scored with the adapter"
    me.undo_finetune()
    assert me.adapter.path == first.path and len(me.rounds) == 1 and not second.path.exists()
    me.close()
    again = Personalizer(model, folder=tmp_path, config=SHORT)
    assert str(again.adapter.path) == str(first.path)
    again.undo_finetune()
    assert again.adapter is None
    with pytest.raises(InputError, match="no fine-tune"):
        again.undo_finetune()
    again.close()


def test_where_a_fine_tune_began_is_told():
    kinds = [choose_start(start, "mine", [], None, 0)[1] for start in (None, "mine", "another")]
    assert kinds == ["", "last", "other"]


@pytest.mark.parametrize("memories", [6, 0])
def test_what_was_learned_from_a_file_writes_every_reply_also_after_a_correction(model, memories, monkeypatch):
    me = make(model, memories=memories)
    me.observe_all(STREAM[:4], progress=False)
    adapter = me.finetune(progress=False)
    me.react(STREAM[1], "better", "In short: no, it is not.")
    writers = []
    monkeypatch.setattr(personalizer, "ReplyStream", lambda *args: writers.append(model.active_adapter) or "")
    for prompt in (STREAM[1].prompt, "Who won the war of 1812?"):
        assert me.recall(Dialogue(prompt, "")).adapter is adapter
        me.reply(prompt)
    assert len({*writers}) == 1 and writers[0] != model.active_adapter
    me.undo_finetune()
    assert me.recall(Dialogue("Who won the war of 1812?", "")).adapter is None


def test_a_reply_knows_the_day(model, monkeypatch):
    me = make(model)
    me.arrive(Dialogue("I live in Porto.", "Nice.", time=1e9, origin="model"), "monday")
    monkeypatch.setattr(personalizer, "ReplyStream", lambda model, dialogue, options: [dialogue.history[0][1]])
    assert me.reply("Where do I live?").startswith("Today is ")


def test_a_reply_that_was_disliked_is_not_learned(model):
    me = make(model)
    me.observe_all(STREAM[:3], progress=False)
    me.react(STREAM[0], "down")
    assert STREAM[0].prompt not in [d.prompt for d in collect_training(me.state, me.annotator)]
    empty = make(model)
    with pytest.raises(InputError, match="the buffer is empty"):
        empty.finetune(progress=False)


@pytest.mark.parametrize("name, line", [("model.safetensors", "missing, or changed"), ("config.json", "id is wrong")])
def test_an_adapter_that_was_changed_is_not_loaded(model, tmp_path, name, line):
    me = make(model, tmp_path)
    me.observe_all(STREAM[:4], progress=False)
    me.finetune(progress=False)
    me.close()
    adapter = tmp_path / "adapters" / "000"
    content = bytearray((adapter / f"adapter_{name}").read_bytes())
    content[-1] ^= 1
    (adapter / f"adapter_{name}").write_bytes(content)
    if name == "model.safetensors":
        break_seal(adapter)
    with pytest.raises(InputError, match=line):
        Personalizer(model, folder=tmp_path)


# forget


def test_an_adapter_that_learned_what_is_forgotten_is_no_longer_in_use(model, tmp_path):
    me = make(model, tmp_path)
    me.observe_all(STREAM[:4], progress=False)
    me.react(STREAM[2], "better", "In short: Biscuit.")
    me.finetune(progress=False)
    assert me.forget(text="biscuit").adapters == ("adapters/000",) and me.adapter is None
    me.close()


# what it costs


def test_the_cost_of_a_reply_is_stored_with_its_turn_and_a_failed_change_loses_none(model, tmp_path):
    me = make(model, tmp_path)
    me.reply("Is 5 a prime number?", max_tokens=2)
    spent = me.cost
    with pytest.raises(ZeroDivisionError), me.state.change():
        me.arrive(STREAM[0])
        1 / 0
    assert me.cost == spent and spent.seconds > 0
    me.arrive(STREAM[0])
    me.close()
    again = Personalizer(model, folder=tmp_path)
    assert again.cost == spent
    again.reply("Is 5 a prime number?", max_tokens=2)
    spent = again.cost
    again.forget(STREAM[0].id)
    assert again.cost == spent, "also of a reply that is not stored"
    again.close()


# the folder


def test_a_folder_in_use_is_refused(model, tmp_path):
    me = make(model, tmp_path)
    with pytest.raises(InputError, match="at work in this folder.*me.close()"):
        Personalizer(model, folder=tmp_path)
    me.close()
    Personalizer(model, folder=tmp_path).close()


def test_a_new_memory_takes_no_buffer_with_entries(model):
    buffer = Buffer(2, "fifo")
    me = Personalizer(model, buffer)
    me.observe(Dialogue("Hi?", "Hello.", origin="model"))
    with pytest.raises(InputError, match="the buffer holds 1 dialogues; give an empty one"):
        Personalizer(model, buffer)


def test_a_buffer_of_another_size_than_the_folders_is_refused(model, tmp_path):
    make(model, tmp_path, capacity=4).close()
    with pytest.raises(InputError, match="its buffer has 4 bins, not 2; leave the buffer out"):
        make(model, tmp_path, capacity=2)
    make(model, tmp_path, capacity=4).close()


def test_another_model_takes_the_memory_along_and_leaves_the_adapter(model, tmp_path):
    other = load_model("pocket")
    other.base = "another"
    me = make(model, tmp_path, policy="fifo")
    me.observe_all(STREAM[:3], progress=False)
    me.react(STREAM[0], "better", "In short: no.", scope="everywhere")
    me.instruct("Be brief.")
    me.finetune(progress=False)
    evidence = get_evidence(me.state)
    me.close()
    with_other = Personalizer(other, folder=tmp_path)
    assert with_other.adapter is None and get_evidence(with_other.state) == evidence
    assert with_other.state.instructions == me.state.instructions and len(with_other.buffer) == len(me.buffer)
    with pytest.raises(InputError, match="no fine-tune to undo"):
        with_other.undo_finetune()
    with_other.observe(STREAM[5])
    assert len({entry.scores.model for entry in with_other.buffer.entries}) == 1, "scored anew by the other model"
    with_other.close()
    again = Personalizer(model, folder=tmp_path)
    assert again.adapter is not None and again.state.list_rounds() == again.rounds
    again.close()


def test_settings_are_checked_stored_and_changed(model, tmp_path):
    me = make(model, tmp_path, max_questions=3)
    assert me.settings.ask_when == "freeze" and me.settings.max_questions == 3
    me.close()
    again = Personalizer(model, folder=tmp_path, max_questions=5)
    assert again.settings.max_questions == 5 and again.state.settings["max_questions"] == 5
    again.close()
    for wrong in (dict(archive=-1), dict(seed=-1), dict(ask_when="never"), dict(ask_when="policy")):
        with pytest.raises(InputError):
            make(model, **wrong)


# a stop in the middle


def learn(folder):
    me = Personalizer(load_model("pocket"), folder=folder, config=KILLED)
    me.finetune(progress=False)
    me.close()


@pytest.mark.later
@needs_fork
def test_a_kill_inside_a_fine_tune_loses_nothing_and_leaves_no_half_adapter(model, tmp_path):
    before = tmp_path / "before"
    me = make(model, before)
    me.observe_all(STREAM[:3], progress=False)
    me.react(STREAM[0], "better", "In short: no.")
    me.instruct("Be brief.")
    me.finetune(progress=False)
    me.react(STREAM[1], "better", "In short: yes.")
    known = (list_answered(me.state), me.state.instructions, me.buffer.dialogues)
    me.close()

    def look(folder):
        again = Personalizer(model, folder=folder, config=KILLED)
        assert (list_answered(again.state), again.state.instructions, again.buffer.dialogues) == known
        assert again.adapter is not None and again.reply("Is 5 a prime number?", max_tokens=2) is not None
        count = len(again.rounds)
        if count == 1 and next(steps) % 8 == 0:
            again.finetune(progress=False)
            assert len(again.rounds) == 2 and again.rounds[1].learned
        again.close()
        return count

    steps = itertools.count()
    lengths = look_after_kills(before, learn, look)
    assert len(lengths) > 10 and lengths == sorted(lengths) and lengths[-1] == 2, "first before, then after"


def test_a_long_instruction_can_be_changed(model):
    me = make(model)
    for number in (0, 1):  # two of them would be too long
        me.instruct("Be brief. " * 40, number)
    assert [*me.state.instructions] == [1]


def test_the_same_instruction_twice_is_one_and_the_newer_counts(model):
    me = make(model)
    for time, text in enumerate(["Be brief.", "Use C++.", "be  BRIEF", "Use C."]):
        me.instruct(text, time=float(time))
    kept = [(said.number, said.text, said.time) for said in me.state.instructions.values()]
    assert kept == [(2, "Use C++.", 1.0), (1, "be  BRIEF", 2.0), (3, "Use C.", 3.0)]
    for _ in range(2):
        me.undo()
    assert me.state.instructions[1].text == "Be brief."


def test_the_number_of_an_instruction_is_never_used_again(model):
    me = make(model)
    me.instruct("Mention zebras.")
    me.undo()
    me.instruct("Be brief.")
    assert [*me.state.instructions] == [2]
    assert me.forget(text="zebras").words and [*me.state.instructions] == [2]


@pytest.mark.parametrize("is_learned", [False, True], ids=["answered", "learned"])
def test_what_is_observed_once_more_keeps_what_became_of_it(model, tmp_path, is_learned):
    me = make(model, tmp_path)
    me.observe_all(STREAM[:2], progress=False)
    me.react(STREAM[0], "better", "In short: no.")
    me.scope(STREAM[:1], "everywhere")
    if is_learned:
        me.finetune(progress=False)
    me.close()
    again = Personalizer(model, folder=tmp_path, config=SHORT)
    decisions = again.observe_all(STREAM[:3], progress=False)
    assert [d.kept for d in decisions] == [False, False, True] and decisions[0].reason == "it is in the buffer already"
    (answer,) = get_evidence(again.state).everywhere
    assert answer.response == "In short: no." and again.undo()
    again.observe(replace(STREAM[1], response="Another reply under the same id."))
    assert again.archive.dialogues[STREAM[1].id].response.startswith("Another")
    again.close()
