"Forgetting: what goes is listed first, own messages stay, and no byte is left."

import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.scoring import ScoredDialogue, Scores
from personal_llm.device import chat, forgetting, personalizer
from personal_llm.device.archive import ARCHIVE_FILE, Archive
from personal_llm.device.chat import ChatSession
from personal_llm.device.forgetting import ForgetPlan, fold, forget_dialogues, forget_everything
from personal_llm.device.forgetting import holds, list_written, plan_forgetting, show
from personal_llm.device.learning import PreparedRound, find_place
from personal_llm.device.state import State, open_state

ROUND = dict(start="", seen=0, kept=1, synthetic=0, rejected={}, requests=0, start_loss=2.0, best_loss=1.0)
ROUND |= dict(num_validation_dialogues=0, steps=8, seconds=1.0, cut=0, warm=None, digest="")


class Talks:
    "An archive with talks in which each reply reads what a test says."

    def __init__(self, folder=None):
        self.state = State(Archive(folder), Buffer(4, "fifo"))
        self.state.record("configured", base="b", model="m", settings={}, buffer=self.state.buffer.header())

    def say(self, id, prompt, response, turns=(), reads=(), statements=(), origin="model", talk="monday"):
        known = self.state.archive.dialogues
        history = [pair for t in turns for pair in (("user", known[t].prompt), ("assistant", known[t].response))]
        time = float(len(known))
        self.state.archive.add(Dialogue(prompt, response, history, id=id, time=time, origin=origin), talk, list(turns))
        self.state.record("said", id, reads=list(reads), statements=list(statements))

    def correct(self, id, text):
        self.state.record("reacted", id, kind="better", text=text, asked=False, time=0.0)

    def tune(self, number, *learned):
        if self.state.archive.file:
            folder = self.state.archive.file.parent / f"adapters/{number:03d}"
            folder.mkdir(parents=True)
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
        self.state.record("tuned", adapter=f"adapters/{number:03d}", **ROUND)
        for id in learned:
            self.state.record("learned", id)


def read_bytes(folder):
    return b"".join(file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()).lower()


def test_the_dog_goes_and_the_allergy_stays(tmp_path):
    talks = Talks(tmp_path)
    talks.say("dog", "I have a dog, Biscuit.", "Lovely!")
    talks.say("allergy", "I am allergic to peanuts.", "Biscuit must not eat them either.", turns=["dog"])
    talks.say("snack", "Which snack can I take?", "An apple.", statements=["allergy", "dog"], talk="tuesday")
    talks.say("emma", "Who wrote Emma?", "Jane Austen.", talk="wednesday")
    talks.state.record("reacted", "allergy", kind="up", text="", asked=False, time=0.0)
    plan = plan_forgetting(talks.state, ids=["dog"])
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


def test_a_reply_that_read_only_a_message_stays_when_the_reply_to_it_goes():
    talks = Talks()
    talks.say("dog", "I have a dog, Biscuit.", "Lovely!")
    talks.say("walk", "I live in Porto. Where can we walk?", "With Biscuit along the river.", turns=["dog"])
    talks.say("city", "What can I see here?", "The bridge of Porto.", statements=["walk"], talk="tuesday")
    plan = plan_forgetting(talks.state, ids=["dog"])
    assert plan.replies == ("walk",), "the message about Porto stays, and so does the reply that read it"


def test_a_correction_is_the_persons_own_and_ends_the_chain():
    talks = Talks()
    talks.say("dog", "I have a dog, Biscuit.", "Lovely!")
    talks.say("walk", "Which walk?", "One with Biscuit.", turns=["dog"])
    talks.correct("walk", "The one along the river.")
    talks.say("long", "How long is it?", "Two miles.", reads=["walk"], talk="tuesday")
    talks.tune(0, "walk")
    plan = plan_forgetting(talks.state, ids=["dog"])
    assert plan.replies == ("walk",) and plan.adapters == ()
    state = forget_dialogues(talks.state, plan)
    assert state.newest("walk").response == "The one along the river."
    assert state.archive.dialogues["walk"].response == ""
    assert [d.id for d in state.list_answered()] == [state.newest("walk").id]


def test_every_adapter_from_the_first_that_learned_it_goes(tmp_path):
    talks = Talks(tmp_path)
    for id in "abc":
        talks.say(id, f"Question {id}?", "An answer.", talk=id)
        talks.correct(id, f"Better {id}.")
    talks.tune(0, "a")
    talks.tune(1, "a", "b")
    talks.tune(2, "b", "c")
    plan = plan_forgetting(talks.state, ids=["b"])
    assert plan.adapters == ("adapters/001", "adapters/002")
    state = forget_dialogues(talks.state, plan)
    assert [one.adapter for one in state.rounds] == ["adapters/000"]
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == ["000"]
    assert open_state(state.archive).rounds == state.rounds


def test_the_answer_of_a_file_is_the_persons_data_and_stays():
    talks = Talks()
    talks.say("one", "What is rust?", "Iron oxide.", origin="user", talk="")
    talks.say("two", "And verdigris?", "Copper salts.", turns=["one"], origin="user", talk="")
    plan = plan_forgetting(talks.state, ids=["one"])
    assert plan.replies == ()
    state = forget_dialogues(talks.state, plan)
    assert state.archive.dialogues["two"].response == "Copper salts." and state.archive.dialogues["two"].history == ()


LOOKS_EQUAL = ["jean-luc", "**Jean\u2011Luc**", "jean-\u200bluc", "`Jean–Luc`", "[Jean](a.b)-<b>Luc</b>", "Jean-\nLuc"]
LOOKS_EQUAL += ["Jean\u2010Luc\u00b4", "[Jean][1]-Luc", "> Jean&#45;Luc"]


@pytest.mark.parametrize("text", LOOKS_EQUAL)
def test_texts_that_look_equal_are_found(text):
    talks = Talks()
    talks.say("a", "My friend Jean-Luc calls.", "Good.")
    talks.say("b", "Who wrote Emma?", "Austen.")
    talks.correct("b", "Not *Jean\u2011Luc*: Austen.")
    talks.say("c", "And?", "…", talk="client")
    assert plan_forgetting(talks.state, text=text).dialogues == ("a", "b")
    parts = "friend<br/>Jean-Luc", "- My\n> friend Jean-Luc", "| friend | Jean-Luc |", "fri-\nend&nbsp;[Jean-Luc](x)"
    assert all(holds(part, {"friend jean-luc"}) for part in parts) and holds("[x](friend-\u200bje.org)", {"friend-je"})
    assert fold("Straße") == fold("STRASSE") and fold("İzmir") == fold("izmir")
    assert fold("Rene\u0301\u00a0’s") == fold("RENÉ\ufe0f 's")


@pytest.mark.parametrize("origin, left", [("model", ""), ("user", "So.")])
def test_a_turn_of_another_program_is_searched_too(origin, left):
    talks = Talks()
    d = Dialogue("And how?", "So.", [("user", "I met Ada."), ("assistant", "Nice.")], id="x", origin=origin)
    talks.state.archive.add(d, "client")
    talks.state.record("said", "x", reads=[], statements=[])
    talks.tune(0, "x")
    plan = plan_forgetting(talks.state, text="ada")
    assert (plan.dialogues, plan.turns) == ((), (("x", "I met Ada."),)) and len(plan.adapters) == 1
    assert plan.lines[:-2] == ("reply only, your message stays: And how?",) * (origin == "model")
    (d,) = forget_dialogues(talks.state, plan).archive.dialogues.values()
    assert (d.prompt, d.response, d.history) == ("And how?", left, (("assistant", "Nice."),))


def test_a_word_that_only_the_model_wrote_takes_the_reply_alone():
    talks = Talks()
    talks.say("dog", "I have a dog, Biscuit.", "Lovely!")
    talks.say("allergy", "I am allergic to peanuts.", "Biscuit must not eat them either.", turns=["dog"])
    talks.say("walk", "Which walk?", "Along the river.", talk="tuesday")
    talks.correct("walk", "With Biscuit.")
    talks.correct("walk", "Along the canal.")
    plan = plan_forgetting(talks.state, text="biscuit")
    assert plan.dialogues == ("dog", "walk"), "also by a correction that was replaced"
    assert plan.replies == ("allergy",)


def test_an_instruction_goes_by_its_words_with_its_earlier_texts():
    talks = Talks()
    for number, text in ((1, "Call me Ada."), (1, "Call me Bo."), (2, "Be brief."), (3, "As Ada says.")):
        talks.state.record("instructed", number=number, text=text, time=0.0)
    talks.state.record("asked_habit", text="opens with “Dear Ada”")
    plan = plan_forgetting(talks.state, text="ada")
    assert [line.partition(":")[2].strip() for line in plan.lines] == [
        "Call me Ada.",
        "Call me Bo.",
        "As Ada says.",
        "opens with “Dear Ada”",
    ]
    state = forget_dialogues(talks.state, plan)
    assert [one.text for one in state.instructions.values()] == ["Be brief."]
    assert state.asked_habits == set() and plan_forgetting(state, text="ada") == ForgetPlan()


def test_before_a_time_and_everything():
    talks = Talks()
    for n in range(4):
        talks.say(f"d{n}", f"Question {n}?", "An answer.", talk=str(n))
    assert plan_forgetting(talks.state, before=2.0).dialogues == ("d0", "d1")
    state = forget_dialogues(talks.state, plan_forgetting(talks.state, everything=True))
    assert state.archive.dialogues == {} and len(state.buffer) == 0


@pytest.mark.parametrize("name, head", [("memory.sqlite", b""), ("memory.sqlite", bytes(4096)), ("memory.db", None)])
def test_everything_goes_also_without_a_header_and_of_an_earlier_version(tmp_path, name, head):
    file = tmp_path / name
    if head is None:
        with sqlite3.connect(file) as earlier:
            earlier.execute(f"PRAGMA application_id={0x704C4C4D}")
            earlier.execute("CREATE TABLE dialogues (id TEXT)")
        earlier.close()
    else:
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
    plan = plan_forgetting(talks.state, text="biscuit")
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
    plan = plan_forgetting(talks.state, text="biscuit")
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
    plan = plan_forgetting(talks.state, text="biscuit")
    with pytest.raises(InputError, match="another program reads it"):
        forget_dialogues(talks.state, plan)
    assert plan_forgetting(talks.state, text="biscuit") == plan, "nothing went"
    reader.close()

    def fail_at_second(folder):
        if folder.name == "001":
            raise PermissionError(13, "Permission denied", str(folder))
        delete(folder)

    delete = forgetting.shutil.rmtree
    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(forgetting.shutil, "rmtree", fail_at_second)
        forget_dialogues(talks.state, plan)
    state = forget_dialogues(talks.state, plan_forgetting(open_state(talks.state.archive), text="biscuit"))
    assert state.rounds == [] and list((tmp_path / "adapters").iterdir()) == []
    state.archive.close()
    assert b"biscuit" not in read_bytes(tmp_path)


PIECES = [
    "a",
    "b",
    "É",
    "e",
    "\u0301",
    "-",
    "\u2010",
    "\u00ad",
    " ",
    "\u00a0",
    "\n",
    "\t",
    "1.",
    "#",
    ">",
    "*",
    "_",
    "`",
]
PIECES += ["~", "|", "\\", "[", "](", "]", ")", "<b>", "&amp;", "&#45;", '"', "=", ":", "http://a.b", "\u200b", "•"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.lists(st.sampled_from("abeé- "), min_size=1))
def test_a_text_that_is_not_rendered_holds_what_its_rendering_holds(text, letters):
    form = fold("".join(letters)) or "a"
    is_held = holds(text, {form})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "PLAIN", re.compile("(?!)"))
        rendered = fold(re.sub("[-\u2010\u00ad]\n", "", show(text)))
        assert holds(text, {form}) == is_held
    assert not rendered or holds(text, {rendered})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_text_of_a_reply_that_read_it_is_left(tmp_path_factory, data):
    "Planted words: a reply repeats the words of all that it read, so each surviving text shows what it knows."
    folder = tmp_path_factory.mktemp("talks")
    talks = Talks(folder)
    count = data.draw(st.integers(2, 7))
    words = {}
    for n in range(count):
        earlier = [f"d{m}" for m in range(n)]
        pick = st.lists(st.sampled_from(earlier), max_size=2, unique=True) if earlier else st.just([])
        turns, reads, statements = data.draw(pick), data.draw(pick), data.draw(pick)
        own = f"word{n}x"
        shown = talks.state.newest
        heard = [shown(id).prompt + " " + shown(id).response for id in {*turns, *reads}]
        heard += [shown(id).prompt for id in statements]
        known = sorted({w for text in heard for w in text.replace(".", " ").split() if w.startswith("word")})
        talks.say(f"d{n}", f"I say {own}", " ".join(["I know", own, *known]), turns, reads, statements, talk=str(n))
        words[f"d{n}"] = own
        if data.draw(st.booleans()):
            talks.correct(f"d{n}", f"mine {n}")
    gone = data.draw(st.sampled_from(sorted(words)))
    state = forget_dialogues(talks.state, plan_forgetting(talks.state, ids=[gone]))
    state.archive.close()
    assert words[gone].encode() not in read_bytes(folder)
    again = open_state(Archive(folder))
    for id in words:
        if id != gone:
            assert again.archive.dialogues[id].prompt == f"I say {words[id]}", "own messages stay"
    again.archive.close()


# the roads in: chat, another program, files; what is listed is what goes, and nothing else


class Echo:
    "A reply that repeats the secret in all the ways that it read."

    end_reason = "stop"

    def __init__(self, dialogue):
        read = " ".join([dialogue.prompt, *(text for _, text in dialogue.history)])
        self.text = " ".join(["Well,", *SECRET.findall(read)])

    def __iter__(self):
        yield self.text


FORMS = ["Biscuitto", "BISCUITTO", "bis\u200bcuitto", "**Bis**cuitto", "biscu\u00adit\ufe0fto"]
SECRET = re.compile("|".join(map(re.escape, FORMS)))
ACTS = ["say", "say", "client", "file", "better", "always", "talk", "learn"]


def open_session(model, folder):
    clock = iter(range(10**9, 2 * 10**9)).__next__
    return ChatSession(load_model("pocket"), folder, clock=clock, idle_seconds=999.0)


def make_round(dialogues, model, config, folder, **options):
    place = find_place(folder)
    place.mkdir(parents=True)
    (place / "adapter_model.safetensors").write_bytes(b"weights")
    content = {name: value for name, value in ROUND.items() if name not in ("seen", "requests")}
    return PreparedRound(content | dict(adapter=f"adapters/{place.name}"), dialogues, None, Cost())


def make_scores(model, dialogues, lexicons):
    rng = np.random.default_rng(len(dialogues))
    facts = dict(eoe=0.5, eoe_scripts=0.5, dss=0.1, domain="none", loss=1.0, tokens=5, model="base")
    return [ScoredDialogue(d, Scores(**facts, embedding=rng.normal(size=8).astype("f4"))) for d in dialogues]


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
    elif name == "always":
        session.react("always", text)
    elif name == "talk":
        session.open_talk()
    elif name == "learn" and len(session.me.buffer):
        session.me.finetune(progress=False)


@pytest.fixture(scope="module")
def model():
    return load_model("pocket")


@settings(max_examples=25, deadline=None, phases=[Phase.generate])
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.sampled_from(["", "", *FORMS])), min_size=3, max_size=9))
def test_what_is_listed_goes_and_nothing_else_and_no_byte_is_left(model, tmp_path_factory, acts):
    folder = tmp_path_factory.mktemp("me")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "ReplyStream", lambda model, dialogue, options: Echo(dialogue))
        patch.setattr(personalizer, "score", make_scores)
        patch.setattr(personalizer, "prepare_round", make_round)
        patch.setattr(personalizer, "load_last_adapter", lambda state, folder: None)
        session = open_session(model, folder)
        for number, (name, form) in enumerate(acts):
            act(session, name, f"Statement {number}. {form}".strip(), number)
        before = take_stock(session)
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
        session.close()
        content = read_bytes(folder)
        for form in FORMS:
            forms = (form.encode().lower(), json.dumps(form)[1:-1].encode().lower())
            assert not any(known in content for known in forms), (form, plan)
        again = open_session(model, folder)
        assert take_stock(again)["dialogues"] == after["dialogues"]
        assert again.forget("biscuitto", dry=True) == ForgetPlan()
        again.close()
