"""The wheel alone, in a new environment outside the checkout: size, imports, demo, chat and a tutorial.

make test-wheel                                   # minutes; TORCH="torch==2.9.1 …" for another PyTorch
"""

import os, shutil, subprocess, sys, tempfile, time, venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 45_000_000  # bytes of the wheel
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


def source(place: Path) -> Path:
    "The files that git knows or does not ignore, as they are now: no old build finds its way into the wheel."
    words = "git ls-files -z --cached --others --exclude-standard".split()
    names = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for file in filter(Path.is_file, (ROOT / name for name in names.split("\0"))):
        copy = place / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return place


def do(what: str, command: list, place: Path, text: str = "") -> str:  # what it printed
    "Run a command there, with nothing of the checkout on the path; say how it went."
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    began = time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=place, env=kept, input=text, capture_output=True, text=True)
    last = done.stdout.strip().rpartition("\n")[2][:100]
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
        assert size <= LARGEST, f"{wheel.name}: {size / 1e6:.1f} MB"
        venv.create(home / "new", with_pip=True)
        python = home / "new" / "bin" / "python"
        command = python.parent / "personal-llm"
        install = [python, *pip[1:], "install", "--quiet"]
        do("PyTorch", [*install, *torch], work)
        do("install", [*install, wheel, "nbclient", "ipykernel"], work)
        do("imports", [python, "-c", IMPORTS], work)
        do("demo", [command, *"demo --quiet --out demo --model pocket --steps 8".split()], work)  # that it runs
        do("version", [command, "--version"], work)
        do("chat", [command, "chat", "--out", "me"], work, LINES)
        again = do("chat again", [command, "chat", "--out", "me"], work, "/status\n")
        assert "0/32" in again, again
        do("tutorial", [python.parent / "jupyter-execute", "11_elsewhere.ipynb"], work / "tutorials")


if __name__ == "__main__":
    main(sys.argv[1:])
