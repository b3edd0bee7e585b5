"""The chapters as two other processors would run them (`make test-portable`): one without AVX, one without AVX-512.

PyTorch, oneDNN, MKL, OpenBLAS and NumPy take their instructions from the environment; llama.cpp is one build for all.
"""

import os, subprocess, sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PROCESSORS = dict(
    old=dict(ATEN="default", ONEDNN="SSE41", MKL="SSE4_2", OPENBLAS="Nehalem", without=""),
    common=dict(ATEN="avx2", ONEDNN="AVX2", MKL="AVX2", OPENBLAS="Haswell", without=("AVX512", "X86_V4")),
)


def settings(name: str) -> dict:  # variable -> value
    "The environment in which this processor's libraries do what an older one's would."
    old = PROCESSORS[name]
    instructions = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    return dict(
        ATEN_CPU_CAPABILITY=old["ATEN"],
        ONEDNN_MAX_CPU_ISA=old["ONEDNN"],
        MKL_ENABLE_INSTRUCTIONS=old["MKL"],
        OPENBLAS_CORETYPE=old["OPENBLAS"],
        NPY_DISABLE_CPU_FEATURES=" ".join(one for one in instructions if one.startswith(old["without"])),
    )


def main(arguments: list) -> int:
    chapters = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "nbs").glob("[0-9]_*"))
    command = [sys.executable, "-m", "pytest", "-n", "auto", "--quick", *chapters, *arguments]
    codes = []
    for name in PROCESSORS:
        print(f"processor: {name}", flush=True)
        codes.append(subprocess.run(command, cwd=ROOT, env=os.environ | settings(name)).returncode)
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
