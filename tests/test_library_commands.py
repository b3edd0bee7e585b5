"Explain, select and library on the command line, with a tiny model and pLLMs of two planted ways of writing."

import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from personal_llm import personalize
from personal_llm.app import commands, library_commands
from personal_llm.app import personalize as module
from personal_llm.selection import library as library_module
from personal_llm.selection import warm_start
from personal_llm.base import models
from personal_llm.base.files import read_sealed
from personal_llm.selection.remote_library import publish_library
from personal_llm.selection.library import Library
from personal_llm.explanation import explanation
from servers import Static, serving
from tiny import shared, tiny
from typed import QUICK, fails, found, invoke, write
from ways import BRIEF, LOUD, Letters, space_of, spoken, tuned

WAYS = dict(loud=LOUD, brief=BRIEF)


def chats(name, count=12, first=200):
    return [dict(prompt=d.prompt, response=d.response) for d in spoken(WAYS[name], count, first=first)]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True, scope="module")
def quick():
    "The model is a tiny one, answers are short, and pLLMs are measured on few texts."
    patch, other = pytest.MonkeyPatch(), tiny("llama", seed=1)
    known = [*spoken(LOUD, 12), *spoken(BRIEF, 12), *spoken(str, 12)], ["Why?", "What is a pot?"]
    Letters.instead_of_the_encoder(patch)
    patch.setattr(models, "load_model", lambda name="pocket", **named: other if name == "other" else shared("llama"))
    patch.setattr(library_commands, "load_probe_texts", lambda: known)
    patch.setattr(warm_start, "load_probe_texts", lambda: known)
    patch.setattr(module, "MAX_MEASURED_REPLY_TOKENS", 4)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def world(tmp_path_factory, quick):
    "Two adapters, the library that `library build` makes of them, and chats of both ways."
    folder = tmp_path_factory.mktemp("world")
    space_of(shared("llama")).save(folder / "space")
    for name in WAYS:
        shutil.copytree(tuned(name).path, folder / "runs" / name)
        write(folder / f"{name}.jsonl", chats(name))
    code = commands_main("library", "build", "--out", folder / "lib", *building(folder))
    assert code == 0
    return folder


def commands_main(*argv):
    from personal_llm.app import cli

    return cli.main([str(a) for a in argv])


def building(folder, *names):
    adapters = [folder / "runs" / name for name in names or WAYS]
    return ["--licence", "CC0-1.0", "--space", folder / "space", "--quiet", "--no-baseline", "--adapter", *adapters]


@pytest.fixture
def copy(world, tmp_path):
    return Path(shutil.copytree(world / "lib", tmp_path / "lib"))


def spoil(folder, how):
    config = folder / "adapter_config.json"
    if how == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    if how == "config":
        config.write_text("{")
    if how == "dora":
        config.write_text(json.dumps(json.loads(config.read_text()) | dict(use_dora=True)))
    if how == "base":
        (folder / "adapter.json").write_text('{"base": "0123456789abcdef"}')
    if how == "none":
        shutil.rmtree(folder)
    if how == "card":
        (folder / "card.json").write_text("{")


# Build, list, show, verify


def test_build_makes_what_python_makes(world):
    library = Library(world / "lib")
    assert library.names == ["loud", "brief"] and library.verify() == []
    card = library["loud"].card
    assert card["samples"] == 48 and card["licence"] == "CC0-1.0"
    assert (card["explanation"]["samples"], card["explanation"]["counterpart"]) == (36, "panels")
    weights = "adapter_model.safetensors"
    assert (library["loud"].adapter / weights).read_bytes() == (world / "runs" / "loud" / weights).read_bytes()


def test_build_goes_on_where_it_stopped(world, copy, capsys):
    Library(copy).remove("loud")
    build = ("library", "build", "--out", copy, *building(world))
    assert found(capsys, *build) == dict(library=str(copy), pllms=2, added=["loud"], there=["brief"], skipped={})
    before = files(copy)
    assert found(capsys, *build)["added"] == [] and files(copy) == before
    assert np.allclose(Library(copy).rows[[1, 0]], Library(world / "lib").rows), "the same answers, the same rows"


def test_build_takes_what_personalize_wrote(world, tmp_path, capsys):
    shutil.copytree(world / "runs" / "loud", tmp_path / "runs" / "ana" / "adapter")
    shutil.copytree(world / "space", tmp_path / "space")
    code, out, err = invoke(capsys, "library", "build", "--out", tmp_path / "lib", *building(tmp_path, "ana"))
    first, missing, remedy = out.splitlines()
    assert (code, first) == (0, f"{tmp_path / 'lib'}: 1 added, 0 there before, 0 skipped; now 1 pLLM")
    assert missing.startswith("no pLLM is called plain") and "without --no-baseline" in remedy
    assert Library(tmp_path / "lib").names == ["ana"]


def test_build_makes_the_plain_pllm_unless_told_not_to(world, tmp_path, capsys, monkeypatch):
    "In the shape of the first, once, with its own licence; it answers prompts as others do, and a fit has its null."
    from personal_llm.selection import warm_start

    monkeypatch.setattr(warm_start, "load_plain_dialogues", lambda: spoken(str, 12))
    monkeypatch.setattr(explanation, "MAX_TOPIC_TOKENS", 4)
    build = ["library", "build", "--out", tmp_path / "lib", *building(world), "--prompts", world / "loud.jsonl"]
    build.remove("--no-baseline")
    code, out, err = invoke(capsys, *build)
    assert code == 0 and out.splitlines() == [f"{tmp_path / 'lib'}: 3 added, 0 there before, 0 skipped; now 3 pLLMs"]
    assert "no --plain FILE" in err and "refusals are weaker" in err
    library = Library(tmp_path / "lib")
    cards = {name: library[name].card for name in library.names}
    assert library.names == ["plain", "loud", "brief"] and library.verify() == []
    assert cards["plain"]["rank"] == cards["loud"]["rank"] and cards["plain"]["samples"] == 12
    assert cards["plain"]["licence"] == warm_start.PLAIN_LICENCE != cards["loud"]["licence"]
    before = files(tmp_path / "lib")
    assert found(capsys, *build)["added"] == [] and files(tmp_path / "lib") == before, "not a second time"
    result = found(capsys, "select", "--data", world / "loud.jsonl", "--library", tmp_path / "lib")
    assert result["method"] == "fit" and {"plain", "(base)"} == set(result["losses"])


@pytest.mark.later
def test_build_tunes_the_plain_pllm_on_the_builders_texts(world, tmp_path, capsys, monkeypatch):
    "With the budget and the shape of the first adapter, and under the builder's licence."
    from personal_llm.selection import warm_start

    monkeypatch.setattr(explanation, "MAX_TOPIC_TOKENS", 4)
    tuned_on = []
    finetune = warm_start.finetune
    monkeypatch.setattr(warm_start, "finetune", lambda *a, **k: tuned_on.append(a[1:3]) or finetune(*a, **k))
    plain = spoken(str, 10, first=300)
    write(tmp_path / "plain.jsonl", [dict(prompt=d.prompt, response=d.response) for d in plain])
    build = ["library", "build", "--out", tmp_path / "lib", *building(world), "--plain", tmp_path / "plain.jsonl"]
    assert "leave one of the two out" in fails(capsys, *build)
    build.remove("--no-baseline")
    code, out, err = invoke(capsys, *build)
    assert code == 0 and "no --plain FILE" not in err
    card, (dialogues, config) = Library(tmp_path / "lib")["plain"].card, tuned_on[0]
    assert [d.response for d in dialogues] == [d.response for d in plain]
    assert (card["samples"], card["licence"]) == (10, "CC0-1.0")
    like = json.loads((world / "runs" / "loud" / "adapter.json").read_text())["config"]
    assert {name: like[name] for name in warm_start.BUDGET_FIELDS} == {
        name: getattr(config, name) for name in warm_start.BUDGET_FIELDS
    }
    assert config.validation == 0, "no plain text is held back"


def test_build_refuses_too_few_plain_texts_and_writes_nothing(world, tmp_path, capsys):
    write(tmp_path / "few.jsonl", [dict(prompt=d.prompt, response=d.response) for d in spoken(str, 7)])
    build = ["library", "build", "--out", tmp_path / "lib", *building(world), "--plain", tmp_path / "few.jsonl"]
    build.remove("--no-baseline")
    assert "plain dialogues in few.jsonl: 7, at least 8 are needed" in fails(capsys, *build)
    assert not (tmp_path / "lib").exists()


@pytest.mark.parametrize(
    "how", ["weights", "none", *(pytest.param(how, marks=pytest.mark.later) for how in ("config", "dora", "base"))]
)
def test_build_names_a_bad_adapter_and_skips_it_on_request(world, tmp_path, capsys, how):
    shutil.copytree(world / "runs", tmp_path / "runs")
    shutil.copytree(world / "space", tmp_path / "space")
    spoil(tmp_path / "runs" / "loud", how)
    build = ("library", "build", "--out", tmp_path / "lib", *building(tmp_path))
    assert "loud" in fails(capsys, *build) and not (tmp_path / "lib").exists()
    code, out, err = invoke(capsys, *build, "--skip-invalid", "--json")
    result = json.loads(out)
    assert code == 0 and result["added"] == ["brief"] and list(result["skipped"]) == ["loud"]
    assert err.startswith("personal-llm: loud skipped: ") and err.count("\n") == 1


def test_build_refuses(world, tmp_path, capsys):
    build = ("library", "build", "--out", tmp_path / "lib")
    shutil.copytree(world / "runs" / "loud", tmp_path / "deep" / "loud")
    assert "two adapters are called 'loud'" in fails(capsys, *build, *building(world), tmp_path / "deep" / "loud")
    assert "made for base" in fails(capsys, *build, *building(world), "--model", "other")
    nothing = ["--licence", "x", "--space", world / "space", "--adapter", tmp_path / "no", "--skip-invalid"]
    assert "nothing was built" in invoke(capsys, *build, *nothing)[2]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    assert "exists already" in fails(capsys, *build[:2], "--out", tmp_path / "full", *building(world))
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_list_and_show(world, capsys):
    code, out, err = invoke(capsys, "library", "list", world / "lib")
    assert code == 0 and out.count("\n") == 3 and "brief" in out.split("\n")[2]
    listed = found(capsys, "library", "list", world / "lib")["pllms"]
    assert [row["name"] for row in listed] == ["loud", "brief"] and listed[0]["samples"] == 48
    code, out, err = invoke(capsys, "library", "show", world / "lib", "loud")
    assert (
        code == 0
        and out.startswith("no description: 2 own answers, 8 are needed")
        and "CC0-1.0" in out
        and "None" not in out
    )
    card = found(capsys, "library", "show", world / "lib", "loud")
    assert card["name"] == "loud" and "row" not in card["explanation"]
    assert "no pLLM 'lud'" in fails(capsys, "library", "show", world / "lib", "lud")


def test_verify(world, copy, capsys):
    assert invoke(capsys, "library", "verify", world / "lib")[:2] == (0, "ok   2 pLLMs\n")
    spoil(copy / "loud", "weights")
    code, out, err = invoke(capsys, "library", "verify", copy)
    assert code == 1 and "FAIL loud: " in out and err == ""
    code, out, err = invoke(capsys, "library", "verify", copy, "--json")
    assert code == 1 and "loud" in [problem["name"] for problem in json.loads(out)["problems"]]


def test_the_library_in_the_package(capsys):
    listed = found(capsys, "library", "list")["pllms"]
    assert listed and all(row["licence"] for row in listed)
    assert invoke(capsys, "library", "show", listed[0]["name"])[0] == 0


# Explain


def test_explain_says_how_the_chats_differ(world, capsys):
    space = ("--library", world / "lib")
    for name in WAYS:
        code, out, err = invoke(capsys, "explain", "--data", world / f"{name}.jsonl", *space)
        assert code == 0 and err == "" and "cost: " in out and "be told from plain text" in out
        assert out.startswith("12 dialogues, compared with the model's own answers to the same prompts\n")
        assert "mostly *" not in out
    said = found(capsys, "explain", "--data", world / "loud.jsonl", *space)
    assert said["assembled"][0] == "loud" and said["words"] == [] and said["scores"] is None
    assert said["counterpart"] == "answers" and said["cost"]["forward"] > 0
    assert said["data"] == dict(file="loud.jsonl", dialogues=12, used=12, skipped=0)
    assert chats("loud")[0]["response"] not in json.dumps(said)


def test_explain_an_adapter_gives_the_cards_row(world, capsys):
    command = ("explain", "--adapter", world / "runs" / "loud", "--library", world / "lib")
    said, card = found(capsys, *command), Library(world / "lib")["loud"].card["explanation"]
    same = ("assembled", "coefficients", "strength", "counterpart")
    assert {k: said[k] for k in same} == {k: card[k] for k in same} and said["plain"] is None
    assert invoke(capsys, *command)[1].startswith("36 texts of known style, by how much likelier the adapter makes")
    assert "no adapter here" in fails(capsys, "explain", "--adapter", world, "--library", world / "lib")


def test_explain_needs_no_library(world, capsys, tmp_path):
    "Of a base that no library and no space is made for: the same habits, and one line on how to make a space."
    data = ("explain", "--data", world / "loud.jsonl")
    code, out, err = invoke(capsys, *data)
    assert code == 0 and err == "" and "strength: no style space of this base model is at hand" in out
    assert "personal-llm library space --out DIR" in out
    bare, with_space = found(capsys, *data), found(capsys, *data, "--library", world / "lib")
    assert bare["habits"] == with_space["habits"] and bare["topics"] == with_space["topics"]
    assert bare["strength"] is bare["plain"] is bare["space"] is None and with_space["plain"] is not None
    assert 0 < bare["cost"]["forward"] < with_space["cost"]["forward"], "we read no features of style"
    adapter = found(capsys, "explain", "--adapter", world / "runs" / "loud", "--data", world / "loud.jsonl")
    assert adapter["counterpart"] == "prompts" and adapter["space"] is None and adapter["samples"] == 12


def test_explain_takes_the_folder_of_a_space(world, capsys):
    data = ("explain", "--data", world / "loud.jsonl")
    by_folder, by_library = (found(capsys, *data, "--library", world / name) for name in ("space", "lib"))
    assert by_folder["strength"] == by_library["strength"] and by_folder["assembled"] == by_library["assembled"]
    adapter = ("explain", "--adapter", world / "runs" / "loud", "--library", world / "space")
    assert found(capsys, *adapter)["counterpart"] == "panels"
    line = fails(capsys, *data, "--library", world / "space", "--model", "other")
    assert "the style space was made for base" in line and "library space" in line


def test_select_names_the_way_to_a_library(world, capsys):
    line = fails(capsys, "select", "--data", world / "loud.jsonl")
    assert "the package has no library for" in line and "library build" in line


@pytest.mark.later
def test_the_recipe_of_a_library_goes_on_where_it_stopped(world, tmp_path, monkeypatch):
    from personal_llm.recipes import shipped_library

    adapters = dict(loud=tuned("loud").path, plain=tuned("brief").path)
    space, explain_one = library_module.load_space(world / "space"), shipped_library.explain_pllm
    monkeypatch.setattr(shipped_library, "load_probe_texts", library_commands.load_probe_texts)  # few, as above
    explained = []

    def stop_at_the_second(model, adapter, *inputs):
        explained.append(adapter)
        if len(explained) == 2:
            raise KeyboardInterrupt
        return explain_one(model, adapter, *inputs)

    monkeypatch.setattr(shipped_library, "explain_pllm", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        shipped_library.make_library(shared("llama"), adapters, tmp_path / "lib", space)
    assert Library(tmp_path / "lib").names == ["loud"]
    library = shipped_library.make_library(shared("llama"), adapters, tmp_path / "lib", space)
    assert library.names == ["loud", "plain"] and explained[2:] == [adapters["plain"]], (
        "the first is not explained twice"
    )
    assert library.verify() == []


# The space of a model


@pytest.fixture
def few_texts(monkeypatch):
    "Two panels instead of twenty-seven."
    from personal_llm.app import library_commands
    from personal_llm.explanation import space_fitting

    panels = dict(loud=(spoken(LOUD, 12), None), brief=(spoken(BRIEF, 12), None))
    rows = spoken(str, 24)
    texts = space_fitting.SpaceTexts(panels, {}, rows[:12], [rows[:12], rows[12:]], spoken(LOUD, 24, first=300))
    for room in (library_commands, space_fitting):
        monkeypatch.setattr(room, "load_space_texts", lambda: texts)
    return texts


def test_library_space_makes_the_space_of_the_model(world, few_texts, tmp_path, capsys):
    command = ("library", "space", "--out", tmp_path / "space", "--quiet")
    code, out, err = invoke(capsys, *command)
    assert code == 0 and "2 words in" in out and "making the style space" in err, "the cost, before and after"
    assert "minutes of processor time" in err and " s of processor time" in err
    space = library_module.load_space(tmp_path / "space")
    assert space.base == shared("llama").base and space.words == ("loud", "brief") and space.nats_per_unit != 1
    explained = found(capsys, "explain", "--data", world / "loud.jsonl", "--library", tmp_path / "space")
    assert explained["assembled"][0] == "loud"
    assert "has a space already" in fails(capsys, *command)


@pytest.mark.later
def test_library_build_makes_a_missing_space(world, few_texts, tmp_path, capsys):
    "Once; the second build takes it from the library, and a build that is refused makes none."
    build = ["library", "build", "--out", tmp_path / "lib", *building(world, "loud")]
    place = build.index("--space")
    del build[place : place + 2]
    broken = [*build[:-1], tmp_path / "nothing"]
    assert "no adapter here" in fails(capsys, *broken) and not (tmp_path / "lib").exists()
    code, out, err = invoke(capsys, *build)
    assert code == 0 and err.count("making the style space") == 1 and "1 added" in out
    space = Library(tmp_path / "lib").space.id
    code, out, err = invoke(capsys, *build, world / "runs" / "brief")
    assert code == 0 and "making" not in err and Library(tmp_path / "lib").space.id == space
    assert Library(tmp_path / "lib").names == ["loud", "brief"]


def test_an_adapter_is_asked_what_the_chats_asked(world, capsys, monkeypatch):
    "By `explain` and by `library build`; nothing of the chats ends in what is said."
    heard, whole = [], explanation.sample_topic_prompts
    monkeypatch.setattr(explanation, "sample_topic_prompts", lambda *given: heard.append(whole(*given)) or heard[-1])
    monkeypatch.setattr(explanation, "MAX_TOPIC_TOKENS", 4)
    both = ("--adapter", world / "runs" / "loud", "--data", world / "loud.jsonl")
    said = found(capsys, "explain", *both, "--library", world / "lib")
    assert {d.prompt for d in heard.pop()} == {row["prompt"] for row in chats("loud")}
    assert said["counterpart"] == "panels"
    assert not any(row["prompt"] in json.dumps(said) for row in chats("loud"))


def test_chats_belong_to_an_adapter_of_their_name(world, tmp_path, capsys, monkeypatch):
    given, made = {}, Library(world / "lib")["loud"].explanation
    known = lambda *all: given.update({Path(all[1]).name: all[-1]}) or made
    monkeypatch.setattr(library_commands, "explain_pllm", known)
    build = ("library", "build", "--out", tmp_path / "lib", *building(world))
    few = write(tmp_path / "few.jsonl", chats("loud"))
    assert "no adapter is called 'few'" in fails(capsys, *build, "--prompts", few)
    assert not (tmp_path / "lib").exists()
    assert found(capsys, *build, "--prompts", world / "brief.jsonl")["added"] == ["loud", "brief"]
    assert given["loud"] is None and [d.prompt for d in given["brief"]] == [row["prompt"] for row in chats("brief")]


def test_too_few_dialogues_say_how_many_more(world, tmp_path, capsys):
    file = write(tmp_path / "few.jsonl", chats("loud", 5))
    for command in ("explain", "select"):
        assert "give 3 more" in fails(capsys, command, "--data", file, "--library", world / "lib")


def test_a_space_that_needs_a_summariser_is_named(world, capsys, monkeypatch):
    load = library_module.load_space

    def load_other_kind(folder):
        space = load(folder)
        object.__setattr__(space, "kind", "xpert")
        return space

    monkeypatch.setattr(library_module, "load_space", load_other_kind)
    for command in ("explain", "select"):
        line = fails(capsys, command, "--data", world / "loud.jsonl", "--library", world / "lib")
        assert "of kind xpert" in line


# Select


def test_select_ranks(world, capsys):
    for name in WAYS:
        data = ("select", "--data", world / f"{name}.jsonl", "--library", world / "lib")
        code, out, err = invoke(capsys, *data)
        assert code == 0 and err == "" and "fit: " in out and "(base)" in out
        result = found(capsys, *data)
        assert result["names"][0] == name == max(result["weights"], key=result["weights"].get)
        assert result["method"] == "fit" and result["abstained"] is False and result["explanation"]["assembled"]
        code, out, err = invoke(capsys, *data, "--method", "match")
        assert code == 0 and err == "" and f"match: {name} (lowest loss" in out


def test_the_latest_of_a_long_file_are_enough(world, tmp_path, capsys):
    "Thirty dialogues of the old style, then fifty of the new: the old ones do not speak."
    file = write(tmp_path / "long.jsonl", chats("brief", 30) + chats("loud", 50, 300))
    result = found(capsys, "select", "--data", file, "--library", world / "lib", "--method", "style")
    assert result["data"] == dict(file="long.jsonl", dialogues=80, used=48, skipped=0) and result["best"] == "loud"


@pytest.mark.parametrize("method", ["l1", "explained"])
def test_other_methods(world, capsys, method):
    command = ("select", "--data", world / "loud.jsonl", "--library", world / "lib", "--method", method)
    result = found(capsys, *command)
    assert result["method"] == method and result["explanation"]


def test_select_refuses(world, copy, capsys):
    data = ("select", "--data", world / "loud.jsonl")
    assert "'--method': 'best' is not one of" in fails(capsys, *data, "--library", world / "lib", "--method", "best")
    assert "library is for base" in fails(capsys, *data, "--library", world / "lib", "--model", "other")
    for name in WAYS:
        Library(copy).remove(name)
    assert "the library is empty" in fails(capsys, *data, "--library", copy)
    start = ("personalize", "--data", world / "loud.jsonl", "--out", copy.parent / "x", "--start-from", copy)
    assert "the library is empty" in fails(capsys, *start)
    assert invoke(capsys, "library", "list", copy)[:2] == (0, "the library is empty\n")


@pytest.mark.parametrize("how", ["weights", "card"])
def test_a_damaged_pllm_is_named(world, copy, capsys, how):
    spoil(copy / "loud", how)
    for command in (("select", "--data", world / "brief.jsonl", "--library", copy), ("library", "show", copy, "loud")):
        assert "loud" in fails(capsys, *command)


# A library at an address


@pytest.fixture
def far(world, copy, monkeypatch):
    "The library behind a web server: (server, address, hash of its list, the folder that it serves)."
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy.parent / "cache"))
    pin = publish_library(copy)
    server = serving(partial(Static, directory=str(copy)))
    yield server, f"http://127.0.0.1:{server.server_port}", pin, copy
    server.shutdown()
    server.server_close()


def asked(server):
    "Which pLLMs' weights were downloaded since the last time."
    names = {path.split("/")[1] for path in server.asked if path.endswith("/adapter_model.safetensors")}
    server.asked.clear()
    return names


def test_commands_take_an_address(world, far, capsys):
    server, address, pin, _ = far
    near = ("--library", world / "lib")
    for command in (("explain",), ("select", "--method", "fit")):
        call = (*command, "--data", world / "loud.jsonl")
        code, out, err = invoke(capsys, *call, "--library", f"{address}#sha256={pin}", "--json")
        assert code == 0 and err.count("\n") == 1 and "personal-llm ledger lists each request" in err
        there, here = json.loads(out), found(capsys, *call, *near)
        assert [there.get(k) for k in ("best", "assembled")] == [here.get(k) for k in ("best", "assembled")]
        assert asked(server) == ({"loud", "brief"} if "fit" in command else set())
    rows = found(capsys, "ledger")["ledger"]
    assert {row["place"].rpartition("/")[0] for row in rows if row["place"].startswith(address)} >= {address}
    assert {row["kind"] for row in rows} >= {"request", "publish"}, "the library was published in this test"
    assert address in invoke(capsys, "ledger")[1]
    assert [row["name"] for row in found_there(capsys, "library", "list", address)["pllms"]] == ["loud", "brief"]
    assert found_there(capsys, "library", "verify", address)["ok"] and asked(server) == set(), "all was there"
    assert found_there(capsys, "library", "show", address, "brief")["name"] == "brief"


def test_publish_prints_the_address_and_the_chosen_adapter_alone_is_fetched(world, far, capsys):
    server, address, pin, site = far
    code, out, err = invoke(capsys, "library", "publish", site, "--yes", "--json")
    assert code == 0 and json.loads(out)["sha256"] == pin and json.loads(out)["pllms"] == 2
    call = ("select", "--data", world / "loud.jsonl", "--library", address)
    assert found_there(capsys, *call, "--method", "l1")["best"] and asked(server) == set(), "rows are in the index"
    ranking = found_there(capsys, *call)
    assert ranking["method"] == "single" and ranking["abstained"] and asked(server) == set(), "no card is like the user"
    spoil(site / "brief", "weights")
    assert "brief" in fails(capsys, "library", "publish", site, "--yes")
    assert "an address" in fails(capsys, "library", "publish", address)


def found_there(capsys, *argv):
    code, out, err = invoke(capsys, *argv, "--json")
    assert code == 0 and err.count("\n") == 1, err
    return json.loads(out)


def test_personalize_starts_from_an_address(world, far, tmp_path):
    settings = dict(model=shared("llama"), capacity=8, synthetic=0, steps=1, progress=False)
    warm = personalize(world / "loud.jsonl", tmp_path / "warm", start=far[1], **settings)
    assert warm["settings"]["start"] == far[1] and {*warm["warm"]["weights"]} <= {"loud"} and warm["warm"]["reason"]
    assert len(asked(far[0])) <= 1


def test_an_address_that_lies_is_one_line_and_exit_code_2(world, far, tmp_path, capsys):
    server, address, pin, site = far
    data = ("--data", world / "loud.jsonl", "--library")
    wrong = {f"{address}#sha256={'0' * 64}": "not the manifest of that hash", "http://example.org/l": "can alter"}
    wrong |= {f"{address}#sha256=1": "no SHA-256", "http://127.0.0.1:9": "refused", f"{address}/no": "answers 404"}
    wrong |= {"ftp://example.org/l": "ftp is neither", "https://me:pw@example.org/l": "a user name or a password"}
    wrong |= dict.fromkeys(("http://127.0.0.1:abc/x", "http://127.0.0.1:99999/x", "http://[::1/x"), "not the address")
    for given, line in wrong.items():
        assert line in fails(capsys, "select", *data, given), given
        assert line in fails(capsys, "library", "list", given)
    build = ("library", "build", "--out", address, *building(world))
    assert "is built in a folder" in fails(capsys, *build) and not Path("http:").exists()
    weights = site / "loud" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, out, err = invoke(capsys, "select", *data, address, "--method", "fit")
    assert (code, out) == (2, "") and err.splitlines()[-1].count("its hash differs") == 1
    start = ("personalize", *data[:2], "--out", tmp_path / "x", *QUICK, "--start-from", "http://127.0.0.1:9")
    assert "refused" in fails(capsys, *start)


# Personalize from a library


def test_personalize_from_a_library(world, tmp_path):
    settings = dict(model=shared("llama"), capacity=8, synthetic=0, steps=1, progress=False)
    data = world / "loud.jsonl"
    warm = personalize(data, tmp_path / "warm", start=str(world / "lib"), **settings)
    cold = personalize(data, tmp_path / "cold", **settings)
    one = personalize(data, tmp_path / "one", start=str(world / "runs" / "loud"), **settings)
    assert warm["warm"]["weights"].keys() >= {"loud"} and warm["warm"]["style"] and cold["warm"] is one["warm"] is None
    first = {name: r["finetunes"][0]["start_loss"] for name, r in dict(warm=warm, cold=cold, one=one).items()}
    assert first["warm"] < first["cold"] and first["one"] < first["cold"]
    assert warm["cost"]["forward"] > cold["cost"]["forward"]
    lines = commands.format_personalization(warm)
    assert any(line.startswith("style      ") and "mostly *" not in line for line in lines) and any(
        "loud (" in line for line in lines
    )


def test_personalize_refuses_a_start(world, tmp_path, capsys):
    command = ("personalize", "--data", world / "loud.jsonl", "--out", tmp_path / "x", *QUICK)
    assert "the library is for base" in fails(capsys, *command, "--start-from", world / "lib", "--model", "other")
    assert "made for base" in fails(capsys, *command, "--start-from", world / "runs" / "loud", "--model", "other")
    damaged = Path(shutil.copytree(world / "runs" / "loud", tmp_path / "damaged"))
    spoil(damaged, "weights")
    assert "damaged" in fails(capsys, *command, "--start-from", damaged)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_publish_shows_the_leak_on_each_card_and_asks(world, copy, tmp_path, capsys, monkeypatch):
    unseen = write(tmp_path / "unseen.jsonl", chats("loud", first=300))
    measured = found(capsys, "library", "measure", copy, "loud", "--private", world / "loud.jsonl", "--unseen", unseen)[
        "leakage"
    ]
    assert measured["members"] == measured["others"] == 12
    assert found(capsys, "library", "show", copy, "loud")["leakage"] == measured
    assert found(capsys, "library", "show", copy, "brief")["leakage"] is None
    for answer in (io.StringIO("y\n"), Terminal("n\n"), Terminal("")):
        monkeypatch.setattr("sys.stdin", answer)
        code, out, err = invoke(capsys, "library", "publish", copy)
        assert (code, out) == (2, "") and not (copy / "served.json").exists()
        assert "brief: leak not measured" in err and "loud: " in err and "membership advantage" in err
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    code, out, err = invoke(capsys, "library", "publish", copy, "--json")
    assert code == 0 and json.loads(out)["leakage"] == dict(loud=measured, brief=None)
    assert Library(copy).verify() == []


def test_measure_refuses_what_it_cannot_compare(world, copy, tmp_path, capsys):
    before, few = files(copy), write(tmp_path / "few.jsonl", chats("loud", 3, first=300))
    call = ("library", "measure", copy, "loud", "--private", world / "loud.jsonl", "--unseen")
    assert "3 others" in fails(capsys, *call, few)
    assert "12 prompts are in" in fails(capsys, *call, world / "loud.jsonl")
    assert "an address" in fails(capsys, "library", "measure", "https://example.org/x", *call[3:], few)
    assert files(copy) == before


@pytest.mark.parametrize("value", [[], {}, dict(attack="loss"), "none", 7])
def test_a_card_with_a_wrong_measurement_is_refused(copy, capsys, value):
    card = read_sealed(copy / "loud" / "card.json")
    (copy / "loud" / "card.json").write_text(json.dumps(card | dict(leakage=value)))
    assert "leakage" in fails(capsys, "library", "show", copy, "loud")
