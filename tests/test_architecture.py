"The house: acts in order, no circles, nothing private taken from a neighbour, short lines."

import ast
import re
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from cases import ROOT, read_cells, run_python, source_of

PACKAGE = ROOT / "personal_llm"
ACTS = ("base", "data", "buffer", "memory", "tuning", "explanation", "selection", "device", "app", "extras")
LONGEST_LINE = 120


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    module_of(path): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "_modidx.py" and path != PACKAGE / "__init__.py"
}


parse = cache(ast.parse)  # once a source, for all the rules


def imports(name: str, source: str, known) -> list:  # (line, module, imported name or "")
    "What a module imports from this package, inside functions too."
    found = []
    package = name if any(other.startswith(name + ".") for other in known) else name.rpartition(".")[0]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join(up + ([node.module] if node.module else []))
            for alias in node.names:
                below = f"{module}.{alias.name}"
                found.append((node.lineno, below, "") if below in known else (node.lineno, module, alias.name))
    return [row for row in found if row[1].startswith("personal_llm")]


@cache
def arrows_of_the_package() -> set:
    return arrows(SOURCES)


def arrows(sources: dict) -> set:  # (module, imported module)
    return {(name, to) for name, source in sources.items() for _, to, _ in imports(name, source, sources) if to != name}


def refuse_circles(pairs: set) -> None:
    "Raise `CycleError` where a module can be reached from itself."
    order = TopologicalSorter()
    for start, to in pairs:
        order.add(start, to)
    order.prepare()


def act(module: str) -> str:
    return (module.split(".") + [""])[1]


NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
CHAPTERS = [path for path in NOTEBOOKS if re.fullmatch(r"\d_\w+", path.parent.name)]
ORDER = [f"personal_llm.{path.parent.name[2:]}.{path.stem[3:]}" for path in CHAPTERS]


def forward(pairs: set, order: list) -> list:
    "Imports of a later chapter, or of what stands beside the acts."
    place = {module: number for number, module in enumerate(order)}
    is_forward = lambda one, other: place.get(other, len(order)) > place.get(one, len(order))
    return sorted(pair for pair in pairs if is_forward(*pair))


def private(sources: dict) -> list:
    "Private names taken from another module."
    found = []
    for name, source in sources.items():
        found += [f"{name}:{line} {to}.{what}" for line, to, what in imports(name, source, sources) if what[:1] == "_"]
    return found


def test_there_is_no_circle_and_no_chapter_imports_a_later_one():
    refuse_circles(arrows_of_the_package())
    assert forward(arrows_of_the_package(), ORDER) == []


def test_the_picture_draws_the_imports_of_the_acts():
    "Each arrow is an import, and each import is an arrow or follows from others."
    pairs = {(act(name), act(to)) for name, to in arrows_of_the_package()}
    pairs = {pair for pair in pairs if {*pair} <= {*ACTS} and pair[0] != pair[1]}
    text = (ROOT / "nbs" / "images" / "diagrams" / "imports.dot").read_text("utf-8")
    drawn = set(re.findall(r"(\w+) -> (\w+)", text))
    reached = set(drawn)
    for _ in ACTS:
        reached |= {(one, last) for one, other in reached for first, last in drawn if first == other}
    assert drawn <= pairs <= reached


def test_only_entry_points_lead_to_the_extras():
    assert [pair for pair in arrows_of_the_package() if act(pair[1]) == "extras" and act(pair[0]) in ACTS[:-1]] == []


def test_nothing_private_is_taken_from_another_module():
    assert private(SOURCES) == []


def long_lines(path: Path) -> list:
    text = re.sub(r"^__all__ = \[[^\]]*\]", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)  # nbdev's own
    return [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(text.splitlines(), 1) if len(line) > LONGEST_LINE]


def test_no_line_is_longer_than_120_characters():
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "_modidx.py"]
    files = [*modules, *(ROOT / "tests").glob("*.py")]
    assert [line for path in files for line in long_lines(path)] == []


def test_a_notebook_lies_where_its_module_lies():
    wrong = []
    for path in NOTEBOOKS:
        text = "\n".join(source_of(cell) for cell in read_cells(path) if cell["cell_type"] == "code")
        found = re.search(r"#\|\s*default_exp\s+([\w.]+)", text)
        room = re.fullmatch(r"\d_(\w+)", path.parent.name)
        beside = {"experiments": "experiments", "methods": "experiments.methods"}  # left out of the wheel
        room = room[1] if room else beside.get(path.parent.name)
        if found and room and found[1] != f"{room}.{re.sub(r'^[0-9]+_', '', path.stem)}":
            wrong.append(f"{path.relative_to(ROOT)} exports to {found[1]}")
    assert wrong == []


def public_names(source: str) -> list:
    "`__all__` of a module."
    for node in parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [one.value for one in node.value.elts]
    return []


OF_ACTS = {name: source for name, source in SOURCES.items() if act(name) in ACTS}


def test_a_public_name_means_one_thing():
    counts = Counter(name for source in OF_ACTS.values() for name in public_names(source))
    assert [name for name, count in counts.items() if count > 1] == []


def undocumented(source: str) -> list:
    "Public functions and classes without a docstring."
    named = [node for node in parse(source).body if getattr(node, "name", "") in public_names(source)]
    return [node.name for node in named if not ast.get_docstring(node)]


def test_public_names_have_docstrings():
    assert {name: undocumented(source) for name, source in OF_ACTS.items() if undocumented(source)} == {}
    assert undocumented("__all__ = ['f']\ndef f(): pass") == ["f"]


def foreign_imports(path: Path) -> list:
    "What a tutorial or lesson imports of the package that is not public."
    found = []
    for cell in read_cells(path):
        if cell["cell_type"] != "code":
            continue
        lines = [line for line in source_of(cell).splitlines() if not re.match(r"\s*[%!]", line)]
        for node in ast.walk(ast.parse("\n".join(lines))):
            module = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and act(module) in ACTS:
                allowed = public_names(SOURCES.get(module, ""))
                found += [f"{module}.{one.name}" for one in node.names if one.name not in allowed]
    return found


@pytest.mark.parametrize("folder, names", [("tutorials", "*"), ("course", "lesson_*"), ("course", "solution_*")])
def test_tutorials_and_lessons_import_public_names_only(folder, names):
    paths = sorted((ROOT / "nbs" / folder).glob(f"{names}.ipynb"))
    assert paths and {path.stem: foreign_imports(path) for path in paths if foreign_imports(path)} == {}


def test_public_names_come_lazily():
    names = """Dialogue load_model read_dialogues correlated_stream entropy_of_embedding domain_specific_score
    dominant_domain in_domain_dissimilarity Buffer synthesize TuningConfig finetune evaluate Personalizer Library
    StyleSpace explain select merge""".split()
    program = f"""
import sys, personal_llm
assert not [m for m in sys.modules if m.startswith("personal_llm.")], "importing the package imports no room"
assert set({names!r}) <= set(personal_llm.__all__) <= set(dir(personal_llm))
for name in personal_llm.__all__:
    value = getattr(personal_llm, name)
    assert name.isupper() or value.__module__.startswith("personal_llm."), name
assert not [m for m in ("torch", "transformers", "peft") if m in sys.modules], "names alone import nothing heavy"
"""
    run_python(program)


def test_an_unknown_name_is_an_attribute_error():
    import personal_llm

    with pytest.raises(AttributeError, match="no attribute 'Bufer'"):
        personal_llm.Bufer
