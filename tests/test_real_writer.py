"A real llama.cpp server writes, and follows corrections as the engine on this machine does."

import pytest
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
