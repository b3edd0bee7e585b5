"Learning on an idle machine: when it begins, what ends it, and that no step is lost or learned twice."

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from devices import TALK, Fake, fake_tune, start, watch
from typed import fails, found

from personal_llm.device.archive import hold_folder
from personal_llm.device import personalizer
from personal_llm.device.background_training import TrainingStopped
from personal_llm.device.personalizer import load_personalizer
from personal_llm.device.memory import get_state_version
from personal_llm.device.replay import read_state
from personal_llm.runtimes import idle
from personal_llm.runtimes.idle import StopWhenBusy, finetune_folder, finetune_when_idle

FREE = dict(other_load=0.0, celsius=50.0, on_battery=False, free=8.0)
BUSY = [
    (dict(other_load=0.9), "other programs"),
    (dict(celsius=99.0), "99 °C"),
    (dict(on_battery=True), "on battery"),
    (dict(free=0.5), "memory"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A saved personalizer around a fake model."
    monkeypatch.setattr(personalizer, "tune", fake_tune)
    monkeypatch.setattr(Fake, "model", None, raising=False)
    monkeypatch.setattr(idle, "install_stop_hook", lambda inner, stop: SimpleNamespace(remove=lambda: None))
    monkeypatch.setattr(idle, "LOOK_SECONDS", 1e-3)
    monkeypatch.setattr(idle, "IDLE_SECONDS", 0.0)
    me = start(tmp_path)
    watch(me, TALK[:4])
    me.save()
    return tmp_path


def model():
    return Fake()


def test_each_limit_alone_keeps_a_fine_tune_from_beginning():
    for change, words in BUSY:
        assert words in idle.find_obstacle(**FREE | change), change
    assert not idle.find_obstacle(**FREE)
    assert not idle.find_obstacle(**FREE | dict(free=0.1), training=True), "we use the memory ourselves"


def test_the_machine_must_be_idle_without_a_break(folder, monkeypatch):
    "And a clock that jumps a year changes nothing, because measurements are counted."
    clock = iter([0.0] + [k * 1e7 for k in range(10**6)])
    monkeypatch.setattr(idle.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(idle, "IDLE_SECONDS", 3 * idle.LOOK_SECONDS)
    seen, waits = iter([1, 1, 0, 1, 1, 1, 1, 1]), []
    assert finetune_when_idle(folder, model, lambda: FREE if next(seen) else FREE | dict(other_load=1.0), waits.append)
    assert waits == [idle.LOOK_SECONDS] * 7


def test_the_machine_must_be_busy_without_a_break(monkeypatch):
    clock, loads = iter(range(10**6)), iter([1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(idle.time, "monotonic", lambda: next(clock))
    stop = StopWhenBusy(lambda: FREE | dict(other_load=next(loads)))
    assert [stop.is_set() for _ in range(8)] == [False] * 7 + [True]


def test_a_machine_that_is_never_idle_trains_nothing(folder, capsys):
    seen = iter([FREE | BUSY[k % 3][0] for k in range(90)])
    with pytest.raises(StopIteration):
        finetune_when_idle(folder, model, lambda: next(seen))
    assert len(read_state(folder).rounds) == 0
    assert "waiting: on battery" in capsys.readouterr().err


def test_it_learns_once_saves_and_then_has_nothing_to_do(folder):
    done = finetune_when_idle(folder, model, lambda: FREE)
    assert "4 kept" in str(done) and len(read_state(folder).rounds) == 1
    before = get_state_version(folder)
    assert finetune_when_idle(folder, model, lambda: FREE) is None
    assert get_state_version(folder) == before
    me = load_personalizer(folder, model())
    watch(me, TALK[4:6])
    me.save()
    assert finetune_folder(folder, model, threading.Event()) and len(read_state(folder).rounds) == 2


def test_a_busy_machine_ends_it_and_an_idle_one_goes_on(folder, monkeypatch):
    "Load, heat and battery each end the fine-tune; it begins again when they are over."
    monkeypatch.setattr(idle, "BUSY_SECONDS", 0.0)
    for change, _ in BUSY[:3]:
        state, tries = SimpleNamespace(now=FREE), []

        def tune(*given, change=change, state=state, tries=tries, **named):
            tries.append(1)
            if len(tries) == 1:
                idle.time.sleep(2e-3)
                assert not stops[-1].is_set(), "the machine was idle"
                state.now = FREE | change
                idle.time.sleep(2e-3)
                assert stops[-1].is_set(), "nobody stopped it"
                state.now = FREE
                raise TrainingStopped
            return fake_tune(*given, **named)

        stops = []
        watched = lambda out, load, stop, progress: stops.append(stop) or finetune_folder(out, load, stop, progress)
        monkeypatch.setattr(idle, "finetune_folder", watched)
        monkeypatch.setattr(personalizer, "tune", tune)
        me = load_personalizer(folder, model())
        watch(me, TALK[10 + len(me.rounds) :][:3])
        me.save()
        assert finetune_when_idle(folder, model, lambda state=state: state.now)
        assert len(tries) == 2


def test_a_measurement_that_fails_ends_the_fine_tune_with_its_error(folder, monkeypatch):
    "Without measurements no one would end it, so it must not go on."
    states, stops = iter([FREE]), []

    def measure():
        if (state := next(states, None)) is None:
            raise OSError("no such sensor")
        return state

    def tune(*given, **named):
        idle.time.sleep(2e-3)
        stops[-1].is_set()
        raise AssertionError("it went on, and nobody measured")

    watched = lambda out, load, stop, progress: stops.append(stop) or finetune_folder(out, load, stop, progress)
    monkeypatch.setattr(idle, "finetune_folder", watched)
    monkeypatch.setattr(personalizer, "tune", tune)
    with pytest.raises(OSError, match="no such sensor"):
        finetune_when_idle(folder, model, measure)
    assert len(stops) == 1


def test_an_open_chat_is_an_obstacle(folder, capsys):
    left = iter([FREE] * 5)
    with hold_folder(folder), pytest.raises(StopIteration):
        finetune_when_idle(folder, model, lambda: next(left))
    assert "a chat or a run is at work" in capsys.readouterr().err and len(read_state(folder).rounds) == 0


def test_what_the_model_said_alone_is_nothing_to_learn(folder, tmp_path):
    me = start(tmp_path / "alone")
    watch(me, [d.derive(origin="model", parents=()) for d in TALK[:3]])
    me.save()
    assert finetune_folder(tmp_path / "alone", model, threading.Event()) is None
    me = load_personalizer(tmp_path / "alone", model())
    watch(me, [TALK[3]])
    me.save()
    assert finetune_folder(tmp_path / "alone", model, threading.Event())


def test_the_command(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("personal_llm.base.models.load_model", lambda name, **given: model())
    assert "no saved state" in fails(capsys, "learn", "--out", tmp_path / "elsewhere")
    result = found(capsys, "learn", "--out", folder, "--model", "pocket")
    assert result["learned"] and result["start_loss"] == 2.0 and Path(result["adapter"]).is_dir()
    assert found(capsys, "learn", "--out", folder, "--model", "pocket") == dict(learned=False)


@pytest.mark.slow
def test_stopped_and_killed_it_ends_with_the_weights_of_one_piece(tmp_path):
    "Killed with -9 at a checkpoint, the next call ends the fine-tune; the bytes are the same."
    from personal_llm.base.adapters import WEIGHTS_FILE
    from personal_llm.base.core import Dialogue
    from personal_llm.base.models import load_model
    from personal_llm.buffer.buffer import Buffer
    from personal_llm.device.personalizer import Personalizer
    from personal_llm.tuning.config import TuningConfig

    real, weights = load_model("pocket"), []
    for name in ("whole", "killed"):
        config = TuningConfig(steps=18)
        me = Personalizer(real, Buffer(8), folder=tmp_path / name, synthetic=1, config=config, replay=0)
        me.observe_all([Dialogue(f"My {p} hurts.", f"Cool the {p}.", origin="annotated") for p in ("knee", "toe")])
        me.save()
        command = [sys.executable, "-m", "personal_llm.app.cli", "learn", "--out", str(tmp_path / name)]
        if name == "killed":
            child = subprocess.Popen([*command, "--model", "pocket", "--quiet"])
            while child.poll() is None and not [*(tmp_path / name).rglob("checkpoint-*")]:
                pass
            assert child.poll() is None, "it ended before it could be killed"
            child.kill()
            child.wait()
            assert len(read_state(tmp_path / name).rounds) == 0
        subprocess.run([*command, "--model", "pocket", "--quiet"], check=True)
        weights.append((load_personalizer(tmp_path / name, real).adapter.path / WEIGHTS_FILE).read_bytes())
    assert weights[0] == weights[1]


def group_of_session():
    "What the system says of the group that this session shares a core with; empty where it has none, or has them off."
    group = Path("/proc/self/autogroup")
    return group.read_text() if group.exists() else ""


@pytest.mark.skipif(not group_of_session().strip(), reason="sessions share no core here")
def test_learning_makes_its_session_give_way_and_no_other():
    "Where sessions share a core out, a polite process in a session of its own would still take half of it."
    program = """import os
from personal_llm.runtimes.idle import lower_priority
said = lambda: print(open("/proc/self/autogroup").read().split()[-1])
lower_priority(), said(), os.setsid(), lower_priority(), said()"""
    before = group_of_session()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.split() == [before.split()[-1], "19"], done.stderr
    assert group_of_session() == before
