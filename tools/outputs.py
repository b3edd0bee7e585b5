"""What a notebook has saved beside what its cells print when the tests run them.

Numbers may differ by 2 % or by one in their last digit, integers below 50 not at all. Times, speeds, dates, paths and ids
aren't compared, and neither are pictures. A cell says itself if more depends on the processor, and why:

    #| varies: numbers, a model is trained here      the words between the numbers are compared still
    #| varies: words, a model generates here         the first six words of each line are compared still
    #| varies: lines, what it generates was trained  the first word of each line is compared still
"""

import re
from itertools import zip_longest

WORDS = dict(words=6, lines=1)  # kind of what varies -> words of each line that are compared
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


def agree(saved: str, printed: str, varies: str = "") -> bool:
    ours, theirs = pieces(saved), pieces(printed)
    is_same = (lambda saved, printed: bool(saved) == bool(printed)) if varies.startswith("numbers") else is_close
    return len(ours) == len(theirs) and all(a == c and is_same(b, d) for (a, b), (c, d) in zip(ours, theirs))


def contradiction(outputs: list, printed: str, varies: str = "") -> str:
    """The first line of a saved output that a run contradicts, with what it printed instead; empty if they agree.

    `varies`: what the cell's directive says.
    """
    ours, theirs = ([line for line in text.splitlines() if line.strip()] for text in (saved_text(outputs), printed))
    if kept := WORDS.get(varies.partition(",")[0]):
        ours, theirs = ([" ".join(line.split()[:kept]) for line in lines] for lines in (ours, theirs))
    if agree("\n".join(ours), "\n".join(theirs), varies):
        return ""
    pairs = [pair for pair in zip_longest(ours, theirs, fillvalue="(nothing)") if not agree(*pair, varies)]
    saved, found = pairs[0] if pairs else ("\n".join(ours), "\n".join(theirs))
    return f"saved:   {saved.strip()}\n  printed: {found.strip()}"
