"""pytest runs the notebooks: one test a section (a heading and the code below it, up to the next heading).

    pytest nbs/2_buffer/01_scoring.ipynb                        # one notebook
    pytest "nbs/2_buffer/01_scoring.ipynb::Dominant domain"     # one section; the cells above it run first, as its set-up
    pytest --quick                                            # what a contributor waits for: without the files of `LATER`
    pytest --rest                                             # the files of `LATER` alone; CI runs them after the quick ones
    pytest --slow                                             # all, with the cells flagged `#| slow` and the tests marked slow
    pytest -n auto                                            # a process a core; a file's tests stay in one process

The sections of a notebook share their variables, as in Jupyter. When one fails, the later ones are not run and say so.
A section also fails if a cell prints something else than what is saved in the notebook (tools/outputs.py); what depends on
the processor says so on its cell, `#| varies: numbers, why`.
`#| eval: false`, `skip_exec: true` and the flags in `tst_flags` (pyproject.toml) mean what they mean to nbdev-test.
"""

import ast, gc, importlib, io, json, linecache, os, re, signal, sys, threading, types
from collections import Counter
from contextlib import redirect_stdout, suppress
from fnmatch import fnmatch
from pathlib import Path
from unittest.mock import patch

# Before numpy or torch are imported, here and in the processes that tests start.
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("TZ", "UTC")  # of the dates that a chat writes
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["PERSONAL_LLM_MODEL"] = "pocket"  # the default model of the tests; cells flagged smollm2 or qwen name theirs
os.environ["PERSONAL_LLM_ENCODER"] = "pocket"
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: one thread each
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", cores))))
else:
    os.environ.setdefault("OMP_NUM_THREADS", str(min(cores, 4)))  # small models gain nothing from more

if threading.current_thread() is threading.main_thread():  # what is started in the background ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from _pytest.assertion.rewrite import rewrite_asserts
from nbdev.config import get_config
from tools.outputs import contradiction

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "personal_llm"


@pytest.fixture(scope="module")
def model():
    "The pocket model, a new one for each file of tests."
    from personal_llm.base.models import load_model

    return load_model("pocket")


# Files that a contributor does not wait for: each guards something that most changes cannot break, for minutes.
LATER = """
tests/test_course*.py tests/test_real_models.py tests/test_harness.py tests/test_decomposition.py
tests/test_demo.py tests/test_pocket_*.py tests/test_explanation.py tests/test_weights.py tests/test_collector.py
tests/test_month.py tests/test_merging.py
nbs/tutorials/* nbs/course/* nbs/recipes/* nbs/experiments/*
nbs/*/*_decomposition.ipynb nbs/*/*_audit.ipynb nbs/*/*_idle.ipynb nbs/*/*_cluster.ipynb
nbs/*/*_merging.ipynb nbs/*/*_space.ipynb
""".split()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out the files of LATER and the tests marked later")
    parser.addoption("--rest", action="store_true", help="run only what --quick leaves out")
    parser.addoption(
        "--slow", action="store_true", help="run the cells flagged `#| slow` and the tests marked slow too"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: hours; runs with --slow only")
    config.addinivalue_line("markers", "later: seconds of processor time; --quick leaves it out (a cell: `#| later`)")


def is_later_file(file: Path) -> bool:
    "Return whether a contributor need not wait for the tests of a file."
    path = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name
    return any(fnmatch(path, pattern) for pattern in LATER)


def is_later(item) -> bool:
    "Return whether a contributor need not wait for a test."
    return bool(item.get_closest_marker("later")) or is_later_file(item.path)


def pytest_ignore_collect(collection_path, config):
    "The quick tests do not even import the other files: peers of the benchmarks and fault cases take seconds a process."
    return True if config.getoption("--quick") and is_later_file(collection_path) else None


def pytest_collection_modifyitems(config, items):
    quick, rest = config.getoption("--quick"), config.getoption("--rest")
    chosen = [item for item in items if not (quick and is_later(item) or rest and not is_later(item))]
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=list(set(items) - set(chosen)))
        items[:] = chosen
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


def pytest_collection_finish(session):
    forget_garbage()


def forget_garbage():
    "Free it, and let later collections pass over what is alive now: the libraries alone cost each a third of a second."
    gc.collect()
    gc.freeze()


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb" and not file_path.name.startswith("_"):
        return Notebook.from_parent(parent, path=file_path)


def skipped_flags(config):
    "The flags that keep a cell from running: `tst_flags`, without `slow` when it is asked for, and `later` with --quick."
    from personal_llm.base.weights import DEFAULT_MODEL, OTHER_ENCODER, find_weights

    needed = dict(smollm2="smollm2", qwen=DEFAULT_MODEL, encoder=OTHER_ENCODER)
    wanted = {flag for flag, name in needed.items() if find_weights(name)}
    wanted |= {"slow"} if config.getoption("--slow") else set()
    return set(get_config(config.rootpath).tst_flags) - wanted | ({"later"} if config.getoption("--quick") else set())


class Cell:
    "One code cell: where it stands, its source, its directives."

    def __init__(self, row, number, file):
        self.number, self.source = number, "".join(row["source"])
        self.outputs, self.printed = row.get("outputs"), None
        self.filename = f"{file} cell {number}"
        self.directives = dict(row.get("metadata", {}).get("nbdev", {}))
        for line in self.source.splitlines():
            found = re.match(r"\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$", line)
            if found:
                self.directives[found[1]] = found[2]
            elif line.strip():
                break

    @property
    def has_code(self):
        lines = [line.strip() for line in self.source.splitlines()]
        return self.directives.get("eval") != "false" and any(line and not line.startswith("#") for line in lines)

    def run(self, namespace):
        "Execute it, and keep what it prints."
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                self.execute(namespace)
        finally:
            self.printed = printed.getvalue()
            print(self.printed, end="")

    def execute(self, namespace):
        "The value of a last expression is shown, as Jupyter does."
        linecache.cache[self.filename] = (len(self.source), None, self.source.splitlines(True), self.filename)
        tree = ast.parse(self.source, self.filename)
        is_shown = isinstance(tree.body[-1], ast.Expr) and not self.source.rstrip().endswith(";")
        last = tree.body.pop() if is_shown else None
        rewrite_asserts(tree, self.source.encode())  # a failed assert shows its values
        exec(compile(tree, self.filename, "exec"), namespace)
        if last:
            show(eval(compile(ast.Expression(last.value), self.filename, "eval"), namespace))
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")  # Jupyter does, too


def show(*values, **options):
    "What `display` is in Jupyter: here the text goes where pytest keeps the output of a test."
    for value in values:
        if value is not None:
            print(repr(value))


class PackageState:
    """The package's registries and methods, as they were before a notebook ran its exported cells: those register and patch
    functions of the notebook's own, which must not stay when its variables are gone.
    """

    def __init__(self):
        from personal_llm.base.core import InputError

        for path in sorted(PACKAGE.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[1] not in ("recipes", "experiments", "_modidx") and parts[-1] not in ("__init__", "lora"):
                with suppress(ImportError, InputError):  # such a module fails in its own tests, or needs an extra
                    importlib.import_module(".".join(parts))
        from personal_llm.buffer.policies import load_policies
        from personal_llm.data.reading import load_formats
        from personal_llm.selection.selection import load_selectors

        for load in (load_policies, load_formats, load_selectors):  # once a process: a registry without them stays so
            load()
        modules = [module for name, module in sys.modules.items() if name.startswith("personal_llm.")]
        values = {id(value): value for module in modules for value in vars(module).values()}.values()
        ours = [v for v in values if isinstance(v, type) and v.__module__.startswith("personal_llm.")]
        self.registries = [(v, v.copy()) for v in values if type(v) in (dict, list)]
        self.methods = [(v, dict(vars(v))) for v in ours]
        apps = [v for v in values if "registered_commands" in getattr(v, "__dict__", {})]  # a command registers itself
        self.commands = [(rows, list(rows)) for app in apps for rows in vars(app).values() if type(rows) is list]

    def restore(self):
        "Put back what a notebook has changed."
        for registry, before in self.registries:
            refill = registry.update if type(registry) is dict else registry.extend
            registry.clear()  # one of them is `__builtins__`: until it is full again, no name can be looked up
            refill(before)
        for rows, before in self.commands:
            rows[:] = before
        for owner, before in self.methods:
            for name in [name for name in vars(owner) if name not in before]:
                delattr(owner, name)
            for name, value in before.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


class Notebook(pytest.File):
    "The sections of one notebook and the variables that they share."

    def collect(self):
        try:
            notebook = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.CollectError(f"{self.path}: not a notebook ({error})") from None
        self.cells, self.sections = [], []
        if is_skipped(notebook["cells"]):
            return []
        titles = Counter()
        file = os.path.relpath(self.path, self.config.rootpath)
        title, fresh = "(before the first heading)", True
        for number, row in enumerate(notebook["cells"], 1):
            if row["cell_type"] == "markdown" and (heading := last_heading("".join(row["source"]))):
                title, fresh = heading, True
            if row["cell_type"] != "code" or not (cell := Cell(row, number, file)).has_code:
                continue
            if fresh:
                titles[title] += 1
                name = title if titles[title] == 1 else f"{title} ({titles[title]})"
                self.sections.append(Section.from_parent(self, name=name, start=len(self.cells)))
                fresh = False
            self.cells.append(cell)
            self.sections[-1].stop = len(self.cells)
            if "later" in cell.directives:
                self.sections[-1].add_marker("later")
        return self.sections

    def setup(self):
        self.patch, self.package = patch.dict(os.environ), PackageState() if PACKAGE.is_dir() else None
        self.patch.start()
        if self.path.parent.name == "tutorials":
            os.environ.pop("PERSONAL_LLM_ENCODER", None)  # with the default encoder, as a reader runs them
        forget_garbage()
        self.module = types.ModuleType("notebook_" + re.sub(r"\W", "_", self.path.stem))  # not __main__
        self.module.display = show
        sys.modules[self.module.__name__] = self.module  # dataclasses and pickle look there
        self.done, self.failed = 0, None

    def teardown(self):
        "Free what the notebook held before the next one starts."
        sys.modules.pop(self.module.__name__, None)
        self.module.__dict__.clear()
        if self.package:
            self.package.restore()
        self.failed = None
        self.patch.stop()
        gc.collect()

    def run_until(self, stop):
        "Run the cells that have not been run, up to `stop`; the first failure ends the notebook."
        flags = skipped_flags(self.config)
        with pytest.MonkeyPatch.context() as monkeypatch, patch.object(sys, "path", [str(self.path.parent), *sys.path]):
            monkeypatch.chdir(self.path.parent)
            while self.done < stop and not self.failed:
                cell = self.cells[self.done]
                try:
                    if not flags & cell.directives.keys():
                        cell.run(self.module.__dict__)
                except (Exception, SystemExit):
                    self.failed = next(s.name for s in self.sections if s.start <= self.done < s.stop)
                    raise
                self.done += 1


def is_skipped(rows: list) -> bool:
    "Return whether a notebook's first cells say that none is executed."
    front = "".join("".join(row["source"]) for row in rows[:2] if row["cell_type"] != "code")
    return bool(re.search(r"^(- )?skip_exec: *true", front, re.MULTILINE | re.IGNORECASE))


class Section(pytest.Item):
    "A heading and its code cells: cells[start:stop] of the notebook."

    def __init__(self, *, start, **options):
        super().__init__(**options)
        self.start = self.stop = start

    def runtest(self):
        if self.parent.failed and self.parent.done < self.stop:
            pytest.fail(f"not run: the section '{self.parent.failed}' above it failed", pytrace=False)
        flags = skipped_flags(self.config)
        found = [flags & cell.directives.keys() for cell in self.parent.cells[self.start : self.stop]]
        if all(found):
            pytest.skip("flagged " + ", ".join(sorted(set().union(*found))))
        self.parent.run_until(self.stop)
        self.compare_outputs()

    def compare_outputs(self):
        "Fail if a cell printed something else than what is saved in the notebook."
        wrong = []
        for cell in self.parent.cells[self.start : self.stop]:
            if None not in (cell.outputs, cell.printed):
                if found := contradiction(cell.outputs, cell.printed, cell.directives.get("varies", "")):
                    wrong.append(f"{cell.filename}\n  {found}")
        if wrong:
            wrong.append("A run contradicts the saved output: re-run the notebook and commit it, or mend the code.")
            pytest.fail("\n".join(wrong), pytrace=False)

    def reportinfo(self):
        return self.path, None, self.name

    def _traceback_filter(self, excinfo):
        "Begin where the cell begins."
        places = [i for i, entry in enumerate(excinfo.traceback) if " cell " in entry.frame.code.raw.co_filename]
        return type(excinfo.traceback)(excinfo.traceback[places[0] :]) if places else excinfo.traceback


def last_heading(markdown):
    "The last heading of a markdown cell, as plain text; empty where there is none."
    text = re.sub(r"(?ms)^\s*(```|~~~).*?^\s*\1", "", markdown)
    heading = re.findall(r"(?m)^#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$", text)[-1:] or [""]
    return re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading[0]).replace("::", ":").strip()
