"A stand-in for a library whose rows, names and adapters a test decides, users of it, and tables of losses."

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from personal_llm.experiments.methods.searches import TableLosses
from personal_llm.selection.ranking import BASE_NAME
from personal_llm.explanation.description import Description
from personal_llm.explanation.habits import Trait


class Planted(SimpleNamespace):
    "What selection needs of a library."

    def __len__(self):
        return len(self.names)

    def __iter__(self):
        return iter(self.names)

    def __getitem__(self, name):
        return SimpleNamespace(name=name, adapter=self.path / name, card={})

    def columns(self, name):
        return self.rows[:, slice(*self.space.columns[name])]

    def card(self, name):
        return dict(explanation=dict(said=said_of(self.rows[self.names.index(name)]).to_dict()))


def said_of(row, habits=(), topics=()):
    "Each number as the gap of a trait: a habit above .45, and a topic, which is no reason, below."
    traits = [Trait(f"w{i}“", float(x), 1, 0, 0) for i, x in enumerate(row)]
    of = lambda is_habit: tuple(trait for trait in traits if (trait.gap > 0.45) == is_habit)
    return Description((*of(True), *habits), (*of(False), *topics), samples=24)


def planted(path, rows, names=None, threshold=1.0, columns=None, base="planted base", sizes=itertools.repeat(100)):
    "Rows under names in a folder; adapters that are not there yet are files of so many zero bytes."
    rows = np.asarray(rows, np.float32)
    names = list(names or [f"p{i:03d}" for i in range(len(rows))])
    for name, size in zip(names, sizes):
        file = Path(path, name, "adapter_model.safetensors")
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(bytes(size))
    return Planted(
        path=Path(path),
        rows=rows,
        names=names,
        base=base,
        space=SimpleNamespace(
            id="planted", threshold=threshold, columns=columns or dict(coordinates=(0, rows.shape[1]))
        ),
    )


def permuted(library, order):
    "The same library with its rows in another order."
    return Planted(**vars(library) | dict(rows=library.rows[order], names=[library.names[i] for i in order]))


def me(row, strength=5.0):
    row = np.asarray(row, np.float32)
    return SimpleNamespace(row=row, strength=strength, space="planted", description=said_of(row))


def table(losses: dict, dialogues=12, tokens=20, noise=0.0, seed=0):
    "Summed nats and tokens of dialogues that have these losses, by name."
    chance = np.random.default_rng(seed)
    return {
        name: np.stack([tokens * (loss + noise * chance.normal(size=dialogues)), np.full(dialogues, tokens)], 1)
        for name, loss in losses.items()
    }


def replay(library, losses, base=9.0, **kw):  # losses of all pLLMs, in order of the names
    return TableLosses(library, table(dict(zip([*library.names, BASE_NAME], [*losses, base])), **kw))


def save_adapter(folder, factors: dict, alpha=None, **more):  # module -> (A, B); scale alpha / rank, 1 by default
    "Write LoRA factors as peft does."
    from peft import LoraConfig
    from safetensors.torch import save_file

    rank = next(iter(factors.values()))[0].shape[0]
    LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=sorted(factors),
        task_type="CAUSAL_LM",
        **more,
    ).save_pretrained(str(folder))
    save_file(
        {
            f"base_model.model.{m}.lora_{k}.weight": x.float().contiguous()
            for m, pair in factors.items()
            for k, x in zip("AB", pair)
        },
        Path(folder, "adapter_model.safetensors"),
    )
    return Path(folder)
