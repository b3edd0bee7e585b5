"Scored dialogues without a model, and naive twins of what a buffer keeps books of."

import json

import numpy as np

from personal_llm.base.core import Dialogue
from personal_llm.buffer.buffer import open_buffer
from personal_llm.buffer.scoring import ScoredDialogue, Scores, in_domain_dissimilarity

ROUND = dict(adapter="a", start="", kept=1, synthetic=0, requests=0, start_loss=2.0, best_loss=1.0)
ROUND |= dict(steps=8, seconds=1.0, warm=None, digest="")  # what a fine-tune records


def candidate(name, eoe=0.5, dss=0.1, embedding=(1, 0, 0), domain="d0", scripts=None, model="base"):
    "A candidate with the scores that a test wants."
    scripts = eoe if scripts is None else scripts
    scores = Scores(eoe, scripts, dss, domain, np.array(embedding, np.float32), 1.0, 5, model)
    return ScoredDialogue(Dialogue(str(name), "answer"), scores)


def stream(n, seed=0, width=4, domains=3):
    "Candidates with random scores."
    rng, found = np.random.default_rng(seed), []
    for i in range(n):
        eoe, dss, scripts = rng.random(3)
        found.append(candidate(i, eoe, dss, rng.normal(size=width), f"d{rng.integers(domains)}", scripts))
    return found


def naive_idd(buffer, embedding, domain, without=None):
    "IDD by its formula."
    kept = [c.scores.embedding for i, c in enumerate(buffer.entries) if c.scores.domain == domain and i != without]
    return in_domain_dissimilarity(np.asarray(embedding, np.float64), np.array(kept, np.float64))


def naive_fresh(buffer):
    "IDD of every entry, each by its formula."
    return [naive_idd(buffer, c.scores.embedding, c.scores.domain, i) for i, c in enumerate(buffer.entries)]


def sound(buffer):
    "What must hold of a buffer at any time."
    assert len(buffer) <= buffer.capacity and len({d.id for d in buffer.dialogues}) == len(buffer)
    assert np.allclose(buffer.view.idd, naive_fresh(buffer), atol=1e-6)


def reopen(buffer, policy=None):
    "The same buffer, made anew from its header in JSON."
    again = open_buffer(json.loads(json.dumps(buffer.header())), policy, "an archive")
    again._refill(buffer.entries, buffer.arrivals)
    again.log = list(buffer.log)
    return again
