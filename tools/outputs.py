"""What a notebook has saved beside what its cells print when the tests run them.

Numbers may differ by 2 % or by one in their last digit, integers below 50 not at all. Times, speeds, dates, paths and ids
aren't compared, and neither are pictures.
"""

import re
from itertools import zip_longest

FOLDERS = ("nbs/recipes/", "nbs/experiments/", "nbs/course/")  # they train models, and read rows and encoders
VARIES = """
nbs/4_tuning/05_finetune.ipynb nbs/4_tuning/06_evaluation.ipynb nbs/5_explanation/03_explanation.ipynb
nbs/5_explanation/04_decomposition.ipynb nbs/6_selection/01_library.ipynb nbs/6_selection/02_ranking.ipynb
nbs/6_selection/03_gradient_match.ipynb nbs/6_selection/04_selection.ipynb nbs/6_selection/05_merging.ipynb
nbs/7_device/06_learning.ipynb nbs/7_device/10_containment.ipynb nbs/7_device/11_idle.ipynb
nbs/9_extras/02_cluster.ipynb nbs/9_extras/03_phone.ipynb nbs/9_extras/11_style.ipynb nbs/9_extras/12_space.ipynb
nbs/tutorials/02_your_own_chats.ipynb nbs/tutorials/03_never_from_scratch.ipynb nbs/tutorials/06_why_kept.ipynb
nbs/tutorials/08_forget_me.ipynb nbs/tutorials/11_elsewhere.ipynb nbs/tutorials/12_your_own_model.ipynb
""".split()  # models are trained here, and another processor trains another model: not compared
REPLIES = """
nbs/0_base/08_models.ipynb nbs/0_base/09_replies.ipynb nbs/2_buffer/04_synthesis.ipynb
nbs/7_device/08_personalizer.ipynb nbs/7_device/09_chat.ipynb nbs/tutorials/01_first_steps.ipynb
""".split()  # models generate replies here, whose later words depend on the processor: a line is compared up to WORDS
WORDS = 6
TOLERANCE = 0.02
ROUNDING = 1e-6  # differences below are those of arithmetic

CHANGES = re.compile(  # what differs between two runs: it's not compared
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?"  # dates
    r"|\b\d\d:\d\d(?::\d\d)?\b"  # times of day
    r"|[-\d.,]+ ?(?:m|µ|n)?s\b|[\d.,]+ (?:seconds?|minutes?|min|hours?|h)\b"  # durations
    r"|[\d.,]+ (?:tokens|MB|GB)(?:/s| a second| per second)"  # speeds
    r"|\b(?=\w*\d)(?=\w*[a-f])[0-9a-f]{8,}\b"  # hashes and ids
    r"|(?:/[\w.+-]+){2,}"  # paths
)
NO_TEXT = re.compile(r"<[\w.]+ object(?: at 0x\w+)?>|<Figure [^>]*>")  # values without a text of their own
NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?![\w])")


def is_compared(page: str) -> bool:
    "Whether a page's saved outputs are compared with a run."
    return page not in VARIES and not page.startswith(FOLDERS)


def saved_text(outputs: list) -> str:
    "The text of a cell's saved outputs; a picture has none."
    kept = [output for output in outputs if output.get("name") != "stderr"]
    rows = [output.get("data", {"text/plain": output.get("text", "")}) for output in kept]
    return "\n".join("".join(row.get("text/plain", "")) for row in rows if "image/" not in " ".join(row))


def pieces(text: str) -> list:  # [(words, number or "")]
    "A text cut at its numbers, without white space and without what changes."
    text = CHANGES.sub("…", NO_TEXT.sub("", text))
    numbers = NUMBER.findall(text)
    words = ["".join(part.split()) for part in NUMBER.split(text)]
    return list(zip_longest(words, numbers, fillvalue=""))


def is_close(saved: str, printed: str) -> bool:
    "Whether two printed numbers are the same, up to 2 % or to one in the last digit of a fraction."
    if not (saved and printed):
        return saved == printed
    one, other = (float(number.replace(",", "").replace("−", "-")) for number in (saved, printed))
    digits = len(saved.partition("e")[0].partition(".")[2])
    last = 1.01 * 10**-digits if digits and "e" not in saved else 0
    return abs(one - other) <= max(last, TOLERANCE * abs(one), ROUNDING)


def agree(saved: str, printed: str) -> bool:
    ours, theirs = pieces(saved), pieces(printed)
    return len(ours) == len(theirs) and all(a == c and is_close(b, d) for (a, b), (c, d) in zip(ours, theirs))


def contradiction(outputs: list, printed: str, page: str = "") -> str:
    "The first line of a saved output that a run contradicts, with what it printed instead; empty if they agree."
    ours, theirs = ([line for line in text.splitlines() if line.strip()] for text in (saved_text(outputs), printed))
    if page in REPLIES:
        shorter = min(len(ours), len(theirs)) or None
        ours, theirs = ([" ".join(line.split()[:WORDS]) for line in lines[:shorter]] for lines in (ours, theirs))
    if agree("\n".join(ours), "\n".join(theirs)):
        return ""
    pairs = [pair for pair in zip_longest(ours, theirs, fillvalue="(nothing)") if not agree(*pair)]
    saved, found = pairs[0] if pairs else ("\n".join(ours), "\n".join(theirs))
    return f"saved:   {saved.strip()}\n  printed: {found.strip()}"
