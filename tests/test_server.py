"The server on a real port: the protocol, its official client, the page's endpoints, and what it refuses."

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import ask, chat_server, write_without_end

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from personal_llm.extras import server
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import ASSETS
from personal_llm.base.replies import ReplyStream
from personal_llm.data.reading import read_dialogues
from personal_llm.device.archive import Archive
from personal_llm.device.chat import ChatSession
from personal_llm.device.evidence import describe_state

ROOT = Path(__file__).resolve().parent.parent
BETTER = "Dear friend, rest today and call me tonight."
ALL_REPLIES = "Applies to all replies: your correction of “My knee hurts.”"
SECRET = "Zanzibar"  # a word of the user
COMPLETIONS = "/v1/chat/completions"


@pytest.fixture
def served(tmp_path, request):
    with chat_server(tmp_path / "me", host=getattr(request, "param", "127.0.0.1")) as running:
        yield running


def messages(*texts):
    return [dict(role=("user", "assistant")[place % 2], content=text) for place, text in enumerate(texts)]


def complete(running, text="My knee hurts.", **fields):
    body = dict(model="personal", messages=messages(text), max_tokens=4) | fields
    status, answer = running.ask("POST", COMPLETIONS, body)
    assert status == 200, answer
    return answer


def read_events(text):
    return [json.loads(part[6:]) for part in text.split("\n\n") if part and part != "data: [DONE]"]


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


# the protocol


def test_a_header_lets_corrections_apply_beside_a_programs_system_prompt(served):
    id = complete(served)["me"]["id"]
    assert served.ask("POST", "/me/react", dict(id=id, kind="better", text=BETTER, scope="everywhere"))[0] == 200
    talk = [dict(role="developer", content="Translate into French."), *messages("My knee hurts again.")]
    body = dict(model="personal", messages=talk, max_tokens=4)
    asked = [served.ask("POST", COMPLETIONS, body)[1]["me"]]
    asked += [served.ask("POST", COMPLETIONS, body, **{"X-Personal-Memory": "yes"})[1]["me"]]
    assert ["1 answer of yours" in row["source"] for row in asked] == [False, True]


def test_the_openai_client_talks_streams_stops_and_counts(served):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.address}/v1", api_key=served.token, max_retries=0)
    assert [model.id for model in client.models.list()] == ["personal", "personal-base"]
    create = client.chat.completions.create
    talk = [dict(role="system", content="Be kind."), *messages("Hello.", "Hello!", "What is a knee?")]
    whole = create(model="personal-base", messages=talk, max_tokens=16)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens <= 16 + 64
    options = dict(stream=True, stream_options=dict(include_usage=True))
    chunks = list(create(model="personal-base", messages=talk, max_tokens=16, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all("usage" in c.model_fields_set and c.usage is None for c in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    stop = text[len(text) // 2 :][:2]
    cut = create(model="personal-base", messages=talk, max_tokens=16, stop=[stop])
    assert cut.choices[0].message.content.strip() == text.partition(stop)[0].strip()
    hot = dict(temperature=1.5, max_tokens=12, messages=talk, model="personal-base")
    assert create(seed=1, **hot).choices[0].message == create(seed=1, **hot).choices[0].message
    assert len({create(seed=seed, **hot).choices[0].message.content for seed in range(5)}) > 1
    assert client.models.retrieve("personal").id == "personal"
    with pytest.raises(openai.NotFoundError, match="only personal and personal-base"):
        client.models.retrieve("gpt-4")
    errors = ((openai.NotFoundError, dict(model="gpt-4")), (openai.BadRequestError, dict(n=2)))
    for error, change in errors:
        with pytest.raises(error):
            create(**dict(model="personal", messages=talk) | change)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.address}/v1", api_key="no", max_retries=0).models.list()


FIELDS_OF_REQUESTS = json.loads(Path(__file__).with_name("requests.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_each_field_is_followed_ignored_or_refused_by_name(served, is_stream):
    base = dict(model="personal", messages=messages("Hello"), max_tokens=2, stream=is_stream)
    for change in FIELDS_OF_REQUESTS["supported"]:
        status, answer = served.ask("POST", COMPLETIONS, base | change)
        assert status == 200 and (is_stream or answer["choices"][0]["message"]["content"] is not None), change
    before = describe_state(served.session.me.state)["stored"]
    for change in FIELDS_OF_REQUESTS["refused"]:
        status, answer = served.ask("POST", COMPLETIONS, base | change)
        assert status == 400 and answer["error"]["message"].startswith(next(iter(change))), (change, answer)
        assert set(answer["error"]) == {"message", "type", "param", "code"} and "\n" not in answer["error"]["message"]
    for body in (b"", b"x", b"[]", b'"x"', b'{"\\ud800": 1}', b"\xff", b"[" * 5000):
        assert served.ask("POST", COMPLETIONS, body)[0] == 400, body[:20]
    told = served.ask("POST", COMPLETIONS, b'{"model": ')[1]["error"]["message"]
    assert told == "the body is no valid JSON, from character 10 on"
    assert describe_state(served.session.me.state)["stored"] == before


@pytest.mark.parametrize(
    "earlier",
    [
        dict(role="tool", tool_call_id="1", content="noon"),
        dict(role="assistant", content=None, tool_calls=[dict(id="1", type="function")]),
        dict(role="user", content=[dict(type="text", text="Look"), dict(type="image_url", image_url={})]),
    ],
)
def test_a_reply_says_what_of_the_history_it_did_not_read(served, earlier):
    for model in server.MODELS:
        me = complete(served, model=model, messages=[*messages("Hi", "Hello"), earlier, *messages("And now?")])["me"]
        assert me["note"] == "left out: tools, pictures, sound or files of 1 message"
    assert "note" not in complete(served, messages=messages("Hi", "Hello", "And now?"))["me"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "robot"])
parts = st.fixed_dictionaries(dict(type=st.sampled_from(["text", "image_url"])), optional=dict(text=json_values))
contents = json_values | st.text(max_size=20) | st.lists(parts, max_size=3)
turns = st.fixed_dictionaries({}, optional=dict(role=roles, content=contents, name=json_values, tool_calls=json_values))
FIELDS = [*server.CompletionRequest.model_fields, *server.UNSUPPORTED, "tool_choice", "metadata", "unknown"]
others = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3)
talks = st.lists(turns, max_size=4).map(lambda history: [*history, dict(role="user", content="Hello")])


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    with chat_server(tmp_path_factory.mktemp("fuzz") / "me") as running:
        yield running


completions = st.tuples(talks | json_values, others).map(
    lambda drawn: dict(model="personal", messages=drawn[0], max_tokens=1, user="ann") | drawn[1]
)
changes = st.dictionaries(st.sampled_from([*server.Change.model_fields, "unknown"]), json_values, max_size=4)
PATHS_OF_CHANGES = st.sampled_from([f"/me/{name}" for name in server.CHANGES if name != "learn"])


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.tuples(st.just(COMPLETIONS), completions) | st.tuples(PATHS_OF_CHANGES, changes | json_values))
def test_no_value_is_an_error_of_the_server_and_a_refusal_changes_nothing(fuzzed, request_):
    path, fields = request_
    events = len(fuzzed.session.me.archive.events)
    status, answer = fuzzed.ask("POST", path, json.dumps(fields).encode())
    assert status in ((200, 400, 403, 404) if path == COMPLETIONS else (200, 400)), (status, answer)
    assert "an error of the server" not in str(answer)
    assert status == 200 or len(fuzzed.session.me.archive.events) == events


# one person


def test_the_owner_is_kept_over_a_restart(tmp_path):
    "The first name is the owner's: another name is neither served nor stored, and a request without one is served."
    stored = []
    for name, status in (("ann", 200), ("bob", 403), ("ann", 200)):
        ways = ((dict(user=name), {}), (dict(safety_identifier=name), {}), ({}, {"X-OpenWebUI-User-Id": name}))
        with chat_server(tmp_path / "me") as running:
            for number, (fields, headers) in enumerate(ways):
                text = f"This is message {number} of {len(stored)}."
                body = dict(model="personal", messages=messages(text), max_tokens=1) | fields
                given, answer = running.ask("POST", COMPLETIONS, body, **headers)
                assert given == status and (status == 200 or "another folder" in answer["error"]["message"]), answer
            complete(running)
            stored.append(describe_state(running.session.me.state)["stored"])
    assert stored == [4, 5, 9]
    content = b"".join(path.read_bytes() for path in (tmp_path / "me").iterdir())
    assert b"ann" not in content, "the name itself is not stored"


def test_a_request_that_does_not_fit_is_refused_by_its_code_and_our_own_cut_is_told(served):
    long = "word " * served.session.model.max_length
    for talk in ([dict(role="system", content=long), *messages("Hello")], messages(long), messages(long, "Yes.", "Hi")):
        for model in server.MODELS:
            status, answer = served.ask("POST", COMPLETIONS, dict(model=model, messages=talk))
            assert (status, answer["error"]["code"]) == (400, "context_length_exceeded"), answer
            assert answer["error"]["message"].startswith("messages:")
    assert describe_state(served.session.me.state)["stored"] == 0
    me = complete(served, "Hello")["me"]
    assert me["cut"] == 0 and me["source"] == ""
    me = complete(served, long, talk="")["me"]
    assert me["cut"] > 0 and f"{me['cut']} tokens" in me["source"]


def test_tasks_of_a_program_and_what_it_does_not_store_are_not_kept(served):
    complete(served, f"I live in {SECRET}.", store=False)
    complete(served, f"### Task:\nMake a title.\n### Talk:\nUSER: I live in {SECRET}.")
    complete(served, f"Write a title.\n<chat_history>\nUSER: I live in {SECRET}.\n</chat_history>")
    complete(served, f"I live in {SECRET}.", model="personal-base")
    assert describe_state(served.session.me.state)["stored"] == 0
    assert complete(served, "I live here.")["me"]["id"]
    assert describe_state(served.session.me.state)["stored"] == 1
    assert "not stored" in complete(served, "### Task:\nMake a title.")["me"]["note"]
    for text in ("### Task:\nbuy bread", "What does <chat_history> mean?"):
        assert complete(served, text, talk="")["me"]["id"], "a message of the page is the person's own"
    assert describe_state(served.session.me.state)["stored"] == 3


def test_the_base_reads_no_answer_and_the_personal_model_does(served, monkeypatch):
    read = []
    write = ReplyStream.__iter__
    monkeypatch.setattr(ReplyStream, "__iter__", lambda self: (read.append(str(self.dialogue.history)), write(self))[1])
    id = complete(served)["me"]["id"]
    served.ask("POST", "/me/react", dict(id=id, kind="better", text=BETTER))
    answer = complete(served, "My knee hurts again.")
    assert BETTER in read[-1] and "1 answer" in answer["me"]["source"]
    assert answer["me"]["reasons"] == ["similar to “My knee hurts.”, which you corrected"]
    for change in (dict(model="personal-base"), dict(messages=messages("### Task:\nMy knee hurts again."))):
        me = complete(served, **dict(messages=messages("My knee hurts again.")) | change)["me"]
        assert not me or "not stored" in me["note"]
        assert BETTER not in read[-1]


# the page's endpoints


def test_a_whole_day(tmp_path):
    with chat_server(tmp_path / "me") as running:
        ask = running.ask
        first = complete(running, talk="")["me"]
        second = complete(running, "What shall I cook?", talk=first["talk"])["me"]
        assert first["talk"] == second["talk"]
        assert ask("POST", "/me/react", dict(id=first["id"], kind="better", text=BETTER))[1]["kind"] == "better"
        assert ask("POST", "/me/scope", dict(id=first["id"], scope="everywhere"))[1] == dict(message=ALL_REPLIES)
        assert ask("GET", "/me/status")[1]["undo"] == "“All replies” for “My knee hurts.”"
        act = ask("GET", "/me/status")[1]["act"]
        status, answer = ask("POST", "/me/take_back", dict(number=act - 1))  # a page that doesn't know the newest act
        assert status == 400 and "something newer was done" in answer["error"]["message"]
        taken = ask("POST", "/me/take_back", dict(number=act))[1]
        assert taken["message"].startswith("taken back: “All replies”")
        assert ask("GET", "/me/status")[1]["undo"] == "your correction of “My knee hurts.”"
        assert ask("POST", "/me/react", dict(id=second["id"], kind="up"))[1]["kind"] == "up"
        shown = ask("GET", f"/me/talks?talk={first['talk']}")[1]
        assert [turn["reply"] for turn in shown["turns"]][0] == BETTER
        assert [turn["reaction"] for turn in shown["turns"]] == ["better", "up"]
        assert [turn["is_own"] for turn in shown["turns"]] == [True, False]
        assert ask("GET", "/me/status")[1]["undo"] == "your thumbs-up for the reply to “What shall I cook?”"
        rows = ask("GET", f"/me/export?talk={first['talk']}")[1]["rows"]
        saved = [Dialogue.from_dict(row) for row in rows]
        assert (saved[0].prompt, saved[0].response, len(saved)) == ("My knee hurts.", BETTER, 2)
        file = tmp_path / "talk.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        found = read_dialogues(file)
        assert list(found) == saved and not found.notes() and found[0].origin == "annotated"
        assert [len(d.history) for d in found] == [0, 2]
        other = complete(running, "I have a dog, Biscuit.", talk="")["me"]
        assert other["talk"] != first["talk"]
        titles = [row["title"] for row in ask("GET", "/me/talks")[1]["talks"]]
        assert titles == ["I have a dog, Biscuit.", "My knee hurts."]
        known = ask("GET", "/me/known")[1]
        assert {row["reply"] for row in known["answers"]} >= {BETTER}
        assert [row["prompt"] for row in known["statements"]] == ["I have a dog, Biscuit.", "My knee hurts."]
        assert ask("POST", "/me/react", dict(kind="always", text=f"In short, as in {SECRET}."))[0] == 200
        assert ask("GET", "/me/known")[1]["instructions"][0]["text"] == f"In short, as in {SECRET}."
        assert ask("GET", "/me/status")[1]["undo"].startswith("your instruction “In short, as in")
        assert ask("GET", "/me/status")[1]["unlearned"] == 2
        ask("POST", "/me/react", dict(id=first["id"], kind="up"))
        assert ask("GET", f"/me/talks?talk={first['talk']}")[1]["turns"][0]["is_own"], "a liked correction is still one"
    with chat_server(tmp_path / "me") as running:  # tomorrow
        ask = running.ask
        turns = ask("GET", f"/me/talks?talk={first['talk']}")[1]["turns"]
        assert [turn["prompt"] for turn in turns] == ["My knee hurts.", "What shall I cook?"]
        plan = ask("POST", "/me/forget", dict(text="KNEE", dry=True))[1]
        assert plan["dialogues"] == [first["id"]] and len(plan["lines"]) == 2, "the reply after it had read it"
        assert len(ask("GET", "/me/known")[1]["answers"]) == 2, "a dry run changes nothing"
        assert ask("POST", "/me/forget", dict(text="KNEE"))[1]["lines"] == plan["lines"]
        assert ask("POST", "/me/forget", dict(talk=other["talk"]))[1]["dialogues"] == [other["id"]]
        assert ask("POST", "/me/forget", dict(everything=True))[0] == 200
        assert ask("GET", "/me/known")[1] == dict(instructions=[], answers=[], statements=[], habits=[])
    content = b"".join(path.read_bytes() for path in (tmp_path / "me").rglob("*") if path.is_file())
    assert not [word for word in (b"knee", b"Biscuit", b"cook", BETTER.encode(), SECRET.encode()) if word in content]


def test_another_try_takes_the_place_of_a_turn_and_goes_with_it(tmp_path):
    "An edited message, and the turns after it, leave the talk; forget finds them all, also after a restart."
    with chat_server(tmp_path / "me") as running:
        first = complete(running, f"I live in {SECRET}.", talk="")["me"]
        second = complete(running, "What is tea?", talk=first["talk"])["me"]
        wrong = dict(model="personal", messages=messages("Hi"), talk=first["talk"], replaces="x")
        assert "not in the chat" in running.ask("POST", COMPLETIONS, wrong)[1]["error"]["message"]
        third = complete(running, "I live here.", talk=first["talk"], replaces=first["id"])["me"]
        state = running.session.me.state
        assert [d.prompt for d in running.session.turns] == ["I live here."]
        assert state.replaced == {first["id"]: third["id"], second["id"]: third["id"]}
        assert not {first["id"], second["id"]} & {*state.pending} and len(state.list_own()) == 1
    with chat_server(tmp_path / "me") as running:
        assert [turn["id"] for turn in running.ask("GET", f"/me/talks?talk={first['talk']}")[1]["turns"]] == [
            third["id"]
        ]
        gone = running.ask("POST", "/me/forget", dict(talk=first["talk"]))[1]["dialogues"]
        assert gone == [first["id"], second["id"], third["id"]]
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in (tmp_path / "me").iterdir())


def test_a_reply_that_came_later_in_the_talk_may_stay_and_one_that_was_forgotten_comes_again_in_its_place(served):
    ask = served.ask
    talk = complete(served, "I have a dog, Biscuit.", talk="")["me"]["talk"]
    ids = [complete(served, text, talk=talk)["me"]["id"] for text in ("What is tea?", "Tell me a joke.")]
    for id, kind in zip(ids, ("down", "up")):
        ask("POST", "/me/react", dict(id=id, kind=kind))
    wanted = dict(ids=[served.session.turns[0].id])
    rows = ask("POST", "/me/forget", wanted | dict(dry=True))[1]["rows"]
    assert [(row["id"], row["can_stay"], row["is_liked"]) for row in rows] == [(ids[0], 1, 0), (ids[1], 1, 1)]
    ask("POST", "/me/forget", wanted | dict(keep=[ids[1]]))
    assert [bool(d.response) for d in served.session.turns] == [False, True]
    assert complete(served, "What is tea?", talk=talk, replaces=ids[0])["me"]["id"] == ids[0]
    assert [d.prompt for d in served.session.turns if d.response] == ["What is tea?", "Tell me a joke."]
    assert ids[0] in served.session.me.state.pending


def read_all(running) -> dict:
    "Everything of a folder that the person or the model wrote: (id, what) -> text."
    state = running.session.me.state
    texts = {}
    for id, d in state.archive.dialogues.items():
        texts |= {(id, "prompt"): d.prompt, (id, "reply"): d.response}
        texts[id, "own"] = state.newest(id).response if state.newest(id).origin == "annotated" else ""
    return {key: text for key, text in texts.items() if text}


@pytest.mark.parametrize("seed", range(6))
def test_what_the_dialog_lists_is_what_goes(served, seed):
    "Chats in which some replies were corrected or liked; one message, a chat or a word goes, and some replies stay."
    random = Random(seed)
    ask = served.ask
    talks = [""]
    ids = []
    for number in range(9):
        text = random.choice(
            ["My knee hurts.", "My knee hurts again.", "What is tea?", "I have a dog.", "A joke, please."]
        )
        me = complete(served, text, talk=random.choice(talks))["me"]
        talks = [*{*talks, me["talk"]}]
        ids.append(me["id"])
        kind = random.choice(["", "", "up", "better"])
        if kind:
            better = f"Dear friend, number {number}." * (kind == "better")
            assert ask("POST", "/me/react", dict(id=random.choice(ids), kind=kind, text=better))[0] == 200
    named = [
        dict(ids=[random.choice(ids)]),
        dict(talk=random.choice(talks[1:])),
        dict(text="knee"),
        dict(text="friend"),
    ]
    wanted = random.choice(named)
    plan = ask("POST", "/me/forget", wanted | dict(dry=True))[1]
    free = [row["id"] for row in plan["rows"] if row["can_stay"]]
    keep = [id for id in free if random.random() < 0.5]
    kept = ask("POST", "/me/forget", wanted | dict(dry=True, keep=keep))[1]  # as the page asks again after each tick
    before = read_all(served)
    listed = {key for key in before if key[0] in kept["dialogues"]} | {(id, "reply") for id in kept["replies"]}
    assert not {*keep} & {*kept["replies"]} and {*kept["replies"]} <= {row["id"] for row in plan["rows"]}
    shown = {row["id"]: row["reply"] for row in plan["rows"]}
    assert all(before[id, "reply"].startswith(shown[id]) for id in kept["replies"])
    assert ask("POST", "/me/forget", wanted | dict(keep=keep))[1]["lines"] == kept["lines"]
    assert {key for key in before if key not in read_all(served)} == listed


def test_a_name_of_a_talk_is_found_kept_and_forgotten(served):
    talk = complete(served, "My knee hurts.", talk="")["me"]["talk"]
    complete(served, "What is tea?", talk="")
    complete(served, "And my toe?", talk=talk)
    titles = [row["title"] for row in served.ask("GET", "/me/talks")[1]["talks"]]
    assert titles == ["My knee hurts.", "What is tea?"], "the one with the newest turn first"
    assert served.ask("POST", "/me/name", dict(talk=talk, text=SECRET)) == (200, {})
    for words in ("zanzi", "KNEE"):
        assert [row["title"] for row in served.ask("GET", f"/me/talks?words={words}")[1]["talks"]] == [SECRET]
    forgotten = served.ask("POST", "/me/forget", dict(text=SECRET))[1]
    assert len(forgotten["dialogues"]) == 1 and f"in the chat named “{SECRET}”" in forgotten["lines"][0]
    assert [row["title"] for row in served.ask("GET", "/me/talks")[1]["talks"]] == ["And my toe?", "What is tea?"]


def test_a_halted_reply_is_stored_as_far_as_it_came(served, monkeypatch):
    pieces = write_without_end(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(complete, served, talk="")
        until(lambda: pieces.count > 2)
        assert served.ask("POST", "/me/halt", {}) == (200, {})
        text = asked.result(60)["choices"][0]["message"]["content"]
    assert text.split()[:3] == ["0", "1", "2"] and [d.response.strip() for d in served.session.turns] == [text.strip()]


def test_a_message_is_stored_when_it_is_sent_and_its_reply_goes_on_without_the_page(served, monkeypatch):
    pieces = write_without_end(monkeypatch)
    body = json.dumps(dict(model="personal", messages=messages("My knee hurts."), stream=True, talk="")).encode()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("POST", COMPLETIONS, body, {"Authorization": f"Bearer {served.token}"})
    until(lambda: pieces.count > 5)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    (turn,) = served.ask("GET", "/me/talks")[1]["turns"]
    assert turn["prompt"] == "My knee hurts." and turn["is_writing"] and not turn["is_cut"]
    assert turn["reply"].startswith("0 1 2 3 "), "as far as it came"
    seen = pieces.count
    until(lambda: pieces.count > seen + 2)
    pieces.stop.set()
    (whole,) = until(
        lambda: (turns := served.ask("GET", "/me/talks")[1]["turns"]) and not turns[0]["is_writing"] and turns
    )
    assert whole["reply"].startswith(turn["reply"]) and len(whole["reply"]) > len(turn["reply"])
    assert whole["id"] == turn["id"] and not whole["is_cut"]


def test_a_message_whose_reply_was_interrupted_is_answered_in_its_place_also_after_a_restart(tmp_path, monkeypatch):
    with chat_server(tmp_path / "me") as running, pytest.MonkeyPatch.context() as patch:
        pieces = write_without_end(patch)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(running.ask, "POST", COMPLETIONS, dict(model="personal", messages=messages("Hi"), talk=""))
            until(lambda: pieces.count > 2)
            running.close()
    with chat_server(tmp_path / "me") as running:
        shown = running.ask("GET", "/me/talks")[1]
        (turn,) = shown["turns"]
        assert (turn["prompt"], turn["reply"], turn["is_cut"]) == ("Hi", "", True)
        assert complete(running, "Hi", talk=shown["talk"], replaces=turn["id"])["me"]["id"] == turn["id"]
        (turn,) = running.ask("GET", "/me/talks")[1]["turns"]
        assert turn["reply"] and not turn["is_cut"]
        assert not running.session.me.state.replaced


def test_a_talk_that_was_forgotten_and_an_unknown_reply_are_one_line(served):
    talk = complete(served, talk="")["me"]["talk"]
    served.ask("POST", "/me/forget", dict(talk=talk))
    for path, body in (
        (COMPLETIONS, dict(model="personal", messages=messages("Hi"), talk=talk)),
        (COMPLETIONS, dict(model="personal", messages=messages("Hi"), talk=talk, stream=True)),
        ("/me/react", dict(id="a", kind="up")),
        ("/me/react", dict(id="a", kind="sideways")),
        ("/me/forget", {}),
        ("/me/undo", {}),
        ("/me/learn", {}),
    ):
        status, answer = served.ask("POST", path, body)
        assert status == 400 and "\n" not in answer["error"]["message"], (path, answer)


def test_learning_goes_on_in_the_background_and_the_reply_uses_it(tmp_path):
    from personal_llm.tuning.config import TuningConfig

    with chat_server(tmp_path / "me", config=TuningConfig(steps=4), idle_seconds=3600) as running:
        ask = running.ask
        for text in ("My knee hurts.", "My back hurts."):
            ask("POST", "/me/react", dict(id=complete(running, text)["me"]["id"], kind="better", text=BETTER))
        assert ask("POST", "/me/learn")[1]["message"]
        assert ask("POST", "/me/learn")[0] == 400, "one at a time"
        assert complete(running, "How are you?")["choices"][0]["message"]["content"]
        told = []
        status = until(
            lambda: (s := ask("GET", "/me/status")[1], told.extend(s["messages"])) and not s["is_learning"] and s
        )
        assert status["finetunes"] == 1 and status["unlearned"] == 0 and status["seconds"] > 0, status
        learned = [line for line in told if line.startswith("learned")]
        assert learned == ["learned the replies you wanted to 2 messages, the newest “My back hurts.”"]
        assert (status["way"], status["undo"]) == ("undo", "what was learned last")
        me = complete(running, "My knee hurts again.")["me"]
        assert "fine-tune" in me["source"]
        ask("POST", "/me/react", dict(id=me["id"], kind="up"))
        assert ask("GET", "/me/status")[1]["way"] == "take_back", "the newest act comes first"
        assert ask("POST", "/me/undo")[0] == 200 and ask("GET", "/me/status")[1]["finetunes"] == 0
        assert ask("POST", "/me/learn")[0] == 200 and ask("POST", "/me/stop")[0] == 200
        status = ask("GET", "/me/status")[1]
        assert not status["is_learning"] and status["finetunes"] == 0


# many at once


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_stops_its_reply(served, monkeypatch, is_stream):
    pieces = write_without_end(monkeypatch)
    body = json.dumps(dict(model="personal", messages=messages("Hello"), stream=is_stream)).encode()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("POST", COMPLETIONS, body, {"Authorization": f"Bearer {served.token}"})
    until(lambda: pieces.count > 5)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert pieces.left.wait(60)
    monkeypatch.undo()
    assert complete(served)["me"]["id"], "the next one is served"
    assert describe_state(served.session.me.state)["stored"] == 1


def test_reads_go_between_the_pieces_of_a_reply_and_changes_wait(served, monkeypatch):
    id = complete(served)["me"]["id"]
    pieces = write_without_end(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        reply = pool.submit(complete, served, "Hello")
        until(lambda: pieces.count)
        change = pool.submit(served.ask, "POST", "/me/react", dict(id=id, kind="up"))
        statuses = [served.ask("GET", "/me/known")[0] for _ in range(20)]  # by then the change has arrived
        is_done = reply.done() or change.done()
        pieces.stop.set()
        assert statuses == [200] * 20 and not is_done
        assert change.result(60)[0] == 200 and reply.result(60)


def test_many_clients_and_a_deletion_leave_a_whole_state(tmp_path):
    "Sixteen clients; each sees its own reply, and every acknowledged turn is stored."
    ids = []
    with chat_server(tmp_path / "me") as running:

        def talk(number: int):
            for turn in range(2):
                ids.append(complete(running, f"This is message {number} {turn}.", stream=False)["me"]["id"])
                running.ask("POST", "/me/react", dict(id=ids[-1], kind="up"))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(talk, range(16)))
        gone = running.ask("POST", "/me/forget", dict(text="message 3 "))[1]["dialogues"]
    archive = Archive(tmp_path / "me")
    assert len(set(ids)) == 32 and len(gone) == 2
    assert {*archive.dialogues} == {*ids} - {*gone}
    archive.close()


# what it refuses


def test_every_request_for_data_needs_the_token(served):
    paths = [("GET", path) for path in ("/v1/models", "/me/talks", "/me/known", "/me/status", "/nothing")]
    paths += [("POST", path) for path in (COMPLETIONS, "/me/forget", "/me/learn")]
    wrong = [None, "", "Bearer", "Bearer ", "Bearer no", "Bearer é"]
    wrong += [f"Bearer {served.token}x", f"Bearer {served.token[:-1]}"]
    for method, path in paths:
        for value in wrong:
            headers = dict(Authorization=value and value.encode("latin-1"))
            assert served.ask(method, path, {} if method == "POST" else None, **headers)[0] == 401, (path, value)
    assert served.ask("GET", "/v1/models", Authorization=f"bearer  {served.token} ")[0] == 200


def read_url_from_host(scope) -> str:
    "The path of `request.url` in Starlette before 0.47: a text with the header `Host` in front, cut as a URL."
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    return urlsplit(f"http://{host}{scope['path']}").path


PATHS = st.sampled_from(["/me/known", "/me/forget", "/v1/models", "/nothing", "//", "/me", "/page.js/", "/connect/x"])
PATHS |= st.text(max_size=8).map(lambda text: f"/{text}")
HOSTS = st.tuples(st.sampled_from(["127.0.0.1", "localhost", "[::1]", "evil"]), st.sampled_from(["", ":8484", ":x"]))
TAILS = st.sampled_from(["", "/", "/?x=", "/#", "/page.css?", "/connect#", "@", "\\", "/page.js;"]) | st.text(
    "/?#@:x. ", max_size=6
)


@settings(max_examples=400, deadline=None)
@given(
    PATHS, HOSTS, TAILS, st.sampled_from(["GET", "POST", "OPTIONS", "HEAD"]), st.sampled_from(["127.0.0.1", "0.0.0.0"])
)
def test_without_the_token_no_host_opens_a_path(path, host, tail, method, listens):
    "Whatever `Host` says, and whatever an older Starlette makes of it: a path outside of the public ones is closed."
    passed = []
    statuses = []

    async def app(scope, receive, send):
        passed.append(scope["path"])

    async def send(message):
        statuses.append(message.get("status"))

    headers = [(b"host", "".join([*host, tail]).encode("latin-1", "replace"))]
    scope = dict(type="http", method=method, path=path, headers=headers, query_string=b"", scheme="http")
    scope |= dict(server=("127.0.0.1", 8484), root_path="")
    with pytest.MonkeyPatch.context() as patch:
        old = property(lambda self: types.SimpleNamespace(path=read_url_from_host(self.scope)))
        patch.setattr("starlette.requests.HTTPConnection.url", old)
        asyncio.run(server.guard(app, "token-of-this-test", listens, "secret")(scope, None, send))
    if path in (*server.PUBLIC, "/connect"):
        assert passed or statuses[0] == 403
    else:
        assert not passed and statuses[0] in (401, 403)


def test_there_is_no_websocket_and_no_answer_allows_another_site(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    connection.request("GET", "/", headers=upgrade)
    response = connection.getresponse()
    assert response.status != 101
    assert not [name for name, _ in response.getheaders() if name.lower().startswith("access-control")]


LIMITS = [("/connect", 2**12), ("/me/react", 2**22), ("/v1/models", 2**12), (COMPLETIONS, 2**25)]
SIZES = [(path, f"Content-Length: {size}", size > most) for path, most in LIMITS for size in (most, most + 1)]


@pytest.mark.parametrize("path, header, is_refused", [*SIZES, (COMPLETIONS, "Transfer-Encoding: chunked", None)])
def test_each_path_has_a_limit_of_its_own_before_a_byte_is_read(served, path, header, is_refused):
    with socket.create_connection(("127.0.0.1", served.port), 60) as connection:
        lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{served.port}", header]
        lines += [f"Authorization: Bearer {served.token}"] * (path != "/connect")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        if is_refused is False:
            connection.sendall(b" " * int(header.split()[1]))
        answer = connection.recv(1000)
        assert (b" 413 " in answer, b" 411 " in answer) == (is_refused is True, is_refused is None)


def test_what_newer_clients_send_is_read_or_told(served):
    parts = [dict(role="user", content=[dict(type="input_text", text="My knee hurts.")])]
    body = dict(model="personal", messages=parts, max_tokens=1)
    assert served.ask("POST", COMPLETIONS, body)[0] == 200
    assert [*served.session.me.archive.dialogues.values()][-1].prompt == "My knee hurts."
    status, answer = served.ask("POST", COMPLETIONS, body | dict(stop=["x"] * 17))
    assert (status, answer["error"]["message"]) == (400, "stop: 17 texts; send 16 at most")


def test_the_page_is_public_empty_and_sealed(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    for path in server.PUBLIC:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
        headers = {name.lower(): value for name, value in response.getheaders()}
        assert response.status == 200 and served.token not in text
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "unsafe" not in headers["content-security-policy"]
    assert served.ask("GET", "/../server.py")[0] == 404 and served.ask("GET", "/%2e%2e/%2e%2e/app/server.py")[0] == 404


def test_the_page_writes_text_as_text_and_loads_nothing_from_elsewhere():
    files = [file for file in (ASSETS / "page").iterdir() if file.name != "library.js"]  # of others
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    script = "".join(text for name, text in texts.items() if name.endswith(".js"))
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
    assert not re.findall(r"https?://", "".join(texts.values())) and "<script>" not in texts["index.html"]
    assert not re.findall(r'\s(on\w+|style)="', texts["index.html"]), "no code and no style in the attributes"


def test_an_error_of_ours_shows_no_text(served, monkeypatch, capfd):
    def fail(*given, **fields):
        raise ZeroDivisionError(SECRET)
        yield

    monkeypatch.setattr(ChatSession, "say", fail)
    for is_stream in (False, True):
        body = dict(model="personal", messages=messages(SECRET), stream=is_stream)
        status, answer = served.ask("POST", COMPLETIONS, body)
        assert status == 500 and "ZeroDivisionError" in answer["error"]["message"]
        assert SECRET not in str(answer)
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err and printed.err.count("please report it") == 2


@pytest.mark.parametrize("model", server.MODELS)
@pytest.mark.parametrize("is_late", [False, True])
def test_a_panic_of_the_tokenizer_is_one_line(served, monkeypatch, is_late, model):
    class PanicException(BaseException):
        "As Rust's, no `Exception`."

    def write(self):
        yield from ["A"] * is_late
        raise PanicException("index out of bounds")

    monkeypatch.setattr(ReplyStream, "__iter__", write)
    for is_stream in (False, True):
        body = dict(model=model, messages=messages("Hello"), stream=is_stream)
        status, answer = served.ask("POST", COMPLETIONS, body)
        error = (read_events(answer)[-1] if status == 200 else answer)["error"]
        assert "index out of bounds" in error["message"] and "\n" not in error["message"]
        assert (status == 200) == (is_late and is_stream)
    monkeypatch.undo()
    assert complete(served, model=model)["choices"][0]["message"]["content"], "the next one is served"
    assert describe_state(served.session.me.state)["stored"] == (model == "personal")


def test_the_link_works_once(tmp_path):
    with chat_server(tmp_path / "me", code="code-of-the-link") as running:
        wrong = ("", "x", "code-of-the-lin")
        assert [running.ask("POST", "/connect", dict(text=text), Authorization=None)[0] for text in wrong] == [401] * 3
        link = dict(text="code-of-the-link")
        assert [*running.ask("POST", "/connect", link, Authorization=None)[1]] == ["key"]
        status, answer = running.ask("POST", "/connect", link, Authorization=None)
        assert status == 401 and "was used before" in answer["error"]["message"]
    with chat_server(tmp_path / "me") as running:
        assert running.ask("POST", "/connect", dict(text=""), Authorization=None)[0] == 401


def test_a_correction_that_is_too_long_is_marked_and_no_reply_says_that_it_used_it(served):
    first = complete(served, "What is a lake?", talk="")["me"]
    answer = served.ask("POST", "/me/react", dict(id=first["id"], kind="better", text="Water. " * 400))[1]
    assert answer["message"].startswith("your correction is too long")
    second = complete(served, "What is a small lake?", talk="")["me"]
    assert any("too long" in reason for reason in second["reasons"]) and second["source"].count("answer") == 0
    turns = [served.ask("GET", f"/me/talks?talk={me['talk']}")[1]["turns"][0] for me in (first, second)]
    assert turns[0]["length"].startswith("too long for replies")
    assert (turns[1]["read"], turns[1]["is_corrected"], turns[1]["is_silent"]) == ([], False, True)


COMMANDS_REFUSED = {"/drop x": "isn't a number", "/undo it": "takes no text", "/undp": "isn't a command"}
COMMANDS_REFUSED |= {"/quit": "close the page", "/forget knee": "the page does this itself", "hello": "isn't a command"}


def test_commands_of_the_terminal_work_on_the_page_and_are_no_messages(tmp_path):
    with chat_server(tmp_path / "me") as running:
        stored = running.session.state.archive.dialogues
        write = lambda line, talk="": running.ask("POST", "/me/command", dict(text=line, talk=talk))
        said = complete(running, talk="")["me"]
        assert write("/better Rest it.", said["talk"])[1]["message"].startswith("Applies to similar prompts")
        assert "generated without a fine-tuned adapter" in write("/why", said["talk"])[1]["message"]
        assert "all replies" in write("/always In short.")[1]["message"]
        assert write("/always")[1]["message"].startswith("1. In short.")
        assert "no reply uses it" in write("/drop 1")[1]["message"] and "taken back" in write("/undo")[1]["message"]
        for line, reason in COMMANDS_REFUSED.items():
            status, answer = write(line)
            assert status == 400 and reason in answer["error"]["message"], line
        assert "/better TEXT" in write("/help")[1]["message"] and len(stored) == 1


def sign_in(running, **headers):
    "Give the token as the page does; return the page's key, the cookie's name and value, and its attributes."
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    connection.request("POST", "/connect", json.dumps(dict(text=running.token)), headers)
    response = connection.getresponse()
    cookie, *attributes = response.getheader("Set-Cookie").split("; ")
    return json.load(response)["key"], cookie, attributes


def test_a_browser_stays_signed_in_by_two_halves(tmp_path):
    "The cookie goes to every port of this computer, and a script may read the key: neither opens anything alone."
    with chat_server(tmp_path / "me") as running:
        key, cookie, attributes = sign_in(running)
        other_key, other, _ = sign_in(running)
        assert cookie.startswith(f"personal_llm_{running.port}=")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {*attributes} and running.token not in cookie + key
        pairs = {
            (key, cookie): 200,
            (other_key, other): 200,
            (other_key, cookie): 401,
            ("", cookie): 401,
            (key, ""): 401,
        }
        pairs |= {(running.token, ""): 200, (running.token, other): 200}
        for (given, sent), status in pairs.items():
            headers = dict(Authorization=f"Bearer {given}", Cookie=sent)
            assert running.ask("GET", "/me/status", **headers)[0] == status, (given, sent)
        own = dict(Authorization=f"Bearer {key}", Cookie=cookie)
        for headers in (dict(Origin="http://evil.example"), dict(Origin="null"), dict(Host="evil.example")):
            assert running.ask("POST", "/me/forget", dict(text="x"), **own | headers)[0] == 403
            assert running.ask("GET", "/me/known", **own | headers)[0] == 403
    for folder, status in dict(me=200, other=401).items():  # the next day, on the same port, as a browser sends it
        with chat_server(tmp_path / folder, port=running.port) as again:
            assert again.ask("GET", "/me/talks", **own)[0] == status, folder
            assert again.ask("POST", "/me/react", dict(kind="always", text="In short."), **own)[0] == status, folder
            assert again.ask("GET", "/me/talks", **own | dict(Cookie=other))[0] == 401


BEGINNINGS = [b"", b"GET / HTTP/1.1\r\nHost: 127", b"GET /me/known HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]
BEGINNINGS += [b"POST /connect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{"]


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=("silence", "half a header", "no token", "half a body"))
def test_half_requests_of_strangers_make_room_for_the_owner(served, monkeypatch, beginning):
    "Neither requests without the token nor headers and bodies that never end keep somebody out who has the token."
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 30)
    strangers = []
    for _ in range(45):
        strangers.append(socket.create_connection(("127.0.0.1", served.port), 20))
        strangers[-1].sendall(beginning)
        time.sleep(0.02)  # the server reads it
    assert [served.ask("GET", "/me/status")[0] for _ in range(20)] == [200] * 20
    assert len(served.server.server_state.connections) <= 31
    for connection in strangers:
        connection.close()


# the command


def start(folder, **variables):
    "Run `serve` in a process of its own; return it, its port and its token."
    words = [sys.executable, "-m", "personal_llm", "serve", "--out", str(folder), "--port", "0"]
    environment = os.environ | dict(PYTHONPATH=str(ROOT), PERSONAL_LLM_MODEL="pocket") | variables
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(words, env=environment, **pipes)
    link = process.stdout.readline()
    assert link, process.communicate()[1]
    port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#code=\S+\n", link)[1])
    assert ask(port, "", "POST", "/connect", dict(text=link.strip().partition("=")[2]))[0] == 200
    return process, port, variables["PERSONAL_LLM_TOKEN"]


@pytest.mark.later
def test_what_was_acknowledged_survives_a_kill_and_no_word_is_printed(tmp_path):
    said = []
    for end in (signal.SIGKILL, signal.SIGINT):
        process, port, token = start(tmp_path / "me", PERSONAL_LLM_TOKEN="chosen-token-of-mine")
        try:
            body = dict(model="personal", messages=messages(f"I live in {SECRET} {len(said)}."), max_tokens=2)
            id = ask(port, token, "POST", COMPLETIONS, body)[1]["me"]["id"]
            better = dict(id=id, kind="better", text=BETTER)
            assert ask(port, token, "POST", "/me/react", better)[1]["message"].startswith("Applies to similar prompts")
            said.append(id)
        finally:
            process.send_signal(end)
            out, err = process.communicate(timeout=60)
        assert SECRET not in out + err and "Traceback" not in err
    archive = Archive(tmp_path / "me")
    assert [*archive.dialogues] == said
    assert [e.dialogue for e in archive.events if e.kind == "reacted"] == said
    archive.close()


def test_a_weak_token_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAL_LLM_TOKEN", "fifteen-letters")
    with pytest.raises(InputError, match="16 or more"):
        server.serve(None, tmp_path / "me", "0.0.0.0", 0)
    assert not (tmp_path / "me").exists()


def test_a_port_that_is_taken_is_one_line_before_the_model_loads(tmp_path):
    loaded = []
    with server.open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1, port {port}.*choose another --port"):
            server.serve(lambda: loaded.append(True), tmp_path / "me", "127.0.0.1", port)
    assert not loaded
