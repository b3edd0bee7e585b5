"An adapter in the forms of other programs: merged, llama.cpp, Ollama, vLLM; each against its own arithmetic."

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real import NAMES, require, shared_real
from test_tuning import BRIEF, TALK
from transformers import AutoModelForCausalLM
from tiny import ARCHITECTURES, UPPER, random_adapter, same, shared, weights

from personal_llm.base.adapters import CONFIG_FILE, WEIGHTS_FILE, read_factors
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import read_json, write_json
from personal_llm.base.loading import note_once
from personal_llm.base.models import load_model
from personal_llm.extras.export import choose_examples, format_messages, format_modelfile
from personal_llm.app.plugins import export_adapter
from personal_llm.tuning.finetune import finetune


STABILISED = dict(use_rslora=True, lora_alpha=4)


KINDS = [*((name, {}) for name in ARCHITECTURES), ("llama", STABILISED), ("llama", UPPER), ("smollm", UPPER)]


@pytest.mark.parametrize(("architecture", "kind"), KINDS)
def test_merged_is_base_and_adapter_together(architecture, kind, tmp_path):
    model = shared(architecture)
    adapter, before = random_adapter(model, tmp_path / "mine", **kind), weights(model)
    usage = export_adapter(model, adapter, tmp_path / "whole", "merged")
    with model.use_adapter(adapter):
        together = model.nll(TALK[:4])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    whole = load_model((whole, model.tokenizer))
    assert (tmp_path / "whole" / "tokenizer.json").is_file()
    assert np.allclose(whole.nll(TALK[:4]), together, rtol=1e-4) and "--model" in usage
    assert not np.allclose(model.nll(TALK[:4])[:, 0], together[:, 0], rtol=1e-3) and same(model, before)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_one_end_of_a_tied_model_changes_that_end_alone(target, tmp_path):
    model = load_model("pocket", dtype="float32")
    adapter, before = random_adapter(model, tmp_path / "mine", target_modules=["q_proj", target]), weights(model)
    export_adapter(model, adapter, tmp_path / "whole", "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    with model.use_adapter(adapter):
        together = model.nll(TALK[:4])
    assert np.allclose(load_model((whole, model.tokenizer)).nll(TALK[:4]), together, rtol=1e-4) and same(model, before)


@pytest.mark.parametrize("target", ["merged", "vllm", "gguf"])
def test_an_adapter_that_is_not_finite_is_not_exported(target, tmp_path):
    from safetensors.numpy import load_file, save_file

    adapter = random_adapter(shared("llama"), tmp_path / "mine")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, file)
    with pytest.raises(InputError, match="not finite; make the adapter anew"):
        export_adapter(shared("llama"), adapter, tmp_path / "whole", target)
    assert not (tmp_path / "whole").exists()


def test_an_adapter_of_another_base_is_used_with_a_line(tmp_path, capsys):
    model = load_model("pocket")
    adapter = random_adapter(model, tmp_path / "mine")
    (adapter / "adapter.json").unlink()
    for name, is_other in (("someone/another-model", True), (f"someone/{model.name}-Instruct", False), (None, False)):
        settings = read_json(adapter / "adapter_config.json") | dict(base_model_name_or_path=name)
        write_json(adapter / "adapter_config.json", settings)
        note_once.cache_clear()
        with model.use_adapter(adapter):
            pass
        assert ("made for someone/another-model, and you use it with" in capsys.readouterr().err) == is_other


def test_an_adapter_that_cannot_be_merged_is_one_line(tmp_path):
    adapter = random_adapter(shared("llama"), tmp_path / "mine", lora_bias=True)
    with pytest.raises(InputError, match="cannot be merged .*no bias"):
        export_adapter(shared("llama"), adapter, tmp_path / "whole", "merged")
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize("target", ("gguf", "ollama"))
@pytest.mark.parametrize("layers", ({}, UPPER), ids=("all", "upper"))
@pytest.mark.parametrize("architecture", ("llama", "qwen2", "smollm"))
def test_gguf(architecture, layers, target, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = shared(architecture)
    adapter = random_adapter(model, tmp_path / "mine", **layers)
    export_adapter(model, adapter, tmp_path / "out", target)
    reader = gguf.GGUFReader(str(tmp_path / "out" / "adapter.gguf"))
    text = lambda key: bytes(reader.fields[key].parts[-1]).decode()
    kind = "qwen2" if architecture == "qwen2" else "llama"
    found = text("general.architecture"), text("general.type"), text("adapter.type")
    assert found == (kind, "adapter", "lora") and reader.fields["adapter.lora.alpha"].parts[-1][0] == 2
    tensors = {t.name: torch.tensor(np.array(t.data)).reshape(*t.shape[::-1].tolist()) for t in reader.tensors}
    factors = read_factors(adapter)
    assert len(tensors) == 2 * len(factors) == 2 * 7 * (1 if layers else 2)
    names = dict(q_proj="attn_q", k_proj="attn_k", v_proj="attn_v", o_proj="attn_output")
    names |= dict(gate_proj="ffn_gate", up_proj="ffn_up", down_proj="ffn_down")
    for name, (A, B) in factors.items():
        layer, part = name.split(".")[4], name.rpartition(".")[2]
        a, b = (tensors[f"blk.{layer}.{names[part]}.weight.lora_{x}"] for x in "ab")
        if part in ("q_proj", "k_proj") and kind == "llama":
            heads = getattr(model.model.config, dict(q_proj="num_attention_heads", k_proj="num_key_value_heads")[part])
            width = len(B) // heads
            order = [h * width + j * width // 2 + i for h in range(heads) for i in range(width // 2) for j in (0, 1)]
            assert order != sorted(order)
            B = B[order]
        assert a.equal(A) and b.equal(B), name
    assert (tmp_path / "out" / "Modelfile").exists() == (target == "ollama")


@pytest.mark.parametrize(("rank", "option"), [(8, "8"), (9, "16"), (12, "16"), (256, "256"), (300, "512")])
def test_vllm_is_asked_for_a_rank_that_it_takes(rank, option, tmp_path):
    model = shared("llama")
    adapter = random_adapter(model, tmp_path / "mine", rank)
    usage = export_adapter(model, adapter, tmp_path / "out", "vllm")
    assert f"--max-lora-rank {option} " in usage


def test_refusals_write_nothing(tmp_path, monkeypatch):
    model, gpt2 = shared("llama"), shared("gpt2")
    adapter, other = random_adapter(model, tmp_path / "mine"), random_adapter(gpt2, tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    cases = [(model, adapter, "full", "merged", "exists already"), (model, adapter, "new", "onnx", "target")]
    cases += [(gpt2, adapter, "new", "vllm", "made for base")]
    for one, folder, out, target, words in cases:
        with pytest.raises(InputError, match=words):
            export_adapter(one, folder, tmp_path / out, target)
    with pytest.raises(InputError, match="gpt2: we cannot write"):
        export_adapter(gpt2, other, tmp_path / "new", "gguf")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def answer(time, prompt, response="Dear friend, yes.", origin="annotated"):
    return Dialogue(prompt, response, time=time, origin=origin)


def read_messages(text: str) -> list:  # (role, text)
    "Read the MESSAGE lines of a Modelfile as Ollama does: a value ends with the line that ends in three marks."
    lines, found = text.splitlines(), []
    while lines:
        line = lines.pop(0)
        if line.startswith("MESSAGE "):
            _, role, value = line.split(" ", 2)
            while not (len(value) >= 6 and value.endswith('"""')):
                value += "\n" + lines.pop(0)
            found.append((role, value[3:-3]))
        else:
            assert not line or line.startswith("# dialogue "), line
    return found


def test_examples_are_the_newest_three_of_1200_tokens_that_are_safe_and_answered():
    model = shared("llama")
    model.max_length, before = 10**4, model.max_length
    words = "one two three four five six seven eight".split()
    dialogues = [answer(n, f"What is {word}?") for n, word in enumerate(words)]
    dialogues += [answer(10, f"Why {model.tokenizer.eos_token}?"), answer(11, "An empty one", " ")]
    try:
        assert [d.time for d in choose_examples(model, dialogues)] == [7, 6, 5]
        dialogues += [answer(20, "A long one?", "yes " * 1250), answer(21, "A shorter one?", "yes " * 1000)]
        chosen = choose_examples(model, dialogues)
    finally:
        model.max_length = before
    assert [d.time for d in chosen] == [21, 7, 6] and choose_examples(model, []) == []


@pytest.mark.parametrize(
    "text", ('say "yes"', '"', 'two\nlines ""\n\n', " spaces ", "MESSAGE user no", "# dialogue", "''")
)
def test_messages_give_each_text_back(text):
    examples = [answer(1, text, f"{text} it is"), answer(2, "Tea?", f"Yes: {text}")]
    read = read_messages(format_messages(examples))
    assert read == [(role, t) for d in examples for role, t in (("user", d.prompt), ("assistant", d.response))]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return finetune(shared("llama"), TALK, BRIEF, out=tmp_path_factory.mktemp("mine"), progress=False)


def test_a_copy_for_a_hub_tells_nothing(adapter, tmp_path):
    model = shared("llama")
    answers = [Dialogue("What is 1?", "Dear friend, a number.", origin="annotated")]
    usage = export_adapter(model, adapter, tmp_path / "vllm", "vllm", answers)
    (tmp_path / "vllm").rename(tmp_path / "clean")
    written = {file.name: file.read_bytes() for file in (tmp_path / "clean").iterdir()}
    assert sorted(written) == sorted([CONFIG_FILE, WEIGHTS_FILE]) and "--max-lora-rank 8" in usage
    assert written[WEIGHTS_FILE] == (adapter.path / WEIGHTS_FILE).read_bytes()
    settings = json.loads(written[CONFIG_FILE])
    assert settings["r"] == 2 and "/" not in settings["base_model_name_or_path"]
    export_adapter(model, adapter, tmp_path / "gguf", "gguf")
    assert [file.name for file in tmp_path.glob("*/*") if file.stat().st_mode & 0o077] == []
    for word in [str(adapter.path), str(Path.cwd()), adapter.base, *(d.id for d in TALK), *(d.prompt for d in TALK)]:
        assert word.encode() not in written[CONFIG_FILE], word


def test_a_template_that_drops_words_has_no_modelfile(monkeypatch):
    model = shared("llama")
    monkeypatch.setattr(model.tokenizer, "chat_template", "Hello")
    with pytest.raises(InputError, match="does not give the user's words back; write the TEMPLATE by hand"):
        format_modelfile(model)


@pytest.mark.parametrize("name", NAMES)
def test_a_modelfile_writes_turns_as_the_template_does(name):
    model = shared_real(require(name))
    lines = format_modelfile(model)
    template = lines.split('"""')[1]
    talk = [("user", "Tea?"), ("assistant", "Yes."), ("user", "Milk?"), ("assistant", "No."), ("user", "Why?")]
    for system in ("", "Be brief."):
        turns = [("system", system)] * bool(system) + talk
        written = model.tokenizer.apply_chat_template(
            [dict(role=role, content=text) for role, text in turns], tokenize=False, add_generation_prompt=True
        )
        adds_start = model.tokenizer("x")["input_ids"][0] == model.tokenizer.bos_token_id
        assert filled(template, talk, system) == written.removeprefix(model.tokenizer.bos_token if adds_start else "")
    assert lines.startswith("FROM ./base.gguf\nADAPTER ./adapter.gguf\n")
    assert f'stop "{model.tokenizer.eos_token}"' in lines


def filled(template: str, talk: list, system: str) -> str:
    "What Ollama makes of a template, for the few forms that we write."
    head, _, body = template.removesuffix("{{ end }}{{ end }}").partition("{{ range .Messages }}")
    if head.startswith("{{ if .System }}"):
        with_system, _, without = (
            head.removeprefix("{{ if .System }}").removesuffix("{{ end }}").partition("{{ else }}")
        )
        head = with_system.replace("{{ .System }}", system) if system else without
    user, _, reply = body.removeprefix('{{ if eq .Role "user" }}').partition('{{ else if eq .Role "assistant" }}')
    parts = dict(user=user, assistant=reply)
    return head + "".join(parts[role].replace("{{ .Content }}", text) for role, text in talk)
