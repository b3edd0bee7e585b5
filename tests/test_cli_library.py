"The commands of the warm start, on a tiny model and a style space that counts two marks."

import json, shutil, socket
from pathlib import Path

import numpy as np
import pytest

from personal_llm.app import cli
from personal_llm.app import library_commands as cli_library
from personal_llm.xpert import explanation
from personal_llm.base import models
from personal_llm.xpert import style
from personal_llm.base.core import Dialogue
from personal_llm.xpert.space import StyleSpace
from personal_llm.start.library import Library
from personal_llm.xpert.style import FEATURES
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune
from tiny import shared, tiny

SAYS = dict(
    loud=lambda i: "Yes! Yes! Yes! Oh yes!" + "!" * (i % 3), listed=lambda i: f"one, two, three, {i}, and, so, on"
)


def chats(how, count=12, start=0):
    return [dict(prompt=f"What is thing number {i}?", response=SAYS[how](i)) for i in range(start, start + count)]


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def counting_space(model, marks=("exclamation marks", "commas")):
    "Coordinates are two counted marks; spread, noise and threshold are set by hand."
    blocks = (len(FEATURES), 64, 32)
    width = sum(blocks)
    matrix = np.zeros((width, 2), np.float32)
    for k, mark in enumerate(marks):
        matrix[FEATURES.index(mark), k] = 1
    return StyleSpace(
        model.base,
        ("loud", "listed"),
        np.eye(2, dtype=np.float32),
        np.ones(width, np.float32),
        np.zeros((2, width), np.float32),
        matrix,
        blocks,
        spread=np.ones(2, np.float32),
        noise=0.2,
        threshold=2.0,
    )


def invoke(capsys, *argv):
    capsys.readouterr()
    code = cli.main([str(a) for a in argv])
    got = capsys.readouterr()
    return code, got.out, got.err


def fails(capsys, *argv):
    "Exit code 2 and one line."
    code, out, err = invoke(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1), (code, out, err)
    return err


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True, scope="module")
def quick():
    "The model is a tiny one, answers are short, and pLLMs are measured on twenty-four texts."
    patch, model = pytest.MonkeyPatch(), shared("llama")
    patch.setattr(
        models, "load_model", lambda name="pocket", *rest, **named: tiny("llama", seed=1) if name == "other" else model
    )
    patch.setattr(explanation, "_encoder", lambda: None)
    patch.setattr(style, "REPLY", 12)
    patch.setattr(cli, "REPLY_TOKENS", 4)
    patch.setattr(
        cli_library,
        "known_texts",
        lambda: (
            [Dialogue(**r) for how in SAYS for r in chats(how, 12, 300)],
            [f"What is probe {i}?" for i in range(8)],
        ),
    )
    patch.setattr(
        style,
        "features",
        lambda model, encoder, rows: dict(
            stylometry=np.stack([style.stylometry(d.response) for d in rows]),
            encoder=np.zeros((len(rows), 64), np.float32),
            activations=np.stack([r.hidden.mean(0) for r in model.read(rows)]),
        ),
    )
    yield
    patch.undo()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Two adapters, the library that `library build` makes of them, and chats of both kinds."
    folder, model = tmp_path_factory.mktemp("world"), shared("llama")
    counting_space(model).save(folder / "space")
    for name in SAYS:
        rows = [Dialogue(**r) for r in chats(name, 24, 100)]
        finetune(
            model,
            rows,
            TuningConfig(rank=2, steps=20, batch_size=8, learning_rate=3e-2, max_length=64, checks=2),
            out=folder / "runs" / name,
            progress=False,
        )
        write(folder / f"{name}.jsonl", chats(name))
    code = cli.main(
        [
            str(a)
            for a in (
                "library",
                "build",
                "--out",
                folder / "lib",
                "--adapters",
                folder / "runs" / "loud",
                folder / "runs" / "listed",
                "--licence",
                "CC0-1.0",
                "--space",
                folder / "space",
                "--quiet",
            )
        ]
    )
    assert code == 0
    return folder


@pytest.fixture
def copy(world, tmp_path):
    return Path(shutil.copytree(world / "lib", tmp_path / "lib"))


# Library


def test_build_makes_what_python_makes(world):
    library = Library(world / "lib")
    assert library.names == ["loud", "listed"] and library.verify(shared("llama")) == []
    card = library["loud"].card
    assert (
        card["samples"] == 24
        and card["licence"] == "CC0-1.0"
        and (card["explanation"]["samples"], card["explanation"]["counterpart"]) == (24, "panels")
    )
    assert (library["loud"].adapter / "adapter_model.safetensors").read_bytes() == (
        world / "runs" / "loud" / "adapter_model.safetensors"
    ).read_bytes()
    assert card["explanation"]["words"][:1] == ["loud"] and library["listed"].card["explanation"]["words"][:1] == [
        "listed"
    ], "what each learned has become likelier"


def test_build_goes_on_where_it_stopped(world, copy, capsys):
    library = Library(copy)
    library.remove("loud")
    build = (
        "library",
        "build",
        "--out",
        copy,
        "--licence",
        "CC0-1.0",
        "--space",
        copy,
        "--quiet",
        "--json",
        "--adapters",
        world / "runs" / "loud",
        world / "runs" / "listed",
    )
    code, out, err = invoke(capsys, *build)
    assert (
        code == 0
        and err == ""
        and json.loads(out) == dict(library=str(copy), pllms=2, added=["loud"], there=["listed"], skipped={})
    )
    before = snapshot(copy)
    assert json.loads(invoke(capsys, *build)[1])["added"] == [] and snapshot(copy) == before
    assert np.array_equal(Library(copy).rows[[1, 0]], Library(world / "lib").rows), "the same answers, the same rows"


def test_build_takes_what_personalize_wrote(world, tmp_path, capsys):
    shutil.copytree(world / "runs" / "loud", tmp_path / "ana" / "adapter")
    code, out, err = invoke(
        capsys,
        "library",
        "build",
        "--out",
        tmp_path / "lib",
        "--licence",
        "mine",
        "--space",
        world / "lib",
        "--quiet",
        "--adapters",
        tmp_path / "ana",
    )
    assert (
        code == 0
        and out == f"{tmp_path / 'lib'}: 1 added, 0 were there, 0 skipped; 1 pLLMs now\n"
        and Library(tmp_path / "lib").names == ["ana"]
    )


def spoil(folder, how):
    if how == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    if how == "config":
        (folder / "adapter_config.json").write_text("{")
    if how == "dora":
        (folder / "adapter_config.json").write_text(
            json.dumps(json.loads((folder / "adapter_config.json").read_text()) | dict(use_dora=True))
        )
    if how == "base":
        (folder / "adapter.json").write_text('{"base": "0123456789abcdef"}')
    if how == "none":
        shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["weights", "config", "dora", "base", "none"])
def test_build_names_a_bad_adapter_and_skips_it_on_request(world, tmp_path, capsys, how):
    shutil.copytree(world / "runs", tmp_path / "runs")
    spoil(tmp_path / "runs" / "loud", how)
    build = (
        "library",
        "build",
        "--out",
        tmp_path / "lib",
        "--licence",
        "x",
        "--space",
        world / "lib",
        "--quiet",
        "--adapters",
        tmp_path / "runs" / "loud",
        tmp_path / "runs" / "listed",
    )
    assert "loud" in fails(capsys, *build) and not (tmp_path / "lib").exists()
    code, out, err = invoke(capsys, *build, "--skip-bad", "--json")
    result = json.loads(out)
    assert (
        code == 0
        and result["added"] == ["listed"]
        and list(result["skipped"]) == ["loud"]
        and err.startswith("personal-llm: loud skipped: ")
        and err.count("\n") == 1
    )
    assert Library(tmp_path / "lib").names == ["listed"]


def test_build_refuses(world, tmp_path, capsys):
    common = ("library", "build", "--out", tmp_path / "lib", "--licence", "x", "--quiet", "--adapters")
    shutil.copytree(world / "runs" / "loud", tmp_path / "deep" / "loud")
    assert "two adapters are called 'loud'" in fails(
        capsys, *common, world / "runs" / "loud", tmp_path / "deep" / "loud", "--space", world / "lib"
    )
    assert "the space is for base" in fails(
        capsys, *common, world / "runs" / "loud", "--space", world / "lib", "--model", "other"
    )
    assert "nothing was built" in invoke(capsys, *common, tmp_path / "no", "--space", world / "lib", "--skip-bad")[2]
    assert "space.json" in fails(capsys, *common, world / "runs" / "loud", "--space", tmp_path)
    (tmp_path / "a b").mkdir()
    shutil.copytree(world / "runs" / "loud", tmp_path / "a b", dirs_exist_ok=True)
    assert "is no name for a pLLM" in fails(capsys, *common, tmp_path / "a b", "--space", world / "lib")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    assert "is there already" in fails(
        capsys,
        *[str(a).replace("/lib", "/full") if a == tmp_path / "lib" else a for a in common],
        world / "runs" / "loud",
        "--space",
        world / "lib",
    )
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["thesis.tex"]


def test_list_and_show(world, capsys):
    code, out, err = invoke(capsys, "library", "list", world / "lib")
    assert code == 0 and out.count("\n") == 3 and "*loud*" in out.split("\n")[1] and "listed" in out.split("\n")[2]
    rows = json.loads(invoke(capsys, "library", "list", world / "lib", "--json")[1])["pllms"]
    assert [r["name"] for r in rows] == ["loud", "listed"] and rows[0]["samples"] == 24
    code, out, err = invoke(capsys, "library", "show", world / "lib", "loud")
    assert code == 0 and "mostly *loud*" in out and "####" in out and "CC0-1.0" in out and "None" not in out
    card = json.loads(invoke(capsys, "library", "show", world / "lib", "loud", "--json")[1])
    assert card["name"] == "loud" and card["explanation"]["words"][0] == "loud" and "row" not in card["explanation"]
    assert "no pLLM 'lud'" in fails(capsys, "library", "show", world / "lib", "lud")


def test_verify(world, copy, capsys):
    assert invoke(capsys, "library", "verify", world / "lib")[:2] == (0, "ok   2 pLLMs\n")
    assert json.loads(invoke(capsys, "library", "verify", world / "lib", "--model", "pocket", "--json")[1]) == dict(
        library=str(world / "lib"), pllms=2, ok=True, problems=[]
    )
    assert invoke(capsys, "library", "verify", world / "lib", "--model", "other")[0] == 1, "a library of another base"
    spoil(copy / "loud", "weights")
    code, out, err = invoke(capsys, "library", "verify", copy)
    assert code == 1 and out.count("\n") == 1 and out.startswith("FAIL loud: ") and err == ""
    assert [p["name"] for p in json.loads(invoke(capsys, "library", "verify", copy, "--json")[1])["problems"]] == [
        "loud"
    ]


@pytest.mark.parametrize(
    "argv, wanted",
    [
        (["library"], "COMMAND"),
        (["library", "fly"], "invalid choice"),
        (
            ["library", "list", "nowhere"],
            "nowhere: no library here (index.json is missing); give its folder, or make one with library build",
        ),
        (["library", "show"], "NAME"),
        (["library", "verify", "nowhere"], "no library here"),
        (["library", "build", "--out", "x", "--licence", "x"], "--adapters"),
        (["library", "build", "--out", "x", "--adapters", "y"], "--licence"),
        (["explain"], "--data FILE or --adapter DIR"),
        (["select"], "--data"),
        (["explain", "--data", "a", "--adapter", "b"], "either"),
        (["explain", "--data", "a", "--library", "nowhere"], "nowhere: no library here"),
        (["select", "--data", "a", "--library", "nowhere"], "no library here"),
    ],
)
def test_bad_commands(tmp_path, capsys, monkeypatch, argv, wanted):
    monkeypatch.chdir(tmp_path)
    assert wanted in fails(capsys, *argv) and list(tmp_path.iterdir()) == []


# Explain


def test_explain_says_how_the_chats_differ(world, tmp_path, capsys):
    for name in SAYS:
        code, out, err = invoke(capsys, "explain", "--data", world / f"{name}.jsonl", "--library", world / "lib")
        assert (
            code == 0
            and err == ""
            and out.startswith("12 dialogues against the model's own answers to the same prompts\nmostly *" + name)
            and ", can be told from plain text" in out
            and "cost: " in out
        )
    code, out, err = invoke(
        capsys,
        "explain",
        "--data",
        world / "loud.jsonl",
        "--library",
        world / "lib",
        "--plot",
        tmp_path / "style.png",
        "--json",
    )
    said = json.loads(out)
    assert (
        code == 0
        and said["words"][0] == "loud"
        and said["counterpart"] == "answers"
        and said["plain"] is False
        and said["data"] == dict(file="loud.jsonl", dialogues=12, used=12, skipped=0)
        and said["cost"]["forward"] > 0
    )
    assert said["sentence"].startswith("mostly *loud*") and "Yes!" not in out
    assert (tmp_path / "style.png").read_bytes()[:4] == b"\x89PNG"


def test_explain_text_without_prompts_names_the_counterpart(world, tmp_path, capsys):
    file = write(
        tmp_path / "notes.jsonl",
        [dict(text=f"Dear diary, today number {i} was fun! Yes! I went out! It was good! Oh!") for i in range(9)],
    )
    code, out, err = invoke(capsys, "explain", "--data", file, "--library", world / "lib")
    assert code == 0 and out.startswith(
        "9 texts against the model's own continuations of their first words\nmostly *loud*"
    )
    assert (
        json.loads(invoke(capsys, "explain", "--data", file, "--library", world / "lib", "--json")[1])["counterpart"]
        == "continuations"
    )


def test_explain_an_adapter_gives_the_cards_row(world, capsys):
    code, out, err = invoke(
        capsys, "explain", "--adapter", world / "runs" / "loud", "--library", world / "lib", "--json"
    )
    said, card = json.loads(out), Library(world / "lib")["loud"].card["explanation"]
    assert (
        code == 0
        and {k: said[k] for k in ("words", "coefficients", "strength")}
        == {k: card[k] for k in ("words", "coefficients", "strength")}
        and said["plain"] is None
        and said["counterpart"] == "panels"
    )
    assert invoke(capsys, "explain", "--adapter", world / "runs" / "loud", "--library", world / "lib")[1].startswith(
        "24 texts of known style, by how much likelier the adapter makes them\nmostly *loud*"
    )
    assert "no adapter here" in fails(capsys, "explain", "--adapter", world / "lib", "--library", world / "lib")


def test_plain_chats_are_called_plain(world, tmp_path, capsys, monkeypatch):
    "The model's own answers: nothing to tell them by."
    prompts = [r["prompt"] for r in chats("loud")]
    own = style.speak(shared("llama"), None, prompts, seed=0)
    file = write(tmp_path / "own.jsonl", [dict(prompt=d.prompt, response=d.response) for d in own])
    assert "cannot be told from plain text" in invoke(capsys, "explain", "--data", file, "--library", world / "lib")[1]
    code, out, err = invoke(capsys, "select", "--data", file, "--library", world / "lib")
    assert code == 0 and "match: nobody (nobody near is" in out and "abstained: begin from the bare model" in out
    assert (
        "start      the bare model (nobody near is"
        in invoke(
            capsys, "personalize", "--data", file, "--out", tmp_path / "x", *QUICK[:-1], "--start", world / "lib"
        )[1]
    )


def test_too_few_dialogues_say_how_many_more(world, tmp_path, capsys):
    file = write(tmp_path / "few.jsonl", chats("loud", 5))
    for command in ("explain", "select"):
        assert "give 3 more" in fails(capsys, command, "--data", file, "--library", world / "lib")


# Select


def test_the_latest_of_a_long_file_are_enough(world, tmp_path, capsys):
    "Thirty dialogues of the old style, then fifty of the new: the old ones do not speak."
    file = write(tmp_path / "long.jsonl", chats("listed", 30) + chats("loud", 50, 30))
    out = invoke(capsys, "select", "--data", file, "--library", world / "lib", "--json")[1]
    result = json.loads(out)
    assert (
        result["data"] == dict(file="long.jsonl", dialogues=80, used=48, skipped=0)
        and result["best"] == "loud"
        and 3 * 24 + 4 <= result["cost"]["forward"] <= 4 * 24
        and result["cost"]["backward"] == 24
    )
    assert invoke(capsys, "explain", "--data", file, "--library", world / "lib")[1].startswith("48 dialogues against")


def test_select_ranks(world, capsys):
    for name in SAYS:
        code, out, err = invoke(capsys, "select", "--data", world / f"{name}.jsonl", "--library", world / "lib")
        assert (
            code == 0
            and err == ""
            and f"match: {name} (lowest loss" in out
            and "mixture: " in out
            and out.count("cost: ") == 2
            and "(base)" in out
            and "mostly *" in out
        )
    result = json.loads(
        invoke(capsys, "select", "--data", world / "loud.jsonl", "--library", world / "lib", "--json")[1]
    )
    assert (
        result["best"] == "loud"
        and {"loud", "(base)"} <= set(result["losses"]) <= {"loud", "listed", "(base)"}
        and result["explanation"]["words"][0] == "loud"
        and result["cost"]["forward"] >= 28
        and result["method"] == "match"
        and result["abstained"] is False
    )
    assert json.loads(
        invoke(
            capsys, "select", "--data", world / "loud.jsonl", "--library", world / "lib", "--json", "--shortlist", 1
        )[1]
    )["losses"].keys() == {result["names"][0], "(base)"}


@pytest.mark.parametrize("method", ["l1", "cosine", "style", "random", "exhaustive"])
def test_other_methods(world, capsys, method):
    code, out, err = invoke(
        capsys, "select", "--data", world / "loud.jsonl", "--library", world / "lib", "--method", method, "--json"
    )
    result = json.loads(out)
    assert (
        code == 0
        and result["method"] == method
        and (result["explanation"] is None) == (method in ("random", "exhaustive"))
        and result["best"] in ("loud", "listed")
    )
    if method in ("exhaustive", "style", "cosine"):
        assert result["best"] == "loud"


def test_a_space_that_needs_a_summariser_is_named(world, capsys, monkeypatch):
    monkeypatch.setattr(StyleSpace, "kind", "xpert")
    for command in ("explain", "select"):
        assert "of kind xpert" in fails(capsys, command, "--data", world / "loud.jsonl", "--library", world / "lib")


def test_select_refuses(world, copy, capsys):
    data = ("select", "--data", world / "loud.jsonl")
    assert "unknown method 'best'" in fails(capsys, *data, "--library", world / "lib", "--method", "best")
    assert "made for base" in fails(capsys, *data, "--library", world / "lib", "--model", "other")
    library = Library(copy)
    library.remove("loud")
    library.remove("listed")
    assert "the library is empty" in fails(capsys, *data, "--library", copy)
    assert "the library is empty" in fails(
        capsys, "personalize", "--data", world / "loud.jsonl", "--out", copy.parent / "x", "--start", copy
    )
    assert invoke(capsys, "library", "list", copy)[:2] == (0, "the library is empty\n")
    (copy / "index.npy").write_bytes(b"no matrix")
    assert "index.npy" in fails(capsys, *data, "--library", copy)


@pytest.mark.parametrize("how", ["weights", "card"])
def test_a_damaged_pllm_is_named_and_skipped_on_request(world, copy, capsys, how):
    if how == "card":
        (copy / "loud" / "card.json").write_text("{")
    else:
        spoil(copy / "loud", how)
    commands = [("select", "--data", world / "loud.jsonl", "--library", copy), ("library", "show", copy, "loud")]
    commands += (
        [("library", "list", copy)]
        if how == "card"
        else [("personalize", "--data", world / "loud.jsonl", "--out", copy.parent / "x", *QUICK[:-1], "--start", copy)]
    )
    for command in commands:
        assert "loud" in fails(capsys, *command)
        code, out, err = invoke(capsys, *command, "--skip-bad", "--json")
        if "show" in command:
            assert code == 2 and "loud" in err
            continue
        assert (
            code == 0 and err.startswith("personal-llm: loud skipped: ") and "skip_bad" not in err and json.loads(out)
        )


# Personalize

QUICK = ("--steps", 2, "--synthetic", 0, "--capacity", 8, "--quiet", "--json")


def test_personalize_from_a_library(world, tmp_path, capsys):
    code, out, err = invoke(
        capsys,
        "personalize",
        "--data",
        world / "loud.jsonl",
        "--out",
        tmp_path / "warm",
        *QUICK,
        "--start",
        world / "lib",
    )
    warm = json.loads(out)
    assert (
        code == 0
        and warm["warm"]["weights"].keys() >= {"loud"}
        and warm["warm"]["style"].startswith("mostly *loud*")
        and warm["settings"]["start"] == str(world / "lib")
    )
    cold = json.loads(
        invoke(capsys, "personalize", "--data", world / "loud.jsonl", "--out", tmp_path / "cold", *QUICK)[1]
    )
    assert (
        cold["warm"] is None
        and warm["finetunes"][0]["start_loss"] < cold["finetunes"][0]["start_loss"]
        and warm["cost"]["forward"] > cold["cost"]["forward"]
    )
    from personal_llm.device.personalizer import load_personalizer

    assert load_personalizer(warm["state"], shared("llama")).status()["warm"] == warm["warm"]
    assert (
        cli._start_rows("x", warm["warm"] | dict(weights=dict(a=0.5, b=0.25), reason="why"))
        == [f"style      {warm['warm']['style']}", "start      0.50 a, 0.25 b (why)"]
        and cli._start_rows("none", None) == []
    )
    code, out, err = invoke(
        capsys,
        "personalize",
        "--data",
        world / "loud.jsonl",
        "--out",
        tmp_path / "one",
        *QUICK[:-1],
        "--start",
        world / "runs" / "loud",
    )
    one = json.loads((tmp_path / "one" / "personalize.json").read_text())
    assert code == 0 and f"start      {world / 'runs' / 'loud'}\n" in out and one["warm"] is None
    if warm["warm"]["weights"] == dict(loud=1.0):
        assert one["finetunes"][0]["start_loss"] == pytest.approx(warm["finetunes"][0]["start_loss"], abs=1e-4)
    assert one["finetunes"][0]["start_loss"] < cold["finetunes"][0]["start_loss"]


def test_personalize_refuses_a_start(world, tmp_path, capsys):
    command = ("personalize", "--data", world / "loud.jsonl", "--out", tmp_path / "x", *QUICK)
    assert "neither a library nor an adapter" in fails(capsys, *command, "--start", tmp_path / "nowhere")
    assert "the library is for base" in fails(capsys, *command, "--start", world / "lib", "--model", "other")
    assert "made for base" in fails(capsys, *command, "--start", world / "runs" / "loud", "--model", "other")
    for few in (["--capacity", 4], ["--every", 4]):
        assert "needs 8 kept dialogues, the first fine-tune would have 4" in fails(
            capsys, *command, "--start", world / "lib", *few
        )
    damaged = Path(shutil.copytree(world / "runs" / "loud", tmp_path / "damaged"))
    spoil(damaged, "weights")
    assert "damaged: the adapter does not fit this model or is damaged" in fails(capsys, *command, "--start", damaged)
    assert not list((tmp_path / "x").glob("*.json")) if (tmp_path / "x").exists() else True


def test_an_interrupted_warm_start_goes_on(world, tmp_path, capsys, monkeypatch):
    "Explained and selected again, the same start: the fine-tune goes on from its checkpoint, to the same bits."
    from transformers import TrainerCallback
    from personal_llm.tuning import finetune as tuning

    steps = []

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            if state.global_step == 4:
                raise KeyboardInterrupt

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            steps.append(state.global_step)

    command = lambda out: [
        a
        for a in (
            "personalize",
            "--data",
            world / "loud.jsonl",
            "--out",
            tmp_path / out,
            *QUICK[2:],
            "--steps",
            6,
            "--start",
            world / "lib",
        )
        if a != "--quiet"
    ]
    for bar, code in ((Interrupt, 130), (Count, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "_bar", lambda steps: bar())
            assert invoke(capsys, *command("mine"))[0] == code
    assert steps == [5, 6] or steps == [4, 5, 6]
    assert invoke(capsys, *command("straight"))[0] == 0
    assert (tmp_path / "mine/adapter/adapter_model.safetensors").read_bytes() == (
        tmp_path / "straight/adapter/adapter_model.safetensors"
    ).read_bytes()


def test_no_network(world, capsys, monkeypatch):
    def refuse(*given):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert invoke(capsys, "select", "--data", world / "loud.jsonl", "--library", world / "lib")[0] == 0


@pytest.mark.skipif(
    not (cli_library.library_folder("pocket") / "index.json").is_file(), reason="no library in the package yet"
)
def test_the_library_in_the_package(capsys):
    assert invoke(capsys, "library", "verify")[0] == 0
    rows = json.loads(invoke(capsys, "library", "list", "--json")[1])["pllms"]
    assert rows and all(r["licence"] for r in rows)
    assert invoke(capsys, "library", "show", rows[0]["name"])[0] == 0
