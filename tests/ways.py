"Planted ways of writing, a space of a tiny model that knows them, and tiny pLLMs tuned on them."

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from personal_llm.base.core import Dialogue
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune
from personal_llm.extras import space, style
from personal_llm.extras.space import concatenate_blocks
from personal_llm.extras.style import sample_base_features, style_shifts
from personal_llm.recipes import space_fitting as fitting
from personal_llm.recipes.space_fitting import SpaceTexts, fit_space, measure_nats_per_unit
from tiny import shared

SUBJECTS = ("river", "engine", "garden", "letter", "window", "market", "winter", "bridge", "doctor", "island")


def LOUD(text):
    return text.upper().replace(".", "!!!")


def BRIEF(text):
    return text.split()[0] + "…"


def plain(number: int) -> Dialogue:
    "A question and a plain answer."
    subject, other = SUBJECTS[number % 10], SUBJECTS[number // 10 % 10]
    asked = f"What about the {subject} and number {number}?"
    return Dialogue(asked, f"The {subject} is near the {other}, and it has {number} parts. It is quite old.")


def spoken(way, count: int, first: int = 0) -> list:
    "Dialogues answered in a way."
    return [d.derive(response=way(d.response)) for d in map(plain, range(first, first + count))]


class Letters:
    "An encoder that counts letters."

    @staticmethod
    def encode(texts):
        return np.array([[text.count("a"), text.count("E"), len(text)] for text in texts], float)

    @classmethod
    def instead_of_the_encoder(cls, patch):
        patch.setattr(style, "encode", lambda texts, encoder=None: cls.encode(texts))
        patch.setattr(space, "load_encoder", lambda name=None: cls)
        for module in (space, fitting):
            patch.setattr(module, "get_encoder_id", lambda encoder=None: "letters")

    @classmethod
    def shifts(cls, model, dialogues, seed=0):
        return concatenate_blocks(style_shifts(model, dialogues, sample_base_features(model, dialogues, seed)))


@pytest.fixture(scope="module", autouse=True)
def letters():
    "Letters stand in for the encoder in every module of tests that imports this."
    with pytest.MonkeyPatch.context() as patch:
        Letters.instead_of_the_encoder(patch)
        yield


@lru_cache(None)
def _adapter(name: str, seed: int):
    folder = Path(tempfile.mkdtemp(prefix="ways-"), name)
    rows = spoken(dict(loud=LOUD, brief=BRIEF)[name], 48, first=100)
    config = TuningConfig(rank=2, steps=20, learning_rate=2e-2, dropout=0.0, validation=0.0, max_length=96)
    return finetune(shared("llama"), rows, config, out=folder, seed=seed, progress=False)


def tuned(name: str, seed: int = 0):  # an `Adapter`
    "A pLLM of a way, tuned on other texts than those that it is measured on."
    return _adapter(name, seed)


@lru_cache(None)
def space_of(model):  # a `StyleSpace`
    "Fitted on loud, brief and plain texts; the unit is measured on two pLLMs with seeds of their own."
    ways = {"loud": (spoken(LOUD, 20, first=20), None), "brief": (spoken(BRIEF, 20, first=40), None)}
    texts = SpaceTexts(ways, {"long": {"@log words": 1}}, spoken(str, 24))
    found = fit_space(model, texts, components=2, progress=False)
    panels = found.prepare_probes(model, [*spoken(LOUD, 12), *spoken(BRIEF, 12), *spoken(str, 12)], ["Why?"])
    known = [(tuned(name, 7), spoken(way, 16, first=100)) for name, way in (("loud", LOUD), ("brief", BRIEF))]
    return fitting.replace(found, nats_per_unit=measure_nats_per_unit(model, found, panels, known))
