"""Processor seconds to equal held-out loss: ours, and Trainer + peft as a careful user sets it up.

Every way learns the same dialogues with the same rank, rate and batches. Every few steps all are judged by the same
function on dialogues that nobody learns; judging is not on the clock. What is compared is how long a way takes until it
is as good as Trainer + peft on all layers ever gets, within a hundredth of a nat.
"""

import statistics

import torch

from benchmarks.tuning import BATCH, DIALOGUES, Clock, in_a_child, machine, run_way, samples_of
from personal_llm.base.tokens import collate
from personal_llm.tuning.caching import lower_of
from personal_llm.tuning.losses import Way, nats_of

EVERY = 2  # steps from one look to the next
NEAR = 0.01  # nats a token: as good as
RIVAL = "Trainer + peft, all layers"
WAYS = ("ours, all layers", "ours, top 2", RIVAL, "Trainer + peft, top 2", "loop, all layers")


class Watch(Clock):
    "A clock that looks at the held-out loss now and then, off the clock."

    def __init__(self, held: list, filler: int):
        super().__init__()
        self.batches = [collate(held[i : i + BATCH], filler) for i in range(0, len(held), BATCH)]
        self.looks = []  # (steps, processor seconds, nats a token)

    def start(self, adapted) -> None:
        "Find out how this model is judged before a trainer wraps it, and judge it once."
        self.way, self.lower = Way(adapted), lower_of(adapted)
        self.look(adapted)

    def look(self, adapted) -> None:
        "Judge the model as it is now."
        was, nats = adapted.training, 0.0
        adapted.eval()
        with torch.no_grad():
            nats = sum(nats_of(adapted, batch, way=self.way, lower=self.lower).item() for batch in self.batches)
        adapted.train(was)
        labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in self.batches)
        self.looks.append((len(self.steps), sum(self.steps), nats / labels))

    def on_step_end(self, args, state, control, model=None, **rest):
        super().on_step_end(args, state, control, **rest)
        if len(self.steps) % EVERY == 0:
            self.look(model)


def watched(model, samples: list, held: list, way: str, steps: int) -> dict:
    "One way's run and its looks."
    clock = Watch(held, model.tokenizer.pad_token_id)
    return run_way(model, samples, way, steps, clock) | dict(looks=clock.looks)


def reached(looks: list, goal: float) -> float:  # processor seconds; infinite where it never does
    "When a run is first at the goal or below."
    return next((seconds for _, seconds, loss in looks if loss <= goal), float("inf"))


def summary(rows: list) -> dict:  # way -> numbers
    "How many times sooner each way is as good as the rival's best, in the same round; medians over the rounds."
    found = {}
    for way in WAYS:
        ratios, seconds, best = [], [], []
        for row in (r for r in rows if r["way"] == way):
            (rival,) = (r for r in rows if r["way"] == RIVAL and r["round"] == row["round"])
            goal = min(loss for _, _, loss in rival["looks"]) + NEAR
            seconds.append(reached(row["looks"], goal))
            ratios.append(reached(rival["looks"], goal) / seconds[-1])
            best.append(min(loss for _, _, loss in row["looks"]))
        never = statistics.median(seconds) == float("inf")
        when = None if never else statistics.median(seconds)
        found[way] = dict(best=statistics.median(best), seconds=when, sooner=statistics.median(ratios))
    return found


def measure(model, rounds: int, steps: int, told=print) -> dict:
    "All ways in turn, `rounds` times."
    samples, held, rows = samples_of(model), samples_of(model, start=DIALOGUES), []
    for i in range(rounds):
        for way in WAYS:
            rows.append(in_a_child(lambda: watched(model, samples, held, way, steps)) | dict(round=i))
            last = rows[-1]["looks"][-1]
            told(f"round {i + 1} of {rounds}, {way}: {last[2]:.3f} nats a token after {last[1]:.2f} s", flush=True)
    settings = dict(dialogues=DIALOGUES, held=len(held), batch=BATCH, steps=steps, every=EVERY, near=NEAR)
    return dict(machine=machine(), settings=settings | dict(rounds=rounds), ways=summary(rows), rows=rows)
