"""The wheel alone, in a new environment outside the checkout: size, imports, demo, chat and a tutorial.

make test-wheel                                   # minutes; TORCH="torch==2.9.1 …" for another PyTorch
"""

import os, shutil, subprocess, sys, tempfile, time, venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 45_000_000  # bytes of the wheel
TUTORIAL = "tutorials/11_elsewhere.ipynb"
DEMO = "--out demo --model pocket --steps 8".split()  # short: that it runs, not what it shows
LINES = "Hello!\n\n/why\n/status\nMy knee hurts.\n/status\n/quit\n"
IMPORTS = """
import importlib, pkgutil, sys
import personal_llm
assert personal_llm.__file__.startswith(sys.prefix), personal_llm.__file__
from personal_llm.base.core import InputError
names = [one.name for one in pkgutil.walk_packages(personal_llm.__path__, "personal_llm.")]
for name in names:
    try:
        importlib.import_module(name)
    except InputError as error:
        assert "pip install" in str(error), error  # an extra that the wheel does not bring
for name in personal_llm.__all__:
    getattr(personal_llm, name)
print(len(names), "modules")
"""
RUN = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
print(sum(cell.cell_type == "code" for cell in notebook.cells), "code cells")
"""


def source(place: Path) -> Path:
    "The files that git knows or does not ignore, as they are now: no old build finds its way into the wheel."
    words = "git ls-files -z --cached --others --exclude-standard".split()
    names = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)
    return place


def do(what: str, command: list, place: Path, text: str = "") -> str:  # what it printed
    "Run a command there, with nothing of the checkout on the path; say how it went."
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    began = time.monotonic()
    done = subprocess.run(
        [str(word) for word in command], cwd=place, env=kept, input=text, capture_output=True, text=True
    )
    last = (done.stdout.strip().splitlines() or [""])[-1][:100]
    print(f"{'FAILED' if done.returncode else 'passed'}  {time.monotonic() - began:6.1f} s  {what}: {last}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def main(words: list) -> None:
    "Build, install, and use it."
    torch = words or ["torch==" + version("torch").split("+")[0]]
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        home = Path(name)
        work = home / "work"
        shutil.copytree(ROOT / "nbs" / "tutorials", work / "tutorials")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        do("build", [*pip, "wheel", "--no-deps", "--wheel-dir", home, source(home / "source")], home)
        (wheel,) = home.glob("*.whl")
        size = wheel.stat().st_size
        print(f"{'passed' if size <= LARGEST else 'FAILED'}            {wheel.name}: {size / 1e6:.1f} MB")
        shutil.rmtree(home / "source")
        venv.create(home / "new", with_pip=True)
        python = home / "new" / "bin" / "python"
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        do("PyTorch", [*install, *torch], work)
        do("install", [*install, wheel, "nbclient", "ipykernel"], work)
        do("imports", [python, "-c", IMPORTS], work)
        do("demo", [python.parent / "personal-llm", "demo", "--quiet", *DEMO], work)
        do("version", [python.parent / "personal-llm", "--version"], work)
        do("chat", [python.parent / "personal-llm", "chat", "--out", "me"], work, LINES)
        again = do("chat again", [python.parent / "personal-llm", "chat", "--out", "me"], work, "/status\n")
        assert "0/32" in again, again
        do(TUTORIAL, [python, "-c", RUN, Path(TUTORIAL).name], work / Path(TUTORIAL).parent)
        sys.exit(size > LARGEST)


if __name__ == "__main__":
    main(sys.argv[1:])
