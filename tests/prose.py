"""How plainly the notebooks speak: rates of vague words, and of sentences in which somebody acts.

python tests/prose.py nbs/2_buffer/01_scoring.ipynb …    # a row a notebook, and the total
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VAGUE = {  # words that stand where a noun belongs: at most so many in 1,000 words
    "what, who, whoever": (r"what|whatever|who|whom|whose|whoever", 4.0),
    "somebody, nobody, something …": (r"(?:some|any|every|no)(?:body|one|thing)|nothing", 2.0),
    "told, said, says": (r"told|said|says", 1.0),
}
ACTING = r"\b(?:we|us|our|you|your|let's)\b"
FEWEST_ACTING = 25.0  # sentences with "we" or "you" in 100


def prose_of(notebook: Path) -> str:
    "The text of the markdown cells, without code, formulas, tables, links' addresses and headings."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for pattern in (r"(?ms)^```.*?^```", r"(?s)\$\$.*?\$\$", r"<[^>\n]*>", r"(?m)^\s*\|.*$", r"(?m)^#.*$"):
        text = re.sub(pattern, "\n\n", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"`[^`\n]*`|\$[^$\n]*\$", "code", text)


def sentences_of(text: str) -> list:
    paragraphs = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.)\s", text)
    pieces = [" ".join(paragraph.replace(">", " ").split()) for paragraph in paragraphs]
    return [one for piece in pieces for one in re.split(r"(?<=[.!?:])\s+(?=[A-Z*`\[])", piece) if len(one.split()) > 2]


def counts(text: str) -> dict:
    "Words, sentences, sentences with we or you, and one count for each kind of vague word."
    found = {name: len(re.findall(rf"(?i)\b(?:{pattern})\b", text)) for name, (pattern, _) in VAGUE.items()}
    sentences = sentences_of(text)
    acting = sum(bool(re.search(ACTING, sentence, re.IGNORECASE)) for sentence in sentences)
    return found | dict(words=len(re.findall(r"[A-Za-z']+", text)), sentences=len(sentences), acting=acting)


def rates(rows: list) -> dict:
    "Vague words in 1,000 words, and sentences with we or you in 100, over several counts."
    words, sentences = (max(1, sum(row[name] for row in rows)) for name in ("words", "sentences"))
    result = {name: 1000 * sum(row[name] for row in rows) / words for name in VAGUE}
    return result | {"we, you": 100 * sum(row["acting"] for row in rows) / sentences}


def too_vague(rates_found: dict) -> list:
    "The limits that are broken."
    broken = [
        f"{name}: {rates_found[name]:.1f} > {most}" for name, (_, most) in VAGUE.items() if rates_found[name] > most
    ]
    if rates_found["we, you"] < FEWEST_ACTING:
        broken.append(f"we, you: {rates_found['we, you']:.1f} < {FEWEST_ACTING}")
    return broken


def main(paths: list) -> None:
    paths = [Path(path) for path in paths] or sorted((ROOT / "nbs").rglob("*.ipynb"))
    rows = {path: counts(prose_of(path)) for path in paths}
    print(f"{'notebook':44} words" + "".join(f" {name[:9]:>9}" for name in [*VAGUE, "we, you"]))
    for path, row in [*rows.items(), ("total", None)]:
        found = rates([row] if row else list(rows.values()))
        words = row["words"] if row else sum(one["words"] for one in rows.values())
        name = f"{path.parent.name}/{path.stem}" if row else path
        print(f"{name:44} {words:5}" + "".join(f" {value:9.1f}" for value in found.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
