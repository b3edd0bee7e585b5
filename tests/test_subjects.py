"A reply reads the turns since its subject began: how that is found, and that it stays so in the memory."

import numpy as np
import pytest

from personal_llm.base.core import Dialogue
from personal_llm.base.decoding import EXAMPLES, get_examples
from personal_llm.base.models import load_model
from personal_llm.base.text import set_language
from personal_llm.base.tokens import tokenize_messages
from personal_llm.buffer import subjects
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.subjects import MAX_LINK_CHARACTERS, compute_saved_share, continues_subject, find_prose
from personal_llm.buffer.subjects import is_about_reply, label_replies
from personal_llm.device import conversation
from personal_llm.device.conversation import ChatSession
from personal_llm.device.personalizer import ReplyPlan
from personal_llm.device.replay import MAX_PROMPT_TURNS, read_state
from personal_llm.device.streaming import ReplyOptions

TALK = [("user", "Is it late?"), ("assistant", "Yes."), ("user", "Who wrote it?"), ("assistant", "A poet.")]
SHORT = ReplyOptions(max_tokens=4)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture
def begins(monkeypatch, pocket):
    "The prompts that begin a new subject; all others go on."
    monkeypatch.setattr(pocket, "is_large", True)
    prompts = set()
    monkeypatch.setattr(conversation, "continues_subject", lambda model, question: question.prompt not in prompts)
    return prompts


def compute_slowly(model, dialogue) -> tuple:  # nats and tokens of the prompt
    import torch

    messages = [dict(role=role, content=text) for role, text in [*dialogue.history, ("user", dialogue.prompt)]]
    ids, owners = tokenize_messages(model.tokenizer, messages, add_generation_prompt=True)
    with torch.inference_mode():
        losses = -model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    places = [i for i, owner in enumerate(owners) if owner == len(messages) - 1]
    return sum(losses[i - 1, ids[i]].item() for i in places), len(places)


@pytest.mark.parametrize("prompt", ["Hi", "And then?\nWhy? " * 9, "say <|end|> and <|user|>", "ß 日本"])
def test_the_loss_of_a_prompt_is_that_of_its_own_tokens(pocket, prompt):
    dialogues = [Dialogue(prompt, "", TALK), Dialogue(prompt, ""), Dialogue("And you?", "", TALK[:2])]
    expected = [compute_slowly(pocket, d) for d in dialogues]
    assert np.allclose(pocket.nll(dialogues, of_prompts=True), expected, rtol=1e-3)
    assert np.isfinite(pocket.nll([Dialogue(prompt + "\ud800", "")], of_prompts=True)).all()


def test_only_the_last_exchange_and_the_beginning_of_a_long_message_count(pocket):
    share = compute_saved_share(pocket, Dialogue("Which poet? " * 40, "", TALK))
    assert share == compute_saved_share(pocket, Dialogue(("Which poet? " * 40)[:MAX_LINK_CHARACTERS], "", TALK[2:]))
    assert share != compute_saved_share(pocket, Dialogue("Which poet? " * 40, "", TALK[:2]))


def test_a_system_prompt_stands_before_both(pocket, monkeypatch):
    seen = []
    monkeypatch.setattr(pocket, "system_prompt", "Be kind.")
    monkeypatch.setattr(pocket, "nll", lambda rows, of_prompts: seen.extend(rows) or np.array([(4.0, 1), (6.0, 2)]))
    assert compute_saved_share(pocket, Dialogue("Which poet?", "", TALK)) == 0.25
    assert [d.history[0] for d in seen] == [("system", "Be kind.")] * 2 and [len(d.history) for d in seen] == [1, 3]


def test_a_message_that_has_no_loss_alone_goes_on(pocket, monkeypatch):
    template = "{% for message in messages %}{{ message.content }}<|end|>{% endfor %}"
    monkeypatch.setattr(pocket.tokenizer, "chat_template", template)  # no token stands before the first message
    assert compute_saved_share(pocket, Dialogue("?", "", TALK)) == 1.0
    assert abs(compute_saved_share(pocket, Dialogue("And which poet do you like?", "", TALK))) < 1


@pytest.mark.parametrize("share, goes_on", [(0.1, True), (0.0999, False), (-2.0, False), (1.0, True)])
def test_a_tenth_of_the_loss_is_the_line(monkeypatch, share, goes_on):
    monkeypatch.setattr(subjects, "compute_saved_share", lambda model, question: share)
    assert continues_subject(None, None) is goes_on


REMARKS = {"Shorter, please.": True, "That's not what I asked.": True, "Name a river in Africa.": False}


@pytest.mark.parametrize("prompt", REMARKS)
def test_the_words_of_a_message_tell_whether_it_is_about_the_reply(prompt):
    talk = [("user", "What is snow?"), ("assistant", "Snow is frozen water that falls from clouds in winter.")]
    question = Dialogue(prompt, "", talk)
    assert is_about_reply(question) is REMARKS[prompt]
    set_language("german")
    try:
        assert not is_about_reply(question)  # the reader knows English only
    finally:
        set_language(None)


def send(session, *texts):
    for text in texts:
        "".join(session.say(text, options=SHORT))
    return [len(session.me.memory.dialogues[turn["id"]].dialogue.history) // 2 for turn in session.turns]


def test_a_reply_reads_the_turns_since_its_subject_began(pocket, begins, tmp_path):
    texts = ["My knee hurts.", "Since a run.", "I like tea.", "Green tea.", "And milk?", "Who is Hamlet?", "A prince?"]
    begins |= {texts[2], texts[5]}
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        assert send(session, *texts[:6]) == [0, 1, 0, 1, 2, 0]
        assert [text for role, text in session.history() if role == "user"] == [texts[5]]
    assert read_state(tmp_path).subject_turns == session.turns[-1:]
    with ChatSession(pocket, tmp_path) as session:  # tomorrow
        assert send(session, texts[6])[-1] == 1
        session.undo()
        session.undo()
        assert [text for role, text in session.history() if role == "user"] == texts[2:5]
        session.open_conversation()
        assert send(session, "h", "i") == [0, 1]


def test_a_long_subject_drops_its_older_half(pocket, begins, tmp_path):
    begins.add("2")
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        counts = send(session, *map(str, range(11)))
    half = MAX_PROMPT_TURNS // 2
    assert counts == [0, 1, *range(MAX_PROMPT_TURNS + 1), half, half + 1]


def test_another_reply_reads_the_same_turns(pocket, begins, tmp_path, monkeypatch):
    begins.add("b")
    shown = []
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        send(session, "a", "b", "c")
        monkeypatch.setattr(ChatSession, "plan_reply", lambda self, d, **_: shown.append(d) or ReplyPlan(d))
        list(session.retry(ReplyOptions(max_tokens=6, temperature=1.5, seed=3)))
    assert [text for role, text in shown[0].history if role == "user"] == ["b"]


def test_another_try_of_the_seventh_turn_reads_what_the_first_one_read(pocket, begins, tmp_path, monkeypatch):
    shown = []
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        assert send(session, *map(str, range(7)))[-1] == 6
        monkeypatch.setattr(ChatSession, "plan_reply", lambda self, d, **_: shown.append(d) or ReplyPlan(d))
        list(session.retry(ReplyOptions(max_tokens=6, temperature=1.5, seed=3)))
    assert len(shown[0].history) == 12


def test_undo_of_a_repeated_text_cuts_no_earlier_turn(pocket, begins, tmp_path):
    texts = ["My knee hurts.", "Go on.", "And then?", "Go on."]
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        send(session, *texts)
        session.undo()
        assert [text for role, text in session.history() if role == "user"] == texts[:3]


def test_forgetting_elsewhere_leaves_what_a_reply_had_read(pocket, begins, tmp_path, monkeypatch):
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        send(session, "Hi")
        session.correct(session.turns[-1]["id"], "Good day.")
        monkeypatch.setattr(type(session.me), "retrieve_memories", lambda *given: [])
        send(session, "And you?")
        before = set(session.me.state.following_ids)
        session.open_conversation()
        send(session, "Hi")
        session.undo()
        assert before and session.me.state.following_ids == before


def test_a_correction_counts_in_place_of_the_reply(pocket, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(pocket, "is_large", True)
    monkeypatch.setattr(conversation, "continues_subject", lambda model, question: seen.append(question) or True)
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        send(session, "a")
        session.correct(session.turns[-1]["id"], "Better.")
        before = session.me.cost.forward
        send(session, "b")
    assert [d.history[-1][1] for d in seen] == ["Better."] and session.me.cost.forward > before


def test_a_program_and_a_small_model_keep_their_turns(pocket, tmp_path, monkeypatch):
    monkeypatch.setattr(conversation, "continues_subject", lambda model, question: pytest.fail("nobody asks"))
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        assert send(session, "a", "b", "c") == [0, 1, 2]
        monkeypatch.setattr(pocket, "is_large", True)
        "".join(session.say("d", history=TALK, options=SHORT))
        assert tuple(session.reply.dialogue.history) == tuple(TALK)


def test_the_cost_of_looking_is_the_persons(pocket, tmp_path, monkeypatch):
    monkeypatch.setattr(pocket, "is_large", True)
    costs = []
    for find in (conversation.continues_subject, lambda model, question: True):
        monkeypatch.setattr(conversation, "continues_subject", find)
        with ChatSession(pocket, tmp_path / str(len(costs)), buffer=Buffer(8)) as session:
            send(session, "a")
            before = session.me.cost.tokens
            session.find_subject("And then?")
            costs.append(session.me.cost.tokens - before)
    assert costs[0] > costs[1] == 0


def test_replies_that_read_a_forgotten_turn_go_unless_the_user_reacted(pocket, begins, tmp_path):
    texts = ["My knee hurts.", "Since a run.", "And now?", "I like tea.", "Since a run."]
    begins.add("I like tea.")
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        send(session, texts[1])
        other = session.turns[0]["id"]  # another talk with equal words
        session.open_conversation()
        send(session, *texts)
        session.correct(session.turns[2]["id"], "Rest.")
        report = session.forget("knee")
        assert [turn["prompt"] for turn in session.turns] == texts[2:] and (report.replies, report.reacted) == (1, 1)
        rows = session.me.memory.dialogues
        assert [len(rows[turn["id"]].dialogue.history) for turn in session.turns] == [0, 0, 2] and other in rows
    assert "2 turns of the talk" in str(report) and "quoted a forgotten one: 1 turn\nstays: 1 turn to" in str(report)


def test_a_reply_to_a_program_that_sent_forgotten_words_goes(pocket, tmp_path):
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        "".join(session.say("And now?", history=[("user", "My knee hurts."), ("assistant", "Oh.")], options=SHORT))
        "".join(session.say("And now?", history=[("user", "My hip hurts."), ("assistant", "Oh.")], options=SHORT))
        assert session.forget("knee").replies == 1
        assert [row.dialogue.history[0][1] for row in session.me.memory.dialogues.values()] == ["My hip hurts."]


PROSE = "We sell ripe fruit from many warm countries."
PLAIN = {
    PROSE: [PROSE],
    f"{PROSE} They all taste sweet.": [f"{PROSE} They all taste sweet."],
    "Too short to count here.": [],
    f"It costs 5 euros a week. {PROSE}": [PROSE],
    f"Read https://example.org for more about it. {PROSE}": [PROSE],
    f"Here you are:\n```\nthe code of a long poem in words\n```\n{PROSE}": [PROSE],
    "Call print(x) to see what the list of names is.": [],
    "Use the name `names` for the list of all names.": [],
    f"- {PROSE}\n* {PROSE}\n• {PROSE}": [],
    f"See www.example.org for all that we have. {PROSE}": [PROSE],
    f"Have a lovely day, and write to me soon. {PROSE}": [PROSE],
    "": [],
}


@pytest.mark.parametrize("text", PLAIN)
def test_only_plain_sentences_of_six_words_or_more_cost(text):
    assert find_prose(text, {"Have a lovely day, and write to me soon."}) == PLAIN[text]


def test_the_prose_of_earlier_replies_is_labelled_unless_the_message_asks_for_it():
    sign_off = "Have a lovely day, and write to me soon."
    talk = [("user", "What do you sell?"), ("assistant", f"{PROSE}\n{sign_off}"), ("user", "Is it late?")]
    talk += [("assistant", "No.")]
    read = lambda prompt, history=talk: label_replies(Dialogue(prompt, "", history), [f"Yes. {sign_off}"])
    assert get_examples(read("And where do you sell it?")).replies == (PROSE,)
    assert EXAMPLES not in read("Shorter, please.").labels and EXAMPLES not in read("Hi", ()).labels
    assert get_examples(read("What do you sell?")).replies == (), "the same question may get the same reply"


def test_forgetting_takes_only_replies_that_read_the_very_turn(pocket, begins, tmp_path):
    "Equal messages of a talk, of programs and of system prompts are told apart."
    begins |= {"Hello there.", "Be brief."}
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        send(session, "Hello there.", "Hello there.", "Name a tree.")  # it read the second one only
        others = [("user", "Hello there."), ("assistant", "Hi, I am another program.")]
        "".join(session.say("And now?", history=others, options=SHORT))
        first = session.turns[0]["id"]
        assert session.forget(ids=[first]).replies == 0 and len(session.turns) == 2
        "".join(session.say("Be brief.", history=[], options=SHORT))
        told = session.newest_id
        "".join(session.say("What is a river?", history=[("system", "Be brief.")], options=SHORT))
        assert session.forget(ids=[told]).replies == 0
        "".join(session.say("What is a river?", history=[("system", "Write little.")], options=SHORT))
        assert session.forget("little").replies == 0
        assert [row.dialogue.prompt for row in session.me.memory.dialogues.values()][-1] == "What is a river?"


def test_a_reply_that_read_another_try_goes_and_another_try_is_no_reaction(pocket, begins, tmp_path):
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        send(session, "My knee hurts.")
        list(session.retry(ReplyOptions(max_tokens=6, temperature=1.5, seed=3)))
        send(session, "And now?", "And then?")
        list(session.retry(ReplyOptions(max_tokens=6, temperature=1.5, seed=5)))
        report = session.forget(ids=[session.turns[0]["id"]])
        assert (report.replies, report.reacted, session.turns) == (2, 0, [])


def test_forgetting_goes_on_to_replies_that_read_only_replies_that_go(pocket, begins, tmp_path):
    "The last reply of a long subject no longer read its first turn, and a copy of a reply goes with it."
    with ChatSession(pocket, tmp_path, buffer=Buffer(16)) as session:
        send(session, "My knee hurts.", *(f"And then {number}?" for number in range(8)))
        newest = session.me.memory.dialogues[session.newest_id].dialogue
        assert newest.history[0][1] != "My knee hurts."
        session.me.observe(Dialogue("A copy.", "Of it.", id="copy", parents=(newest.id,)))
        assert session.forget("knee").replies == 8 and not session.me.memory.dialogues


def test_an_inferred_reaction_keeps_no_reply_that_read_a_forgotten_turn(pocket, begins, tmp_path):
    with ChatSession(pocket, tmp_path, buffer=Buffer(8)) as session:
        send(session, "My knee hurts.", "And now?")
        session.me.react(session.newest_id, "thumb_up", is_given=False, probability=0.9, time=9.0)
        report = session.forget("knee")
        assert (report.replies, report.reacted) == (1, 0)
