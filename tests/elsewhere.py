"""Chapters under the arithmetic of other processors: ``make test-elsewhere``.

Libraries choose their code by what a processor can do, and the order of sums by how many threads there are; environment
variables make them choose what an older or smaller one would.  Each setting below runs every chapter against its stored
outputs.  With ``--turn N`` the chapters are dealt out among the settings, each to one of them, and another N deals
otherwise: that is what CI runs, N being the commit.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "no vectors": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
        "OPENBLAS_CORETYPE": "Zen",
    },
    "two threads": {"OMP_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell"},
    "four threads": {"OMP_NUM_THREADS": "4", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "rounded otherwise": {},  # by tests/rounded_otherwise.py, in the kernel
}
if "avx512f" in (Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""):
    SETTINGS["AVX-512"] = {"OPENBLAS_CORETYPE": "SkylakeX"}


def deal(chapters: list[Path], turn: int) -> dict[str, list[Path]]:
    """Each chapter to one setting; in as many turns as there are settings, to each of them."""
    names = list(SETTINGS)
    dealt: dict[str, list[Path]] = {name: [] for name in names}
    for i, chapter in enumerate(chapters):
        dealt[names[(i + turn) % len(names)]].append(chapter)
    return dealt


def check(setting: str, chapters: list[Path]) -> bool:
    """Run chapters against their stored outputs under one setting; whether all cells passed."""
    print(f"{setting}: {' '.join(f'{k}={v!r}' for k, v in SETTINGS[setting].items())}", flush=True)
    with tempfile.TemporaryDirectory() as ipython:
        environment = os.environ | SETTINGS[setting]
        if setting == "rounded otherwise":
            startup = Path(ipython) / "profile_default" / "startup"
            startup.mkdir(parents=True)
            shutil.copy(ROOT / "tests" / "rounded_otherwise.py", startup)
            environment["IPYTHONDIR"] = ipython
        command = ["make", "--no-print-directory", "nbval", f"NOTEBOOKS={' '.join(map(str, chapters))}"]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def main(arguments: list[str]) -> int:
    """Run what is asked; 1 if a cell failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="only this one; may be repeated")
    parser.add_argument("--turn", help="deal the chapters out among the settings: a number, or HEAD for the commit's")
    asked = parser.parse_args(arguments)
    chapters = sorted(path.relative_to(ROOT) for path in ROOT.glob("book/[0-9][0-9]_*.ipynb"))
    if asked.turn is None:
        dealt = dict.fromkeys(SETTINGS, chapters)
    else:
        if asked.turn == "HEAD":
            asked.turn = subprocess.check_output(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, text=True)
        dealt = deal(chapters, int(asked.turn, 16))
    passed = {name: check(name, dealt[name]) for name in asked.setting or SETTINGS}
    for name, well in passed.items():
        print(f"{name:18} {len(dealt[name]):2} chapters {'passed' if well else 'FAILED'}")
    return int(not all(passed.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
