"What leaves the device on request: three files, nothing that tells whose they are, private unless asked otherwise."

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from real import NAMES, folder_of, shared_real
from test_tuning import BRIEF, TALK

from personal_llm.base.adapters import CONFIG, WEIGHTS
from personal_llm.base.core import InputError
from personal_llm.runtimes.elsewhere import modelfile, push_to_hub
from personal_llm.tuning.finetune import finetune
from tiny import shared

BASE = "HuggingFaceTB/SmolLM2-360M-Instruct"


@pytest.fixture
def hub(monkeypatch):
    "A hub in memory: what was called, and what arrived."
    found = SimpleNamespace(calls=[], files={}, private=True, error=None)

    class Api:
        def create_repo(self, repo, private, exist_ok):
            if found.error:
                raise found.error
            found.calls.append(("create", repo, private))
            return f"https://huggingface.co/{repo}"

        def repo_info(self, repo):
            return SimpleNamespace(private=found.private)

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            found.calls.append(("upload", repo_id))
            found.files = {name: open(f"{folder_path}/{name}", "rb").read() for name in allow_patterns}

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return found


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return finetune(shared("llama"), TALK, BRIEF, out=tmp_path_factory.mktemp("mine"), progress=False)


def test_what_arrives(hub, adapter, tmp_path):
    assert push_to_hub(adapter, "me/mine", BASE, "cc-by-4.0") == "https://huggingface.co/me/mine"
    assert hub.calls == [("create", "me/mine", True), ("upload", "me/mine")]
    assert sorted(hub.files) == sorted(["README.md", CONFIG, WEIGHTS])
    assert hub.files[WEIGHTS] == (adapter.path / WEIGHTS).read_bytes()
    config = json.loads(hub.files[CONFIG])
    assert config["base_model_name_or_path"] == BASE and config["r"] == 2
    sent = hub.files[CONFIG] + hub.files["README.md"]
    for word in [str(adapter.path), adapter.path.name, adapter.base, *(d.id for d in TALK), *(d.prompt for d in TALK)]:
        assert word.encode() not in sent, word
    assert f"base_model: {BASE}\n".encode() in sent and b"on 16 dialogues" in sent and b"license: cc-by-4.0" in sent


def test_a_public_repository_is_not_filled_by_mistake(hub, adapter):
    hub.private = False
    with pytest.raises(InputError, match="is public"):
        push_to_hub(adapter, "me/mine", BASE, "cc-by-4.0")
    assert hub.files == {}
    push_to_hub(adapter, "me/mine", BASE, "cc-by-4.0", private=False)
    assert ("create", "me/mine", False) in hub.calls and hub.files


@pytest.mark.parametrize("error", [OSError("no such\nhost"), ValueError("a/b/c is no name")])
def test_what_goes_wrong_is_one_line(hub, adapter, error):
    hub.error = error
    with pytest.raises(InputError) as told:
        push_to_hub(adapter, "me/mine", BASE, "cc-by-4.0")
    assert "\n" not in str(told.value) and "hf auth login" in told.value.remedy


def test_what_is_no_adapter_is_not_sent(hub, tmp_path):
    with pytest.raises(InputError):
        push_to_hub(tmp_path, "me/mine", BASE, "cc-by-4.0")
    assert hub.calls == []


@pytest.mark.parametrize("name", NAMES)
def test_a_modelfile_writes_turns_as_the_template_does(name):
    if folder_of(name) is None:
        pytest.skip("no tokenizer of Llama-3.2 here; its licence forbids shipping (PERSONAL_LLM_TOKENIZERS=folder)")
    model = shared_real(name)
    lines = modelfile(model, "./b.gguf", "./a.gguf")
    template = lines.split('"""')[1]
    filled = template.replace("{{ .Prompt }}", "Tea?").split("{{ .Response }}")[0]
    turn = [dict(role="user", content="Tea?")]
    said = model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert said.removeprefix(model.tokenizer.bos_token or "") == filled
    assert lines.startswith("FROM ./b.gguf\nADAPTER ./a.gguf\n") and f'stop "{model.tokenizer.eos_token}"' in lines
