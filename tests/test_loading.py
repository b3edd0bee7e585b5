"What a name means, that every weight comes from its files, and that a fingerprint sees every value."

import json
import shutil
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_adapter, tiny, tiny_tokenizer

from personal_llm.base import encoder, loading
from personal_llm.base.adapters import attach_adapter
from personal_llm.base.core import InputError
from personal_llm.base.files import ASSETS
from personal_llm.base.loading import choose_dtype, compute_fingerprint, load_causal_lm
from personal_llm.base.loading import resolve_model
from personal_llm.base.models import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny model's folder."
    model, place = tiny("smollm"), tmp_path_factory.mktemp("model")
    model.model.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return place


def configured(folder, place, **changes):
    place = shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | changes))
    return place


# ---- names


def test_names(folder, tmp_path, monkeypatch):
    assert resolve_model("pocket") == str(ASSETS / "pocket")
    assert resolve_model(folder) == resolve_model(str(folder)) == str(folder)
    for name in ("openai-community/gpt2", "HuggingFaceTB/SmolLM2-360M-Instruct", "a/b.c-d_e"):
        assert resolve_model(name) == name
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_model(f"~/{folder.name}") == str(folder)
    monkeypatch.chdir(folder.parent)
    assert Path(resolve_model(folder.name)).samefile(folder), "a folder before a hub id"


@pytest.mark.parametrize(
    "name",
    [*"pocket pockett Pocket no/such/folder ./missing ~/missing /nowhere a/b/c -x".split(), "", "a b", "\ud800"]
    + [5, ["pocket"], dict(), b"pocket", Path("missing"), Path(".")],
    ids=repr,
)
def test_names_that_mean_nothing_and_the_pocket_open_no_socket(name, monkeypatch):
    for what in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, what, lambda *given, **named: pytest.fail("a socket"))
    if name == "pocket":
        assert load_model(name, device="cpu").name == name
        return
    with pytest.raises(InputError, match="unknown model|isn't the name of a model"):
        load_model(name)


# ---- the hub


@pytest.mark.parametrize("name", ["openai-community/gpt2", "someone/something"])
def test_a_hub_id_that_is_not_here_is_one_line(name):
    "The tests run offline."
    with pytest.raises(InputError, match=f"model '{name}' cannot be loaded"):
        load_model(name)


# ---- every weight


def changed_weights(folder, place, change):
    place = shutil.copytree(folder, place)
    tensors = load_file(place / "model.safetensors")
    change(tensors)
    save_file(tensors, place / "model.safetensors", metadata=dict(format="pt"))
    return place


def refused(place, says):
    "By `load_model`, in one line."
    with pytest.raises(InputError, match=says) as found:
        load_model(place, device="cpu")
    assert "\n" not in str(found.value)


def test_a_single_weight_counts(folder, tmp_path):
    def drop(tensors):
        del tensors["model.norm.weight"]

    def add(tensors):
        tensors["model.extra.weight"] = torch.zeros(2)

    def reshape(tensors):
        tensors["model.norm.weight"] = torch.zeros(31)

    refused(changed_weights(folder, tmp_path / "less", drop), "1 weight is missing, such as model.norm")
    refused(changed_weights(folder, tmp_path / "more", add), "1 weight is not of this model, such as model.extra")
    refused(changed_weights(folder, tmp_path / "other", reshape), "1 weight is of another shape, such as model.norm")


@pytest.mark.parametrize("head", [True, False], ids=["with a head", "without"])
def test_an_encoder_is_refused(head, tmp_path):
    "Also one whose every weight finds a place in a language model."
    from transformers import BertConfig, BertForMaskedLM, BertModel

    tokenizer = tiny_tokenizer("plain")
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = BertConfig(**shape, vocab_size=len(tokenizer))  # small random weights look ahead by a little
    network = (BertForMaskedLM if head else BertModel)(config)
    network.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "looks ahead|weights are")
    if head:
        with pytest.raises(InputError, match="looks ahead"):
            load_model((network, tokenizer))


def test_pickles_are_refused(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "a")
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    refused(place, "cannot be loaded")


@pytest.mark.parametrize("content", ["{}", "{", "[]", "[" * 100_000, '{"model_type": "nothing"}'], ids=range(5))
def test_settings_that_are_damaged_are_one_line(content, folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "a")
    (place / "config.json").write_text(content)
    refused(place, "cannot be loaded")


def test_a_panic_over_a_tokenizer_is_one_line(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "a")
    content = json.loads((place / "tokenizer.json").read_text())
    content["normalizer"] = dict(type="Precompiled", precompiled_charsmap="AAAA")
    (place / "tokenizer.json").write_text(json.dumps(content))
    refused(place, "cannot be loaded .*precompiled_charsmap")


def test_code_from_a_model_is_not_run(folder, tmp_path):
    place = configured(folder, tmp_path / "a", model_type="mine", auto_map=dict(AutoConfig="m.C"))
    (place / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    refused(place, "cannot be loaded")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantised_weights_are_named(method, folder, tmp_path):
    place = configured(folder, tmp_path / "a", quantization_config=dict(quant_method=method, bits=4, load_in_4bit=True))
    refused(place, "quantised, .*take the unquantised model, or")


@pytest.mark.parametrize("how", [dict(dtype="float8"), dict(dtype=5), dict(device="abacus")], ids=str)
def test_devices_and_types_that_are_none_are_one_line(how, folder):
    with pytest.raises(InputError, match="dtype is|cannot be loaded"):
        load_model(folder, **how)


# ---- fingerprints


def test_every_value_counts():
    "First, middle and last of every tensor; the old fingerprint saw 256 of each."
    model = tiny("smollm").model
    first = compute_fingerprint(model)
    for name, tensor in model.state_dict().items():
        values = tensor.view(-1)
        for place in {0, len(values) // 2, len(values) - 1}:
            kept = values[place].clone()
            values[place] += 1
            assert compute_fingerprint(model) != first, (name, place)
            values[place] = kept
    assert compute_fingerprint(model) == first


def test_the_base_is_the_base_whatever_is_attached(tmp_path):
    model = tiny("llama")
    adapted = attach_adapter(model.model, random_adapter(model, tmp_path / "a"))
    assert compute_fingerprint(adapted) == compute_fingerprint(adapted.get_base_model()) == model.base
    one = compute_fingerprint(adapted, of_adapter=True)
    adapted.unload()
    other = attach_adapter(model.model, random_adapter(model, tmp_path / "b", seed=2))
    assert one != compute_fingerprint(other, of_adapter=True)


def test_files_and_live_objects_agree(folder):
    live, loaded = tiny("smollm"), load_model(folder, device="cpu")
    assert live.base == loaded.base != tiny("smollm", seed=1).base
    assert load_model(folder, device="cpu", dtype="bfloat16").base != live.base, "rounded values are others"


# ---- the number type


@pytest.fixture
def measured(tmp_path, monkeypatch):
    "Seconds of a product that the test sets, an empty cache, and much memory."
    seconds = dict(float32=1.0, bfloat16=2.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loading, "time_product", lambda dtype: seconds[dtype])
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**12))
    return seconds


def test_memory_a_small_model_and_a_card_come_first(measured, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    assert choose_dtype(494_000_000) == "bfloat16", "four bytes a weight do not fit"
    measured["bfloat16"] = 0.5
    assert choose_dtype(7_000_000) == "float32"
    assert choose_dtype(494_000_000, "cuda:0") == "bfloat16" and choose_dtype(494_000_000, "mps") == "float32"


def test_a_product_is_measured_in_both_types():
    assert all(0 < loading.time_product(dtype) < 10 for dtype in ("float32", "bfloat16"))


def test_a_model_loads_in_the_type_that_was_chosen(folder, measured, monkeypatch):
    monkeypatch.setattr(loading, "choose_dtype", lambda num_parameters, device: "bfloat16")
    assert load_causal_lm(folder, "cpu")[0].dtype == torch.bfloat16
    assert load_causal_lm(folder, "cpu", "float32")[0].dtype == torch.float32


def test_one_thread_loads_at_a_time(folder, monkeypatch):
    "transformers changes its classes while it loads; two loads at once once left every later model without a weight."
    import sentence_transformers
    import transformers

    at_work = []
    most = []

    def slowly(load):
        def run(*args, **options):
            at_work.append(load)
            most.append(len(at_work))
            time.sleep(0.05)
            try:
                return load(*args, **options)
            finally:
                at_work.pop()

        return run

    cls = transformers.AutoModelForCausalLM
    monkeypatch.setattr(cls, "from_pretrained", slowly(cls.from_pretrained))
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", slowly(sentence_transformers.SentenceTransformer))
    monkeypatch.setattr(encoder, "_encoders", {})
    jobs = [lambda: encoder.load_encoder("pocket"), lambda: load_model(str(folder)).model] * 2
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 3 and max(most) == 1, "one encoder, two models, never two at once"
