"""How chapters are run: what is skipped, what is carried over, and the short versions for a workshop."""

import json

import jupytext
import nbformat
import pytest

CHAPTER = """# %% [markdown]
# Prose, ![a figure](figures/a.svg), {download}`data <results/a.json>`.

# %%
import json

steps, shots = 60, 100  # workshop: 6, 10
total = sum(range(steps))
print(total * shots)
print(json.load(open("results/found.json")))
"""


@pytest.fixture
def runner(script, tmp_path, monkeypatch):
    runner = script("execute")
    book = tmp_path / "book"
    (book / "results").mkdir(parents=True)
    (book / "results" / "found.json").write_text("7")
    monkeypatch.setattr(runner, "BOOK", book)
    monkeypatch.setattr(runner, "STAMPS", book / "stamps")
    monkeypatch.setattr(runner, "WORKSHOP", book / "workshop")
    monkeypatch.setattr(runner, "FAILED", book / "failed")
    monkeypatch.setattr(runner, "RUN_TIMES", book / "run_times.json")
    (book / "01_short.py").write_text(CHAPTER.replace("FOLDER", str(tmp_path)))
    return runner


def output(notebook):
    return nbformat.read(notebook, as_version=4).cells[1].outputs[0].text


def test_a_chapter_runs_once_until_something_changes(runner):
    chapter = runner.BOOK / "01_short.py"
    notebook = chapter.with_suffix(".ipynb")
    assert runner.run(chapter, b"inputs").startswith("ran in")
    assert output(notebook) == "177000\n7\n"
    assert runner.run(chapter, b"inputs") == "unchanged"
    first = notebook.read_bytes()

    chapter.write_text(chapter.read_text().replace("Prose", "Other prose"))
    assert runner.run(chapter, b"inputs") == "unchanged"
    assert b"Other prose" in notebook.read_bytes() != first
    assert output(notebook) == "177000\n7\n", "prose is brought over, outputs stay"

    assert runner.run(chapter, b"other inputs").startswith("ran in")
    chapter.write_text(chapter.read_text().replace("range(steps)", "range(2)"))
    assert runner.run(chapter, b"other inputs").startswith("ran in")
    assert output(notebook) == "100\n7\n"


def test_a_notebook_says_what_it_read_and_not_how_long_it_took(runner):
    chapter = runner.BOOK / "01_short.py"
    runner.run(chapter, b"")
    stored = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    assert stored.metadata["cua"] == {"results": ["found"]}
    assert [cell.get("execution_count") for cell in stored.cells] == [None, 1], "nothing of the watch is left"
    assert not runner.RUN_TIMES.exists()


DEVICE = """# %%
print("perplexity", open("FOLDER/processor").read())  # of the processor
# On another processor: perplexity ±0.02.

# %%
print("three", 1 + 2)
"""


def test_another_processor_changes_no_notebook_but_what_says_otherwise_is_stored(runner, tmp_path):
    chapter, processor = runner.BOOK / "02_device.py", tmp_path / "processor"
    chapter.write_text(DEVICE.replace("FOLDER", str(tmp_path)))
    processor.write_text("24.98")
    assert "2 of 2 cells stored anew" in runner.run(chapter, b"")
    before = chapter.with_suffix(".ipynb").read_bytes()
    processor.write_text("24.97")
    assert "anew" not in runner.run(chapter, b"other inputs")
    assert chapter.with_suffix(".ipynb").read_bytes() == before

    processor.write_text("24.91")
    assert "1 of 2 cells stored anew" in runner.run(chapter, b"inputs of a change")
    assert b"24.91" in chapter.with_suffix(".ipynb").read_bytes()

    processor.write_text("24.90")
    chapter.write_text(chapter.read_text().replace("three", "3 is"))
    assert "1 of 2 cells stored anew" in runner.run(chapter, b"")
    stored = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    assert [cell.outputs[0].text for cell in stored.cells] == ["perplexity 24.91\n", "3 is 3\n"]
    assert [cell.execution_count for cell in stored.cells] == [1, 2]


def test_fresh_stores_everything_and_how_long_it_took(runner, tmp_path):
    chapter, processor = runner.BOOK / "02_device.py", tmp_path / "processor"
    chapter.write_text(DEVICE.replace("FOLDER", str(tmp_path)))
    processor.write_text("24.98")
    runner.run(chapter, b"")
    processor.write_text("24.97")
    assert runner.run(chapter, b"", fresh=True).startswith("ran in")
    assert b"24.97" in chapter.with_suffix(".ipynb").read_bytes()
    recorded = json.loads(runner.RUN_TIMES.read_text())
    assert recorded["02_device"]["seconds"] == 5
    assert recorded["02_device"]["device"].endswith("cores")
    runner.record_run_time("01_short", 62.0)
    now = json.loads(runner.RUN_TIMES.read_text())
    assert now == {"01_short": {"seconds": 60, "device": recorded["02_device"]["device"]}} | recorded


def test_a_run_about_as_long_has_the_run_time_it_had(runner):
    assert runner.about(0.4, None) == 5
    assert [runner.about(31.0, before) for before in (None, 20, 30, 55, 10, 65)] == [30, 20, 30, 55, 30, 30]


def test_a_failure_names_chapter_cell_and_the_way_to_go_on_and_the_others_still_run(runner, capsys):
    chapter, other = runner.BOOK / "01_short.py", runner.BOOK / "03_other.py"
    runner.run(chapter, b"")
    before = chapter.with_suffix(".ipynb").read_bytes()
    failing = "\n\n# %%\nprint('so far')\n\n# %%\nimport nosuch\n"
    chapter.write_text(chapter.read_text() + failing)
    other.write_text("# %%\nprint(1)\n")
    assert runner.main([str(chapter), str(other)]) == 1
    said = capsys.readouterr()
    assert "01_short.py ... FAILED in code cell 3: ModuleNotFoundError: No module named 'nosuch'" in said.out
    assert f"to go on: python book/execute.py {chapter}\n" in said.err
    assert "Traceback" not in said.out + said.err
    assert len(said.out.splitlines()) == 3
    assert "03_other.py ... ran in" in said.out
    assert "1 of 2 chapters failed" in said.err
    assert chapter.with_suffix(".ipynb").read_bytes() == before
    so_far = nbformat.read(runner.FAILED / "01_short.ipynb", as_version=4)
    assert so_far.cells[2].outputs[0].text == "so far\n"
    assert so_far.cells[3].outputs[0].ename == "ModuleNotFoundError"
    assert runner.main([str(other)]) == 0


REPEATED = """# %%
numbers = iter([1.00, 1.05])

# %%
print(next(numbers))
# On another processor: ±0.1.

# %%
print(next(numbers))
# On another processor: ±0.1.
"""


def test_cells_with_one_source_keep_their_own_outputs(runner):
    chapter = runner.BOOK / "04_repeated.py"
    chapter.write_text(REPEATED)
    runner.run(chapter, b"")
    assert "anew" not in runner.run(chapter, b"other inputs")
    stored = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    assert [cell.outputs[0].text for cell in stored.cells[1:]] == ["1.0\n", "1.05\n"]


def test_outputs_that_somebody_changed_are_computed_again(runner):
    chapter, notebook = runner.BOOK / "01_short.py", runner.BOOK / "01_short.ipynb"
    runner.run(chapter, b"")
    for change in ({"outputs": [], "execution_count": None}, {"outputs": []}, {"execution_count": None}):
        stored = nbformat.read(notebook, as_version=4)
        stored.cells[1].update(change)
        nbformat.write(stored, notebook)
        assert "1 of 1 cells stored anew" in runner.run(chapter, b"")
        assert output(notebook) == "177000\n7\n"
        assert runner.run(chapter, b"") == "unchanged"


def test_a_notebook_that_cannot_be_read_is_a_failure_that_fresh_mends(runner):
    chapter, notebook = runner.BOOK / "01_short.py", runner.BOOK / "01_short.ipynb"
    notebook.write_text('{"cells": [')
    with pytest.raises(runner.ChapterError, match=r"cannot be read.*git checkout"):
        runner.run(chapter, b"")
    assert runner.run(chapter, b"", fresh=True).startswith("ran in")
    assert output(notebook) == "177000\n7\n"


def test_a_tolerance_that_cannot_be_read_fails_before_anything_runs(runner, monkeypatch):
    chapter = runner.BOOK / "01_short.py"
    chapter.write_text(chapter.read_text() + "\n\n# %%\nprint(1.5)\n# On another processor: perplexity 0.02\n")
    monkeypatch.setattr(runner, "NotebookClient", None)
    with pytest.raises(runner.ChapterError, match=r"code cell 2: ValueError: .perplexity 0\.02."):
        runner.run(chapter, b"")


def test_a_figure_that_cannot_be_shown_is_a_failure(runner):
    chapter = runner.BOOK / "01_short.py"
    bad = "class Bad:\n    def _repr_html_(self):\n        raise KeyError('x')\n\n\ndisplay(Bad())"
    chapter.write_text(f"# %%\nprint(1)\n\n# %%\n{bad}\n")
    with pytest.raises(runner.ChapterError, match="code cell 2: RuntimeError: KeyError"):
        runner.run(chapter, b"")


def test_a_kernel_that_does_not_start_is_a_failure(runner, monkeypatch):
    def refused(self):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(runner.NotebookClient, "setup_kernel", refused)
    with pytest.raises(runner.ChapterError, match="no kernel"):
        runner.run(runner.BOOK / "01_short.py", b"")


def test_a_chapter_that_is_not_there_is_said_before_anything_runs(runner, capsys):
    with pytest.raises(SystemExit):
        runner.main([str(runner.BOOK / "01_short.py"), "book/99_none.py"])
    assert "no such chapter: book/99_none.py" in capsys.readouterr().err
    assert not (runner.BOOK / "01_short.ipynb").exists()


def test_a_kernel_that_dies_is_a_failure_of_its_cell(runner):
    chapter = runner.BOOK / "01_short.py"
    chapter.write_text("# %%\nprint(1)\n\n# %%\nimport os\n\nos._exit(1)\n")
    with pytest.raises(runner.ChapterError, match="code cell 2"):
        runner.run(chapter, b"")


def test_no_cell_has_a_time_limit(runner, monkeypatch):
    made = []
    client = runner.NotebookClient
    monkeypatch.setattr(runner, "NotebookClient", lambda *a, **k: made.append(client(*a, **k)) or made[-1])
    runner.run(runner.BOOK / "01_short.py", b"")
    assert made[0].timeout is None
    assert made[0].iopub_timeout >= 600


def test_a_workshop_gets_a_short_version_beside(runner, monkeypatch):
    chapter = runner.BOOK / "01_short.py"
    assert "slow" not in runner.run_short(chapter)
    short = nbformat.read(runner.WORKSHOP / "01_short.ipynb", as_version=4)
    assert short.cells[0].source.startswith("**Short version**")
    assert short.cells[1].source == "Prose, ![a figure](../../figures/a.svg), {download}`data <../../results/a.json>`."
    assert short.cells[2].outputs[0].text == "150\n7\n"
    assert not chapter.with_suffix(".ipynb").exists()
    monkeypatch.setattr(runner, "PATIENCE_S", 0.0)
    assert "a slow machine" in runner.run_short(chapter)


def test_what_chapters_shorten_can_be_shortened(script):
    runner, found = script("execute"), 0
    for chapter in sorted(runner.BOOK.glob("[0-9][0-9]_*.py")):
        for cell in jupytext.read(chapter).cells:
            if cell.cell_type == "code":
                shorter, n = runner.SHORTER.subn(r"\1\2", cell.source)
                assert n == cell.source.count("# workshop"), cell.source
                compile(shorter, chapter.name, "exec")
                found += n
    assert found > 0
