"The demo: what it reports, its files, and that a second one replaces the first."

import json

import pytest

from personal_llm.app.demo import run_demo
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.device.personalizer import Personalizer
from typed import fails, invoke

BRIEF = dict(length=48, capacity=6, tests=3, steps=2, progress=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, *run_demo(out, load_model("pocket"), **BRIEF)


def test_its_folder_is_a_memory_with_a_picture(demo):
    out, result, _ = demo
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((out / "demo.json").read_text()) == json.loads(json.dumps(result))
    me = Personalizer(load_model("pocket"), folder=out)
    assert len(me.rounds) == 1 and me.buffer.seen == 48
    me.close()


def test_a_second_demo_replaces_the_first_and_no_chat(demo, tmp_path):
    out, result, _ = demo
    again, _ = run_demo(out, load_model("pocket"), **BRIEF)
    assert again["places"] == result["places"] and again["change"] == result["change"]
    me = Personalizer(load_model("pocket"), folder=out)
    me.arrive(Dialogue("My sister is called Ana.", "I see."), "a talk")
    me.close()
    with pytest.raises(InputError, match="not a demo's"):
        run_demo(out, load_model("pocket"), **BRIEF)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        run_demo(tmp_path, load_model("pocket"), **BRIEF)


def test_the_command_ends_with_two_lines_to_type(tmp_path, capsys):
    words = ("demo", "--out", tmp_path / "demo", "--model", "pocket", "--length", 40, "--capacity", 4, "--steps", 1)
    code, out, _ = invoke(capsys, *words, "--quiet")
    assert code == 0 and out.splitlines()[-2].startswith("personal-llm chat")
    assert "seed" in fails(capsys, *words, "--seed", -1)
