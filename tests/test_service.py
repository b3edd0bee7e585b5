"Background training: when it begins and ends, what survives a kill, and what no file of it says."

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from devices import TALK, fake_tune, start, watch
from typed import fails, found, invoke

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import lock_folder, make_folder, write_json
from personal_llm.device import personalizer
from personal_llm.device.memory import BACKGROUND_FOLDER, claim_folder
from personal_llm.device.memory import get_state_version
from personal_llm.device.replay import read_state
from personal_llm.runtimes import resumable_training, service
from personal_llm.runtimes.service import (
    COMMAND_FILE,
    MODEL_SETTINGS_FILE,
    POLICY_FILE,
    SERVICE_FOLDER,
    STATUS_FILE,
    ServiceLoop,
    is_service_alive,
    service_status,
)
from personal_llm.runtimes.resumable_training import IdlePolicy, MachineState, read_policy, write_policy
from personal_llm.runtimes.resumable_training import EXIT_BUSY, EXIT_DONE, EXIT_FAILED, EXIT_NOTHING_NEW, EXIT_STOPPED

FREE = MachineState(0.0, 50.0, True, 8.0)
ALWAYS = dict(busiest=1.0, mains=False, memory=0.0, quiet=0.0, rest=0.0, look=0.02, hottest=200.0, nice=0)
NEVER = ALWAYS | dict(memory=10_000.0)  # no machine has so much


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A saved personalizer around a fake model, and a service's files."
    monkeypatch.setattr(personalizer, "tune", fake_tune)
    me = start(tmp_path)
    watch(me, TALK[:4])
    me.save()
    home = make_folder(tmp_path / SERVICE_FOLDER)
    write_json(home / MODEL_SETTINGS_FILE, dict(model="fake"))
    return tmp_path


def keeper_of(folder, begin, senses=FREE, **rules):
    "A keeper whose clock and senses are fields that a test sets."
    write_policy(folder / SERVICE_FOLDER / POLICY_FILE, replace(IdlePolicy(), **dict(quiet=5.0, rest=5.0) | rules))
    keeper = ServiceLoop(folder, begin=begin, clock=lambda: keeper.now)
    keeper.now, keeper.senses = 0.0, senses
    keeper.machine = type("Machine", (), dict(look=lambda self, process: keeper.senses))()
    return keeper


def looks(keeper, count, **senses):
    keeper.senses = replace(keeper.senses, **senses)
    for _ in range(count):
        keeper.now += 1
        keeper.look()
    return keeper.row["state"], keeper.row["why"]


def child(program):
    "Begin real processes that run a program instead of a slice."

    def begin(out, home, policy):
        begin.made.append(
            subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        return begin.made[-1]

    begin.made = []
    return begin


OBEDIENT = f"import sys; sys.stdin.read(); sys.exit({EXIT_STOPPED})"  # ends when its life line closes


# ---- the policy


def test_a_policy_survives_its_file(tmp_path):
    for policy in (IdlePolicy(), IdlePolicy(busiest=0.5, mains=False, threads=4, nice=3)):
        write_policy(tmp_path / "p", policy)
        assert read_policy(tmp_path / "p") == policy


@pytest.mark.parametrize(
    "line, said",
    [
        ("busiest = 2", "busiest is 2"),
        ("mains = 1", "mains is 1"),
        ("hurry = 1", "unknown rule"),
        ("x", "no rule"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    (tmp_path / "p").write_text(f"# mine\nrest = 1\n{line}\n")
    with pytest.raises(InputError, match=f"line 3.*{said}"):
        read_policy(tmp_path / "p")


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(other_load=0.9), "other programs"),
        (dict(celsius=99.0), "99 °C"),
        (dict(plugged=False), "on battery"),
        (dict(free=0.5), "memory"),
    ],
)
def test_each_sense_alone_keeps_a_slice_from_beginning(folder, bad, words):
    begin = child(OBEDIENT)
    keeper = keeper_of(folder, begin)
    state, why = looks(keeper, 60, **bad)
    assert state == "waiting" and words in why and begin.made == []
    assert looks(keeper, 5, **vars(FREE))[0] == "waiting", "it must hold for a while"
    assert looks(keeper, 2)[0] == "training" and len(begin.made) == 1
    keeper.end_slice()


# ---- slices


def test_battery_and_heat_end_a_slice_at_once_and_load_after_a_while(folder):
    begin = child(OBEDIENT)
    keeper = keeper_of(folder, begin, patience=3.0)
    for bad, after in ((dict(plugged=False), 1), (dict(celsius=99.0), 1), (dict(other_load=1.0), 4)):
        while not keeper.slice:
            looks(keeper, 1, **vars(FREE))
        if after > 1:
            assert looks(keeper, after - 1, **bad)[0] == "training"
        assert looks(keeper, 1, **bad)[0] == "waiting" and not keeper.slice
    assert [one.returncode for one in begin.made] == [EXIT_STOPPED] * 3, "each was asked, none was killed"


def test_a_slice_that_does_not_listen_is_killed(folder, monkeypatch):
    monkeypatch.setattr(service, "SHUTDOWN_SECONDS", 0.1)
    keeper = keeper_of(folder, child("import time; time.sleep(60)"))
    looks(keeper, 7)
    looks(keeper, 1, plugged=False)
    assert keeper.slice is None and keeper.row["state"] == "waiting"


def test_a_slice_ends_after_its_time_at_the_next_checkpoint(folder):
    keeper = keeper_of(folder, child(OBEDIENT), slice=10.0)
    looks(keeper, 7)
    looks(keeper, 30)
    assert keeper.slice, "without a checkpoint its work would be lost"
    make_folder(folder / BACKGROUND_FOLDER / "checkpoints" / "run" / "checkpoint-13")
    assert looks(keeper, 1) == ("waiting", "between two slices") and service_status(folder)["step"] == 13


def test_failures_rest_longer_and_longer(folder):
    begin = child("import os; os.kill(os.getpid(), 9)")
    keeper, begun = keeper_of(folder, begin, quiet=0.0, rest=10.0), []
    for second in range(200):
        before = len(begin.made)
        looks(keeper, 1)
        begun += [second] * (len(begin.made) - before)
        if keeper.slice:
            keeper.slice.wait()
    gaps = [b - a for a, b in zip(begun, begun[1:])]
    assert gaps == sorted(gaps) and gaps[0] >= 20 and gaps[-1] >= 2 * gaps[0] - 2, gaps
    assert keeper.row["failures"] >= len(begun) - 1


@pytest.mark.parametrize("wanted, state", [("pause", "paused"), ("stop", "stopped")])
def test_pause_and_stop_end_the_slice(folder, wanted, state):
    begin = child(OBEDIENT)
    keeper = keeper_of(folder, begin)
    looks(keeper, 7)
    write_json(folder / SERVICE_FOLDER / COMMAND_FILE, dict(wish=wanted))
    assert looks(keeper, 1)[0] == state and begin.made[0].poll() == EXIT_STOPPED
    assert len(read_state(folder).rounds) == 0, "the old state is whole"


def test_what_was_learned_is_not_learned_again(folder):
    begin = child(f'import sys; print(\'{{"line": "a round"}}\'); sys.exit({EXIT_DONE})')
    keeper = keeper_of(folder, begin)
    while not keeper.slice:
        looks(keeper, 1)
    keeper.slice.wait()
    assert looks(keeper, 100) == ("waiting", "nothing new to learn") and keeper.row["last"] == "a round"
    assert len(begin.made) == 1
    me = personalizer.load_personalizer(folder, start().model)
    watch(me, TALK[4:6])
    me.save()
    assert looks(keeper, 7)[0] == "training"
    keeper.end_slice()


def test_a_service_ends_with_its_folder(folder):
    "Somebody deleted the folder: the service ends its slice and makes no folder anew."
    begin = child(OBEDIENT)
    keeper = keeper_of(folder, begin)
    looks(keeper, 7)
    shutil.rmtree(folder)
    assert not keeper.look() and begin.made[0].poll() == EXIT_STOPPED and not folder.exists()


@pytest.mark.parametrize("damaged", ["{", "[]", "null", '{"slices": "many"}', '{"failures": null, "state": 5}'])
def test_a_damaged_status_counts_as_none(folder, damaged):
    (folder / SERVICE_FOLDER / STATUS_FILE).write_text(damaged)
    assert service_status(folder)["slices"] == 0
    keeper = keeper_of(folder, child(OBEDIENT))
    assert looks(keeper, 7)[0] == "training" and keeper.row["slices"] == 1
    keeper.end_slice()


# ---- a round in pieces, with a fake model


def loaded(folder, monkeypatch):
    monkeypatch.setattr("personal_llm.base.models.load_model", lambda name: start().model)
    hook = SimpleNamespace(remove=lambda: None)
    monkeypatch.setattr("personal_llm.device.background_training.install_stop_hook", lambda inner, stop: hook)


def test_a_slice_learns_saves_and_then_has_nothing_to_do(folder, monkeypatch):
    loaded(folder, monkeypatch)
    code, line = resumable_training.train_slice(folder, dict(model="fake"), None)
    assert code == EXIT_DONE and "4 kept" in line and len(read_state(folder).rounds) == 1
    assert not (folder / BACKGROUND_FOLDER).exists()
    before = get_state_version(folder)
    assert resumable_training.train_slice(folder, dict(model="fake"), None) == (EXIT_NOTHING_NEW, "")
    assert get_state_version(folder) == before


def test_a_folder_that_is_held_is_left_alone(folder):
    with lock_folder(folder):
        assert resumable_training.train_slice(folder, dict(model="fake"), None)[0] == EXIT_BUSY
    settings = '{"model": "fake"}'
    done = subprocess.run(
        [sys.executable, "-m", resumable_training.__name__, str(folder / "none"), settings, "0"], capture_output=True
    )
    assert done.returncode == EXIT_FAILED and b"no saved state here" in done.stdout and not (folder / "none").exists()


def test_a_round_that_was_stopped_goes_on_with_the_same_synthetic_dialogues(folder, monkeypatch):
    from personal_llm.device.background_training import TrainingStopped

    loaded(folder, monkeypatch)

    def stops(*given, **named):
        raise TrainingStopped

    with monkeypatch.context() as patch:
        patch.setattr(personalizer, "tune", stops)
        assert resumable_training.train_slice(folder, dict(model="fake"), None)[0] == EXIT_STOPPED
    assert (
        len(read_state(folder).rounds) == 0
        and (folder / BACKGROUND_FOLDER / resumable_training.SYNTHESIS_FILE).is_file()
    )
    with monkeypatch.context() as patch:
        patch.setattr("personal_llm.buffer.synthesis.synthesize", stops)
        assert resumable_training.train_slice(folder, dict(model="fake"), None)[0] == EXIT_DONE


def test_what_a_killed_slice_had_half_written_does_not_move_to_the_adapter(folder, monkeypatch):
    loaded(folder, monkeypatch)
    claim_folder(folder, folder / BACKGROUND_FOLDER)
    (folder / BACKGROUND_FOLDER / f".{resumable_training.SYNTHESIS_FILE}.77.tmp").write_text("answer 2")
    assert resumable_training.train_slice(folder, dict(model="fake"), None)[0] == EXIT_DONE
    assert [p.name for p in folder.rglob(".*.tmp")] == []


def test_forgetting_reaches_a_round_that_is_going_on(folder):
    from personal_llm.device.forgetting import forget_folder

    claim_folder(folder, folder / BACKGROUND_FOLDER)
    (folder / BACKGROUND_FOLDER / resumable_training.SYNTHESIS_FILE).write_text("answer 2")
    forget_folder(folder, text="answer 2")
    assert not (folder / BACKGROUND_FOLDER).exists()


def test_what_the_model_said_alone_is_nothing_to_learn(tmp_path):
    me = start(tmp_path)
    watch(me, [d.derive(origin="model", parents=()) for d in TALK[:3]])
    assert resumable_training.select_training_dialogues(me) == []
    watch(me, [TALK[3]])
    assert len(resumable_training.select_training_dialogues(me)) == 4


# ---- the process


@pytest.fixture
def served(folder):
    "A real service under a policy that never trains."
    write_policy(folder / SERVICE_FOLDER / POLICY_FILE, replace(IdlePolicy(), **NEVER))
    yield folder
    if is_service_alive(folder / SERVICE_FOLDER):
        service.stop_service(folder)


def test_start_twice_kill_start_pause_start_stop(served, capsys):
    begun = service.start_service(served, model="fake")
    assert begun["alive"] and begun["state"] == "waiting"
    with pytest.raises(InputError, match="a service is at work here"):
        service.start_service(served, model="fake")

    os.kill(begun["pid"], 9)
    while is_service_alive(served / SERVICE_FOLDER):
        time.sleep(0.01)
    dead = found(capsys, "service", "status", "--out", served)
    assert not dead["alive"] and dead["state"] == "dead" and "start goes on" in dead["why"]
    assert "no service is at work here" in fails(capsys, "service", "stop", "--out", served)

    assert service.start_service(served, model="fake")["pid"] != begun["pid"]
    assert found(capsys, "service", "pause", "--out", served)["state"] == "paused"
    assert service.start_service(served, model="fake")["alive"], "start goes on after a pause"
    stopped = found(capsys, "service", "stop", "--out", served)
    assert stopped["state"] == "stopped" and not stopped["alive"]
    assert read_state(served).buffer.seen == 4
    shown = invoke(capsys, "service", "status", "--out", served)[1]
    assert shown.startswith("service    stopped")


def test_no_file_of_a_service_says_a_word_of_the_talk(served):
    service.start_service(served, model="fake")
    service.stop_service(served)
    said = b"\n".join(one.read_bytes() for one in (served / SERVICE_FOLDER).iterdir())
    assert not any(d.response.encode() in said or d.prompt.encode() in said for d in TALK)
    assert all(one.stat().st_mode & 0o077 == 0 for one in (served / SERVICE_FOLDER).glob("*.*"))


def test_what_cannot_be_started(tmp_path, folder, capsys):
    assert "no saved state" in fails(capsys, "service", "start", "--out", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert "no service was started here" in fails(capsys, "service", "status", "--out", tmp_path / "elsewhere")
    assert "saved with base fake, base" in fails(capsys, "service", "start", "--out", folder, "--model", "pocket")
    (folder / SERVICE_FOLDER / POLICY_FILE).write_text("rest = soon\n")
    with pytest.raises(InputError, match="line 1"):
        service.start_service(folder, model="fake")


SLICE = """
import threading
from personal_llm.runtimes.resumable_training import watch_stdin
stop = threading.Event()
watch_stdin(stop)
print("ready", flush=True)
print("stopped" if stop.wait(60) else "alone", flush=True)
"""
KEEPER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(60)
"""


def test_a_slice_stops_when_its_keeper_is_killed():
    "The system closes the pipe between them, and the next forward pass of the slice raises."
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, SLICE], stdout=subprocess.PIPE, text=True)
    assert keeper.stdout.readline() == "ready\n"
    keeper.kill()
    assert keeper.stdout.read() == "stopped\n"
    keeper.wait()


# ---- real slices


@pytest.mark.slow
def test_killed_in_a_slice_it_goes_on_and_ends_with_the_weights_of_one_piece(tmp_path):
    "Keeper and slice are killed with -9 at a checkpoint; the next service ends the round; the bytes are the same."
    from personal_llm.base.adapters import WEIGHTS_FILE
    from personal_llm.base.models import load_model
    from personal_llm.device.personalizer import Personalizer, load_personalizer
    from personal_llm.buffer.buffer import Buffer
    from personal_llm.tuning.config import TuningConfig

    model, weights = load_model("pocket"), []
    for name in ("whole", "killed"):
        config = TuningConfig(steps=18)
        me = Personalizer(model, Buffer(8), folder=tmp_path / name, synthetic=1, config=config, replay=0)
        me.observe_all([Dialogue(f"My {p} hurts.", f"Cool the {p}.", origin="annotated") for p in ("knee", "toe")])
        me.save()
        home = make_folder(tmp_path / name / SERVICE_FOLDER)
        write_policy(home / POLICY_FILE, replace(IdlePolicy(), **ALWAYS))
        begun = service.start_service(tmp_path / name, model="pocket")
        if name == "killed":
            while service_status(tmp_path / name)["step"] < 3:
                time.sleep(0.02)
            os.kill(begun["pid"], 9)
            while is_service_alive(home):
                time.sleep(0.02)
            assert service_status(tmp_path / name)["state"] == "dead"
            assert len(read_state(tmp_path / name).rounds) == 0
            service.start_service(tmp_path / name, model="pocket")
        while service_status(tmp_path / name)["rounds"] < 1:
            assert service_status(tmp_path / name)["alive"]
            time.sleep(0.05)
        service.stop_service(tmp_path / name)
        weights.append((load_personalizer(tmp_path / name, model).adapter.path / WEIGHTS_FILE).read_bytes())
    assert weights[0] == weights[1]


def group_of_session():
    "What the system says of the group that this session shares a core with; empty where it has none, or has them off."
    group = Path("/proc/self/autogroup")
    return group.read_text() if group.exists() else ""


@pytest.mark.skipif(not group_of_session().strip(), reason="sessions share no core here")
def test_a_slice_makes_its_session_give_way_and_no_other():
    "Where sessions share a core out, a polite process in a session of its own would still take half of it."
    program = """import os
from personal_llm.runtimes.resumable_training import lower_priority
said = lambda: print(open("/proc/self/autogroup").read().split()[-1])
lower_priority(19), said(), os.setsid(), lower_priority(19), said()"""
    before = group_of_session()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [before.split()[-1], "19"], done.stderr
    assert group_of_session() == before
