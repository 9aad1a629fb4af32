"""Re-run chapters in place: ``python book/execute.py book/01_cayley.py ...``.

A chapter is skipped if neither its code nor anything it reads (the library, the pins, recorded results and adapters)
changed since it last ran here; its prose is brought over all the same.
"""

import hashlib
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent
STAMPS = BOOK / "_build" / ".executed"


def inputs_digest() -> bytes:
    """SHA-256 over the names and contents of what every chapter may read."""
    root, files = BOOK.parent, []
    for pattern in (
        "requirements.txt",
        "cua/**/*.py",
        "cua/*.js",
        "cua/*.css",
        "book/*.toml",
        "book/results/*.json",
        "book/adapters/**/*.*",
    ):
        files += sorted(root.glob(pattern))
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.digest()


def run(script: Path, inputs: bytes) -> str:
    """Run one chapter if it has to be, write its notebook, and say what was done."""
    notebook, fresh = script.with_suffix(".ipynb"), jupytext.read(script)
    code = [cell.source for cell in fresh.cells if cell.cell_type == "code"]
    key = hashlib.sha256(inputs + "\0".join(code).encode()).hexdigest()
    stamp = STAMPS / script.stem
    stored = nbformat.read(notebook, as_version=4) if notebook.exists() else None
    stored_cells = (
        [cell for cell in stored.cells if cell.cell_type == "code"] if stored else []
    )
    current = (
        stamp.exists()
        and stamp.read_text() == key
        and [cell.source for cell in stored_cells] == code
    )
    started = time.perf_counter()
    if current:
        for cell, old in zip(
            [c for c in fresh.cells if c.cell_type == "code"], stored_cells, strict=True
        ):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    else:
        NotebookClient(
            fresh,
            timeout=600,
            kernel_name="python3",
            extra_arguments=["--log-level=40"],
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(BOOK)}},
        ).execute()
    # Cell ids as in the stored notebook, or by position: random ones would change at every run.
    for i, cell in enumerate(fresh.cells):
        cell.id = f"cell-{i:02}"
    fresh.metadata.pop("language_info", None)
    nbformat.write(fresh, notebook)
    STAMPS.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    return "unchanged" if current else f"ran in {time.perf_counter() - started:.0f} s"


if __name__ == "__main__":
    digest = inputs_digest()
    for name in sys.argv[1:]:
        print(f"{name} ... ", end="", flush=True)
        print(run(Path(name).resolve(), digest), flush=True)
