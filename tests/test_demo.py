"The demo: what it reports, its two files, and that a folder of a person stays."

import json

from typed import fails, invoke

from personal_llm.app.demo import run_demo
from personal_llm.base.models import load_model
from personal_llm.device.personalizer import Personalizer


def test_its_folder_has_numbers_and_a_picture_and_a_memory_stays_as_it_is(tmp_path):
    Personalizer(load_model("pocket"), folder=tmp_path).close()
    before = (tmp_path / "memory.sqlite").read_bytes()
    result, lines = run_demo(tmp_path, load_model("pocket"), steps=2, progress=False)
    assert (tmp_path / "memory.sqlite").read_bytes() == before
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "demo.json").read_text()) == json.loads(json.dumps(result))
    signals = sum(result["kinds"][place] for place in result["places"])
    assert f"16 bins by answers-first, {signals} of them on the subject" in lines[2]


def test_the_command_ends_with_two_lines_to_type(tmp_path, capsys):
    words = ("demo", "--out", tmp_path / "demo", "--model", "pocket", "--policy", "sdss", "--steps", 1)
    code, out, _ = invoke(capsys, *words, "--quiet")
    assert code == 0 and out.splitlines()[-2].startswith("personal-llm chat")
    assert "steps" in fails(capsys, *words, "--steps", 0)
