"A library at an address: what is fetched, what is verified, and every way in which a server can lie."

import json
import shutil
import time
from functools import partial
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest
from servers import Static, serving

from personal_llm.base.ledger import get_ledger_file, read_ledger
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import ASSETS
from personal_llm.base.models import load_model
from personal_llm.selection import remote_library
from personal_llm.selection.library import Library
from personal_llm.selection.selection import read_card_description, select
from personal_llm.selection.remote_library import (
    MANIFEST_FILE,
    check_library_address,
    is_library_file,
    publish_library,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site") / "lib"
    shutil.copytree(ASSETS / "library", place)
    publish_library(place)
    return place


@pytest.fixture
def static(site):
    server = serving(partial(Static, directory=str(site)))
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def lying(answer):
    "A server whose every answer is what a function writes."

    class Liar(BaseHTTPRequestHandler):
        def log_message(self, *given):
            pass

        def do_GET(self):
            self.server.asked.append(self.path)
            try:
                answer(self)
            except OSError:
                pass  # the client has hung up

    return serving(Liar)


@pytest.fixture
def liar():
    made = []

    def make(answer):
        made.append(lying(answer))
        return made[-1], f"http://127.0.0.1:{made[-1].server_port}"

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


def send(request, body, status=200, **headers):
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


# ---- what is fetched


def test_only_the_list_the_shared_files_and_the_chosen_pllm(static, site, tmp_path):
    server, address = static
    far, near = Library(address, folder=tmp_path / "kept"), Library(site)
    assert sorted(server.asked) == sorted(
        f"/{name}" for name in [MANIFEST_FILE, *(f for f in far.remote.manifest if "/" not in f)]
    )
    assert far.names == near.names and far.rows.tobytes() == near.rows.tobytes() and far.space.id == near.space.id
    server.asked.clear()
    name = far.names[3]
    assert far[name].card == near[name].card and {path.split("/")[1] for path in server.asked} == {name}
    server.asked.clear()
    far.card(far.names[5])
    assert server.asked == [f"/{far.names[5]}/card.json"]


def test_a_selection_downloads_one_adapter_and_tests_it(static, tmp_path):
    server, address = static
    far, name = Library(address, folder=tmp_path), "bedtime-stories"
    user = SimpleNamespace(description=read_card_description(far, name))
    lines = "a fox", "the moon", "my boat", "an owl"
    tales = [
        Dialogue(f"Tell me about {x}.", f"Once upon a time, there was {x}. Sleep well, little one.") for x in lines
    ]
    server.asked.clear()
    ranking = select(far, user, model=load_model("pocket", device="cpu"), dialogues=tales)
    weights = [path for path in server.asked if path.endswith("adapter_model.safetensors")]
    assert ranking.method == "single" and weights == [f"/{name}/adapter_model.safetensors"]
    assert {*ranking.losses} == {"(base)", name} and ranking.losses[name] < ranking.losses["(base)"]
    assert ranking.best == name and ranking.cost.bytes_moved > far.remote.manifest[weights[0][1:]][0]


def test_what_is_there_is_not_fetched_again_and_what_was_altered_is(static, tmp_path):
    server, address = static
    far = Library(address, folder=tmp_path)
    far[far.names[0]]
    server.asked.clear()
    again = Library(address, folder=tmp_path)
    again[again.names[0]]
    assert server.asked == [f"/{MANIFEST_FILE}"]
    (tmp_path / again.names[0] / "card.json").write_text("{}")
    assert again[again.names[0]].card["name"] == again.names[0]


def test_every_request_is_in_the_ledger(static, tmp_path):
    server, address = static
    far = Library(address, folder=tmp_path)
    far[far.names[0]]
    rows = [row for row in read_ledger() if row["kind"] == "request" and row["place"].startswith(f"{far.address}/")]
    done = [row for row in rows if row["bytes"] is not None]
    assert [row["place"] for row in done] == [f"{address}{path}" for path in server.asked]
    assert get_ledger_file().stat().st_mode & 0o077 == 0


def test_what_cannot_be_recorded_is_not_requested(static, tmp_path, monkeypatch):
    server, address = static
    (tmp_path / "personal_llm").write_text("a file where the ledger's folder would be")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    server.asked.clear()
    with pytest.raises(InputError):
        Library(address, folder=tmp_path / "copy")
    assert server.asked == []


def test_a_folder_asks_nobody(site, monkeypatch):
    monkeypatch.setattr(remote_library, "fetch_file", None)
    near = Library(site)
    assert near.address is None and near[near.names[0]].name == near.names[0]
    made = Library.create(site.parent / "own", near.space)
    assert isinstance(made, Library) and len(made) == 0


def test_a_served_library_is_not_changed(static, site, tmp_path):
    far = Library(static[1], folder=tmp_path)
    with pytest.raises(InputError, match="cannot be changed"):
        far.remove(far.names[0])
    assert far.names == Library(site).names


# ---- lies


def test_a_wrong_hash_is_refused_and_not_kept(static, site, tmp_path):
    far = Library(static[1], folder=tmp_path)
    name = far.names[1]
    weights = site / name / "adapter_model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match="its hash differs"):
            far[name]
        assert not (tmp_path / name / weights.name).exists()
    finally:
        weights.write_bytes(content)


def test_another_list_than_the_one_that_was_told(static, tmp_path):
    with pytest.raises(InputError, match="not the manifest of that hash"):
        Library(f"{static[1]}#sha256={'0' * 64}", folder=tmp_path)


@pytest.mark.parametrize("length", ["none", "short", "long"])
def test_an_endless_body_ends(liar, monkeypatch, tmp_path, length):
    "Whatever length the server tells, no more is read than the list allows."
    monkeypatch.setattr(remote_library, "MAX_MANIFEST_BYTES", 100_000)
    sent = []

    def endless(request):
        headers = dict(none={}, short={}, long=dict(Content_Length=10**12))[length]
        send(request, b"", **headers)
        while len(sent) < 10_000:
            request.wfile.write(b"x" * 10_000)
            sent.append(1)

    with pytest.raises(InputError, match="longer than the 100,000 bytes"):
        Library(liar(endless)[1], folder=tmp_path)
    assert len(sent) < 10_000


def test_a_body_that_drips_ends(liar, monkeypatch, tmp_path):
    monkeypatch.setattr(remote_library, "TIMEOUT_SECONDS", 0.3)

    def drip(request):
        send(request, b"", Content_Length=1000)
        while True:
            request.wfile.write(b"x")
            time.sleep(0.05)

    with pytest.raises(InputError, match="too slow"):
        Library(liar(drip)[1], folder=tmp_path)


@pytest.mark.parametrize("part", ["a header", "a chunk's length"])
def test_what_drips_before_the_body_ends(liar, monkeypatch, tmp_path, part):
    "Each byte is in time, all of them together are not."
    monkeypatch.setattr(remote_library, "TIMEOUT_SECONDS", 0.5)
    start = "HTTP/1.1 200 OK\r\n" + ("Transfer-Encoding: chunked\r\n\r\n5;" if part != "a header" else "X-Slow: ")

    def drip(request):
        request.wfile.write(start.encode())
        for _ in range(100):
            request.wfile.write(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    with pytest.raises(InputError, match="too slow|timed out"):
        Library(liar(drip)[1], folder=tmp_path)
    assert time.monotonic() - began < 2


def test_interim_answers_without_end_are_not_read_for_ever(liar, tmp_path):
    sent = []

    def interim(request):
        while len(sent) < 10_000:
            request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 40)
            sent.append(1)

    with pytest.raises(InputError, match="does not end"):
        Library(liar(interim)[1], folder=tmp_path)
    assert len(sent) < 10_000


def test_bytes_that_came_early_buy_no_time_beyond_the_whole(liar, monkeypatch, tmp_path):
    "A hundred thousand bytes at once would buy five seconds; the whole file has less."
    monkeypatch.setattr(remote_library, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(remote_library, "TIMEOUT_SECONDS", 5.0)

    def drip(request):
        send(request, b"x" * 100_000, Content_Length=100_040)
        for _ in range(40):
            time.sleep(0.05)
            request.wfile.write(b"x")

    with pytest.raises(InputError, match="too slow"):
        Library(liar(drip)[1], folder=tmp_path)


def test_silence_ends(liar, monkeypatch, tmp_path):
    monkeypatch.setattr(remote_library, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(InputError, match="timed out"):
        Library(liar(lambda request: time.sleep(1))[1], folder=tmp_path)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_nobody_is_sent_elsewhere(liar, static, tmp_path, status):
    server, address = static
    redirect, other = liar(lambda request: send(request, b"", status, Location=address + request.path))
    with pytest.raises(InputError, match="redirects"):
        Library(other, folder=tmp_path)
    assert server.asked == []


@pytest.mark.parametrize(
    "files",
    [
        {"../evil.json": [1, "0" * 64]},
        {"/etc/passwd": [1, "0" * 64]},
        {"a/run.sh": [1, "0" * 64]},
        {"a/b/card.json": [1, "0" * 64]},
        {"index.npy": [10**13, "0" * 64]},
        {"index.npy": [True, "0" * 64]},
        {"index.npy": [1, "x"]},
        {"index.npy": 1},
        {f"sketch-{i}.npy": [3_000_000, "0" * 64] for i in range(100)},
        {name: [1_500_000_000, "0" * 64] for name in ("index.npy", "space.safetensors")},
        {f"ana/{name}": [1_500_000_000, "0" * 64] for name in ("card.json", "adapter_model.safetensors")},
        [],
    ],
)
def test_a_list_that_names_what_no_library_has(liar, tmp_path, files):
    server, address = liar(lambda request: send(request, json.dumps(dict(files=files)).encode()))
    with pytest.raises(InputError, match="not the manifest of a library"):
        Library(address, folder=tmp_path / "kept")
    assert server.asked == [f"/{MANIFEST_FILE}"] and {p.name for p in (tmp_path / "kept").iterdir()} == set()


def test_a_list_that_lacks_what_the_index_names(static, site, tmp_path):
    rows = json.loads((site / MANIFEST_FILE).read_text())
    name = next(key for key in rows["files"] if key.endswith("/card.json"))
    shutil.copytree(site, tmp_path / "short")
    del rows["files"][name]
    (tmp_path / "short" / MANIFEST_FILE).write_text(json.dumps(rows))
    server = serving(partial(Static, directory=str(tmp_path / "short")))
    far = Library(f"http://127.0.0.1:{server.server_port}", folder=tmp_path / "kept")
    with pytest.raises(InputError, match="its manifest lacks"):
        far[name.split("/")[0]]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/l",
        "ftp://a/b",
        "https://u:p@a/b",
        "https://a/b?c",
        "https:///b",
        "file:///etc",
        "http://a:x/",
        "http://127.0.0.1:abc/x",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1:0/x",
        "http://[::1/x",
        "https://[::x]/x",
    ],
)
def test_addresses_that_are_none(address, tmp_path):
    with pytest.raises((InputError)):
        Library(address, folder=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_an_error_of_the_server_is_told(liar, tmp_path):
    server, address = liar(lambda request: send(request, json.dumps(dict(files={})).encode(), 404))
    with pytest.raises(InputError, match="the server answers 404"):
        Library(address, folder=tmp_path)


def test_https_that_is_none_is_one_line(static, tmp_path):
    with pytest.raises(InputError, match="https://127.0.0.1"):
        Library(static[1].replace("http:", "https:"), folder=tmp_path)


def test_verify_fetches_everything(static, site, tmp_path):
    far = Library(static[1], folder=tmp_path)
    assert (
        far.verify() == [] and len(static[0].asked) == len(json.loads((site / MANIFEST_FILE).read_text())["files"]) + 1
    )


def test_nobody_there(tmp_path):
    with pytest.raises(InputError, match="refused"):
        Library("http://127.0.0.1:9", folder=tmp_path)


def test_names_of_files():
    assert all(map(is_library_file, ("index.json", "space.safetensors", "sketch-8.npy", "ana/adapter.json")))
    assert not any(map(is_library_file, ("served.json", "index.pkl", "ana/..", "./card.json", "ana\\card.json", "")))
    assert check_library_address("http://[::1]:8000/a/") == "http://[::1]:8000/a"
