"Losses of choices and thumbs: equal to TRL's formulas, with the adapter switched off as the reference."

import copy
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from personal_llm.base.core import Dialogue
from personal_llm.base.tokens import collate_samples
from personal_llm.buffer.preferences import ROLES, Preference, collate_mixed, compute_mixed_loss, compute_pair_losses
from personal_llm.buffer.preferences import compute_thumb_losses, count_step, make_preference_samples
from personal_llm.buffer.preferences import set_reference_losses
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune
from personal_llm.tuning.training_loop import add_gradients, response_nll
from tiny import shared, tiny

CHOSEN = [Dialogue(f"My {part} hurts.", f"Rest the {part} today.") for part in ("knee", "hip", "arm")]
REJECTED = [d.derive(response="Run ten kilometres in old shoes, then call nobody.") for d in CHOSEN]
TEXTS = [Dialogue(f"What is {i} and {i}?", f"It is {2 * i}, my friend.") for i in range(4)]


def adapted(seed=0):
    "A tiny model with LoRA layers that change its output."
    model = tiny("llama", seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lora = get_peft_model(
            copy.deepcopy(model.model), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
        )
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
    return model, lora.eval()


def log_likelihoods(network, samples) -> torch.Tensor:
    "Naive twin: one row at a time, token by token, without padding."
    sums = []
    for sample in samples:
        logits = network(torch.tensor([sample["input_ids"]])).logits[0]
        chances = logits.double().log_softmax(-1)
        labels = list(enumerate(sample["labels"]))[1:]
        sums.append(sum(chances[place - 1, label] for place, label in labels if label != -100))
    return torch.stack(sums)


def batch_of(preferences, texts, model, lora):
    "A mixed batch with its reference losses."
    encode = lambda d: model.encode(d, 128)
    samples = make_preference_samples(preferences, encode)
    pad = model.tokenizer.pad_token_id
    set_reference_losses(samples, lora, lambda batch: response_nll(lora, batch), pad)
    return collate_mixed([encode(d) for d in texts] + samples, pad)


def trl_dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    "TRL's formula, written out: `DPOTrainer` with loss_type sigmoid and reverse KL."
    delta = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -torch.log(1 / (1 + torch.exp(-beta * delta)))


def trl_kto(policy, reference, is_liked, kl_policy, kl_reference, beta):
    "TRL's formula, written out: `KTOTrainer` with loss_type kto and both weights 1."
    kl, losses = max(0.0, float((kl_policy - kl_reference).mean())), []
    for ratio, liked in zip(policy - reference, is_liked):
        exponent = beta * (ratio - kl) if liked else beta * (kl - ratio)
        losses.append(1 - 1 / (1 + torch.exp(-exponent)))
    return torch.stack(losses)


def test_a_batch_of_pairs_has_the_loss_and_the_gradient_of_trl():
    model, lora = adapted()
    batch = batch_of([Preference(*pair) for pair in zip(CHOSEN, REJECTED)], [], model, lora)
    loss = compute_mixed_loss(response_nll(lora, batch), batch, count_step([batch]))
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in lora.named_parameters() if weight.grad is not None}
    lora.zero_grad()
    rows = [[model.encode(d, 128) for d in dialogues] for dialogues in (CHOSEN, REJECTED)]
    with torch.no_grad():
        reference = [log_likelihoods(model.model, samples) for samples in rows]  # a second model, never adapted
    theirs = trl_dpo(*(log_likelihoods(lora, samples) for samples in rows), *reference, 0.1).mean()
    theirs.backward()
    assert abs(loss.item() - theirs.item()) < 1e-5 and ours
    for name, weight in lora.named_parameters():
        if name in ours:
            assert torch.allclose(ours[name], weight.grad, atol=1e-5), name


def test_a_batch_of_thumbs_has_the_loss_of_trl():
    model, lora = adapted()
    thumbs = [Preference(CHOSEN[0]), Preference(None, REJECTED[1]), Preference(CHOSEN[2])]
    batch = batch_of(thumbs, [], model, lora)
    loss = compute_mixed_loss(response_nll(lora, batch), batch, count_step([batch]))
    replies = [CHOSEN[0], REJECTED[1], CHOSEN[2]]
    mismatched = [d.derive(response=replies[i - 1].response) for i, d in enumerate(replies)]
    rows = [[model.encode(d, 128) for d in dialogues] for dialogues in (replies, mismatched)]
    with torch.no_grad():
        (policy, kl_policy), (reference, kl_reference) = (
            [log_likelihoods(network, samples) for samples in rows] for network in (lora, model.model)
        )
    theirs = trl_kto(policy, reference, [True, False, True], kl_policy, kl_reference, 0.1)
    assert abs(loss.item() - theirs.mean().item()) < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_losses_of_random_numbers_are_those_of_trl(seed):
    chance = np.random.default_rng(seed)
    draw = lambda count: torch.tensor(chance.normal(scale=20, size=count))
    policy, reference, kl = draw(12), draw(12), draw(5)
    ratios = policy - reference
    ours = compute_pair_losses(ratios[:6], ratios[6:], 0.3)
    assert torch.allclose(ours, trl_dpo(policy[:6], policy[6:], reference[:6], reference[6:], 0.3), atol=1e-5)
    is_liked = torch.tensor(chance.random(12) < 0.5)
    ours = compute_thumb_losses(ratios, is_liked, kl, 0.3)
    assert torch.allclose(ours, trl_kto(policy, reference, is_liked, kl, 0 * kl, 0.3), atol=1e-5)


class Network:
    "A model that gives log-probabilities of tokens, as TRL's patched models do."

    def __init__(self, lora):
        self.lora, self.training = lora, False

    def __call__(self, input_ids, attention_mask, labels, **rest):
        logits = self.lora(input_ids, attention_mask=attention_mask).logits[:, :-1].log_softmax(-1)
        words = labels[:, 1:].clamp(min=0)
        chances = logits.gather(-1, words[..., None])[..., 0] * (labels[:, 1:] != -100)
        kinds = dict(is_top1=torch.bool)
        others = dict(
            __getattr__=lambda self, name: torch.zeros_like(chances, dtype=kinds.get(name))
        )  # for its metrics
        outputs = type("Outputs", (), others)()
        outputs.log_probs = chances
        return outputs


def make_trainer(kind, lora, **settings):
    "A trainer of TRL without its data set: only what its loss reads."
    bare = type("Bare", (kind,), dict(__getattr__=lambda self, name: 0))
    trainer, same = object.__new__(bare), lambda values: values
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=same, gather=same, num_processes=1)
    metrics = {mode: defaultdict(list) for mode in ("train", "eval")}
    settings |= dict(beta=0.1, precompute_ref_logps=True, label_smoothing=0.0, model=Network(lora))
    vars(trainer).update(settings, accelerator=accelerator, _metrics=metrics, args=SimpleNamespace())
    return trainer


def take_rows(batch, *roles) -> tuple:  # (inputs of TRL, log-likelihoods under the reference)
    "The rows of some roles, in the order of the roles."
    order = [i for role in roles for i in np.flatnonzero(np.isin(batch["role"], ROLES.index(role)))]
    inputs = {name: batch[name][order] for name in ("input_ids", "attention_mask")}
    return inputs | dict(completion_mask=(batch["labels"][order] != -100).long()), -batch["reference_nll"][order]


def test_pairs_have_the_loss_of_the_trainer_itself():
    "TRL's own code on the same rows, where it is installed."
    dpo = pytest.importorskip("trl.trainer.dpo_trainer")
    model, lora = adapted()
    batch = batch_of([Preference(*pair) for pair in zip(CHOSEN, REJECTED)], [], model, lora)
    ours = compute_mixed_loss(response_nll(lora, batch), batch, count_step([batch])).item()
    inputs, reference = take_rows(batch, "liked of pair", "disliked of pair")
    inputs |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), reference.chunk(2)))
    settings = dict(ld_alpha=None, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0])
    trainer = make_trainer(dpo.DPOTrainer, lora, **settings)
    assert abs(ours - trainer._compute_loss(trainer.model, inputs, False).item()) < 1e-5


def test_thumbs_have_the_loss_of_the_trainer_itself():
    "TRL's own code on the same rows, where it is installed."
    kto = pytest.importorskip("trl.trainer.kto_trainer")
    model, lora = adapted()
    batch = batch_of([Preference(CHOSEN[0]), Preference(CHOSEN[2]), Preference(None, REJECTED[1])], [], model, lora)
    ours = compute_mixed_loss(response_nll(lora, batch), batch, count_step([batch])).item()
    inputs, reference = take_rows(batch, "liked", "disliked")
    mismatched, kl_reference = take_rows(batch, "mismatched")
    inputs |= {f"KL_{name}": values for name, values in mismatched.items()}
    inputs |= dict(label=torch.tensor([True, True, False]), ref_logps=reference, ref_KL_logps=kl_reference)
    settings = dict(calculate_KL=True, loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0)
    trainer = make_trainer(kto.KTOTrainer, lora, **settings)
    assert abs(ours - trainer._compute_loss(trainer.model, inputs, False).item()) < 1e-5


def test_texts_alone_have_the_loss_that_they_had():
    model, lora = adapted()
    batch = batch_of([], TEXTS, model, lora)
    nll = response_nll(lora, batch)
    num_labels = int((batch["labels"][:, 1:] != -100).sum())
    assert "role" not in batch and count_step([batch]) == (num_labels, 0.0)
    assert compute_mixed_loss(nll, batch, (num_labels, 0.0)).item() == (nll.sum() / num_labels).item()


def test_parts_of_a_mixed_step_add_up_over_its_batches():
    model, lora = adapted()
    pairs = [Preference(a, b, weight) for a, b, weight in zip(CHOSEN, REJECTED, (1.0, 0.5, 0.2))]
    whole = batch_of(pairs, TEXTS, model, lora)
    parts = [batch_of(pairs[:1], TEXTS[:3], model, lora), batch_of(pairs[1:], TEXTS[3:], model, lora)]
    best = SimpleNamespace(compute_nll=lambda batch, bfloat16: response_nll(lora, batch))
    at_once, in_parts = add_gradients([whole], best, False), add_gradients(parts, best, False)
    assert abs(at_once - in_parts) < 1e-5
    texts = add_gradients([batch_of([], TEXTS, model, lora)], best, False)
    weights = torch.tensor([1.0, 0.5, 0.2])
    ratios = whole["reference_nll"] - response_nll(lora, whole)
    role = lambda name: ratios[whole["role"] == ROLES.index(name)]
    expected = (compute_pair_losses(role("liked of pair"), role("disliked of pair")) * weights).sum() / weights.sum()
    assert abs(at_once - texts - expected.item()) < 1e-5


def test_the_reference_is_the_model_without_its_adapter():
    model, lora = adapted()
    samples = make_preference_samples([Preference(CHOSEN[0], REJECTED[0])], lambda d: model.encode(d, 128))
    lora.train()
    set_reference_losses(samples, lora, lambda batch: response_nll(lora, batch), 0)
    assert lora.training
    rows = collate_samples(samples[0]["rows"], 0)
    expected = response_nll(model.model, rows).tolist()
    assert np.allclose([row["reference_nll"] for row in samples[0]["rows"]], expected, atol=1e-4)
    assert not np.allclose(response_nll(lora.eval(), rows).tolist(), expected, atol=1e-3)


def test_choices_move_a_fine_tune():
    "Planted truth: after the same number of steps the margin of the pairs grew, and texts were still learned."
    model = shared("llama")
    pairs = [Preference(*pair) for pair in zip(CHOSEN, REJECTED)]
    config = TuningConfig(steps=10, validation=0.0, dropout=0.0, batch_size=4, learning_rate=5e-3)

    def margin(adapter):
        with model.use_adapter(adapter):
            liked, disliked = (model.nll(dialogues)[:, 0] for dialogues in (CHOSEN, REJECTED))
            return float((disliked - liked).mean()), float(model.nll(TEXTS)[:, 0].mean())

    without = margin(finetune(model, TEXTS, config, progress=False))
    given = margin(finetune(model, TEXTS, config, progress=False, preferences=pairs))
    assert given[0] > without[0] + 5 and given[1] < margin(None)[1]
