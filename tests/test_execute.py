"""How chapters are run: what is skipped, what is carried over, and the short versions for a workshop."""

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
print(json.load(open("FOLDER/book/results/found.json")))
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


def test_a_notebook_says_what_its_run_took_and_read(runner):
    chapter = runner.BOOK / "01_short.py"
    runner.run(chapter, b"")
    stored = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    assert stored.metadata["cua"]["results"] == ["found"]
    assert stored.metadata["cua"]["run_time_s"] >= 5
    assert [cell.get("execution_count") for cell in stored.cells] == [None, 1], "nothing of the watch is left"


def test_a_run_about_as_long_changes_nothing(runner):
    assert runner.about(0.4, None) == 5
    assert [runner.about(31.0, before) for before in (None, 20, 30, 55, 10, 65)] == [30, 20, 30, 55, 30, 30]


def test_an_error_in_a_chapter_leaves_its_notebook_alone(runner):
    chapter = runner.BOOK / "01_short.py"
    runner.run(chapter, b"")
    before = chapter.with_suffix(".ipynb").read_bytes()
    chapter.write_text(chapter.read_text().replace("import json", "import nosuch"))
    with pytest.raises(Exception, match="nosuch"):
        runner.run(chapter, b"")
    assert chapter.with_suffix(".ipynb").read_bytes() == before


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
