"""Answers as learners would type them: `course_attempts.txt`, and the verdicts on them.

A line `== 3 idd` names a lesson and a task. `+` begins a right answer, `-` a wrong one, as a learner would type it.
Lines that are indented belong to the answer above them.
"""

import collections
import importlib
import math
import random
import re
import statistics
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np

LINES = Path(__file__).with_name("course_attempts.txt")


@dataclass(frozen=True)
class Attempt:
    "One answer of one learner."

    lesson: int
    task: str
    is_right: bool
    source: str


def read_attempts(path: Path = LINES) -> list:
    "All attempts of a file, in its order."
    attempts, place, parts = [], None, []

    def finish():
        if parts:
            attempts.append(Attempt(*place, parts[0].startswith("+"), "\n".join([parts[0][2:], *parts[1:]])))
            parts.clear()

    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("== ", "+ ", "- ")):
            finish()
        if found := re.fullmatch(r"== (\d+) (.+)", line):
            place = int(found[1]), found[2]
        elif line.strip():
            parts.append(line)
    finish()
    return attempts


@cache
def tasks_of(lesson: int) -> dict:
    return importlib.import_module(f"personal_llm.course.tasks_{lesson}").TASKS


@cache
def names_of(lesson: int) -> dict:
    "What a learner has imported."
    import scipy.spatial
    import scipy.special
    import scipy.stats
    import torch
    from personal_llm import Policy
    from personal_llm.base.text import compute_rouge1
    from personal_llm.tuning.statistics import paired_bootstrap

    names = dict(np=np, torch=torch, nn=torch.nn, math=math, scipy=scipy, Fraction=Fraction, collections=collections)
    names |= dict(statistics=statistics, re=re, random=random, Policy=Policy, compute_rouge1=compute_rouge1)
    names |= dict(paired_bootstrap=paired_bootstrap)
    handed_out = vars(importlib.import_module(f"personal_llm.course.tasks_{lesson}"))
    return names | {
        name: handed_out[name] for name in ("TESTS", "LEAST", "VALUES", "VALIDATIONS", "PLACES") if name in handed_out
    }


@cache
def token_costs() -> list:  # nats of each token of lesson 1's dialogue, None for the first
    "The loss of each token, computed with the library only."
    import torch
    from personal_llm import Dialogue, load_model

    model = load_model("pocket")
    ids = torch.tensor([model.encode(Dialogue("Do you like tea?", "Yes, a lot"))["input_ids"]])
    with torch.inference_mode():
        logs = torch.log_softmax(model.model(input_ids=ids).logits[0].float(), -1)
    return [None] + [-logs[t - 1, ids[0, t]].item() for t in range(1, ids.shape[1])]


def value_of(attempt: Attempt):
    "The answer that the source makes."
    names = dict(names_of(attempt.lesson), cost=lambda place: token_costs()[place])
    if attempt.source.startswith(("def ", "class ")):
        exec(attempt.source, names)
        return names[re.match(r"(?:def|class) (\w+)", attempt.source)[1]]
    return eval(attempt.source, names)
