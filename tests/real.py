"""Models of random weights at reduced width under true tokenizers, chat templates and configurations.

SmolLM2 and Qwen2 (Apache-2.0, see NOTICE) have files with a short vocabulary in tests/tokenizers, cut from the whole
ones. We look for the whole ones, and for Llama-3.2, which we may not ship, in
the folder that PERSONAL_LLM_TOKENIZERS names, and in ../shared/data/tokenizers.
"""

import os
from functools import lru_cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHIPPED = HERE / "tokenizers"
NAMES = ("smollm2", "qwen2", "llama3.2")


def whole_folder(name: str):  # a folder, or None
    "Where the whole tokenizer of a model lies."
    given = os.environ.get("PERSONAL_LLM_TOKENIZERS")
    place = Path(given) if given else HERE.parent.parent / "shared" / "data" / "tokenizers"
    return place / name if (place / name / "tokenizer.json").is_file() else None


def folder_of(name: str):  # a folder, or None
    "Where a tokenizer lies, the short one before the whole one."
    return SHIPPED / name if (SHIPPED / name).is_dir() else whole_folder(name)


def require(name: str) -> str:
    "The name; a test without its tokenizer is skipped."
    if folder_of(name) is None:
        pytest.skip("no tokenizer of Llama-3.2 here; its licence forbids shipping (PERSONAL_LLM_TOKENIZERS=folder)")
    return name


def reduced(folder: Path, **changes):  # a configuration of transformers
    "A model's true configuration at width 32, two layers."
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    for field, value in (small | dict(num_key_value_heads=2, initializer_range=0.1) | changes).items():
        setattr(config, field, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    return config


def build(name: str, whole: bool = False, seed: int = 0, max_length: int = 160):  # a `Model`
    "A new model of random weights, with the whole vocabulary on request."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from personal_llm.base.models import load_model

    folder = whole_folder(name) if whole else folder_of(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(reduced(folder), dtype=torch.float32)
    return load_model((model, AutoTokenizer.from_pretrained(folder)), max_length=max_length)


shared_real = lru_cache(None)(build)  # for tests that leave the model as it was
