"""What the site is made of: the notebooks as Markdown, a page for each part, the reference, formulas and diagrams.

make docs        # mkdocs reads mkdocs.yml, which names this file as its hooks
"""

import ast, json, re, shutil, subprocess, tarfile, tempfile
from html import escape
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
PARTS = {  # folder of nbs -> (heading, sentence), in reading order: that of nbs/contents.ipynb
    "tutorials": ("Tutorials", "Each tutorial does one job, and begins with what you see at its end."),
    "2_buffer": ("Buffer", "The policy scores dialogues, keeps a few, asks rarely, and the model rewrites prompts."),
    "3_tuning": ("Tuning", "LoRA by hand, one training loop, validation, and what a fine-tune is worth."),
    "4_explanation": ("Explanation", "A person's or a model's style, in words and numbers."),
    "5_selection": ("Selection", "Which personalised model to start from, or none."),
    "6_device": ("Device", "The loop on the device: what it stores, when it asks, how it forgets."),
    "0_base": ("How it is made: base", "Dialogues, models, tokens, adapters and files."),
    "1_data": ("How it is made: data", "Chats are read and split: formats, held-out tests and correlated streams."),
    "7_runtimes": ("How it is made: runtimes", "Other places where it runs: a phone, a cluster, an idle machine."),
    "8_app": ("How it is made: app", "The command line, the chat and the demo."),
    "experiments": ("Experiments", "Each experiment asks one question and answers it with a table and a figure."),
    "experiments/methods": ("Methods", "Methods that we tried and that did not become part of the package."),
    "course": ("Course", "Ten lessons with exercises that check themselves."),
    "recipes": ("Recipes", "How everything that ships was made."),
}
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")  # of the top, which become pages
PLAIN_FILES = ("LICENSE", "NOTICE", "CITATION.cff")
ACTS = [name for name in PARTS if re.match(r"\d_", name)]
SCRIPTS = {  # name in the site -> (npm package, file in it); no Python package carries them
    "mermaid.js": ("mermaid@11.12.0", "dist/mermaid.min.js"),  # draws the diagrams
    "iframe-worker.js": ("iframe-worker@1.0.4", "shim/index.js"),  # the search of a page opened from a folder
}
SHIM = "https://unpkg.com/iframe-worker/shim"  # where the theme would fetch the second one
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?(?:\n[^$\n]+?)?)\$(?!\w)", re.DOTALL)
FENCED = re.compile(r"(^```.*?^```|^~~~.*?^~~~|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
EXPORTER = MarkdownExporter()
FORMULAS = []  # MathML; the text holds `FORMULA0X` in its place until the page is made


def visible_cells(notebook: Path) -> list:
    "The cells a reader sees, without the lines that only nbdev reads."
    shown = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines(True)
        flags = [line[2:].strip() for line in lines if cell["cell_type"] == "code" and line.startswith("#|")]
        if any(flag == "hide" or flag.startswith("default_exp") for flag in flags):
            continue
        if cell["cell_type"] == "code":
            lines = [line for line in lines if not line.startswith("#|")]
            if "echo: false" in flags:
                lines = []
        shown.append(cell | dict(source="".join(lines)))
    return shown


def readable(notebook: Path) -> str:
    "A notebook without hidden cells and without the lines that only nbdev reads."
    told = json.loads(notebook.read_text(encoding="utf-8"))
    return json.dumps(told | dict(cells=visible_cells(notebook)))


def title_of(notebook: Path) -> str:
    "The first heading, or the name."
    for cell in visible_cells(notebook):
        found = re.search(r"^# (.+)$", cell["source"], re.MULTILINE)
        if found and cell["cell_type"] == "markdown":
            return re.sub(r"[`*]", "", found[1]).strip()
    return notebook.stem


def summary_of(notebook: Path) -> str:
    "The first sentence below the title."
    for cell in visible_cells(notebook):
        paragraphs = [p for p in cell["source"].split("\n\n") if cell["cell_type"] == "markdown"]
        for paragraph in paragraphs:
            text = " ".join(paragraph.lstrip("> ").split())
            if text and not text.startswith(("#", "|", "```", "- ", "!")):
                return re.split(r"(?<=[.?!])\s", text)[0]
    return ""


def keep_formulas(text: str) -> str:
    "Formulas become marks, so that Markdown does not read them; code stays as it is."

    def mark(found) -> str:
        FORMULAS.append(convert((found[1] or found[2]).strip(), display="block" if found[1] else "inline"))
        return f"FORMULA{len(FORMULAS) - 1}X"

    pieces = FENCED.split(text)
    pieces[::2] = [MATH.sub(mark, piece) for piece in pieces[::2]]
    return "".join(pieces)


def html_outputs_apart(text: str) -> str:
    "Outputs that are HTML lose their own style sheets; Markdown leaves a block of HTML alone."
    return re.sub(r"(?s)<style.*?</style>", "", text)


def as_markdown(notebook: Path, page: Path) -> str:
    "A notebook as Markdown; its figures become files beside the page."
    cells = visible_cells(notebook)
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = keep_formulas(cell["source"])
    whole = json.loads(notebook.read_text(encoding="utf-8"))
    whole["metadata"] = dict(language_info=dict(name="python"))  # so that code is coloured
    parts = []
    for cell in cells:
        one = nbformat.reads(json.dumps(whole | dict(cells=[cell])), as_version=4)
        text, resources = EXPORTER.from_notebook_node(one)
        for name, content in resources.get("outputs", {}).items():
            unique = f"{page.stem}-{cell['id']}-{name}"
            (page.parent / unique).write_bytes(content)
            text = text.replace(f"({name})", f"({unique})")
        anchor = f'<a id="{cell["id"]}"></a>\n\n' if cell["cell_type"] == "code" else ""
        text = re.sub(r"\A\s*```python\s*```", "", text)  # its code is not shown
        parts.append(anchor + with_alternatives(html_outputs_apart(text), cell))
    return "\n\n".join(parts)


def with_alternatives(text: str, cell) -> str:
    "The alternative texts of the figures of a cell."
    texts = [
        output.get("metadata", {}).get("image/png", {}).get("alt", "")
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    for alternative in texts:
        text = re.sub(r"!\[png\]", lambda _: f"![{escape(alternative).replace(']', ')')}]", text, count=1)
    return text


QUESTIONS = {  # tutorial -> questions as people type them; each becomes a heading that the search finds
    "01_first_steps": (
        "How do I start? A quick start for beginners",
        "How do I chat with the model in a notebook, and correct a wrong reply?",
    ),
    "02_your_own_chats": (
        "How do I import my chats from ChatGPT, WhatsApp or a JSON file?",
        "How do I know whether fine-tuning helped?",
    ),
    "03_never_from_scratch": (
        "How do I start from another user's model instead of from scratch?",
        "How do I build a library of models for several people?",
    ),
    "06_why_kept": ("Why was this dialogue kept or discarded?",),
    "08_forget_me": ("How do I delete my data, and make the model forget something?",),
    "11_elsewhere": ("How do I export my adapter to Ollama, llama.cpp or transformers?",),
    "12_your_own_model": ("How do I use my own model, a GGUF file or a model of Hugging Face?",),
}
BOOST = "---\nsearch:\n  boost: 4\n---\n\n"
BOOSTED = ("tutorials", "03_buffer")  # folders and pages that the search shows before others
MINUTES = re.compile(r"(\d+) minutes")


def questions_of(notebook: Path) -> str:
    "The questions that a tutorial answers, as headings at the end of its page."
    questions = QUESTIONS.get(notebook.stem, ()) if notebook.parent.name == "tutorials" else ()
    answer = f"This tutorial answers it: [{title_of(notebook)}]({notebook.stem}.md). {summary_of(notebook)}"
    return "".join(f"\n\n## {question}\n\n{answer}" for question in questions)


def promise_of(notebook: Path) -> str:
    "What a notebook teaches: the quotation below its title, or its first sentence."
    for cell in visible_cells(notebook):
        if found := re.search(r"^> (.+(?:\n> .+)*)", cell["source"], re.MULTILINE):
            return " ".join(found[1].replace("\n> ", " ").split())
    return summary_of(notebook)


def conclusion_of(notebook: Path) -> str:
    "The answer of an experiment in one line, which stands below its title as `**In one line.** …`."
    found = re.search(r"^\*\*In one line\.\*\* (.+?)(?:\n\n|\Z)", visible_cells(notebook)[0]["source"], re.M | re.S)
    return " ".join(found[1].split()) if found else ""


def in_cell(text: str) -> str:
    "A text for a cell of a table, with links to pages."
    text = re.sub(r"\]\((?![a-z]+:)([^)#]+)\.ipynb", r"](\1.md", text).replace("|", "\\|")
    return keep_formulas(text)


def course_page() -> str:
    "The page of the course: lessons in order with what each teaches and its minutes; then the rest by reader."
    heading, sentence = PARTS["course"]
    folder = ROOT / "nbs" / "course"
    lessons = sorted(folder.glob("lesson_*.ipynb"), key=lambda path: int(path.stem.split("_")[1]))
    rows = [f"# {heading}", "", sentence, "", "| lesson | what you learn | minutes |", "|---|---|---|"]
    for path in lessons:
        text = "\n".join(cell["source"] for cell in visible_cells(path))
        title = title_of(path).partition(": ")[2]
        number = path.stem.split("_")[1]
        rows.append(
            f"| {number} · [{title}]({path.stem}.md) | {in_cell(promise_of(path))} | {MINUTES.search(text)[1]} |"
        )
    readers = {
        "For learners": ("for_learners", "glossary", "exam", "report_template", "sample_reports"),
        "For teachers": ("00_course", "instructor_notes", "00_commands"),
        "How the grading works": ("00_checks", "00_grading", "00_submissions", "00_worker", "00_probes"),
    }
    for reader, names in readers.items():
        rows += ["", f"## {reader}", ""]
        for name in names:
            path = folder / f"{name}.ipynb"
            rows.append(f"- [{title_of(path)}]({name}.md): {in_cell(summary_of(path))}")
    return "\n".join(rows)


def first_capital(text: str) -> str:
    "The text with a capital at its beginning; other capitals stay."
    return text[:1].upper() + text[1:]


NO_ANSWER = "not answered yet"  # an experiment whose rows are being measured


def experiments_page() -> str:
    "The page of the experiments: each by its question, with the answer in one line; the tools stand below."
    heading, sentence = PARTS["experiments"]
    rows = [f"# {heading}", "", sentence, "", "| question | answer |", "|---|---|"]
    tools = []
    for path in sorted((ROOT / "nbs" / "experiments").glob("*.ipynb")):
        title, answer = title_of(path), conclusion_of(path)
        if title.startswith("Experiment: "):
            rows.append(
                f"| [{first_capital(title.removeprefix('Experiment: '))}]({path.stem}.md) | {in_cell(answer) or NO_ANSWER} |"
            )
        else:
            tools.append(f"- [{title}]({path.stem}.md): {in_cell(summary_of(path))}")
    return "\n".join([*rows, "", "## How we measure", "", *tools])


def index_page(folder: str) -> str:
    "The page of a part: every notebook with its first sentence."
    if folder in ("course", "experiments"):
        return course_page() if folder == "course" else experiments_page()
    heading, sentence = PARTS[folder]
    rows = [f"# {heading}", "", sentence, "", "| | |", "|---|---|"]
    for notebook in sorted((ROOT / "nbs" / folder).glob("*.ipynb")):
        if shown_on_site(notebook):
            summary = re.sub(r"\]\((?![a-z]+:)([^)#]+)\.ipynb", r"](\1.md", summary_of(notebook)).replace("|", "\\|")
            rows.append(f"| [{title_of(notebook)}]({notebook.stem}.md) | {keep_formulas(summary)} |")
    return "\n".join(rows)


def shown_on_site(notebook: Path) -> bool:
    "Solutions, tasks and the answers of the exam are in the repository, not on the site."
    answers = ("solution_", "tasks_", "exam_answers")
    return ".ipynb_checkpoints" not in notebook.parts and not notebook.name.startswith(answers)


def copy_notebooks(to: Path) -> None:
    "The notebooks as readers see them, and the pictures beside them."
    for one in sorted((ROOT / "nbs").rglob("*")):
        place = to / one.relative_to(ROOT / "nbs")
        if one.suffix == ".ipynb" and shown_on_site(one):
            page = place.with_suffix(".md")
            page.parent.mkdir(parents=True, exist_ok=True)
            is_boosted = one.parent.name in BOOSTED or one.stem in BOOSTED
            page.write_text(BOOST * is_boosted + as_pages(as_markdown(one, page) + questions_of(one)), encoding="utf-8")
        elif one.suffix in (".png", ".svg", ".md"):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one, place)
    for folder in PARTS:
        (to / folder / "index.md").write_text(as_pages(index_page(folder)), encoding="utf-8")
    for name in PLAIN_FILES:
        shutil.copy(ROOT / name, to)
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](nbs/", "](")
        (to / name).write_text(as_pages(text), encoding="utf-8")
    (to / "stylesheets").mkdir()
    shutil.copy(ROOT / "tools" / "site.css", to / "stylesheets" / "site.css")


def as_pages(text: str) -> str:
    "Links to notebooks lead to their pages."
    text = re.sub(rf"\]\((?:\.\./)+({'|'.join(map(re.escape, PLAIN_FILES))})\)", r"](/\1)", text)
    text = re.sub(r"\]\(\.\./(ARCHITECTURE|CONTRIBUTING|CHANGELOG|SECURITY)\.md", r"](\1.md", text)
    text = re.sub(r"(\]\((?![a-z]+:)[^)\s#]+)\.ipynb", r"\1.md", text)
    return re.sub(r"\]\(((?:\.\./)*(?:tutorials|course|experiments|recipes|\d_\w+))/?\)", r"](\1/index.md)", text)


def fetch_scripts(to: Path) -> list:
    "Put the scripts beside the pages; gives the names of those that npm brought."
    found = []
    for name, (package, inside) in SCRIPTS.items():
        with tempfile.TemporaryDirectory() as folder:
            if shutil.which("npm"):
                subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True)
            for archive in Path(folder).glob("*.tgz"):
                with tarfile.open(archive) as opened:
                    script = opened.extractfile(f"package/{inside}").read()
                (to / "javascripts").mkdir(exist_ok=True)
                (to / "javascripts" / name).write_bytes(script)
                found.append(name)
    return found


def on_config(config):
    "The pages are a copy of the notebooks, in the order of the parts."
    FORMULAS.clear()
    docs = Path(tempfile.mkdtemp(prefix="personal-llm-site-"))
    config["docs_dir"] = str(docs)
    copy_notebooks(docs)
    scripts = fetch_scripts(docs)
    if "mermaid.js" in scripts:
        config["extra_javascript"] = [*config["extra_javascript"], "javascripts/mermaid.js"]
    if len(scripts) < len(SCRIPTS):
        print("docs: npm brought no scripts: diagrams stay as text, and the search needs a server")
    config["extra_css"] = [*config["extra_css"], "stylesheets/site.css"]
    parts = []
    for folder, (heading, _) in PARTS.items():
        notebooks = [one for one in sorted((ROOT / "nbs" / folder).glob("*.ipynb")) if shown_on_site(one)]
        notebooks = [one for one in notebooks if one.stem != "00_summary"]  # has a place of its own in the menu
        parts.append(
            {heading: [f"{folder}/index.md", *[{title_of(one): f"{folder}/{one.stem}.md"} for one in notebooks]]}
        )
    reference = [{PARTS[act][0]: f"reference/{act}.md"} for act in ACTS]
    config["nav"] = [{"personal_llm": "index.md"}, {"Contents": "contents.md"}, *parts]
    config["nav"] += [
        {"Every claim of both papers": "experiments/00_summary.md"},
        {"Reference": ["reference/index.md", *reference]},
        {"Architecture": "ARCHITECTURE.md"},
        {"Contributing": "CONTRIBUTING.md"},
        {"Security": "SECURITY.md"},
        {"Changes": "CHANGELOG.md"},
    ]
    return config


# ---- the reference: every public name, with its parameters and a link to its cell


def parameters(node, source: list) -> list:
    "(name, type, default, comment) of a function's arguments, or of a dataclass's fields."
    if isinstance(node, ast.ClassDef):
        start = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
        if start:
            return parameters(start, source)
        fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
        return [row(one.target.id, one.annotation, one.value, one.end_lineno, source) for one in fields]
    given = node.args.posonlyargs + node.args.args
    defaults = [None] * (len(given) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(given, defaults), *zip(node.args.kwonlyargs, node.args.kw_defaults)]
    pairs += [(one, None) for one in (node.args.vararg, node.args.kwarg) if one]
    return [
        row(one.arg, one.annotation, value, one.end_lineno, source)
        for one, value in pairs
        if one.arg not in ("self", "cls")
    ]


def row(name: str, annotation, default, line: int, source: list) -> tuple:
    comment = source[line - 1].partition("  # ")[2]
    return (
        name,
        ast.unparse(annotation) if annotation else "",
        ast.unparse(default) if default is not None else "",
        comment.strip(),
    )


def method_owner(node) -> str:
    "The class that a function is added to by `patch`, or nothing."
    marks = {ast.unparse(mark) for mark in getattr(node, "decorator_list", [])}
    first = node.args.args[0].annotation if isinstance(node, ast.FunctionDef) and node.args.args else None
    return ast.unparse(first).strip("'\"") if "patch" in marks and first is not None else ""


def code_cell(text: str) -> str:
    return f"<code>{escape(text)}</code>".replace("|", "&#124;") if text else ""


def entry(name: str, node, source: list, link: str, level: str) -> list:
    "One name of the reference: heading, docstring, parameters, link."
    kind = "class " if isinstance(node, ast.ClassDef) else ""
    names = [one[0] for one in parameters(node, source)]
    lines = [f"{level} {name} {{ #{name} }}", "", f"`{kind}{name}({', '.join(names)})`", ""]
    lines += [escape(ast.get_docstring(node) or "").replace("\\", "\\\\"), ""]
    table = parameters(node, source)
    if table:
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        for argument, kind_of, default, comment in table:
            meaning = escape(comment).replace("|", "&#124;")
            lines.append(f"| `{argument}` | {code_cell(kind_of)} | {code_cell(default)} | {meaning} |")
        lines.append("")
    return lines + [f"[defined here]({link})", ""]


def public_names(tree) -> list:
    "`__all__` of a module."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [one.value for one in node.value.elts]
    return []


def cell_above(source: list, line: int) -> str:
    "Where a definition's cell is: page and anchor."
    for text in reversed(source[:line]):
        found = re.match(r"# %% (?:\.\./)+nbs/(\S+)\.ipynb #(\S+)", text)
        if found:
            return f"../{found[1]}.md#{found[2]}"
    return "../index.md"


def public_classes() -> set:
    "The public names of all modules: a chapter may add a method to a class of an earlier chapter."
    modules = (ROOT / "personal_llm").glob("*/*.py")
    return {name for module in modules for name in public_names(ast.parse(module.read_text(encoding="utf-8")))}


def module_entries(module: Path, classes: set) -> list:
    "The reference of one module: public names, methods of classes, also of those to which it adds one; constants."
    source = module.read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(source))
    public, lines, constants = public_names(tree), [], []
    for node in tree.body:
        link = cell_above(source, getattr(node, "lineno", 1))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in public:
            lines += entry(node.name, node, source, link, "###")
            for method in getattr(node, "body", []) if isinstance(node, ast.ClassDef) else []:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    place = cell_above(source, method.lineno)
                    lines += entry(f"{node.name}.{method.name}", method, source, place, "####")
        elif method_owner(node) in classes and not node.name.startswith("_"):
            lines += entry(f"{method_owner(node)}.{node.name}", node, source, link, "####")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            comment = source[node.end_lineno - 1].partition("  # ")[2]
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                if getattr(one, "id", "") in public:
                    constants.append(f"| [`{one.id}`]({link}) | {escape(comment).replace('|', '&#124;')} |")
    if constants:
        lines += ["| constant | meaning |", "|---|---|", *constants, ""]
    if not lines:
        return []
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0]
    return ["", f"## personal_llm.{module.parent.name}.{module.stem}", "", summary, "", *lines]


def reference_page(act: str) -> str:
    "Every public name of an act."
    heading, sentence = PARTS[act]
    lines = [f"# Reference: {heading}", "", sentence, ""]
    order = [path.stem[3:] for path in sorted((ROOT / "nbs" / act).glob("[0-9][0-9]_*.ipynb"))]
    classes = public_classes()
    for name in order:
        module = ROOT / "personal_llm" / act[2:] / f"{name}.py"
        lines += module_entries(module, classes) if module.exists() else []
    return "\n".join(lines)


def reference_index() -> str:
    lines = ["# Reference", "", "The names that another package may import, act by act, with their parameters."]
    for act in ACTS:
        lines.append(f"\n- [{PARTS[act][0]}]({act}.md): {PARTS[act][1]}")
    return "\n".join(lines)


# ---- hooks of mkdocs


def on_files(files, config):
    "The reference is made, not kept."
    files.append(File.generated(config, "reference/index.md", content=reference_index()))
    for act in ACTS:
        files.append(File.generated(config, f"reference/{act}.md", content=reference_page(act)))
    return files


def on_page_content(html, page, config, files):
    "Formulas stand where their marks were."
    return re.sub(r"FORMULA(\d+)X", lambda found: FORMULAS[int(found[1])], html)


def on_post_page(output, page, config):
    "The theme's one script from elsewhere becomes the copy beside the pages."
    up = "../" * page.url.count("/")
    return output.replace(SHIM, f"{up}javascripts/iframe-worker.js")


def on_post_build(config):
    "The copy goes; the page for wrong addresses is no page of the menu, so its script is put right here."
    lost = Path(config["site_dir"], "404.html")
    lost.write_text(lost.read_text(encoding="utf-8").replace(SHIM, "/javascripts/iframe-worker.js"), encoding="utf-8")
    shutil.rmtree(config["docs_dir"])
