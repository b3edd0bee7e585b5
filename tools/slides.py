"""Slides of the course by nbconvert, which reads this file (`make slides`): a page a heading, and one below it a cell.
Arrow keys turn; reveal.js and MathJax come from their public addresses."""

import runpy
from pathlib import Path

from nbconvert.preprocessors import Preprocessor

SITE = runpy.run_path(str(Path(__file__).with_name("site.py")))  # `site` is the name of a module of Python's own


class SlideBreaks(Preprocessor):
    "A new page at each heading, below it a page for each further cell; imports alone are no page."

    def preprocess_cell(self, cell, resources, index):
        is_import = cell.cell_type == "code" and cell.source.startswith(("import ", "from ")) and not cell.outputs
        kind = "slide" if cell.source.startswith("#") and cell.cell_type == "markdown" else "subslide"
        cell.metadata["slideshow"] = {"slide_type": "skip" if is_import else kind}
        return cell, resources


c = get_config()  # noqa: F821, nbconvert's
c.merge(SITE["SETTINGS"])
STEPS = [SITE["TagRemovePreprocessor"], "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor", SlideBreaks]
c.SlidesExporter.update(default_preprocessors=[], preprocessors=[SITE["NbdevFlags"], *STEPS])
c.SlidesExporter.update(exclude_input_prompt=True, exclude_output_prompt=True, reveal_scroll=True, reveal_number="c/t")
