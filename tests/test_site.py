"The site is made of the notebooks: its links lead somewhere, its formulas are written, and it fetches nothing."

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs", reason="the site needs: pip install -e .[docs]")
pytest.importorskip("latex2mathml")


@pytest.mark.later
def test_the_site_has_no_broken_link_and_no_raw_formula(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        plain = re.sub(r"(?s)<(code|pre|script|math|annotation)\b.*?</\1>", "", text)
        fetched = re.findall(r'<(?:script|link rel="stylesheet"|img)[^>]*(?:src|href)="(https?:[^"]*)', text)
        assert page.name == "404.html" or fetched == [], page.name
        assert not re.search(r"\\(?:frac|lVert|sum|cdot|mathrm)\b|\$\$", plain), f"{page.name} shows raw TeX"
        for link in re.findall(r'(?:href|src)="(?![a-z]+:|/|#?")([^"]*)"', plain) if page.name != "404.html" else []:
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or anchor and anchor not in anchors.get(target, ()):
                broken.append((page.name, link))
    assert broken == []
    order = re.findall(
        r'href="([^"]+)"[^>]*rel="next"|rel="next"[^>]*href="([^"]+)"', pages[tmp_path / "course/lesson_1_likely.html"]
    )
    assert any("lesson_2_streams" in "".join(found) for found in order)
