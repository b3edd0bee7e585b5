"An adapter on disk: its card, what is refused, and what a kill or a full disk leaves."

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kills import killed_at, needs_fork
from safetensors.torch import load_file, save_file
from tiny import break_seal, random_adapter, same, tiny, weights, write_adapter

from personal_llm.base.adapters import ADAPTER_CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Adapter, attach_adapter
from personal_llm.base.adapters import check_adapter, commit_adapter, read_adapter_card
from personal_llm.base.adapters import read_factors, read_lora_config, stage_adapter
from personal_llm.base.core import Cost, InputError

FILES = sorted([ADAPTER_CARD_FILE, CONFIG_FILE, WEIGHTS_FILE])


def write(out, name, rank=1):
    "An adapter whose three files all tell which one it is."
    pair = torch.full((rank, 3), float(rank)), torch.full((3, rank), float(rank))
    return write_adapter(out, dict(layer=pair), parents=(name,), cost=Cost(tokens=rank), notes=dict(about=name))


def which(folder) -> str:
    "The one adapter that weights, settings and card agree on."
    rank = int(load_file(Path(folder) / WEIGHTS_FILE)["layer.lora_A.weight"][0, 0])
    card = read_adapter_card(folder)
    assert json.loads((Path(folder) / CONFIG_FILE).read_text())["r"] == rank == card["cost"]["tokens"]
    return card["parents"][0]


@pytest.fixture
def old(tmp_path):
    return write(tmp_path / "adapter", "old")


# ---- the card


def test_a_card_comes_back(tmp_path):
    facts = dict(parents=("x", "y"), cost=Cost(seconds=1.5, tokens=7), history=((1, 2.5, None), (2, 2.0, 2.25)))
    facts |= dict(start_loss=3.0, best_loss=2.0, num_validation_dialogues=4, config=dict(rank=4), seed=3)
    full = Adapter(tmp_path / "a", "base-1", **facts, notes=dict(weights=dict(a=0.5)))
    stage = stage_adapter(full.path, lambda folder: [(folder / name).touch() for name in (WEIGHTS_FILE, CONFIG_FILE)])
    assert commit_adapter(stage, full) is full and Adapter.load(full.path) == full
    card = read_adapter_card(full.path)
    assert card["weights"] == dict(a=0.5) and "path" not in card and "notes" not in card
    moved = full.path.rename(tmp_path / "b")
    assert Adapter.load(moved) == replace(full, path=moved)
    (moved / "checkpoints").mkdir()
    assert Adapter.load(moved).nbytes == sum(os.path.getsize(moved / name) for name in FILES)


def test_cards_of_earlier_versions_are_read(old):
    row = dict(base="b", parents=["x"], cost={}, history=[[1, 2.0, None]], start_loss=None, best_loss=None, path="")
    (old.path / ADAPTER_CARD_FILE).write_text(json.dumps(row | dict(error=0.1)))
    found = Adapter.load(old.path)
    assert (found.base, found.parents, found.history) == ("b", ("x",), ((1, 2.0, None),))
    assert found.notes["error"] == 0.1 and found.num_validation_dialogues is None


@pytest.mark.parametrize(
    "content", ["{", "[]", "5", '"text"', "[" * 100_000, '{"base": 5}', '{"base": ["b"]}', "\ud800"], ids=range(8)
)
def test_damaged_cards_are_one_line(content, old):
    (old.path / ADAPTER_CARD_FILE).write_bytes(content.encode("utf-8", "surrogatepass"))
    for act in (read_adapter_card, check_adapter, Adapter.load):
        with pytest.raises(InputError, match="adapter.json"):
            act(old.path)


def test_an_adapter_of_plain_peft_has_no_card(old):
    (old.path / ADAPTER_CARD_FILE).unlink()
    assert read_adapter_card(old.path) == {} and check_adapter(old.path, "any base") == old.path
    with pytest.raises(InputError, match="adapter.json is missing"):
        Adapter.load(old.path)


# ---- what is refused


def test_the_folder_above_adapters_names_them(old, tmp_path):
    places = [shutil.copytree(old.path, tmp_path / "out" / name) for name in ("checkpoint-10", "checkpoint-20")]
    with pytest.raises(InputError, match=f"no adapter here .*; give {places[0]} or {places[1]}$"):
        check_adapter(tmp_path / "out")


def test_folders_that_are_no_adapter_are_refused(old, tmp_path):
    with pytest.raises(InputError, match="made for base base-1, this model is base-2"):
        check_adapter(old, "base-2")
    others = ((CONFIG_FILE, "x", "no adapter here"), (WEIGHTS_FILE, "x", "is missing"))
    others += ((WEIGHTS_FILE, "adapter_model.bin", "is a pickle, .*save it again as safetensors"),)
    for missing, other, what in others:
        folder = shutil.copytree(old.path, tmp_path / (missing + other))
        (folder / missing).unlink()
        (folder / other).touch()
        with pytest.raises(InputError, match=what):
            check_adapter(folder)


# ---- into a model


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def fitting(model, tmp_path_factory):
    return random_adapter(model, tmp_path_factory.mktemp("fitting"))


def spoil(folder, how):
    file = folder / WEIGHTS_FILE
    tensors = load_file(file)
    first = sorted(tensors)[0]
    if how == "a matrix is missing":
        del tensors[first]
    if how == "a matrix too many":
        tensors[first.replace("layers.0", "layers.9")] = tensors[first].clone()
    if how == "another shape":
        tensors[first] = torch.zeros(2, 99)
    save_file(tensors, file, metadata=dict(format="pt"))
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:500])
    if how == "settings garbled":
        (folder / CONFIG_FILE).write_text("{")


@pytest.mark.parametrize(
    "how", ["a matrix is missing", "a matrix too many", "another shape", "cut short", "settings garbled"]
)
def test_an_adapter_that_does_not_fit_leaves_the_model_bare(how, model, fitting, tmp_path):
    folder = shutil.copytree(fitting, tmp_path / "a")
    spoil(folder, how)
    before, kinds = weights(model), [type(m) for m in model.model.modules()]
    with pytest.raises(InputError, match="does not fit this model or is damaged|json: damaged|has 2, 99 numbers there"):
        attach_adapter(model.model, folder)
    assert same(model, before) and [type(m) for m in model.model.modules()] == kinds
    assert not hasattr(model.model, "peft_config")
    assert attach_adapter(model.model, fitting).unload() is model.model and same(model, before)


# ---- all or nothing


@needs_fork
@pytest.mark.parametrize("before", ["old", None], ids=["over an old one", "into a new folder"])
def test_a_kill_leaves_one_adapter_or_none(before, tmp_path):
    "At every file operation of a publication; processes really die, so nothing cleans up after them."
    outcomes, step = [], 0
    while not outcomes or outcomes[-1][0]:
        out = tmp_path / f"{step}"
        if before:
            write(out, before)
        killed = killed_at(step, write, out, "new", rank=2)
        try:
            found = which(check_adapter(out))
        except InputError as error:
            assert "no adapter here" in str(error)
            found = None
        write(out, "third", rank=3)
        assert sorted(p.name for p in out.iterdir()) == FILES and which(out) == "third", (step, "debris")
        outcomes.append((killed, found))
        step += 1
    found = [name for _, name in outcomes]
    assert step > 12 and [*dict.fromkeys(found)] == ([before, None, "new"] if before else [None, "new"])


def test_unfinished_files_of_others_stay(tmp_path):
    "The folder of an adapter may be any folder: what another program is writing there, or below, is not ours."
    theirs = [tmp_path / ".state.json.99.tmp", tmp_path / "project" / ".adapter.7.tmp", tmp_path / ".adapter.b.tmp"]
    for file in theirs:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    write(tmp_path, "new")
    assert [file.read_text() for file in theirs] == ["half"] * 3


QV = ["q_proj", "v_proj"]
TAKEN = dict(
    plain=dict(target_modules="all-linear"),
    dora=dict(target_modules=QV, use_dora=True),
    rslora=dict(target_modules=QV, use_rslora=True),
    lora_bias=dict(target_modules=QV, lora_bias=True),
    ranks=dict(target_modules=QV, rank_pattern=dict(q_proj=4), alpha_pattern=dict(v_proj=3)),
    embedding=dict(target_modules=["embed_tokens", "v_proj"]),
    layers=dict(target_modules=QV, layers_to_transform=[1]),
)
REFUSED = dict(
    tokens=dict(target_modules=QV, trainable_token_indices=[3, 4, 5]),
    table=dict(target_modules=QV, modules_to_save=["embed_tokens"]),
    bias=dict(target_modules=QV, bias="all"),
    pissa=dict(target_modules=QV, init_lora_weights="pissa"),
    olora=dict(target_modules=QV, init_lora_weights="olora"),
    replication=dict(target_modules=QV, layer_replication=[(0, 2), (1, 2)]),
    parameters=dict(target_modules=QV, target_parameters=["norm.weight"]),
)


def make_kind(architecture: str, kind: dict, folder) -> torch.Tensor:  # logits of peft's own model
    "Write an adapter of any kind with random weights, as another program does."
    from peft import LoraConfig, get_peft_model

    settings = dict(r=2, task_type="CAUSAL_LM", init_lora_weights=False) | kind
    other = get_peft_model(tiny(architecture).model, LoraConfig(**settings)).eval()
    with torch.no_grad():
        for weight in other.parameters():
            if weight.requires_grad:
                weight += 0.1
    other.save_pretrained(folder)
    return other(torch.arange(3, 40)[None]).logits.detach()


@pytest.mark.parametrize("architecture", ["llama", "smollm", "qwen2"])
@pytest.mark.parametrize("kind", [*TAKEN, *REFUSED])
def test_the_base_is_the_same_to_the_bit_after_any_adapter(kind, architecture, tmp_path):
    "An adapter computes what it computes in peft, and leaves no bit behind; or it is refused in one line."
    model = tiny(architecture)
    ids = torch.arange(3, 40)[None]
    before, names, kinds = model.model(ids).logits.detach(), weights(model), [*map(type, model.model.modules())]
    if kind in TAKEN:
        theirs = make_kind(architecture, TAKEN[kind], tmp_path)
        with model.use_adapter(tmp_path):
            assert torch.allclose(model.model(ids).logits, theirs, atol=1e-5)
            assert not torch.allclose(theirs, before, atol=1e-3)
    else:
        if kind not in ("replication", "parameters"):
            make_kind(architecture, REFUSED[kind], tmp_path)
        else:  # of the same settings with plain weights
            make_kind(architecture, TAKEN["plain"], tmp_path)
            config = json.loads((tmp_path / CONFIG_FILE).read_text())
            (tmp_path / CONFIG_FILE).write_text(json.dumps(config | REFUSED[kind]))
        with pytest.raises(InputError, match="is set; such an adapter may change the base"):
            with model.use_adapter(tmp_path):
                pass
    assert torch.equal(model.model(ids).logits, before)
    assert same(model, names) and [*map(type, model.model.modules())] == kinds


@pytest.mark.parametrize("kind", ["IA3Config", "PromptTuningConfig", "LoHaConfig"])
def test_what_is_no_lora_is_refused(kind, tmp_path):
    import peft

    model = tiny("llama")
    settings = dict(num_virtual_tokens=3) if kind == "PromptTuningConfig" else dict(target_modules=QV)
    settings |= dict(feedforward_modules=[]) if kind == "IA3Config" else {}
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
    peft.get_peft_model(tiny("llama").model, config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="peft_type is not LORA; only LoRA adapters"):
        with model.use_adapter(tmp_path):
            pass
    assert not any("lora" in name for name, _ in model.model.named_modules())


# ---- the factors of plain LoRA


SHAPES = dict(first=(5, 3), second=(4, 6))  # module -> (out, in)


def random_pairs(rank, seed, modules=SHAPES):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, width, generator=draw), torch.randn(height, rank, generator=draw))
        for name, (height, width) in modules.items()
    }


@pytest.fixture
def plain(tmp_path):
    "An adapter of rank 2 of which nothing checks the id."
    folder = write_adapter(tmp_path / "plain", random_pairs(2, 0)).path
    break_seal(folder)
    return folder


def change_config(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


def test_alpha_is_in_the_factors(plain):
    A, B = read_factors(plain)["first"]
    change_config(plain, lora_alpha=6)
    assert torch.allclose(read_factors(plain)["first"][1], 3 * B) and torch.equal(read_factors(plain)["first"][0], A)


@pytest.mark.parametrize(
    "odd",
    [dict(lora_bias=True), dict(something_new=5), dict(r=0), dict(r=True), dict(lora_alpha=float("nan"))],
    ids=str,
)
def test_what_is_no_plain_lora_is_refused(odd, plain):
    change_config(plain, **odd)
    with pytest.raises(InputError, match="adapter_config.json: .*(only|is not|must be)"):
        read_factors(plain)


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "layers_pattern", "alpha_pattern"])
def test_names_of_layers_are_no_regular_expressions(field, is_plain, plain):
    "peft would search with them, and one such as (a+)+$ never ends."
    change_config(plain, target_modules="all-linear")
    read_lora_config(plain)
    change_config(plain, target_modules=["q_proj", "model.layers.0.self_attn.v_proj"])
    read_lora_config(plain)
    for value in ("(a+)+$", ["q_proj", "(.*)*b"], {"(x*)*y": 4}, [7]):
        change_config(plain, **{field: value})
        with pytest.raises(InputError, match="adapter_config.json: (.*isn't the name of a layer|alpha_pattern is set)"):
            read_lora_config(plain, is_plain)


def test_matrices_that_are_damaged_are_one_line(plain):
    good = load_file(plain / WEIGHTS_FILE)
    name = "first.lora_A.weight"
    cases = {
        "more or less": {key: x for key, x in good.items() if key != name},
        "more or less than pairs": good | {"first.bias": torch.ones(1)},
        "more or less than": {},
        "rank should be 2": good | {name: torch.ones(3, 3)},
        "has factors": good | {name: torch.ones(2)},
        "not finite": good | {name: torch.full((2, 3), float("nan"))},
    }
    for says, tensors in cases.items():
        save_file(tensors, plain / WEIGHTS_FILE)
        with pytest.raises(InputError, match=says):
            read_factors(plain)
    (plain / WEIGHTS_FILE).write_bytes(b"garbage")
    with pytest.raises(InputError, match="damaged"):
        read_factors(plain)
