"The page in chromium: a day, the keyboard, a phone's width, hostile replies, and the token."

import json
import shutil
import time

import pytest
from servers import chat_server

pytestmark = pytest.mark.later
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
Some **bold** and `code <b>`, <img src=x onerror="window.hit=1"> and [a link](javascript:window.hit=1),
*slanted*, [a page](http://127.0.0.1/x?a=1) and [data](data:text/html,<script>window.hit=1</script>).

| tea | price |
|---|---|
| *green* <i>x</i> | 3 |

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
            if fitting:  # a person scrolls to it
                self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", fitting[-1])
                fitting[-1].click()
            return bool(fitting)

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
    titles = page.texts("#talk-list .title")
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
    assert page.texts("#turns th") == ["tea", "price"] and page.texts("#turns td") == ["green <i>x</i>", "3"]
    assert page.texts("#turns em") == ["slanted", "green"] and page.texts("#turns .reply a") == ["a page"]
    link = page.find("#turns a")
    assert link.get_attribute("rel") == "noopener noreferrer" and link.get_attribute("href") == "http://127.0.0.1/x?a=1"
    assert not page.texts("#turns img, #turns i, #turns script") and page.script("window.hit") is None


def write_slowly(monkeypatch, pieces=1000):
    def write(self):
        for number in range(pieces):
            time.sleep(0.02)
            self.text += f"{number} "
            yield f"{number} "

    monkeypatch.setattr(ReplyStream, "__iter__", write)


def test_stop_keeps_what_was_written(page, monkeypatch):
    write_slowly(monkeypatch)
    page.find("#line").send_keys("Count.", Keys.ENTER)
    page.until(lambda: page.texts("#turns .reply"))
    page.find("body").send_keys(Keys.ESCAPE)
    page.until(lambda: page.find("#send").text == "Send" and page.texts("#turns .reply"))
    (turn,) = page.running.session.turns
    assert turn.prompt == "Count." and turn.response.startswith("0 1") and len(turn.response.split()) < 900
    monkeypatch.undo()
    page.say("Thank you.")
    assert len(page.running.session.turns) == 2


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


def set_width(page, width):
    size = dict(width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def count_covered(page) -> float:
    "The pixels between the end of the newest turn and the top of the message field that are missing; 0: none."
    ends = "document.querySelector('#turns').lastElementChild.getBoundingClientRect().bottom"
    return page.script(f"{ends} - document.querySelector('#composer').getBoundingClientRect().top")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_newest_reply_is_never_covered_and_a_talk_opens_at_its_end(page, width):
    set_width(page, width)
    for number in range(6):
        page.say(f"This is message {number}, and it is long enough to take some room on the page.")
        page.until(lambda: count_covered(page) <= 0, 5)
    assert page.script("document.querySelector('main').scrollTop") > 0, "the talk is longer than the window"
    page.browser.refresh()
    page.until(lambda: page.find("#line").is_displayed() and len(page.texts("#turns > li")) == 6)
    page.until(lambda: count_covered(page) <= 0, 5)
    page.press("What I know about you")
    page.until(lambda: page.find("#known-title").is_displayed())
    page.press("Back to the chat")
    page.until(lambda: count_covered(page) <= 0, 5)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_redraws_what_somebody_types(page, width, monkeypatch):
    set_width(page, width)
    page.script("document.querySelector('#talks').open = true")
    page.say("My knee hurts.")
    page.press("Write the reply that you wanted")
    field = page.find("form textarea[id^=better]")
    field.send_keys("Rest")
    page.find("#line").send_keys("What is tea?", Keys.ENTER)
    page.until(lambda: len(page.texts("#turns > li .reply")) == 2 and page.find("#send").text == "Send")
    assert field.get_property("value") == "Rest", "another reply's end"
    write_slowly(monkeypatch, 60)
    page.find("#line").send_keys("Count.", Keys.ENTER)
    page.until(lambda: len(page.texts("#turns > li .reply")) == 3)
    field.send_keys(" today")
    page.until(lambda: page.find("#send").text == "Send")
    assert field.get_property("value") == "Rest today", "typed while a reply was written"
    monkeypatch.undo()
    page.press("A good reply")
    page.until(lambda: page.texts("#turns [aria-pressed=true]") == ["👍"])
    assert field.get_property("value") == "Rest today", "a refresh of the lists"
    page.find("#line").send_keys("half a mess")
    page.find("#search").send_keys("knee")
    page.until(lambda: len(page.texts("#talk-list .title")) == 1)
    page.press("New talk")
    page.until(lambda: not page.texts("#turns > li"))
    assert page.find("#line").get_property("value") == "half a mess", "a new talk"
    page.press("My knee hurts.")
    page.until(lambda: page.texts("#turns > li .reply"))
    assert page.find("form textarea[id^=better]").get_property("value") == "Rest today", "kept for its turn"
    page.press("Say it like this")
    page.until(lambda: page.texts("#turns > li > .reply")[0] == "Rest today")
    assert not page.texts("form.editor")
    page.press("What I know about you")
    page.find("#always").send_keys("In short.", Keys.ENTER)
    page.until(lambda: page.texts("#instructions input"))
    page.find("#instructions input").send_keys(" And kind")
    page.find("#always").send_keys("Plain.", Keys.ENTER)
    page.until(lambda: len(page.texts("#instructions input")) == 2)
    assert page.find("#instructions input").get_property("value") == "In short. And kind"


@pytest.mark.parametrize("width", [1280, 390])
def test_try_again_edit_and_answer_again(page, width):
    set_width(page, width)
    session = page.running.session
    for text in ("I have a dog, Biscuit.", "What is tea?", "Tell me a joke."):
        page.say(text)
    first = session.turns[-1].id
    page.script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.press("Copy the reply")
    page.until(lambda: page.script("window.copied") == session.turns[-1].response)
    page.press("Try again")
    page.until(lambda: session.turns[-1].id != first and page.find("#send").text == "Send")
    assert [d.prompt for d in session.turns][1:] == ["What is tea?", "Tell me a joke."]
    page.until(lambda: len(page.texts("#turns > li > .own")) == 3)
    page.press("Edit your message")
    field = page.find("form textarea[id^=message]")
    assert field.get_property("value") == "Tell me a joke."
    field.send_keys(" Please.")
    page.press("Send this")
    page.until(lambda: page.texts("#turns > li > .own")[-1:] == ["Tell me a joke. Please."])
    page.until(lambda: page.find("#send").text == "Send" and len(session.turns) == 3)
    assert len(session.me.archive.dialogues) == 5 and len(session.me.state.replaced) == 2
    page.press("A good reply")
    page.until(lambda: page.texts("#turns [aria-pressed=true]") == ["👍"])
    kept = session.turns[-1].response
    page.browser.find_elements(By.CSS_SELECTOR, "[aria-label='Forget this turn']")[0].click()
    page.until(lambda: page.texts("#confirm-lines input"))
    rows = page.texts("#confirm-lines label")
    assert all("came later in this talk" in row for row in rows) and "you liked this reply" in rows[-1]
    page.browser.find_elements(By.CSS_SELECTOR, "#confirm-lines input")[-1].click()
    page.find("#confirm button[value=yes]").click()
    page.until(lambda: page.texts("#turns > li > .own") == ["What is tea?", "Tell me a joke. Please."])
    assert [d.response for d in session.turns] == ["", kept]
    page.press("Answer again")
    page.until(lambda: session.turns[0].response and page.find("#send").text == "Send")
    assert [d.prompt for d in session.turns] == ["What is tea?", "Tell me a joke. Please."]
    page.until(lambda: len(page.texts("#turns > li > .reply")) == 2)
    assert not any("Biscuit" in d.text for d in session.me.archive.dialogues.values())


@pytest.mark.parametrize("width", [1280, 390])
def test_search_rename_save_and_open(page, width, tmp_path):
    set_width(page, width)
    page.script("document.querySelector('#talks').open = true")
    page.say("My knee hurts.")
    page.press("New talk")
    page.say("What is tea?")
    page.find("#search").send_keys("KNEE")
    page.until(lambda: page.texts("#talk-list .title") == ["My knee hurts."])
    page.press("Rename the talk: My knee hurts.")
    page.find("#talk-list form input").clear()
    page.find("#talk-list form input").send_keys("Knees", Keys.ENTER)
    page.until(lambda: page.texts("#talk-list .title") == ["Knees"])
    page.find("#search").clear()
    page.find("#search").send_keys(Keys.BACKSPACE, "x", Keys.BACKSPACE)
    page.until(lambda: len(page.texts("#talk-list .title")) == 2)
    page.press("Knees")
    page.until(lambda: page.texts("#turns .own") == ["My knee hurts."])
    talk = page.running.session.turns[0]
    rows = page.running.ask("GET", "/me/export?talk=" + page.running.session.me.archive.talks[talk.id])[1]["rows"]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([row | dict(id="", response="Rest.", origin="annotated") for row in rows]))
    page.find("#file").send_keys(str(file))
    page.until(lambda: page.texts("#turns .reply") == ["Rest."])
    assert [d.response for d in page.running.session.me.state.list_answered()] == ["Rest."]
    file.write_text("{")
    page.find("#file").send_keys(str(file))
    page.until(lambda: "no talk that was saved here" in page.find("#note").text)
    assert "toy" in page.find("#small").text
    page.find("#line").click()


def test_a_server_that_has_gone_is_a_line(page):
    page.running.close()
    page.find("#line").send_keys("Hello", Keys.ENTER)
    page.until(lambda: "does not answer" in page.find("#note").text)
    assert page.find("#line").get_property("value") == "Hello"
