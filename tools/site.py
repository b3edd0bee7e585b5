"The site: mkdocs makes it of the notebooks as nbconvert writes them, in the order of the book (`make site`)."

import html, json, re, shutil, subprocess, tarfile, tempfile
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExtractOutputPreprocessor, Preprocessor, TagRemovePreprocessor
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")  # of the top, which become pages
PLAIN_FILES = ("LICENSE", "NOTICE", "CITATION.cff")
HIDDEN = ("solution_", "tasks_", "assignment_", "exam_answers")  # answers are in the repository, not on the site
SHIM = "https://unpkg.com/iframe-worker/shim"  # with it, the search works in a page opened from a folder
SHIM_PACKAGE, SHIM_FILE = "iframe-worker@1.0.4", "package/shim/index.js"  # of npm; no Python package has it


class NbdevFlags(Preprocessor):
    "nbdev's flags as nbconvert's tags; the lines with flags go."

    def preprocess(self, nb, resources):
        nb.metadata["language_info"] = {"name": "python"}  # so that code is coloured
        return super().preprocess(nb, resources)

    def preprocess_cell(self, cell, resources, index):
        flags = re.findall(r"(?m)^#\| *(.+?) *$", cell.source) if cell.cell_type == "code" else []
        if flags:
            names = [flag.split()[0] for flag in flags]
            cell.metadata["tags"] = ["hide"] * ("hide" in names or "default_exp" in names)
            cell.metadata["tags"] += ["hide_input"] * ("echo: false" in flags)
            cell.source = re.sub(r"(?m)^#\|.*\n?", "", cell.source)
        return cell, resources


STEPS = [NbdevFlags, TagRemovePreprocessor, ExtractOutputPreprocessor]
SETTINGS = Config()
SETTINGS.TagRemovePreprocessor.update(enabled=True, remove_cell_tags={"hide"}, remove_input_tags={"hide_input"})
SETTINGS.MarkdownExporter.update(default_preprocessors=[], preprocessors=STEPS)
EXPORTER = MarkdownExporter(config=SETTINGS)


def as_pages(text: str) -> str:
    "Links to notebooks and to files of the top lead to their pages, and links to a folder to its first page."
    first_page = lambda found: f"]({next(map(page_of, notebooks_of(found[1])), found[1])})"
    outside = "|".join(map(re.escape, PAGES + PLAIN_FILES))
    text = re.sub(rf"\]\(\.\./((?:\.\./)*(?:{outside}))\)", r"](\1)", text)
    text = re.sub(r"\]\(([a-z]+)/?\)", first_page, text)
    return re.sub(r"(\]\((?![a-z]+:)[^)\s#]+)\.ipynb", r"\1.md", text)


def as_markdown(notebook: Path) -> tuple:  # (text, {name of a figure: bytes})
    "A notebook as Markdown with its figures."
    text, resources = EXPORTER.from_filename(str(notebook))
    alternatives = map(json.loads, re.findall(r'"alt": ("(?:[^"\\]|\\.)*")', notebook.read_text("utf-8")))
    figures = {f"{notebook.stem}-{name}": content for name, content in resources["outputs"].items()}

    def name_figure(found) -> str:
        alternative = html.escape(next(alternatives, "figure")).replace("]", ")")
        return f"![{alternative}]({notebook.stem}-{found[1]})"

    text = re.sub(r"!\[png\]\(([^)]+)\)", name_figure, text)
    return as_pages(re.sub(r"(?s)<style.*?</style>", "", text)), figures


def order(notebook: Path) -> tuple:
    "Lessons stand between the page of the course and the rest; its machinery comes last. Numbers count."
    name = notebook.stem
    is_late = notebook.parent.name == "course" and not name.startswith(("00_course", "lesson_"))
    numbers = [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)]
    return (is_late, is_late and name.startswith("00_"), numbers, name)


def acts() -> list:
    "The acts as the tables of the contents have them."
    text = (NOTEBOOKS / "contents.ipynb").read_text(encoding="utf-8")
    return list(dict.fromkeys(re.findall(r"\| `(\d_\w+)` \|", text)))


def notebooks_of(folder: str) -> list:  # paths in `NOTEBOOKS`, in order
    found = (NOTEBOOKS / folder).glob("*.ipynb")
    return [path for path in sorted(found, key=order) if not path.name.startswith(HIDDEN)]


def page_of(notebook: Path) -> str:
    return notebook.relative_to(NOTEBOOKS).with_suffix(".md").as_posix()


def reference_page(act: str) -> str:
    "What mkdocstrings reads: each module of an act, in the order of the chapters."
    names = [path.stem[3:] for path in notebooks_of(act)]
    modules = [name for name in names if (ROOT / "personal_llm" / act[2:] / f"{name}.py").exists()]
    return "\n".join([f"# Reference: {act[2:]}\n", *(f"::: personal_llm.{act[2:]}.{name}\n" for name in modules)])


def fetch_shim() -> bytes:  # empty where npm brought nothing
    "Fetch the one script that the theme would otherwise load from elsewhere."
    with tempfile.TemporaryDirectory() as folder:
        if shutil.which("npm"):
            subprocess.run(["npm", "pack", "--silent", SHIM_PACKAGE], cwd=folder, capture_output=True)
        for archive in Path(folder).glob("*.tgz"):
            return tarfile.open(archive).extractfile(SHIM_FILE).read()
    return b""


def on_config(config):
    "The menu has the order of the book; headings have the anchors that Jupyter gives them."
    menu = []
    for folder in ["tutorials", *acts(), "experiments", "experiments/methods", "course", "recipes"]:
        heading = folder.split("/")[-1].lstrip("0123456789_").capitalize()
        menu.append({heading: list(map(page_of, notebooks_of(folder)))})
    reference = {"Reference": [{act[2:]: f"reference/{act}.md"} for act in acts()]}
    config["nav"] = ["index.md", "contents.md", *menu, reference, *PAGES]
    config["mdx_configs"]["toc"]["slugify"] = lambda text, separator: text.strip().replace(" ", separator)
    return config


def on_files(files, config):
    "Notebooks become pages; what stands at the top of the repository joins them."
    for folder in {path.parent for path in NOTEBOOKS.rglob("*.ipynb")}:
        for notebook in notebooks_of(folder.relative_to(NOTEBOOKS).as_posix()):
            text, figures = as_markdown(notebook)
            page = page_of(notebook)
            files.append(File.generated(config, page, content=text))
            for name, content in figures.items():
                files.append(File.generated(config, str(Path(page).parent / name), content=content))
    for name in PAGES + PLAIN_FILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=as_pages(text.replace("](nbs/", "]("))))
    for act in acts():
        files.append(File.generated(config, f"reference/{act}.md", content=reference_page(act)))
    files.append(File.generated(config, "site.css", content=(ROOT / "tools" / "site.css").read_text(encoding="utf-8")))
    if shim := fetch_shim():
        files.append(File.generated(config, "iframe-worker.js", content=shim))
    else:
        print("site: npm brought no iframe-worker.js, so the search needs a server: python -m http.server -d site")
    return files


def on_page_content(text, page, config, files):
    "Formulas become MathML, which needs no script."

    formula = lambda found: convert(html.unescape(found[2]).strip(), display="block" if found[1] == "div" else "inline")
    return re.sub(r'(?s)<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', formula, text)


def on_post_page(output, page, config):
    "The theme's one script from elsewhere becomes the copy beside the pages."
    return output.replace(SHIM, "../" * page.url.count("/") + "iframe-worker.js")
