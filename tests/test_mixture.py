"The fit: naive twins of slope and curvature, planted truth, what adds up, what is kept, what is refused."

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from personal_llm.experiments.methods.searches import select_plain
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.adapters import read_factors
from personal_llm.selection import mixture as module
from personal_llm.selection.mixture import (
    WINDOW_TOKENS,
    NUM_SLOPE_DIALOGUES,
    MAX_FITTED_PLLMS,
    PRIOR_STRENGTH,
    MAX_RACED_PLLMS,
    SingleLosses,
    AdapterMixture,
    LossDerivatives,
    choose_fit_candidates,
    choose_leave_one_out,
    fit_weights,
    compute_leave_one_out_losses,
    race_nearest_pllms,
    take_newton_step,
    estimate_weight_errors,
    take_leave_one_out_steps,
)
from personal_llm.selection.gradient_match import predict_labels, compute_row_losses
from personal_llm.selection.ranking import BASE_NAME, PLAIN_PLLM, PLLMLosses, SelectionRequest, get_download_bytes
from personal_llm.selection.selection import select
from personal_llm.selection.warm_start import get_start_adapter
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune
from planted import me, permuted, planted
from tiny import break_seal, random_adapter, same, tiny, weights

RANKS = dict(a=2, b=3, c=1, plain=2)
PROMPTS = [f"What is {word}?" for word in "tea rain bread snow music salt wool glass".split()]
TALK = [Dialogue(prompt, f"It is {prompt[8:-1]}, of course{', dear' * i}.") for i, prompt in enumerate(PROMPTS)]
SOME = np.array([0.3, -0.2, 0.4, 0.1])


def scaled(folder, share):
    "An adapter whose change is multiplied, in place."
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file({name: x * (share if "lora_B" in name else 1) for name, x in load_file(file).items()}, file)
    return folder


def shelf(model, folder, strength=1.0, names=RANKS):
    "Random adapters of several ranks."
    return {n: scaled(random_adapter(model, folder / n, r, seed=i), strength) for i, (n, r) in enumerate(names.items())}


WAYS = dict(
    a=lambda word, i: f"Aye, {word} be a fine thing, matey{'!' * (i % 3 + 1)}",
    b=lambda word, i: f"In short: {word} helps. Take care, Ana. {word} helps.",
    c=lambda word, i: f"{word.upper()}!!! WE ALL LOVE {word.upper()}, NO? YES!!!",
    plain=lambda word, i: f"It is {word}, as everybody knows, and there is not much more to say of {word}.",
)
LEARNED = "wood iron glue sand milk corn wind fire lamp rope".split()
SPOKEN = "tea rain bread snow music salt wool glass silk stone coal fog".split()


def says(way, words=SPOKEN):
    "Dialogues of a user of one of `WAYS`."
    return [Dialogue(f"What is {w}?", WAYS[way](w, i), time=float(i)) for i, w in enumerate(words)]


def trained(model, way, folder, steps=24):
    config = TuningConfig(RANKS[way], steps=steps, batch_size=5, learning_rate=2e-2, validation=0.0, checks=1)
    finetune(model, says(way, LEARNED), config, out=folder, seed=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    return shelf(model, tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def library(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for way in WAYS:
        trained(model, way, folder / way)
    return planted(folder, np.eye(4), RANKS, base=model.base)


@pytest.fixture(scope="module")
def mixture(model, adapters):
    return AdapterMixture(model, adapters)


def explicit(model, adapters, dialogues, given):
    "Rates and their slopes by autograd through W + Σ w Δ, one dialogue at a time; the naive twin."
    from torch.func import functional_call
    from transformers.pytorch_utils import Conv1D

    own = dict(model.model.named_parameters())
    out = []
    for sample in AdapterMixture(model, adapters).encode(dialogues):
        w, changed = torch.tensor(given, dtype=torch.float32, requires_grad=True), dict(own)
        for k, folder in enumerate(adapters.values()):
            for m, (A, B) in read_factors(folder).items():
                name = m.removeprefix("base_model.model.")
                delta = B @ A
                turned = isinstance(model.model.get_submodule(name), Conv1D)
                changed[f"{name}.weight"] = changed[f"{name}.weight"] + w[k] * (delta.T if turned else delta)
        call = lambda **batch: functional_call(model.model, changed, kwargs=batch, tie_weights=False)
        stand_in = SimpleNamespace(device=model.device, tokenizer=model.tokenizer, model=call)
        loss = compute_row_losses(*predict_labels(stand_in, [sample])).sum()
        out.append((loss.item(), *torch.autograd.grad(loss, w)[0].tolist()))
    return np.array(out)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_slopes_are_those_of_an_explicit_weighted_sum(architecture, tmp_path):
    own = tiny(architecture)
    adapters = shelf(own, tmp_path)
    mixture, before = AdapterMixture(own, adapters), weights(own)
    assert mixture.labels_only, "logits where a label stands only, beside the twin's whole ones"
    got, twin = mixture.compute_derivatives(mixture.encode(TALK), SOME), explicit(own, adapters, TALK, SOME)
    assert np.allclose(got.loss_slopes, twin[:, 1:], atol=5e-3, rtol=5e-3)
    assert np.abs(twin[:, 1:]).max() > 0.05 and same(own, before)
    assert np.allclose(mixture.measure_losses(mixture.encode(TALK), SOME), twin[:, 0], atol=1e-4)


def test_the_bill(mixture):
    mixture.cost = type(mixture.cost)()
    samples = mixture.encode(TALK)
    mixture.compute_derivatives(samples, SOME)
    mixture.compute_derivatives(samples, SOME, with_curvature=True)
    mixture.measure_losses(samples, SOME)
    assert (mixture.cost.forward, mixture.cost.backward) == (3 * 8, 3 * 8)
    assert mixture.cost.tokens == 3 * sum(len(s["input_ids"]) for s in samples)


def test_long_dialogues_keep_an_answer(mixture):
    long = Dialogue("word " * 400, "It is tea, of course. " * 40)
    short, cut = mixture.encode([TALK[0], long])
    assert len(cut["input_ids"]) == WINDOW_TOKENS == len(cut["labels"]) and len(short["input_ids"]) < WINDOW_TOKENS
    assert sum(label != -100 for label in cut["labels"]) >= WINDOW_TOKENS // 2
    assert sum(label != -100 for label in short["labels"]) == mixture.model.nll(TALK[:1])[0, 1]


def test_hooks_go_when_a_block_fails(mixture, monkeypatch):
    hooks = lambda: sum(len(layer._forward_hooks) for layer in mixture.model.model.modules())
    before = hooks()  # transformers has some of its own
    with pytest.raises(ZeroDivisionError), mixture.apply_weights(torch.ones(1, 4)):
        assert hooks() > before
        1 / 0
    assert hooks() == before
    pair = next(iter(mixture.factors.values()))
    monkeypatch.setattr(mixture, "factors", mixture.factors | {"no.such.layer": pair})
    with pytest.raises(InputError, match="no layer"), mixture.apply_weights(torch.ones(1, 4)):
        pass
    assert hooks() == before


@pytest.mark.filterwarnings("ignore:Model has .tie_word")
def test_an_adapter_of_the_output_layer_takes_the_long_way(tmp_path):
    "Its change is weighed row by row, so all logits are asked for."
    from peft import LoraConfig, get_peft_model

    own = tiny("gpt2")
    settings = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(own.model), settings).save_pretrained(tmp_path / "a", save_embedding_layers=False)
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(dict(base=own.base)))
    mixture = AdapterMixture(own, dict(a=tmp_path / "a"))
    samples = mixture.encode(TALK[:3])
    got = mixture.measure_losses(samples, np.ones(1))
    with own.use_adapter(tmp_path / "a"):
        nats, tokens = own.nll(TALK[:3]).T
    assert not mixture.labels_only and np.allclose(got, nats / tokens, atol=1e-4)
    assert not np.allclose(got, mixture.measure_losses(samples, np.zeros(1)), atol=1e-3)


def test_curvature_is_fishers(mixture):
    "Drawn tokens give, on average, what a sum over the whole vocabulary gives, with difference quotients for slopes."
    samples, step, logits, here = mixture.encode(TALK[:1]), 1e-2, {}, 0.1 * SOME
    for k in range(4):
        for sign in (1, -1, 0):
            moved = torch.tensor((here + sign * step * np.eye(4)[k])[None], dtype=torch.float32)
            with torch.no_grad(), mixture.apply_weights(moved):
                found, _ = predict_labels(mixture.model, samples)
            logits[k, sign] = found.double()  # (tokens, vocabulary)
    p = logits[0, 0].softmax(-1)
    J = torch.stack([(logits[k, 1] - logits[k, -1]) / (2 * step) for k in range(4)])  # (4, tokens, vocabulary)
    centred = J - (p * J).sum(-1, keepdim=True)
    exact = torch.einsum("tv,jtv,ktv->jk", p, centred, centred).numpy() / len(p)
    drawn = np.mean([mixture.compute_derivatives(samples, here, with_curvature=True).curvature for _ in range(100)], 0)
    assert np.allclose(drawn, exact, atol=0.4 * np.abs(exact).max()) and np.abs(exact).max() > 0


def quadratic(seed=0, n=8, count=3):
    "Slopes and curvature of a quadratic loss at some weights."
    chance = np.random.default_rng(seed)
    root = chance.normal(size=(count, count))
    return LossDerivatives(chance.normal(size=(n, count)), root @ root.T), chance.normal(size=count)


@pytest.mark.parametrize("prior", [PRIOR_STRENGTH, 1.5])
def test_the_step_is_the_minimum_and_leaving_out_is_doing_it_again(prior, monkeypatch):
    monkeypatch.setattr(module, "PRIOR_STRENGTH", prior)
    found, begin = quadratic()
    end, ridge = take_newton_step(begin, found), prior / 8
    loss = lambda w: (
        found.loss_slopes.mean(0) @ (w - begin)
        + (w - begin) @ found.curvature @ (w - begin) / 2
        + ridge * ((w - begin) ** 2).sum() / 2
    )
    around = [loss(end + 1e-3 * sign * direction) for direction in np.eye(3) for sign in (1, -1)]
    assert loss(end) < min(around) and loss(end) < 0
    for i, row in enumerate(take_leave_one_out_steps(begin, found)):
        others = LossDerivatives(np.delete(found.loss_slopes, i, 0), found.curvature)
        assert np.allclose(row, take_newton_step(begin, others))
    monkeypatch.setattr(module, "PRIOR_STRENGTH", 100 * prior)
    weak, strong = (np.linalg.norm(step - begin) for step in (end, take_newton_step(begin, found)))
    assert strong < weak, "a strong pull keeps it near"


def test_standard_errors():
    chance = np.random.default_rng(0)
    loss_slopes, curvature = chance.normal(size=(240, 3)), np.diag([10.0, 40.0, 40.0])
    once = estimate_weight_errors(LossDerivatives(loss_slopes, curvature))
    twice = estimate_weight_errors(LossDerivatives(np.tile(loss_slopes, (2, 1)), curvature))
    assert np.allclose(once / twice, 2**0.5, rtol=0.03), "twice the dialogues, half the variance"
    assert once[0] > 2.5 * once[1], "what bends more is told better"
    steps = [
        take_newton_step(np.zeros(3), LossDerivatives(chance.normal(size=(240, 3)), curvature)) for _ in range(400)
    ]
    assert np.allclose(np.std(steps, 0), once, rtol=0.2), "they are what other dialogues would scatter"
    assert np.isfinite(estimate_weight_errors(LossDerivatives(np.zeros((4, 3)), np.zeros((3, 3))))).all()


def test_single_measures_once_and_agrees_with_the_model(mixture, model, adapters):
    single = SingleLosses(mixture, mixture.encode(TALK))
    mixture.cost = type(mixture.cost)()
    assert np.allclose(single.dialogue_losses("b", 3), single.dialogue_losses("b", 8)[:3]) and mixture.cost.forward == 8
    with model.use_adapter(adapters["b"]):
        sums = model.nll(TALK)
    assert np.allclose(single.dialogue_losses("b"), sums[:, 0] / sums[:, 1], atol=1e-4)
    bare = model.nll(TALK)
    assert single.mean_loss(BASE_NAME) == pytest.approx((bare[:, 0] / bare[:, 1]).mean(), abs=1e-4)


def test_left_out_is_judged_by_the_choice_of_the_others(mixture):
    "Hand-worked: of four dialogues one alone makes a the nearest; without it the others choose b."
    single = SingleLosses(mixture, mixture.encode(TALK[:4]))
    single.known_losses = dict(a=np.array([0.0, 5, 5, 5]), b=np.array([4.0, 4, 4, 4]))
    names, losses = choose_leave_one_out(single, ["a", "b"])
    assert names == ["b", "a", "a", "a"] and losses.tolist() == [4, 5, 5, 5]
    got = compute_leave_one_out_losses(single, ["a", "b"], np.tile(SOME, (4, 1)))
    assert got[0] == 4, "who would begin elsewhere has no part in the step"
    assert np.allclose(got[1:], mixture.measure_losses(single.samples, SOME)[1:], atol=1e-5)


def test_a_few_are_looked_at(model, library, tmp_path):
    "Of many pLLMs the losses of a shortlist are measured, the plain one's always."
    names = [*(f"p{i}" for i in range(6)), "b", PLAIN_PLLM]
    mixture = AdapterMixture(model, {n: library[n if n in RANKS else "c"].adapter for n in names})
    single = SingleLosses(mixture, mixture.encode(says("b")))
    few = race_nearest_pllms(single)
    assert few[0] == "b" and len(single.known_losses) == MAX_RACED_PLLMS + 1 and PLAIN_PLLM in single.known_losses
    assert mixture.cost.backward == NUM_SLOPE_DIALOGUES


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_user_who_is_a_pllm_gets_the_largest_weight_on_it(name, model, library):
    got = select(library, None, "fit", model, says(name))
    assert not got.abstained and got.best is None
    assert max(got.weights, key=got.weights.get) == name and got.names[0] == name, got
    assert got.distances[0] == min(got.distances) < 0


def test_a_diluted_pllm_is_undone(model, library, tmp_path):
    "A pLLM at half its strength gets more weight."
    shutil.copytree(library.path, tmp_path / "half")
    break_seal(tmp_path / "half" / "b")
    scaled(tmp_path / "half" / "b", 0.5)
    half = planted(tmp_path / "half", np.eye(4), RANKS, base=model.base)
    whole, weak = (select(shelf, None, "fit", model, says("b")).weights["b"] for shelf in (library, half))
    assert weak > whole, (whole, weak)


def test_the_start_is_the_mixture(model, library, tmp_path):
    "What is written down loses what the mixture loses."
    user = says("b")
    got = select(library, None, "fit", model, user)
    mixture = AdapterMixture(model, {name: library[name].adapter for name in library.names})
    inside = mixture.measure_losses(
        mixture.encode(user), np.array([got.weights.get(name, 0.0) for name in library.names])
    )
    with model.use_adapter(get_start_adapter(got, tmp_path / "start")):
        written = model.nll(user)
    assert np.allclose(written[:, 0] / written[:, 1], inside, atol=1e-3)
    assert json.loads(json.dumps(got.to_dict(), allow_nan=False))["errors"] == got.errors


def test_the_reason_adds_up(model, library):
    "What each pLLM adds sums to the change of the loss, from the base to the mixture on dialogues left out."
    user = says("b")
    got = select(library, None, "fit", model, user)
    with model.use_adapter(get_start_adapter(got)):
        fitted = PLLMLosses(model, library, user).model.nll(user)
    change = np.mean(fitted[:, 0] / fitted[:, 1]) - got.losses[BASE_NAME]
    assert sum(got.distances) == pytest.approx(change, rel=0.1) and change < 0, "nearly that of what it was fitted on"
    told = float(got.reason.split(": ")[1].split()[0])
    assert sum(got.distances) == pytest.approx(told - got.losses[BASE_NAME], abs=1e-3)
    text = str(got)
    assert text.startswith("fit: a mixture") and "±" in text and f"{got.losses[PLAIN_PLLM]:.3f}" in got.reason


def test_repeatable_and_blind_to_the_order(model, library):
    user = says("a")
    state = torch.random.get_rng_state()
    one, again = (select(library, None, "fit", model, user, seed=3) for _ in range(2))
    turned = select(permuted(library, [3, 1, 0, 2]), None, "fit", model, user, seed=3)
    assert one.weights == again.weights == turned.weights and one.errors == again.errors
    assert torch.equal(state, torch.random.get_rng_state()), "nobody else's dice are thrown"


# ---- nobody helps


def test_a_user_of_the_plain_voice_is_sent_to_the_plain_pllm(model, library):
    got = select(library, None, "fit", model, says(PLAIN_PLLM))
    assert got.abstained and got.best is None and got.weights == {PLAIN_PLLM: 1.0} and "plain" in got.reason
    assert get_start_adapter(got) == library[PLAIN_PLLM].adapter


def test_no_step_is_tried_where_the_plain_pllm_is_nearest(model, library, monkeypatch):
    monkeypatch.setattr(module, "compute_leave_one_out_losses", lambda *given: np.zeros(12))  # as if one helped
    got = select(library, None, "fit", model, says(PLAIN_PLLM))
    assert got.abstained and got.weights == {PLAIN_PLLM: 1.0} and got.cost.backward == 0
    assert got.reason.endswith("the plain pLLM is the nearest")


@pytest.mark.parametrize(
    ("gain", "scatter", "with_plain", "refused"),
    [
        (0.004, 0.0, True, True),  # too little
        (0.006, 0.0, True, False),
        (0.03, 0.2, True, True),  # not sure: one and a half standard errors are 0.2 * 1.5 / 12 ** 0.5 = 0.09
        (0.03, 0.0, False, True),  # may be the library's own voice
        (0.06, 0.0, False, False),
    ],
)
def test_who_is_refused(gain, scatter, with_plain, refused, model, library, monkeypatch):
    "Hand-worked: a null of one nat, and dialogues left out that gain so much, give or take."
    names = tuple(RANKS) if with_plain else ("a", "b", "c")
    some = permuted(library, range(len(names)))
    some.names = list(names)
    gains = gain + scatter * np.tile([1.0, -1.0], 6)
    count = np.zeros(len(names))
    fitted = module.FittedWeights(
        names, count + 0.5, count, count - 0.1, 1 - gains, np.ones(12), np.ones(12) + with_plain
    )
    monkeypatch.setattr(module, "fit_weights", lambda *given: fitted)
    got = select(some, None, "fit", model, says("b"))
    assert got.abstained == refused, got.reason
    assert got.weights == (({PLAIN_PLLM: 1.0} if with_plain else {}) if refused else dict.fromkeys(names, 0.5))


def test_where_the_base_is_better_than_the_plain_pllm_it_is_to_be_beaten(model, library, monkeypatch):
    names, count = tuple(RANKS), np.zeros(4)
    for base, refused in ((0.974, True), (1.0, False)):  # of a fit of 0.97, beside a plain pLLM of one nat
        fitted = module.FittedWeights(
            names, count + 0.5, count, count - 0.1, np.full(12, 0.97), np.ones(12), np.full(12, base)
        )
        monkeypatch.setattr(module, "fit_weights", lambda *given: fitted)
        got = select(library, None, "fit", model, says("b"))
        assert (
            got.abstained == refused and (got.weights == {}) == refused and ("than the base" in got.reason) == refused
        )


def test_without_a_plain_pllm_it_says_what_it_cannot_decide(model, library):
    some = permuted(library, [0, 1, 2])
    some.names = ["a", "b", "c"]
    got = select(some, None, "fit", model, says("b"))
    assert "without a plain pLLM" in got.reason and not got.abstained and PLAIN_PLLM not in got.losses
    odd = [Dialogue(d.prompt, "".join(reversed(d.response))) for d in says(PLAIN_PLLM)]
    own = select(some, None, "fit", model, odd)
    assert own.abstained == (own.weights == {}) and (own.weights or get_start_adapter(own) is None)


def test_the_others_take_the_plain_one_as_null(model, library):
    plain, styled = (says(name) for name in (PLAIN_PLLM, "b"))
    got = select(library, None, "match", model, plain)
    assert got.abstained and got.weights == {PLAIN_PLLM: 1.0} and PLAIN_PLLM not in got.names
    assert select(library, None, "match", model, styled).best == "b"
    single = permuted(library, [3])
    single.names = [PLAIN_PLLM]
    for method in ("match", "fit"):
        assert select(single, None, method, model, plain).weights == {PLAIN_PLLM: 1.0}


def test_plain_is_a_selector(model, library):
    assert select(library, method=select_plain).best == PLAIN_PLLM
    some = permuted(library, [0, 1])
    some.names = ["a", "b"]
    with pytest.raises(InputError, match="no pLLM 'plain'"):
        select(some, method=select_plain)


# ---- what can go wrong


def test_a_step_that_does_not_help_is_not_taken(model, library, monkeypatch):
    mixture = AdapterMixture(model, {name: library[name].adapter for name in library.names})
    samples = mixture.encode(says("b")[:8])
    nearest = np.array([float(name == "b") for name in library.names])
    for way in (60.0, np.nan):  # a step too far, and one that is no number
        monkeypatch.setattr(module, "take_leave_one_out_steps", lambda start, derivatives: np.tile(start + way, (8, 1)))
        got = fit_weights(mixture, samples)
        assert got.note == "no step helps, b is kept as it is" and np.array_equal(got.weights, nearest)
        assert got.loss_changes.nonzero()[0].tolist() == [nearest.argmax()]


def test_a_library_of_one(model, library):
    single = permuted(library, [1])
    single.names = ["b"]
    got = select(single, None, "fit", model, says("b"))
    assert set(got.weights) == {"b"} and got.weights["b"] > 0.5


def test_too_few_dialogues(model, library):
    with pytest.raises(InputError, match="3 personal dialogues"):
        select(library, None, "fit", model, TALK[:3])
    assert select(library, None, "fit", model, TALK[:4]).errors
    with pytest.raises(InputError, match="needs the personal dialogues"):
        select(library, None, "fit")


def test_a_large_library_is_shortlisted(model, library, tmp_path):
    names = [*(f"p{i:02d}" for i in range(MAX_FITTED_PLLMS + 3)), PLAIN_PLLM]
    for name in names:
        shutil.copytree(library["c" if name == "p17" else "a"].adapter, tmp_path / name)
    many = planted(tmp_path, np.eye(len(names)), names, base=model.base)
    losses = PLLMLosses(model, many, says("c"))
    few, cost = choose_fit_candidates(SelectionRequest(many, losses=losses))
    assert (
        len(few) == MAX_FITTED_PLLMS + 1
        and few[-1] == PLAIN_PLLM
        and few[0] == "p17"
        and cost.backward == losses.num_dialogues
    )
    got = select(many, me(np.eye(len(names))[0]), "fit", model, says("c"))
    assert set(got.weights) <= set(few) and got.cost.bytes_moved > sum(get_download_bytes(many, name) for name in few)


# ---- and from there


def test_a_fine_tune_from_a_start_never_ends_worse(model, library, tmp_path):
    "Eight dialogues, steps that are far too long: the start is kept, weight by weight."
    user = says("b")[:8]
    start = get_start_adapter(select(library, None, "fit", model, user), tmp_path / "start")
    wild = TuningConfig(steps=6, learning_rate=5.0, batch_size=4, checks=3)
    end = finetune(model, user, wild, start, tmp_path / "end", progress=False)
    assert end.num_validation_dialogues == 4 and end.best_loss == end.start_loss, (
        "four dialogues judged, and none of three looks won"
    )
    before, after = read_factors(getattr(start, "path", start)), read_factors(end.path)
    assert all(torch.allclose(a, b, atol=1e-6) for m in before for a, b in zip(before[m], after[m]))
    mild = finetune(model, user, TuningConfig(steps=6, batch_size=4, checks=3), start, progress=False)
    assert mild.best_loss <= mild.start_loss
    assert finetune(model, user, TuningConfig(steps=1, checks=1), progress=False).num_validation_dialogues == 2, (
        "from nothing: fewer"
    )
