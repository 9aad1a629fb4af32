"""Re-run chapters in place: ``python book/execute.py book/01_cayley.py ...``.

A chapter is skipped if neither its code nor anything it reads (the library, the pins, recorded results and adapters)
changed since it last ran here; its prose is brought over all the same.

With ``--workshop`` first, short versions are run instead and written to ``book/_build/workshop``: in every line such as
``steps = 60  # workshop: 10`` the second value takes the place of the first.
"""

import hashlib
import re
import sys
import time
from functools import cache
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent
STAMPS = BOOK / "_build" / ".executed"
WORKSHOP = BOOK / "_build" / "workshop"
SHORTER = re.compile(r"^(\s*[\w, ]+ = ).*?  # workshop: (.+)$", re.MULTILINE)
LINK = re.compile(r"(\]\(|<)(?=figures/|results/)")
NOTE = """**Short version**: fewer windows, steps, shots or questions, so that it runs in half a minute. What it prints is noisier
than what the text speaks of, and may differ from it; the full run is on the site."""
PATIENCE_S = 30.0
WATCH = """
import sys as _sys
_read = set()
_sys.addaudithook(lambda event, found: event == "open" and _read.add(str(found[0])) and None)
"""
TELL = """
print(*sorted(name.rpartition("/")[2][:-5] for name in _read if "book/results/" in name and name.endswith(".json")))
"""


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


def execute(notebook: nbformat.NotebookNode) -> list[str]:
    """Run all cells; the recorded results that they read."""
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        extra_arguments=["--log-level=40"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(BOOK)}},
    )
    watch, tell = (nbformat.v4.new_code_cell(code) for code in (WATCH, TELL))
    notebook.cells = [watch, *notebook.cells, tell]
    with client.setup_kernel():
        for i, cell in enumerate(notebook.cells):
            client.execute_cell(cell, i, store_history=cell not in (watch, tell))
    notebook.cells = notebook.cells[1:-1]
    return tell.outputs[0].text.split() if tell.outputs else []


@cache
def unpack_model() -> None:
    """Unpack the embedded model where that has not been done, lest the first chapter's time include it."""
    from cua.llm.models import load_model

    load_model()


def about(seconds: float, before: int | None) -> int:
    """To five seconds; as before if it took about as long, so that such a run changes no notebook."""
    if before is not None and 0.5 < seconds / before < 2.0:
        return before
    return max(5, 5 * round(seconds / 5))


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
    if current:
        for cell, old in zip(
            [c for c in fresh.cells if c.cell_type == "code"], stored_cells, strict=True
        ):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
        fresh.metadata["cua"] = stored.metadata.get("cua", {})
    else:
        unpack_model()
        started = time.perf_counter()
        read = execute(fresh)
        took_s = time.perf_counter() - started
        before = stored.metadata.get("cua", {}).get("run_time_s") if stored else None
        fresh.metadata["cua"] = {"run_time_s": about(took_s, before), "results": read}
    # Cell ids as in the stored notebook, or by position: random ones would change at every run.
    for i, cell in enumerate(fresh.cells):
        cell.id = f"cell-{i:02}"
    fresh.metadata.pop("language_info", None)
    nbformat.write(fresh, notebook)
    STAMPS.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    return "unchanged" if current else f"ran in {took_s:.0f} s"


def run_short(script: Path) -> str:
    """Run a chapter's short version, write its notebook, and say how long it took."""
    notebook = jupytext.read(script)
    n_shorter = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, n = SHORTER.subn(r"\1\2", cell.source)
            n_shorter += n
        else:  # links to files: the notebook lies two folders deeper
            cell.source = LINK.sub(r"\1../../", cell.source)
    if n_shorter:
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(NOTE))
    unpack_model()
    started = time.perf_counter()
    execute(notebook)
    took_s = time.perf_counter() - started
    WORKSHOP.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, WORKSHOP / f"{script.stem}.ipynb")
    slow = (
        "" if took_s <= PATIENCE_S else f", more than {PATIENCE_S:.0f}: a slow machine"
    )
    return f"ran in {took_s:.0f} s{slow}"


if __name__ == "__main__":
    short = sys.argv[1] == "--workshop"
    digest = inputs_digest()
    for name in sys.argv[1 + short :]:
        print(f"{name} ... ", end="", flush=True)
        script = Path(name).resolve()
        print(run_short(script) if short else run(script, digest), flush=True)
