"Both papers' tables by one command: small runs that resume, and what each row depends on."

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.buffer.buffer import make_candidates
from personal_llm.buffer.policies import POLICIES, Policy
from personal_llm.extras import reproduce
from personal_llm.extras.commands import split_policies
from personal_llm.extras.reproduce import SDSSPlan, XPerTPlan, compare_policies, count_steps, describe_code, hold_out
from personal_llm.extras.reproduce import compare_selectors, reproduce_sdss, reproduce_xpert
from personal_llm.extras.space import WORDS_FILE
from personal_llm.selection.library import Library
from personal_llm.selection.ranking import Ranking
from personal_llm.selection.selection import select
from personal_llm.tuning.config import TuningConfig
from servers import pocket
from typed import fails, found, write

SMALL = SDSSPlan(capacity=4, looks=12, synthetic=0, epochs=1, tests=4, reply_tokens=4, seeds=2)


def talks(count: int) -> list:
    return [Dialogue(f"What is thing number {i}, of colour {i * 7}?", f"Thing {i} is a toy.") for i in range(count)]


class Shortest(Policy):
    def choose(self, view, candidate):
        return 0, "the first one leaves"


def test_a_run_goes_on_where_it_was_stopped_and_new_code_is_measured_anew(tmp_path, monkeypatch):
    taught = []
    monkeypatch.setattr(reproduce, "teach", lambda *given, **options: taught.append(given[2].steps) or stop(taught))

    def stop(done):
        if len(done) == 3:
            raise KeyboardInterrupt
        return SimpleNamespace(cost=reproduce.replace(pocket().cost)), []

    monkeypatch.setattr(reproduce, "test_replies", lambda model, adapter, tests, tokens: [0.5] * len(tests))
    config = TuningConfig(batch_size=4, max_length=64)
    given = (pocket(), dict(toys=talks(24)), tmp_path, SMALL, config, ("fifo", Shortest()))
    with pytest.raises(KeyboardInterrupt):
        reproduce_sdss(*given, progress=False)
    tables = reproduce_sdss(*given, progress=False)
    assert len(taught) == 1 + 2 * 2 * 2, "two seeds, looks and policies; one was stopped"
    assert set(taught) == {1}, "an epoch of four answers in steps of four, for every policy"
    assert (
        list(tables) == [12, "end"] and tables["end"].unit == "sets × seeds" and len(tables["end"].values["fifo"]) == 2
    )
    monkeypatch.setattr(Shortest, "choose", lambda self, view, candidate: (1, "the second one leaves"))
    monkeypatch.setattr(reproduce, "describe_code", lambda policy: f"new {policy.name}")
    reproduce_sdss(*given, progress=False)
    assert len(taught) == 9 + 8
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "table.json").is_file()


def test_the_code_of_a_policy_stands_in_its_rows():
    ours, own = describe_code(POLICIES["sdss"]()), describe_code(Shortest())
    assert ours.startswith("personal_llm 1.") and own.startswith("test_reproduce ") and ours != own
    changed = type("Shortest", (Shortest,), dict(capacity=3))
    assert describe_code(changed()) != own, "a class without a file, too"


STEEP = """
from helper import SHARE
from personal_llm.buffer.policies import Policy

class Steep(Policy):
    def __init__(self, k=1):
        self.k, self.draw = k, lambda: k

    def choose(self, view, candidate):
        return 0, f"{SHARE} of {self.k}"
"""


@pytest.mark.parametrize("is_package", [False, True])
def test_a_change_anywhere_in_the_file_or_package_of_a_policy_is_new_code(tmp_path, monkeypatch, is_package):
    name = f"steep_{is_package}"
    module = tmp_path / name / "__init__.py" if is_package else tmp_path / f"{name}.py"
    module.parent.mkdir(exist_ok=True)
    helper = module.parent / "helper.py"
    helper.write_text("SHARE = 1")
    module.write_text(STEEP.replace("from helper", f"from {name}.helper" if is_package else "from helper"))
    facts = tmp_path / f"{name}-2.5.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    (facts / "top_level.txt").write_text(name)
    monkeypatch.syspath_prepend(tmp_path)
    steep = importlib.import_module(name).Steep
    first = describe_code(steep())
    assert first.startswith(f"{name} 2.5 ") and describe_code(steep()) == first, "no address of a function"
    assert describe_code(steep(k=2)) != first, "an instance with other arguments"
    module.write_text(module.read_text() + "\nSIZE = 3\n")
    assert describe_code(steep()) != first, "a line outside the class"
    second = describe_code(steep())
    helper.write_text("SHARE = 2")
    assert (describe_code(steep()) != second) == is_package, "a module of its own package"
    sys.modules.pop("helper", None)


def test_conversations_are_held_out_whole():
    rows = [d.derive(labels=dict(group=f"talk {i // 3}")) for i, d in enumerate(talks(30))]
    stream, tests = hold_out(rows, 6, seed=0)
    assert len(tests) == 6 and len(stream) == 24
    assert not {d.labels["group"] for d in stream} & {d.labels["group"] for d in tests}
    assert [d.id for d in stream] == [d.id for d in rows if d in stream], "in the order of the file"
    assert hold_out(rows, 6, seed=1)[1] != tests


def mean_arrival(buffer, person):
    return buffer.view.arrival.mean()


class Counting(Shortest):
    turn = 0

    def choose(self, view, candidate):
        self.turn += 1
        return 0, f"turn {self.turn}"


def test_no_person_sees_what_a_policy_remembers_of_another():
    reasons = []
    measure = lambda buffer, person: len(reasons.append(buffer.log[-1].reason) or reasons)
    compare_policies([Counting()], dict(ana=make_candidates(12), bo=make_candidates(12)), measure, capacity=4)
    assert reasons == ["turn 8", "turn 8"]


@pytest.mark.parametrize(
    "policies, measure, problem",
    [
        ([], mean_arrival, "no method to compare"),
        ([Shortest(), Shortest], mean_arrival, "two methods are named Shortest"),
        (["fifo"], lambda buffer, person: np.nan, "what measure returns for fifo and ana is nan"),
        (["fifo"], lambda buffer, person: None, "what measure returns for fifo and ana is None"),
        (["fifo"], lambda buffer, person: buffer.loss, "measure raised AttributeError"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line(policies, measure, problem):
    with pytest.raises(InputError, match=problem):
        compare_policies(policies, dict(ana=make_candidates(12)), measure, capacity=4)


def test_selectors_are_compared_by_people():
    def first(request):
        return Ranking("plain", ("plain",), (0.0,))

    def careless(request):
        return "ward-round"

    people = {name: (talks(8), talks(10)[8:]) for name in ("ana", "bo")}
    table = compare_selectors(["loss", first], Library("pocket"), pocket(), people)
    assert [*table.values] == ["loss", "first"] and table.unit == "people"
    assert table.values["loss"][0] <= table.values["first"][0] and len(table.values["first"]) == 2
    with pytest.raises(InputError, match="selector careless returned no ranking"):
        compare_selectors([first, careless], Library("pocket"), pocket(), people)


def test_policies_are_compared_by_people():
    streams = {name: make_candidates(48)[place:] for place, name in enumerate(("ana", "bo", "cleo"))}
    table = compare_policies(["fifo", "reservoir", Shortest()], streams, mean_arrival, capacity=8)
    assert table.metric == "mean arrival"
    first, second, third = table.to_rows()
    assert first["mean"] == 42.5 and first["less"] == "" and second["low"] > 0 and third["policy"] == "Shortest"


@pytest.mark.parametrize(
    "names, expected",
    [
        ("sdss,random,fifo,k-center", ["sdss", "random", "fifo", "kcenter"]),
        ("sdss,mine:k=3,by=loss,fifo", ["sdss", "mine:k=3,by=loss", "fifo"]),
    ],
)
def test_policies_are_split_at_commas(names, expected):
    assert split_policies(names) == expected


@pytest.mark.parametrize(
    "words, line",
    [
        (("sdss", "--policies", "sdss,luck"), "unknown policy 'luck'"),
        (("sdss", "--capacity", 128), "few: 8 dialogues for 128 bins, 4 for a test; give more"),
        (("sdss", "--dtype", "int4"), "dtype is 'int4'"),
        (("xpert", "--tests", 8, "--library", "pocket"), "dialogues of few beside the test"),
    ],
)
def test_a_mistake_of_a_run_is_one_line(tmp_path, capsys, words, line):
    data = write(tmp_path / "few.jsonl", [json.dumps(d.to_dict()) for d in talks(12)])
    given = ("--data", data, "--out", tmp_path / "table", "--model", "pocket", "--quiet")
    assert line in fails(capsys, "reproduce", *words, *given, *(("--tests", 4) if words[0] == "sdss" else ()))


def test_the_gpu_of_a_run_is_the_models(tmp_path, capsys, monkeypatch):
    asked = {}

    def load(name, **options):
        asked.update(options)
        raise InputError("no GPU here", "pretended")

    monkeypatch.setattr("personal_llm.base.replies.load_model", load)
    data = write(tmp_path / "few.jsonl", [json.dumps(d.to_dict()) for d in talks(12)])
    given = ("--data", data, "--out", tmp_path / "table", *"--device cuda --dtype bfloat16 --batch-size 256".split())
    assert "no GPU here" in fails(capsys, "reproduce", "sdss", *given, "--quiet")
    assert asked == dict(device="cuda", dtype="bfloat16")


@pytest.mark.later
def test_sdss_by_the_command_line_to_the_end(tmp_path, capsys):
    data = write(tmp_path / "toys.jsonl", [json.dumps(d.to_dict()) for d in talks(24)])
    given = "--capacity 4 --looks 16 --tests 4 --synthetic 1 --epochs 1 --reply-tokens 4 --batch-size 8".split()
    given += ["--data", data, "--out", tmp_path / "t", "--model", "pocket", "--policies", "sdss,fifo"]
    result = found(capsys, "reproduce", "sdss", *given)
    assert [row["policy"] for row in result["tables"]["end"]] == ["sdss", "fifo"]
    adapters = sorted(place.name for place in (tmp_path / "t" / "adapters").iterdir())
    assert adapters == ["toys-0-fifo-16", "toys-0-fifo-20", "toys-0-sdss-16", "toys-0-sdss-20"], "one at every look"


def speak(monkeypatch):
    "Let a summariser of seven million parameters name styles, which it can't."
    rng = np.random.default_rng(0)
    monkeypatch.setattr(reproduce, "candidate_words", lambda summariser, states: [("terse", 0.3), ("warm", 0.2)])
    monkeypatch.setattr(
        reproduce, "word_vectors", lambda summariser, words, prompts: rng.normal(size=(len(words), summariser.width))
    )


@pytest.mark.later
def test_xpert_chooses_by_words_and_traces_each_start(tmp_path, monkeypatch):
    import shutil

    speak(monkeypatch)
    model = pocket()
    shutil.copytree(Library("pocket").path, tmp_path / "library")
    library = Library(tmp_path / "library")
    plan = XPerTPlan(prompts=3, words=2, word_prompts=2, tests=4, look_every=2, reply_tokens=4)
    config = TuningConfig(steps=4, batch_size=2, max_length=48)
    given = (model, model, library, dict(me=talks(16)), tmp_path / "run", plan, config)
    rows = reproduce_xpert(*given)
    assert [row["start"] for row in rows][:2] == ["scratch", "nearest"] and rows[0]["steps"] <= 4
    assert rows == reproduce_xpert(*given), "nothing is measured twice"
    stored = np.load(library.path / WORDS_FILE)
    assert stored["words"].tolist() == ["terse", "warm"] and stored["rows"].shape == (len(library), 2)
    assert rows[1]["pllm"] in library.names
    monkeypatch.setattr("personal_llm.extras.space.load_model", lambda name: model)
    ranking = select(library, method="xpert", model=model, dialogues=talks(12))
    assert ranking.best in library.names and len(ranking.names) == len(library)


def test_xpert_without_words_names_the_command():
    with pytest.raises(InputError, match="aren't explained in words; personal-llm reproduce xpert"):
        select(Library("pocket"), method="xpert", model=pocket(), dialogues=talks(8))


def test_steps_are_counted_between_two_looks():
    assert count_steps([4.0, 3.0, 2.0], 2.5, 6) == 9 and count_steps([4.0, 3.0], 3.5, 6) == 3
    assert count_steps([4.0, 3.0], 2.0, 6) is None and count_steps([4.0], 5.0, 6) == 0
