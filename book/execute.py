"""Re-run chapters in place: ``python book/execute.py book/01_cayley.py ...``.

A chapter is skipped if neither its code nor anything it reads (the library, the pins, recorded results and adapters)
changed since it last ran here; its prose is brought over all the same. Of one that runs, a cell keeps its stored outputs
where the new ones say the same (``compare.py``): another machine changes no notebook.

A chapter that fails leaves its notebook as it was; the others still run.

With ``--fresh`` every chapter runs and all outputs are stored, and so is how long each chapter took (``run_times.json``).

With ``--workshop`` short versions are run instead and written to ``book/_build/workshop``: in every line such as
``steps = 60  # workshop: 10`` the second value takes the place of the first.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import time
from functools import cache
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from compare import differences, tolerances

BOOK = Path(__file__).resolve().parent
STAMPS = BOOK / "_build" / ".executed"
WORKSHOP = BOOK / "_build" / "workshop"
FAILED = BOOK / "_build" / "failed"
RUN_TIMES = BOOK / "run_times.json"
SHORTER = re.compile(r"^(\s*[\w, ]+ = ).*?  # workshop: (.+)$", re.MULTILINE)
LINK = re.compile(r"(\]\(|<)(?=figures/|results/)")
NOTE = """**Short version**: fewer windows, steps, shots or questions, so that it runs in half a minute. What it prints is noisier
than what the text speaks of, and may differ from it; the full run is on the site."""
PATIENCE_S = 30.0
WATCH = """
import sys as _sys
from os.path import abspath as _path
_read = set()
_sys.addaudithook(lambda event, found: event == "open" and _read.add(_path(str(found[0]))) and None)
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


class ChapterError(Exception):
    """A chapter that did not run to its end: which, where, why, and how to go on."""


def execute(notebook: nbformat.NotebookNode, name: str) -> list[str]:
    """Run all cells, however long they take; the recorded results that they read.

    Raises:
        ChapterError: if a cell fails, or cannot be compared; the notebook up to there is in ``book/_build/failed``.
    """
    cells = code_cells(notebook)
    for cell in cells:
        try:
            tolerances(cell.source)
        except ValueError as error:
            raise failure(notebook, name, cells.index(cell), error) from None
    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=3600,
        iopub_timeout=3600,  # after four seconds, its default, a busy machine would lose outputs
        kernel_name="python3",
        extra_arguments=["--log-level=40"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(BOOK)}},
    )
    watch, tell = (nbformat.v4.new_code_cell(code) for code in (WATCH, TELL))
    everything, ran = notebook.cells, 0
    notebook.cells = [watch, *everything, tell]
    try:
        with client.setup_kernel():
            for i, cell in enumerate(notebook.cells):
                client.execute_cell(cell, i, store_history=cell not in (watch, tell))
                ran += cell in cells
                # A figure that cannot be shown, for one, is an error of a cell that ran.
                if wrong := [one for one in cell.get("outputs", ()) if one.output_type == "error"]:
                    ran -= cell in cells
                    raise RuntimeError(f"{wrong[0].ename}: {wrong[0].evalue}")
    except Exception as error:
        notebook.cells = everything
        raise failure(notebook, name, ran, error) from error
    notebook.cells = everything
    return tell.outputs[0].text.split() if tell.outputs else []


def failure(notebook: nbformat.NotebookNode, name: str, ran: int, error: Exception) -> ChapterError:
    """What to say of a chapter of which ``ran`` code cells ran; the notebook so far is put aside."""
    why = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
    write(notebook, FAILED / f"{name}.ipynb")
    path = (FAILED / f"{name}.ipynb").relative_to(BOOK.parent)
    return ChapterError(f"FAILED in code cell {ran + 1}: {why.splitlines()[0][:300]}\n    as far as it came: {path}")


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    os.replace(partial, path)


@cache
def unpack_model() -> None:
    """Unpack the embedded model where that has not been done, lest the first chapter's time include it."""
    from cua.llm.models import load_model

    load_model()


def about(seconds: float, before: int | None) -> int:
    """To five seconds; as before if it took about as long."""
    if before is not None and 0.5 < seconds / before < 2.0:
        return before
    return max(5, 5 * round(seconds / 5))


def record_run_time(name: str, seconds: float) -> None:
    """Write down what a chapter takes, and where: chapters, introduction and status page say these numbers."""
    times = json.loads(RUN_TIMES.read_text()) if RUN_TIMES.exists() else {}
    before = times.get(name, {}).get("seconds")
    times[name] = {"seconds": about(seconds, before), "device": f"{platform.machine()} CPU, {os.cpu_count()} cores"}
    RUN_TIMES.write_text(json.dumps(dict(sorted(times.items())), indent=1) + "\n")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def keep_what_says_the_same(cells: list[nbformat.NotebookNode], before: list[nbformat.NotebookNode]) -> str:
    """Put stored outputs back where those of now do not differ; how many do, in words."""
    stored: dict[str, list[nbformat.NotebookNode]] = {}  # of cells with one source, in their order
    for cell in before:
        stored.setdefault(cell.source, []).append(cell)
    changed = 0
    for cell in cells:
        old = stored[cell.source].pop(0) if stored.get(cell.source) else None
        if old and old.execution_count and not differences(cell.source, old.outputs, cell.outputs):
            cell.outputs = old.outputs
        else:
            changed += 1
    return f", {changed} of {len(cells)} cells stored anew" if changed else ""


def digest(key: str, cells: list[nbformat.NotebookNode]) -> str:
    """Of what a chapter is made from and of what is stored of it: what ran, and was not touched since, is current."""
    outputs = json.dumps([[cell.execution_count, cell.outputs] for cell in cells])
    return hashlib.sha256((key + outputs).encode()).hexdigest()


def run(script: Path, inputs: bytes, fresh: bool = False) -> str:
    """Run one chapter if it has to be, write its notebook, and say what was done.

    Raises:
        ChapterError: as :func:`execute`, or if the stored notebook cannot be read; it is then as it was.
    """
    notebook, new = script.with_suffix(".ipynb"), jupytext.read(script)
    cells, stored = code_cells(new), nbformat.v4.new_notebook()
    if notebook.exists() and not fresh:
        try:
            stored = nbformat.read(notebook, as_version=4)
        except Exception as error:
            raise ChapterError(
                f"FAILED: {notebook.name} cannot be read ({type(error).__name__}); git checkout brings it back, or "
                "--fresh writes another"
            ) from error
    key = hashlib.sha256(inputs + "\0".join(cell.source for cell in cells).encode()).hexdigest()
    stamp = STAMPS / script.stem
    before = code_cells(stored)
    same_code = [cell.source for cell in before] == [cell.source for cell in cells]
    if same_code and not fresh and stamp.exists() and stamp.read_text() == digest(key, before):
        said = "unchanged"
        new.metadata["cua"] = stored.metadata.get("cua", {})
        for cell, old in zip(cells, before, strict=True):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    else:
        unpack_model()
        started = time.perf_counter()
        new.metadata["cua"] = {"results": execute(new, script.stem)}
        took_s = time.perf_counter() - started
        said = f"ran in {took_s:.0f} s"
        if fresh:
            record_run_time(script.stem, took_s)
        else:
            said += keep_what_says_the_same(cells, before)
    # Cell ids as in the stored notebook, or by position: random ones would change at every run.
    for i, cell in enumerate(new.cells):
        cell.id = f"cell-{i:02}"
    new.metadata.pop("language_info", None)
    write(new, notebook)
    STAMPS.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest(key, code_cells(nbformat.read(notebook, as_version=4))))
    return said


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
    execute(notebook, script.stem)
    took_s = time.perf_counter() - started
    write(notebook, WORKSHOP / f"{script.stem}.ipynb")
    slow = (
        "" if took_s <= PATIENCE_S else f", more than {PATIENCE_S:.0f}: a slow machine"
    )
    return f"ran in {took_s:.0f} s{slow}"


def main(arguments: list[str]) -> int:
    """Run chapters one after the other; 1 if any failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="+", type=Path)
    parser.add_argument("--fresh", action="store_true", help="store all outputs, and how long each chapter took")
    parser.add_argument("--workshop", action="store_true", help="run short versions, in book/_build/workshop")
    asked = parser.parse_args(arguments)
    if missing := [str(script) for script in asked.chapters if not script.is_file()]:
        parser.error(f"no such chapter: {', '.join(missing)}")
    inputs, failed = inputs_digest(), []
    for script in asked.chapters:
        print(f"{script} ... ", end="", flush=True)
        try:
            said = run_short(script.resolve()) if asked.workshop else run(script.resolve(), inputs, asked.fresh)
        except ChapterError as error:
            failed.append(script)
            said = str(error)
        print(said, flush=True)
    if failed:
        how = [option for option in ("--fresh", "--workshop") if vars(asked)[option.strip("-")]]
        again = " ".join(["python book/execute.py", *how, *map(str, failed)])
        print(f"{len(failed)} of {len(asked.chapters)} chapters failed; to go on: {again}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
