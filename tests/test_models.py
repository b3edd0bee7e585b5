"One class over four architectures: batches, generation, adapters for a while, the bill."

import os
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, random_adapter, same, shared, tiny, tiny_tokenizer, weights

from personal_llm.base import models
from personal_llm.base.adapters import get_adapter_id
from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.base.decoding import TOY_REPETITION_PENALTY
from personal_llm.base.models import load_model
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shared_beginning_is_read_once_and_changes_no_number(architecture):
    "Against a naive twin: each dialogue alone."
    model = shared(architecture)
    system = [("system", "You are a nurse who likes short words, and you never say more than you know of it.")]
    talk = [Dialogue("Why? " * (1 + n % 7), f"It {n} is so. " * (1 + n % 5), history=system) for n in range(40)]
    lengths = [len(model.encode(d)["input_ids"]) for d in talk]
    with model.track_cost() as cost:
        together = model.run_forward(talk)
    num_shared = (sum(lengths) - cost.tokens) / (len(talk) - 1)
    assert num_shared == int(num_shared) and (num_shared == 0 or num_shared >= models.MIN_SHARED_TOKENS)
    assert num_shared > 0 or architecture not in ("llama", "qwen2"), "they have plain caches"
    for d, got in zip(talk, together):
        (alone,) = model.run_forward([d])
        assert np.allclose(alone.hidden, got.hidden, atol=1e-4) and alone.tokens == got.tokens
        assert np.allclose(alone.token_losses, got.token_losses, atol=1e-4)
        assert got.nll == pytest.approx(alone.nll, rel=1e-4)
        assert got.prompt_nll == pytest.approx(alone.prompt_nll, rel=1e-4) and got.prompt_tokens == alone.prompt_tokens


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
    vocabulary = len(model.model.get_input_embeddings().weight)
    monkeypatch.setattr(models, "MAX_LOGITS_PER_BATCH", 60 * vocabulary + 1)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    assert load_model((model.model, model.tokenizer)).tokens_per_batch == 60
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


def test_readings_know_what_made_them(adapter):
    model = shared("llama")
    assert {r.model for r in model.run_forward(FEW)} == {model.base}
    with model.use_adapter(adapter):
        assert (
            {r.model for r in model.run_forward(FEW)}
            == {f"{model.base}+{get_adapter_id(adapter)}"}
            == {model.active_adapter}
        )


# ---- generating


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("penalty", [1.0, TOY_REPETITION_PENALTY])
def test_generate_ignores_padding(architecture, penalty):
    "Against a loop of forward passes without padding or cache; the penalty by hand."
    model, prompts = shared(architecture), ["Hi", "What should I cook tonight for my whole family?", FEW[2]]
    settings = dict(max_new_tokens=6, repetition_penalty=penalty)
    together = model.generate(prompts, **settings)
    assert together == [model.generate([p], **settings)[0] for p in prompts]
    for prompt, answer in zip(prompts, together):
        d = Dialogue(prompt, "x") if isinstance(prompt, str) else prompt
        ids = encode_prompt(model.tokenizer, d, 100)["input_ids"]
        template = model.tokenizer.apply_chat_template
        assert ids == list(template(d.messages()[:-1], add_generation_prompt=True, return_dict=False))
        new = []
        while len(new) < 6 and model.tokenizer.eos_token_id not in new:
            with torch.no_grad():
                scores = model.model(torch.tensor([ids + new])).logits[0, -1]
            for token in set(new):
                scores[token] *= penalty if scores[token] < 0 else 1 / penalty
            new.append(int(scores.argmax()))
        assert answer == model.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_replies_have_the_penalty_and_answers_have_none():
    "Also for a model that brings another one along."
    model, asked = tiny("llama"), ["Hi", "Why?"]
    plain, penalised = model.generate(asked, 8), model.generate(asked, 8, repetition_penalty=TOY_REPETITION_PENALTY)
    assert TOY_REPETITION_PENALTY == 1.3 and plain != penalised == model.reply(asked, 8)
    model.model.generation_config.repetition_penalty = 2.0
    assert plain == model.generate(asked, 8) and penalised == model.reply(asked, 8)


def test_the_penalty_does_not_count_the_prompt():
    "Neither the words of the history nor padding: over four turns, the reply is as if nothing had been there before."
    model, history = tiny("gpt2"), []
    for turn in range(4):
        asked = Dialogue("What should I cook?", "", history=history)
        (ids,) = model.encode_prompts([asked], 200)
        new = []
        while len(new) < 8 and model.tokenizer.eos_token_id not in new:
            with torch.no_grad():
                scores = model.model(torch.tensor([ids + new])).logits[0, -1]
            for token in set(new):
                scores[token] *= TOY_REPETITION_PENALTY if scores[token] < 0 else 1 / TOY_REPETITION_PENALTY
            new.append(int(scores.argmax()))
        reply = model.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert model.reply([asked, "A much longer prompt, so that the other row is padded."], 8)[0] == reply, turn
        history += [("user", asked.prompt), ("assistant", reply or "So.")]


def test_generate_with_a_temperature_repeats_and_leaves_the_global_generator_alone():
    model = shared("llama")
    drawn = lambda seed: model.generate(["Hi"], max_new_tokens=8, temperature=1.0, seed=seed)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = drawn(1)
    assert torch.equal(torch.rand(1), expected)
    assert one == drawn(1) != drawn(2)


def test_generate_stops_at_the_end_token():
    model = tiny("llama")
    end = model.tokenizer.eos_token_id
    words = model.tokenizer(" one two three", add_special_tokens=False)["input_ids"]

    class Script(torch.nn.Module):
        "Says the same tokens to everybody, end token in the middle."

        generation_config = model.model.generation_config

        def generate(self, input_ids, max_new_tokens, **settings):
            assert settings["eos_token_id"] == [end] and settings["attention_mask"].shape == input_ids.shape
            return torch.cat([input_ids, torch.tensor([words + [end] + words]).expand(len(input_ids), -1)], 1)

    script = Script()
    script.register_parameter("none", torch.nn.Parameter(torch.zeros(1)))
    model.model = script
    assert model.generate(["a", "a longer one"]) == ["one two three"] * 2
    read = sum(len(encode_prompt(model.tokenizer, Dialogue(p, ""), 99)["input_ids"]) for p in ("a", "a longer one"))
    assert model.cost.tokens == read + 2 * len(words) and model.cost.forward == 2


@pytest.mark.parametrize("wrong", [[5], [None], [dict(prompt="a")], ["  "]], ids=str)
def test_prompts_that_are_none_are_one_line(wrong):
    with pytest.raises(InputError, match="is no dialogue|empty prompt"):
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
    assert bare()
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with suppress(error):
            with model.use_adapter(folder):
                raise error
        assert bare() and type(model.model) is kind
    with model.use_adapter(None):
        assert bare()


def test_using_is_plain_peft(adapter):
    from peft import PeftModel

    model, plain = shared("llama"), tiny("llama")
    with model.use_adapter(adapter):
        adapted = model.nll(FEW)
    plain.model = PeftModel.from_pretrained(plain.model, str(adapter)).eval()
    assert np.allclose(adapted, plain.nll(FEW), rtol=1e-6)


@pytest.mark.parametrize("file", ["adapter.json", "adapter_config.json", "adapter_model.safetensors"])
def test_unfit_adapters_are_refused(file, tmp_path):
    "With one line, and the model goes on as before."
    model = tiny("llama")
    folder, before, losses = random_adapter(model, tmp_path / "a"), weights(model), model.nll(FEW)
    for content in (b"{", b'{"base": "another"}', (folder / file).read_bytes()[:20]):
        (folder / file).write_bytes(content)
        with pytest.raises(InputError, match=r"adapter|a:"):
            with model.use_adapter(folder):
                pass
        assert same(model, before) and np.array_equal(model.nll(FEW), losses) and model.active_adapter == model.base


def test_an_adapter_of_another_shape_without_a_card_leaves_the_base_whole(tmp_path):
    "Plain peft folders have no card: peft finds the mismatch itself, after it has changed the model."
    from transformers import LlamaConfig, LlamaForCausalLM

    model = tiny("llama")
    shape = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    other = SimpleNamespace(model=LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape)), base=None)
    folder = random_adapter(other, tmp_path)
    (folder / "adapter.json").unlink()
    before, losses = weights(model), model.nll(FEW)
    with pytest.raises(InputError, match="does not fit"):
        with model.use_adapter(folder):
            pass
    assert same(model, before) and np.array_equal(model.nll(FEW), losses)


def test_one_adapter_at_a_time(adapter):
    "A second one inside the block of a first is refused; the first stays."
    model = shared("llama")
    with model.use_adapter(adapter):
        adapted, name = model.nll(FEW), model.active_adapter
        with pytest.raises(InputError, match="another adapter is attached"):
            with model.use_adapter(adapter):
                pass
        with model.use_adapter(None):
            assert np.array_equal(model.nll(FEW), adapted) and model.active_adapter == name
    assert model.active_adapter == model.base


def test_a_live_model_with_an_adapter_says_so(adapter):
    from peft import PeftModel

    raw = tiny("llama")
    one, other = (
        load_model((PeftModel.from_pretrained(tiny("llama").model, a), raw.tokenizer)) for a in (adapter,) * 2
    )
    assert one.base == raw.base and one.active_adapter == other.active_adapter != one.base
    with pytest.raises(InputError, match="another adapter is attached"):
        with one.use_adapter(adapter):
            pass


@pytest.mark.parametrize("wrong", [5, ["a"], dict()], ids=str)
def test_what_is_no_adapter_is_one_line(wrong):
    with pytest.raises(InputError, match="is no adapter"):
        with shared("llama").use_adapter(wrong):
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


def test_the_window_bounds_what_can_be_asked():
    raw, tokenizer = tiny("gpt2").model, tiny_tokenizer("plain")
    assert load_model((raw, tokenizer)).max_length == 256 == load_model((raw, tokenizer), max_length=256).window
    with pytest.raises(InputError, match="its window is 256 tokens, 257 were asked"):
        load_model((raw, tokenizer), max_length=257)
    for wrong in (0, -1, 2.5, "64"):
        with pytest.raises(InputError, match="max_length is"):
            load_model((raw, tokenizer), max_length=wrong)


# ---- the bill


def test_costs_grow():
    model = tiny("llama")
    model.run_forward(FEW)
    assert model.cost.forward == 4 and model.cost.seconds > 0
    assert model.cost.tokens == sum(len(model.encode(d)["input_ids"]) for d in FEW)


def test_blocks_are_billed_and_nest():
    model = tiny("llama")
    model.run_forward(FEW[:1])
    mine = model.cost
    with model.track_cost() as outer:
        model.run_forward(FEW[:2])
        with model.track_cost() as inner:
            model.run_forward(FEW[:3])
        assert (inner.forward, outer.forward) == (3, 5)
        model.run_forward(FEW)
    assert (inner.forward, outer.forward, model.cost.forward) == (3, 9, 10) and model.cost is mine
    assert outer.tokens > inner.tokens > 0 and outer.seconds >= inner.seconds > 0
    assert model.cost.seconds >= outer.seconds


def test_a_block_that_fails_is_billed():
    model = tiny("llama")
    with suppress(ZeroDivisionError):
        with model.track_cost() as cost:
            model.run_forward(FEW)
            1 / 0
    assert cost.forward == model.cost.forward == 4


def test_a_block_keeps_what_others_add():
    "Requests, bytes; and a cost that somebody puts in the model's place."
    model = tiny("llama")
    with model.track_cost() as cost:
        model.cost.requests += 2
        model.cost = model.cost + Cost(bytes_moved=5)
    assert (cost.requests, cost.bytes_moved) == (2, 5) == (model.cost.requests, model.cost.bytes_moved)


def test_the_last_adapters_layers_are_kept_and_the_model_is_bare(tmp_path):
    "Attached again without reading its file; another adapter takes its place; outside of a block nothing is left."
    model, real = tiny("llama"), []
    before, losses = weights(model), model.nll([Dialogue("Hi", "Hello.")])
    folders = [random_adapter(model, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        attach = models.attach_adapter
        patch.setattr(models, "attach_adapter", lambda *given: real.append(given) or attach(*given))
        for folder in (folders[0], folders[0], folders[1], folders[0]):
            with model.use_adapter(folder):
                found.append(model.nll([Dialogue("Hi", "Hello.")]))
            assert same(model, before) and not hasattr(model.model, "peft_config")
    assert len(real) == 3 and np.array_equal(model.nll([Dialogue("Hi", "Hello.")]), losses)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[3])
    assert not np.array_equal(found[0], found[2]) and not np.array_equal(found[0], losses)


@pytest.mark.parametrize("architecture", ("llama", "gpt2"))
def test_merged_weights_and_peft_layers_give_the_same_numbers(architecture, tmp_path, monkeypatch):
    model = tiny(architecture)
    adapter, dialogues = random_adapter(model, tmp_path / "mine"), [Dialogue("Hi", "Hello."), Dialogue("And?", "No.")]
    with model.use_adapter(adapter):
        assert not hasattr(model.model, "peft_config"), "the weights are exchanged"
        merged, reply = model.nll(dialogues), model.reply(dialogues)
    monkeypatch.setattr(models, "MAX_MERGED_BYTES", 0)
    model._last_adapter = (None,) * 5
    with model.use_adapter(adapter):
        assert hasattr(model.model, "peft_config")
        assert np.allclose(model.nll(dialogues), merged, rtol=1e-5) and model.reply(dialogues) == reply
    half = tiny(architecture)
    half.model.to(torch.bfloat16)
    monkeypatch.undo()
    half.base = model.base
    half.active_adapter = half.base
    with half.use_adapter(adapter):
        assert not hasattr(half.model, "peft_config"), "16 bits are merged, too; the sum is rounded once"
        assert np.allclose(half.nll(dialogues), merged, rtol=2e-2)
