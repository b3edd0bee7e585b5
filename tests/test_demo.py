"The demo: its stages, its two files, and that a folder of a person stays."

import json

import pytest
from typed import fails, invoke

from personal_llm.app.demo import DemoPerson, run_demo
from personal_llm.base.models import load_model
from personal_llm.device.personalizer import Personalizer


def test_the_prompts_of_the_person_are_apart():
    person = DemoPerson()
    tests = [prompt for part in person.tests.values() for prompt in part]
    prompts = [*person.corrected, *person.left_alone, *person.stream, *tests]
    assert len(prompts) == len({*prompts}) and all(len(part) == 6 for part in person.tests.values())


def test_its_folder_has_numbers_and_a_picture_and_a_memory_stays_as_it_is(tmp_path):
    Personalizer(load_model("pocket"), folder=tmp_path).close()
    before = (tmp_path / "memory.sqlite").read_bytes()
    lines = []
    options = dict(progress=False, report=lines.append, num_others=4)
    result = run_demo(tmp_path, load_model("pocket"), steps=2, **options)
    assert (tmp_path / "memory.sqlite").read_bytes() == before
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "demo.json").read_text()) == json.loads(json.dumps(result))
    assert {*result["containment"]} == {"habits", "spill", "unseen"}
    assert all({*part} == {"before", "after", "night"} for part in result["containment"].values())
    assert any("subjects nobody touched" in line for line in lines)


def test_what_was_shown_stays_when_it_is_stopped(tmp_path, monkeypatch):
    def stop(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Personalizer, "observe_all", stop)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, load_model("pocket"), progress=False, report=len, num_others=4)
    stored = json.loads((tmp_path / "demo.json").read_text())["containment"]
    assert {*stored["habits"]} == {"before", "after"} and (tmp_path / "figure.png").exists()


def test_the_command_ends_with_two_lines_to_type(tmp_path, capsys):
    words = ("demo", "--out", tmp_path / "demo", "--model", "pocket", "--steps", 1)
    code, out, _ = invoke(capsys, *words, "--quiet")
    assert code == 0 and out.splitlines()[-2].startswith("personal-llm chat")
    assert "steps" in fails(capsys, *words, "--steps", 0)
