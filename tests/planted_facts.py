"A way to find facts that needs no large model."

import numpy as np

from personal_llm.base.text import get_words
from personal_llm.buffer import facts


def find_facts_by_words(monkeypatch) -> None:
    "Let the words in common decide which fact answers, and let every question be about the user."

    def compute_scores(question, told, model):
        asked = {word for word in get_words(question) if len(word) > 2}
        return np.array([20.0 * len(asked & {*get_words(fact)}) for fact in told])

    monkeypatch.setattr(facts, "compute_scores", compute_scores)
    monkeypatch.setattr(facts, "measure_unknown", lambda question, model: 0.0)
