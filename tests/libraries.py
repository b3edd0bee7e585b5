"Random adapters, and a small library of them in a space of four columns."

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from personal_llm.base.files import seal, write_json
from personal_llm.selection import cards
from personal_llm.selection import library as module
from personal_llm.selection.library import Library
from tiny import shared

GIVEN = dict(licence="CC0-1.0", samples=30)


def adapter(folder, model, rank=2, alpha=8, seed=0, targets="all-linear", **changes):
    "A random adapter on disk."
    import torch
    from peft import LoraConfig, get_peft_model

    settings = dict(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model.model, LoraConfig(**settings, **changes))
    adapted.save_pretrained(str(folder))
    model.model = adapted.unload().eval()
    write_json(folder / "adapter.json", dict(base=model.base, parents=["d"]))
    return folder


class Space:
    "A space of four columns."

    id, kind, width, threshold = "space-1", "style", 4, 1.0
    columns = dict(coordinates=(0, 3), stylometry=(3, 4))

    def __init__(self, base, words=("loud", "quiet")):
        self.base, self.words = base, words

    def save(self, folder):
        write_json(Path(folder) / "space.json", dict(kind="style", id=self.id, base=self.base, words=self.words))

    @classmethod
    def load(cls, folder):
        card = json.loads((Path(folder) / "space.json").read_text())
        return cls(card["base"], card["words"])


@dataclasses.dataclass
class Words:
    "As much of an explanation as a library looks at."

    row: np.ndarray
    space: str = "space-1"
    description = None

    def __str__(self):
        return f"mostly *{'loud' if self.row[0] > 0 else 'quiet'}*"

    def to_dict(self):
        return dict(row=[float(x) for x in self.row], space=self.space)

    @classmethod
    def from_dict(cls, d):
        return cls(np.asarray(d["row"], np.float32), d["space"])


def words(i):
    return Words(np.array([i + 1, -i, 0.5, 7], np.float32))


def stand_in(patch):
    "The space and the explanation of this file in place of the real ones."
    patch.setitem(module.SPACE_CLASSES, "style", Space)
    patch.setattr(cards, "Explanation", Words)


def four(place):
    "Four adapters."
    return [adapter(place / str(i), shared("llama"), 1 + i % 3, seed=i, targets=["q_proj"]) for i in range(4)]


def small(path, made):
    "A library of three of them: a, b and c."
    lib = Library.create(path, Space(shared("llama").base))
    for i, name in enumerate("abc"):
        lib.add(name, made[i], words(i), similarity=0.9, style="loud", **GIVEN)
    return lib


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def edit(file, **changes):
    "Change fields of a JSON file, as a person does who computes its checksum anew."
    row = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(seal(row) if "checksum" in row else row))


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def settings_and_sum(folder, **changes):
    "Changed settings with a checksum that agrees."
    edit(folder / "adapter_config.json", **changes)
    edit(folder / "card.json", config_sha256=sha256(folder / "adapter_config.json"))


def weights_and_sum(folder, change):
    "Changed weights with a checksum that agrees."
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file({name: change(name, tensor) for name, tensor in load_file(file).items()}, file)
    edit(folder / "card.json", sha256=sha256(file), bytes=file.stat().st_size)


def rewrite(root, rows=None, **changes):
    "Another index with a checksum that agrees."
    rows = np.load(root / "index.npy") if rows is None else rows
    np.save(root / "index.npy", rows)
    edit(root / "index.json", sha256=sha256(root / "index.npy"), **changes)


def widen(folder, rank):
    "An adapter of another rank in place of this one, its checksums agree."
    wide = adapter(folder.parent / f".wide-{rank}", shared("llama"), rank, targets=["q_proj"])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(wide / name, folder)
    shutil.rmtree(wide)
    settings_and_sum(folder)
    weights_and_sum(folder, lambda name, tensor: tensor)
