"""Talks that revise, and hindsight distillation."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue, make_generator
from personal_llm.base.models import load_model
from personal_llm.recipes.hindsight import (
    add_adapter,
    compute_hindsight_loss,
    compute_hindsight_step,
    compute_teacher_logits,
)
from personal_llm.recipes.revision_talks import REQUESTS, TalkMaker, make_talks

logits = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(logits, st.floats(-5, 5))
def test_hindsight_equals_a_naive_sum_and_its_gradient_is_student_minus_teacher(rows, shift):
    student = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[value + shift * i for i, value in enumerate(reversed(row))] for row in rows])
    teacher = teacher.double()
    loss = compute_hindsight_loss(student, teacher)
    softmax = lambda row: [math.exp(x) / sum(map(math.exp, row)) for x in row]
    pairs = [(softmax(p), softmax(q)) for p, q in zip(student.tolist(), teacher.tolist())]
    naive = sum(q * math.log(q / p) for ps, qs in pairs for p, q in zip(ps, qs)) / len(rows)
    assert abs(loss.item() - naive) < 1e-9
    loss.backward()
    expected = torch.tensor([[(p - q) / len(rows) for p, q in zip(ps, qs)] for ps, qs in pairs])
    assert torch.allclose(student.grad, expected.double(), atol=1e-9)


def test_the_teacher_is_the_model_without_its_adapter_and_learns_nothing():
    model = add_adapter(load_model("pocket"), seed=0)
    complaint = Dialogue("Shorter, please.", "", [("user", "What is rain?"), ("assistant", "Water that falls.")])
    parameters = [p for p in model.model.parameters() if p.requires_grad]
    frozen = {name: p.clone() for name, p in model.model.named_parameters() if not p.requires_grad}
    teachers = compute_teacher_logits(model.model, model.tokenizer, [complaint])
    optimizer, losses = torch.optim.SGD(parameters, lr=0.1), []
    for _ in range(12):
        losses.append(compute_hindsight_step(model.model, model.tokenizer, [complaint], teachers))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    again = compute_teacher_logits(model.model, model.tokenizer, [complaint])
    assert torch.equal(again[0], teachers[0]), "the teacher stands still"
    assert losses[-1] < 0.9 * losses[0], "the student moves towards it"
    assert all(torch.equal(p, frozen[name]) for name, p in model.model.named_parameters() if name in frozen)


def test_talks_keep_to_their_part_and_to_their_rows():
    texts = ["Rest it for a week. Cool it with ice. Then see a doctor.", "Boil some water. Add the tea. Wait a bit."]
    rows = [dict(prompt=f"Question {i}?", response=texts[i % 2], source="medquad", style="plain") for i in range(9)]
    kinds = [kind for kind in REQUESTS if kind != "kinder"]  # needs answers of several personas
    talks = make_talks(TalkMaker(rows, "test", make_generator(3, "talks")), dict.fromkeys(kinds, 20))
    assert {d.labels["kind"] for d in talks} == set(kinds)
    assert all(d.history[0][1] in {row["prompt"] for row in rows} for d in talks)
    for kind in kinds:
        prompts = [d.history[0][1] for d in talks if d.labels["kind"] == kind]
        assert len(prompts) == len(set(prompts)) <= 9, "each prompt once inside a kind, so there are fewer than asked"
    build = {text.casefold() for wordings in REQUESTS.values() for text in wordings["build"] if "{" not in text}
    assert not build & {d.prompt.rstrip(".!").casefold() for d in talks}, "no wording of the other part"
