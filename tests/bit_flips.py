"""One changed bit in any file that we keep: it is refused, or what we read is the same. Run by `test_bit_flips.py`.

    python tests/bit_flips.py FLIPS SEED

prints for each folder the number of flips, of refusals, and what was accepted with another meaning.
"""

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import libraries
from devices import LEXICONS, TALK, Fake, User, start, told, watch
from pytest import MonkeyPatch

from personal_llm.base.adapters import Adapter, read_factors, read_lora_config, write_adapter
from personal_llm.base.core import InputError
from personal_llm.base.files import open_results_folder, publish_results
from personal_llm.base.lineage import copy_without_ids, read_training_ids
from personal_llm.device import personalizer
from personal_llm.device.personalizer import load_personalizer
from personal_llm.device.replay import folder_status
from personal_llm.explanation.space import StyleSpace
from personal_llm.selection import library as library_module
from personal_llm.selection.library import Library


def tune(model, dialogues, config, start, out, seed, progress=True, replay=()):
    "Write a true adapter of 2 x 3 numbers."
    import torch

    given = make_pairs(torch, len(dialogues))
    facts = dict(parents=[d.id for d in dialogues], history=[[0, 1.5, 1.0]], start_loss=2.0, best_loss=1.0)
    return write_adapter(given, dict(peft_type="LORA"), out, base="base", num_validation_dialogues=0, **facts)


def make_pairs(torch, number: int) -> dict:
    return {"base_model.model.layer": (torch.full((2, 3), 1.0 + number), torch.full((3, 2), 2.0 + number))}


def make_output(folder: Path) -> None:
    "The output of `personalize`: a run with its store, and the published copy."
    with MonkeyPatch.context() as patch, open_results_folder(folder, "adapter", "personalize.json") as owned:
        patch.setattr(personalizer, "tune", tune)
        me = start(owned.claim("run-0123456789abcdef"), user=User())
        watch(me, TALK[:9])
        me.react(me.buffer.dialogues[0].id, "better", "a better answer")
        me.finetune(progress=False)
        me.save()
        publish_results(owned, {"adapter": copy_without_ids(me.adapter), "personalize.json": "{}"})
    (folder / "personalize.json").unlink()  # we write it for you, and read it nowhere


def read_adapter(place: Path) -> list:
    factors = {name: [part.tolist() for part in pair] for name, pair in sorted(read_factors(place).items())}
    return [Adapter.load(place).card(), read_lora_config(place), factors]


def look_at_output(folder: Path) -> str:
    (run,) = folder.glob("run-*")
    me = load_personalizer(run, Fake(), User(), LEXICONS)
    parts = [
        told(me),
        me.settings,
        me.turns,
        me.feedback_rows,
        folder_status(run),
        me.memory.events,
    ]
    parts += [me.adapter.card(), read_adapter(Path(me.adapter.path))]
    with open_results_folder(folder, "adapter", "personalize.json") as owned:
        parts.append(owned.entries)
    return repr([*parts, read_adapter(folder / "adapter"), sorted(read_training_ids(folder / "adapter"))])


ADAPTERS = []  # four, made once


def make_library(folder: Path) -> None:
    folder.rmdir()
    libraries.small(folder, ADAPTERS)
    StyleSpace.load(Path(library_module.__file__).parents[1] / "assets" / "library").save(folder / "space of styles")


def look_at_library(folder: Path) -> str:
    library = Library(folder)
    pllms = [[library[name].card, read_adapter(library[name].adapter)] for name in library]
    return repr([pllms, library.rows.tolist(), StyleSpace.load(folder / "space of styles").id])


TARGETS = {
    "output of personalize": (make_output, look_at_output),
    "library": (make_library, look_at_library),
}


def flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def try_flips(folder: Path, look, count: int, draw: random.Random) -> dict:
    "Flip bits in turn in each file; return the counts, and what had another meaning."
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock" and p.stat().st_size)
    whole, before = {file: file.read_bytes() for file in files}, look(folder)
    found = dict(files=len(files), flips=0, refused=0, wrong=[])
    for number in range(count):
        file = files[number % len(files)]
        content = flip(whole[file], draw)
        with tempfile.TemporaryDirectory() as place:
            copy = shutil.copytree(folder, Path(place, "copy"))
            (copy / file.relative_to(folder)).write_bytes(content)
            found["flips"] += 1
            try:
                if look(copy).replace(str(copy), str(folder)) != before:
                    at = next(i for i, (a, b) in enumerate(zip(content, whole[file])) if a != b)
                    found["wrong"].append(
                        f"{file.relative_to(folder)}: byte {at}: {content[max(0, at - 20) : at + 20]!r}"
                    )
            except InputError:
                found["refused"] += 1
    return found


def run_flips(count: int, seed: int) -> dict:  # folder -> counts
    "Flip bits in every kind of folder."
    results = {}
    with MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        libraries.stand_in(patch)
        ADAPTERS[:] = libraries.four(Path(place))
        for name, (make, look) in TARGETS.items():
            (folder := Path(place, name)).mkdir()
            make(folder)
            results[name] = try_flips(folder, look, count // len(TARGETS), random.Random(f"{seed} {name}"))
    return results


if __name__ == "__main__":
    print(json.dumps(run_flips(int(sys.argv[1]), int(sys.argv[2])), indent=1))
