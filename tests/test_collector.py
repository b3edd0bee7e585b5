"The collector in conftest.py: notebooks become tests, a failure says where it is, sections can be chosen."

import json
from pathlib import Path

import numpy  # noqa: F401 - inside a run of pytester it could be imported only once
import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"


@pytest.fixture
def notebook(pytester):
    "Write a notebook; text cells begin with `#` and a space, or are tuples of other kinds."
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8").replace('pytest_plugins = ["pytester"]', ""))
    pytester.makepyprojecttoml('[tool.nbdev]\ntst_flags = ["notest", "slow"]\n')

    def write(*sources, name="nbs/example.ipynb"):
        kinds = ["markdown" if source.startswith(("# ", "## ")) else "code" for source in sources]
        cells = [dict(cell_type=k, metadata={}, source=s.splitlines(True)) for k, s in zip(kinds, sources)]
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
        return path

    return write


def run(pytester, *arguments):
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_sections_pass_and_share_variables(notebook, pytester):
    notebook(
        "#| default_exp example",
        "# Title\nWords.",
        "x = 1",
        "## Dataclasses",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Pair:\n    a: int\n    b: int",
        "assert Pair(x, 2).b == 2",
        "## Only words",
        "## Same",
        "assert __name__ != '__main__'",
        "## Same",
        "x",
        "## Folder",
        "import os\nfrom pathlib import Path\nassert Path('example.ipynb').exists() and '__file__' not in globals()",
    )
    result = run(pytester, "-v")
    result.assert_outcomes(passed=5)
    names = ("example.ipynb::Title", "::Dataclasses", "::Same", "::Same (2)", "::Folder")
    result.stdout.fnmatch_lines([f"*{name} PASSED*" for name in names])
    assert Path.cwd() == pytester.path


HALF = "def half(n):\n    return n // 0"
FAILING = ["# Title", HALF, "## Halves", "print('before')", "a = 1\nassert half(a) == 0", "## Later", "b = a"]


def test_a_failure_names_notebook_heading_cell_and_line(notebook, pytester):
    notebook(*FAILING)
    result = run(pytester)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            ">   *assert half(a) == 0",
            "nbs/example.ipynb cell 5:2:*",
            ">   *return n // 0",
            "E*ZeroDivisionError*",
            "nbs/example.ipynb cell 2:2:*",
            "*before*",
            "not run: the section 'Halves' above it failed",
            "FAILED nbs/example.ipynb::Halves - ZeroDivisionError*",
        ]
    )


def test_syntax_errors_exits_and_asserts_are_failures(notebook, pytester):
    notebook("# Title", "x = = 1", name="nbs/broken.ipynb")
    notebook("# Title", "raise SystemExit(0)", name="nbs/leaving.ipynb")
    notebook("# Title", "total = 2 + 2", "assert total == 5", name="nbs/wrong.ipynb")
    result = run(pytester)
    result.assert_outcomes(failed=3)
    lines = ["E*broken.ipynb cell 2*", "E*SyntaxError*", "E   SystemExit: 0", ">*assert total == 5", "E*assert 4 == 5"]
    result.stdout.fnmatch_lines(lines)


def test_a_chosen_section_runs_the_cells_above_it(notebook, pytester):
    notebook("# Title", "x = 1", "## Middle", "x += 1", "## End", "assert x == 2")
    run(pytester, "nbs/example.ipynb::End").assert_outcomes(passed=1)
    run(pytester, "-k", "End").assert_outcomes(passed=1, deselected=2)
    run(pytester, "nbs/example.ipynb::End", "nbs/example.ipynb::Title").assert_outcomes(passed=2)


SHOWN_ONLY = "#| eval: false\nraise ValueError"


def test_flags_and_eval_false(notebook, pytester):
    cells = ["# Title", SHOWN_ONLY, "#| notest\nraise ValueError", "x = 1", "## Long", "#| slow\nx = 2"]
    notebook(*cells, "## After", "assert x == 1", "## Shown only", SHOWN_ONLY)
    result = run(pytester, "-rs")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*flagged slow"])
    result = run(pytester, "--slow")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["E*assert 2 == 1"])


def test_notebooks_do_not_see_each_other(notebook, pytester):
    notebook("# Title", "import os\nos.environ['LEFT_BEHIND'] = '1'\nsecret = 1", name="nbs/a.ipynb")
    notebook(
        "# Title", "import os\nassert 'LEFT_BEHIND' not in os.environ and 'secret' not in globals()", name="nbs/b.ipynb"
    )
    run(pytester).assert_outcomes(passed=2)


def test_what_is_no_notebook_is_an_error(notebook, pytester):
    notebook().write_text("{")
    notebook("1 / 0", name="nbs/_draft.ipynb")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*example.ipynb: not a notebook*"])


def test_quick_and_rest_are_all(notebook, pytester):
    "Each test is in exactly one of the two parts; the quick one does not read the other's files."
    notebook("# Title", "x = 1", name="nbs/chapter.ipynb")
    (pytester.path / "nbs" / "tutorials").mkdir()
    (pytester.path / "nbs" / "chapter.ipynb").rename(pytester.path / "nbs" / "tutorials" / "first.ipynb")
    notebook("# Title", "x = 1", "## Heavy", "#| later\nassert x", name="nbs/chapter.ipynb")
    pytester.makepyfile("import pytest\n\ndef test_a(): pass\n\n@pytest.mark.later\ndef test_b(): pass")
    run(pytester, "--quick").assert_outcomes(passed=2, deselected=2)
    run(pytester, "--rest").assert_outcomes(passed=3, deselected=2)
    run(pytester).assert_outcomes(passed=5)


def test_a_saved_output_that_a_run_contradicts(notebook, pytester):
    path = notebook("# Title", "print('kept 3 of 8')", "2 * 0.5", "import time\ntime.time()")
    content = json.loads(path.read_text())
    content["cells"][1]["outputs"] = [dict(output_type="stream", name="stdout", text=["kept 2 of 8\n"])]
    content["cells"][2]["outputs"] = [dict(output_type="execute_result", data={"text/plain": ["1.01"]})]
    path.write_text(json.dumps(content))
    result = run(pytester)
    result.assert_outcomes(failed=1)
    shown = ["*example.ipynb cell 2", "*saved: *kept 2 of 8", "*printed: kept 3 of 8", "*re-run the notebook*"]
    result.stdout.fnmatch_lines(shown)
    assert "cell 3" not in result.stdout.str()


def test_what_a_notebook_registered_leaves_with_it():
    from conftest import PackageState

    from personal_llm.extras.marks import REMOVED
    from personal_llm.selection.selection import SELECTORS

    state = PackageState()
    before = list(REMOVED), dict(SELECTORS)
    REMOVED.append(len)
    SELECTORS["own"] = len
    state.restore()
    assert (REMOVED, SELECTORS) == before
