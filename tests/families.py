"Families of models at small width, with random weights and the pocket model's tokenizer."

from functools import lru_cache

import torch
from tiny import tiny_tokenizer

from personal_llm.base.models import load_model

SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
SMALL |= dict(head_dim=8, max_position_embeddings=256, initializer_range=0.1)
EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MIXED = dict(layer_types=["full_attention", "linear_attention"] * 2, linear_num_key_heads=2, linear_num_value_heads=2)
MIXED |= dict(linear_key_head_dim=8, linear_value_head_dim=8)
HYBRID = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=16, mamba_n_groups=1)
GEMMA_4 = dict(global_head_dim=8, num_global_key_value_heads=2, hidden_size_per_layer_input=8, num_kv_shared_layers=0)
FAMILIES = {  # name -> (transformers' name of the text configuration, further settings)
    "llama3": ("llama", {}),
    "llama4": ("llama4_text", EXPERTS | dict(intermediate_size_mlp=48)),
    "qwen2": ("qwen2", {}),
    "qwen2.5": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen2-moe": ("qwen2_moe", EXPERTS | dict(shared_expert_intermediate_size=16)),
    "qwen3": ("qwen3", {}),
    "qwen3-moe": ("qwen3_moe", EXPERTS),
    "qwen3.5": ("qwen3_5_text", MIXED),
    "gemma2": ("gemma2", dict(query_pre_attn_scalar=8)),
    "gemma3": ("gemma3_text", dict(query_pre_attn_scalar=8)),
    "gemma4": ("gemma4_text", GEMMA_4 | dict(vocab_size_per_layer_input=0)),
    "phi3": ("phi3", {}),
    "phi4-multimodal": ("phi4_multimodal", {}),
    "mistral": ("mistral", {}),
    "smollm2": ("llama", dict(tie_word_embeddings=True)),
    "smollm3": ("smollm3", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {}),
    "gpt-neox": ("gpt_neox", {}),
    "falcon": ("falcon", dict(num_kv_heads=2, head_dim=None)),
    "granite": ("granite", {}),
    "granite-moe-hybrid": ("granitemoehybrid", EXPERTS | dict(layer_types=["attention"] * 4) | HYBRID),
    "granite-4-hybrid": ("granitemoehybrid", EXPERTS | dict(layer_types=["attention", "mamba"] * 2) | HYBRID),
    "lfm2": ("lfm2", dict(layer_types=["conv", "full_attention"] * 2, block_ff_dim=48)),
    "gpt-oss": ("gpt_oss", EXPERTS),
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", dict(num_heads=8, head_dim=8, n_groups=1, state_size=16)),
    "falcon-mamba": ("falcon_mamba", {}),
}


shared_tokenizer = lru_cache(None)(tiny_tokenizer)  # its classes of tokens are found once


def family(name: str, seed: int = 0):  # a `Model`
    "A new random model of a family."
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, further = FAMILIES[name]
    tokenizer = shared_tokenizer("plain")
    ids = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    if "vocab_size_per_layer_input" in further:
        further = further | dict(vocab_size_per_layer_input=len(tokenizer))
    settings = SMALL | dict(vocab_size=len(tokenizer)) | ids | further
    config = AutoConfig.for_model(kind, **{name: value for name, value in settings.items() if value is not None})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return load_model((model, tokenizer), max_length=128)
