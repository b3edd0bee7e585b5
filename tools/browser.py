"""Tutorials, lessons and solutions in a real JupyterLab, run by a real browser; then a talk in the chat cell.

make test-browser                                             # all of them; screenshots in browser/
make test-browser ARGS="tutorials/04 course/lesson_1 chat"    # some: beginnings of paths, and `chat`

Each notebook is a copy without outputs. It passes when every cell was run, none shows an error or wrote to stderr, and every
figure that the saved notebook has is drawn. We wait for events and never for a time: the page, the kernel's answer, the last
cell, the last figure. Only a dead server, a dead kernel or `LONGEST` seconds without an event end a wait. So a loaded machine
is slower and fails no more often. Seconds are those on the clock and those that the kernel computed: on an idle machine they
are about the same. It needs Debian's chromium and chromium-driver, and selenium (the extra `browser`).
"""

import importlib.util, json, os, re, secrets, shutil, signal, socket, subprocess, sys, tempfile, time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
SHOTS = ROOT / "browser"  # git ignores it
WANTED = ("tutorials/[0-9]*", "course/lesson_*", "course/solution_*")
LONGEST = 1200  # seconds until an event; a limit for what hangs, far above what a loaded machine needs
TALLEST, WIDTH = 16000, 1280  # pixels of a screenshot
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars""".split()
SETTINGS = {  # of JupyterLab: all cells are in the page, nothing is asked, nothing is fetched
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


def what_is_missing() -> str:  # empty: nothing
    "How to install what is not there."
    lines = []
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        lines.append("apt-get install chromium chromium-driver")
    if any(importlib.util.find_spec(name) is None for name in ("selenium", "jupyterlab")):
        lines.append('pip install -e ".[dev,browser]"')
    return "; ".join(lines)


def images_of(notebook: dict) -> int:
    "Figures among the outputs of a notebook."
    data = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return sum("image/png" in one or "<img" in "".join(one.get("text/html", "")) for one in data)


def copied(place: Path) -> dict:  # path below nbs -> figures it is saved with
    "Copy all notebooks, without their outputs."
    shutil.copytree(NOTEBOOKS, place)
    figures = {}
    for path in place.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        figures[str(path.relative_to(place))] = images_of(notebook)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
        path.write_text(json.dumps(notebook), encoding="utf-8")
    return figures


def free_port() -> int:
    "A port that nobody listens to."
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@contextmanager
def jupyter(place: Path, state: Path):  # the notebooks; a folder for what JupyterLab writes
    "A JupyterLab of its own, with nobody's settings; gives (process, address, token)."
    port, token = free_port(), secrets.token_hex(16)
    for name, values in SETTINGS.items():
        path = state / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    own |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    environment = {**os.environ, **{name: str(state / folder) for name, folder in own.items()}}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = "--no-browser --allow-root --LabApp.expose_app_in_browser=True --ServerApp.ip=127.0.0.1".split()
    words += [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={place}"]
    log = (state / "jupyter.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *words], env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{port}/api?token={token}"
        until(lambda: answers(address) or server.poll() is not None, "JupyterLab did not start")
        assert server.poll() is None, f"JupyterLab ended: {(state / 'jupyter.log').read_text()[-500:]}"
        yield server.pid, f"http://127.0.0.1:{port}", token
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def answers(address: str) -> bool:
    "Whether a server is there."
    try:
        with urlopen(address, timeout=30) as found:
            return found.status == 200
    except OSError:
        return False


def until(holds, otherwise: str):  # what `holds` gives, when it is true
    "Wait for an event; an event that does not come within `LONGEST` seconds is an `AssertionError`."
    end = time.monotonic() + LONGEST
    while not (found := holds()):
        if time.monotonic() > end:
            raise AssertionError(otherwise)
        time.sleep(0.1)
    return found


@contextmanager
def chromium(state: Path):
    "A browser with nobody's profile."
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in (*OPTIONS, f"--user-data-dir={state / 'profile'}", f"--window-size={WIDTH},1000"):
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(LONGEST)
    driver.set_page_load_timeout(LONGEST)
    driver.execute_cdp_cmd(
        "Emulation.setFocusEmulationEnabled", {"enabled": True}
    )  # else no widget is ever the current one
    try:
        yield driver
    finally:
        driver.quit()


COMMAND = """
const done = arguments[arguments.length - 1];
window.jupyterapp.commands.execute(arguments[0], arguments[1] || {}).then(() => done(''), error => done(String(error)));
"""
OPEN = """
const app = window.jupyterapp;
window.opened = '';
app.commands.execute('docmanager:open', {path: arguments[0], factory: 'Notebook'}).then(async panel => {
  await panel.context.ready;
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;  // the kernel has answered
  app.shell.activateById(panel.id);
  window.opened = 'done';
}).catch(error => window.opened = String(error));
"""
CURRENT = """
const shell = window.jupyterapp.shell, panel = shell.currentWidget;
const isInFront = !!(panel && panel.context && panel.context.path === arguments[0] && panel.context.isReady);
if (!isInFront) {  // JupyterLab follows the focus: ask again
  if (document.activeElement) document.activeElement.blur();
  for (const one of shell.widgets('main')) if (one.context && one.context.path === arguments[0]) shell.activateById(one.id);
}
return isInFront;
"""
RUN_ALL = """
window.ran = '';
window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.ran = 'done',
    error => window.ran = String(error));
"""
STATE = """
const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel;
return {ran: window.ran, status: kernel ? kernel.status : 'dead'};
"""
CELLS = "return window.jupyterapp.shell.currentWidget.context.model.toJSON().cells;"
DRAWN = """
return [...document.querySelectorAll('.jp-OutputArea img')].filter(i => i.complete && i.naturalWidth > 50
    && i.clientWidth > 50).length;
"""
HEIGHT = """
const cells = document.querySelectorAll('.jp-Notebook .jp-Cell');
cells[0].scrollIntoView();
return cells[cells.length - 1].getBoundingClientRect().bottom - cells[0].getBoundingClientRect().top;
"""
PAINTED = """
const done = arguments[arguments.length - 1];
requestAnimationFrame(() => requestAnimationFrame(() => done('')));
"""
RUN_CELL = """
const done = arguments[arguments.length - 1], app = window.jupyterapp;
app.shell.currentWidget.content.activeCellIndex = arguments[0];
app.commands.execute('notebook:run-cell').then(() => done(''), error => done(String(error)));
"""
IDLE = "return window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle';"
SHUT = """
const done = arguments[arguments.length - 1], panel = window.jupyterapp.shell.currentWidget;
panel.sessionContext.shutdown().then(() => { panel.dispose(); done(''); }, error => done(String(error)));
"""


def start_page(driver, lab: tuple) -> None:
    "JupyterLab with nothing but the room for notebooks."
    _, address, token = lab
    driver.get(f"{address}/lab?token={token}&reset")
    until(
        lambda: driver.execute_script("return !!(window.jupyterapp && window.jupyterapp.shell)"),
        "no JupyterLab",
    )
    driver.execute_async_script("window.jupyterapp.restored.then(arguments[arguments.length - 1])")
    driver.execute_async_script(COMMAND, "application:toggle-left-area", {})


def open_notebook(driver, path: str) -> None:
    "Open a notebook; JupyterLab says when it is read and when its kernel answers, however long that takes."
    driver.set_window_size(WIDTH, 1000)
    driver.execute_script(OPEN, path)
    state = until(lambda: driver.execute_script("return window.opened"), f"{path} did not open")
    assert state == "done", f"{path} did not open: {state}"
    until(lambda: driver.execute_script(CURRENT, path), f"{path} is not in front")


def computed(lab: tuple) -> float:  # seconds
    "What the kernels that run now have computed."
    import psutil

    return sum(sum(one.cpu_times()[:2]) for one in psutil.Process(lab[0]).children())


def shoot(driver, name: str) -> None:
    "The whole notebook as one picture."
    driver.set_window_size(WIDTH, 1000)
    driver.set_window_size(WIDTH, max(1000, min(TALLEST, driver.execute_script(HEIGHT) + 300)))
    driver.execute_async_script(PAINTED)
    driver.save_screenshot(str(SHOTS / f"{name}.png"))


def faults(driver, figures: int) -> list:  # lines
    "What is wrong with the notebook that is open."
    cells = [cell for cell in driver.execute_script(CELLS) if cell["cell_type"] == "code"]
    found = []
    for number, cell in enumerate(cells, 1):
        if "".join(cell["source"]).strip() and cell["execution_count"] is None:
            found.append(f"code cell {number} was not run")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"code cell {number}: {output['ename']}: {output['evalue']}")
            if output.get("name") == "stderr":
                found.append(f"code cell {number} wrote to stderr: {''.join(output['text'])[:200]!r}")
    made, drawn = images_of(dict(cells=cells)), driver.execute_script(DRAWN)
    if made < figures or drawn < made:
        found.append(f"{figures} figures are saved, {made} were made, {drawn} are drawn")
    return found


def wait_for_cells(driver, path: str) -> str:  # "done", or JupyterLab's error
    "Wait until the last cell has ended, the kernel has nothing to do, and every figure that was made is drawn."

    def has_ended():
        state = driver.execute_script(STATE)
        assert state["status"] != "dead", f"the kernel of {path} died"
        return state["ran"] if state["ran"] not in ("", "done") or state["status"] == "idle" else ""

    ran = until(has_ended, f"{path} does not end")
    if ran == "done":
        made = images_of(dict(cells=[c for c in driver.execute_script(CELLS) if c["cell_type"] == "code"]))
        until(lambda: driver.execute_script(DRAWN) >= made, f"{path}: {made} figures were made, and not all are drawn")
    return ran


def run_notebook(driver, lab: tuple, path: str, figures: int) -> tuple:  # (faults, seconds, seconds computed)
    "Run all cells of a notebook and look at what came of it."
    open_notebook(driver, path)
    began = time.monotonic()
    driver.execute_script(RUN_ALL)
    failed = wait_for_cells(driver, path)
    seconds, own = time.monotonic() - began, computed(lab)
    shoot(driver, path.replace("/", "_").removesuffix(".ipynb"))
    found = faults(driver, figures) + [failed] * (failed != "done")
    driver.execute_async_script(SHUT)
    return found, seconds, own


def try_notebook(driver, lab: tuple, path: str, figures: int) -> tuple:  # (faults, seconds, seconds computed)
    "See `run_notebook`; an event that never came is a fault of this notebook, and the next one gets a fresh page."
    try:
        return run_notebook(driver, lab, path, figures)
    except AssertionError as error:
        start_page(driver, lab)
        return [str(error)], 0.0, 0.0


TALK = """
from personal_llm import Buffer, TuningConfig, load_model
from personal_llm.app.server import ChatCell
from personal_llm.device.conversation import ChatSession
settings = dict(synthetic=0, replay=32, config=TuningConfig(steps=40))
chat = ChatCell(ChatSession(load_model("pocket"), "me", buffer=Buffer(8), **settings))
chat
"""
LOSS = """
me = chat.session.me
corrected = [d for d in me.buffer.dialogues if d.origin == "annotated"]
for adapter in (None, me.adapter):
    with me.model.use_adapter(adapter):
        nats, tokens = me.model.nll(corrected).sum(0)
    print(f"{nats / tokens:.3f}")
"""
RESTART = """
const done = arguments[arguments.length - 1], panel = window.jupyterapp.shell.currentWidget;
panel.sessionContext.restartKernel().then(() => done(''), error => done(String(error)));
"""
TEXTS = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText);"
PARTS = ("head", "back", "neck")


@contextmanager
def page(driver):
    "Act in the frame of the chat."
    frames = until(lambda: driver.find_elements("css selector", ".jp-OutputArea iframe"), "there is no frame")
    driver.switch_to.frame(frames[0])
    try:
        until(lambda: driver.find_element("id", "chat").is_displayed(), "the page does not come")
        yield
    finally:
        driver.switch_to.default_content()


def press(driver, name: str) -> None:
    "Click the last button of the page with this name, as soon as it is there."
    words = f"//button[normalize-space()='{name}']"
    shown = lambda: [one for one in driver.find_elements("xpath", words) if one.is_displayed()]
    button = until(shown, f"there is no button {name}")[-1]
    driver.execute_script("arguments[0].click()", button)  # it may lie below the edge of JupyterLab's window


def take_turn(driver, text: str) -> str:  # the reply
    "Say something, and wait for the end of the reply."
    count = len(driver.execute_script(TEXTS, "#turns li"))
    driver.find_element("id", "line").send_keys(text + "\n")
    has_ended = lambda: driver.execute_script(TEXTS, "#turns li:last-child button")
    until(lambda: len(driver.execute_script(TEXTS, "#turns li")) > count and has_ended(), f"no reply to {text!r}")
    return driver.execute_script(TEXTS, "#turns li:last-child .reply")[0]


def correct(driver, part: str) -> None:
    "Complain of an ache, and edit the reply."
    better = f"Dear friend, keep your {part} warm and rest. I will call you tonight."
    take_turn(driver, f"My {part} hurts.")
    press(driver, "Edit")
    field = driver.find_element("css selector", "#turns textarea")
    field.clear()
    field.send_keys(better)
    press(driver, "Save")
    until(lambda: better in driver.execute_script(TEXTS, "#turns .reply"), "the correction does not come")


def losses(driver) -> list:  # nats a token of the corrected dialogues, without and with the adapter
    "Ask the kernel itself."

    def printed():
        texts = ["".join(one.get("text", "")) for one in driver.execute_script(CELLS)[1]["outputs"]]
        return re.findall(r"\d+\.\d{3}", "".join(texts))

    driver.execute_async_script(RUN_CELL, 1)
    until(lambda: len(printed()) == 2, "the losses were not computed")
    return [float(word) for word in printed()]


def try_talk(driver, place: Path) -> list:  # lines, what is wrong
    "See `talk`; where it does not go on, a picture shows why."
    try:
        return talk(driver, place)
    except AssertionError as error:
        driver.save_screenshot(str(SHOTS / "chat_failed.png"))
        return [str(error)]


def talk(driver, place: Path) -> list:  # lines, what is wrong
    "A talk in a cell: replies are edited, it learns, the next cell sees the same session, and a restart keeps it."
    shared = dict(cell_type="code", metadata={}, outputs=[], execution_count=None)
    cells = [dict(shared, source=source.strip(), id=f"cell{place}") for place, source in enumerate((TALK, LOSS))]
    kernel = dict(name="python3", display_name="python3", language="python")
    notebook = dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel), cells=cells)
    (place / "chat.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    open_notebook(driver, "chat.ipynb")
    driver.execute_async_script(RUN_CELL, 0)
    with page(driver):
        for part in PARTS:
            correct(driver, part)
        driver.save_screenshot(str(SHOTS / "chat.png"))
        press(driver, "Learning")
        press(driver, "Learn now")
        until(lambda: driver.find_element("id", "plot").is_displayed(), "it does not learn")
        driver.save_screenshot(str(SHOTS / "chat_learning.png"))
    base, tuned = losses(driver)
    print(f"chat: corrected replies: {base} -> {tuned} nats a token")
    wrong = ["the loss on the corrected replies is not lower"] * (not tuned < base)
    return wrong + come_back(driver, [base, tuned])


def come_back(driver, before: list) -> list:  # lines, what is wrong
    "Restart the kernel and show the page again: the talk is there, with the same adapter."
    driver.execute_async_script(COMMAND, "notebook:clear-all-cell-outputs", {})
    driver.execute_async_script(RESTART)
    until(lambda: driver.execute_script(IDLE), "the kernel did not restart")
    driver.execute_async_script(RUN_CELL, 0)
    with page(driver):
        until(lambda: "My neck hurts." in "".join(driver.execute_script(TEXTS, "#turns li")), "the talk is not there")
        take_turn(driver, "My elbow hurts.")
        driver.save_screenshot(str(SHOTS / "chat_again.png"))
    after = losses(driver)
    driver.execute_async_script(SHUT)
    return [] if after == before else [f"after a restart the losses are {after}"]


def main(words: list) -> int:  # exit status
    "Run what is named, or everything."
    if missing := what_is_missing():
        print(f"skipped: {missing}")
        return 0
    SHOTS.mkdir(exist_ok=True)
    bad, total, own = 0, 0.0, 0.0
    with ExitStack() as doors:
        home = Path(doors.enter_context(tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)))
        figures = copied(home / "nbs")
        paths = [str(path.relative_to(home / "nbs")) for part in WANTED for path in sorted((home / "nbs").glob(part))]
        wanted = [path for path in paths if not words or any(path.startswith(word) for word in words)]
        lab = doors.enter_context(jupyter(home / "nbs", home))
        driver = doors.enter_context(chromium(home))
        start_page(driver, lab)
        if not words or "chat" in words:
            wrong = try_talk(driver, home / "nbs")
            print("FAILED" if wrong else "passed", "chat", *wrong, sep="  ", flush=True)
            bad += bool(wrong)
        for path in wanted:
            found, *seconds = try_notebook(driver, lab, path, figures[path])
            total, own, bad = total + seconds[0], own + seconds[1], bad + bool(found)
            told = f"{seconds[0]:6.1f} s ({seconds[1]:5.1f} s computed)  {path}"
            print(f"{'FAILED' if found else 'passed'}  {told}", *found, sep="\n        ", flush=True)
    print(f"{len(wanted)} notebooks in {total / 60:.1f} minutes ({own / 60:.1f} computed); {bad} failed; see {SHOTS}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
