"The page in chromium: a day, the keyboard, a phone's width, hostile replies, and the token."

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from servers import chat_server, write_without_end

pytestmark = pytest.mark.later
pytest.importorskip("selenium", reason="the extra `browser` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("chromium and chromium-driver are not installed", allow_module_level=True)

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support import expected_conditions

from personal_llm.base.core import Dialogue
from personal_llm.base.replies import ReplyStream

OPTIONS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run"
CODE = "code-of-the-link"
HOSTILE = Path(__file__).with_name("hostile_reply.md").read_text(encoding="utf-8")


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
        count = self.script("document.querySelectorAll('#turns > li').length")
        self.until(lambda: self.find("#send").text == "Send" and len(self.texts("#turns .row")) >= max(count, 1))

    def script(self, code: str):
        return self.browser.execute_script(f"return {code}")


@pytest.fixture
def page(browser, tmp_path):
    with chat_server(tmp_path / "me", code=CODE, idle_seconds=3600) as running:
        yield Page(browser, running)
    errors = [row["message"] for row in browser.get_log("browser") if row["level"] == "SEVERE"]
    assert [text for text in errors if not re.search("status of 4|REFUSED|CHUNKED", text)] == []


def test_a_reply_is_shown_while_it_is_written_and_nothing_in_it_acts(page, monkeypatch):
    def write(self):
        for piece in HOSTILE.split(" "):
            self.text += piece + " "
            yield piece + " "

    monkeypatch.setattr(ReplyStream, "__iter__", write)
    page.find("#line").send_keys("Show all.", Keys.ENTER)
    page.until(lambda: page.texts("#turns h1")[:1] == ["A title"])
    page.until(lambda: page.find("#send").text == "Send")
    page.until(lambda: page.texts("#turns .reply pre"))
    assert page.texts("#turns .reply h1") == ["A title"] and page.texts("#turns .reply strong") == ["bold"]
    assert page.texts("#turns p code") == ["code <b>"] and page.texts("#turns blockquote p") == ["quoted\nlines"]
    assert page.texts("#turns .reply ul > li")[::2] == ["one\ninner", "two"] and page.find("#turns .reply hr")
    assert page.texts("#turns .reply ol > li") == ["first", "<script>window.hit = 1</script>"]
    assert page.texts("#turns .reply pre") == ["if a < b: **stay**  # “<b>”"] and page.texts(".hljs-keyword") == ["if"]
    page.script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.press("Copy code")
    page.until(lambda: page.script("window.copied") == "if a < b: **stay**  # “<b>”\n")
    formulas = page.script(
        "[...document.querySelectorAll('#turns math')].map((one) => one.querySelector('msup').textContent)"
    )
    assert formulas == [f"{letter}2" for letter in "abcdef"]
    assert len(page.texts("#turns .reply .wide math[display=block]")) == 4, "also within a line"
    shown = page.find("#turns .reply").text
    assert "$5 and $10" in shown and "from $5-$10." in shown and "$$" not in shown and shown.endswith("And on.")
    assert page.texts("#turns th") == ["tea", "price"] and page.texts("#turns td") == ["green <i>x</i>", "3"]
    assert page.texts("#turns em") == ["slanted", "green"] and page.texts("#turns .reply a") == ["a page"]
    link = page.find("#turns a")
    assert link.get_attribute("rel") == "noopener noreferrer" and link.get_attribute("href") == "http://127.0.0.1/x?a=1"
    assert not page.texts("#turns img, #turns i, #turns script") and page.script("window.hit") is None


def test_a_browser_stays_signed_in_and_scripts_see_no_cookie(page):
    assert "#" not in page.browser.current_url and page.script("document.cookie") == ""
    (cookie,) = [one for one in page.browser.get_cookies() if one["name"] == f"personal_llm_{page.running.port}"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and cookie["expiry"] > time.time() + 29 * 24 * 3600
    first = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    page.browser.get(page.running.address)
    page.until(lambda: page.find("#line").is_displayed())
    page.browser.get("about:blank")
    page.browser.get(f"{page.running.address}/#code={CODE}")  # the link once more, in a browser that is signed in
    page.until(lambda: page.find("#line").is_displayed())
    page.browser.close()
    page.browser.switch_to.window(first)
    page.browser.delete_all_cookies()
    page.browser.get(f"{page.running.address}/#code={CODE}")  # a link in a tab that shows the page
    page.until(lambda: page.find("#connect").is_displayed())
    page.until(lambda: "token is missing or wrong" in page.find("#note").text)
    page.find("#token").send_keys("wrong", Keys.ENTER)
    page.until(lambda: "was used before" in page.find("#note").text)
    page.find("#token").clear()
    page.find("#token").send_keys(page.running.token, Keys.ENTER)
    page.until(lambda: page.find("#line").is_displayed())


def set_width(page, width):
    size = dict(width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


SIMILAR = "similar to “My knee hurts.”, which you corrected"


def test_a_reply_says_that_it_uses_corrections_and_why_and_what_is_not_trained_in(page):
    page.say("My knee hurts.")
    page.press("Correct")
    page.find("form.editor textarea").send_keys("Dear friend, rest today.")
    page.press("Save the correction")
    page.until(lambda: page.find("#said").text.startswith("Applies to similar prompts: your correction of"))
    page.until(lambda: page.texts("#turns .kind") == ["Your text"])
    page.press("New chat")
    page.until(lambda: not page.texts("#turns > li"))
    page.say("My knee hurts again.")
    page.until(lambda: page.texts("#turns .uses")[:1] and SIMILAR in page.texts("#turns .uses")[0])
    page.press("What I know about you")
    page.until(lambda: page.find("#learning").text == "1 correction not trained in yet.")
    page.press("Back to the chat")
    page.say("My knee hurts today.")
    page.press("More about this reply")
    page.press("Bad reply")
    page.until(lambda: page.texts("#turns .mark") == ["You did not like this reply"])
    page.say("Something else.")
    page.press("Undo …")
    page.press("Undo: your thumbs-down for the reply to “My knee hurts today.”")
    page.until(lambda: "Taken back: your thumbs-down" in page.find("#note").text and not page.texts("#turns .mark"))
    page.browser.refresh()
    page.until(lambda: "the nearest are of “My knee hurts.”" in page.find("#turns").text)
    page.press("Undo …")
    page.press("Undo: your correction of “My knee hurts.”")
    page.until(lambda: "Taken back: your correction" in page.find("#note").text)
    page.until(lambda: not page.find("#take-back").is_displayed())


def count_covered(page) -> float:
    "The pixels between the end of the newest turn and the top of the message field that are missing; 0: none."
    ends = "document.querySelector('#turns').lastElementChild.getBoundingClientRect().bottom"
    return page.script(f"{ends} - document.querySelector('#composer').getBoundingClientRect().top")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_redraws_what_somebody_types(page, width, monkeypatch):
    set_width(page, width)
    page.say("My knee hurts.")
    page.press("Correct")
    field = page.find("form textarea[id^=better]")
    field.send_keys("Rest")
    page.find("#line").send_keys("What is tea?", Keys.ENTER)
    page.until(lambda: len(page.texts("#turns > li .reply")) == 2 and page.find("#send").text == "Send")
    assert field.get_property("value") == "Rest", "another reply's end"
    pieces = write_without_end(monkeypatch)
    page.find("#line").send_keys("Count.", Keys.ENTER)
    page.until(lambda: page.script("document.querySelectorAll('#turns > li .reply').length") == 3)
    field.send_keys(" today")
    pieces.stop.set()
    page.until(lambda: page.find("#send").text == "Send")
    assert field.get_property("value") == "Rest today", "typed while a reply was written"
    monkeypatch.undo()
    page.press("More about this reply")
    page.press("Good reply")
    page.until(lambda: page.texts("#turns .mark") == ["You liked this reply"])
    assert field.get_property("value") == "Rest today", "a refresh of the lists"
    page.find("#line").send_keys("half a mess")
    if width < 1000:
        page.press("Chats")
    page.find("#search").send_keys("knee")
    page.until(lambda: len(page.texts("#talk-list .title")) == 1)
    page.press("New chat")
    page.until(lambda: not page.texts("#turns > li"))
    assert page.find("#line").get_property("value") == "half a mess", "a new talk"
    assert page.find("#search").is_displayed() == (width > 1000), "on a phone the list closes on a choice"
    if width < 1000:
        page.press("Chats")
    page.press("My knee hurts.")
    page.until(lambda: page.texts("#turns > li .reply"))
    assert page.find("form textarea[id^=better]").get_property("value") == "Rest today", "kept for its turn"
    page.press("Save the correction")
    page.until(lambda: page.texts("#turns > li .reply")[0] == "Rest today")
    assert not page.texts("form.editor")
    page.press("What I know about you")
    page.press("Change: My knee hurts.")
    page.find("#answers textarea").send_keys("Sleep")
    page.find("#always").send_keys("In short.", Keys.ENTER)
    page.until(lambda: page.texts("#instructions li") != ["Nothing yet."])
    assert page.find("#answers textarea").get_property("value") == "Sleep"


def test_a_reply_goes_on_while_the_page_is_loaded_anew_and_one_that_was_cut_continues(page, monkeypatch):
    pieces = write_without_end(monkeypatch)
    page.find("#line").send_keys("My knee hurts.", Keys.ENTER)
    page.until(lambda: page.texts("#turns .reply")[:1] and page.texts("#turns .reply")[0].startswith("0 1 2"))
    page.browser.refresh()
    page.until(lambda: page.texts("#turns .reply") and page.find("#send").text == "Stop")
    seen = page.until(lambda: page.texts("#turns .reply")[0])
    page.until(lambda: len(page.texts("#turns .reply")[0]) > len(seen))
    page.press("Stop")
    page.until(lambda: page.find("#send").text == "Send" and pieces.left.is_set())
    page.until(lambda: page.texts("#turns [name=better]"))
    monkeypatch.undo()
    session = page.running.session
    session.talk.open(None)
    session.store_message("What is tea?")  # as a server leaves it that was killed
    page.browser.refresh()
    page.until(lambda: page.texts("#turns .reply") == ["The reply was cut off before its end."])
    page.press("Continue")
    page.until(lambda: page.texts("#turns [name=better]") and "cut off" not in page.find("#turns").text)
    assert page.texts("#turns .own") == ["What is tea?"]


def tell(page, prompt, reply, age=0.0, talk=None):
    "Store a turn of a chat, some days ago."
    session = page.running.session
    session.talk.open(talk)
    d = Dialogue(prompt, reply, time=time.time() - age * 86400, origin="model")
    session.me.arrive(d, session.talk.key, turns=[])
    return session.talk.key


@pytest.mark.parametrize("width", [1280, 390])
def test_many_chats_have_a_scroller_of_their_own_and_the_newest_is_first(page, width):
    set_width(page, width)
    for number in range(200):
        tell(page, f"Question {number} about a journey that takes rather long. " * 2, "Yes. " * 300, (199 - number) / 4)
    page.browser.refresh()
    page.until(lambda: page.texts("#turns .reply"))
    if width < 1000:
        page.press("Chats")
    page.until(lambda: len(page.texts("#talk-list .title")) == 200)
    assert page.texts("#talk-list .title")[0].startswith("Question 199") and page.texts(".day")[:2] == [
        "Today",
        "Yesterday",
    ]
    place = "((one) => one.getBoundingClientRect())(document.querySelector('%s'))"
    assert page.script("document.querySelector('#talk-list').scrollTop") == 0
    assert 30 < page.script(place % ".title" + ".height") < 50, "two lines"
    for selector in ("#new", "#search", "[aria-current]", "#line"):
        assert 0 <= page.script(place % selector + ".top") and page.script(place % selector + ".bottom") <= 900, (
            selector
        )
    page.script("document.querySelector('#talk-list').lastElementChild.scrollIntoView()")
    if width > 1000:
        assert count_covered(page) <= 0, "the chat stays where it was"
    page.script("document.querySelector('#talk-list').lastElementChild.querySelector('[name=more]').click()")
    page.until(lambda: page.texts("[popover]:popover-open"))


def test_arabic_and_hebrew_run_from_right_to_left(page):
    texts = [
        ("اشرح لي لماذا السماء زرقاء؟", "لأن:\n\n- الضوء\n- `x = 1`"),
        ("מה שלומך?", "שלום, `Python`!"),
        ("Hello.", "Hi."),
    ]
    talk = None
    for prompt, reply in texts:
        talk = tell(page, prompt, reply, talk=talk)
    page.browser.refresh()
    page.until(lambda: len(page.texts("#turns .reply")) == 3)
    edges = page.script("[...document.querySelectorAll('.own')].map((one) => one.getBoundingClientRect().right)")
    assert len({*edges}) == 1, "own messages are on one side"
    looks = "[...document.querySelectorAll('%s')].map((one) => getComputedStyle(one).direction)"
    assert page.script(looks % ".own") == page.script(looks % ".reply > p") == ["rtl", "rtl", "ltr"]
    assert page.script(looks % ".reply ul") == ["rtl"]
    page.find("#line").send_keys("שלום")
    assert page.script(looks % "#line") == ["rtl"]


COVERED = """[...document.querySelectorAll('header, section')].filter((one) => {
  const place = one.getBoundingClientRect(), note = document.querySelector('#note').getBoundingClientRect();
  return one.checkVisibility() && place.top < note.bottom && place.bottom > note.top;
}).length"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_note_covers_and_moves_nothing_and_is_closed_and_called_back(page, width):
    set_width(page, width)
    page.say("My knee hurts.")
    place = "document.querySelector('%s').getBoundingClientRect().top"
    composer = page.script(place % "#composer")
    page.press("More about this reply")
    page.press("Good reply")
    page.until(lambda: page.find("#take-back").is_displayed())
    assert page.script(place % "#composer") == composer and count_covered(page) <= 0
    assert page.script(COVERED) == 0
    said = page.find("#said").text
    page.press("Close")
    assert not page.find("#note").is_displayed() and said
    page.press("Undo …")
    assert page.find("#said").text == said
    page.find("#line").click()
    page.until(lambda: not page.find("#note").is_displayed())  # by itself, once nobody is at it
    page.press("What I know about you")
    page.until(lambda: page.find("#always").is_displayed())
    page.script("document.querySelector('#known').scrollTop = 40")
    field = page.script(place % "#always")
    for label in ("Undo …", "Close") * (width < 1000):  # there it scrolls
        page.press(label)
        page.until(lambda: abs(page.script(place % "#always") - field) < 2)  # what is read stays where it is
    page.find("#always").send_keys("In rhyme.", Keys.ENTER)
    page.until(lambda: "all replies" in page.find("#said").text)
    assert page.script(COVERED) == 0
    page.press("Undo …")
    page.press("Undo: your instruction “In rhyme.”")
    page.until(lambda: "Taken back" in page.find("#note").text)


def test_commands_of_the_terminal_work_or_say_where_to_click(page):
    page.say("My knee hurts.")
    stored = len(page.running.session.state.archive.dialogues)
    write = lambda text: page.find("#line").send_keys(text, Keys.ENTER)
    lines = {"/better Rest it.": "Applies to similar prompts", "/why": "Generated without a fine-tuned adapter"}
    lines |= {"/always In rhyme.": "all replies", "/drop 1": "No reply uses it", "/undo": "Taken back"}
    lines |= {"/help": "/better TEXT", "/forget nothing": "Nothing stored contains"}
    for line, shown in lines.items():
        write(line)
        page.until(lambda: shown.lower() in page.find("#said").text.lower())
        assert page.find("#line").get_property("value") == ""
    write("/undp")
    page.until(lambda: "isn't a command" in page.find("#said").text)
    assert page.find("#line").get_property("value") == "/undp", "it can be mended"
    page.find("#line").clear()
    write("/new")
    page.until(lambda: not page.texts("#turns > li"))
    assert len(page.running.session.state.archive.dialogues) == stored


def test_a_first_visit_has_three_steps(page):
    current = lambda: page.texts("#steps [aria-current]")
    page.until(lambda: current() and current()[0].startswith("Ask."))
    page.press("What can I cook from rice, eggs and tomatoes?")
    page.until(lambda: current() and current()[0].startswith("Correct."))
    page.press("Correct")
    page.find("form.editor textarea").send_keys("Fried rice, dear friend.")
    page.press("Save the correction")
    page.until(lambda: current() and current()[0].startswith("Ask again."))
    page.press("New chat")
    page.say("What can I cook from rice?")
    page.until(lambda: page.texts("#turns .uses"))
    page.until(lambda: not page.find("#steps").is_displayed())


DAY = Path(__file__).with_name("page_day.txt").read_text(encoding="utf-8")
SCENES = [line.split(": ", 1) for line in DAY.splitlines()]
NAME = "((a) => a.ariaLabel || a.labels?.[0]?.textContent.trim() || a.textContent.trim())(document.activeElement)"


class Person:
    "Somebody at the keyboard alone. The first word of a step is a method or a key."

    def __init__(self, page, monkeypatch, folder):
        self.page = page
        self.monkeypatch = monkeypatch
        self.folder = folder

    def do(self, step):
        word, _, rest = step.partition(" ")
        if word.isupper():
            return self.send(*[getattr(Keys, word)] * int(rest or 1))
        return getattr(self, word)(rest)

    def send(self, *keys):
        ActionChains(self.page.browser).send_keys(*keys).perform()

    def shift(self, key):
        ActionChains(self.page.browser).key_down(Keys.SHIFT).send_keys(key).key_up(Keys.SHIFT).perform()

    def walk(self, name, press):
        "Press Tab until a control whose name begins like this has the focus."
        for _ in range(200):
            press(Keys.TAB)
            if self.page.script(NAME).startswith(name):
                return
        raise AssertionError(f"no Tab reaches {name!r}")

    def to(self, name):
        name, _, times = name.rpartition(" ") if name[-1].isdigit() else (name, "", 1)
        for _ in range(int(times)):
            self.walk(name, self.send)

    def on(self, name):
        self.page.until(lambda: self.page.script(NAME).startswith(name))

    def pick(self, name):
        for _ in range(9):
            if self.page.script(NAME).startswith(name):
                return self.send(Keys.ENTER)
            self.send(Keys.DOWN)
        raise AssertionError(f"no arrow reaches {name!r}")

    def back(self, name):
        self.walk(name, self.shift)

    def type(self, text):
        self.send(text)

    def wide(self, _):
        self.send("A very long word: " + "x" * 300)

    def refresh(self, _):
        self.page.browser.refresh()

    def line(self, _):
        self.shift(Keys.ENTER)

    def see(self, words):
        selector, _, text = map(json.dumps, words.partition(" "))
        shows = f"(one) => one.checkVisibility() && one.innerText.includes({text})"  # at once: a reply grows
        self.page.until(lambda: self.page.script(f"[...document.querySelectorAll({selector})].some({shows})"))

    def gone(self, words):
        selector, _, text = words.partition(" ")
        self.page.until(lambda: self.page.find("#send").text == "Send")
        self.page.until(lambda: not any(text in one for one in self.page.texts(selector)))

    def turns(self, number):
        ready = lambda: self.page.find("#send").text == "Send" and len(self.page.texts("#turns .reply")) == int(number)
        self.page.until(ready)
        self.page.until(lambda: number == "0" or count_covered(self.page) <= 0)

    def talks(self, number):
        self.page.until(lambda: len(self.page.texts("#talk-list .title")) == int(number))

    def stored(self, number):
        self.page.until(lambda: len(self.page.running.session.me.archive.dialogues) == int(number))

    def slow(self, _):
        write_without_end(self.monkeypatch)

    def fast(self, _):
        self.monkeypatch.undo()

    def unfold(self, _):
        self.back("Chats")
        if not self.page.find("#search").is_displayed():
            self.send(Keys.ENTER)

    def answer(self, text):
        prompt = self.page.until(lambda: expected_conditions.alert_is_present()(self.page.browser))
        prompt.send_keys(text)
        prompt.accept()

    def saved(self, _):
        (file,) = self.page.until(lambda: [*self.folder.glob("*.json")])
        assert json.loads(file.read_text())[0]["prompt"] == "Hello."

    def keep(self, _):
        self.shift(Keys.TAB)  # from the button to the last tick
        self.send(Keys.SPACE)

    def yes(self, _):
        self.walk("Forget", self.send)
        self.send(Keys.ENTER)

    def no(self, _):
        self.walk("Cancel", self.send)
        self.send(Keys.ENTER)

    def scope(self, name):
        self.page.until(lambda: name in self.page.running.session.me.state.scopes.values())

    def unscoped(self, _):
        self.page.until(lambda: not any(self.page.running.session.me.state.scopes.values()))


@pytest.mark.parametrize("width", [1280, 390])
def test_a_day_by_the_keyboard_alone(page, width, monkeypatch, tmp_path):
    set_width(page, width)
    downloads = dict(behavior="allow", downloadPath=str(tmp_path / "saved"))
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    page.script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    person = Person(page, monkeypatch, tmp_path / "saved")
    assert len(SCENES) >= 20
    for name, steps in SCENES:
        for step in steps.split(" | "):
            try:
                person.do(step)
            except Exception as error:
                told = page.script("document.querySelector('#said').textContent")
                raise AssertionError(f"{name}: {step}\n{told}\n{page.find('body').text}") from error
        assert page.script("document.documentElement.scrollWidth") <= width, name


def test_axe_finds_nothing(page):
    "Seven states, light and dark, at two widths."
    package = pytest.importorskip("axe_core_python", reason="pip install axe-core-python")
    script = Path(os.environ.get("AXE_SCRIPT") or Path(package.__file__).parent / "axe.min.js")
    page.browser.execute_script(script.read_text(encoding="utf-8"))
    states = dict(empty=[], talk=["What can I cook from rice, eggs and tomatoes?"], correction=["Correct"])
    states |= dict(
        saved=["Save the correction"],
        menu=["More about this reply"],
        forget=["Forget message and reply"],
        known=["Cancel", "What I know about you"],
    )
    rows = "found.violations.map((one) => [one.id, one.nodes.map((node) => node.html)])"
    run = f"const done = arguments[0]; axe.run().then((found) => done({rows}))"
    problems = {}
    for state, buttons in states.items():
        for label in buttons:
            page.press(label)
            page.until(lambda: page.find("#send").text in ("Send", ""))
        if state == "talk":
            page.until(lambda: page.texts("#turns .row"))
        for width in (1280, 390):
            set_width(page, width)
            for scheme in ("light", "dark"):
                features = [dict(name="prefers-color-scheme", value=scheme)]
                page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=features))
                if found := page.browser.execute_async_script(run):
                    problems[state, width, scheme] = found
    assert problems == {}


def test_placeholders_can_be_read(page):
    "WCAG asks for 4.5 to 1; axe leaves placeholders out."
    light = "(x) => x > 10 ? ((x / 255 + .055) / 1.055) ** 2.4 : x / 3295"
    parts = f"((c) => c.match(/[0-9.]+/g).map({light}))"
    weigh = f"((c) => ((v) => .2126 * v[0] + .7152 * v[1] + .0722 * v[2] + .05)({parts}(c)))"
    for scheme in ("light", "dark"):
        features = [dict(name="prefers-color-scheme", value=scheme)]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=features))
        ink = page.script(f"{weigh}(getComputedStyle(document.querySelector('#line'), '::placeholder').color)")
        card = page.script(f"{weigh}(getComputedStyle(document.querySelector('#line')).backgroundColor)")
        assert max(ink, card) / min(ink, card) >= 4.5, scheme


def test_a_reply_costs_two_stops_of_the_keyboard(page, monkeypatch):
    page.say("My knee hurts.")
    page.say("What is tea?")
    person = Person(page, monkeypatch, None)
    person.to("Correct")
    person.send(Keys.TAB)
    assert page.script(NAME) == "More about this reply"
    person.send(Keys.ENTER)
    person.on("Good reply")
    person.send(Keys.TAB)
    assert page.script(NAME) == "Correct", "of the next reply"
    assert not page.texts("[popover]:popover-open")


def test_a_server_that_has_gone_is_a_line(page):
    page.running.close()
    page.find("#line").send_keys("Hello", Keys.ENTER)
    page.until(lambda: "does not answer" in page.find("#note").text)
    page.until(lambda: page.find("#line").get_property("value") == "Hello")
