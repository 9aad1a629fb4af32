"""The chapters as files: pairs in sync, every cell executed, the format that CONTRIBUTING asks of a chapter."""

import importlib.util
import json
import re
import statistics
import tempfile
import tomllib
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest

from cua.experiments.record import load_result
from cua.llm.data import evenly

BOOK = Path(__file__).resolve().parents[1] / "book"
CHAPTERS = sorted(BOOK.glob("[0-9][0-9]_*.py"))
REQUIRED = ("The question", "*Run time:*", "## What we learned", "**What this does not show.**", "## Exercises")


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    script = request.param
    return jupytext.read(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_chapters():
    assert len(CHAPTERS) >= 3


def test_script_and_notebook_hold_the_same_cells(chapter):
    script, notebook = chapter
    assert [(c.cell_type, c.source) for c in script.cells] == [(c.cell_type, c.source) for c in notebook.cells]
    assert [c.metadata for c in script.cells] == [c.metadata for c in notebook.cells]


def test_every_code_cell_was_executed_in_order_and_left_no_error_warning_or_bare_value(chapter):
    _, notebook = chapter
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.get("text")
            assert output.output_type != "execute_result", f"print it, or assign it to _: {cell.source}"


def test_outputs_name_no_path_of_the_machine(chapter):
    _, notebook = chapter
    for cell in code(notebook):
        text = str([{k: v for k, v in output.items() if k != "data"} for output in cell.outputs])
        text += str([output.get("data", {}).get("text/plain") for output in cell.outputs])
        for place in (BOOK.parents[1], Path.home(), tempfile.gettempdir(), "/home", "/Users"):
            assert f"{place}/" not in text, cell.source
        assert " at 0x" not in text, f"an object's address, different in every run: {cell.source}"


def test_cells_are_few_and_short(chapter):
    script, _ = chapter
    lines = [len(cell.source.splitlines()) for cell in code(script)]
    assert len(lines) <= 20
    assert max(lines) <= 25
    assert statistics.median(lines) <= 9


def test_prose_outweighs_code(chapter):
    script, _ = chapter
    words = sum(len(cell.source.split()) for cell in script.cells if cell.cell_type == "markdown")
    lines = sum(len(cell.source.splitlines()) for cell in code(script))
    assert 5 <= words / lines <= 15


def test_chapter_opens_with_its_question_and_closes_with_exercises(chapter):
    script, _ = chapter
    prose = "\n".join(cell.source for cell in script.cells if cell.cell_type == "markdown")
    positions = [prose.index(part) for part in REQUIRED]
    assert positions == sorted(positions)
    exercises = re.findall(r"^\*\*\d\.\*\* ★{1,3} ", prose, re.MULTILINE)
    assert prose.count("<summary>Solution</summary>") == len(exercises) >= 2


def test_every_figure_has_alt_text_and_a_caption(chapter):
    _, notebook = chapter
    for cell in code(notebook):
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        assert drawn or "figure" not in cell.metadata.get("mystnb", {}), f"no figure came of it: {cell.source}"
        if drawn:
            assert len(cell.metadata["mystnb"]["image"]["alt"]) > 40, cell.source
            assert len(cell.metadata["mystnb"]["figure"]["caption"]) > 20, cell.source


def test_only_the_bootstrap_cell_is_kept_from_nbval(chapter):
    script, _ = chapter
    skipped = [cell.source for cell in code(script) if "NBVAL" in cell.source or "nbval" in str(cell.metadata)]
    assert len(skipped) == 1
    assert skipped[0].startswith("# NBVAL_SKIP\n# On Colab")


def printed(cell):
    """The lines that a cell printed."""
    return [line for output in cell.outputs for line in output.get("text", "").splitlines()]


def unit(number):
    """Of the last digit as it is printed: 0.01 of 24.98."""
    digits, _, exponent = number.replace(",", "").partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def test_tolerances_are_of_numbers_that_are_there_and_wider_than_the_rounding_of_a_digit(chapter, script):
    compare, (_, notebook) = script("compare"), chapter
    for cell in code(notebook):
        allowed = compare.tolerances(cell.source)
        reach = dict.fromkeys(allowed, 0.0)
        for line in printed(cell):
            pieces = compare.NUMBER.split(" ".join(line.split()))
            for before, number in zip(pieces[::2], pieces[1::2], strict=False):
                word = compare.governing(before, number, allowed)
                if word is not None:
                    value, limit = float(number.replace(",", "")), allowed[word]
                    size = limit.size if limit.sign == "±" else abs(value) * (limit.size - 1)
                    reach[word] = max(reach[word], size / unit(number))
        if reach.pop("figure", None) is not None:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
        assert all(size > 0.99 for size in reach.values()), (reach, cell.source)


def test_a_wrong_number_anywhere_is_found(chapter, script):
    """Each number that a chapter prints, changed by a third, or by five of its last digit."""
    compare, (_, notebook) = script("compare"), chapter
    for cell in code(notebook):
        for line in printed(cell):
            for found in compare.NUMBER.finditer(line):
                value = float(found[0].replace(",", ""))
                wrong = value + max(0.34 * abs(value), 5 * unit(found[0]))
                changed = f"{line[: found.start()]}{wrong:g}{line[found.end() :]}"
                outputs = [[nbformat.v4.new_output("stream", text=text)] for text in (line, changed)]
                assert compare.differences(cell.source, *outputs), changed


def test_a_figure_that_shows_something_else_is_found(chapter, script):
    """Forty marks of each figure: moved by a tenth towards the middle; called otherwise; taken away."""
    compare, (_, notebook) = script("compare"), chapter
    for cell in code(notebook):
        for output in cell.outputs:
            if "image/png" not in output.get("data", {}):
                continue
            before = json.loads(output.data[compare.SHOWN])
            for j in evenly(len(before), 40).tolist():
                for change in (moved, without, renamed):
                    now = json.loads(output.data[compare.SHOWN])
                    if change(now, j):
                        outputs = [
                            [nbformat.v4.new_output("display_data", {compare.SHOWN: json.dumps(marks)})]
                            for marks in (before, now)
                        ]
                        assert compare.differences(cell.source, *outputs), (cell.source, before[j])


def moved(marks, j):
    at = np.array(marks[j]["at"], dtype=float)
    seen = np.isfinite(at) & (at >= 0) & (at <= 1)
    marks[j]["at"] = np.where(seen, at + np.where(at < 0.5, 0.1, -0.1), at).tolist()
    return seen.any()


def without(marks, j):
    del marks[j]
    return True


def renamed(marks, j):
    marks[j]["words"] = "other"
    return True


def test_introduction_and_chapters_state_the_recorded_run_times():
    times = json.loads((BOOK / "run_times.json").read_text())
    recorded = {name: time["seconds"] for name, time in times.items()}
    stated = {path.stem: int(re.search(r"\*Run time:\* about (\d+) seconds", path.read_text())[1]) for path in CHAPTERS}
    rows = re.findall(r"^\| \[\d+ [^]]+\]\((\w+)\) \|.*\| (\d+) s \|$", (BOOK / "intro.md").read_text(), re.MULTILINE)
    assert {name: int(seconds) for name, seconds in rows} == stated == recorded


def test_on_colab_what_would_change_outputs_is_pinned_as_in_the_requirements():
    project = tomllib.loads((BOOK.parent / "pyproject.toml").read_text())["project"]
    pinned = re.findall(r"^([\w-]+==\S+)", (BOOK.parent / "requirements.txt").read_text(), re.MULTILINE)
    assert set(project["optional-dependencies"]["book"]) <= set(pinned)
    ranges = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert {pin.split("==")[0] for pin in project["optional-dependencies"]["book"]} <= ranges
    for path in CHAPTERS:
        assert '"./cua-book[book]"' in path.read_text()


QUOTED = re.compile(r"(−?[\d,]+(?:\.(\d+))?)(?: %)? <!-- (\w+)\.(\w+) -->")


@pytest.mark.parametrize("page", ["../README.md", "intro.md", "teaching.md"])
def test_results_quoted_in_prose_are_the_recorded_ones(page):
    text = (BOOK / page).read_text()
    quoted = QUOTED.findall(text)
    assert len(quoted) == text.count("-->") > 0
    for number, decimals, result, name in quoted:
        value = load_result(result)["headline"][name]["value"]
        assert number == f"{value:,.{len(decimals)}f}".replace("-", "−")


def test_every_assumption_has_a_source_and_is_used():
    """Who disagrees with one changes it in one place: no chapter repeats its value."""
    assumed = tomllib.loads((BOOK / "assumptions.toml").read_text())
    code = "\n".join(
        cell.source
        for chapter in ("13_cost", "14_scaling")
        for cell in jupytext.read(BOOK / f"{chapter}.py").cells
        if cell.cell_type == "code"
    )
    by_machine = {f"{kind}_{what}" for kind in ("qpu", "gpu", "cpu") for what in ("price", "power")}
    assert '[f"{kind}_price"]' in code
    assert '[f"{kind}_power"]' in code
    for name, number in assumed.items():
        assert (
            {"value", "unit", "says", "source"} <= number.keys() <= {"value", "low", "high", "unit", "says", "source"}
        )
        assert number.get("low", number["value"]) <= number["value"] <= number.get("high", number["value"])
        assert name in by_machine or f'"{name}"' in code


def test_what_a_chapter_reads_decides_whether_it_runs_again(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("execute", BOOK / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    read = ("requirements.txt", "cua/quantum/cost.py", "cua/scaling.js", "cua/scaling.css", "book/assumptions.toml")
    read += ("book/results/baselines.json", "book/adapters/v_proj_one/exact-seed0/adapter.safetensors")
    for name in (*read, "README.md", "book/intro.md", "book/_build/copy.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(execute, "BOOK", tmp_path / "book")
    seen = {execute.inputs_digest()}
    for name in ("README.md", "book/intro.md", "book/_build/copy.toml"):
        (tmp_path / name).write_text("new")
        assert execute.inputs_digest() in seen, name
    for name in read:
        (tmp_path / name).write_text("new")
        assert execute.inputs_digest() not in seen, name
        seen.add(execute.inputs_digest())
