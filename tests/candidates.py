"Scores, fine-tunes and replies without a model, and naive twins of what a buffer keeps books of."

import json

import numpy as np

from personal_llm.base.core import Cost, Dialogue
from personal_llm.buffer.buffer import open_buffer
from personal_llm.buffer.scoring import ScoredDialogue, Scores, in_domain_dissimilarity
from personal_llm.device import chat, personalizer
from personal_llm.device.learning import PreparedRound, find_free_folder

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


FACTS = dict(eoe=0.5, eoe_scripts=0.5, dss=0.1, domain="d", loss=1.0, tokens=5)


def score(model, dialogues, lexicons):
    "In place of `score`."
    rng = np.random.default_rng(len(dialogues))
    facts = FACTS | dict(eoe=float(rng.random()), model=model.active_adapter)
    return [ScoredDialogue(d, Scores(**facts, embedding=rng.normal(size=8).astype("f4"))) for d in dialogues]


def prepare_round(dialogues, model, config, folder, **options):
    "In place of a fine-tune: an adapter of seven bytes."
    place = find_free_folder(folder)
    place.mkdir(parents=True)
    (place / "adapter_model.safetensors").write_bytes(b"weights")
    return PreparedRound(ROUND | dict(adapter=f"adapters/{place.name}"), dialogues, None, Cost())


class Echo:
    "A reply that is known beforehand."

    num_prompt_tokens = num_tokens = 1
    end_reason = "stop"

    def __init__(self, text):
        self.text = text

    def __iter__(self):
        yield self.text


def replace_models(patch, write) -> None:  # write: the dialogue of a reply -> its text
    "Let a chat score, learn and reply at once, without a model."
    patch.setattr(chat, "ReplyStream", lambda model, dialogue, options: Echo(write(dialogue)))
    patch.setattr(personalizer, "score", score)
    patch.setattr(personalizer, "prepare_round", prepare_round)
    patch.setattr(personalizer, "load_last_adapter", lambda state, folder: None)
