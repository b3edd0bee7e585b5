"Models of four architectures under five chat templates: masks, padding, truncation, hostile text, adapters."

import copy, json, socket
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.check import check
from personal_llm.base.models import load_model
from personal_llm.base.tokens import special_strings
from tiny import ARCHITECTURES, TEMPLATES, shared, tiny, tiny_tokenizer

FEW = [
    Dialogue("What ties muscle to bone?", "A tendon."),
    Dialogue("Hi", "Hello there, and a very good morning to you."),
    Dialogue("And then?", "Tea.", history=(("user", "I got up early."), ("assistant", "Well done! What did you do?"))),
    Dialogue("Größe? 🙂", "Ünïcode 🙃 مرحبا"),
]
PAIRS = [(a, t) for a in ARCHITECTURES for t in TEMPLATES]


def weights(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same(model, before):
    return before.keys() == model.model.state_dict().keys() and all(
        torch.equal(before[n], v) for n, v in model.model.state_dict().items()
    )


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    "A random adapter for the tiny Llama."
    return random_adapter(shared("llama"), tmp_path_factory.mktemp("adapter"))


def random_adapter(model, folder, rank=2):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = get_peft_model(
            copy.deepcopy(model.model),
            LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        )
    adapted.save_pretrained(folder)
    Path(folder, "adapter.json").write_text(json.dumps(dict(base=model.base)))
    return Path(folder)


@pytest.mark.parametrize("architecture,template", PAIRS)
def test_check_is_ok(architecture, template):
    model = shared(architecture, template)
    before = weights(model)
    report = check(model)
    assert report.ok, f"\n{report}"
    assert same(model, before)


def test_check_finds_a_wrong_padding():
    "A model that looks at the padding: its attention mask is thrown away and padding stands on the left."
    model = tiny("llama")
    real = model.model.forward

    def blind(input_ids, attention_mask, **settings):
        width = input_ids.shape[1]
        turned = torch.stack(
            [torch.cat([row[row_mask == 0], row[row_mask == 1]]) for row, row_mask in zip(input_ids, attention_mask)]
        )
        got = real(input_ids=turned, **settings)
        got.logits = torch.stack(
            [torch.roll(l, -(width - int(m.sum())), 0) for l, m in zip(got.logits, attention_mask)]
        )
        return got

    model.model.forward = blind
    found = {what: holds for what, holds, _ in check(model).rows}
    assert not found["padding"] and found["loss mask"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_reads_as_each_alone(architecture):
    model = shared(architecture)
    together = model.read(FEW, batch_size=4)
    for d, got in zip(FEW, together):
        alone = model.read([d])[0]
        assert alone.tokens == got.tokens and got.hidden.shape == alone.hidden.shape == (
            len(model.encode(d)["input_ids"]),
            model.width,
        )
        assert np.allclose(alone.hidden, got.hidden, atol=1e-4) and abs(alone.nll - got.nll) < 1e-3
    assert np.allclose(model.embed(FEW), [r.hidden.mean(0) for r in together], atol=1e-4)
    assert [r.nll for r in model.read(FEW[::-1], batch_size=2)] == pytest.approx(
        [r.nll for r in together][::-1], rel=1e-4
    ), "order"


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
        assert (
            model.tokenizer.decode([i for i in sample["labels"] if i != -100]).lstrip()
            == d.response + model.tokenizer.eos_token
        )  # the space before it may be part of its first token


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_ignores_padding(architecture):
    "Against a loop of forward passes without padding or cache."
    model, prompts = shared(architecture), ["Hi", "What should I cook tonight for my whole family?", FEW[2]]
    together = model.generate(prompts, max_new_tokens=6)
    assert together == [model.generate([p], max_new_tokens=6)[0] for p in prompts]
    for prompt, answer in zip(prompts, together):
        ids = model._prompt_ids(Dialogue(prompt, "") if isinstance(prompt, str) else prompt, 100)
        whole = list(
            model.tokenizer.apply_chat_template(
                (Dialogue(prompt, "x") if isinstance(prompt, str) else prompt).messages()[:-1],
                add_generation_prompt=True,
                return_dict=False,
            )
        )
        assert ids == whole
        new = []
        while len(new) < 6:
            with torch.no_grad():
                new.append(int(model.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == model.tokenizer.eos_token_id:
                break
        assert answer == model.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_generate_with_a_temperature_repeats_and_leaves_the_global_generator_alone():
    model = shared("llama")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = model.generate(["Hi"], max_new_tokens=8, temperature=1.0, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert (
        one
        == model.generate(["Hi"], max_new_tokens=8, temperature=1.0, seed=1)
        != model.generate(["Hi"], max_new_tokens=8, temperature=1.0, seed=2)
    )


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

    model.device  # the real one's, before it is replaced
    script = Script()
    script.register_parameter("none", torch.nn.Parameter(torch.zeros(1)))
    model.model = script
    assert model.generate(["a", "a longer one"]) == ["one two three"] * 2


@pytest.mark.parametrize("template", TEMPLATES)
def test_special_strings_stay_text(template):
    "In prompt, response and history: the control tokens are those of the template alone, and the text survives."
    model = shared("llama", template)
    tok, specials = model.tokenizer, special_strings(shared("llama", template).tokenizer)
    assert set(tok.all_special_tokens) <= set(specials) and len(specials) >= 6
    control = lambda d, ids=None: [i for i in ids or model.encode(d, 1000)["input_ids"] if i in tok.all_special_ids]
    history = (("user", "so"), ("assistant", "and so"))
    calm = Dialogue("a b c", "d e f", history=history)
    for special in specials + ["".join(specials), specials[0] * 3]:
        for d in (
            Dialogue(f"a {special} c", "d e f", history=history),
            Dialogue("a b c", f"d {special}f", history=history),
            Dialogue(special, special, history=history),
            Dialogue("a b c", "d e f", history=(("user", special + "so"), ("assistant", f"and {special}"))),
        ):
            assert control(d) == control(calm), (special, d)
            ids = model.encode(d, 1000)["input_ids"]
            assert all(text in tok.decode(ids) for text in (d.prompt, d.response, *(t for _, t in d.history)))
            answer = [i for i in model.encode(d, 1000)["labels"] if i != -100]
            assert tok.decode(answer).lstrip() == d.response + tok.eos_token and answer[-1] == tok.eos_token_id
            asked = model._prompt_ids(d, 1000)
            assert control(d, asked) == control(calm, model._prompt_ids(calm, 1000))


def test_text_that_looks_like_our_placeholders():
    model = shared("llama")
    d = Dialogue("\ue0000\ue001 and \ue0001\ue001", "\ue0001\ue001")
    assert model.tokenizer.decode(model.encode(d)["input_ids"]).count("\ue0001\ue001") == 2


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize("template", ["plain", "chatml-marked"])
@given(TEXTS, TEXTS)
@settings(max_examples=40, deadline=None)
def test_mask_is_that_of_transformers(template, prompt, response):
    "Where the template marks the assistant's words, transformers computes the mask itself."
    model = shared("gpt2" if template == "plain" else "smollm", template)
    d = Dialogue(prompt, response)
    theirs = model.tokenizer.apply_chat_template(
        d.messages(), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = model.encode(d)
    n = len(ours["input_ids"])
    assert ours["input_ids"] == list(theirs["input_ids"])[:n] and not any(theirs["assistant_masks"][n:])
    assert [int(l != -100) for l in ours["labels"]] == list(theirs["assistant_masks"])[:n]
    assert all(l in (-100, i) for i, l in zip(ours["input_ids"], ours["labels"]))


@pytest.mark.parametrize("template", TEMPLATES)
@given(length=st.integers(20, 60), words=st.integers(0, 80), turns=st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_truncation_keeps_the_answer(template, length, words, turns):
    "As long as template and answer fit, every token of the answer and its end token stay; the last words of the prompt go last."
    model = shared("llama", template)
    history = tuple((role, "old " * 9) for _ in range(turns) for role in ("user", "assistant"))
    d = Dialogue("word " * words + "last?", "The answer.", history=history)
    whole = model.encode(d, 10**6)
    empty = len(
        model.encode(Dialogue("x", "The answer.", history=tuple((r, "x") for r, _ in history)), 10**6)["input_ids"]
    )
    try:
        cut = model.encode(d, length)
    except InputError:
        assert length < empty
        return  # the template's own words alone fill it
    assert len(cut["input_ids"]) == min(length, len(whole["input_ids"]))
    if empty + 6 <= length:
        assert [l for l in cut["labels"] if l != -100] == [l for l in whole["labels"] if l != -100]
        assert "last?" in model.tokenizer.decode(cut["input_ids"])


def test_empty_and_unfitting_responses_are_refused():
    model = shared("llama")
    for d, length in ((Dialogue("a", ""), 64), (Dialogue("word " * 50, "yes"), 3)):
        with pytest.raises(InputError, match=d.id):
            model.encode(d, length)


def test_long_prompts_leave_room_to_answer():
    model = shared("llama")
    ids = model._prompt_ids(Dialogue("word " * 500 + "last?", ""), 40)
    assert (
        len(ids) == 40
        and model.tokenizer.decode(ids).startswith("<|begin|><|user|>")
        and model.tokenizer.decode(ids).endswith("last?<|end|><|assistant|>")
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_using_restores_the_base_bit_by_bit(architecture, tmp_path):
    model = tiny(architecture)
    folder, before, bare, losses = random_adapter(model, tmp_path), weights(model), model.model, model.nll(FEW)
    with model.using(folder) as inside:
        assert (
            inside is model
            and not np.allclose(model.nll(FEW), losses)
            and model.active_adapter.startswith(model.base + "+")
        )
    assert same(model, before) and np.array_equal(model.nll(FEW), losses) and model.active_adapter == model.base
    with pytest.raises(ZeroDivisionError):
        with model.using(folder):
            1 / 0
    with suppress(KeyboardInterrupt):
        with model.using(folder):
            raise KeyboardInterrupt
    assert (
        same(model, before)
        and np.array_equal(model.nll(FEW), losses)
        and model.active_adapter == model.base
        and type(model.model) is type(bare)
    )
    with model.using(None):
        assert np.array_equal(model.nll(FEW), losses)


def test_using_is_plain_peft(adapter):
    from peft import PeftModel

    model, plain = shared("llama"), tiny("llama")
    with model.using(adapter):
        adapted = model.nll(FEW)
    plain.model = PeftModel.from_pretrained(plain.model, str(adapter)).eval()
    assert np.array_equal(adapted, plain.nll(FEW))


def spoil(folder, how):
    if how == "config missing":
        (folder / "adapter_config.json").unlink()
    if how == "weights missing":
        (folder / "adapter_model.safetensors").unlink()
    if how == "pickled":
        (folder / "adapter_model.safetensors").unlink()
        torch.save({}, folder / "adapter_model.bin")
    if how == "another base":
        (folder / "adapter.json").write_text(json.dumps(dict(base="0" * 16)))
    if how == "weights cut":
        (folder / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:500])
    if how == "config garbled":
        (folder / "adapter_config.json").write_text("{")
    if how == "card garbled":
        (folder / "adapter.json").write_text("{")
    if how == "card is a list":
        (folder / "adapter.json").write_text("[]")


@pytest.mark.parametrize(
    "how",
    [
        "config missing",
        "weights missing",
        "pickled",
        "another base",
        "weights cut",
        "config garbled",
        "card garbled",
        "card is a list",
    ],
)
def test_unfit_adapters_are_refused(how, tmp_path):
    "With one line, and the model goes on as before."
    model = tiny("llama")
    folder, before, losses = random_adapter(model, tmp_path / "a"), weights(model), model.nll(FEW)
    spoil(folder, how)
    with pytest.raises(InputError, match=r"adapter|a:"):
        with model.using(folder):
            pass
    assert same(model, before) and np.array_equal(model.nll(FEW), losses) and model.active_adapter == model.base


def test_an_adapter_of_another_shape_without_a_card_leaves_the_base_whole(tmp_path):
    "Plain peft folders have no card: peft finds the mismatch itself, after it has changed the model."
    from transformers import LlamaConfig, LlamaForCausalLM

    model = tiny("llama")
    wider = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )

    class Other:
        pass

    other = Other()
    other.model, other.base = wider, None
    folder = random_adapter(other, tmp_path)
    (folder / "adapter.json").unlink()
    before, losses = weights(model), model.nll(FEW)
    with pytest.raises(InputError):
        with model.using(folder):
            pass
    assert same(model, before) and np.array_equal(model.nll(FEW), losses)


def test_live_objects():
    raw = shared("smollm").model
    model = load_model((raw, tiny_tokenizer("chatml")), chat_template="plain", max_length=77)
    assert (
        model.model is raw
        and model.name == "live"
        and model.max_length == 77
        and "Assistant: " in model.tokenizer.decode(model.encode(FEW[0])["input_ids"])
    )
    bare = tiny_tokenizer("chatml")
    bare.chat_template = None
    with pytest.raises(InputError, match="chat-template plain"):
        load_model((raw, bare))
    assert (
        load_model((tiny("llama", seed=1).model, bare), chat_template="plain").base
        != shared("llama").base
        == tiny("llama").base
    )


def test_a_saved_folder_loads_and_pickled_weights_do_not(tmp_path):
    model = shared("smollm")
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), device="cpu")
    assert again.base == model.base and np.allclose(again.nll(FEW), model.nll(FEW), rtol=1e-5)
    torch.save(model.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path)


def test_no_socket_is_opened(monkeypatch, tmp_path):
    def refuse(*a, **k):
        raise AssertionError("a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_model("pocket", device="cpu").name == "pocket"
    (tmp_path / "config.json").write_text("{}")
    for wrong in (
        "pockett",
        "no/such/folder",
        "./missing",
        "~/missing",
        "/nowhere",
        tmp_path / "nothing",
        tmp_path,
        str(tmp_path),
        "",
        "a b",
    ):
        with pytest.raises(InputError):
            load_model(wrong)


def test_templates_that_lose_a_message_are_refused():
    for template in (
        "{{ messages[-1]['content'] }}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{{ raise_exception('only system here') }}",
    ):
        model = load_model((shared("llama").model, tiny_tokenizer("trimming")), chat_template=template)
        with pytest.raises(InputError, match="template"):
            model.encode(FEW[0])


def test_costs_grow():
    model = tiny("llama")
    model.read(FEW)
    assert (
        model.cost.forward == 4
        and model.cost.tokens == sum(len(model.encode(d)["input_ids"]) for d in FEW)
        and model.cost.seconds > 0
    )
