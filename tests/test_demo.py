"The demo: what it reports, its two files, and that a folder of a person stays."

import json

import pytest
from typed import fails, invoke

from personal_llm.app.demo import run_demo
from personal_llm.base.models import load_model
from personal_llm.device.personalizer import Personalizer


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    me = Personalizer(load_model("pocket"), folder=out)
    me.close()
    before = (out / "memory.sqlite").read_bytes()
    result, lines = run_demo(out, load_model("pocket"), steps=2, progress=False)
    assert (out / "memory.sqlite").read_bytes() == before, "a memory in the folder stays as it is"
    return out, result, lines


def test_its_folder_has_numbers_and_a_picture(demo):
    out, result, lines = demo
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((out / "demo.json").read_text()) == json.loads(json.dumps(result))
    assert result["seen"] == len(result["kinds"]) == 96 and result["kept"] == len(result["places"]) == 16
    signals = sum(result["kinds"][place] for place in result["places"])
    assert f"16 bins by answers-first, {signals} of them on the subject" in lines[2]


def test_the_command_ends_with_two_lines_to_type(tmp_path, capsys):
    words = ("demo", "--out", tmp_path / "demo", "--model", "pocket", "--policy", "sdss", "--steps", 1)
    code, out, _ = invoke(capsys, *words, "--quiet")
    assert code == 0 and out.splitlines()[-2].startswith("personal-llm chat")
    assert "steps" in fails(capsys, *words, "--steps", 0)
