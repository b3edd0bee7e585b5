"The demo: its settings, its folder, its report, and its second half."

import json
from dataclasses import replace

import pytest

from personal_llm.app import commands, demo, personalize, report
from personal_llm.app.arguments import ModelOptions
from personal_llm.app.demo import DemoSettings, run_demo
from personal_llm.base.core import InputError
from personal_llm.base.decoding import TOY_REPETITION_PENALTY
from personal_llm.device import personalizer
from tiny import random_adapter, shared
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
    assert {p.name for p in folder.iterdir() if p.name[0] != "."} == {*demo.DEMO_FILES} - {"warm.png"}
    assert json.loads((folder / "demo.json").read_text())["policies"].keys() == {"active", "fifo"}
    assert result["settings"]["repetition_penalty"] == TOY_REPETITION_PENALTY
    page = " ".join((folder / "report.html").read_text().split())
    assert f"repetition penalty of {TOY_REPETITION_PENALTY}" in page and "<script" not in page
    assert "warm" not in result, "the shipped library is another model's"


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
    monkeypatch.setattr(commands, "format_demo_table", lambda result: "")
    options = "--model pocket --user pupil --length 100 --capacity 9 --steps 7 --seed 4 --synthetic 2 --quiet".split()
    assert found(capsys, "demo", "--out", tmp_path, *options)["ok"]
    numbers = dict(length=100, capacity=9, steps=7, synthetic=2, seed=4)
    out, load = seen.pop("given")
    assert (out, load()) == (str(tmp_path), "pocket") and seen == dict(user="pupil", progress=False) | numbers


@pytest.mark.parametrize("wrong", [dict(seed=-1), dict(seed="0"), dict(length=10**12), dict(tests=1), dict(user=3)])
def test_settings_that_cannot_work(wrong):
    with pytest.raises(InputError):
        DemoSettings(**wrong)


def test_both_curves_have_the_starts_rank(tmp_path):
    "A start of rank 2 beside a default of 8: both runs have 2, the same judges, and the same dialogues."
    from personal_llm.base.core import Dialogue

    model = shared("llama")
    start = random_adapter(model, tmp_path / "start", rank=2)
    rows = [Dialogue(f"What is thing {i}?", f"It is {i}.", time=float(i)) for i in range(24)]
    curves = demo.compare_starts(model, rows[:20], rows[20:], {"from start": start}, steps=1)
    assert [curve["rank"] for curve in curves.values()] == [2, 2]
    assert len({curve["judged_on"] for curve in curves.values()}) == 1 and curves["from scratch"]["judged_on"] >= 4
    assert curves["from scratch"]["test_before"] != curves["from start"]["test_before"]
    assert demo.compare_starts(model, rows[:20], rows[20:], {}, steps=1).keys() == {"from scratch"}


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
    bill = dict(forward=1, tokens=1, bytes_moved=0, seconds=1)
    curve = dict(judged_on=1, steps_to_goal=None, test_before=2, test_after=1, rank=4, cost=bill)
    rest = dict(library=8, weights={}, reason="", selection=bill, curves={"from scratch": curve})
    lines = report.format_warm_start(rest | dict(said=said.lines(), explanation=dict(said=said.to_dict()))).splitlines()
    assert [line.strip(" -") for line in lines[1 : 1 + len(said.traits)]] == [str(fact) for fact in said.traits]
    assert not any("mostly *" in line for line in lines)


def test_a_curve_says_what_it_was_judged_on():
    assert report.get_loss_name(dict(judged_on=5)) == "validation loss"
    assert report.get_loss_name(dict(judged_on=0)) == "training loss"


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    for rest in (["--user", "nobody"], ["--seed", -1], ["--capacity", 10**12], ["--length", 3], ["--steps", 0]):
        fails(capsys, "demo", "--out", tmp_path / "x", *rest)
        assert not (tmp_path / "x").exists()
