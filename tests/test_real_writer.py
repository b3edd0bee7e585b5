"A real llama.cpp server writes: the terminal's session, and OpenAI's own client through our server; seconds measured."

import pytest
from servers import ChatServer
from writers import llama_server

from personal_llm import load_model
from personal_llm.base.replies import Remote, ReplyOptions
from personal_llm.base.weights import DEFAULT_MODEL, find_weights
from personal_llm.device.chat import ChatSession

FILE = find_weights(DEFAULT_MODEL)
pytestmark = [pytest.mark.later, pytest.mark.skipif(FILE is None, reason=f"needs {DEFAULT_MODEL}")]
CAPITALS = dict(Italy="Rome", Spain="Madrid", Poland="Warsaw")
NEW = ("France", "Austria", "Portugal", "Greece")


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("xllamacpp")
    with llama_server(FILE) as address:
        yield address


def count_forms(model, folder) -> int:
    "Correct three replies, and count the replies to new prompts that have the form of the corrections."
    with ChatSession(model, folder, idle_seconds=1000.0) as session:
        for country, capital in CAPITALS.items():
            assert "".join(session.say(f"What is the capital of {country}?", options=ReplyOptions(24)))
            session.react("better", f"In short: {capital}.")
            session.open_talk()
        texts = []
        for country in NEW:
            texts.append("".join(session.say(f"What is the capital of {country}?", options=ReplyOptions(24))))
            session.open_talk()
        session.forget("Poland")
        assert not any("Poland" in d.prompt for d in session.me.archive.dialogues.values())
        pieces = session.say("Tell me a long story.", options=ReplyOptions(400))
        next(pieces)
        stored = len(session.me.archive.dialogues)
        session.stop_reply()
        assert len(session.me.archive.dialogues) == stored
        assert "".join(session.say("Thank you.", options=ReplyOptions(12))), "the server is free again"
    return sum(text.startswith("In short:") for text in texts)


def test_corrections_are_followed_as_by_the_engine_on_this_machine(address, tmp_path):
    counts = []
    for engine in ("local", "remote"):
        model = load_model(DEFAULT_MODEL)
        model.engine = Remote(model, address) if engine == "remote" else None
        counts.append(count_forms(model, tmp_path / engine))
        model.engine = None
    print(f"replies in the form of the corrections, of {len(NEW)}: here {counts[0]}, by the server {counts[1]}")
    assert min(counts) >= len(NEW) - 1


def test_the_client_of_openai_reaches_it_through_our_server(address, tmp_path):
    openai = pytest.importorskip("openai")
    model = load_model(DEFAULT_MODEL)
    model.engine = Remote(model, address)
    served = ChatServer(ChatSession(model, tmp_path, idle_seconds=1000.0))
    try:
        client = openai.OpenAI(base_url=f"{served.address}/v1", api_key=served.token)
        asked = dict(model="personal", messages=[dict(role="user", content="What is the capital of Italy?")])
        events = list(client.chat.completions.create(**asked, stream=True, max_tokens=24))
        text = "".join(event.choices[0].delta.content or "" for event in events)
        assert "Rome" in text and events[-1].choices[0].finish_reason == "stop"
        whole = client.chat.completions.create(**asked, max_tokens=4)
        assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 4
    finally:
        served.close()
