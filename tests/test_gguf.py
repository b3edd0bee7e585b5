"GGUF files of four families, made of random weights, and damaged ones: each loads or ends in one line."

import os
import random
import shutil
import struct
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import killed_at, needs_fork
from llama_cpp import add_sizes, finish
from transformers import modeling_utils
from transformers.integrations.gguf import read_gguf_metadata

gguf = pytest.importorskip("gguf")

from personal_llm.base import loading as ours
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.loading import convert_gguf, is_gguf, resolve_model
from personal_llm.base.models import load_model
from personal_llm.base.replies import pair_neighbours

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
GEMMA = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
FAMILIES = ("smollm2", "qwen2", "llama3.2", "gemma3")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "personal_llm" / "models"


def make_network(family: str, vocab_size: int = 600):
    "A model of random weights in the family's true architecture."
    from transformers import AutoConfig, AutoModelForCausalLM

    common = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16)
    common |= dict(num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=16384, vocab_size=vocab_size)
    kinds = {"smollm2": "llama", "llama3.2": "llama", "qwen2": "qwen2", "gemma3": "gemma3_text"}
    if family == "gemma3":
        common |= dict(query_pre_attn_scalar=256, sliding_window=512, tie_word_embeddings=True)
    config = AutoConfig.for_model(kinds[family], **common | dict(tie_word_embeddings=True))
    config.rms_norm_eps = 1e-6
    if family == "llama3.2":
        scaling = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
        config.rope_parameters = scaling | dict(original_max_position_embeddings=8192)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def add_vocabulary(writer, family: str) -> None:
    "A small vocabulary in the way of the family: bytes with a few merges, or pieces with scores."
    if family == "gemma3":
        tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
        kinds = [3] * 3 + [2] + [3] * 2
        pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["\n", "▁", *"abcdefghijklmnopqrstuvwxyz"]
        pieces += ["th", "the", "▁t", "▁the", "he", "in"]
        tokens, kinds = tokens + pieces, kinds + [6] * 256 + [1] * (len(pieces) - 256)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(n) for n in range(len(tokens))])
        special, template = dict(bos=2, eos=1, unk=3, pad=0), GEMMA
    else:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values()]
        tokens += ["th", "the", "Ġt", "Ġthe"]
        kinds = [3] * 3 + [1] * (len(tokens) - 3)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre({"smollm2": "smollm", "qwen2": "qwen2", "llama3.2": "llama-bpe"}[family])
        writer.add_token_merges(["t h", "th e", "Ġ t", "Ġt he"][:3])
        special, template = dict(bos=1, eos=2, unk=0, pad=2), CHATML
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for role, number in special.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_chat_template(template)


def add_tensors(writer, family: str, network, kind) -> None:
    architecture = {"qwen2": gguf.MODEL_ARCH.QWEN2, "gemma3": gguf.MODEL_ARCH.GEMMA3}.get(family, gguf.MODEL_ARCH.LLAMA)
    names, config = gguf.get_tensor_name_map(architecture, network.config.num_hidden_layers), network.config
    for name, value in network.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = value.numpy()
        if architecture == gguf.MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = pair_neighbours(value.reshape(len(value), -1), heads).reshape(value.shape)
        if family == "gemma3" and "norm" in name:
            value = value + 1
        stem, suffix = name.rsplit(".", 1)
        kept = kind if value.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", gguf.quants.quantize(value, kept), raw_dtype=kept)
    if family == "llama3.2":
        plain = 1 / config.rope_parameters["rope_theta"] ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        factors = plain / network.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))


def make_gguf(file, family: str = "smollm2", kind=gguf.GGMLQuantizationType.F32, network=None):
    network = network or make_network(family)
    config = network.config
    writer = gguf.GGUFWriter(str(file), {"qwen2": "qwen2", "gemma3": "gemma3"}.get(family, "llama"))
    add_sizes(writer, config)
    theta = config.rope_parameters
    writer.add_rope_freq_base((theta.get("full_attention") or theta)["rope_theta"])
    writer.add_key_length(config.head_dim)
    if family == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    else:
        writer.add_rope_dimension_count(config.head_dim)
    add_vocabulary(writer, family)
    add_tensors(writer, family, network, kind)
    finish(writer)
    return Path(file)


def test_a_command_converts_nothing_before_pytorch_is_needed(tmp_path, cache, capsys):
    "The first score does, with a bar; in a background thread without one."
    import threading

    from personal_llm.app.commands import load

    file = make_gguf(tmp_path / "model.gguf")
    model = load(str(file))
    err = capsys.readouterr().err
    assert f"loading the model {file} (0.0 GB)" in err and "loaded in" in err and not cache.exists()
    reader = threading.Thread(target=lambda: load_model(str(file)).nll([Dialogue("a", "b")]))
    reader.start()
    reader.join()
    assert cache.exists() and "preparing the weights" not in capsys.readouterr().err
    for folder in cache.glob("*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    assert len(model.nll([Dialogue("a", "b")])) == 1 and "preparing the weights" in capsys.readouterr().err


# ---- four families


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_it_computed(family, tmp_path):
    "Every logit, at the start of the window and far into it."
    network = make_network(family)
    model = load_model(make_gguf(tmp_path / "model.gguf", family, network=network), device="cpu", dtype="float32")
    for weight in network.parameters():
        weight.data = weight.data.bfloat16().float()
    ids = torch.randint(0, 290, (1, 40), generator=torch.Generator().manual_seed(1))
    places = torch.arange(40)[None] * 300
    with torch.inference_mode():
        theirs, own = (one(input_ids=ids, position_ids=places).logits for one in (network, model.model))
    assert torch.allclose(theirs, own, atol=1e-5)
    text = "the 42 thin\n  cats — ωμέγα 🙂"
    assert model.tokenizer.decode(model.tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantisations(kind, tmp_path):
    network = make_network("smollm2")
    kind = gguf.GGMLQuantizationType[kind]
    model = load_model(make_gguf(tmp_path / "model.gguf", kind=kind, network=network), device="cpu")
    table = network.model.embed_tokens.weight.detach().numpy()
    stored = gguf.quants.dequantize(gguf.quants.quantize(table, kind), kind)
    rounded = torch.from_numpy(stored).to(torch.bfloat16).float()
    assert torch.equal(model.model.model.embed_tokens.weight.detach(), rounded)


def test_a_second_call_converts_nothing(tmp_path, cache, monkeypatch):
    file = make_gguf(tmp_path / "model.gguf")
    folder = convert_gguf(file)
    assert folder.parent == cache and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(ours, "write_converted_model", lambda *given: pytest.fail("converted again"))
    assert convert_gguf(file) == folder
    assert convert_gguf(file.rename(tmp_path / "moved.gguf")) == folder, "the content counts"


def die_while_converting(file):
    def die_halfway(tensors, path, **options):
        Path(path).write_bytes(b"x")
        os._exit(9)

    modeling_utils.safe_save_file = die_halfway
    convert_gguf(file)


@pytest.mark.later
@needs_fork
def test_a_kill_leaves_nothing_that_loads(tmp_path, cache):
    "What a killed process left is removed by the next conversion of the same file."
    file = make_gguf(tmp_path / "model.gguf")
    assert killed_at(10**6, die_while_converting, file)
    left = [path.name for path in cache.iterdir() if path.is_dir()]
    assert len(left) == 1 and left[0].startswith(".") and left[0].endswith(".tmp")
    folder = convert_gguf(file)
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


def convert_together(file, both, answers):
    both.wait(60)
    assert not killed_at(10**6, convert_gguf, file)
    answers.append(convert_gguf(file))


@pytest.mark.later
@needs_fork
def test_two_processes_at_once(tmp_path, cache):
    file = make_gguf(tmp_path / "model.gguf")
    answers, both = [], threading.Barrier(2)
    runs = [threading.Thread(target=convert_together, args=(file, both, answers)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert len(answers) == 2 and {*answers} == {path for path in cache.iterdir() if path.is_dir()}


# ---- damaged files


def refused(file, match: str):
    with pytest.raises(InputError, match=match) as error:
        convert_gguf(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def read_metadata(file) -> dict:
    "All keys, with the tokens and merges themselves."
    return read_gguf_metadata(str(file), ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"))[0]


def edited(file, metadata=None, tensors=None, drop=(), kinds=None):
    "Write the tiny file again with other metadata, tensors or quantisations."
    make_gguf(file)
    known = read_metadata(file)
    stored = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors} | (tensors or {})
    writer = gguf.GGUFWriter(str(file), (metadata or {}).get("general.architecture", "llama"))
    for key, value in (known | (metadata or {})).items():
        if key == "general.architecture" or value is None:
            continue
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, value in stored.items():
        kind = (kinds or {}).get(name, gguf.GGMLQuantizationType.F32)
        value = np.ascontiguousarray(value, np.float32)
        if name not in drop:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    finish(writer)
    return file


NAN = np.full((600, 64), np.nan, np.float32)
LIES = dict(
    family=(dict(metadata={"general.architecture": "rwkv9"}), "rwkv9"),
    missing=(dict(drop=["blk.1.ffn_up.weight"]), "1 weight is missing, such as .*up_proj"),
    no_table=(dict(drop=["token_embd.weight"]), "token_embd"),
    nan=(dict(tensors={"token_embd.weight": NAN}), "no numbers"),
    shape=(dict(tensors={"blk.0.ffn_up.weight": np.zeros((4, 4), np.float32)}), "of another shape"),
    layer=(dict(metadata={"llama.block_count": 3}), "9 weights are missing"),
    heads=(dict(metadata={"llama.attention.head_count": 0}), "cannot be converted"),
    no_tokens=(dict(metadata={"tokenizer.ggml.tokens": ["a"]}), "cannot be"),
    merges=(dict(metadata={"tokenizer.ggml.merges": ["t h", "q q q"]}), "cannot be"),
    token=(dict(metadata={"tokenizer.ggml.eos_token_id": 10**6}), "tokenizer cannot be built"),
    model=(dict(metadata={"tokenizer.ggml.model": "magic"}), "tokenizer cannot be built"),
)


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_one_line(lie, tmp_path):
    if lie == "shape" and tuple(map(int, version("transformers").split(".")[:2])) < (5, 24):
        pytest.skip("the transformers of Python 3.10 takes a matrix of any shape, and fails at its first use")
    changes, match = LIES[lie]
    refused(edited(tmp_path / "model.gguf", **changes), match)


def test_each_cut_is_one_line(tmp_path):
    "At places all over the header, and in the data."
    content, file = make_gguf(tmp_path / "whole.gguf").read_bytes(), tmp_path / "cut.gguf"
    for place in (0, 3, 4, 8, 16, 24, *random.Random(0).sample(range(24, len(content)), 20), len(content) - 1):
        file.write_bytes(content[:place])
        refused(file, "no usable GGUF file|cannot be converted")


def test_numbers_that_lie_are_one_line(tmp_path):
    content, file = make_gguf(tmp_path / "whole.gguf").read_bytes(), tmp_path / "lie.gguf"
    for place, number_format in ((4, "I"), (8, "Q"), (16, "Q"), (24, "Q")):
        for value in (2**31 - 1, 256 ** struct.calcsize(number_format) - 1):
            lie = bytearray(content)
            struct.pack_into("<" + number_format, lie, place, value)
            file.write_bytes(lie)
            refused(file, "no usable GGUF file")


OTHERS = dict(
    part=({"split.count": 3}, "one of 3 parts; join them with llama-gguf-split --merge"),
    linear=({"llama.rope.scaling.type": "linear"}, "its positions are scaled by linear"),
    adapter=({"general.type": "adapter"}, "no model, but of the type adapter; give the GGUF file of the model itself"),
)


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_model_that_we_read_is_named(other, tmp_path):
    metadata, match = OTHERS[other]
    refused(edited(tmp_path / "model.gguf", metadata=metadata), match)


# ---- one matrix that stands in the file twice


@pytest.mark.parametrize("finer", ["output", "token_embd"])
def test_a_matrix_that_stands_twice_is_tied_to_the_finer_copy(finer, tmp_path):
    network = make_network("smollm2")
    table = network.model.embed_tokens.weight.detach().numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    kinds = dict.fromkeys(["token_embd.weight", "output.weight"], gguf.GGMLQuantizationType.Q4_0)
    kinds[f"{finer}.weight"] = kind
    file = edited(tmp_path / "model.gguf", tensors=dict.fromkeys(kinds, table), kinds=kinds)
    model = load_model(file, device="cpu", dtype="float32").model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    expected = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(table, kind), kind)).bfloat16().float()
    assert torch.equal(model.get_input_embeddings().weight.detach(), expected)


# ---- files of this machine


def test_what_is_no_file_is_refused_at_once(tmp_path):
    "A pipe is never opened, and a missing file is no name for the hub."
    os.mkfifo(tmp_path / "pipe.gguf")
    assert not is_gguf(tmp_path / "pipe.gguf")
    for name in ("pipe.gguf", "missing.gguf"):
        with pytest.raises(InputError, match="no such file|neither a GGUF file"):
            resolve_model(str(tmp_path / name))


def test_a_tokenizer_is_built_once(tmp_path, cache, monkeypatch):
    "The second load reads the copy, and a damaged copy is built anew."
    file = make_gguf(tmp_path / "a.gguf")
    first = ours.load_gguf_tokenizer(file)
    built = []
    read = ours.read_gguf
    monkeypatch.setattr(ours, "read_gguf", lambda path: built.append(path) or read(path))
    again = ours.load_gguf_tokenizer(file)
    assert not built and again.get_vocab() == first.get_vocab() and again.chat_template == first.chat_template
    assert again.model_max_length == first.model_max_length and again.all_special_tokens == first.all_special_tokens
    (ours.get_tokenizer_folder(file) / "tokenizer.json").write_text("{")
    assert ours.load_gguf_tokenizer(file).get_vocab() == first.get_vocab() and built == [file]


def test_pointers_and_folders_around_a_model_lead_to_it(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 491400032\n"
    for folder in ("lm", "lfs", "models--org--name/snapshots/abc"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lm/a.gguf").write_text("GGUF")
    (tmp_path / "models--org--name/snapshots/abc/config.json").write_text("{}")
    for name in ("lfs/model.safetensors", "a.gguf"):
        (tmp_path / name).write_text(pointer)
    ways = {
        "lm": "lm/a.gguf",
        "models--org--name": "snapshots/abc",
        "lfs": "a pointer of Git LFS",
        "a.gguf": "a pointer",
    }
    for name, words in ways.items():
        with pytest.raises(InputError, match=words):
            load_model(tmp_path / name)
