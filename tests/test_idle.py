"Learning on an idle machine: when it begins, what ends it, and what it leaves."

import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.archive import hold_folder
from personal_llm.device.personalizer import Personalizer
from personal_llm.device import idle
from personal_llm.device.idle import finetune_folder, finetune_when_idle

FREE = dict(other_load=0.0, on_battery=False, free=8.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A memory with a correction."
    monkeypatch.setattr(idle, "LOOK_SECONDS", 1e-3)
    monkeypatch.setattr(idle, "IDLE_SECONDS", 0.0)
    me = Personalizer(load_model("pocket"), Buffer(4, "fifo"), folder=tmp_path)
    me.observe_all([Dialogue(f"My {part} hurts.", "Cool it.") for part in ("knee", "toe")], progress=False)
    me.react(me.buffer.dialogues[0], "better", "Dear friend, rest.")
    me.close()
    return tmp_path


def model():
    return load_model("pocket")


def test_a_chat_in_the_folder_is_an_obstacle(folder, capsys):
    lock = hold_folder(folder)
    seen = iter([FREE] * 3)
    with pytest.raises(StopIteration):
        finetune_when_idle(folder, model, lambda: next(seen))
    lock.release()
    assert capsys.readouterr().err.count("a chat or a run is at work") == 1


def test_a_folder_without_a_memory_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no memory here"):
        finetune_folder(tmp_path / "nowhere", model)
    assert not (tmp_path / "nowhere").exists()
