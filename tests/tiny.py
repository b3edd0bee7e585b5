"Tiny random models of several architectures, built from configurations; the tokenizer is the pocket model's."

import copy
import json
from functools import lru_cache
from pathlib import Path

from personal_llm.base.adapters import Adapter, commit_adapter, stage_adapter
from personal_llm.base.files import ASSETS, write_json
from personal_llm.base.models import load_model
from personal_llm.base.tokens import PLAIN_TEMPLATE

FILES = Path(__file__).with_name("templates").glob("*.jinja")
TEMPLATES = dict(plain=PLAIN_TEMPLATE) | {file.stem: file.read_text(encoding="utf-8") for file in FILES}
# what models of that kind come with
FITTING = dict(llama="trimming", qwen2="system", gpt2="plain", smollm="chatml-marked")
ARCHITECTURES = tuple(FITTING)
PROJECTIONS = [f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")]
UPPER = dict(target_modules=PROJECTIONS, layers_to_transform=[1])  # of `random_adapter`, as a fine-tune's default


def tiny_tokenizer(template: str):
    "The pocket tokenizer with one of `TEMPLATES`; chatml's tokens are added where it needs them."
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "pocket")
    tokenizer.chat_template = TEMPLATES[template]
    if "<|im_start|>" in tokenizer.chat_template:
        tokenizer.add_special_tokens(
            dict(eos_token="<|im_end|>", extra_special_tokens=[*tokenizer.extra_special_tokens, "<|im_start|>"])
        )
    return tokenizer


def tiny(
    architecture: str,  # one of `ARCHITECTURES`
    template: str = None,  # one of `TEMPLATES`; the fitting one by default
    seed: int = 0,  # of the random weights
    max_length: int = 128,
):  # a `Model`
    "A new random model of 2 layers and width 32."
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny_tokenizer(template or FITTING[architecture])
    common = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    common |= dict(vocab_size=len(tokenizer), initializer_range=0.1)
    shape = common | dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256
    )
    kinds = dict(
        llama=lambda: LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, tie_word_embeddings=False)),
        smollm=lambda: LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2, tie_word_embeddings=True)),
        qwen2=lambda: Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2, tie_word_embeddings=True)),
        gpt2=lambda: GPT2LMHeadModel(GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=256)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_model((kinds[architecture](), tokenizer), max_length=max_length)


shared = lru_cache(None)(tiny)  # for tests that leave the model as it was


def random_adapter(model, folder, rank: int = 2, seed: int = 1, **kind) -> Path:  # kind: of peft, such as use_dora
    "A random adapter for a model, as peft writes it, with a card that names the base."
    import torch
    from peft import LoraConfig, get_peft_model

    kind = dict(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM") | kind
    settings = LoraConfig(r=rank, **kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(copy.deepcopy(model.model), settings)
    adapted.save_pretrained(folder)
    Path(folder, "adapter.json").write_text(json.dumps(dict(base=model.base)))
    return Path(folder)


def write_adapter(out, pairs: dict, **card):  # pairs: module -> (A, B); returns an `Adapter`
    "An adapter of matrices that a test chooses, with the scale 1, written as `finetune` writes its own."
    from safetensors.torch import save_file

    rank = len(next(iter(pairs.values()))[0])
    settings = dict(peft_type="LORA", task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=[*pairs])

    def save(stage):
        rows = [(module, *row) for module, pair in pairs.items() for row in zip("AB", pair)]
        save_file({f"{module}.lora_{name}.weight": x for module, name, x in rows}, stage / "adapter_model.safetensors")
        write_json(stage / "adapter_config.json", settings)

    return commit_adapter(stage_adapter(out, save), Adapter(Path(out), "base-1", **card))


def weights(model) -> dict:
    "A copy of all a model's tensors."
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same(model, before: dict) -> bool:
    "Whether a model's tensors are those of `weights`, bit by bit."
    import torch

    now = model.model.state_dict()
    return before.keys() == now.keys() and all(torch.equal(before[name], now[name]) for name in now)


def break_seal(folder) -> None:
    "Take id and checksum off an adapter's card, as in one of an older version, whose files nothing checks."
    file = Path(folder) / "adapter.json"
    card = json.loads(file.read_text(encoding="utf-8"))
    kept = {name: value for name, value in card.items() if name not in ("adapter_id", "checksum")}
    file.write_text(json.dumps(kept), encoding="utf-8")
