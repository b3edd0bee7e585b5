"The server on a real port: other programs, a whole day, other sites, attacks, and what it never writes down."

import ctypes
import http.client
import importlib.util
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from devices import fill_disk
from servers import chat_server
from tiny import shared
from typed import fails

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from personal_llm.app import chat_completions, personal_endpoints, server
from personal_llm.app.server_guard import ServerLimits
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import ASSETS
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.policies import get_policy
from personal_llm.buffer.active import ActivePolicy
from personal_llm.device import conversation
from personal_llm.device.conversation import ChatSession
from personal_llm.device.personalizer import ReplyPlan
from personal_llm.device.replay import read_state
from personal_llm.tuning.config import TuningConfig

BETTER = "Dear friend, rest today and call me tonight."
SECRET = "Zanzibar"  # a word of the user


def fresh(folder, steps=8, horizon=10**6):
    buffer = Buffer(8, get_policy("active", horizon=horizon))
    settings = dict(synthetic=0, replay=0, config=TuningConfig(steps=steps), buffer=buffer)
    return ChatSession(shared("llama"), folder, itertools.count(1.0).__next__, **settings)


@pytest.fixture
def served(tmp_path):
    with chat_server(fresh(tmp_path / "me")) as running:
        yield running


def ask(running, method, path, body=None, **headers):
    "Status, and the JSON or the text of the answer; a header of None is left out."
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=300)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {running.token}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, content, {name: value for name, value in given.items() if value is not None})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text) if text.startswith("{") else text


def read_files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def events(text):
    return [json.loads(part[6:]) for part in text.split("\n\n") if part and part != "data: [DONE]"]


def say(running, text):
    status, answer = ask(running, "POST", "/personal/chat", dict(text=text))
    assert status == 200
    return events(answer)[-1]


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def messages(*texts):
    return [dict(role=("user", "assistant")[place % 2], content=text) for place, text in enumerate(texts)]


def test_a_checked_reply_comes_as_drafts_to_the_page_and_whole_to_a_program(served, monkeypatch):
    plan = lambda self, question, *given, **details: ReplyPlan(question, check=(question, [], 1.0))
    monkeypatch.setattr(ChatSession, "plan_reply", plan)
    monkeypatch.setattr(conversation, "improve_reply", lambda model, text, *given: BETTER)
    *drafts, piece, summary = events(ask(served, "POST", "/personal/chat", dict(text="My knee hurts."))[1])
    assert drafts and all(list(event) == ["draft"] for event in drafts) and piece == dict(piece=BETTER)
    body = dict(model="personal", messages=messages("My knee hurts."), stream=True)
    answer = events(ask(served, "POST", "/v1/chat/completions", body)[1])
    texts = [choice["delta"].get("content") for event in answer for choice in event["choices"]]
    assert [text for text in texts if text] == [BETTER]


# other programs


def test_the_openai_client_talks_streams_stops_and_counts(served):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.address}/v1", api_key=served.token, max_retries=0)
    assert [model.id for model in client.models.list()] == ["personal", "base"]
    create = client.chat.completions.create
    talk = [dict(role="system", content="Be kind."), *messages("Hello.", "Hello!", "My knee hurts.")]
    whole = create(model="personal", messages=talk, max_tokens=16)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason in ("stop", "length") and whole.personal["id"]
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(
        create(model="personal", messages=talk, max_tokens=16, stream=True, stream_options=dict(include_usage=True))
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    stop = text[len(text) // 2 :][:2]
    cut = create(model="personal", messages=talk, max_tokens=16, stop=[stop])
    assert cut.choices[0].message.content == text.partition(stop)[0] and cut.choices[0].finish_reason == "stop"
    draw = lambda seed: (
        create(model="base", messages=talk, max_tokens=16, temperature=1.5, seed=seed).choices[0].message.content
    )
    assert draw(1) == draw(1) and len({draw(seed) for seed in range(4)}) > 1
    for error, change in (
        (openai.NotFoundError, dict(model="gpt-4")),
        (openai.BadRequestError, dict(n=2)),
        (openai.BadRequestError, dict(temperature=3)),
        (openai.BadRequestError, dict(messages=messages("a", "b"))),
    ):
        with pytest.raises(error):
            create(**dict(model="personal", messages=talk) | change)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.address}/v1", api_key="no", max_retries=0).models.list()


def test_langchain_and_llm_talk_to_it(served, tmp_path, monkeypatch):
    langchain = pytest.importorskip("langchain_openai")
    settings = dict(base_url=f"{served.address}/v1", api_key=served.token, model="personal", max_tokens=8)
    chat = langchain.ChatOpenAI(**settings)
    assert chat.invoke("My knee hurts.").content == "".join(part.content for part in chat.stream("My knee hurts."))
    pytest.importorskip("llm")
    entry = f"- model_id: mine\n  model_name: personal\n  api_base: {served.address}/v1\n  api_key_name: mine\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)
    command = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "mine",
        "--key",
        served.token,
        "-o",
        "max_tokens",
        "8",
        "My knee hurts.",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(LLM_USER_PATH=str(tmp_path)))
    assert done.returncode == 0 and done.stdout.strip() == chat.invoke("My knee hurts.").content.strip(), done.stderr


def test_what_a_program_asks_not_to_store_is_not_stored(served):
    body = dict(model="personal", messages=messages(f"I live in {SECRET}."), max_tokens=4)
    for change in (dict(store=False), dict(model="base")):
        status, answer = ask(served, "POST", "/v1/chat/completions", body | change)
        assert status == 200 and answer["personal"]["id"] is None
    assert served.session.me.buffer.seen == 0
    assert (
        ask(served, "POST", "/v1/chat/completions", body)[1]["personal"]["id"]
        == served.session.me.buffer.dialogues[0].id
    )


def test_a_question_reaches_a_program_only_if_it_shows_it(served, monkeypatch):
    monkeypatch.setattr(ActivePolicy, "decide_question", lambda *given: (True, "it always asks"))
    body = dict(model="personal", messages=messages("My knee hurts."), max_tokens=4)
    assert ask(served, "POST", "/v1/chat/completions", body)[1]["personal"]["question"] is None
    asked = ask(served, "GET", "/personal/conversation")[1]["question"]
    assert asked["prompt"] == "My knee hurts.", "the page shows it"
    own = ask(served, "POST", "/v1/chat/completions", body | dict(personal=dict(ask=True)))[1]["personal"]
    assert own["question"] and own["id"] == served.session.question.dialogue.id
    assert ask(served, "POST", "/personal/feedback", dict(id=own["id"], better=BETTER))[0] == 200
    assert served.session.question is None and served.session.me.cost.requests == 1


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        dict(model="personal"),
        dict(model="personal", messages=[]),
        dict(model="personal", messages=[dict(role="user", content=" \x07")]),
        dict(model="personal", messages=[dict(role="tool", content="x")]),
        dict(model="personal", messages=[dict(role="user", content=[dict(type="image_url")])]),
        dict(model="personal", messages=messages("x"), stop=7),
        dict(model="personal", messages=messages("x"), stop=False),
        dict(model="personal", messages=messages("x"), n=True),
        dict(model="personal", messages=messages("x"), logprobs=0),
        dict(model="personal", messages=messages("x"), max_tokens=0),
        dict(model="personal", messages=messages("x"), tools=[dict(type="function")]),
        dict(model=["personal"], messages=messages("x")),
        dict(model="personal", messages=messages("x"), stream="yes"),
        dict(model="personal", messages=messages("x"), store=0),
        dict(model="personal", messages=messages("x"), stream_options=["include_usage"]),
        dict(model="personal", messages=messages("x"), stream=True, stream_options=dict(include_usage=1)),
        dict(model="personal", messages=messages("x"), personal=dict(ask="no")),
        b"",
    ],
)
def test_a_wrong_request_is_refused_in_the_form_of_the_protocol(served, body):
    status, answer = ask(served, "POST", "/v1/chat/completions", body)
    assert status in (400, 404) and {"message", "type", "param", "code"} == set(answer["error"])
    assert body or '"messages": [' in answer["error"]["message"], "an empty body gets an example"
    assert served.session.me.buffer.seen == 0 and ask(served, "GET", "/v1/models")[0] == 200


# a whole day


def test_unknown_addresses_and_odd_letters_are_refused_in_the_form_of_the_protocol(served):
    for method, path, status in (("GET", "/v1/embeddings", 404), ("GET", "/v1/chat/completions", 405)):
        got, answer = ask(served, method, path)
        assert got == status and "/v1/chat/completions" in answer["error"]["message"]
    status, answer = ask(served, "POST", "/personal/skip", b'{"\\ud800": 1}')
    assert status == 400 and answer["detail"], "half a surrogate pair is no name"
    status, answer = ask(served, "POST", "/personal/import?name=a." + "b" * 300, b"garbage")
    assert status == 400 and answer["detail"]


def test_a_whole_day(tmp_path):
    with chat_server(fresh(tmp_path / "me"), learn_every=2) as running:
        first, second = say(running, "My knee hurts."), say(running, "What shall I cook?")
        assert ask(running, "POST", "/personal/feedback", dict(id=first["id"], better=BETTER))[0] == 200
        assert ask(running, "POST", "/personal/feedback", dict(id=second["id"]))[0] == 200
        turns = ask(running, "GET", "/personal/conversation")[1]["turns"]
        assert [turn["correction"] for turn in turns] == [BETTER, None] and turns[1]["thumb"] == "thumb_up"
        say(running, "While you learn, how are you?")
        until(lambda: ask(running, "GET", "/personal/status")[1]["rounds"] == 1)
        status = ask(running, "GET", "/personal/status")[1]
        assert not status["is_learning"] and status["new_answers"] == 0 and status["num_notices"] == 2
        (curve,) = ask(running, "GET", "/personal/learning")[1]["rounds"]
        assert curve["best_loss"] <= curve["start_loss"] and running.session.me.adapter is not None
        examples = ask(running, "GET", "/personal/examples")[1]["examples"]
        assert {one["correction"] for one in examples} == {BETTER, None}
        assert events(ask(running, "POST", "/personal/again", {})[1])[-1]["id"]
        two = events(ask(running, "POST", "/personal/again", dict(keeps_both=True))[1])
        offered = ask(running, "GET", "/personal/conversation")[1]
        assert "".join(one["piece"] for one in two[:-1]) == offered["choice"]["replies"][1]
        assert ask(running, "POST", "/personal/choose", dict(number=3))[0] == 400
        assert ask(running, "POST", "/personal/choose", dict(number=1))[0] == 200
        last = ask(running, "GET", "/personal/conversation")[1]["turns"][2]
        assert last["response"] == offered["choice"]["replies"][0] == offered["turns"][2]["response"]
        exported = ask(running, "GET", "/personal/export")[1]["feedback"]
        assert [row["kind"] for row in exported] == ["better", "thumb_up", "retry", "choice"]
        assert exported[-1]["rejected"] == offered["choice"]["replies"][1]
        adapter = running.session.me.adapter.path
        assert "undone" in ask(running, "POST", "/personal/unlearn", {})[1]["message"] and not adapter.exists()
        status = ask(running, "GET", "/personal/status")[1]
        assert status["rounds"] == 0 == status["new_answers"] - 1 and not status["is_learning"], "the choice is new"
        assert ask(running, "POST", "/personal/unlearn", {})[0] == 400
        assert ask(running, "POST", "/personal/undo", {})[1]["prompt"] == "While you learn, how are you?"
        assert "learning from" in ask(running, "POST", "/personal/learn", {})[1]["message"]
        until(lambda: ask(running, "GET", "/personal/status")[1]["rounds"] == 1)
        assert "answers" in ask(running, "GET", "/personal/style")[1]["missing"] or True
        memory = ask(running, "GET", "/personal/memory?q=KNEE")[1]["dialogues"]
        assert [row["answer"] for row in memory] == ["corrected"] and memory[0]["reason"]
    with chat_server(fresh(tmp_path / "me")) as running:  # tomorrow
        assert [turn["prompt"] for turn in ask(running, "GET", "/personal/conversation")[1]["turns"]] == [
            "My knee hurts.",
            "What shall I cook?",
        ]
        report = ask(running, "POST", "/personal/forget", dict(text="knee"))[1]
        assert report["dialogues"] == 1 and report["adapters"] == 1 and report["unreachable"]
        rows = ask(running, "GET", "/personal/export")[1]["dialogues"]
        assert [row["prompt"] for row in rows] == ["What shall I cook?"]
    texts = b"".join(path.read_bytes() for path in (tmp_path / "me").rglob("*") if path.is_file())
    assert b"knee" not in texts and BETTER.encode() not in texts


def test_an_export_of_chats_is_imported(served, tmp_path):
    rows = [dict(prompt=f"What is thing {i}?", response=f"Thing {i} is small.") for i in range(20)]
    content = "".join(json.dumps(row) + "\n" for row in [*rows, dict(nothing=1)]).encode()
    status, answer = ask(served, "POST", "/personal/import?name=my%20chats.jsonl", content)
    assert status == 200 and answer["dialogues"] == 20 and served.session.me.buffer.seen == 20
    status, answer = ask(served, "POST", "/personal/import?name=../../x.jsonl", b"\x00\xff")
    assert status == 400 and "/tmp" not in answer["detail"], answer


def test_imported_chats_train_after_the_first_thumb_too(served):
    "But not a dialogue that you dislike, and of your own turns only those that you answered."
    rows = [dict(prompt=f"What is thing {i}?", response=f"Thing {i} is small.") for i in range(6)]
    content = "\n".join(map(json.dumps, rows)).encode()
    assert ask(served, "POST", "/personal/import?name=x.jsonl", content)[1]["dialogues"] == 6
    me, first, second = served.session.me, say(served, "My knee hurts.")["id"], say(served, "What now?")["id"]
    imported = {d.prompt: d.id for d in me.buffer.dialogues if d.origin == "user"}
    trained = lambda: {d.prompt for d in me.select_trainable()}
    assert len(imported) == 6 and second
    assert ask(served, "POST", "/personal/feedback", dict(id=first, kind="thumb_up"))[0] == 200
    assert trained() == {*imported, "My knee hurts."}
    disliked = dict(id=imported["What is thing 0?"], kind="thumb_down")
    assert ask(served, "POST", "/personal/feedback", disliked)[0] == 200
    assert trained() == {*imported, "My knee hurts."} - {"What is thing 0?"}
    assert "6 dialogues" in ask(served, "POST", "/personal/learn")[1]["message"]
    until(lambda: ask(served, "GET", "/personal/status")[1]["rounds"] == 1)
    assert {imported[f"What is thing {i}?"] for i in range(1, 6)} < {*me.rounds[0].parents}


def test_an_import_is_stored_whole_or_not_at_all(served, tmp_path, monkeypatch):
    "An error in its middle, a queue that fills up, and a full disk."
    content = "".join(json.dumps(dict(prompt=f"What is thing {i}?", response="Small.")) + "\n" for i in range(40))
    send, me, before = (
        lambda: ask(served, "POST", "/personal/import?name=x.jsonl", content.encode()),
        served.session.me,
        0,
    )
    score, run, num_calls = type(me).score, served.worker.run, itertools.count()
    with monkeypatch.context() as broken:
        broken.setattr(type(me), "score", lambda *given: 1 / 0 if next(num_calls) else score(*given))
        before = read_files(tmp_path / "me")
        assert send()[0] == 500 and not me.memory.dialogues and read_files(tmp_path / "me") == before
    with monkeypatch.context() as busy:
        refusal, num_calls = chat_completions.Refusal(429, "busy", "rate_limit_exceeded"), itertools.count()

        async def run_once(*given):
            if next(num_calls):
                raise refusal
            return await run(*given)

        busy.setattr(served.worker, "run", run_once)
        assert send()[0] == 429 and not me.memory.dialogues and read_files(tmp_path / "me") == before
    with monkeypatch.context() as full:
        fill_disk(full)
        assert send()[0] == 507 and read_files(tmp_path / "me") == before
    assert say(served, "My knee hurts.")["id"] and len(read_state(tmp_path / "me").memory.dialogues) == 41


def test_the_turns_before_an_imported_one_are_stored_as_far_as_the_model_reads_them(served, tmp_path, monkeypatch):
    "One chat of 6,000 turns: each of the last dialogues, here 200 in place of 2,000, would hold all turns before it."
    monkeypatch.setattr(personal_endpoints, "MAX_IMPORTED_DIALOGUES", 200)
    turns = [dict(role=("user", "assistant")[i % 2], content=f"Turn {i}.") for i in range(6_000)]
    begin = time.monotonic()
    status, answer = ask(served, "POST", "/personal/import?name=x.json", json.dumps([dict(messages=turns)]).encode())
    assert status == 200 and answer["dialogues"] == 200 and time.monotonic() - begin < 120
    dialogues, window = read_state(tmp_path / "me").memory.dialogues, served.session.model.max_length
    for row in dialogues.values():
        history = row.dialogue.history
        assert 0 < len(history) <= window and history[0][0] == "user"
        number = int(row.dialogue.prompt.split()[1].strip("."))
        assert history[-1] == ("assistant", f"Turn {number - 1}.")
    assert sum(path.stat().st_size for path in (tmp_path / "me").rglob("*")) < 2e7


@pytest.mark.parametrize("label", [dict(kind="shrug"), dict(kind="choice", probability="much"), "edit", 7, dict()])
def test_a_label_in_a_file_is_not_stored(served, tmp_path, label):
    rows = [Dialogue(f"What is thing {i}?", f"Thing {i} is small.", id=str(i)).to_dict() for i in range(20)]
    rows[-1]["labels"] = dict(feedback=[dict(kind="thumb_up"), label], words="Zanzibar")
    status, answer = ask(served, "POST", "/personal/import?name=chats.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert status == 200 and answer["dialogues"] == 20, answer
    stored = read_state(tmp_path / "me").memory.dialogues
    assert len(stored) == 20 and not any(row.dialogue.labels for row in stored.values())
    assert b"Zanzibar" not in b"".join(path.read_bytes() for path in (tmp_path / "me").rglob("*") if path.is_file())


def test_an_import_that_fails_names_the_file_and_the_fields_of_the_page(served):
    "And no option of a command line."
    chat = [dict(type="message", from_id=name, text="hello", date_unixtime="1") | {"from": name} for name in "ABC"]
    group = json.dumps(dict(name="Friends", type="private_group", id=1, messages=chat)).encode()
    for name, user, content, words in (
        ("my%20chats.json", "", b'[{"prompt": ]', "my chats.json: broken JSON"),
        ("my%20chats.jsonl", "", b'{"nothing": 1}', "my chats.jsonl: no dialogue in it"),
        ("group.json", "", group, "3 people write here (A, B, C)"),
        ("group.json", "Zoe", group, "no sender is called Zoe"),
        ("rows.jsonl", "Zoe", b'{"prompt": "a", "response": "b"}', "leave your name out"),
    ):
        status, answer = ask(served, "POST", f"/personal/import?name={name}&user={user}", content)
        text = answer["detail"]
        assert status == 400 and words in text and "--" not in text and "imported-file" not in text, text
    status, answer = ask(served, "POST", "/personal/import?name=group.json&user=A", group)
    assert status == 200 and answer["dialogues"] == 1


def test_an_open_question_is_in_the_memory_and_can_be_forgotten(served, monkeypatch):
    monkeypatch.setattr(ActivePolicy, "decide_question", lambda *given: (True, "it always asks"))
    id = say(served, "My knee hurts.")["id"]
    memory = ask(served, "GET", "/personal/memory?q=KNEE")[1]
    (row,) = memory["dialogues"]
    assert row["id"] == id and row["answer"] == "open question" and row["scores"]["eoe"] >= 0 == memory["kept"]
    assert ask(served, "GET", "/personal/memory?q=elbow")[1]["dialogues"] == []
    assert ask(served, "POST", "/personal/forget", dict(ids=[id]))[0] == 200
    assert served.session.question is None and ask(served, "GET", "/personal/memory")[1]["dialogues"] == []


def test_the_status_says_how_many_answers_start_a_fine_tune(tmp_path):
    for learn_every, number in ((8, 8), (0, None)):
        with chat_server(fresh(tmp_path / "me"), learn_every) as running:
            assert ask(running, "GET", "/personal/status")[1]["learns_at"] == number


def ask_and_leave(served, path, body):  # an event that lets the worker begin
    "Send a request and go away before its reply begins."
    content, gate = json.dumps(body).encode(), threading.Event()
    served.worker.executor.submit(gate.wait)
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {served.token}\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: served.worker.num_waiting == 1)
    return gate


def test_a_program_that_leaves_before_the_whole_answer_leaves_no_turn(served):
    body = dict(model="personal", messages=messages("Nobody listens."))
    gate = ask_and_leave(served, "/v1/chat/completions", body)
    gate.set()
    until(lambda: served.worker.num_waiting == 0)
    say(served, "Is somebody there?")
    assert served.session.me.buffer.seen == 1


def test_own_endpoints_are_documented_and_check_their_fields(served):
    document = ask(served, "GET", "/personal/openapi.json")[1]
    named = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert (
        named > set(personal_endpoints.ENDPOINTS)
        and ("POST", "/personal/chat") in named
        and document["openapi"].startswith("3.")
    )
    wrong = [("forget", {}), ("forget", dict(text=" ")), ("feedback", dict(id=7)), ("undo", dict(x=1))]
    wrong += [
        ("forget", dict(text="x", everything=True)),
        ("feedback", dict(id="x", kind="")),
        ("chat", {"x" * 999: 1}),
    ]
    for path, body in wrong:
        status, answer = ask(served, "POST", f"/personal/{path}", body)
        assert status == 400 and answer["detail"] and len(json.dumps(answer)) < 400


# many clients


def test_many_clients_at_once_lose_nothing(served):
    statuses = []
    body = dict(model="personal", max_tokens=4)
    run = lambda i: statuses.append(
        ask(served, "POST", "/v1/chat/completions", body | dict(messages=messages(f"Client {i}")))[0]
    )
    threads = [threading.Thread(target=run, args=(i,)) for i in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    num_open = served.session.question is not None  # the buffer is offered this turn once the question is settled
    assert statuses == [200] * 50 and served.session.me.buffer.seen + num_open == 50
    assert served.worker.num_waiting == 0


def test_tabs_follow_each_other(tmp_path):
    "The mark of the status changes with each thing that another tab shows, and the status holds no text."
    with chat_server(fresh(tmp_path / "me"), learn_every=2) as running:
        read = lambda: ask(running, "GET", "/personal/status")[1]
        marks = [read()["mark"]]
        first = say(running, f"I live in {SECRET}.")
        marks.append(read()["mark"])
        for better in (BETTER, BETTER + "!"):
            assert ask(running, "POST", "/personal/feedback", dict(id=first["id"], better=better))[0] == 200
            marks.append(read()["mark"])
        key = ask(running, "GET", "/personal/conversations")[1]["current"]
        assert ask(running, "POST", "/personal/rename", dict(key=key, title="Home"))[0] == 200
        marks.append(read()["mark"])
        ask(running, "POST", "/personal/learn", {})
        until(lambda: read()["rounds"] == 1)
        marks.append(read()["mark"])
        ask(running, "POST", "/personal/undo", {})
        marks.append(read()["mark"])
        assert len({*marks[:-1]}) == 6 and marks[-1] == marks[0], "after the last undo it is empty as at the beginning"
        assert SECRET not in str(read()) and "friend" not in str(read())


def test_a_search_does_not_wait_for_a_reply(served):
    "Nor for the requests that wait for the model; it is answered between two pieces."
    first, gate, real = say(served, f"I live in {SECRET}."), threading.Event(), served.session.say

    def say_slowly(*given, **named):
        yield "A beginning. "
        while not gate.wait(0.05):
            yield "And on. "
        yield from real(*given, **named)

    served.session.say = say_slowly
    replies = [threading.Thread(target=say, args=(served, f"Write {i}.")) for i in range(4)]
    for thread in replies:
        thread.start()
    until(lambda: served.worker.num_waiting == 4)
    begin = time.monotonic()
    found = ask(served, "GET", f"/personal/conversations?q={SECRET.lower()}")[1]["conversations"]
    assert [row["found"] for row in found] == [first["id"]]
    for path in ("conversation", "memory", "learning", "export", "status"):
        assert ask(served, "GET", f"/personal/{path}")[0] == 200
    assert time.monotonic() - begin < 10 and served.worker.num_waiting == 4 and len(served.session.turns) == 1
    assert ask(served, "GET", "/personal/conversation?key=nowhere")[1]["turns"] == []
    gate.set()
    for thread in replies:
        thread.join()
    assert len(served.session.turns) == 5


def test_freed_memory_goes_back_to_the_system_now_and_then(served, monkeypatch):
    releases = []
    monkeypatch.setattr("personal_llm.app.conversation_worker.release_memory", lambda: releases.append(1))
    for _ in range(100):
        assert ask(served, "POST", "/personal/skip")[0] == 200
    assert len(releases) == 2


def test_a_full_disk_is_never_acknowledged(served, monkeypatch):
    "What was not stored gets 507, a field in the last event, and is stored when there is room again."
    with monkeypatch.context() as full:
        fill_disk(full)
        assert "disk is full" in say(served, f"My {SECRET} hurts.")["unsaved"]
        request = dict(model="personal", messages=messages("My knee hurts."))
        status, answer = ask(served, "POST", "/v1/chat/completions", request)
        assert status == 507 and "not stored" in answer["error"]["message"]
        status, text = ask(served, "POST", "/v1/chat/completions", request | dict(stream=True))
        assert status == 200 and any(event.get("personal", {}).get("unsaved") for event in events(text))
        turn = served.session.turns[-1]["id"]
        assert ask(served, "POST", "/personal/feedback", dict(id=turn, better=BETTER))[0] == 507
        assert ask(served, "GET", "/personal/conversation")[0] == 200, "reading promises nothing"
        base = request | dict(model="base")
        assert ask(served, "POST", "/v1/chat/completions", base)[0] == 200, "a turn that is not to be stored"
    assert not say(served, "My arm hurts.")["unsaved"] and served.session.unsaved == ""
    assert any(BETTER in d.response for d in read_state(served.session.folder).buffer.dialogues)


@pytest.mark.parametrize(
    "change",
    [dict(messages=[dict(role=role, content="Hi")]) for role in (["user"], dict(a=1), 5, None, True)]
    + [dict(stop=["x" * 60_000]), dict(stop=["a"] * 17), dict(stop=[5])],
    ids=lambda change: str(change)[:50],
)
def test_odd_roles_and_long_stops_are_refused_by_name(served, change):
    request = dict(model="personal", messages=messages("Hello")) | change
    status, answer = ask(served, "POST", "/v1/chat/completions", request)
    assert status == 400 and next(iter(change)) in answer["error"]["message"]


def test_a_full_queue_refuses_and_recovers(tmp_path):
    with chat_server(fresh(tmp_path / "me"), limits=ServerLimits(waiting_requests=1)) as running:
        gate = threading.Event()
        running.worker.executor.submit(gate.wait)
        body = dict(model="base", messages=messages("Hello"), max_tokens=2)
        waiting = threading.Thread(target=ask, args=(running, "POST", "/v1/chat/completions", body))
        waiting.start()
        until(lambda: running.worker.num_waiting == 1)
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {running.token}"}
        )
        refusal = connection.getresponse()
        assert (refusal.status, refusal.headers["Retry-After"]) == (429, "60"), "a client is told when to ask again"
        connection.close()
        gate.set()
        waiting.join()
        assert ask(running, "POST", "/v1/chat/completions", body)[0] == 200


def test_a_client_that_leaves_ends_its_reply(served):
    gate = ask_and_leave(served, "/personal/chat", dict(text="Nobody listens."))
    until(lambda: served.worker.num_waiting == 0)
    gate.set()
    say(served, "Is somebody there?")
    assert served.session.me.buffer.seen == 1 and len(served.session.turns) == 1


def test_a_fine_tune_that_cannot_begin_or_fails_leaves_the_conversation(tmp_path, monkeypatch):
    with chat_server(fresh(tmp_path / "me"), learn_every=1) as running:
        first = say(running, "My knee hurts.")
        monkeypatch.setattr(ChatSession, "learn", lambda self: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert ask(running, "POST", "/personal/feedback", dict(id=first["id"], better=BETTER))[0] == 200
        assert say(running, "And now?")["id"]
        monkeypatch.undo()
        monkeypatch.setattr(type(running.session.me), "train_adapter", lambda *given: 1 / 0)
        second = say(running, "And tomorrow?")
        assert ask(running, "POST", "/personal/feedback", dict(id=second["id"]))[0] == 200
        until(lambda: running.worker.num_notices >= 3)
        assert say(running, "Still there?")["id"]
        shown = ask(running, "GET", "/personal/status")[1]["notices"]
        assert any("could not begin" in text for text in shown) and any("failed" in text for text in shown), shown


# security


FOREIGN = [
    dict(Origin="https://evil.example"),
    dict(Origin="null"),
    dict(Origin="http://127.0.0.1:1"),
    dict(Origin="https://127.0.0.1:PORT"),
    dict(Sec_Fetch_Site="cross-site"),
    dict(Sec_Fetch_Site="same-site"),
    dict(Host="evil.example"),
    dict(Host="127.0.0.1.evil.example:80"),
    dict(Host=""),
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_site_can_neither_read_nor_write(served, headers):
    headers = {name: value.replace("PORT", str(served.port)) for name, value in headers.items()}
    for method, path, body in (
        ("GET", "/v1/models", None),
        ("GET", "/personal/memory", None),
        ("POST", "/personal/chat", dict(text=SECRET)),
        ("POST", "/personal/forget", dict(everything=True)),
    ):
        for token in (None, f"Bearer {served.token}"):
            status, answer = ask(served, method, path, body, Authorization=token, **headers)
            assert status in (400, 403) and "data" not in answer
    assert served.session.me.buffer.seen == 0
    own = dict(Origin=served.address, Sec_Fetch_Site="same-origin")
    assert ask(served, "GET", "/v1/models", **own)[0] == 200


def test_there_is_no_answer_for_a_preflight(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    connection.request("OPTIONS", "/v1/chat/completions", headers=headers)
    response = connection.getresponse()
    assert response.status == 403 and not [
        name for name, _ in response.getheaders() if "access-control" in name.lower()
    ]


def test_a_token_cannot_be_guessed(served):
    near = [served.token[:-1] + "T", served.token[::-1], served.token.upper()]
    tries = [f"Bearer {guess}" for guess in ("", "x", served.token[:-1], served.token + "x", "é", *near)] + [
        None,
        served.token,
    ]
    assert {ask(served, "GET", "/v1/models", Authorization=one)[0] for one in tries} == {401}
    assert [ask(served, "GET", "/v1/models", Authorization=f"Bearer {i}")[0] for i in range(20)].count(429) >= 5
    assert ask(served, "GET", "/v1/models")[0] == 200


def test_the_page_is_public_empty_and_sealed(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    say(served, f"I live in {SECRET}.")
    for path in ("/", "/page/page.js", "/page/page.css"):
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200 and SECRET not in text and served.token not in text
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Frame-Options"] == "DENY" and response.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/page/../server.py", "/page/%2e%2e/pocket/config.json", "/page/", "/docs", "/.git/config"):
        assert ask(served, "GET", path)[0] == 404
    assert ask(served, "DELETE", "/personal/memory")[0] == 405


def test_the_page_is_small_and_loads_nothing_from_elsewhere():
    files = [path for path in (ASSETS / "page").iterdir()]
    texts = [path.read_text(encoding="utf-8") for path in files]
    assert sum(len(text.encode()) for text in texts) <= 90_000 and sum(text.count("\n") for text in texts) <= 1300
    for text in texts:
        assert set(re.findall(r"https?://[^\s\"']*", text)) <= {"http://www.w3.org/2000/svg"}
        assert "innerHTML" not in text and "eval(" not in text and "onclick" not in text


def raw(port, *parts, wait=5.0):
    "Send bytes, and return what comes back until the server closes or the time is over."
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
            while data := connection.recv(65536):
                answer += data
        except (ConnectionError, TimeoutError) as error:
            return answer + repr(error).encode()
        return answer


def test_a_gigabyte_is_refused_before_it_is_read(served):
    head = f"POST /personal/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {served.token}\r\n".encode()
    answer = raw(served.port, head + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 1000)
    assert b" 413 " in answer and b"larger than 1 MB" in answer
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    begin = time.monotonic()
    sent = raw(served.port, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 200, wait=20)
    assert time.monotonic() - begin < 15, "a server that reads on would wait for the end of the body"
    assert b" 413 " in sent or b"ConnectionResetError" in sent or b"BrokenPipeError" in sent
    assert ask(served, "GET", "/v1/models")[0] == 200 and served.session.me.buffer.seen == 0
    large = b"x" * (2**20 + 1)
    sent = raw(served.port, head + f"Content-Length: {len(large)}\r\n\r\n".encode(), large)
    assert b" 413 " in sent or b"Error" in sent
    assert ask(served, "POST", "/personal/import?name=x.txt", large)[0] in (200, 400), "an import may be larger"


def test_slow_headers_and_slow_bodies_are_cut_off(tmp_path):
    limits = replace(ServerLimits(), header_seconds=0.5, body_seconds=0.5)
    with chat_server(fresh(tmp_path / "me"), limits=limits) as running:
        silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(30)]
        for connection in silent[::2]:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127")
        assert ask(running, "GET", "/v1/models")[0] == 200, "the server is alive meanwhile"
        for connection in silent:
            connection.settimeout(5)
            try:
                assert connection.recv(10) == b""
            except ConnectionResetError:
                pass
            connection.close()
        head = f"POST /personal/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {running.token}\r\n"
        assert b" 408 " in raw(running.port, f"{head}Content-Length: 10\r\n\r\n12".encode())
        keep = http.client.HTTPConnection("127.0.0.1", running.port)
        for _ in range(2):  # a connection that is used again is no slow one
            keep.request("GET", "/v1/models", headers={"Authorization": f"Bearer {running.token}"})
            assert keep.getresponse().read()
            time.sleep(0.1)


def test_there_is_no_websocket(served):
    head = "GET /personal/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    head += f"Authorization: Bearer {served.token}\r\nSec-WebSocket-Version: 13\r\n"
    head += "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n\r\n"
    answer = raw(served.port, head.encode(), wait=2)
    assert b" 101 " not in answer and b" 405 " in answer
    assert ask(served, "GET", "/v1/models")[0] == 200


def test_an_error_of_ours_shows_no_text(served, monkeypatch, capfd):
    def broken(session):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(ChatSession, "observe", lambda self, question, *rest: broken(self))
    for path, body in (
        ("/v1/chat/completions", dict(model="personal", messages=messages(SECRET), max_tokens=2)),
        ("/personal/chat", dict(text=SECRET)),
    ):
        status, answer = ask(served, "POST", path, body)
        text = answer["error"]["message"] if status == 500 else events(answer)[-1]["detail"]
        assert "error of the server" in text and SECRET not in text
    assert ask(served, "GET", "/v1/models")[0] == 200
    shown = "".join(capfd.readouterr())
    assert "RuntimeError at test_server.py" in shown and SECRET not in shown


def test_the_text_of_a_reaction_is_neither_shown_nor_left(served, monkeypatch, capfd):
    "Each kind that has a text: in an error of ours, on the terminal, and on the disk after `forget`."
    from personal_llm.buffer.feedback import FEEDBACK_KINDS

    id, texts = say(served, "My knee hurts.")["id"], []
    with monkeypatch.context() as broken:
        broken.setattr(type(served.session.me), "react", lambda self, *given, **named: int(str((given, named))))
        body = dict(id=id, kind="better", better=SECRET)
        status, answer = ask(served, "POST", "/personal/feedback", body)
        assert status == 500 and SECRET not in json.dumps(answer)
    for kind in FEEDBACK_KINDS:
        texts.append(f"{SECRET} {kind}")
        ask(served, "POST", "/personal/feedback", dict(id=id, kind=kind, better=texts[-1]))
    stored = b"".join(path.read_bytes() for path in served.session.folder.rglob("*") if path.is_file())
    kept = [text for text in texts if text.encode() in stored]
    assert f"{SECRET} better" in kept and f"{SECRET} edit" in kept
    assert ask(served, "POST", "/personal/forget", dict(ids=[id]))[0] == 200
    left = b"".join(path.read_bytes() for path in served.session.folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in left and SECRET not in "".join(capfd.readouterr())


# the command


def test_the_command_serves_one_writer_and_writes_no_word_of_the_user(tmp_path, capsys):
    command = [
        sys.executable,
        "-m",
        "personal_llm.app.cli",
        "serve",
        "--out",
        str(tmp_path / "me"),
        "--port",
        "0",
        "--json",
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        link = json.loads(running.stdout.readline())
        running.port, running.token = int(link["address"].rpartition(":")[2]), link["token"]
        assert len(link["token"]) >= 32 and say(running, f"I live in {SECRET}.")["id"]
        ask(running, "POST", "/v1/chat/completions", dict(model=SECRET, messages=messages(SECRET)))
        assert "another run" in fails(capsys, *command[3:], "--quiet")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
        assert running.returncode in (0, 130) and SECRET not in out + err and link["token"] not in out + err
        assert -1 < err.find("loading the model pocket") < err.find("open the link"), "a sign of life, then the link"
    finally:
        running.kill()
    state = (tmp_path / "me" / "memory.db").read_bytes().decode("latin-1")
    assert SECRET in state, "the turn is stored"


FULL_DISK = """
import signal, sys
from types import SimpleNamespace
from devices import fill_disk
from personal_llm.app.cli import main
signal.signal(signal.SIGUSR1, lambda *given: fill_disk(SimpleNamespace(setattr=setattr)))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX")
@pytest.mark.later
def test_ctrl_c_on_a_full_disk_ends_with_a_line_and_a_code(tmp_path):
    "Also a turn that was stored before the disk filled up stays."
    command = [sys.executable, "-c", FULL_DISK, "serve", "--out", str(tmp_path / "me"), "--port", "0", "--json"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", str(Path(__file__).parents[1]))])
    settings = os.environ | dict(PYTHONPATH=path, XDG_CONFIG_HOME=str(tmp_path / "config"))
    running = subprocess.Popen(
        [*command, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings
    )
    try:
        link = json.loads(running.stdout.readline())
        running.port, running.token = int(link["address"].rpartition(":")[2]), link["token"]
        assert not say(running, "My knee hurts.")["unsaved"]
        running.send_signal(signal.SIGUSR1)
        until(lambda: say(running, f"I live in {SECRET}.")["unsaved"])
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
        assert running.returncode == 2 and "disk is full" in err and "lost" in err and err.count("\n") == 1, err
        assert SECRET not in out + err
    finally:
        running.kill()
    assert [turn["prompt"] for turn in read_state(tmp_path / "me").turns] == ["My knee hurts."]


def test_a_tab_survives_a_restart_and_no_other_account_reads_the_token(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    token = server.read_token()
    with chat_server(fresh(tmp_path / "me"), token=token) as running:
        assert say(running, "My knee hurts.")["id"]
    with chat_server(fresh(tmp_path / "me"), token=server.read_token()) as running:
        running.token = token  # of the tab
        assert len(ask(running, "GET", "/personal/conversation")[1]["turns"]) == 1
        new = server.read_token(is_new=True)
        assert new != token and len(new) >= 32
    (file,) = (tmp_path / "config").rglob("token")
    for broken in ("", "short", "é" * 20, "x" * 40 + "\n\nx"):
        file.write_text(broken)
        assert len(server.read_token()) == 32
    assert [path.stat().st_mode & 0o777 for path in (file, file.parent)] == [0o600, 0o700]
    seen_by_others = server.read_token()
    file.chmod(0o644)
    assert os.name == "nt" or server.read_token() != seen_by_others
    file.unlink()
    file.mkdir()  # nothing can be stored there
    assert len(server.read_token()) == 32 and "until the server ends" in capsys.readouterr().err


def test_a_chat_that_goes_on_keeps_its_start(tmp_path):
    settings = dict(start="an adapter", buffer=Buffer(8), synthetic=0)
    for _ in range(2):
        with ChatSession(shared("llama"), tmp_path / "me", itertools.count(1.0).__next__, **settings) as session:
            assert session.me.start == "an adapter"
            list(session.say("My knee hurts."))


ARENAS = """
import ctypes, sys, threading
from personal_llm.app import server
libc, gate = ctypes.CDLL(None), threading.Barrier(9)
libc.fopen.restype = ctypes.c_void_p
def count():
    file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    return open(sys.argv[1]).read().count("<heap nr")
if sys.argv[2] == "shared":
    server.share_arena()
before = count()
def allocate():
    libc.malloc(100_000)
    gate.wait()
    gate.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
gate.wait()
print(count() - before)
gate.wait()
"""


HAS_ARENAS = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_info")


@pytest.mark.skipif(not HAS_ARENAS, reason="needs the C library of GNU")
def test_threads_share_their_memory(tmp_path):
    "Each arena of a thread that has ended keeps pieces of freed memory."
    counts = {}
    for kind in ("own", "shared"):
        command = [sys.executable, "-c", ARENAS, str(tmp_path / "arenas.xml"), kind]
        counts[kind] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert counts["own"] > 2 and counts["shared"] == 0


def test_the_network_is_served_only_with_a_token(tmp_path, monkeypatch):
    from personal_llm.app.arguments import parse_arguments

    for token in ("", "short", "with\nline and spaces ok?"):
        monkeypatch.setenv(server.TOKEN_VARIABLE, token)
        known, values = parse_arguments(["serve", "--out", str(tmp_path / "me"), "--host", "0.0.0.0"])
        with pytest.raises(InputError, match="token"):
            known.run(values)
    assert not (tmp_path / "me").exists()


def test_a_missing_extra_gives_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r'pip install "personal_llm\[serve\]"'):
        server.import_server_packages()


def test_the_extra_is_named_and_has_no_telemetry():
    "Releases of FastAPI from .141 on may carry it."
    text = (Path(__file__).parents[1] / "settings.ini").read_text()
    assert text.count("fastapi>=0.120,<0.141") == 2 and "serve_requirements = fastapi" in text
    assert importlib.util.find_spec("fastapi") and importlib.util.find_spec("fastapi.telemetry") is None


# odd values


DEEP = json.loads("[" * 200 + "]" * 200)
ODD_VALUES = [None, True, False, 0, 1, -1, 2**63, 10**300, 0.5, 1e-300, 1e300, float("nan"), float("inf"), "", "x"]
ODD_VALUES += ["\ud800", "\x00", "1", [], [[]], {}, dict(a=1), [None, "\udfff"], DEEP]
COMPLETION_FIELDS = """model messages temperature top_p seed stop max_tokens max_completion_tokens store stream n
stream_options personal tools tool_choice functions function_call logprobs top_logprobs logit_bias response_format
modalities audio presence_penalty frequency_penalty user metadata parallel_tool_calls service_tier prediction
unknown""".split()


def list_odd_requests(value):
    "Requests of the protocol with an odd value in one place."
    plain = dict(model="personal", messages=messages("Hello"), max_tokens=1)
    yield from (plain | {name: value} for name in COMPLETION_FIELDS)
    yield plain | dict(messages=[value])
    for message in (dict(role=value, content="Hi"), dict(role="user", content=value), dict(role="user")):
        yield plain | dict(messages=[message])
    for part in (value, dict(type=value, text="Hi"), dict(type="text", text=value)):
        yield plain | dict(messages=[dict(role="user", content=[part])])
    yield plain | dict(messages=[dict(role="assistant", content=value, tool_calls=value), *messages("Hi")])
    yield plain | dict(stop=[value], stream_options=dict(include_usage=value), personal=dict(ask=value))


@pytest.mark.parametrize(
    "values", [ODD_VALUES[::5], pytest.param(ODD_VALUES, marks=pytest.mark.later)], ids=["some", "all"]
)
def test_no_odd_value_is_an_error_of_the_server(served, values):
    "24 values in every field of every endpoint; five of them in the quick tests."
    say(served, "My knee hurts.")
    assert len(ODD_VALUES) == 24 and set(chat_completions.CompletionRequest.model_fields) <= set(COMPLETION_FIELDS)
    statuses, num_tries = {}, 0
    for value in values:
        cases = [("/v1/chat/completions", body) for body in list_odd_requests(value)]
        for (method, path), function in personal_endpoints.ENDPOINTS.items():
            names = [*personal_endpoints.make_fields(function).model_fields, "unknown"] if method == "POST" else []
            cases += [(path, {name: value}) for name in names] + [(path, value)] * (method == "POST")
        for path, body in cases:
            status, answer = ask(served, "POST", path, json.dumps(body).encode())
            num_tries += 1
            statuses.setdefault(status, []).append((path, str(body)[:200]))
            assert status < 500 and '"detail": "an error' not in str(answer), (path, str(body)[:300], answer)
            assert status == 200 or "\n" not in str(answer.get("detail", answer.get("error"))), "one line"
    assert num_tries > 45 * len(values) and set(statuses) <= {200, 400, 404} and len(statuses[200]) > 4 * len(values)
    for path in ("/personal/memory?q=%ff%00%ED%A0%80", "/personal/memory?q=" + "x" * 5000, "/personal/memory?x=1"):
        assert ask(served, "GET", path)[0] in (200, 400)
    assert ask(served, "POST", "/personal/import?name=%ff%00&user=%ED%A0%80", b"\xff")[0] == 400


def test_the_whole_range_of_the_temperature_works(served):
    for temperature in (0, 1, 2, 1.0, 1e-300, 5e-324):
        body = dict(model="personal", messages=messages("Hello"), max_tokens=2, temperature=temperature)
        assert ask(served, "POST", "/v1/chat/completions", body)[0] == 200, temperature


def test_half_of_a_surrogate_pair_is_refused_by_name_and_stored_text_goes_out(served):
    half = "\ud83d"
    for name, body in (
        ("messages[0].content[0].text", dict(model="personal", messages=messages(half))),
        ("stop[0]", dict(model="personal", messages=messages("Hi"), stop=[half])),
    ):
        status, answer = ask(served, "POST", "/v1/chat/completions", body)
        assert status == 400 and answer["error"]["param"] == name, answer
    for path, name in (("chat", "text"), ("feedback", "id"), ("feedback", "better"), ("forget", "text")):
        body = (dict(id="x") if path == "feedback" else {}) | {name: half}
        status, answer = ask(served, "POST", f"/personal/{path}", body)
        assert status == 400 and answer["detail"].startswith(name), answer
    row = json.dumps(dict(prompt=f"What is {half}?", response=f"A {half}.")).encode()
    status, answer = ask(served, "POST", "/personal/import?name=x.jsonl", row)
    assert status in (200, 400), answer
    assert all(ask(served, "GET", f"/personal/{path}")[0] == 200 for path in ("memory", "export", "conversation"))


def test_a_long_stop_costs_nothing(served):
    "Sixteen texts of 200 characters are compared, and longer ones are refused before any of it."
    begin = time.monotonic()
    for stop in ("x" * 60_000, ["x" * 201], ["ab"] * 17):
        body = dict(model="base", messages=messages("Hi"), stop=stop)
        status, answer = ask(served, "POST", "/v1/chat/completions", body)
        assert status == 400 and answer["error"]["param"].startswith("stop")
    body = dict(model="base", messages=messages("Hi"), max_tokens=4, stop=["x" * 200] * 16)
    assert ask(served, "POST", "/v1/chat/completions", body)[0] == 200 and time.monotonic() - begin < 30


def test_each_value_of_the_official_client_is_supported_or_refused_by_name(served):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.address}/v1", api_key=served.token, max_retries=0)
    tool = dict(type="function", function=dict(name="look", parameters=dict(type="object", properties={})))
    schema = dict(type="json_schema", json_schema=dict(name="x", schema=dict(type="object")))
    call = dict(id="a", type="function", function=dict(name="look", arguments="{}"))
    picture = dict(type="image_url", image_url=dict(url="data:image/png;base64,AA=="))
    talk = [dict(role="developer", content="Be kind."), *messages("Hello", "Hello!", "And you?")]
    talk[-1] |= dict(content=[dict(type="text", text="And"), dict(type="text", text="you?")], name="Ana")
    base = dict(model="personal", messages=talk, max_completion_tokens=2)
    supported = [dict(n=1), dict(temperature=1), dict(top_p=1), dict(seed=0), dict(stop=None), dict(stop="\n")]
    supported += [dict(stop=["\n", "END"]), dict(logprobs=False), dict(response_format=dict(type="text"))]
    supported += [dict(tools=[]), dict(tool_choice="none"), dict(store=False), dict(user="ana"), dict(logit_bias={})]
    supported += [dict(frequency_penalty=0, presence_penalty=0), dict(modalities=["text"]), dict(metadata=dict(a="b"))]
    for change in [*supported, dict(parallel_tool_calls=True)]:
        assert client.chat.completions.create(**base | change).choices[0].message.content is not None, change
    refused = [dict(n=2), dict(tools=[tool]), dict(tool_choice="required"), dict(functions=[dict(name="look")])]
    refused += [dict(response_format=dict(type="json_object")), dict(response_format=schema), dict(logprobs=True)]
    refused += [dict(top_logprobs=5), dict(modalities=["text", "audio"]), dict(audio=dict(voice="alloy", format="wav"))]
    refused += [dict(logit_bias={"50256": -100}), dict(temperature=2.1), dict(max_tokens=0), dict(stop=["x"] * 17)]
    refused += [dict(function_call=dict(name="look"))]
    places = {"messages[0].role": [dict(role="tool", content="x", tool_call_id="a")]}
    places["messages[0].content"] = [dict(role="assistant", content=None, tool_calls=[call]), *messages("Hi")]
    places["messages[0].content[1].type"] = [dict(role="user", content=[dict(type="text", text="See"), picture])]
    for change in [*refused, *(dict(messages=value) for value in places.values())]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**base | change)
        named = caught.value.body["param"]
        assert named.startswith(next(iter(change))) and named in caught.value.body["message"], caught.value.body
        assert named in places or "messages" not in change
    chunks = [*client.chat.completions.create(**base, stream=True, stream_options=dict(include_usage=False))]
    assert chunks[-1].choices[0].finish_reason and not any(chunk.usage for chunk in chunks)


CLIENT_VALUES = dict(  # with which the tests of the official client fill each field
    audio=dict(format="wav", voice="alloy"),
    frequency_penalty=-2,
    function_call="none",
    functions=[dict(name="name", description="description", parameters=dict(foo="bar"))],
    logit_bias=dict(foo=0),
    logprobs=True,
    max_completion_tokens=0,
    max_tokens=0,
    metadata=dict(foo="string"),
    modalities=["text", "audio"],
    n=1,
    parallel_tool_calls=True,
    prediction=dict(content="string", type="content"),
    presence_penalty=-2,
    response_format=dict(type="text"),
    seed=-9007199254740991,
    service_tier="auto",
    stop="string",
    store=True,
    stream_options=dict(include_usage=True),
    temperature=1,
    tool_choice="none",
    tools=[dict(type="function", function=dict(name="name", parameters=dict(foo="bar"), strict=True))] * 3,
    top_logprobs=0,
    top_p=1,
    user="user-1234",
)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_the_values_of_the_clients_own_tests(served, is_stream):
    "One by one; together they ask for sound, functions and no token, and the first of these is named."
    refused = set("audio functions logit_bias logprobs max_completion_tokens max_tokens modalities tools".split())
    base = dict(model="personal", messages=messages("string"), stream=is_stream) | dict(max_tokens=2)
    for name, given in CLIENT_VALUES.items():
        status, answer = ask(served, "POST", "/v1/chat/completions", base | {name: given})
        assert status == (400 if name in refused else 200), (name, answer)
        assert status == 200 or answer["error"]["param"].startswith(name), answer
    for body in (base | CLIENT_VALUES, base | dict(messages=[dict(role="system", content="string", name="name")])):
        assert ask(served, "POST", "/v1/chat/completions", body)[0] == 400
    assert ask(served, "POST", "/v1/chat/completions", base | dict(model="gpt-4o"))[0] == 404


@pytest.mark.parametrize("tail", [" ", "\x07", "\n"], ids=["spaces", "control characters", "line ends"])
def test_words_before_a_long_empty_tail_are_read(served, tail):
    "The tail is longer than all that the model reads of a turn."
    text = "My knee hurts." + tail * 100_000
    for body in (messages(text), [dict(role="user", content=[dict(type="text", text=text)])]):
        status, answer = ask(
            served, "POST", "/v1/chat/completions", dict(model="personal", messages=body, max_tokens=2)
        )
        assert status == 200 and answer["personal"]["id"]
    assert say(served, text)["id"] and served.session.turns[-1]["prompt"] == "My knee hurts."
