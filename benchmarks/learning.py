"""Processor seconds to equal held-out loss: ours, and Trainer + peft as a careful user sets it up.

Every way learns the corrected dialogues of one simulated person and is judged on others of the same person, no text
in both; judging is not on the clock. Rank, batches and their order are the same, and each way has a rate of its own:
with which it is soonest at the goal with a person who is not measured later. The goal is the lowest held-out loss
that Trainer + peft on all layers ever comes to, and a hundredth of a nat.
"""

import statistics

import torch

from benchmarks.tuning import BATCH, DIALOGUES, TOKENS, Clock, in_a_child, machine, run_way
from personal_llm.base.core import InputError
from personal_llm.base.tokens import collate_samples
from personal_llm.data.reading import load_samples
from personal_llm.data.people import user_stream
from personal_llm.experiments.people import PEOPLE
from personal_llm.tuning.speedups import FastForward

PATIENCE = 4  # looks, one a step, without progress before a run ends
NEAR = 0.01  # nats a token: as good as
RIVAL = "Trainer + peft, all layers"
WAYS = ("ours, all layers", "ours, top 2", RIVAL, "Trainer + peft, top 2")
CHOOSER = "student"  # the person with whom rates are chosen
MEASURED = ("nurse", "clinic", "traveller", "storyteller", "barista")  # a person a round
RATES = (2e-3, 4e-3, 8e-3)  # that are tried
LENGTH, SEED = 800, 70  # dialogues of a person's stream


class Watch(Clock):
    "A clock that looks at the held-out loss after every step, off the clock, and ends a run that only gets worse."

    def __init__(self, held: list, pad_token_id: int):
        super().__init__()
        self.batches = [collate_samples(held[i : i + BATCH], pad_token_id) for i in range(0, len(held), BATCH)]
        self.looks = []  # (steps, processor seconds, nats a token)

    def start(self, adapted) -> None:
        "Find out how this model is judged before a trainer wraps it, and judge it once."
        self.forward = FastForward(adapted)
        self.look(adapted)

    def look(self, adapted) -> None:
        "Judge the model as it is now."
        was, nats = adapted.training, 0.0
        adapted.eval()
        with torch.no_grad():
            nats = sum(self.forward(batch).sum().item() for batch in self.batches)
        adapted.train(was)
        labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in self.batches)
        self.looks.append((len(self.steps), sum(self.steps), nats / labels))

    def on_step_end(self, args, state, control, model=None, **rest):
        super().on_step_end(args, state, control, **rest)
        self.look(model)
        losses = [loss for _, _, loss in self.looks]
        control.should_training_stop |= len(losses) - 1 - losses.index(min(losses)) >= PATIENCE


def rows_of(model, person: str) -> tuple:  # (learned, held out), encoded
    "What a person corrected, and what is asked later; no text in both."
    user = PEOPLE[person]
    data = user_stream(user, load_samples(), LENGTH, seed=SEED)
    learned = {
        d.prompt: d.derive(response=user.preferred_response(d)) for d in data.stream if user.is_signal_dialogue(d)
    }
    learned, held = [*learned.values()][:DIALOGUES], data.test_signal[:DIALOGUES]
    if {d.prompt for d in learned} & {d.prompt for d in held}:
        raise InputError(f"{person}: a prompt is learned and held out", "choose another seed")
    both = ([model.encode(d, TOKENS) for d in some] for some in (learned, held))
    return tuple([{name: row[name] for name in ("input_ids", "labels")} for row in rows] for rows in both)


def watched(model, samples: list, held: list, way: str, steps: int, rate: float) -> dict:
    "One way's run and its looks."
    clock = Watch(held, model.tokenizer.pad_token_id)
    return run_way(model, samples, way, steps, clock, rate) | dict(looks=clock.looks, rate=rate)


def goal_of(looks: list) -> float:  # nats a token
    "A hair above the lowest loss of some runs; raises `InputError` where nothing was learned."
    start, best = looks[0][2], min(loss for _, _, loss in looks) + NEAR
    if best >= start:
        what = f"the held-out loss is {start:.3f} at the start and never falls by {NEAR}"
        raise InputError(what, "learn and hold out dialogues that have something in common")
    return best


def reached(looks: list, goal: float) -> float:  # processor seconds; infinite where it never does
    "When a run is first at the goal or below."
    return next((seconds for _, seconds, loss in looks if loss <= goal), float("inf"))


def chosen_rates(rows: list) -> dict:  # way -> rate
    "With which each way is soonest at the goal; with which it comes nearest where it never gets there."
    goal = goal_of([look for row in rows if row["way"] == RIVAL for look in row["looks"]])
    when = lambda row: (reached(row["looks"], goal), min(loss for _, _, loss in row["looks"]))
    return {way: min((row for row in rows if row["way"] == way), key=when)["rate"] for way in WAYS}


def summary(rows: list) -> dict:  # way -> numbers
    "How many times sooner each way is as good as the rival's best, in the same round; medians over the rounds."
    found = {}
    for way in WAYS:
        ratios, seconds, best = [], [], []
        for row in (r for r in rows if r["way"] == way):
            (rival,) = (r for r in rows if r["way"] == RIVAL and r["round"] == row["round"])
            goal = goal_of(rival["looks"])
            seconds.append(reached(row["looks"], goal))
            ratios.append(reached(rival["looks"], goal) / seconds[-1])
            best.append(min(loss for _, _, loss in row["looks"]))
        when = statistics.median(seconds)
        found[way] = dict(best=statistics.median(best), seconds=None if when == float("inf") else when)
        found[way] |= dict(sooner=statistics.median(ratios), sooner_range=[min(ratios), max(ratios)])
    return found


def measure(model, rounds: int, steps: int, told=print) -> dict:
    "Rates with one person, then all ways in turn with others."

    def run(person: str, way: str, rate: float) -> dict:
        found = in_a_child(lambda: watched(model, *rows_of(model, person), way, steps, rate))
        low = min(loss for _, _, loss in found["looks"])
        told(f"{person}, {way}, rate {rate:g}: {low:.3f} nats a token in {len(found['steps'])} steps", flush=True)
        return found | dict(person=person)

    tried = [run(CHOOSER, way, rate) for way in WAYS for rate in RATES]
    rates = chosen_rates(tried)
    people = MEASURED[:rounds]
    rows = [run(person, way, rates[way]) | dict(round=i) for i, person in enumerate(people) for way in WAYS]
    settings = dict(dialogues=DIALOGUES, batch=BATCH, steps=steps, near=NEAR, chooser=CHOOSER, rounds=len(people))
    found = dict(machine=machine(), settings=settings, rates=rates, ways=summary(rows), rows=rows)
    return found | dict(tried=[{name: row[name] for name in ("way", "rate", "looks")} for row in tried])
