"The page in chromium: a day, the keyboard, a phone's width, hostile replies, and the token."

import shutil
import time

import pytest
from servers import chat_server

pytest.importorskip("selenium", reason="the extra `browser` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("chromium and chromium-driver are not installed", allow_module_level=True)

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from personal_llm.base.replies import ReplyStream

OPTIONS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run"
BETTER = "Dear friend, rest today."
CODE = "code-of-the-link"
HOSTILE = """# A title
Some **bold** and `code <b>`, <img src=x onerror="window.hit=1"> and [a link](javascript:window.hit=1).

- one
- two

1. first
2. <script>window.hit = 1</script>

```
if a < b: **stay**
```"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,900"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Page:
    "The page of a server in a browser."

    def __init__(self, browser, running):
        self.browser = browser
        self.running = running
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.get("about:blank")
        browser.get(f"{running.address}/#code={CODE}")
        self.until(lambda: self.find("#line").is_displayed())

    def find(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list:
        return [one.text for one in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def until(self, holds, seconds=60):  # a busy machine is no failure
        end = time.monotonic() + seconds
        while True:
            try:
                if value := holds():
                    return value
            except StaleElementReferenceException:
                pass
            assert time.monotonic() < end, self.find("body").text
            time.sleep(0.05)

    def press(self, label: str) -> None:
        "Press the newest visible button of a name."

        def click():
            buttons = self.browser.find_elements(By.CSS_SELECTOR, "button")
            fitting = [one for one in buttons if label in (one.accessible_name, one.text) and one.is_displayed()]
            return fitting and (fitting[-1].click(), True)[1]

        self.until(click)

    def say(self, text: str) -> None:
        self.find("#line").send_keys(text, Keys.ENTER)
        count = len(self.texts("#turns > li"))
        self.until(lambda: self.find("#send").text == "Send" and len(self.texts("#turns .row")) >= max(count, 1))

    def script(self, code: str):
        return self.browser.execute_script(f"return {code}")


@pytest.fixture
def page(browser, tmp_path):
    with chat_server(tmp_path / "me", code=CODE, idle_seconds=3600) as running:
        yield Page(browser, running)
    errors = [row["message"] for row in browser.get_log("browser") if row["level"] == "SEVERE"]
    assert [text for text in errors if "status of 4" not in text and "REFUSED" not in text] == []


def test_a_day(page):
    assert len(page.texts("#examples button")) == 2
    page.until(lambda: page.find("#model").text == "pocket")
    page.press("What can I cook from rice, eggs and tomatoes?")
    page.until(lambda: page.texts("#turns .reply") and page.find("#send").text == "Send")
    page.say("My knee hurts.")
    page.press("Write the reply that you wanted")
    page.find("form textarea[id^=better]").send_keys(BETTER)
    page.press("Say it like this")
    page.until(lambda: page.texts("#turns > li > .reply")[-1] == BETTER)
    assert "The first reply" in page.texts("#turns summary")
    page.press("A good reply")
    page.until(lambda: page.texts("#turns [aria-pressed=true]") == ["👍"])
    page.press("New talk")
    page.say("My knee hurts again.")
    page.until(lambda: [text for text in page.texts("#turns > li:last-child summary") if "From" in text])
    page.press("New talk")
    page.say("I have a dog, Biscuit.")
    titles = [text for text in page.texts("#talk-list button") if text != "✕"]
    assert titles[:2] == ["I have a dog, Biscuit.", "My knee hurts again."] and len(titles) == 3
    page.press("What I know about you")
    page.until(lambda: any(BETTER in text for text in page.texts("#answers li")))
    assert any("Biscuit" in text for text in page.texts("#statements li"))
    page.press("Correct: My knee hurts.")
    page.press("Edit the reply")
    page.find("#answers textarea").send_keys(" Please.")
    page.press("Say it like this")
    page.until(lambda: any(BETTER + " Please." in text for text in page.texts("#answers li")))
    page.find("#always").send_keys("In short.")
    page.press("Add")
    page.until(lambda: [one.text for one in page.running.session.me.state.instructions.values()] == ["In short."])
    assert "1" in page.find("#learning").text
    page.press("Forget: I have a dog, Biscuit.")
    page.until(lambda: page.texts("#confirm-lines li"))
    page.find("#confirm button[value=no]").click()
    page.until(lambda: page.find("#note").text == "Kept.")
    page.find("#words").send_keys("biscuit")
    page.find("#forget-form button").click()
    page.until(lambda: page.texts("#confirm-lines li"))
    page.find("#confirm button[value=yes]").click()
    page.until(lambda: "Forgotten" in page.find("#note").text)
    page.until(lambda: not any("Biscuit" in text for text in page.texts("#statements li")))
    page.press("Back to the chat")
    page.until(lambda: "Biscuit" not in page.find("#talk-list").text)


def test_a_reply_is_shown_while_it_is_written_and_nothing_in_it_acts(page, monkeypatch):
    def write(self):
        for piece in HOSTILE.split(" "):
            self.text += piece + " "
            time.sleep(0.01)
            yield piece + " "

    monkeypatch.setattr(ReplyStream, "__iter__", write)
    page.find("#line").send_keys("Show all.", Keys.ENTER)
    page.until(lambda: page.texts("#turns strong")[:1] == ["A title"])
    page.until(lambda: page.find("#send").text == "Send")
    page.until(lambda: page.texts("#turns .reply pre"))
    assert page.texts("#turns .reply strong") == ["A title", "bold"] and page.texts("#turns code") == ["code <b>"]
    assert page.texts("#turns .reply ul li") == ["one", "two"]
    assert page.texts("#turns .reply ol li") == ["first", "<script>window.hit = 1</script>"]
    assert page.texts("#turns .reply pre") == ["if a < b: **stay**"]
    assert not page.texts("#turns img") and not page.texts("#turns a") and page.script("window.hit") is None


def test_stop_keeps_nothing_and_gives_the_text_back(page, monkeypatch):
    def write(self):
        for number in range(1000):
            time.sleep(0.02)
            yield f"{number} "

    monkeypatch.setattr(ReplyStream, "__iter__", write)
    page.find("#line").send_keys("Count.", Keys.ENTER)
    page.until(lambda: page.texts("#turns .reply"))
    page.find("body").send_keys(Keys.ESCAPE)
    page.until(lambda: page.find("#line").get_property("value") == "Count." and not page.texts("#turns > li"))
    assert page.running.session.me.state.status()["stored"] == 0


def test_the_token_is_in_the_tab_and_not_in_the_address(page):
    assert "#" not in page.browser.current_url and page.browser.get_cookies() == []
    assert page.script("localStorage.length") == 0
    page.browser.refresh()
    page.until(lambda: page.find("#line").is_displayed())
    page.script("sessionStorage.clear()")
    page.browser.get("about:blank")
    page.browser.get(f"{page.running.address}/#code={CODE}")
    page.until(lambda: page.find("#connect").is_displayed())
    page.until(lambda: "was used before" in page.find("#note").text)
    page.find("#token").send_keys("wrong", Keys.ENTER)
    page.until(lambda: "token is missing or wrong" in page.find("#note").text)
    page.find("#token").clear()
    page.find("#token").send_keys(page.running.token, Keys.ENTER)
    page.until(lambda: page.find("#line").is_displayed())


@pytest.mark.parametrize("width", [1280, 390])
def test_no_width_overflows_and_every_control_has_a_name(page, width):
    size = dict(width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.say("A very long word: " + "x" * 300)
    page.press("Write the reply that you wanted")
    page.press("Edit the reply")
    for button in ("What I know about you", "Back to the chat"):
        assert page.script("document.documentElement.scrollWidth") <= width
        for control in page.browser.find_elements(By.CSS_SELECTOR, "button, input, textarea, summary"):
            assert not control.is_displayed() or control.accessible_name, control.get_attribute("outerHTML")
        page.press(button)


def test_a_server_that_has_gone_is_a_line(page):
    page.running.close()
    page.find("#line").send_keys("Hello", Keys.ENTER)
    page.until(lambda: "does not answer" in page.find("#note").text)
    assert page.find("#line").get_property("value") == "Hello"
