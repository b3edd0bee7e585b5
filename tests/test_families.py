"`check` and a fine-tune agree for every family: both work, or both refuse in one line."

from dataclasses import replace

import numpy as np
import pytest
from families import FAMILIES, family
from test_tuning import TALK

from personal_llm.app.chat import check_reply
from personal_llm.app.check import check_model
from personal_llm.base.core import InputError
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import check_tuning_step, finetune

SLOW = ("phi4-multimodal",)  # it has towers for pictures and sound
QUICK = ("qwen3", "gemma3", "phi3", "gpt-neox", "gpt-oss", "mamba")  # one of each kind; the others run with --rest
BRIEF = TuningConfig(rank=2, steps=2, batch_size=4, max_length=64, checks=1)


def mark(name: str):
    "A family with its marks."
    marks = [pytest.mark.slow] * (name in SLOW) + [pytest.mark.later] * (name not in QUICK)
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", map(mark, FAMILIES))
def test_check_and_finetune_agree(name, tmp_path):
    "With adapters in all layers, and in the last two."
    configs = {layers: replace(BRIEF, layers=layers) for layers in (0, 2)}
    try:
        model = family(name)
    except InputError as error:
        assert "mamba" in name and "\n" not in str(error)
        return
    steps = {f"{n} layers": lambda model, n=n: check_tuning_step(model, configs[n]) for n in configs}
    report = check_model(model, steps | {"reply": check_reply})
    before = model.nll(TALK[:2])
    row = {name: holds for name, holds, _ in report.rows}
    for layers, config in configs.items():
        try:
            finetune(model, TALK[:6], config, out=tmp_path / str(layers), progress=False)
            works = True
        except InputError as error:
            works = False
            assert "\n" not in str(error)
        assert row[f"{layers} layers"] == works, f"\n{report}"
        assert works == ("mamba" not in name)
        assert np.allclose(model.nll(TALK[:2]), before, rtol=1e-4), "the model is what it was"
