"One class over four architectures: batches, generation, adapters for a while, the bill."

import os
from contextlib import suppress

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, random_adapter, same, shared, tiny, tiny_tokenizer, weights

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import Model, load_model
from personal_llm.base.replies import ReplyOptions  # noqa: F401 (brings `Model.reply`)
from personal_llm.base.tokens import encode_prompt

FEW = [
    Dialogue("What ties muscle to bone?", "A tendon."),
    Dialogue("Hi", "Hello there, and a very good morning to you."),
    Dialogue("And then?", "Tea.", history=(("user", "I got up early."), ("assistant", "Well done! What did you do?"))),
    Dialogue("Größe? 🙂", "Ünïcode 🙃 مرحبا"),
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    "A random adapter for the tiny Llama."
    return random_adapter(shared("llama"), tmp_path_factory.mktemp("adapter"))


# ---- reading


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_reads_as_each_alone(architecture):
    model = shared(architecture)
    together = model.run_forward(FEW)
    for d, got in zip(FEW, together):
        alone = model.run_forward([d])[0]
        tokens = len(model.encode(d)["input_ids"])
        assert alone.tokens == got.tokens and got.hidden.shape == alone.hidden.shape == (tokens, model.width)
        assert np.allclose(alone.hidden, got.hidden, atol=1e-4) and abs(alone.nll - got.nll) < 1e-3
    backwards = [r.nll for r in model.run_forward(FEW[::-1])]
    assert backwards == pytest.approx([r.nll for r in together][::-1], rel=1e-4), "order"


def test_batches_are_counted_in_tokens(monkeypatch):
    model, sizes = tiny("llama"), []
    forward = model.model.forward

    def counted(input_ids, **settings):
        sizes.append(input_ids.numel())
        return forward(input_ids=input_ids, **settings)

    monkeypatch.setattr(model.model, "forward", counted)
    whole = model.nll(FEW * 5)
    assert len(sizes) == 1
    model.tokens_per_batch = 60
    sizes.clear()
    assert np.allclose(model.nll(FEW * 5), whole, rtol=1e-4)
    assert len(sizes) > 5 and max(sizes) <= 60


def test_memory_is_bounded(monkeypatch):
    "A batch's logits are bounded whatever the vocabulary, and caches forget; what a user has set stays."
    model = shared("llama")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    assert load_model((model.model, model.tokenizer)).tokens_per_batch * len(model.tokenizer) <= 2**26
    assert os.environ["LRU_CACHE_CAPACITY"] == "7" and os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"


def test_nothing_to_read():
    model = shared("llama")
    assert model.run_forward([]) == [] and model.generate([]) == [] and model.nll([]).shape == (0, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nll_by_hand(architecture):
    "Log-softmax, pick, sum: the response and its end token, each told by what stands before it."
    model = shared(architecture)
    for d in FEW:
        sample = model.encode(d)
        with torch.no_grad():
            scores = torch.log_softmax(model.model(torch.tensor([sample["input_ids"]])).logits[0].double(), -1)
        terms = [-scores[t - 1, label].item() for t, label in enumerate(sample["labels"]) if label != -100]
        assert model.nll([d])[0] == pytest.approx([sum(terms), len(terms)], rel=1e-4)
        learned = model.tokenizer.decode([i for i in sample["labels"] if i != -100])
        assert learned.lstrip() == d.response + model.tokenizer.eos_token  # a space may be part of the first token


# ---- generating


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_ignores_padding(architecture):
    "Against a loop of forward passes without padding or cache."
    model = shared(architecture)
    prompts = ["Hi", "What should I cook tonight for my whole family?", FEW[2]]
    together = model.generate(prompts, max_new_tokens=6)
    assert together == [model.generate([p], max_new_tokens=6)[0] for p in prompts]
    for prompt, answer in zip(prompts, together):
        d = Dialogue(prompt, "x") if isinstance(prompt, str) else prompt
        ids = encode_prompt(model.tokenizer, d, 100)["input_ids"]
        template = model.tokenizer.apply_chat_template
        assert ids == list(template(d.messages()[:-1], add_generation_prompt=True, return_dict=False))
        new = []
        while len(new) < 6 and model.tokenizer.eos_token_id not in new:
            with torch.no_grad():
                new.append(int(model.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        assert answer == model.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_a_repetition_penalty_of_the_model_itself_is_left_out():
    "It counts the prompt, so it would punish forms that a reply copies from its examples."
    model = tiny("llama")
    plain = model.generate(["Hi", "Why?"], 8)
    model.model.generation_config.repetition_penalty = 2.0
    assert plain == model.generate(["Hi", "Why?"], 8)


@pytest.mark.parametrize("call", ["generate", "reply", "nll", "run_forward"])
def test_one_text_or_one_dialogue_is_refused(call):
    model = shared("llama")
    with pytest.raises(InputError, match=rf"{call} takes a list, and this is one text; write {call}\(\['Hi there'\]\)"):
        getattr(model, call)("Hi there")
    with pytest.raises(InputError, match=rf"{call} takes a list, and this is one dialogue"):
        getattr(model, call)(FEW[0])


def test_generate_with_a_temperature_repeats_and_leaves_the_global_generator_alone():
    model = shared("llama")
    drawn = lambda seed: model.generate(["Hi"], max_new_tokens=8, temperature=1.0, seed=seed)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = drawn(1)
    assert torch.equal(torch.rand(1), expected)
    assert one == drawn(1) != drawn(2)


@pytest.mark.parametrize("wrong", [[5], [None], [dict(prompt="a")], ["  "]], ids=str)
def test_prompts_that_are_none_are_one_line(wrong):
    with pytest.raises(InputError, match="a dialogue|empty prompt"):
        shared("llama").generate(wrong)


# ---- what was cut


def test_dialogues_that_were_cut_are_counted():
    model = tiny("llama", max_length=64)
    long = Dialogue("word " * 300, "so.", history=[("user", "a"), ("assistant", "b")])
    model.run_forward([*FEW, long])
    assert list(model.truncated) == [long.id] and model.truncated[long.id] > 50
    short = Dialogue("word " * 100, "so.")
    assert model.encode(short)["num_truncated"] > 0 == model.encode(short, 200)["num_truncated"]
    assert list(model.truncated) == [long.id], "as it was encoded last"
    assert len(model.encode(long, 10_000)["input_ids"]) == 256 == model.window
    model.generate([FEW[0], long], max_new_tokens=4)
    assert list(model.truncated) == [long.id]


def test_ten_megabytes_and_lone_surrogates_are_read():
    model = tiny("llama", max_length=64)
    huge, half = Dialogue("x y " * 2_500_000, "so."), Dialogue("half \ud83d", "\udc00 more")
    assert np.isfinite(model.nll([huge, half])).all() and len(model.reply([huge, half], 4)) == 2
    assert list(model.truncated) == [huge.id]


# ---- adapters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_using_restores_the_base_bit_by_bit(architecture, tmp_path):
    model = tiny(architecture)
    folder, before, kind, losses = random_adapter(model, tmp_path), weights(model), type(model.model), model.nll(FEW)

    def bare():
        return same(model, before) and np.array_equal(model.nll(FEW), losses) and model.active_adapter == model.base

    with model.use_adapter(folder) as inside:
        assert inside is model and not np.allclose(model.nll(FEW), losses)
        assert model.active_adapter.startswith(model.base + "+")
        with model.use_adapter(None):
            assert not np.allclose(model.nll(FEW), losses)
    assert bare()
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with suppress(error):
            with model.use_adapter(folder):
                raise error
        assert bare() and type(model.model) is kind
    with model.use_adapter(None):
        assert bare()


def test_a_live_model_with_an_adapter_says_so(adapter):
    from peft import PeftModel

    raw = tiny("llama")
    one = load_model((PeftModel.from_pretrained(tiny("llama").model, adapter), raw.tokenizer))
    assert one.base == raw.base != one.active_adapter
    with pytest.raises(InputError, match="another adapter is attached"):
        with one.use_adapter(adapter):
            pass


# ---- a model and a tokenizer


def test_live_objects():
    raw = shared("smollm", "chatml").model
    model = load_model((raw, tiny_tokenizer("chatml")), chat_template="plain", max_length=77)
    assert model.model is raw and model.name == "live" and model.max_length == 77
    assert "Assistant: " in model.tokenizer.decode(model.encode(FEW[0])["input_ids"])
    bare = tiny_tokenizer("plain")
    bare.chat_template = None
    with pytest.raises(InputError, match="chat-template plain"):
        load_model((shared("llama").model, bare))
    other = load_model((tiny("llama", seed=1).model, bare), chat_template="plain")
    assert other.base != shared("llama").base == tiny("llama").base


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(InputError, match="8194 tokens, the model knows 8192"):
        load_model((tiny("llama").model, tiny_tokenizer("chatml")))


# ---- the bill


def test_a_block_that_fails_is_billed():
    model = tiny("llama")
    with suppress(ZeroDivisionError):
        with model.track_cost() as cost:
            model.run_forward(FEW)
            1 / 0
    assert cost.forward == model.cost.forward == 4


def test_weights_wait_and_go(adapter):
    "A function loads them once for two threads; a block without them only notes its adapter; `unload` forgets them."
    from threading import Thread

    raw = tiny("llama")
    losses = raw.nll(FEW)
    calls = []
    load = lambda: calls.append(1) or tiny("llama").model
    model = Model(load, raw.tokenizer, max_length=128, base=raw.base)
    with model.use_adapter(adapter):
        assert model.active_adapter != model.base and not calls
    threads = [Thread(target=lambda: model.width) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and np.allclose(model.nll(FEW), losses)
    with raw.use_adapter(adapter):
        adapted = raw.nll(FEW)
    model.unload()
    with model.use_adapter(adapter):
        assert np.allclose(model.nll(FEW), adapted)
        model.unload()
        assert np.allclose(model.nll(FEW), adapted)
    assert np.allclose(model.nll(FEW), losses) and len(calls) == 3
    raw.unload()
    assert np.allclose(raw.nll(FEW), losses), "weights that came as an object stay"


def test_a_name_or_a_network_alone_is_no_model():
    from personal_llm import Personalizer, score

    network = load_model("pocket").model
    for call in (lambda: Personalizer("pocket"), lambda: Personalizer(network), lambda: score(network, [])):
        with pytest.raises(InputError, match=r"isn't a model of this package; write load_model\(name\)"):
            call()
