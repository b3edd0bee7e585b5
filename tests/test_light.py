"What never imports PyTorch, transformers or sentence-transformers: commands, and a chat until something is scored."

import json

import pytest
from cases import run_python

from personal_llm.base.core import Dialogue
from personal_llm.base.loading import load_chat_tokenizer, load_gguf_tokenizer
from personal_llm.base.tokens import ChatTokenizer, compile_template, encode_prompt, find_end_of_turn
from personal_llm.base.tokens import get_special_strings
from personal_llm.base.weights import DEFAULT_MODEL, find_weights

NEEDS_MODEL = pytest.mark.skipif(find_weights(DEFAULT_MODEL) is None, reason=f"needs {DEFAULT_MODEL}")
HEAVY = ("torch", "transformers", "peft", "sentence_transformers")
REPORT = f"""
import sys
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, found
"""
TEACH = """
import sys
from personal_llm.base.models import load_model
from personal_llm.base.replies import ReplyOptions
from personal_llm.device.chat import ChatSession

session = ChatSession(load_model("qwen2.5-coder-0.5b"), sys.argv[1])
few = ReplyOptions(max_tokens=4)
"".join(session.say("Is seven a prime number?", options=few))
session.react("better", "In short: yes.")
session.open_talk()
"".join(session.say("Is nine a prime number?", options=few))
assert [d.response for d in session.recalled.memories] == ["In short: yes."]
session.close()
"""
COMMANDS = """
import sys
from personal_llm.app.cli import main
for words in (["status"], ["forget", "--containing", "seven", "--dry-run"]):
    assert main([*words, "--out", sys.argv[1]]) == 0
"""


def run(program: str, folder) -> None:
    "Run a program with the default encoder; it fails where it imports what is heavy."
    run_python(program + REPORT, folder, PERSONAL_LLM_ENCODER=None)


@pytest.mark.later
@NEEDS_MODEL
def test_a_chat_and_commands_need_no_pytorch(tmp_path):
    load_chat_tokenizer(find_weights(DEFAULT_MODEL))  # as `personal-llm get` does
    run(TEACH, tmp_path)
    run(COMMANDS, tmp_path)


TALKS = [
    Dialogue("Is <|im_end|> a token? </tool_call>", ""),
    Dialogue("你好 🎉 \ud83d", "", [("system", "Be kind."), ("user", "  Hello.\n"), ("assistant", "Hi!")]),
    Dialogue("x" * 3000, "", [("user", "a"), ("assistant", "b")]),
]


@NEEDS_MODEL
def test_a_chat_tokenizer_gives_the_same_tokens():
    file = find_weights(DEFAULT_MODEL)
    light, whole = load_chat_tokenizer(file), load_gguf_tokenizer(file)
    assert isinstance(light, ChatTokenizer) and len(light) == len(whole)
    for name in ("eos_token", "model_max_length", "chat_template"):
        assert getattr(light, name) == getattr(whole, name)
    assert {*light.all_special_ids} == {*whole.all_special_ids}
    assert get_special_strings(light) == get_special_strings(whole)
    assert find_end_of_turn(light) == find_end_of_turn(whole)
    for talk in TALKS:
        assert encode_prompt(light, talk, 200) == encode_prompt(whole, talk, 200)


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace(_a=1) %}",
        "{{ ''.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
        "{{ raise_exception('no system prompt') }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source):
    from jinja2.exceptions import TemplateError

    with pytest.raises(TemplateError):
        compile_template(source).render(messages=[])


def test_a_template_has_what_transformers_offers():
    source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if ns.n > 1 %}{% break %}"
    source += (
        "{% endif %}{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    message = dict(role="user", content="<é>")
    assert compile_template(source).render(messages=[message, message]) == json.dumps(message, ensure_ascii=False) + "4"


def test_an_adapter_is_given_to_llama_cpp_without_pytorch(tmp_path):
    import gguf
    import torch
    from tiny import write_adapter

    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    for name, dtype in (("single", torch.float32), ("half", torch.bfloat16)):
        A = torch.tensor([[1.0, -2.5, 0.5, 3.0]], dtype=dtype)
        B = torch.tensor([[1.0], [2.0], [0.25], [-4.0]], dtype=dtype)
        folder = write_adapter(tmp_path / name, {layer: (A, B)}).path
        program = "import sys\nfrom pathlib import Path\nfrom personal_llm.base.replies import write_gguf_adapter\n"
        program += "write_gguf_adapter(Path(sys.argv[1]), Path(sys.argv[1]) / 'a.gguf', 'qwen2', 1, 1, 1)\n"
        run(program, folder)
        tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(folder / "a.gguf").tensors}
        assert tensors["blk.0.attn_q.weight.lora_a"].tolist() == A.tolist()
        assert tensors["blk.0.attn_q.weight.lora_b"].tolist() == B.tolist()
