"What leaves the device on request: weights and settings, and nothing that tells whose they are."

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from real import NAMES, build, folder_of, shared_real, whole_folder
from test_tuning import BRIEF, TALK, TEST

from personal_llm.base.adapters import CONFIG_FILE, WEIGHTS_FILE
from personal_llm.base.core import Dialogue
from personal_llm.runtimes.export import format_modelfile
from personal_llm.runtimes.plugins import export_adapter
from personal_llm.tuning.finetune import finetune
from tiny import shared

BASE = "HuggingFaceTB/SmolLM2-360M-Instruct"


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
    for word in [str(adapter.path), str(Path.cwd()), adapter.base, *(d.id for d in TALK), *(d.prompt for d in TALK)]:
        assert word.encode() not in written[CONFIG_FILE], word


@pytest.mark.parametrize("name", NAMES)
def test_a_modelfile_writes_turns_as_the_template_does(name):
    if folder_of(name) is None:
        pytest.skip("no tokenizer of Llama-3.2 here; its licence forbids shipping (PERSONAL_LLM_TOKENIZERS=folder)")
    model = shared_real(name)
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
    assert (
        lines.startswith("FROM ./base.gguf\nADAPTER ./adapter.gguf\n")
        and f'stop "{model.tokenizer.eos_token}"' in lines
    )


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


# ---- llama.cpp

LLAMA_CPP = Path(os.environ.get("PERSONAL_LLM_LLAMA_CPP", "/nowhere"))  # its sources, with the two converters


def converted(script, *words):
    "Run one of llama.cpp's converters."
    env = os.environ | dict(PYTHONPATH=str(LLAMA_CPP / "gguf-py"))
    done = subprocess.run([sys.executable, LLAMA_CPP / script, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def log_probabilities(logits):
    return torch.log_softmax(torch.as_tensor(np.array(logits)), -1).numpy()


class Other:
    "llama.cpp, by its Python bindings: tokens, and log probabilities after each of them."

    def __init__(self, file):
        import llama_cpp.llama_cpp as inner

        self.inner = inner
        inner.llama_backend_init()
        self.model = inner.llama_model_load_from_file(str(file).encode(), inner.llama_model_default_params())
        self.vocabulary = inner.llama_model_get_vocab(self.model)

    def tokens(self, text):
        into, said = (self.inner.llama_token * 512)(), text.encode()
        return list(into[: self.inner.llama_tokenize(self.vocabulary, said, len(said), into, 512, True, True)])

    def read(self, ids, adapter=None):
        settings = self.inner.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, 1, 1
        context = self.inner.llama_init_from_model(self.model, settings)
        if adapter:
            made = self.inner.llama_adapter_lora_init(self.model, str(adapter).encode())
            self.inner.llama_set_adapter_lora(context, made, 1.0)
        batch = self.inner.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.logits[place] = token, place, 1, 1
            batch.seq_id[place][0] = 0
        assert self.inner.llama_decode(context, batch) == 0
        width = self.inner.llama_vocab_n_tokens(self.vocabulary)
        rows = [self.inner.llama_get_logits_ith(context, place) for place in range(len(ids))]
        return log_probabilities([np.ctypeslib.as_array(row, (width,)) for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen2"])
def test_llama_cpp_reads_base_and_adapter_as_we_do(name, tmp_path):
    pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python gguf sentencepiece")
    if whole_folder(name) is None or not (LLAMA_CPP / "convert_lora_to_gguf.py").is_file():
        pytest.skip("needs PERSONAL_LLM_LLAMA_CPP=sources of llama.cpp, and PERSONAL_LLM_TOKENIZERS=whole tokenizers")
    model = build(name, whole=True)
    for part in (model.model, model.tokenizer):
        part.save_pretrained(tmp_path / "base")
    made = finetune(model, TALK, BRIEF, out=tmp_path / "adapter", progress=False)
    converted("convert_hf_to_gguf.py", tmp_path / "base", "--outfile", tmp_path / "base.gguf", "--outtype", "f32")
    lora = ("--base", tmp_path / "base", "--outfile", tmp_path / "adapter.gguf", "--outtype", "f32")
    converted("convert_lora_to_gguf.py", tmp_path / "adapter", *lora)
    other, ids, found = Other(tmp_path / "base.gguf"), model.encode(TEST[0])["input_ids"], {}
    turn = [dict(role="user", content=TEST[0].prompt)]
    text = model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert other.tokens(text) == model.tokenizer(text, add_special_tokens=False)["input_ids"]
    for file, adapter in ((None, None), (tmp_path / "adapter.gguf", made)):
        with model.use_adapter(adapter), torch.no_grad():
            found[adapter is None] = log_probabilities(model.model(torch.tensor([ids])).logits[0].float())
        width = found[adapter is None].shape[1]
        assert np.abs(other.read(ids, file)[:, :width] - found[adapter is None]).max() < 0.01
    assert np.abs(found[True] - found[False]).max() > 0.5, "the adapter says something"
