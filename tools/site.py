"""What the site needs beside the notebooks: the order of the pages, the tables of names, links between notebooks.

make docs        # mkdocs reads mkdocs.yml, which names this file as its hooks
"""

import ast, json, re, shutil, tempfile
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
ACTS = {  # folder of nbs -> its heading, in reading order
    "tutorials": "Tutorials",
    "0_base": "0 · Base",
    "1_data": "1 · Data",
    "2_sdss": "2 · What is kept",
    "3_tuning": "3 · Tuning",
    "4_xpert": "4 · What is said",
    "5_start": "5 · Where it starts",
    "6_device": "6 · On the device",
    "7_runtimes": "7 · Other places where it runs",
    "8_app": "8 · Commands",
    "experiments": "Experiments",
    "course": "Course",
    "recipes": "Recipes",
}
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")  # of the top, which become pages
PAPERS = ("LICENSE", "NOTICE", "CITATION.cff")


def title_of(notebook: Path) -> str:
    "The first heading, or the name."
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        found = re.search(r"^# (.+)$", "".join(cell["source"]), re.MULTILINE)
        if found and cell["cell_type"] == "markdown":
            return re.sub(r"[`*]", "", found[1]).strip()
    return notebook.stem


def pages_of(folder: Path) -> list:
    "One entry a notebook, in the order of the names."
    return [{title_of(one): f"{folder.name}/{one.name}"} for one in sorted(folder.glob("*.ipynb"))]


def readable(notebook: Path) -> str:
    "A notebook without hidden cells and without the lines that only nbdev reads."
    told = json.loads(notebook.read_text(encoding="utf-8"))
    kept = []
    for cell in told["cells"]:
        lines = "".join(cell["source"]).splitlines(True)
        flags = [line[2:].strip() for line in lines if cell["cell_type"] == "code" and line.startswith("#|")]
        if any(flag == "hide" or flag.startswith("default_exp") for flag in flags):
            continue
        if "echo: false" in flags:
            cell["metadata"]["tags"] = ["hidden-input"]
        kept.append(
            cell | dict(source=[line for line in lines if cell["cell_type"] != "code" or not line.startswith("#|")])
        )
    return json.dumps(told | dict(cells=kept))


def copy_notebooks(to: Path) -> None:
    "The notebooks as readers see them, and the pictures beside them."
    for one in sorted((ROOT / "nbs").rglob("*")):
        place = to / one.relative_to(ROOT / "nbs")
        if one.suffix == ".ipynb" and ".ipynb_checkpoints" not in one.parts:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(readable(one), encoding="utf-8")
        elif one.suffix in (".png", ".svg", ".md"):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one, place)

    for name in (*PAPERS, *PAGES):
        shutil.copy(ROOT / name, to)


def on_config(config):
    "The pages are a copy of the notebooks, in the order of the acts."
    config["docs_dir"] = tempfile.mkdtemp(prefix="personal-llm-site-")
    copy_notebooks(Path(config["docs_dir"]))
    folders = [(ROOT / "nbs" / name, heading) for name, heading in ACTS.items()]
    chapters = [{heading: pages_of(folder)} for folder, heading in folders if folder.is_dir()]
    config["nav"] = [{"personal_llm": "index.ipynb"}, *chapters, {"Names": "names.md"}]
    config["nav"] += [{"Contributing": "CONTRIBUTING.md"}, {"Changes": "CHANGELOG.md"}]
    return config


def signature(node) -> str:
    "A function's arguments by name, with the defaults that are short."
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    given = node.args.posonlyargs + node.args.args
    defaults = [None] * (len(given) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(given, defaults), *zip(node.args.kwonlyargs, node.args.kw_defaults)]
    said = [one.arg + (f"={ast.unparse(value)}" if value is not None else "") for one, value in pairs]
    said += [f"*{node.args.vararg.arg}"] if node.args.vararg else []
    said += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    return f"{node.name}({', '.join(said)})"


def patched(node) -> str:
    "The class that a function is added to by `patch`, or nothing."
    marks = {ast.unparse(mark) for mark in node.decorator_list}
    first = node.args.args[0].annotation if isinstance(node, ast.FunctionDef) and node.args.args else None
    return ast.unparse(first) + "." if "patch" in marks and first is not None else ""


def rows_of(module: Path) -> list:
    "A row for each public class, function and method of a module: name, what it is for."
    rows = []
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        told = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{patched(node)}{signature(node)}` | {told} |".replace("||", "\\|\\|"))
    return rows


def names_page() -> str:
    "Every public name of the package, module by module."
    said = ["# Names", "", "What each module gives, in the order of the acts. Types and units stand in the notebooks."]
    for module in sorted((ROOT / "personal_llm").glob("*/*.py")):
        rows = rows_of(module)
        if rows and not module.name.startswith("_"):
            said += [
                "",
                f"## personal_llm.{module.parent.name}.{module.stem}",
                "",
                "| name | what it is for |",
                "|---|---|",
            ]
            said += rows
    return "\n".join(said)


def on_post_build(config):
    "The copy goes."
    shutil.rmtree(config["docs_dir"])


def on_files(files, config):
    "The page of names is made, not kept."
    files.append(File.generated(config, "names.md", content=names_page()))
    return files


def on_post_page(output, page, config):
    "Links between notebooks lead to their pages."
    output = re.sub(rf'href="\.\./({"|".join(PAPERS)})"', r'href="\1"', output)
    output = re.sub(r'href="\.\./(\w+)\.md"', r'href="\1.html"', output)
    return re.sub(r'(href="(?![a-z]+:)[^"#]+)\.ipynb(#[^"]*)?"', r'\1.html\2"', output)
