"""The server under SIGKILL, and with several clients for minutes: what was acknowledged and lost? Run by hand.

    python tests/served_load.py kills smollm2 20      kill it 20 times while it replies, stores reactions and learns
    python tests/served_load.py soak smollm2 5 600    five clients for 600 seconds

The output is a JSON object. A turn or reaction is acknowledged when its answer is 200 and says that it is stored.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 300


class Served:
    "The command `serve` in a process of its own."

    def __init__(self, folder: Path, model: str):
        command = [sys.executable, "-m", "personal_llm.app.cli", "serve", "--out", str(folder / "me"), "--port", "0"]
        settings = os.environ | dict(XDG_CONFIG_HOME=str(folder / "config"), XDG_DATA_HOME=str(folder / "data"))
        settings |= dict(PYTHONPATH=str(ROOT), TMPDIR=str(folder))
        command += ["--json", "--quiet", "--model", model, "--learn-every", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings)
        link = json.loads(self.process.stdout.readline())
        self.port, self.token = int(link["address"].rpartition(":")[2]), link["token"]

    def ask(self, method: str, path: str, body=None) -> tuple:  # (status, text)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_SECONDS)
        content = body if body is None else json.dumps(body).encode()
        connection.request(method, path, content, {"Authorization": f"Bearer {self.token}"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def measure_memory(self) -> float:  # MB
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def end(self, number) -> None:
        self.process.send_signal(number)
        self.process.wait(READY_SECONDS)


class Client:
    "Talks, corrects and approves; remembers what the server acknowledged."

    def __init__(self, name: str, served: Served, turns: list, reactions: list):
        self.name, self.served, self.turns, self.reactions = name, served, turns, reactions
        self.random, self.errors, self.num_requests, self.stopped = random.Random(name), [], 0, False

    def act(self, number: int) -> None:
        "Write a message of a number that no other has, and react to a reply."
        prompt = f"{self.name}-{number}: how do I plan day {number}?"
        self.num_requests += 1
        status, text = self.served.ask("POST", "/personal/chat", dict(text=prompt))
        last = json.loads(text.strip().rpartition("data: ")[2]) if status == 200 else dict(error=text[:200])
        if status != 200 or "error" in last or not last.get("id"):
            self.errors.append((status, str(last)[:200]))
            return
        if last.get("unsaved"):
            return
        self.turns.append(prompt)
        code = self.random.randrange(10**8)  # no model guesses it: words that equal the reply would be an approval
        better = f"Dear friend, day {code} begins with tea. Warmly, A." if self.random.random() < 0.7 else ""
        self.num_requests += 1
        body = dict(id=last["id"], kind="better" if better else "thumb_up", better=better)
        status, text = self.served.ask("POST", "/personal/feedback", body)
        if status == 200:
            self.reactions.append((prompt, body["kind"], better))
        else:
            self.errors.append((status, text[:200]))

    def run(self, end: float) -> None:
        number = 0
        while time.monotonic() < end and not self.stopped:
            number += 1
            with_error = len(self.errors)
            try:
                self.act(number)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.errors.append((type(error).__name__, str(error)[:100]))
            if len(self.errors) > with_error:
                time.sleep(0.2)


def count_lost(folder: Path, turns: list, reactions: list) -> dict:
    "Look in the stored memory for everything that was acknowledged."
    with contextlib.closing(sqlite3.connect(folder / "me" / "memory.db")) as store:
        rows = dict(store.execute("SELECT prompt, id FROM dialogues"))
        events = store.execute("SELECT dialogue, content FROM events WHERE kind = 'reacted'").fetchall()
    known = {(dialogue, facts["kind"], facts["text"]) for dialogue, facts in ((d, json.loads(c)) for d, c in events)}
    lost = [prompt for prompt in turns if prompt not in rows]
    lost_reactions = [row for row in reactions if (rows.get(row[0]), row[1], row[2]) not in known]
    return dict(turns=len(turns), lost_turns=len(lost), reactions=len(reactions), lost_reactions=len(lost_reactions))


def measure_kills(model: str, count: int) -> dict:
    "Kill the server at random moments, the half of them during a fine-tune; start it again each time."
    turns, reactions, killed, left = [], [], dict(learning=0, replying=0), 0
    with tempfile.TemporaryDirectory(prefix="served-kills-") as place:
        folder, random_moments = Path(place), random.Random(0)
        for number in range(count):
            served = Served(folder, model)
            client = Client(f"k{number}", served, turns, reactions)
            thread = threading.Thread(target=client.run, args=(time.monotonic() + READY_SECONDS,), daemon=True)
            before = len(reactions)
            thread.start()
            while len(reactions) < before + 1 and thread.is_alive():
                time.sleep(0.05)
            if number % 2:
                served.ask("POST", "/personal/learn", {})
            time.sleep(random_moments.uniform(0.2, 8))
            is_learning = json.loads(served.ask("GET", "/personal/status")[1])["is_learning"]
            killed["learning" if is_learning else "replying"] += 1
            served.end(signal.SIGKILL)
            client.stopped = True
            thread.join()
        served = Served(folder, model)
        status = json.loads(served.ask("GET", "/personal/status")[1])
        served.ask("POST", "/personal/chat", dict(text="The last one."))
        served.end(signal.SIGINT)
        left = sum(path.name.startswith("merge-") for path in folder.iterdir())
        lost = count_lost(folder, turns, reactions)
        left_folders = [path.name for path in (folder / "me").iterdir() if path.is_dir()]
    return dict(kills=count, **killed, **lost, left_merges=left, left_folders=left_folders, seen=status["seen"])


def measure_soak(model: str, num_clients: int, seconds: float) -> dict:
    "Let clients talk and react for some time, and learn twice; compare the memory after the first fine-tune and later."
    turns, reactions, sizes = [], [], []
    with tempfile.TemporaryDirectory(prefix="served-soak-") as place:
        folder = Path(place)
        served, begin = Served(folder, model), time.monotonic()
        clients = [Client(f"c{number}", served, turns, reactions) for number in range(num_clients)]
        threads = [threading.Thread(target=one.run, args=(begin + seconds,), daemon=True) for one in clients]
        for thread in threads:
            thread.start()
        learned = []
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            sizes.append((round(time.monotonic() - begin), round(served.measure_memory()), len(learned)))
            if len(learned) < 2 and time.monotonic() - begin > seconds * (0.15 + 0.3 * len(learned)):
                learned.append(served.ask("POST", "/personal/learn", {}))
        rounds = json.loads(served.ask("GET", "/personal/status")[1])["rounds"]
        served.end(signal.SIGINT)
        lost, errors = count_lost(folder, turns, reactions), [error for one in clients for error in one.errors]
    return dict(
        clients=num_clients,
        seconds=seconds,
        requests=sum(one.num_requests for one in clients),
        errors=len(errors),
        first_errors=errors[:3],
        **lost,
        rounds=rounds,
        memory=sizes[:: max(1, len(sizes) // 30)],
    )


if __name__ == "__main__":
    kind, model, *numbers = sys.argv[1:]
    measure = dict(kills=measure_kills, soak=measure_soak)[kind]
    print(json.dumps(measure(model, *map(int, numbers)), indent=1))
