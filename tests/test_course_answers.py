"Right answers in many styles are accepted, wrong core ideas are refused by name, mutants of right answers are refused."

import collections
import importlib
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
from cases import case
import torch
from torch import nn

from personal_llm import Policy
from personal_llm.course.checks import Task, check, check_plain
from personal_llm.course.probes import plain

TASKS = {n: importlib.import_module(f"personal_llm.course.tasks_{n}").TASKS for n in range(1, 11)}
EACH = [(n, name) for n in TASKS for name in TASKS[n]]


def styles_of(task) -> list:
    "The right value in other types and shapes."
    right = task.value(task.right)
    if task.kind == "number":
        x = float(right)
        near = Fraction(x).limit_denominator(10**6)
        return [
            x,
            np.float32(x),
            torch.tensor(x),
            torch.tensor([x]),
            near,
            Decimal(x),
            [x],
            np.array([[x]]),
            round(x, 4),
        ]
    if task.kind == "numbers":
        x = [float(one) for one in right]
        forms = [x, tuple(x), np.array(x), torch.tensor(x), [Fraction(one).limit_denominator(10**6) for one in x]]
        forms += [np.array(x)[:, None], np.array([x]), map(float, x), (one for one in x)]
        forms += [np.array(x).reshape(2, 2), [x[:2], x[2:]]] if len(x) == 4 else []
        return forms + ([[bool(one) for one in x], np.array(x, bool), torch.tensor(x) > 0] if set(x) <= {0, 1} else [])
    if task.kind == "choice":
        return [right, f" {right.upper()} ", np.str_(right)]
    if task.kind == "names":
        return [list(right), tuple(right), set(right), np.array(right), dict.fromkeys(right).keys(), right[::-1]]
    return []


def test_a_right_value_is_right_in_every_form():
    for n, name in EACH:
        with case(n, name):
            task = TASKS[n][name]
            refused = [(form, verdict) for form in styles_of(task) if not (verdict := check(task, form))]
            assert refused == []


def log_softmax(x):
    return torch.log_softmax(torch.tensor(x), 0)


def answer_loss(scores, ids, start):
    rows, wanted = torch.tensor(scores[start - 1 : -1]), torch.tensor(ids[start:])
    return nn.functional.cross_entropy(rows, wanted, reduction="sum")


def plain_correlation(x, lag):
    mean = sum(x) / len(x)
    products = [(a - mean) * (b - mean) for a, b in zip(x, x[lag:])]
    return sum(products) / len(products) / np.var(x)


def split_with_random(groups, seed):
    import random

    names = sorted(set(groups))
    drawn = set(random.Random(seed).sample(names, len(names) // 5))
    return [group in drawn for group in groups]


def split_by_coins(groups, seed):
    random = np.random.default_rng(seed)
    drawn = {group: random.random() < 0.2 for group in dict.fromkeys(groups)}
    return torch.tensor([int(drawn[group]) for group in groups])


def eoe(hidden):
    from scipy.stats import entropy

    return entropy(np.linalg.norm(hidden - hidden.mean(0), axis=1) ** 2, base=len(hidden))


def dss(words, lists):
    count = collections.Counter(words)
    return Fraction(sum(count[word] for known in lists.values() for word in set(known)), len(words) * len(lists))


def idd(embedding, kept):
    from sklearn.metrics.pairwise import cosine_distances

    return cosine_distances(embedding[None], kept).mean(keepdims=True)


def rule_with_lists(scores, arrival, own, random):
    slots = [i for i, row in enumerate(scores) if all(a < b for a, b in zip(row, own))]
    return random.choice(slots) if slots else None


def rule_with_tensors(scores, arrival, own, random):
    slots = torch.nonzero((torch.tensor(scores) < torch.tensor(own)).all(1)).flatten()
    return slots[int(random.integers(len(slots)))] if len(slots) else None


def locked(entries, later):
    return sum(not any((entry < new).all() for new in later) for entry in entries)


def spend(chance, earlier, left, to_come):
    if len(earlier) < 15:
        return left >= to_come
    ranked = sorted(earlier[-120:], reverse=True)
    return np.bool_(chance > ranked[min(len(ranked) - 1, len(ranked) * left // to_come)])


def change_as_lists(A, B, alpha):
    return [[alpha / len(A) * sum(b * a for b, a in zip(row, column)) for column in A.T] for row in B]


def merge_by_svd(parts):
    U, S, V = np.linalg.svd(sum(w * B @ A for A, B, w in parts), full_matrices=False)
    return V.tolist(), torch.tensor(U * S)


class TransposedLayer(nn.Module):
    "Factors as (in, r) and (r, out)."

    def __init__(self, layer, r, alpha):
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / r
        self.A = nn.Parameter(torch.randn(layer.in_features, r))
        self.B = nn.Parameter(torch.zeros(r, layer.out_features))

    def forward(self, x):
        return self.layer(x) + self.scale * (x @ self.A @ self.B)


class TwoLinears(nn.Module):
    "Factors as small linear layers; the first begins with zeros."

    def __init__(self, layer, r, alpha):
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / r
        self.down, self.up = nn.Linear(layer.in_features, r, bias=False), nn.Linear(r, layer.out_features, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        return self.layer(x) + self.scale * self.up(self.down(x))


STYLES = [
    (1, "log softmax", log_softmax),
    (1, "log softmax", lambda x: list(log_softmax(x).numpy())),
    (1, "answer loss", answer_loss),
    (2, "autocorrelation", plain_correlation),
    (2, "split", split_with_random),
    (2, "split", split_by_coins),
    (3, "eoe function", eoe),
    (3, "dss function", dss),
    (3, "idd function", idd),
    (4, "rule", rule_with_lists),
    (4, "rule", rule_with_tensors),
    (4, "locked", lambda entries, later: torch.tensor(locked(entries, later))),
    (5, "spend", spend),
    (6, "change", change_as_lists),
    (6, "change", lambda A, B, alpha: torch.tensor(B) @ torch.tensor(A) * alpha / len(A)),
    (6, "layer", TransposedLayer),
    (6, "layer", TwoLinears),
    (7, "rivals", lambda m, r: set(TASKS[7]["rivals"].right(m, r))),
    (8, "cosine distance", lambda r, z: [1 - x @ z / math.sqrt((x @ x) * (z @ z)) for x in r]),
    (8, "merge", merge_by_svd),
    (8, "merge", lambda parts: (np.eye(4), sum(w * B @ A for A, B, w in parts))),
    (8, "project", lambda user, rows: torch.tensor(rows @ user / np.linalg.norm(rows, axis=1)).argmax()),
]


def test_a_right_function_in_another_style_is_accepted():
    for n, name, answer in STYLES:
        for seed in [0, 12345]:
            with case(n, name, repr(answer)[:60], seed):
                verdict = check_plain(TASKS[n][name], plain(answer), seed)
                assert verdict, verdict


def scaled_layer(scale):
    class Scaled(TransposedLayer):
        def __init__(self, layer, r, alpha):
            super().__init__(layer, r, alpha)
            self.scale = scale(alpha, r, layer)

    return Scaled


def weighted_rule(scores, arrival, own, random):
    slots = np.flatnonzero((scores < own).all(1))
    if len(slots):
        weights = (own - scores[slots]).sum(1)
        return random.choice(slots, p=weights / weights.sum())


class ReadsTheSource(Policy):
    def choose(self, view, candidate):
        return (0, "") if candidate.dialogue.labels.get("source") == "medquad" else (None, "")


class ReadsInATry(Policy):
    def choose(self, view, candidate):
        try:
            return (0, "") if candidate.dialogue.labels["source"] == "medquad" else (None, "")
        except KeyError:
            return None, ""


def stops_at(height):
    return lambda chance, earlier, left, to_come: chance >= height


WRONG = [  # (lesson, task, answer, the mistake's name)
    (
        3,
        "dss function",
        lambda w, k: sum(" ".join(w).count(x) for v in k.values() for x in v) / len(w) / len(k),
        "substrings",
    ),
    (3, "dss function", lambda w, k: sum(len(set(w) & set(v)) for v in k.values()) / len(w) / len(k), "each word once"),
    (4, "locked", lambda e, x: int((~(e < x.mean(0)).all(1)).sum()), "the mean dialogue"),
    (4, "rule", weighted_rule, "weighted by margin"),
    (
        4,
        "rule",
        lambda s, t, own, r: max(np.flatnonzero((s < own).all(1)), key=lambda i: t[i], default=None),
        "the newest leaves",
    ),
    (4, "design", ReadsTheSource, "reads the labels"),
    (4, "design", ReadsInATry, "reads the labels"),
    (5, "spend", stops_at(0.4), "a fixed bar"),
    (5, "spend", stops_at(0.5), "a fixed bar"),
    (5, "spend", stops_at(0.6), "a fixed bar"),
    (6, "change", lambda A, B, alpha: alpha / A.shape[1] * B @ A, "alpha over in"),
    (6, "change", lambda A, B, alpha: alpha / len(B) * B @ A, "alpha over out"),
    (6, "change", lambda A, B, alpha: alpha / 4 * B @ A, "alpha over 4"),
    (6, "layer", scaled_layer(lambda alpha, r, layer: 2 * r), "scale 2r"),
    (6, "layer", scaled_layer(lambda alpha, r, layer: alpha / 2), "alpha over 2"),
    (6, "layer", scaled_layer(lambda alpha, r, layer: alpha / layer.in_features), "alpha over in"),
    (7, "rivals", lambda m, r: [name for name in r if (m > r[name]).all()], "better for every user"),
    (7, "often", 1 - 0.05**20, "certain"),
]


def test_a_wrong_core_idea_is_refused_by_name():
    for n, name, answer, mistake in WRONG:
        for seed in [0, 777]:
            with case(n, name, repr(answer)[:60], mistake, seed):
                verdict = check_plain(TASKS[n][name], plain(answer), seed)
                assert verdict.state == "wrong" and (not mistake or verdict.wrong == mistake), verdict


def test_a_function_that_raises_in_some_cases_is_told_the_error():
    verdict = check_plain(TASKS[6]["change"], plain(lambda A, B, alpha: A @ B * alpha), 0)
    assert "your function raised ValueError on (" in verdict.reason and "'ValueError'" not in verdict.reason


FUNCTIONS = [(n, name) for n, name in EACH if TASKS[n][name].draw]
MUTANTS = {
    "scaled": lambda x: x * 1.05,
    "shifted": lambda x: x + 0.05,
    "rounded": lambda x: np.round(x),
    "squared": lambda x: x * np.abs(x),
    "halved": lambda x: x / 2,
}


def test_mutants_of_a_right_function_are_refused():
    for n, name in FUNCTIONS:
        for mutant in MUTANTS:
            with case(n, name, mutant):
                task = TASKS[n][name]
                right = task.value(task.right)
                if (
                    isinstance(right(*first_case(task)), (list, str))
                    and name != "interval function"
                    or task.tolerance == 0
                ):
                    continue
                verdict = check_plain(
                    task, plain(lambda *arguments: MUTANTS[mutant](np.asarray(right(*arguments), float))), 5
                )
                assert verdict.state == "wrong" and verdict.reason


def first_case(task):
    return task.value(task.tries)[0]


def test_a_function_that_is_right_on_the_first_case_only_is_refused():
    for n, name in FUNCTIONS:
        with case(n, name):
            task = TASKS[n][name]
            first = task.value(task.right)(*first_case(task))
            assert check_plain(task, plain(lambda *arguments: first), 3).state == "wrong"


def test_only_a_share_is_at_most_one():
    loss, share = (Task("x", 0, question, 0.7) for question in ("Which loss?", "Which share?"))
    assert "at most 1" in check(share, 3).reason and "at most 1" not in check(loss, 3).reason
