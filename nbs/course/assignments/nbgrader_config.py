"nbgrader reads this file in the folder in which you type its commands."

import os
import re
import sys
import unicodedata

from nbgrader.plugins import FileNameCollectorPlugin

SEED = "PERSONAL_LLM_COURSE_SEED"
NUMBER = 1  # decides the hidden cases: put a number of your own here
os.environ.setdefault(SEED, str(NUMBER))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not re.fullmatch(r"[1-9]\d{0,8}", os.environ[SEED]):
    sys.exit(
        f"{SEED} is {os.environ[SEED]!r} (nbgrader_config.py or your shell): give a whole number from 1 to 999999999"
    )

NAME = re.compile(r"(.+?)[ _/-]assignment[ _-]?(\d+)(?:[ _-]*(?:\(\d+\)|copy\d*|\d+))*\.ipynb", re.IGNORECASE)
PLATFORM = re.compile(r".*_(\d+)(?:_assignsubmission_file_?/?|_\d+)")  # Moodle, Canvas: their number for the learner


class Collector(FileNameCollectorPlugin):
    "Read names like `anna_assignment_1.ipynb`, also as browsers, Jupyter, Moodle and Canvas change them."

    def collect(self, submitted_file: str) -> dict | None:
        name = unicodedata.normalize("NFC", submitted_file).replace(os.sep, "/").split("/extracted/")[-1]
        if "__MACOSX/" in name:  # what macOS adds to a zip of its own
            return None
        found = NAME.fullmatch(name)
        if not found:
            self.log.error("Not collected: %s (expected LEARNER_assignment_N.ipynb)", name)
            return None
        platform = PLATFORM.fullmatch(found[1])
        learner = platform[1] if platform else found[1].rstrip("/").split("/")[-1]
        others = self.__dict__.setdefault("names", {})
        if other := others.get((learner, found[2])):
            self.log.error("Two files of %s: %s and %s. Rename or remove one of them.", learner, other, name)
        others[learner, found[2]] = name
        return {"student_id": learner, "file_id": f"assignment_{found[2]}"}


c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "personal_llm"
c.ClearSolutions.code_stub = {"python": "# write your answer here"}
c.ExecutePreprocessor.timeout = 120  # seconds for a cell
c.ExecutePreprocessor.interrupt_on_timeout = True  # a cell that hangs costs its own task
c.ZipCollectApp.collector_plugin = Collector
