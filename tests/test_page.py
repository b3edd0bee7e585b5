"The page in a real browser: a whole day, a phone's width, dark colours, and a page of another site."

import itertools
import json
import shutil
import time
from http.server import SimpleHTTPRequestHandler

import pytest
from servers import chat_server, serving
from tiny import shared

pytest.importorskip("selenium", reason="the extra `browser` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("chromium and chromium-driver are not installed", allow_module_level=True)

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from personal_llm.buffer.buffer import Buffer
from personal_llm.device.corrections import ChatSession
from personal_llm.tuning.config import TuningConfig

OPTIONS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run"
BETTER = "Dear friend, rest today."


def fresh(folder):
    settings = dict(synthetic=0, replay=0, config=TuningConfig(steps=4), buffer=Buffer(8))
    return ChatSession(shared("llama"), folder, itertools.count(1.0).__next__, **settings)


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def click(browser, text, place=0):
    words = f"//main//button[normalize-space()='{text}'] | //nav/button[normalize-space()='{text}']"
    words += f" | //dialog//button[normalize-space()='{text}']"

    def press():
        try:
            [one for one in browser.find_elements(By.XPATH, words) if one.is_displayed()][place].click()
            return True
        except StaleElementReferenceException:  # the page drew it anew
            return False

    until(press)


def texts(browser, selector):
    "All at once, because the page may draw them anew."
    return browser.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)


def open_page(browser, running):
    browser.get(f"{running.address}/#token={running.token}")
    until(lambda: browser.find_element(By.ID, "chat").is_displayed())
    assert running.token not in browser.current_url


def talk(browser, text):
    count = len(texts(browser, "#turns li"))
    browser.find_element(By.ID, "line").send_keys(text + "\n")
    until(lambda: len(texts(browser, "#turns li")) > count and texts(browser, "#turns li:last-child button"))


def test_a_whole_day(browser, tmp_path):
    with chat_server(fresh(tmp_path / "me"), learn_every=2) as running:
        open_page(browser, running)
        for line in ("My knee hurts.", "What shall I cook?"):
            talk(browser, line)
        click(browser, "Edit")
        field = browser.find_element(By.CSS_SELECTOR, "#turns textarea")
        field.clear()
        field.send_keys(BETTER)
        click(browser, "Save")
        until(lambda: BETTER in texts(browser, "#turns .reply"))
        click(browser, "Good reply", 1)
        until(lambda: running.session.me.rounds)
        talk(browser, "And now?")
        click(browser, "Try again")
        until(lambda: running.session.me.buffer.seen >= 4 and texts(browser, "#turns li:last-child button"))
        click(browser, "Take back")
        until(lambda: len(texts(browser, "#turns li")) == 2)
        click(browser, "Learning")
        until(lambda: browser.find_element(By.ID, "plot").is_displayed())
        assert "before" in browser.find_element(By.ID, "plot").get_attribute("aria-label")
        click(browser, "Compare replies before and after")
        until(lambda: any("Your version" in text for text in texts(browser, ".example")))
        click(browser, "You")
        until(lambda: not any(text.startswith("reading") for text in texts(browser, "#style li")))
        for width in (1200, 400):  # no view is wider than the window
            browser.set_window_size(width, 900)
            for name in ("Chat", "Memory", "You", "Learning", "Settings"):
                click(browser, name)
                assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    with chat_server(fresh(tmp_path / "me")) as running:  # another day
        open_page(browser, running)
        until(lambda: BETTER in texts(browser, "#turns .reply"))
        click(browser, "Memory")
        until(lambda: len(texts(browser, "#dialogues li")) == 2)
        browser.find_element(By.ID, "search-field").send_keys("knee\n")
        until(lambda: len(texts(browser, "#dialogues li")) == 1)
        click(browser, "Forget all with “knee”")
        click(browser, "Forget", -1)
        until(lambda: any("cannot reach" in text for text in texts(browser, "#forgotten")))
        assert [d.prompt for d in running.session.me.buffer.dialogues] == ["What shall I cook?"]
        theme = "const s = document.getElementById('theme'); s.value = 'dark'; s.dispatchEvent(new Event('change'))"
        browser.execute_script(theme)
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(25, 24, 23)"
    errors = [row["message"] for row in browser.get_log("browser") if row["level"] == "SEVERE"]
    assert [text for text in errors if "ERR_CONNECTION_REFUSED" not in text] == []
    events = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    sent = {event["params"].get("request", {}).get("url", "") for event in events}
    assert [url for url in sent if url.startswith("http") and not url.startswith("http://127.0.0.1:")] == []


ATTACK = """<form id=f method=post enctype=text/plain target=g action=ADDRESS/personal/chat>
<input name='{"text":"Zanzibar","x":"' value='"}'></form>
<iframe name=g></iframe><iframe src=ADDRESS/></iframe><img src=ADDRESS/personal/undo>
<script src=ADDRESS/personal/conversation></script><script>
window.results = []; document.getElementById('f').submit();
const body = '{"text":"Zanzibar"}', headers = {Authorization: 'Bearer TOKEN', 'Content-Type': 'application/json'};
const tries = [['GET', {}], ['POST', {}], ['GET', {mode: 'no-cors'}], ['POST', {mode: 'no-cors', body}],
  ['POST', {headers, body}]];
const address = method => 'ADDRESS/personal/' + (method === 'GET' ? 'conversation' : 'chat');
Promise.all(tries.map(([method, more]) => fetch(address(method), {method, credentials: 'include', ...more})
  .then(answer => answer.text()).then(text => results.push('read ' + text), error => results.push('no'))));
</script>"""


def test_a_page_of_another_site_can_neither_read_nor_write(browser, tmp_path):
    "Even one that knows the token: its requests name their origin."
    with chat_server(fresh(tmp_path / "me")) as running:
        list(running.session.say("I live in Lima."))
        before = running.session.me.buffer.to_bytes()
        page = ATTACK.replace("ADDRESS", running.address).replace("TOKEN", running.token)

        class Evil(SimpleHTTPRequestHandler):
            def log_message(self, *given):
                pass

            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page.encode())

        evil = serving(Evil)
        try:
            for host in ("127.0.0.1", "localhost"):
                browser.get(f"http://{host}:{evil.server_port}/")
                results = until(
                    lambda: (found := browser.execute_script("return window.results")) and len(found) == 5 and found
                )
                assert all(text in ("no", "read ") for text in results), results
                time.sleep(0.5)
        finally:
            evil.shutdown()
        assert running.session.me.buffer.to_bytes() == before and len(running.session.me.session["turns"]) == 1
