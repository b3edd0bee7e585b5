"""SmolLM2, Qwen2 and Llama-3.2 at reduced width, under their true tokenizers and templates: one matrix for all three.

What is special about each: SmolLM2 pads with its end token, Qwen2 has no begin token, Llama-3.2 adds one, has no
padding token, three end tokens and a rope of its own; none of the templates marks what the assistant says.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from real import NAMES, SHIPPED, build, require, shared_real, whole_folder
from test_tuning import TALK
from tiny import same, weights

from personal_llm.base.core import Dialogue
from personal_llm.base.models import load_model
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune
from personal_llm.recipes.check_model import MODEL_CHECKS, check_model

SHORT = TuningConfig(rank=2, steps=4, batch_size=4, max_length=96, checks=2, learning_rate=1e-2)
TURNS = [("system", "You are a nurse."), ("user", "Hi"), ("assistant", "Good morning.")]
LONG = Dialogue("And where does it hurt most of the time, in the morning or at night?", "At night.", history=TURNS)


@pytest.fixture(params=NAMES)
def name(request):
    return require(request.param)


@pytest.fixture
def model(name):
    return shared_real(name)


# ---- text


def test_the_whole_files(name):
    "The short ones have their template, special tokens, and tokens where the short vocabulary reaches; they learn."
    if whole_folder(name) is None:
        pytest.skip("the whole tokenizers are not here (PERSONAL_LLM_TOKENIZERS=folder)")
    short, model = shared_real(name).tokenizer, build(name, whole=True)
    whole = model.tokenizer
    assert short.chat_template == whole.chat_template and short.special_tokens_map == whole.special_tokens_map
    text = " the in on of it, <|im_end|> re\n"
    parts = [[t.convert_ids_to_tokens(i) for i in t(text)["input_ids"]] for t in (short, whole)]
    assert parts[0] == parts[1] and len(whole) <= model.model.config.vocab_size
    if (SHIPPED / name).is_dir():
        assert (SHIPPED / name / "tokenizer.json").stat().st_size < 60_000 and len(short) < 1600 < len(whole)
    found = check_model(model)
    assert found.ok, f"\n{found}"
    adapter = finetune(model, TALK[:6], replace(SHORT, steps=2), progress=False)
    assert adapter.best_loss < adapter.start_loss


def test_every_probe_passes(model):
    before = weights(model)
    found = check_model(model)
    assert found.ok and len(found.rows) == len(MODEL_CHECKS), f"\n{found}"
    assert same(model, before) and model.tokenizer.pad_token_id is not None


# ---- reading, scoring, generating


def test_every_end_token_ends(name, model):
    "Llama-3.2 has three of them, and an answer may end at any."
    ends = np.atleast_1d(model.model.generation_config.eos_token_id).tolist()
    assert len(ends) == (3 if name == "llama3.2" else 1) and model.tokenizer.eos_token_id in ends
    generation = model.model.generation_config
    kept = generation.eos_token_id
    row = model.encode_prompts(["Hi"], 100)[0]
    with torch.inference_mode():
        first = int(model.model(torch.tensor([row])).logits[0, -1].argmax())
    try:
        generation.eos_token_id = [*ends, first]
        assert model.generate(["Hi"], 3)[0] == "", "an end is no text of the reply"
        assert model.cost.tokens, "the reply ended with its first token"
    finally:
        generation.eos_token_id = kept


# ---- tuning


def test_a_saved_model_is_loaded_whole(name, model, tmp_path):
    "Tied embeddings and the rope's settings survive; the fingerprint tells the same base."
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load_model(tmp_path, device="cpu", max_length=160)
    assert again.base == model.base and np.allclose(again.nll([LONG]), model.nll([LONG]), rtol=1e-6)
    output = again.model.get_output_embeddings().weight
    assert output.data_ptr() == again.model.get_input_embeddings().weight.data_ptr()
    rope = model.model.config.rope_parameters
    assert rope == again.model.config.rope_parameters and (rope["rope_type"] == "llama3") == (name == "llama3.2")
