"nbgrader reads this file in the folder in which you type its commands."

import os

os.environ.setdefault("PERSONAL_LLM_COURSE_SEED", "1")  # of the hidden cases: put a number of your own here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "personal_llm"
c.ClearSolutions.code_stub = {"python": "# write your answer here"}
c.ExecutePreprocessor.timeout = 120  # seconds for a cell
c.ExecutePreprocessor.interrupt_on_timeout = True  # a cell that hangs costs its own task
# Names of collected files: anna_assignment_1.ipynb. Moodle's and Canvas's have the number of the learner there,
# which tells two people of one name apart, and which their mark books import.
STUDENT = r"(?P<student_id>\d+(?=_assignsubmission_file)|\d+(?=_\d+_assignment_)|[^\W_]+(?=_assignment_))"
BETWEEN = r"(?:_assignsubmission_file_?/?|_\d+_|_)"  # Moodle, Canvas, others
c.FileNameCollectorPlugin.named_regexp = (
    rf"(?:.*/)?(?:[^/]*?_)?{STUDENT}{BETWEEN}(?P<file_id>assignment_\d+)(?:-\d+)?\.ipynb$"
)
