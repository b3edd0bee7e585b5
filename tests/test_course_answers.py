"Right answers in many styles are accepted, wrong core ideas are refused by name, mutants of right answers are refused."

import importlib
from decimal import Decimal
from fractions import Fraction

import numpy as np
from cases import case
import torch

from personal_llm.course.checks import check

TASKS = {n: importlib.import_module(f"personal_llm.course.tasks_{n}").TASKS for n in range(1, 11)}
EACH = [(n, name) for n in TASKS for name in TASKS[n]]


def styles_of(task) -> list:
    "The right value in other types and shapes."
    right = task.value(task.right)
    if task.kind == "number":
        x = float(right)
        near = Fraction(x).limit_denominator(10**6)
        forms = [x, np.float32(x), torch.tensor(x), torch.tensor([x]), near, Decimal(x), [x], np.array([[x]])]
        return [*forms, round(x, 4)]
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


def test_a_function_that_raises_in_some_cases_is_told_the_error():
    verdict = check(TASKS[6]["change"], lambda A, B, alpha: A @ B * alpha)
    assert verdict.reason.startswith("your function raised ValueError: ") and "'ValueError'" not in verdict.reason


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
                verdict = check(task, lambda *arguments: MUTANTS[mutant](np.asarray(right(*arguments), float)), 5)
                assert verdict.state == "wrong" and verdict.reason


def first_case(task):
    return task.value(task.tries)[0]


def test_a_function_that_is_right_on_the_first_case_only_is_refused():
    for n, name in FUNCTIONS:
        with case(n, name):
            task = TASKS[n][name]
            first = task.value(task.right)(*first_case(task))
            assert check(task, lambda *arguments: first, 3).state == "wrong"
