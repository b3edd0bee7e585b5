"The demo: its stages, its file, and that a folder of a person stays."

import json
import threading

from typed import fails, invoke

from personal_llm.app.demo import DemoPerson, load_ahead, run_demo
from personal_llm.device.evidence import explain_corrections
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.device.personalizer import Personalizer

BRIEF = ("--model", "pocket", "--steps", 1)


def test_the_prompts_of_the_person_are_apart():
    person = DemoPerson()
    tests = [prompt for part in person.tests.values() for prompt in part]
    prompts = [*person.corrected, *person.left_alone, *person.stream, *tests]
    assert len(prompts) == len({*prompts}) and all(len(part) == 6 for part in person.tests.values())


def test_its_folder_has_numbers_and_a_memory_stays_as_it_is(tmp_path, capsys):
    Personalizer(load_model("pocket"), folder=tmp_path).close()
    before = (tmp_path / "memory.sqlite").read_bytes()
    lines = []
    result = run_demo(tmp_path, load_model("pocket"), report=lines.append, length=12, steps=2)
    assert (tmp_path / "memory.sqlite").read_bytes() == before
    assert json.loads((tmp_path / "demo.json").read_text()) == json.loads(json.dumps(result))
    assert {*result["containment"]} == {"habits", "spill", "unseen"}
    assert all({*part} == {"before", "after", "tuned"} for part in result["containment"].values())
    assert any("subjects nobody touched" in line for line in lines) and any("expect zeros" in line for line in lines)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("about ")]
    assert len(told) == 1, "before the replies; the stages after them have bars"


def test_the_words_compare_with_the_replies_that_were_corrected():
    "Nothing is generated for them."
    me = Personalizer(load_model("pocket"))
    for number, prompt in enumerate(DemoPerson().wishes):
        dialogue = Dialogue(prompt, "Take a pot.", time=float(number), origin="model")
        me.arrive(dialogue, f"talk {number}")
        me.react(dialogue, "better", DemoPerson().wishes[prompt], float(number))
    words = explain_corrections(me.state).lines()
    count = len(DemoPerson().wishes)
    assert f"({count} of {count}; the replies before 0 of {count})" in words[0] and me.model.cost.forward == 0
    assert explain_corrections(Personalizer(load_model("pocket")).state).lines() == [
        "no description: 0 own answers, 8 are needed"
    ]


def test_weights_that_cannot_be_loaded_ahead_are_no_error_yet():
    "The first use tells; `load_ahead` runs in another thread."

    class Damaged:
        @property
        def model(self):
            looked.append(threading.current_thread() is threading.main_thread())
            raise InputError("damaged", "get it again")

    looked = []
    load_ahead(Damaged())
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and thread.name.endswith("(load)"):
            thread.join()
    assert looked == [False]


def test_what_was_shown_stays_when_it_is_stopped(tmp_path, monkeypatch, capsys):
    def stop(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Personalizer, "observe_all", stop)
    code, out, err = invoke(capsys, "demo", "--out", tmp_path, *BRIEF, "--quiet")
    stored = json.loads((tmp_path / "demo.json").read_text())["containment"]
    assert code == 130 and {*stored["habits"]} == {"before", "after"} and "3 corrections" in out
    assert err == f"personal-llm: stopped; what was shown is in {tmp_path / 'demo.json'}\n"


def test_the_command_ends_with_two_lines_to_type(tmp_path, capsys):
    code, out, _ = invoke(capsys, "demo", "--out", tmp_path / "demo", *BRIEF, "--quiet")
    assert code == 0 and out.splitlines()[-2].startswith("personal-llm chat")
    assert "steps" in fails(capsys, "demo", "--steps", 0)
