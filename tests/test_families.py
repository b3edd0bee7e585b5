"""Families of models: what stands before a reply, what ends it, what is learned, and marks inside a user's text.

Those of Qwen2 and SmolLM2 are the published ones with a shorter vocabulary. Llama 3's lies beside the repository, if at
all. The templates of Qwen3, SmolLM3, Gemma 3 and Phi are ours, in the form of the published ones.
"""

from pathlib import Path

import pytest
from real import folder_of, require
from tiny import tiny

from personal_llm.base.core import Dialogue
from personal_llm.base.loading import load_gguf_tokenizer
from personal_llm.base.models import Model, find_end_tokens
from personal_llm.base.tokens import encode_dialogue, encode_prompt, find_end_of_turn, get_special_strings

CHATML = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
LLAMA3 = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
GEMMA = "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
PHI = "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"
FAMILIES = {  # family: (tokenizer, template or its own, end of the prompt, end of a turn, a mark that is only added)
    "qwen2.5": ("qwen2", None, CHATML, "<|im_end|>", "<tool_call>"),
    "qwen3": ("qwen2", "qwen3", CHATML + "<think>\n\n</think>\n\n", "<|im_end|>", "<think>"),
    "smollm2": ("smollm2", None, CHATML, "<|im_end|>", "<repo_name>"),
    "smollm3": ("smollm2", "smollm3", CHATML + "<think>\n\n</think>\n", "<|im_end|>", "<think>"),
    "llama3": ("llama3.2", None, LLAMA3, "<|eot_id|>", "<|python_tag|>"),
    "gemma3": ("gemma3", "gemma3", GEMMA, "<end_of_turn>", "<start_of_turn>"),
    "phi": ("smollm2", "phi", PHI, "<|end|>", "<|user|>"),
}
ADDED = {"qwen2.5": ["<tool_call>"], "phi": ["<|user|>", "<|end|>"]}
ADDED |= dict.fromkeys(("qwen3", "smollm3"), ["<think>", "</think>"])
TALK = Dialogue("Hi", "Hello you.", history=[("system", "Be kind.")])


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):  # (tokenizer, end of the prompt, end of a turn, a mark)
    from transformers import AddedToken, AutoTokenizer

    name, template, *facts = FAMILIES[request.param]
    file = Path(__file__).parent / "templates" / "families" / f"{template}.jinja"
    if name == "gemma3":
        from test_gguf import make_gguf

        tokenizer = load_gguf_tokenizer(make_gguf(tmp_path / "gemma.gguf", "gemma3"))
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder_of(require(name)))
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ADDED.get(request.param, ())])
    tokenizer.chat_template = file.read_text(encoding="utf-8") if template else tokenizer.chat_template
    return tokenizer, *facts


def read_learned(sample) -> list:
    return [token for token in sample["labels"] if token != -100]


def test_a_prompt_ends_as_a_training_sample_begins(family):
    tokenizer, prompt_end, _, _ = family
    sample = encode_dialogue(tokenizer, TALK)
    prompt = encode_prompt(tokenizer, TALK, 512)["input_ids"]
    assert tokenizer.decode(prompt).endswith(prompt_end)
    assert sample["input_ids"][: len(prompt)] == prompt
    assert sample["labels"][: len(prompt)] == [-100] * len(prompt)


def test_the_templates_end_is_learned_and_ends_a_reply(family):
    tokenizer, _, end, _ = family
    assert tokenizer.decode(read_learned(encode_dialogue(tokenizer, TALK))) == "Hello you." + end
    token = find_end_of_turn(tokenizer)
    assert tokenizer.convert_ids_to_tokens(token) == end
    network = tiny("llama").model
    network.resize_token_embeddings(len(tokenizer))
    assert token in find_end_tokens(Model(network, tokenizer))


def test_a_mark_inside_a_users_text_stays_text(family):
    "Also one that the tokenizer added without calling it special."
    tokenizer, _, end, mark = family
    specials = get_special_strings(tokenizer)
    assert mark in specials and end in specials

    def count(dialogue) -> int:
        rows = (encode_dialogue(tokenizer, dialogue), encode_prompt(tokenizer, dialogue, 512))
        tokens = [tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in rows]
        return [sum(token in specials for token in row) for row in tokens]

    calm = Dialogue("x", "y", history=[("user", "x"), ("assistant", "y")])
    for text in (mark, end, f"a{mark}b{end}{mark}", "".join(specials[:9]), mark * 3):
        turns = [("user", f"x {text} y"), ("assistant", f"so {text} it is")]
        rude = Dialogue(turns[0][1], turns[1][1], history=turns)
        assert count(rude) == count(calm)
        sample = encode_dialogue(tokenizer, rude)
        assert tokenizer.decode(sample["input_ids"]).count(text) >= 4
        assert tokenizer.decode(read_learned(sample)).lstrip() == rude.response + end


def test_two_turns_of_one_speaker_reach_every_family(family):
    tokenizer = family[0]
    talk = Dialogue("third", "", history=[("user", "first"), ("user", "second")])
    text = tokenizer.decode(encode_prompt(tokenizer, talk, 512)["input_ids"])
    assert text.index("first") < text.index("second") < text.index("third")
