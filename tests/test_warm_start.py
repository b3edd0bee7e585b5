"One call explains and selects; a library gets its plain pLLM."

import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.data.reading import load_samples
from personal_llm.selection.library import Library
from personal_llm.selection.warm_start import add_plain_pllm, load_plain_dialogues, warm_start
from personal_llm.tuning.config import TuningConfig


def test_a_warm_start_is_lower_than_the_base_and_tells_no_word_of_the_user():
    model, library = load_model("pocket"), Library("pocket")
    rows = [row for row in load_samples("openstax_anatomy_physiology") if len(row["response"]) < 160]
    dialogues = [Dialogue(r["prompt"], f"In short: {r['response']} Take care, Ana") for r in rows[:20]]
    warm = warm_start(model, library, dialogues[:12])
    assert warm.ranking.start and warm.adapter == library[warm.ranking.start].adapter
    with model.use_adapter(warm.adapter):
        after = model.nll(dialogues[12:])[:, 0].sum()
    assert after < model.nll(dialogues[12:])[:, 0].sum()
    assert "Ana" not in str(warm.to_dict())
    assert warm.cost.tokens == warm.explanation.cost.tokens + warm.ranking.cost.tokens > 0
    with pytest.raises(InputError, match="give 2 more"):
        warm_start(model, library, dialogues[:6])


def test_a_library_without_a_space_gets_a_plain_pllm(tmp_path):
    model = load_model("pocket")
    library = Library.create(tmp_path / "own", base=model.base)
    with pytest.raises(InputError, match="plain dialogues: 3"):
        add_plain_pllm(library, model, load_plain_dialogues()[:3])
    assert add_plain_pllm(library, model, load_plain_dialogues()[:16], TuningConfig(steps=1, batch_size=2)) is None
    plain = library["plain"]
    assert plain.card["samples"] == 16 and plain.explanation.space is None and library.space is None
