"""The values that a person looks at in a cell show a sentence, a short table, and no HTML of somebody's text."""

import json
import re

import numpy as np
import pytest

from personal_llm import Buffer, Dialogue, Library, Personalizer, TuningConfig, evaluate, explain
from personal_llm import finetune, load_samples, paired_bootstrap, read_dialogues, score
from personal_llm import select, synthesize
from personal_llm.base.display import MAX_ROWS

pytestmark = pytest.mark.later  # a fine-tune, an explanation and a choice of a pLLM, for their tables
HOSTILE = "<script>alert('x')</script> \x1b[31m"


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    rows = [dict(prompt=row["prompt"], response=row["response"]) for row in load_samples()[:30]]
    rows[0]["prompt"] = HOSTILE + rows[0]["prompt"]
    file = tmp_path_factory.mktemp("display") / "chats.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_dialogues(file)


@pytest.fixture(scope="module")
def values(model, dialogues, tmp_path_factory):
    buffer = Buffer(8)
    few = dialogues[:10]
    scored = score(model, few)
    for candidate in scored:
        buffer.add(candidate)
    config = TuningConfig(steps=2)
    adapter = finetune(model, few, config, out=tmp_path_factory.mktemp("adapter") / "a", progress=False)
    library = Library("pocket")
    answers = [Dialogue(d.prompt, d.response, origin="user") for d in few]
    explanation = explain(model, answers, library.space)
    me = Personalizer(model)
    me.observe(dialogues[0])
    me.react(dialogues[0], "better", HOSTILE)
    return {
        "dialogues": dialogues,
        "dialogue": dialogues[0],
        "scored": scored[0],
        "buffer": buffer,
        "synthesis": synthesize(model, dialogues[:2], num_each=1),
        "adapter": adapter,
        "evaluation": evaluate(model, dialogues[:4], max_tokens=8),
        "comparison": paired_bootstrap(np.array([0.1, 0.2, 0.3])),
        "explanation": explanation,
        "library": library,
        "pllm": library[library.names[0]],
        "space": library.space,
        "ranking": select(library, explanation, model=model, dialogues=answers),
        "model": model,
        "me": me,
    }


def test_fifteen_values_answer_in_text_and_html(values):
    for name, value in values.items():
        text = repr(value)
        assert 0 < len(text.splitlines()) <= 40 and len(text) < 4000, name
        assert not re.search(r"object at 0x|array\(|=\(\)|\x1b", text), (name, text[:300])
        if hasattr(value, "_repr_html_"):
            html = value._repr_html_()
            assert "<script" not in html and "\x1b" not in html and len(html) < 20_000, name
    without_html = [name for name, value in values.items() if not hasattr(value, "_repr_html_")]
    assert without_html == ["model"]


def test_a_text_that_would_run_stands_in_the_table_as_letters(values):
    assert "&lt;script&gt;" in values["dialogues"]._repr_html_()
    assert "&lt;script&gt;" in values["dialogue"]._repr_html_()
    assert values["dialogues"]._repr_html_().count("<tr>") == MAX_ROWS + 1


def test_all_rows_go_to_pandas(values):
    pytest.importorskip("pandas")
    assert len(values["dialogues"].to_pandas()) == 30
    assert list(values["buffer"].to_pandas().arrival) == values["buffer"].arrivals
    assert {"metric", "mean"} <= {*values["evaluation"].to_pandas()}
    assert list(values["ranking"].to_pandas().pLLM) == list(values["ranking"].names)
    assert len(values["library"].to_pandas()) == len(values["library"])


def test_a_plot_describes_itself(values):
    image = values["ranking"].plot()
    assert image.data.startswith(b"\x89PNG") and len(image.alt) > 30
