"A personalizer around a fake model and a fake fine-tune: the whole loop without torch."

import hashlib
import json
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from personal_llm.device import memory
from personal_llm.base.adapters import ADAPTER_CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Adapter
from personal_llm.base.core import Cost, Dialogue, make_generator
from personal_llm.base.files import make_folder
from personal_llm.base.models import ForwardResult
from personal_llm.device.conversation import ChatSession
from personal_llm.device.personalizer import Personalizer
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.policies import get_policy
from personal_llm.buffer.scoring import Lexicons

LEXICONS = Lexicons(dict(drug=["pill", "pain"], food=["tea", "bread"]))
WORDS = ["pill", "tea", "pain", "bread", "so", "and"]
TALK = [
    Dialogue(f"{i} " + " ".join(WORDS[(i * 7 + k) % 6] for k in range(i % 5 + 1)), f"answer {i}", time=i)
    for i in range(40)
]


def fill_disk(monkeypatch) -> None:
    "Let SQLite find the disk full at each write."
    real = memory.open_database

    @contextmanager
    def full(*given, **named):
        with real(*given, **named) as store:
            store.execute("PRAGMA max_page_count=1")
            store.execute("CREATE TABLE filler (content)")
            store.execute("INSERT INTO filler VALUES (zeroblob(100000))")  # pages that are half empty fill up, too
            yield store

    monkeypatch.setattr(memory, "open_database", full)


def weights_hash(place) -> str:
    return hashlib.sha1((Path(getattr(place, "path", place)) / WEIGHTS_FILE).read_bytes()).hexdigest()


class Fake:
    "Hidden states drawn from text, history and adapter; answers every rewriting prompt with other words."

    name, base, max_length = "fake", "base", 256
    tokenizer = staticmethod(lambda text: dict(input_ids=text.split()))
    is_large = False

    def __init__(self):
        self.active_adapter, self.cost, self.truncated = self.base, Cost(), {}

    @contextmanager
    def track_cost(self):
        outer, self.cost = self.cost, Cost()
        try:
            yield self.cost
        finally:
            self.cost = outer + self.cost

    @contextmanager
    def use_adapter(self, adapter):
        before = self.active_adapter
        if adapter is not None:
            self.active_adapter = f"{self.base}+{weights_hash(adapter)[:8]}"
        try:
            yield self
        finally:
            self.active_adapter = before

    def run_forward(self, dialogues):
        self.cost.forward += len(dialogues)
        found = []
        for d in dialogues:
            draws = make_generator(0, d.text, self.active_adapter, d.history.digest)
            hidden = draws.normal(size=(len(d.text.split()), 4)).astype(np.float32)
            found.append(ForwardResult(hidden, 3.0, 2, self.active_adapter))
        return found

    def generate(self, prompts, **settings):
        return [f"[other words for {p.split(chr(10), 1)[1]}]" for p in prompts]


def fake_tune(model, dialogues, config, start, out, seed, progress=True, replay=()):
    "An adapter whose weights are the ids it learned from and the weights it began from."
    out = make_folder(out or tempfile.mkdtemp())
    begun = weights_hash(start) if start else None
    (out / WEIGHTS_FILE).write_text(json.dumps([[d.id for d in dialogues], begun, seed]))
    (out / CONFIG_FILE).write_text(json.dumps(dict(begun=begun)))
    losses = dict(start_loss=2.0, best_loss=1.0, num_validation_dialogues=0)
    adapter = Adapter(out, model.base, tuple(d.id for d in dialogues), Cost(seconds=1.0), ((2, 1.5, 1.0),), **losses)
    (out / ADAPTER_CARD_FILE).write_text(json.dumps(adapter.card()))
    return adapter


def begun_from(adapter):
    "A hash of the weights that a fake fine-tune began from; None: the bare model."
    return json.loads((Path(adapter.path) / CONFIG_FILE).read_text())["begun"]


class User:
    "Corrects those dialogues that `corrects` says, and remembers what it was asked."

    def __init__(self, corrects=lambda d: True):
        self.asked, self.corrects = [], corrects

    def __call__(self, dialogue):
        self.asked.append(dialogue.id)
        return f"better: {dialogue.response}" if self.corrects(dialogue) else None


def start(folder=None, capacity=4, policy="fifo", user=None, **settings):
    "A personalizer around a new fake model."
    settings = dict(synthetic=1) | settings
    return Personalizer(Fake(), Buffer(capacity, policy), annotator=user, lexicons=LEXICONS, folder=folder, **settings)


def watch(me, dialogues):
    return me.observe_all(dialogues, progress=False)


def open_talk(folder, clock=time.time) -> ChatSession:
    "A chat with a fake model that asks about one of the first turns."
    buffer = Buffer(4, get_policy("active", horizon=6))
    return ChatSession(Fake(), folder, clock, synthetic=0, buffer=buffer, lexicons=LEXICONS)


def say(talk, d) -> None:
    "Let the fake model give the response of a dialogue."
    question = Dialogue(d.prompt, "", talk.history(), time=talk.clock())
    reading = talk.model.run_forward([question.derive(response=d.response)])[0]
    talk.observe(question, SimpleNamespace(text=d.response, reading=reading, dialogue=question))


def told(me):
    "All that must survive."
    buffer = me.buffer
    columns = [getattr(buffer.view, name).tolist() for name in ("eoe", "dss", "loss", "arrival", "idd")]
    return (
        list(buffer.log),
        buffer.dialogues,
        [c.scores.model for c in buffer.entries],
        columns,
        buffer.random.bit_generator.state,
        list(me.rounds),
        sorted(me.asked_ids),
        sorted(me.memory.dialogues),
        me.cost.requests,
        me.adapter and (str(me.adapter.path), me.adapter.parents),
    )


def bytes_below(folder) -> bytes:
    "Every byte of every file, and every name."
    files = [path for path in sorted(Path(folder).rglob("*"))]
    names = "\n".join(str(path) for path in files).encode()
    return names + b"\n".join(path.read_bytes() for path in files if path.is_file())
