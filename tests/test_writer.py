"A server that writes: what it gets, its faults in one line each with nothing stored, and no chat that leaves unasked."

import gzip
import http.client
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
from writers import Handler, echo, writing_server

from personal_llm.app.chat import run_line
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import Model
from personal_llm.base.replies import Remote, ReplyOptions, ReplyStream, Thought
from personal_llm.device.chat import ChatSession

COMPLETIONS = "/v1/chat/completions"
BODY = dict(model="personal", messages=[dict(role="user", content="first")])


def make_model(server, **settings) -> Model:
    "The pocket model, for which the server writes."
    ours = pocket()
    model = Model(ours.model, ours.tokenizer, "pocket", base=ours.base)
    model.engine = Remote(model, server.address, **settings)
    return model


@pytest.fixture
def server():
    with writing_server() as server:
        yield server


@pytest.fixture
def session(server, tmp_path):
    with ChatSession(make_model(server, seconds=1000), tmp_path, idle_seconds=1000.0) as session:
        yield session


@pytest.fixture
def served(server, tmp_path):
    "Our server around a session for which the other server writes."
    with chat_server(tmp_path) as served:
        served.session.model = served.session.me.model = make_model(server, seconds=1000)
        yield served


def say(session, text, max_tokens=None) -> str:
    return "".join(session.say(text, options=ReplyOptions(max_tokens)))


# what a server may send


def fail(status, body):
    return lambda handler: handler.answer(status, body)


def say_two_words(handler):
    handler.say(content="In short:")
    handler.say(content=" a")


def stall(handler):
    say_two_words(handler)
    handler.connection.recv(1)  # until the reader goes away


def hang(handler):
    handler.send()
    handler.wait()


def echo_and_wait(handler):
    echo(handler)
    handler.wait()


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
        handler.send(b": ping\n\n")
        handler.say(content="")


def write_without_end(handler):
    while True:
        handler.say(content=" word")


def write_much_at_once(handler):
    handler.say(content="x" * 10**6)
    handler.end()


def send_without_end(handler):
    while True:
        handler.send(b"data: " + b" " * 10**5)


SILENT = "nothing came for 1 seconds"
ONLY_THOUGHT = "the model only thought"
NOT_OURS = "its answer is not of the protocol"
EXTRA = [dict(loc=["body", "stream_options"], msg="Extra inputs are not permitted")]
FAULTS = {  # a name -> what the server does, and the line about it
    "wrong key": (fail(401, dict(error=dict(message="Incorrect API key provided"))), "Incorrect API key provided"),
    "no such model": (fail(404, dict(error="model 'theirs' not found")), "model 'theirs' not found"),
    "too long": (fail(400, dict(error=dict(message="the request\nis too long"))), "the request is too long"),
    "page": (fail(502, "<html>Bad Gateway</html>"), "it answered with status 502"),
    "refused": (fail(422, dict(detail=EXTRA)), "['body', 'stream_options'] Extra inputs are not permitted"),
    "refused in words": (fail(422, dict(detail="no stream_options")), "no stream_options"),
    "moved": (fail(302, ""), "it answered with status 302"),
    "cut": (say_two_words, "the reply ended before its end"),
    "broken": (lambda handler: handler.put(dict(error=dict(message="out of memory"))), "out of memory"),
    "garbage": (lambda handler: handler.send(b"data: [1, 2\n\n"), NOT_OURS),
    "other protocol": (lambda handler: handler.put(dict(choices=["text"])), NOT_OURS),
    "no text": (lambda handler: handler.say(content=[dict(text="a")]), NOT_OURS),
    "filtered": (lambda handler: handler.end("content_filter"), "its content filter let no reply through"),
    "only a thought": (think_only, ONLY_THOUGHT),
    "a thought without end": (think_without_end, ONLY_THOUGHT),
    "bytes without end": (send_without_end, "its answer has more than 1,0"),
    "stalled": (stall, SILENT),
    "silent": (Handler.wait, SILENT),
    "pings": (ping_without_end, SILENT),
}


def complete_without_reason(handler):
    handler.say(content="Rome.")
    handler.send(b"data: [DONE]\n\n")


def say_a_whole_message(handler):
    handler.put(dict(choices=[dict(index=0, message=dict(role="assistant", content="Rome."), finish_reason="stop")]))


@pytest.mark.parametrize("script", [complete_without_reason, say_a_whole_message])
def test_servers_that_end_or_write_a_little_differently_are_read(script, server):
    server.scripts.append(script)
    stream = ReplyStream(make_model(server), "Italy?")
    assert "".join(stream) == "Rome." and stream.end_reason == "stop"


def test_a_reply_comes_from_the_server_with_all_that_we_found_for_it(server):
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
    server.scripts.append(lambda handler: echo(handler, "length"))
    assert model.reply(["a"]) == ["In short: a"] and model.cost.tokens == 7 + 3 + 7 + 1
    assert not model.reads_adapters and pocket().reads_adapters


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_and_nothing_is_stored(fault, server, session):
    script, words = FAULTS[fault]
    session.model.engine.seconds = 1 if words == SILENT else 1000
    server.scripts.append(script)
    with pytest.raises(InputError) as raised:
        say(session, "a b c", 9)
    line = str(raised.value)
    assert line.startswith((f"writer 127.0.0.1:{server.server_port}: ", ONLY_THOUGHT)) and words in line
    assert len(line.splitlines()) == 1 and not session.turns and not session.me.archive.dialogues
    session.model.engine.seconds = 1000
    assert say(session, "a b") == "In short: a b" and len(session.turns) == 1


@pytest.mark.parametrize("script", [stall, write_without_end], ids=["stalls", "writes on"])
def test_a_reader_who_leaves_closes_the_connection_and_nothing_is_stored(script, server, session):
    server.scripts.append(script)
    pieces = filter(None, session.say("a b c"))  # an empty one tells that we wait
    assert next(pieces) and next(pieces)
    session.stop_reply()
    assert server.left.wait(60), "the connection was closed, so the server ends, too"
    assert not session.turns and say(session, "d") == "In short: d"


def test_the_key_comes_from_the_environment_and_no_file_holds_it(server, session, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAL_LLM_WRITER_KEY", "sk-very-secret")
    say(session, "a")
    session.close()
    assert server.seen[0][1] == "Bearer sk-very-secret"
    monkeypatch.setenv("PERSONAL_LLM_WRITER_KEY", "sk-\nX-Other: ü")
    with pytest.raises(InputError, match="WRITER_KEY: holds signs that no key has; copy the key again"):
        make_model(server).reply(["a"])
    stored = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert stored and not any(b"very-secret" in content or b"127.0.0.1" in content for content in stored)


def test_only_this_computer_unless_the_user_says_so(server):
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


def test_the_chat_of_the_terminal_says_who_writes(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a b\n/better In short: x.\na b\n/learn\n"))
    words = ["chat", "--out", tmp_path / "me", "--writer", server.address, "--writer-model", "other"]
    code, out, err = invoke(capsys, *words)
    assert code == 0 and "In short: a b" in out and server.seen[0][0]["model"] == "other"
    assert "/learn fine-tunes pocket, without effect on them" in err
    corrected = dict(role="assistant", content="In short: x.")
    assert corrected in server.seen[1][0]["messages"], "it reads the correction"


# a server that thinks, sends nothing of use, or has no end


def test_thoughts_are_told_and_are_no_part_of_the_reply(server, session, capsys):
    server.scripts += [think, think]
    pieces = list(session.say("What is the capital of Italy?"))
    assert "".join(pieces) == "Rome." and any(isinstance(piece, Thought) for piece in pieces)
    assert [turn.response for turn in session.turns] == ["Rome."]
    run_line(session, "And now?")
    got = capsys.readouterr()
    assert got.err.count("thinking …") == 1 and got.out == "Rome.\n"


def test_a_reply_without_end_is_cut_at_the_tokens_asked_for_and_this_is_told(server, session):
    server.scripts += [write_without_end, write_much_at_once]
    assert say(session, "a", 9).split() == ["word"] * 9
    assert session.reply.end_reason == "length" and "the reply is cut" in session.describe_source()
    assert server.left.wait(60), "the connection was closed, so the server ends, too"
    assert len(say(session, "a", 9)) < 400 and session.reply.end_reason == "length"
    assert say(session, "a b") == "In short: a b" and "cut" not in session.describe_source()


def test_a_reply_that_the_filter_of_the_server_cut_is_told(server, session, capsys):
    server.scripts.append(lambda handler: echo(handler, "content_filter"))
    run_line(session, "a b")
    assert "the reply is cut: by the server's content filter" in capsys.readouterr().err
    assert [turn.response for turn in session.turns] == ["In short: a b"]
    run_line(session, "c")
    assert "cut" not in capsys.readouterr().err


def test_of_several_replies_only_the_first_is_taken(server):
    def say_both(handler):
        other = dict(index=1, delta=dict(content="Oslo."), finish_reason="length")
        handler.put(dict(choices=[dict(index=0, delta=dict(content="Rome")), other]))
        handler.put(dict(choices=[other]))
        handler.put(dict(choices=[other, dict(index=0, delta=dict(content="."), finish_reason="stop")]))
        handler.send(b"data: [DONE]\n\n")

    server.scripts.append(say_both)
    stream = ReplyStream(make_model(server), "a")
    assert "".join(stream) == "Rome." and stream.end_reason == "stop"


def test_a_letter_at_a_time_is_not_cut_and_a_connection_that_stays_open_ends_a_reply(server):
    text = "The capital of Italy is Rome, and Milan is larger than Turin."

    def spell(handler):
        for letter in text:
            handler.say(content=letter)
        handler.end()

    model = make_model(server)
    server.scripts += [spell, echo_and_wait]
    assert model.reply([f"a {text}"], max_tokens=model.count_tokens(text) + 1) == [text]
    assert model.reply(["a b"]) == ["In short: a b"]


@pytest.mark.parametrize("count", [10**4299, -3, "7", [1], 2**31, float("inf"), True])
def test_a_count_that_is_none_is_ignored_and_the_reply_is_kept_and_forgotten(count, server, session, tmp_path):
    def tell(text, usage):
        return lambda handler: (handler.say(content=text), handler.end(usage=usage))

    server.scripts += [tell("Rome.", dict(prompt_tokens=count, completion_tokens=2)), tell("Oslo.", [count])]
    assert say(session, "Zanzibar?") == "Rome." and session.reply.num_prompt_tokens in (0, 1)
    assert say(session, "Zanzibar again?") == "Oslo."
    assert len(session.forget("Zanzibar").dialogues) == 2
    session.close()
    assert not any(b"Zanzibar" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_half_a_pair_and_control_characters_never_get_in(server, session, tmp_path):
    def send(handler):
        for piece in ("a\x1b[2J\u202e", "b \ud83d", "\ude00 c", "\ud83d", "d\r\n\te", "\ude00"):
            handler.say(content=piece)
        handler.end()

    server.scripts.append(send)
    text = say(session, "?")
    assert text == "a[2Jb \U0001f600 c\ufffdd\n\te" == session.turns[0].response
    session.close()
    with ChatSession(pocket(), tmp_path) as again:
        assert again.turns[0].response == text


@pytest.mark.parametrize("listed", [dict(data=7), dict(data={"a": 1}), [dict(id="a")], dict(data=None), "1" * 9999])
def test_a_list_of_models_of_another_form_is_one_line(listed, server):
    server.listed = listed
    with pytest.raises(InputError, match="not of the protocol") as raised:
        make_model(server)
    assert len(str(raised.value).splitlines()) == 1
    server.listed = dict(data=["a", 7, dict(id=["x"]), dict(id="b\x1b\ud83d")])
    assert make_model(server).engine.name == "b"


def test_an_answer_that_is_packed_is_not_unpacked(server, monkeypatch):
    packed = gzip.compress(b"data: " + b" " * 10**8)
    monkeypatch.setattr("writers.Handler.packing", "gzip")
    model = make_model(server)
    server.scripts.append(lambda handler: handler.send(packed))
    tracemalloc.start()
    with pytest.raises(InputError, match="ended before its end|not of the protocol"):
        model.reply(["a"])
    assert tracemalloc.get_traced_memory()[1] < 2 * 10**7
    tracemalloc.stop()
    assert model.reply(["a"]) == ["In short: a"]


@pytest.mark.parametrize("script", [hang, ping_without_end, think_without_end], ids=["hangs", "pings", "thinks"])
def test_a_writer_that_hangs_blocks_neither_status_nor_stop_nor_forgetting(script, server, served):
    "The writer goes on only when all of these were answered."
    served.session.model.limit_reply = lambda count=None: 10**9
    assert served.ask("POST", COMPLETIONS, BODY)[0] == 200
    for path, wanted in (("/me/halt", {}), ("/me/forget", dict(text="first"))):
        server.scripts.append(script)
        count = len(server.seen)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(served.ask, "POST", COMPLETIONS, BODY | dict(stream=True))
            while len(server.seen) == count:
                assert served.ask("GET", "/me/status")[0] == 200
            assert served.ask("POST", "/me/forget", dict(text="first", dry=True))[0] == 200
            assert not asked.done()
            assert served.ask("POST", path, wanted)[0] == 200
            status, text = asked.result(60)
    assert "was ended, because something was forgotten" in text and not server.goes_on.is_set()
    assert served.ask("GET", "/me/status")[1]["stored"] == 0


def test_the_stream_says_that_the_server_thinks(server, served):
    server.scripts.append(think)
    text = served.ask("POST", COMPLETIONS, BODY | dict(stream=True))[1]
    events = [json.loads(part[6:]) for part in text.split("\n\n") if part and part != "data: [DONE]"]
    assert any(event.get("me", {}).get("is_thinking") for event in events)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "Rome."


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


@pytest.mark.later
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for another process")
def test_ctrl_c_ends_a_server_whose_writer_hangs(server, tmp_path):
    server.scripts.append(hang)
    words = [sys.executable, "-c", SERVE, server.address, str(tmp_path / "me")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            shown = json.loads(process.stdout.readline())
            connection = http.client.HTTPConnection(shown["address"].partition("//")[2], timeout=60)
            key = {"Authorization": f"Bearer {shown['token']}"}
            connection.request("POST", COMPLETIONS, json.dumps(BODY), key)
            while not server.seen:
                threading.Event().wait(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0 and not server.goes_on.is_set()
            assert process.stdout.read() == b"True\n", "nothing is collected at the end"
        finally:
            process.kill()
