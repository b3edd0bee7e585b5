"The page in a real browser: a whole day, the keyboard, a phone's width, dark colours, axe-core, and another site."

import itertools
import json
import os
import shutil
import threading
import time
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from servers import chat_server, serving
from tiny import shared

pytest.importorskip("selenium", reason="the extra `browser` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("chromium and chromium-driver are not installed", allow_module_level=True)

from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from personal_llm.app.server import ChatCell
from personal_llm.base.core import Dialogue
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.scoring import ScoredDialogue
from personal_llm.device.conversation import ChatSession
from personal_llm.device.memory import join_conversation
from personal_llm.device.replay import place_candidate
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


def until(holds, seconds=120):  # a busy machine is no failure
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
            element = [one for one in browser.find_elements(By.XPATH, words) if one.is_displayed()][place]
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True
        except (StaleElementReferenceException, ElementClickInterceptedException):  # drawn anew, or scrolling still
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
    count = len(texts(browser, "#turns > li"))
    browser.find_element(By.ID, "line").send_keys(text + "\n")
    until(lambda: len(texts(browser, "#turns > li")) > count and texts(browser, "#turns > li:last-child button"))


def axe_script():
    "axe-core: from the environment's AXE_CORE, or of the package axe-core-python."
    if "AXE_CORE" in os.environ:
        return Path(os.environ["AXE_CORE"]).read_text()
    package = pytest.importorskip("axe_core_python", reason="the extra `browser` is not installed")
    return Path(package.__file__).with_name("axe.min.js").read_text()


def violations(browser, script):
    "What axe-core finds in the view that is shown, with its contrasts."
    if not browser.execute_script("return !!window.axe"):
        browser.execute_script(script)
    run = "axe.run().then(r => arguments[0](r.violations.map(v => [v.id, v.nodes.map(n => n.html)])))"
    return browser.execute_async_script(run)


def look(browser, name):
    "A picture, where the environment names a folder for them."
    if "PAGE_PICTURES" in os.environ:
        browser.save_screenshot(str(Path(os.environ["PAGE_PICTURES"], f"{name}.png")))


def set_theme(browser, theme):
    script = "const s = document.getElementById('theme'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))"
    browser.execute_script(script, theme)


FITS = "return [document.documentElement, document.querySelector('main')].every(e => e.scrollWidth <= e.clientWidth)"


def walk(browser, name):
    "Each view at both widths, light and dark: no view is wider than its window, and axe-core finds nothing."
    script = axe_script()
    for theme, width in itertools.product(("light", "dark"), (1200, 400)):
        browser.set_window_size(width, 900)
        set_theme(browser, theme)
        for view in ("Chat", "Memory", "You", "Learning", "Settings"):
            click(browser, view)
            if view == "You":
                until(lambda: not any(text.startswith("reading") for text in texts(browser, "#style li")))
            assert browser.execute_script(FITS), (view, theme, width)
            assert violations(browser, script) == [], (view, theme, width)
            look(browser, f"{name}-{view.lower()}-{theme}-{width}")
    browser.set_window_size(1200, 900)
    set_theme(browser, "")
    click(browser, "Chat")


def react(browser, running):
    "A correction, two thumbs, a second try, one of two, a turn taken back."
    for line in ("My knee hurts.", "What shall I cook?", "I cannot sleep."):
        talk(browser, line)
    click(browser, "Edit")
    field = browser.find_element(By.CSS_SELECTOR, "#turns textarea")
    field.clear()
    field.send_keys(BETTER)
    click(browser, "Save")
    until(lambda: BETTER in texts(browser, "#turns .reply"))
    for name, place in (("Good reply", 1), ("Bad reply", 2)):
        click(browser, name, place)
        until(lambda: name in texts(browser, "#turns [aria-pressed=true]"))
    shown = texts(browser, "#turns > li:last-child .reply")
    click(browser, "Try again")
    until(
        lambda: (
            texts(browser, "#turns > li:last-child button") and texts(browser, "#turns > li:last-child .reply") != shown
        )
    )
    click(browser, "Write a second reply")
    until(lambda: len(texts(browser, ".offer")) == 2)
    look(browser, "choice")
    first, second = texts(browser, ".offer .reply")
    click(browser, "Reply 2 is better")
    until(lambda: texts(browser, "#turns > li:last-child .reply") == [second])
    assert [row["kind"] for row in running.session.me.feedback_rows] == ["edit", "thumb_up", "retry", "choice"]
    talk(browser, "Never mind.")
    click(browser, "Delete this turn")
    until(lambda: len(texts(browser, "#turns > li")) == 3)


def test_a_whole_day(browser, tmp_path):
    with chat_server(fresh(tmp_path / "me"), learn_every=3) as running:
        open_page(browser, running)
        look(browser, "welcome")
        react(browser, running)
        browser.find_element(By.ID, "line").clear()  # the prompt of the deleted turn came back
        talk(browser, "While you learn, how are you?")
        until(lambda: running.session.me.rounds)
        click(browser, "Learning")
        until(lambda: browser.find_element(By.ID, "plot").is_displayed())
        assert "before" in browser.find_element(By.ID, "plot").get_attribute("aria-label")
        click(browser, "Compare replies before and after")
        until(lambda: any("Your version" in text for text in texts(browser, ".example")))
        walk(browser, "day")
        click(browser, "Learning")
        click(browser, "Undo the last fine-tune")
        click(browser, "Undo", -1)
        until(lambda: "undone" in browser.find_element(By.ID, "learning-state").text)
        assert not running.session.me.rounds and not list((tmp_path / "me").rglob("adapter_model.safetensors"))
        click(browser, "Learn now")
        until(lambda: running.session.me.rounds)
    with chat_server(fresh(tmp_path / "me")) as running:  # another day
        open_page(browser, running)
        until(lambda: BETTER in texts(browser, "#turns .reply"))
        click(browser, "Memory")
        until(lambda: len(texts(browser, "#dialogues li")) == 4)
        browser.find_element(By.ID, "search-field").send_keys("knee\n")
        until(lambda: len(texts(browser, "#dialogues li")) == 1)
        click(browser, "Forget all with “knee”")
        click(browser, "Forget", -1)
        until(lambda: any("cannot reach" in text for text in texts(browser, "#forgotten")))
        look(browser, "forgotten")
        assert "My knee hurts." not in [d.prompt for d in running.session.me.buffer.dialogues]
        click(browser, "Chat")
        until(lambda: len(texts(browser, "#turns > li")) == 3)  # `talk` counts from here
        talk(browser, "And now?")
        assert len(texts(browser, "#turns > li")) == 4 and running.session.me.adapter is None
    errors = [row["message"] for row in browser.get_log("browser") if row["level"] == "SEVERE"]
    assert [text for text in errors if "ERR_CONNECTION_REFUSED" not in text] == []
    events = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    sent = {event["params"].get("request", {}).get("url", "") for event in events}
    assert [url for url in sent if url.startswith("http") and not url.startswith("http://127.0.0.1:")] == []


def test_the_page_says_how_to_go_on(browser, tmp_path, monkeypatch):
    "A fine-tune at eight answers, replies that a fine-tune left alone, a server that has ended, and a new token."
    with chat_server(fresh(tmp_path / "me"), learn_every=8) as running:
        open_page(browser, running)
        talk(browser, "My knee hurts.")
        click(browser, "Good reply")
        until(lambda: running.session.me.feedback_rows)
        click(browser, "Learning")
        until(lambda: "At 8 new answers a fine-tune starts by itself" in texts(browser, "#learning-state")[0])
        monkeypatch.setattr(running.session.model, "reply", lambda dialogues: ["Alike."] * len(dialogues))
        click(browser, "Learn now")
        until(lambda: running.session.me.rounds)
        until(lambda: browser.find_element(By.ID, "compare").is_enabled())
        click(browser, "Compare replies before and after")
        until(lambda: any("has not changed this reply" in text for text in texts(browser, ".example")))
        click(browser, "Chat")
        gate = threading.Event()
        running.worker.executor.submit(gate.wait)
        click(browser, "Delete this turn")
        until(lambda: "working" in texts(browser, "#state")[0])
        gate.set()
        until(lambda: "working" not in texts(browser, "#state")[0])
    browser.find_element(By.ID, "line").clear()  # the prompt of the deleted turn came back
    browser.find_element(By.ID, "line").send_keys("Are you there?\n")
    until(lambda: any("Start personal-llm serve again" in text for text in texts(browser, "#notices li")))
    assert not any("fetch" in text for text in texts(browser, "#notices li"))
    look(browser, "gone")
    assert browser.find_element(By.ID, "line").get_attribute("value") == "Are you there?"
    assert texts(browser, "#turns .reply") == [], "no bubble waits for ever"
    with chat_server(fresh(tmp_path / "me"), token="another-token-of-today", port=running.port) as running:
        until(lambda: browser.find_element(By.ID, "connect").is_displayed())
        assert "printed last" in browser.find_element(By.ID, "connect-reason").text
        look(browser, "restarted")
        browser.find_element(By.ID, "token-field").send_keys(running.token + "\n")
        until(lambda: browser.find_element(By.ID, "line").is_displayed())
        assert browser.find_element(By.ID, "line").get_attribute("value") == "Are you there?"
        assert not any("does not answer" in text for text in texts(browser, "#notices li, #state"))


def test_forgetting_during_a_fine_tune_gives_a_sign_of_life(browser, tmp_path):
    with chat_server(fresh(tmp_path / "me")) as running:
        open_page(browser, running)
        talk(browser, "My knee hurts.")
        gate = threading.Event()
        running.worker.executor.submit(gate.wait)
        click(browser, "Memory")
        browser.execute_script("document.getElementById('forget-all').scrollIntoView()")
        click(browser, "Forget everything")
        click(browser, "Forget", -1)
        until(lambda: any("Forgetting" in text for text in texts(browser, "#forgotten")))
        gate.set()
        until(lambda: any("Forgotten: 1 dialogue" in text for text in texts(browser, "#forgotten")))


def test_the_keyboard_is_enough(browser, tmp_path):
    "Tab, Enter and Space alone: send a line, like its reply, and reach every view; the focus is always visible."
    from selenium.webdriver import ActionChains, Keys

    with chat_server(fresh(tmp_path / "me")) as running:
        open_page(browser, running)
        focus = lambda: browser.execute_script("return document.activeElement.innerText || document.activeElement.id")

        def tab_to(text):
            for _ in range(40):
                ActionChains(browser).send_keys(Keys.TAB).perform()
                if focus() == text:
                    outline = "return getComputedStyle(document.activeElement).outlineStyle"
                    assert browser.execute_script(outline) != "none"
                    return
            raise AssertionError(f"Tab does not reach {text}")

        tab_to("line")
        ActionChains(browser).send_keys("My knee hurts.", Keys.ENTER).perform()
        until(lambda: texts(browser, "#turns > li:last-child button"))
        browser.execute_script("document.activeElement.blur()")
        tab_to("Good reply")
        ActionChains(browser).send_keys(Keys.SPACE).perform()
        until(lambda: running.session.me.feedback_rows)
        for view in ("Memory", "You", "Learning", "Settings"):
            browser.execute_script("document.activeElement.blur(); getSelection().removeAllRanges()")
            tab_to(view)
            ActionChains(browser).send_keys(Keys.ENTER).perform()
            until(lambda: browser.find_element(By.ID, view.lower()).is_displayed())


COVERED = """
const main = document.getElementById("main"), isCovered = (element) => {
  const box = element.getBoundingClientRect();
  return !element.contains(document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2));
};
return [...document.querySelectorAll("#turns button")].filter((element) => {
  for (const start of [0, main.scrollHeight, element.offsetTop - main.clientHeight + element.offsetHeight]) {
    main.scrollTop = start;
    document.getElementById("line").focus({preventScroll: true});
    element.focus();
    if (isCovered(element)) return true;
  }
}).map((element) => element.getAttribute("aria-label"));
"""


@pytest.mark.parametrize("width, height", [(1200, 600), (400, 700)])
def test_no_focused_button_is_under_the_message_line(browser, tmp_path, width, height):
    "Nor under the list of conversations, which stays at the top of a phone."
    with chat_server(fresh(tmp_path / "me")) as running:
        for number in range(8):
            list(running.session.say(f"Message {number}."))
        browser.set_window_size(width, height)
        open_page(browser, running)
        until(lambda: len(texts(browser, "#turns > li")) == 8)
        assert browser.execute_script(COVERED) == []
        type_into(browser, "#line", "A message of many lines. " * 40)
        assert browser.execute_script(COVERED) == []


def type_into(browser, selector, text):
    field = until(lambda: next(iter(browser.find_elements(By.CSS_SELECTOR, selector)), None))
    field.clear()
    field.send_keys(text)


def value(browser, selector):
    script = "return document.querySelector(arguments[0])?.value"
    return browser.execute_script(script, selector)


def test_what_is_typed_survives_a_fine_tune_another_tab_and_a_reload(browser, tmp_path):
    with chat_server(fresh(tmp_path / "me")) as running:
        open_page(browser, running)
        for line in ("My knee hurts.", "What shall I cook?"):
            talk(browser, line)
        click(browser, "Edit")
        type_into(browser, "#turns textarea", "Dear friend, ")
        field = browser.find_element(By.CSS_SELECTOR, "#turns textarea")
        first, second = (turn["id"] for turn in running.session.turns)
        loop = running.worker.executor
        loop.submit(running.session.feedback, "better", second, "Soup.").result()  # another tab
        loop.submit(running.worker.after_job).result()
        until(lambda: "Soup." in texts(browser, "#turns .reply"))
        field.send_keys("rest ")
        for _ in range(3):
            loop.submit(running.session.learn).result()
            loop.submit(running.worker.after_job).result()
            until(
                lambda: (
                    "learning from your answers" in texts(browser, "#state")[0]
                    or not running.session.background_training
                )
            )
            field.send_keys("and rest ")
            until(lambda: running.session.background_training is None)
        until(lambda: "new answer" in texts(browser, "#state")[0])
        assert browser.execute_script("return document.activeElement === arguments[0]", field), "the focus stays, too"
        better = "Dear friend, rest " + 3 * "and rest "
        assert value(browser, "#turns textarea") == better
        type_into(browser, "#line", "A draft")
        browser.refresh()
        until(lambda: value(browser, "#turns textarea") == better and value(browser, "#line") == "A draft")
        click(browser, "Save")
        until(lambda: better.strip() in texts(browser, "#turns .reply"))
        assert running.session.me.state.versions[first].response == better.strip()
        browser.refresh()
        until(lambda: value(browser, "#line") == "A draft" and texts(browser, "#turns > li"))
        assert value(browser, "#turns textarea") is None
        loop.submit(running.session.forget, None, [second]).result()  # another tab
        loop.submit(running.worker.after_job).result()
        until(lambda: len(texts(browser, "#turns > li")) == 1)
        click(browser, "Edit my message")
        type_into(browser, "#turns textarea", "My elbow hurts.")
        click(browser, "Send again")
        until(lambda: [turn["prompt"] for turn in running.session.turns] == ["My elbow hurts."])


def test_a_click_is_not_lost_when_the_page_is_drawn_meanwhile(browser, tmp_path):
    "Between press and release the page redraws nothing; a button that needs words asks for them."
    from selenium.webdriver import ActionChains

    with chat_server(fresh(tmp_path / "me")) as running:
        open_page(browser, running)
        talk(browser, "My knee hurts.")
        state, session, loop = running.session.me.state, running.session, running.worker.executor
        named = lambda text: next(one for one in browser.find_elements(By.TAG_NAME, "button") if one.text == text)
        ActionChains(browser).click_and_hold(named("Good reply")).perform()
        loop.submit(session.feedback, "edit", session.turns[0]["id"], BETTER).result()  # another tab
        loop.submit(session.messages_to_user.extend, ["One line.", "Another line."]).result()
        loop.submit(running.worker.after_job).result()
        time.sleep(1.2)
        ActionChains(browser).release().perform()
        until(lambda: [row["kind"] for row in state.feedback_rows] == ["edit", "thumb_up"])
        until(lambda: BETTER in texts(browser, "#turns .reply") and len(texts(browser, "#notices li")) == 2)
        click(browser, "Edit")
        browser.find_element(By.CSS_SELECTOR, "#turns textarea").clear()
        click(browser, "Save")
        until(lambda: any("Write what you would have liked" in text for text in texts(browser, "#notices li")))


def test_forgotten_words_leave_the_drafts_of_every_tab(browser, tmp_path):
    drafts = lambda: browser.execute_script("return sessionStorage.getItem('personal_llm.drafts')")
    with chat_server(fresh(tmp_path / "me")) as running:
        open_page(browser, running)
        talk(browser, "My knee hurts.")
        talk(browser, "What shall I cook?")
        click(browser, "Edit", 1)
        type_into(browser, "#turns textarea", "Rest your Zanzibar knee.")
        type_into(browser, "#line", "And Zanzibar?")
        first = browser.current_window_handle
        assert drafts().count("Zanzibar") == 2
        browser.switch_to.new_window("tab")
        open_page(browser, running)
        click(browser, "Memory")
        browser.find_element(By.ID, "search-field").send_keys("zanzibar\n")
        click(browser, "Forget all with “zanzibar”")
        click(browser, "Forget", -1)
        until(lambda: any("Forgotten: 0 dialogues" in text for text in texts(browser, "#forgotten")))
        browser.switch_to.window(first)
        until(lambda: "Zanzibar" not in drafts() and value(browser, "#line") == "")
        assert value(browser, "#turns textarea") is None, "the open editor goes, too"


def test_conversations_are_listed_searched_named_and_deleted(browser, tmp_path):
    with chat_server(fresh(tmp_path / "me")) as running:
        for number in range(30):
            list(running.session.say(f"Message {number} about knees."))
        running.session.open_conversation()
        list(running.session.say("What shall I cook?"))
        open_page(browser, running)
        listed = lambda: texts(browser, "#conversations button")
        shown = lambda: texts(browser, "#turns .own")
        until(lambda: shown() == ["What shall I cook?"])
        assert listed() == ["What shall I cook?", "Message 0 about knees."]
        click(browser, "Message 0 about knees.")
        until(lambda: shown()[-1:] == ["Message 29 about knees."])
        assert len(shown()) == 20
        browser.execute_script("document.getElementById('main').scrollTop = 0")
        until(lambda: len(shown()) == 30)
        assert shown() == [f"Message {number} about knees." for number in range(30)], "no gap"
        type_into(browser, "#find-field", "message 7 ")
        until(lambda: listed() == ["Message 0 about knees."])
        click(browser, "New")
        until(lambda: shown() == [])
        click(browser, "Message 0 about knees.")
        until(lambda: len(shown()) == 23 and shown()[0] == "Message 7 about knees.")
        browser.find_element(By.ID, "find-field").clear()
        browser.find_element(By.ID, "find-field").send_keys("k")
        until(lambda: len(listed()) == 2)
        click(browser, "New")
        until(lambda: shown() == [])
        type_into(browser, "#line", "A draft of the new one")
        click(browser, "What shall I cook?")
        until(lambda: shown() == ["What shall I cook?"] and value(browser, "#line") == "")
        click(browser, "New")
        until(lambda: value(browser, "#line") == "A draft of the new one")
        click(browser, "What shall I cook?")
        until(lambda: shown() == ["What shall I cook?"])
        click(browser, "Rename")
        type_into(browser, "#title-field", "Kitchen")
        click(browser, "Rename", -1)
        until(lambda: "Kitchen" in listed())
        look(browser, "conversations")
        click(browser, "Delete")
        click(browser, "Delete", -1)
        until(lambda: listed() == ["Message 0 about knees."] and len(shown()) == 20)
        assert [*running.session.me.state.conversations] == [""]


def add_turns(session, num_turns, num_conversations):
    "Store turns without a model: numbered ones in each conversation, in turn."
    scores = session.me.score([Dialogue("Tea?", "Yes.")])[0].scores
    for number in range(num_turns):
        d = Dialogue(
            f"Message {number} " + "about my knee " * 8, "Rest it well. " * 20, time=number + 1.0, origin="model"
        )
        key = join_conversation(f"c{number % num_conversations}")
        place_candidate(session.me.state, session.me.arrive(ScoredDialogue(d, scores), key))
    session.save()


FIND = """
const done = arguments[1], field = document.getElementById("find-field"), begin = performance.now();
const list = document.getElementById("conversations");
new MutationObserver(() => done(performance.now() - begin)).observe(list, {childList: true});
field.value = arguments[0];
field.dispatchEvent(new Event("input"));
"""


@pytest.mark.later
def test_ten_thousand_turns_in_three_hundred_conversations(browser, tmp_path):
    "Open within a second, search within .2 seconds, and scroll to the first turn without a gap."
    session = fresh(tmp_path / "me")
    add_turns(session, 10_000, 300)
    with chat_server(session) as running:
        open_page(browser, running)
        seconds = []
        for _ in range(5):
            begin = time.monotonic()
            browser.refresh()  # the first time perhaps before it is connected
            until(
                lambda: len(texts(browser, "#turns > li")) >= 20 and len(texts(browser, "#conversations button")) == 300
            )
            seconds.append(time.monotonic() - begin)
        words = ("message 1234 ", "message 9999 ", "nothing of this", "knee", "")
        searches = [browser.execute_async_script(FIND, text) / 1000 for text in words]
        print("open", sorted(seconds), "search", searches)
        assert min(seconds) <= 1 and sorted(searches)[2] <= 0.2
        type_into(browser, "#find-field", "message 99 about")
        until(lambda: len(texts(browser, "#conversations button")) == 1)
        browser.find_element(By.CSS_SELECTOR, "#conversations button").click()
        until(lambda: any("Message 99 " in text for text in texts(browser, "#turns .own")))
        shown = lambda: [text.split()[1] for text in texts(browser, "#turns .own")]
        while browser.find_element(By.ID, "earlier").is_displayed():
            count = len(shown())
            browser.execute_script("document.getElementById('main').scrollTop = 0")
            until(lambda: len(shown()) > count)
        assert shown() == [str(number) for number in range(99, 10_000, 300)]


PAYLOADS = """<img src=x onerror="window.hit=1"> <script>window.hit=1</script> [x](javascript:window.hit=1)
[y](data:text/html,<script>window.hit=1</script>) <svg onload="window.hit=1"> ![z](https://e.example/beacon.png)
<iframe srcdoc="<script>parent.hit=1</script>"></iframe> <a href="javascript:window.hit=1">w</a>"""
RICH = f"""**Rest**, *then*:

- ice
- [tea](https://example.org/)

```
ice(3)
```

{PAYLOADS}"""


def test_markdown_is_shown_and_nothing_in_it_acts(browser, tmp_path, monkeypatch):
    with chat_server(fresh(tmp_path / "me")) as running:
        list(running.session.say(PAYLOADS))
        running.session.feedback("edit", running.session.turns[-1]["id"], RICH)
        running.session.rename_conversation("", '<img src=x onerror="window.hit=1">')
        running.session.messages_to_user.append('<img src=x onerror="window.hit=1">')
        open_page(browser, running)
        until(lambda: texts(browser, "#turns .rich strong") == ["Rest"])
        assert texts(browser, "#turns .rich li") == ["ice", "tea"] and "ice(3)" in texts(browser, "#turns .rich pre")[0]
        links = "return [...document.querySelectorAll('#turns .rich a')].map(a => [a.href, a.rel])"
        assert browser.execute_script(links) == [["https://example.org/", "noopener noreferrer"]]
        active = "return document.querySelectorAll('main script, main iframe, main img, main svg:not(#plot)').length"
        time.sleep(0.5)
        assert browser.execute_script(active) == 0 and not browser.execute_script("return window.hit")
        assert PAYLOADS.split("\n")[0][:40] in texts(browser, "#turns .own")[0]
        browser.execute_script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        click(browser, "Copy code")
        until(lambda: browser.execute_script("return window.copied") == "ice(3)\n")
        click(browser, "Copy")
        until(lambda: browser.execute_script("return window.copied") == RICH)
        script = axe_script()
        assert violations(browser, script) == []


def test_the_message_line_is_first_and_keys_and_commands_work(browser, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    with chat_server(fresh(tmp_path / "me")) as running:
        for number in range(12):
            list(running.session.say(f"Message {number}."))
        open_page(browser, running)
        until(lambda: len(texts(browser, "#turns > li")) == 12)
        assert browser.execute_script("return document.activeElement.id") == "line"
        browser.refresh()
        until(lambda: len(texts(browser, "#turns > li")) == 12)
        fields = "return [...document.querySelectorAll('a, button, input, select, textarea, summary')]"
        fields += ".filter(e => e.offsetParent && e.tabIndex === 0).map(e => e.id)"
        assert browser.execute_script(fields)[:2] == ["line", "send"], "first in the order of Tab"
        type_into(browser, "#line", "/help\n")
        until(lambda: any("/search" in text for text in texts(browser, "#notices li")))
        type_into(browser, "#line", "/nothing\n")
        until(lambda: any("no command /nothing" in text for text in texts(browser, "#notices li")))
        gate, say = threading.Event(), running.session.say

        def say_slowly(*given, **named):
            yield "A beginning that takes lines.\n" * 80
            gate.wait(60)
            yield from say(*given, **named)

        running.session.say = say_slowly
        type_into(browser, "#line", "Write much.\n")
        until(lambda: any("A beginning" in text for text in texts(browser, "#turns .reply")))
        browser.execute_script("document.getElementById('main').scrollTop = 300")
        time.sleep(0.3)
        browser.execute_script("document.getElementById('line').focus({preventScroll: true})")
        ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        until(lambda: any("stopped" in text for text in texts(browser, "#notices li")))
        assert value(browser, "#line") == "Write much."
        gate.set()
        until(lambda: running.worker.num_waiting == 0)
        gate.clear()
        type_into(browser, "#line", "Go on.\n")
        until(lambda: any("A beginning" in text for text in texts(browser, "#turns .reply")))
        browser.execute_script("document.getElementById('main').scrollTop = 300")
        gate.set()
        until(lambda: "Go on." in [turn["prompt"] for turn in running.session.turns])
        until(lambda: texts(browser, "#send") == ["Send"])
        assert browser.execute_script("return document.getElementById('main').scrollTop") < 400, "no forced scrolling"
        running.session.say = say
        type_into(browser, "#line", "/new\n")
        until(lambda: texts(browser, "#turns > li") == [])
        type_into(browser, "#line", "x" * 100 + "\n")
        until(lambda: len(running.session.me.state.conversations) == 2)


class OnePage(SimpleHTTPRequestHandler):
    "Serve `page` at every path."

    def log_message(self, *given):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.page.encode())


FRAME = "<title>A notebook</title><iframe width=900 height=700 src=ADDRESS/#token=TOKEN></iframe>"


def test_a_notebook_of_this_computer_shows_the_chat_in_a_frame(browser, tmp_path):
    "A chat cell allows frames of this computer; `serve` allows none."
    chat = ChatCell(fresh(tmp_path / "me"))
    with chat_server(fresh(tmp_path / "other")) as running:
        for served, is_shown in ((chat, True), (running, False)):
            page = FRAME.replace("ADDRESS", served.address).replace("TOKEN", served.token)
            notebook = serving(type("Notebook", (OnePage,), dict(page=page)))
            try:
                for host in ("127.0.0.1", "localhost"):
                    browser.get(f"http://{host}:{notebook.server_port}/")
                    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
                    if is_shown:
                        until(lambda: browser.find_element(By.ID, "chat").is_displayed())
                        talk(browser, f"Hello from {host}.")
                    else:
                        time.sleep(1)
                        assert not browser.find_elements(By.ID, "chat")
            finally:
                notebook.shutdown()
    assert [turn["prompt"] for turn in chat.session.turns] == [
        "Hello from 127.0.0.1.",
        "Hello from localhost.",
    ]
    chat.close()


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
        before = (tmp_path / "me" / "memory.db-wal").read_bytes()
        page = ATTACK.replace("ADDRESS", running.address).replace("TOKEN", running.token)

        evil = serving(type("Evil", (OnePage,), dict(page=page)))
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
        assert (tmp_path / "me" / "memory.db-wal").read_bytes() == before and len(running.session.turns) == 1
