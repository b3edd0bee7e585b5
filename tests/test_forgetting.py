"Forgetting: what goes is listed first, own messages stay, and no byte is left."

import json
import re
import shutil
from functools import partial
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from candidates import FACTS, ROUND, replace_models
from kills import look_after_kills, needs_fork

from personal_llm.base.core import Dialogue, InputError
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.scoring import Scores
from personal_llm.device import forgetting, personalizer
from personal_llm.device.archive import ARCHIVE_FILE, Archive
from personal_llm.device.chat import ChatSession
from personal_llm.device.forgetting import ForgetPlan, drop_forgotten, finish_forgetting, fold, forget_dialogues, trim
from personal_llm.device.forgetting import forget_everything, holds, list_written, plan_forgetting
from personal_llm.device.evidence import list_unlearned
from personal_llm.device.personalizer import Personalizer
from personal_llm.device.state import State, decide, open_state, scores_to_dict


class Talks:
    "An archive with talks in which each reply reads what a test says."

    def __init__(self, folder=None, policy="fifo"):
        self.state = State(Archive(folder), Buffer(4, policy))
        self.state.record("configured", base="b", model="m", settings={}, buffer=self.state.buffer.header())

    def say(self, id, prompt, response, turns=(), reads=(), statements=(), origin="model", talk="monday", foreign=()):
        known = self.state.archive.dialogues
        history = [pair for t in turns for pair in (("user", known[t].prompt), ("assistant", known[t].response))]
        d = Dialogue(prompt, response, [*history, *foreign], id=id, time=float(len(known)), origin=origin)
        self.state.archive.add(d, talk, [*turns, *map(list, foreign)])
        self.state.record("said", id, reads=list(reads), statements=list(statements))

    def correct(self, id, text="", kind="better"):
        self.state.record("reacted", id, kind=kind, text=text, asked=False, time=0.0)

    def plan(self, **what):
        return plan_forgetting(self.state, **what)

    def forget(self, **what):
        return forget_dialogues(self.state, self.plan(**what))

    def tune(self, number, *learned, **own):  # own: id -> more of its event
        if self.state.archive.file:
            folder = self.state.archive.file.parent / f"adapters/{number:03d}"
            folder.mkdir(parents=True)
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
        self.state.record("tuned", **ROUND | dict(adapter=f"adapters/{number:03d}"))
        for id, content in (dict.fromkeys(learned, {}) | own).items():
            self.state.record("learned", id, **content)


def read_bytes(folder):
    return b"".join(file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()).lower()


def test_the_dog_goes_and_the_allergy_stays(tmp_path):
    talks = Talks(tmp_path)
    talks.say("dog", "I have a dog, Biscuit.", "Lovely!")
    talks.say("allergy", "I am allergic to peanuts.", "Biscuit must not eat them either.", turns=["dog"])
    talks.say("snack", "Which snack can I take?", "An apple.", statements=["allergy", "dog"], talk="tuesday")
    talks.say("emma", "Who wrote Emma?", "Jane Austen.", talk="wednesday")
    talks.correct("allergy", kind="up")
    plan = talks.plan(ids=["dog"])
    assert (plan.dialogues, plan.replies) == (("dog",), ("allergy", "snack"))
    assert len(talks.state.archive.dialogues) == 4, "a plan changes nothing"
    state = forget_dialogues(talks.state, plan)
    assert {id: (d.prompt, d.response) for id, d in state.archive.dialogues.items()} == {
        "allergy": ("I am allergic to peanuts.", ""),
        "snack": ("Which snack can I take?", ""),
        "emma": ("Who wrote Emma?", "Jane Austen."),
    }
    assert state.archive.dialogues["allergy"].history == () and state.reactions == {}
    assert b"biscuit" not in read_bytes(tmp_path)


def test_what_a_forgotten_adapter_learned_waits_to_be_learned_again():
    talks = Talks(policy="answers-first")
    for id in "ab":
        talks.say(id, f"Question {id}?", "An answer.", talk=id)
        talks.correct(id, f"Better {id}.")
    talks.tune(0, "a", "b")
    assert list_unlearned(talks.state) == []
    assert list_unlearned(talks.forget(ids=["b"])) == ["a"]


@pytest.mark.parametrize(
    "request_, line",
    [
        (dict(), "nothing was named"),
        (dict(text=" "), "the text to forget is empty"),
        (dict(ids=["d0"]), "no dialogue 'd0' is stored"),
    ],
)
def test_a_call_that_names_nothing_is_refused(request_, line):
    with pytest.raises(InputError, match=line):
        Talks().plan(**request_)


def test_texts_that_look_equal_are_found():
    talks = Talks()
    talks.say("a", "My friend Jean-Luc calls.", "Good.")
    talks.say("b", "Who wrote Emma?", "Austen.")
    talks.correct("b", "Not *Jean\u2011Luc*: Austen.")
    talks.say("c", "And?", "…", talk="client")
    for text in ("jean-luc", "**Jean\u2011Luc**", "jean-\u200bluc", "`Jean–Luc`", "[Jean]-Luc", "Jean\u2010Luc\u00b4"):
        assert talks.plan(text=text).dialogues == ("a", "b"), text
    assert holds("[x](friend-\u200bje.org)", {"friend-je"}) and fold("İzmir") == fold("izmir")


@pytest.mark.parametrize(
    "said, typed",
    [
        ("My IBAN is DE89 3704 0044 0532 0130 00.", "DE89370400440532013000"),
        ("My IBAN is DE89370400440532013000.", "de89 3704 0044"),
        ("Call me: 0660-123 45 67", "06601234567"),
        ("José lives in São Paulo.", "jose lives in sao"),
        ("Jose lives in Sao Paulo.", "José lives in São"),
        ("Die Straße in Málaga", "strasse in malaga"),
        ("Ｊｅａｎ－Ｌｕｃ calls.", "jean luc"),
        ("Jean Luc calls.", "Jean-Luc"),
        ("My e-mail is out.", "email"),
        ("Frau Müller calls.", "mueller"),
        ("Frau Mueller calls.", "Müller"),
        ("I was born on 12/05/1990.", "12.05.1990"),
        ("I moved to Linz and like it.", "Linz."),
    ],
)
def test_another_spelling_is_found_and_the_turn_stays_out(said, typed):
    talks = Talks()
    talks.say("a", said, "Good.", talk="client")
    talks.say("b", "Is it far, as in 12 3?", "Yes.")
    assert talks.plan(text=typed).dialogues == ("a",)
    archive = talks.forget(text=typed).archive
    sent = [("user", said), ("assistant", "Good."), ("user", "Tea?")]
    assert drop_forgotten(archive, sent) == sent[2:], "its fingerprint is that of the words as they were said"


@pytest.mark.parametrize(
    "said, typed",
    [
        ("A visit", "is it"),
        ("A-B", "-C"),
        ("No sign", "-"),
        ("C", "C++"),
        ("12", "1.2"),
        ("Sun", "Sue"),
        ("Linzer", "Linz."),
    ],
)
def test_a_spelling_of_something_else_is_not_found(said, typed):
    talks = Talks()
    talks.say("a", said, "Good.")
    assert talks.plan(text=typed) == ForgetPlan()


@pytest.mark.parametrize("origin, left", [("model", ""), ("user", "So.")])
def test_a_turn_of_another_program_is_searched_too(origin, left):
    talks = Talks()
    foreign = [("user", "I met Ada."), ("assistant", "Nice.")]
    talks.say("x", "And how?", "So.", origin=origin, talk="client", foreign=foreign)
    talks.tune(0, "x")
    plan = talks.plan(text="ada")
    turns = (("x", "I met Ada."), ("x", "Nice."))
    assert (plan.dialogues, plan.turns) == ((), turns) and len(plan.adapters) == 1, "the answer had read it"
    why = "because it followed a turn on this list"
    assert plan.lines[:-3] == (f"reply to “And how?”, {why}; your message stays",) * (origin == "model")
    (d,) = forget_dialogues(talks.state, plan).archive.dialogues.values()
    assert (d.prompt, d.response, d.history) == ("And how?", left, ())


def test_the_list_says_why_a_reply_goes_and_which_corrections_go():
    talks = Talks()
    talks.say("dog", "I have a dog, Biscuit.", "Lovely!")
    talks.correct("dog", "A good name.")
    talks.say("walk", "Which walk?", "Along the river.", turns=["dog"])
    talks.correct("walk", "Along the canal.")
    talks.say("food", "What does it eat?", "Biscuit eats fish.", talk="tuesday")
    talks.say("bed", "Where does it sleep?", "Here.", reads=["dog"], talk="friday")
    talks.say("age", "How old is it?", "Two.", statements=["dog"], talk="sunday")
    assert talks.plan(text="biscuit").lines == (
        "dialogue, your correction too: I have a dog, Biscuit.",
        "reply to “Which walk?”, because it followed a turn on this list; your message and correction stay",
        "reply to “What does it eat?”, because it contains the text; your message stays",
        "reply to “Where does it sleep?”, because it used a correction on this list; your message stays",
        "reply to “How old is it?”, because it used what you said in a dialogue on this list; your message stays",
    )


def test_an_instruction_goes_by_its_words_with_its_earlier_texts():
    talks = Talks()
    for number, text in ((1, "Call me Ada."), (1, "Call me Bo."), (2, "Be brief."), (3, "As Ada says.")):
        talks.state.record("instructed", number=number, text=text, time=0.0)
    talks.state.record("asked_habit", text="opens with “Dear Ada”")
    plan = talks.plan(text="ada")
    listed = [line.partition(": ")[2] for line in plan.lines]
    assert listed == ["Call me Ada.", "Call me Bo.", "As Ada says.", "opens with “Dear Ada”"]
    state = forget_dialogues(talks.state, plan)
    assert [one.text for one in state.instructions.values()] == ["Be brief."]
    assert plan_forgetting(state, text="ada") == ForgetPlan()


@pytest.mark.parametrize("head", [b"", bytes(4096)])
def test_everything_goes_also_without_a_header(tmp_path, head):
    file = tmp_path / ARCHIVE_FILE
    file.write_bytes(head)
    Path(f"{file}-wal").write_bytes(b"biscuit")
    assert forget_everything(tmp_path) == [str(file), f"{file}-wal"] and list(tmp_path.iterdir()) == []


def test_a_foreign_file_of_our_name_stops_everything_before_it_begins(tmp_path):
    (tmp_path / ARCHIVE_FILE).write_bytes(b"a shopping list " * 50)
    (tmp_path / f"{ARCHIVE_FILE}-wal").write_bytes(b"and its journal")
    (tmp_path / "adapters" / "000").mkdir(parents=True)
    with pytest.raises(InputError, match="no archive of this package"):
        forget_everything(tmp_path)
    assert len(list(tmp_path.rglob("*"))) == 4


def test_a_folder_of_a_stopped_fine_tune_is_listed_and_goes(tmp_path):
    talks = Talks(tmp_path)
    talks.say("a", "My dog is Biscuit.", "Nice.")
    talks.say("b", "Who wrote Emma?", "Austen.", talk="b")
    talks.tune(0, "b")
    (tmp_path / "adapters" / "001" / "checkpoints").mkdir(parents=True)
    plan = talks.plan(text="biscuit")
    assert plan.adapters == ("adapters/001",)
    forget_dialogues(talks.state, plan)
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["000"]


def test_a_link_in_place_of_an_adapter_goes_and_the_list_says_what_stays(tmp_path):
    talks = Talks(tmp_path / "me")
    talks.say("a", "My dog is Biscuit.", "Nice.")
    talks.tune(0, "a")
    link = tmp_path / "me" / "adapters" / "000"
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    (link.parent / "notes.txt").write_text("not ours")
    plan = talks.plan(text="biscuit")
    assert plan.lines[1:] == ("adapter: adapters/000, a link: the folder that it names stays",)
    forget_dialogues(talks.state, plan)
    assert [path.name for path in link.parent.iterdir()] == ["notes.txt"] and (tmp_path / "elsewhere").is_dir()
    link.symlink_to(tmp_path / "elsewhere")
    assert str(link) in forget_everything(tmp_path / "me")
    assert not link.is_symlink() and (tmp_path / "elsewhere" / "adapter_model.safetensors").exists()


def test_a_second_call_finishes_what_a_locked_file_stopped(tmp_path, monkeypatch):
    talks = Talks(tmp_path)
    talks.say("a", "My dog is Biscuit.", "Nice.")
    talks.tune(0, "a")
    talks.tune(1)
    talks.state.archive.execute("PRAGMA busy_timeout = 0")
    reader = sqlite3.connect(tmp_path / ARCHIVE_FILE)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM dialogues").fetchall()
    plan = talks.plan(text="biscuit")
    with pytest.raises(InputError, match="another program reads it"):
        forget_dialogues(talks.state, plan)
    assert talks.plan(text="biscuit") == plan, "nothing went"
    reader.close()

    def fail_at_second(folder):
        if folder.name == "001":
            raise PermissionError(13, "Permission denied", str(folder))
        delete(folder)

    delete = forgetting.shutil.rmtree
    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(forgetting.shutil, "rmtree", fail_at_second)
        forget_dialogues(talks.state, plan)
    plan = plan_forgetting(open_state(talks.state.archive), text="biscuit")
    assert plan.lines == ("the rest of an earlier deletion",)
    state = forget_dialogues(talks.state, plan)
    assert plan_forgetting(state, text="biscuit") == ForgetPlan()
    assert state.rounds == [] and list((tmp_path / "adapters").iterdir()) == []
    state.archive.close()
    assert b"biscuit" not in read_bytes(tmp_path)


PIECES = ["e\u0301", "z\u0307", "1. ", "> ", "](c)", "http://a.b"]
PIECES += [*'abÉ-\u2010\u00ad \n*_`~|\\["=:\u200b•ż\u3164ﬁß']


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text("abeé ", min_size=1, max_size=5))
def test_words_are_found_between_all_others_and_a_text_finds_itself(text, words):
    form = fold(words)
    if form:
        assert holds(f"{text} {words} {text}", {form})
        assert holds("".join(f"{letter}\u200b" for letter in words), {form})
        assert holds(f"**{words.upper()}**", {form})
    if fold(text):
        assert holds(text, {fold(text)})
        assert fold(fold(text)) == fold(text), "what is shown of a form is found by it"


@settings(max_examples=100, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_no_text_of_a_reply_that_read_it_is_left(tmp_path_factory, data):
    """Planted words: a reply repeats the words of all that it read, so each surviving text shows what it knows.

    Other programs bring copies of earlier turns, also with other replies, and replies are corrected at any time.
    """
    folder = tmp_path_factory.mktemp("talks")
    talks = Talks(folder)
    count = data.draw(st.integers(2, 7))
    words = {}
    for n in range(count):
        earlier = [f"d{m}" for m in range(n)]
        pick = st.lists(st.sampled_from(earlier), max_size=1) if earlier else st.just([])
        turns = earlier[-1:] if data.draw(st.booleans()) else data.draw(pick)
        reads, statements, copied = data.draw(pick), data.draw(pick), data.draw(pick)
        own = f"word{n}x"
        shown = talks.state.newest
        heard = [shown(id).prompt + " " + shown(id).response for id in {*turns, *reads}]
        heard += [shown(id).prompt for id in statements]
        foreign = []
        for id in copied:
            as_said = talks.state.archive.dialogues[id]
            suffix = data.draw(st.sampled_from(["", " It was edited."]))
            foreign += [("user", as_said.prompt), ("assistant", as_said.response + suffix)]
        heard += [text for _, text in foreign]
        known = sorted({w for text in heard for w in text.replace(".", " ").split() if w.startswith("word")})
        reply = " ".join(["I know", own, *known])
        talks.say(f"d{n}", f"I say {own}", reply, turns, reads, statements, talk=str(n), foreign=foreign)
        words[f"d{n}"] = own
        if data.draw(st.booleans()):
            corrected = data.draw(st.sampled_from([*earlier, f"d{n}"]))
            talks.correct(corrected, f"mine {corrected}")
    gone = data.draw(st.sampled_from(sorted(words)))
    talks.forget(ids=[gone]).archive.close()
    assert words[gone].encode() not in read_bytes(folder)
    again = open_state(Archive(folder))
    prompts = {id: d.prompt for id, d in again.archive.dialogues.items()}
    assert prompts == {id: f"I say {word}" for id, word in words.items() if id != gone}, "own messages stay"
    again.archive.close()


# what was read is the version that was read


@pytest.mark.parametrize(
    "content, is_later, left", [({}, 0, 1), (dict(own=True), 0, 1), (dict(own=False), 0, 0), ({}, 1, 0)]
)
def test_an_adapter_goes_if_it_learned_the_version_that_read_it(content, is_later, left):
    talks = Talks()
    talks.say("sister", "My sister is called Zora.", "Nice.")
    talks.say("walk", "Whom can I walk with?", "With Zora.", turns=["sister"])
    acts = [lambda: talks.correct("walk", "With my friend."), lambda: talks.tune(0, walk=content)]
    for act in acts[::-1] if is_later else acts:
        act()
    assert len(talks.plan(ids=["sister"]).adapters) == 1 - left


# other programs have copies


def test_copies_in_other_histories_go_by_id_with_the_replies_to_them():
    talks = Talks()
    talks.say("dog", "My dog is Biscuit.", "Lovely, Biscuit!", talk="client")
    talks.say("tea", "I like tea.", "Good.", talk="client")
    edited = [("user", "my dog is **Biscuit**."), ("assistant", "Biscuit is fine."), ("user", "Who wrote Emma?")]
    talks.say("b", "And Ulysses?", "Joyce.", talk="client", foreign=edited)
    other = [("user", "I like tea."), ("assistant", "So do I.")]
    talks.say("c", "And coffee?", "Yes.", talk="client", foreign=other)
    plan = talks.plan(ids=["dog"])
    assert (plan.dialogues, plan.replies) == (("dog",), ("b",))
    assert plan.turns == (("b", "my dog is **Biscuit**."), ("b", "Biscuit is fine."))
    state = forget_dialogues(talks.state, plan)
    assert state.archive.dialogues["b"].history == (("user", "Who wrote Emma?"),)
    assert state.archive.dialogues["c"].history == tuple(other)


@pytest.mark.parametrize("talk", ["client", "monday"])
def test_a_forgotten_turn_that_a_program_sends_again_is_dropped_and_no_text_stays(tmp_path, talk):
    talks = Talks(tmp_path)
    talks.say("dog", "My dog is Biscuit.", "Lovely!", talk=talk)
    archive = talks.forget(ids=["dog"]).archive
    turns = ("Be brief.", "My dog is “Biscuit”.", "Lovely, Biscuit!", "Tea?")
    sent = [*zip(("system", "user", "assistant", "user"), turns)]
    assert drop_forgotten(archive, sent) == [sent[0], sent[3]]
    assert drop_forgotten(Archive(), sent) == sent
    other = Talks()
    other.say("dog", "My dog is Biscuit.", "Lovely!", talk="client")
    emptied = other.forget(everything=True).archive
    names = {name for one in (archive, emptied) for name in one.events[-1].content["turns"]}
    assert len(names) == 4 and emptied.dialogues == {}, "each archive has its own key"
    archive.close()
    assert b"biscuit" not in read_bytes(tmp_path)


def test_another_reply_to_a_message_whose_reply_was_forgotten_is_dropped_too():
    talks = Talks()
    talks.say("dog", "My dog is Biscuit.", "Lovely!")
    talks.say("pet", "What is my pet called?", "Biscuit.", statements=["dog"], talk="client")
    archive = talks.forget(ids=["dog"]).archive
    sent = [("user", "What is my pet called?"), ("assistant", "It is Biscuit, your dog."), ("user", "Tea?")]
    assert drop_forgotten(archive, sent) == [sent[0], sent[2]]


# a stop in the middle


def change_memory(folder, kind):
    "Forget, undo or trim in the folder of `make_memory`."
    state = open_state(Archive(folder))
    if kind == "forget":
        forget_dialogues(state, plan_forgetting(state, text="biscuit"))
    elif kind == "trim":
        trim(state, 0)
    else:
        me = Personalizer.__new__(Personalizer)
        me.archive, me.state, me.folder = state.archive, state, folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(personalizer, "load_last_adapter", lambda state, folder: None)
            me.undo_finetune()
    state.archive.close()


def make_memory(folder):
    talks = Talks(folder)
    talks.say("dog", "My dog is Biscuit.", "Nice.", talk="client")
    talks.say("emma", "Who wrote Emma?", "Austen.", talk="b")
    talks.tune(0, "emma")
    talks.tune(1, "dog")
    others = [f"other{number}" for number in range(3)]
    for id in others:
        talks.say(id, f"Question {id}?", "An answer.", talk=id)
    talks.say("repeat", "Question other2?", "An answer.", talk="d")
    scores = scores_to_dict(Scores(**FACTS, model="base", embedding=np.ones(8)))
    for id in ("dog", "emma", *others, "repeat"):  # the first one leaves the buffer, and the last one is discarded
        talks.state.record("scored", id, scores=scores, is_considered=False)
        decide(talks.state, id)
    talks.say("late", "Any news?", "None.", talk="c")
    talks.state.archive.close()


def look(folder):
    state = open_state(Archive(folder))
    finish_forgetting(state)  # as every opening does
    missing = [one.adapter for one in state.rounds if not (folder / one.adapter / "adapter_model.safetensors").exists()]
    seen = ({*state.archive.dialogues}, [one.adapter for one in state.rounds], state.buffer.seen, [*state.pending])
    folders = {f"adapters/{path.name}" for path in (folder / "adapters").iterdir()}
    state.archive.close()
    assert missing == [] and folders == {*seen[1]}, "no adapter is missing, and none is left over"
    return seen


@pytest.mark.later
@needs_fork
@pytest.mark.parametrize("kind", ["forget", "undo", "trim"])
def test_a_kill_leaves_the_state_before_or_after_and_the_next_opening_finishes(tmp_path, kind):
    make_memory(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    change_memory(tmp_path / "after", kind)
    before, after = look(tmp_path / "before"), look(tmp_path / "after")
    assert before != after
    if kind == "trim":
        assert after[2] == before[2] and after[3] == [], "what was seen counts, and no turn without an answer waits"

    def look_again(folder):
        seen = look(folder)
        assert seen == before or seen == after and (kind != "forget" or b"biscuit" not in read_bytes(folder))
        return seen == after

    states = look_after_kills(tmp_path / "before", partial(change_memory, kind=kind), look_again)
    assert len(states) > 10 and states == sorted(states), "first before, then after"


# the roads in: chat, another program, files; what is listed is what goes, and nothing else


def repeat(dialogue):
    "Reply with the secret in all the ways that were read."
    read = " ".join([dialogue.prompt, *(text for _, text in dialogue.history)])
    return " ".join(["Well,", *SECRET.findall(read)])


FORMS = ["Biscuitto", "BISCUITTO", "bis\u200bcuitto", "**Bis**cuitto", "biscu\u00adit\ufe0fto"]
SECRET = re.compile("|".join(map(re.escape, FORMS)))
ACTS = ["say", "say", "client", "client", "file", "better", "earlier", "always", "talk", "learn", "scope", "undo"]


def open_session(model, folder):
    clock = iter(range(10**9, 2 * 10**9)).__next__
    return ChatSession(model, folder, clock=clock, idle_seconds=999.0)


def send_again(session, talks: list) -> None:
    "Let a program send its old talks again, with replies that it changed, and with a message of its own."
    for number, history in enumerate(talks):
        for suffix in ("", " (edited)"):
            sent = [(role, text + suffix * (role == "assistant")) for role, text in history]
            "".join(session.say(f"Another question {number}{suffix}?", history=sent))


def take_stock(session):
    state = session.me.state
    folder = session.me.folder
    return dict(
        dialogues={id: (d.prompt, d.response, d.history) for id, d in state.archive.dialogues.items()},
        adapters={f"adapters/{path.name}" for path in (folder / "adapters").glob("*")},
        words={event.number for event in state.archive.events if event.kind == "instructed"},
    )


def act(session, name, text, number):
    if name == "say":
        "".join(session.say(text))
    elif name == "client":
        "".join(session.say(f"Statement {number}.", history=[("user", text), ("assistant", f"Fine, {text}")]))
    elif name == "file":
        before = [("user", f"Statement {number}."), ("assistant", "Yes.")]
        d = Dialogue(f"Question {number}?", text, before, time=float(number), labels=dict(group=f"{FORMS[0]}.txt"))
        session.me.observe_all([d], progress=False)
    elif name == "better" and session.turns:
        session.react("better", text)
    elif name == "earlier" and len(session.turns) > 1:  # a reply that a later one has read
        session.react("better", "As I say.", session.turns[-2].id)
    elif name == "always":
        session.instruct(text)
    elif name == "talk":
        session.open_talk()
    elif name == "undo" and session.me.state.acts:
        session.undo()
    elif name == "scope" and any(one.kind == "better" for one in session.me.state.reactions.values()):
        session.scoping.show_habit_question()
        session.scoping.scope_correction(["everywhere", "here", ""][number % 3])
    elif name == "learn" and len(session.me.buffer):
        session.me.finetune(progress=False)


READ_A_CORRECTION = [(name, "") for name in ("say", "say", "say", "better", "say", "always")]
SHARE_AN_OPENING = [step for form in FORMS[:1] * 3 for step in (("say", ""), ("better", form))]
SHARE_AN_OPENING += [("scope", ""), ("undo", ""), ("undo", "")]
TAKEN_BACK = [("say", FORMS[0]), ("say", ""), ("better", ""), ("undo", ""), ("say", "")]
READ_A_CORRECTION += [("talk", FORMS[2]), ("say", ""), ("talk", "")]  # nothing goes: what was read stays as it was read


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@example(READ_A_CORRECTION)
@example(SHARE_AN_OPENING)
@example(TAKEN_BACK)
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.sampled_from(["", "", *FORMS])), min_size=3, max_size=9))
def test_what_is_listed_goes_and_nothing_else_and_no_byte_is_left(model, tmp_path_factory, acts):
    folder = tmp_path_factory.mktemp("me")
    with pytest.MonkeyPatch.context() as patch:
        replace_models(patch, repeat)
        session = open_session(model, folder)
        for number, (name, form) in enumerate(acts):
            act(session, name, f"Statement {number}. {form}".strip(), number)
        before = take_stock(session)
        talks = session.me.state.archive.talks
        old = [d for id, d in session.me.state.archive.dialogues.items() if talks[id] == "client"]
        written = list_written(session.me.state)
        plan = session.forget("biscuitto", dry=True)
        assert take_stock(session) == before, "a dry run changes nothing"
        assert session.forget("biscuitto") == plan
        after = take_stock(session)
        gone = before["dialogues"].keys() - after["dialogues"].keys()
        assert gone == {*plan.dialogues} == {id for id in written if SECRET.search(" ".join(written[id]))}
        emptied = {id for id in after["dialogues"] if before["dialogues"][id][1] and not after["dialogues"][id][1]}
        assert emptied == {*plan.replies}
        assert before["adapters"] - after["adapters"] == {*plan.adapters}
        assert before["words"] - after["words"] == {*plan.words}
        send_again(session, [d.history for d in old if d.history])
        after["dialogues"] = take_stock(session)["dialogues"]
        session.close()
        content = read_bytes(folder)
        for form in FORMS:
            forms = (form.encode().lower(), json.dumps(form)[1:-1].encode().lower())
            assert not any(known in content for known in forms), (form, plan)
        assert not any(id.encode() in content for id in gone), "an id is computed from the text"
        again = open_session(model, folder)
        assert take_stock(again)["dialogues"] == after["dialogues"]
        assert again.forget("biscuitto", dry=True) == ForgetPlan()
        again.close()


def test_a_deleted_reply_leaves_no_embedding_though_its_correction_stays():
    talks = Talks()
    talks.say("a", "What is in it?", "Secret biscuits.")
    scores = scores_to_dict(Scores(**FACTS, model="base", embedding=np.arange(4.0)))
    talks.state.record("scored", "a", scores=scores, is_considered=False)
    decide(talks.state, "a")
    talks.correct("a", "Flour.")
    state = talks.forget(text="biscuits")
    assert [event.kind for event in state.archive.events if event.dialogue == "a"] == ["said", "reacted"]
    assert state.newest("a").response == "Flour." and len(state.buffer) == 0


def test_a_correction_that_was_kept_after_it_was_made_stays_in_the_buffer_without_the_reply():
    talks = Talks()
    talks.say("a", "What is in it?", "Secret biscuits.")
    talks.correct("a", "Flour.")
    scores = scores_to_dict(Scores(**FACTS, model="base", embedding=np.arange(4.0)))
    talks.state.record("scored", "a", scores=scores, is_considered=False)
    decide(talks.state, "a")
    assert [d.response for d in talks.forget(text="biscuits").buffer.dialogues] == ["Flour."]
