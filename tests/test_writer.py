"A server that writes: what it gets, its faults in one line each with nothing stored, and no chat that leaves unasked."

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import chat_server, pocket
from typed import fails, invoke
from writers import writing_server

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import Model
from personal_llm.base.replies import Remote, ReplyOptions, ReplyStream
from personal_llm.device.chat import ChatSession

FAULTS = {
    "wrong key": "Incorrect API key provided",
    "no such model": "model 'theirs' not found",
    "too long": "the request exceeds the available context size",
    "page": "it answered with status 502",
    "moved": "it answered with status 302",
    "cut": "the reply ended before its end",
    "stalled": "nothing came for 0.3 seconds",
    "silent": "nothing came for 0.3 seconds",
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
        assert list(stream) == ["In short:", " a", " b", " c"] and stream.text == "In short: a b c"
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
        model = make_model(server, seconds=0.3)
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
        assert "other writes the replies; pocket scores, and only pocket reads what a fine-tune learns" in err
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
