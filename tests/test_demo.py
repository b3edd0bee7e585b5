"The demo: its settings, its folder, and its report."

import json
from dataclasses import replace

import pytest

from personal_llm.app import commands, demo, personalize
from personal_llm.app.arguments import ModelOptions
from personal_llm.app.demo import DemoSettings, run_demo
from personal_llm.base.core import InputError
from personal_llm.base.decoding import TOY_REPETITION_PENALTY
from personal_llm.device import personalizer
from tiny import shared
from typed import fails, found, snapshot

SHORT = dict(length=24, capacity=8, policies=("active", "fifo"), steps=1, synthetic=0, tests=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    patch = pytest.MonkeyPatch()
    patch.setattr(personalize, "MAX_MEASURED_REPLY_TOKENS", 4)
    result = run_demo(folder, shared("llama"), progress=False, **SHORT)
    patch.undo()
    return folder, result


def test_it_leaves_report_figure_adapter_and_numbers(made):
    folder, result = made
    assert {p.name for p in folder.iterdir() if p.name[0] != "."} == {*demo.DEMO_FILES}
    assert json.loads((folder / "demo.json").read_text())["policies"].keys() == {"active", "fifo"}
    assert result["settings"]["repetition_penalty"] == TOY_REPETITION_PENALTY
    page = " ".join((folder / "report.html").read_text().split())
    assert f"repetition penalty of {TOY_REPETITION_PENALTY}" in page and "<script" not in page


def test_budgets_are_equal(made):
    for policy in made[1]["policies"].values():
        assert len(policy["kept"]) == 8 and policy["requests"] <= 8 and policy["synthetic"] == 0
        assert policy["judged_on"] is not None


def test_who_keeps_the_bare_model_is_not_measured_again(tmp_path, monkeypatch):
    "Nothing was learned: the same numbers, without a second look."
    looks, real = [], demo.score_adapter
    monkeypatch.setattr(demo, "score_adapter", lambda run, adapter=None: looks.append(adapter) or real(run))
    tune = personalizer.tune
    worse = lambda adapter: replace(adapter, best_loss=adapter.start_loss)
    monkeypatch.setattr(personalizer, "tune", lambda *given, **named: worse(tune(*given, **named)))
    monkeypatch.setattr(personalize, "MAX_MEASURED_REPLY_TOKENS", 4)
    small = SHORT | dict(policies=("fifo",), length=12, capacity=4, tests=2)
    result = run_demo(tmp_path / "out", shared("llama"), progress=False, **small)
    assert result["policies"]["fifo"]["change"]["loss"]["difference"] == 0 and looks == [None]


def test_folders_of_others_are_refused_and_ours_is_replaced(made, tmp_path, monkeypatch):
    "Promise 1: an adapter with somebody's notes, and a thesis."
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not results of an earlier run"):
        run_demo(tmp_path, shared("llama"), progress=False, **SHORT)
    assert snapshot(tmp_path).keys() == {"adapter/notes.txt"} and len(list(tmp_path.iterdir())) == 1
    folder, result = made
    before = snapshot(folder)

    def fail(*given):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(demo, "score_adapter", fail)
        run_demo(folder, shared("llama"), progress=False, **SHORT)
    assert snapshot(folder) == before


def test_the_command_passes_its_options_on(tmp_path, capsys, monkeypatch):
    seen = {}
    result = dict(ok=True, seconds=dict(total=1))
    monkeypatch.setattr(commands, "run_demo", lambda *given, **named: seen.update(given=given, **named) or result)
    monkeypatch.setattr(ModelOptions, "load", lambda self: self.model)
    monkeypatch.setattr(commands, "fill_template", lambda name, result: "")
    options = "--model pocket --user pupil --length 100 --capacity 9 --steps 7 --seed 4 --synthetic 2 --quiet".split()
    assert found(capsys, "demo", "--out", tmp_path, *options)["ok"]
    numbers = dict(length=100, capacity=9, steps=7, synthetic=2, seed=4)
    out, load = seen.pop("given")
    assert (out, load()) == (str(tmp_path), "pocket") and seen == dict(user="pupil", progress=False) | numbers


@pytest.mark.parametrize("wrong", [dict(seed=-1), dict(seed="0"), dict(length=10**12), dict(tests=1), dict(user=3)])
def test_settings_that_cannot_work(wrong):
    with pytest.raises(InputError):
        DemoSettings(**wrong)


def true_of(fact, user):
    "Whether a fact is one of the habits that a simulated user was made with, or the user's subject."
    key, names = fact.key, {habit.name for habit in user.habits}
    quoted = key.partition("“")[2].rstrip("”")
    if key.startswith("*"):
        return any(habit.apply(key.split("*")[3]) == key.split("*")[1] for habit in user.habits)
    if key.startswith("about "):
        return key == "about medicine" and user.signal_subjects[0][1].startswith("medical")
    begins = dict(opens=f"opens '{quoted}'", signs=f"signs off '{quoted}'", emoji=f"ends with {fact.label[-1]}")
    return begins.get(key.split()[0], dict(lists="bullet list").get(key, key)) in names


@pytest.mark.parametrize("name, count", [("nurse", 24), ("barista", 16), ("traveller", 16)])
def test_what_the_demo_says_of_a_user_is_true_line_by_line(name, count):
    "Every line is a planted habit or the subject; of the nurse all that the demo promises is there."
    from personal_llm.data.reading import load_samples
    from personal_llm.data.people import USERS, user_stream
    from personal_llm.explanation.description import describe_user

    user = USERS[name]
    pairs = [(d, user(d)) for d in user_stream(user, load_samples(), seed=0).stream if user(d)][:count]
    liked = [d.derive(response=better, origin="annotated") for d, better in pairs]
    said = describe_user(liked, [""] * count, replies={d.id: d.response for d, _ in pairs})
    assert said.traits and [fact for fact in said.traits if not true_of(fact, user)] == []
    if name == "nurse":
        wanted = {"opens with “In short:”", "signs off “Take care, Ana”", "one sentence", "about medicine"}
        assert wanted <= {fact.key for fact in said.traits}
    assert not any("mostly *" in line for line in said.lines())


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    for rest in (["--user", "nobody"], ["--seed", -1], ["--capacity", 10**12], ["--length", 3], ["--steps", 0]):
        fails(capsys, "demo", "--out", tmp_path / "x", *rest)
        assert not (tmp_path / "x").exists()
