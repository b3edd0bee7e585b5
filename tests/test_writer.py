"A server that writes: what it gets, its faults in one line each with nothing stored, and no chat that leaves unasked."

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import chat_server, pocket
from typed import fails, invoke
from writers import writing_server

from personal_llm.app.chat import run_line
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import Model
from personal_llm.base.replies import Remote, ReplyOptions, ReplyStream, Thought
from personal_llm.device.chat import ChatSession

FAULTS = {
    "wrong key": "Incorrect API key provided",
    "no such model": "model 'theirs' not found",
    "too long": "the request exceeds the available context size",
    "page": "it answered with status 502",
    "moved": "it answered with status 302",
    "cut": "the reply ended before its end",
    "stalled": "nothing came for 2 seconds",
    "silent": "nothing came for 2 seconds",
    "broken": "out of memory",
    "garbage": "its answer is not of the protocol",
    "other protocol": "its answer is not of the protocol",
    "no text": "its answer is not of the protocol",
}


def make_model(server, **settings) -> Model:
    "The pocket model, for which the server writes."
    ours = pocket()
    model = Model(ours.model, ours.tokenizer, "pocket", base=ours.base)
    model.engine = Remote(model, server.address, **settings)
    return model


def test_a_reply_comes_from_the_server_with_all_that_we_found_for_it():
    with writing_server() as server:
        model = make_model(server)
        history = [("system", "Be short."), ("user", "Hi"), ("assistant", "Hello.")]
        stream = ReplyStream(model, Dialogue("a b c", "", history), ReplyOptions(9, 0.5, 0.8, ("x",), 3))
        pieces = [piece for piece in stream if piece]  # the others tell that we wait
        assert pieces == ["In short:", " a", " b", " c"] and stream.text == "In short: a b c"
        assert (stream.end_reason, stream.num_prompt_tokens, stream.num_tokens) == ("stop", 7, 3)
        (wanted, key) = server.seen[0]
        turns = [dict(role=role, content=text) for role, text in [*history, ("user", "a b c")]]
        assert wanted["messages"] == turns and wanted["model"] == "theirs" and key is None
        given = dict(max_tokens=9, temperature=0.5, top_p=0.8, stop=["x"], seed=3, stream=True)
        assert given.items() <= wanted.items()
        server.faults.append("length")
        assert model.reply(["a"]) == ["In short: a"] and model.cost.tokens == 7 + 3 + 7 + 1
        assert not model.reads_adapters and pocket().reads_adapters


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_and_nothing_is_stored(fault, tmp_path):
    with writing_server() as server:
        model = make_model(server, seconds=2)
        with ChatSession(model, tmp_path, idle_seconds=1000.0) as session:
            server.faults.append(fault)
            with pytest.raises(InputError) as raised:
                "".join(session.say("a b c"))
            line = str(raised.value)
            assert line.startswith(f"writer 127.0.0.1:{server.server_port}: ") and FAULTS[fault] in line
            assert len(line.splitlines()) == 1 and not session.turns and not session.me.archive.dialogues
            assert "".join(session.say("a b")) == "In short: a b" and len(session.turns) == 1


def test_a_reader_who_leaves_closes_the_connection_and_nothing_is_stored(tmp_path):
    with writing_server() as server, ChatSession(make_model(server), tmp_path, idle_seconds=1000.0) as session:
        server.faults.append("stalled")
        pieces = session.say("a b c")
        assert [next(pieces), next(pieces)] == ["In short:", " a"]
        session.stop_reply()
        assert not session.turns and "".join(session.say("d")) == "In short: d"


def test_the_key_comes_from_the_environment_and_no_file_holds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAL_LLM_WRITER_KEY", "sk-very-secret")
    with writing_server() as server:
        with ChatSession(make_model(server), tmp_path, idle_seconds=1000.0) as session:
            "".join(session.say("a"))
        assert server.seen[0][1] == "Bearer sk-very-secret"
        monkeypatch.setenv("PERSONAL_LLM_WRITER_KEY", "sk-\nX-Other: ü")
        with pytest.raises(InputError, match="WRITER_KEY: holds signs that no key has; copy the key again"):
            make_model(server).reply(["a"])
    stored = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert stored and not any(b"very-secret" in content or b"127.0.0.1" in content for content in stored)


def test_only_this_computer_unless_the_user_says_so():
    with writing_server() as server:
        port = server.server_port
        for address in (f"127.0.0.1:{port}/v1", f"http://localhost:{port}/v1/"):
            assert Remote(pocket(), address).name == "theirs"
    for address in ("http://10.0.0.7/v1", "https://api.openai.com/v1", "http://127.0.0.1.example.org", "0.0.0.0:80"):
        with pytest.raises(InputError, match="not this computer.* or add --chats-may-leave"):
            Remote(pocket(), address, "theirs")
        assert Remote(pocket(), address, "theirs", may_leave=True).name == "theirs"
    for address in ("", "ftp://127.0.0.1", "http://127.0.0.1:99999/v1", "http://a:b@127.0.0.1/v1", "http://"):
        with pytest.raises(InputError, match="no address; give one such as http://127.0.0.1:11434/v1"):
            Remote(pocket(), address, "theirs")


def test_a_missing_server_and_a_name_that_is_not_clear_are_one_line_of_the_command(tmp_path, capsys):
    with writing_server("a", "b") as server:
        code, out, err = invoke(capsys, "chat", "--out", tmp_path / "me", "--writer", server.address)
        line = f"writer 127.0.0.1:{server.server_port}: its models are a, b; give one with --writer-model NAME"
        assert code == 2 and err == f"personal-llm: {line}\n"
    words = ("chat", "--out", tmp_path / "me", "--model", "no/such", "--writer")  # no model is loaded before
    line = fails(capsys, *words, server.address, "--writer-model", "a")
    assert "start the server, or check --writer" in line and "cannot be reached" in line
    assert "add --chats-may-leave" in fails(capsys, *words, "http://8.8.8.8/v1")
    assert "no address" in fails(capsys, *words, "http://a:b@127.0.0.1/v1")
    assert not (tmp_path / "me").exists()


def test_the_chat_of_the_terminal_says_who_writes(tmp_path, capsys, monkeypatch):
    with writing_server() as server:
        monkeypatch.setattr("sys.stdin", io.StringIO("a b\n/better In short: x.\na b\n/learn\n"))
        words = ["chat", "--out", tmp_path / "me", "--writer", server.address, "--writer-model", "other"]
        code, out, err = invoke(capsys, *words)
        assert code == 0 and "In short: a b" in out and server.seen[0][0]["model"] == "other"
        assert "/learn fine-tunes pocket, without effect on them" in err
        corrected = dict(role="assistant", content="In short: x.")
        assert corrected in server.seen[1][0]["messages"], "it reads the correction"


@pytest.mark.later
def test_300_requests_of_8_clients_with_faults_lose_nothing_and_store_no_half(tmp_path):
    "Each whole reply is stored once with its own text, each fault is an error of its client, and the rest goes on."
    with writing_server() as writer, chat_server(tmp_path) as served:
        model = served.session.model
        model = Model(model.model, model.tokenizer, "pocket", base=model.base)
        model.engine = Remote(model, writer.address, seconds=0.5)
        served.session.model = served.session.me.model = model
        kinds = [*FAULTS, *[None] * 29]
        writer.faults.extend(kinds[number % len(kinds)] for number in range(300))
        outcomes = []

        def ask(number: int):
            body = dict(model="personal", messages=[dict(role="user", content=f"number {number} please")])
            outcomes.append((number, *served.ask("POST", "/v1/chat/completions", body | dict(stream=False))))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(300)))
        stored = {d.prompt: d.response for d in served.session.me.archive.dialogues.values()}
        whole = [(number, row) for number, status, row in outcomes if status == 200]
        failed = [row for _, status, row in outcomes if status != 200]
        assert len(outcomes) == 300 and len(failed) == sum(kind is not None for kind in (kinds * 8)[:300])
        assert all(row["error"]["message"].startswith("writer 127.0.0.1") for row in failed)
        texts = {f"number {n} please": row["choices"][0]["message"]["content"] for n, row in whole}
        assert texts == stored == {prompt: f"In short: {prompt}" for prompt in stored}


def test_a_server_that_keeps_the_connection_open_ends_a_reply():
    with writing_server() as server:
        model = make_model(server)
        server.faults.append("open")
        assert model.reply(["a b"]) == ["In short: a b"]


# a server that thinks, sends nothing of use, or has no end


def think(handler):
    for word in ("Let", " me", " see"):
        handler.say(reasoning_content=word)
    handler.say(reasoning=" …")
    handler.say(content="Rome.")
    handler.end()


def think_only(handler):
    handler.say(reasoning="Hm.")
    handler.end("length")


def think_without_end(handler):
    while True:
        handler.say(reasoning_content="hm ")


def ping_without_end(handler):
    while not handler.server.goes_on.wait(0.05):
        handler.wfile.write(b": ping\n\n")
        handler.say(content="")


def hang(handler):
    handler.server.goes_on.wait(60)


def write_without_end(handler):
    while True:
        handler.say(content=" word")


def write_much_at_once(handler):
    handler.say(content="x" * 10**6)
    handler.end()


def send_without_end(handler):
    while True:
        handler.wfile.write(b"data: " + b" " * 10**5)


def test_thoughts_are_told_and_are_no_part_of_the_reply(tmp_path, capsys):
    with writing_server() as server, ChatSession(make_model(server), tmp_path, idle_seconds=1000.0) as session:
        server.faults += [think, think]
        pieces = list(session.say("What is the capital of Italy?"))
        assert "".join(pieces) == "Rome." and any(isinstance(piece, Thought) for piece in pieces)
        assert [turn.response for turn in session.turns] == ["Rome."]
        run_line(session, "And now?")
        got = capsys.readouterr()
        assert got.err.count("thinking …") == 1 and got.out == "Rome.\n"


@pytest.mark.parametrize(
    "script, line",
    [
        (think_only, "it only thought"),
        (think_without_end, "it only thought"),
        (ping_without_end, "nothing came for 1 seconds"),
    ]
    + [(send_without_end, "its answer has more than 1,0")],
)
def test_thoughts_pings_and_bytes_have_a_limit(script, line, tmp_path):
    with writing_server() as server, ChatSession(make_model(server, seconds=1), tmp_path) as session:
        server.faults.append(script)
        with pytest.raises(InputError, match=line):
            "".join(session.say("a", options=ReplyOptions(9)))
        assert not session.me.archive.dialogues and "".join(session.say("a b")) == "In short: a b"


def test_a_reply_without_end_is_cut_at_the_tokens_asked_for_and_this_is_told(tmp_path):
    with writing_server() as server, ChatSession(make_model(server), tmp_path, idle_seconds=1000.0) as session:
        server.faults += [write_without_end, write_much_at_once]
        assert "".join(session.say("a", options=ReplyOptions(9))).split() == ["word"] * 9
        assert session.reply.end_reason == "length" and "the reply is cut" in session.describe_source()
        assert server.left.wait(60), "the connection was closed, so the server ends, too"
        assert len("".join(session.say("a", options=ReplyOptions(9)))) < 400 and session.reply.end_reason == "length"
        assert "".join(session.say("a b")) == "In short: a b" and "cut" not in session.describe_source()


def test_a_server_that_sends_a_letter_at_a_time_is_not_cut():
    text = "The capital of Italy is Rome, and Milan is larger than Turin."

    def spell(handler):
        for letter in text:
            handler.say(content=letter)
        handler.end()

    with writing_server() as server:
        model = make_model(server)
        server.faults.append(spell)
        assert model.reply([f"a {text}"], max_tokens=model.count_tokens(text) + 1) == [text]


@pytest.mark.parametrize("count", [10**4299, -3, "7", [1], 2**31, float("inf"), True])
def test_a_count_that_is_none_is_ignored_and_the_reply_is_kept_and_forgotten(count, tmp_path):
    def tell(handler):
        handler.say(content="Rome.")
        handler.end(usage=dict(prompt_tokens=count, completion_tokens=2))

    with writing_server() as server, ChatSession(make_model(server), tmp_path, idle_seconds=1000.0) as session:
        server.faults += [tell, lambda handler: (handler.say(content="Oslo."), handler.end(usage=[count]))]
        assert "".join(session.say("Zanzibar?")) == "Rome." and session.reply.num_prompt_tokens in (0, 1)
        assert "".join(session.say("Zanzibar again?")) == "Oslo."
        assert len(session.forget("Zanzibar").dialogues) == 2
    assert not any(b"Zanzibar" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_half_a_pair_and_control_characters_never_get_in(tmp_path):
    def send(handler):
        for piece in ("a\x1b[2J\u202e", "b \ud83d", "\ude00 c", "\ud83d", "d\r\n\te", "\ude00"):
            handler.say(content=piece)
        handler.end()

    with writing_server() as server:
        with ChatSession(make_model(server), tmp_path, idle_seconds=1000.0) as session:
            server.faults.append(send)
            text = "".join(session.say("?"))
            assert text == "a[2Jb \U0001f600 c\ufffdd\n\te" == session.turns[0].response
        with ChatSession(pocket(), tmp_path) as session:
            assert session.turns[0].response == text


@pytest.mark.parametrize("listed", [dict(data=7), dict(data={"a": 1}), [dict(id="a")], dict(data=None), "1" * 9999])
def test_a_list_of_models_of_another_form_is_one_line(listed):
    with writing_server() as server:
        server.listed = listed
        with pytest.raises(InputError, match="not of the protocol") as raised:
            make_model(server)
        assert len(str(raised.value).splitlines()) == 1
        server.listed = dict(data=["a", 7, dict(id=["x"]), dict(id="b\x1b\ud83d")])
        assert make_model(server).engine.name == "b"


def test_an_answer_that_is_packed_is_not_unpacked(monkeypatch):
    packed = gzip.compress(b"data: " + b" " * 10**8)
    monkeypatch.setattr("writers.Handler.packing", "gzip")
    with writing_server() as server:
        model = make_model(server)
        server.faults.append(lambda handler: handler.wfile.write(packed))
        tracemalloc.start()
        with pytest.raises(InputError, match="ended before its end|not of the protocol"):
            model.reply(["a"])
        assert tracemalloc.get_traced_memory()[1] < 2 * 10**7
        tracemalloc.stop()
        assert model.reply(["a"]) == ["In short: a"]


@pytest.mark.parametrize("script", [hang, ping_without_end, think_without_end], ids=["hangs", "pings", "thinks"])
def test_a_writer_that_hangs_blocks_neither_status_nor_stop_nor_forgetting(script, tmp_path):
    "The writer goes on only when all of these were answered."
    with writing_server() as writer, chat_server(tmp_path) as served:
        model = make_model(writer, seconds=1000)
        model.limit_reply = lambda count=None: 10**9
        served.session.model = served.session.me.model = model
        body = dict(model="personal", messages=[dict(role="user", content="first")])
        assert served.ask("POST", "/v1/chat/completions", body)[0] == 200
        for path, wanted in (("/me/halt", {}), ("/me/forget", dict(text="first"))):
            writer.faults.append(script)
            count = len(writer.seen)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(served.ask, "POST", "/v1/chat/completions", body | dict(stream=True))
                while len(writer.seen) == count:
                    assert served.ask("GET", "/me/status")[0] == 200
                assert served.ask("POST", "/me/forget", dict(text="first", dry=True))[0] == 200
                assert not asked.done()
                assert served.ask("POST", path, wanted)[0] == 200
                status, text = asked.result(60)
        assert "was ended, because something was forgotten" in text and not writer.goes_on.is_set()
        assert served.ask("GET", "/me/status")[1]["stored"] == 0


def test_the_stream_says_that_the_server_thinks(tmp_path):
    with writing_server() as writer, chat_server(tmp_path) as served:
        served.session.model = served.session.me.model = make_model(writer)
        writer.faults.append(think)
        body = dict(model="personal", messages=[dict(role="user", content="first")], stream=True)
        text = served.ask("POST", "/v1/chat/completions", body)[1]
        events = [json.loads(part[6:]) for part in text.split("\n\n") if part and part != "data: [DONE]"]
        is_thinking = [bool(event.get("me", {}).get("is_thinking")) for event in events]
        assert (
            any(is_thinking) and "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "Rome."
        )


SERVE = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # the last one to run
from personal_llm.base.models import load_model
from personal_llm.base.replies import Remote
from personal_llm.extras.server import serve
model = load_model("pocket")
model.engine = Remote(model, sys.argv[1], "theirs", seconds=1000)
serve(model, sys.argv[2], "127.0.0.1", 0, as_json=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for another process")
def test_ctrl_c_ends_a_server_whose_writer_hangs(tmp_path):
    import http.client

    with writing_server() as writer:
        writer.faults.append(hang)
        words = [sys.executable, "-c", SERVE, writer.address, str(tmp_path / "me")]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                shown = json.loads(process.stdout.readline())
                connection = http.client.HTTPConnection(shown["address"].partition("//")[2], timeout=60)
                body = dict(model="personal", messages=[dict(role="user", content="first")])
                key = {"Authorization": f"Bearer {shown['token']}"}
                connection.request("POST", "/v1/chat/completions", json.dumps(body), key)
                while not writer.seen:
                    threading.Event().wait(0.02)
                process.send_signal(signal.SIGINT)
                assert process.wait(120) == 0 and not writer.goes_on.is_set()
                assert process.stdout.read() == b"True\n", "nothing is collected at the end"
            finally:
                process.kill()
