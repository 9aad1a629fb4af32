"""What counts as the same output of a cell on another processor, and what does not."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
import pytest

BOOK = Path(__file__).parents[1] / "book"


@pytest.fixture(scope="module")
def compare(script):
    return script("compare")


def stream(text):
    return [nbformat.v4.new_output("stream", name="stdout", text=text)]


def displayed(**kinds):
    return [
        nbformat.v4.new_output("display_data", data={kind.replace("_", "/"): value for kind, value in kinds.items()})
    ]


SAYS = "# On another processor: perplexity ±0.02, squared error ×1.5, ±0.1.\n"


@pytest.mark.parametrize(
    ("was", "now", "same"),
    [
        ("perplexity 24.98", "perplexity 24.99", True),
        ("perplexity 24.98", "perplexity 25.00", True),
        ("perplexity 24.98", "perplexity 24.91", False),
        ("perplexity 24.98 (4,080 tokens)", "perplexity 24.98 (4,081 tokens)", False),
        ("noisy, readout perplexity 22.0", "noisy, readout perplexity 23.9", False),
        ("squared error 1.7e-05", "squared error 2.4e-05", True),
        ("squared error 1.7e-05", "squared error 1.2e-05", True),
        ("squared error 1.7e-05", "squared error 2.7e-05", False),
        ("squared error 1.7e-05", "squared error -1.7e-05", False),
        ("perplexity of squared error 1.0", "perplexity of squared error 1.4", True),
        ("share of shots lost: 3.6%, 5.9%", "share of shots lost: 3.7%, 5.9%", True),
        ("share of shots lost: 3.6%, 0.9%", "share of shots lost: 3.6%, 0.1%", False),
        ("17 % of 3", "18 % of 3", False),
        ("depth 144", "depth 143", False),
        ("-4.37", "4.37", False),
        ("-0.0", "0.0", True),
        ("nan", "0.1", False),
        ("same text: True", "same text: False", False),
        (" 9.97  a\n10.00  b", "10.02  a\n10.00  b", True),
        ("9.97  a", "9.97  a\n", True),
        ("9.97  a\n1", "9.97  a", False),
        ("layer 0: 0.38", "layer 1: 0.38", False),
        ("1,234.5", "1,234.6", True),
        ("[1.9, 2.1]", "[1.9, 2.2]", True),
        ("from 1.5-2.5", "from 1.5-2.6", True),
        ("x 9.97", "x 10", True),
        ("x 10", "x 9.97", True),
        ("x 10", "x 9", False),
        ("squared error 5.94", "squared error 3.96", True),
        ("squared error 3.96", "squared error 5.95", False),
        ("squared error 1e300", "squared error 1e-300", False),
        ("squared error 0", "squared error 1e-300", False),
    ],
)
def test_numbers_are_compared_as_numbers_within_what_the_cell_states(compare, was, now, same):
    found = compare.differences(SAYS, stream(was), stream(now))
    assert (found == []) == same, found
    assert compare.differences(SAYS, stream(was), stream(was)) == []


@pytest.mark.parametrize(("was", "now"), [("24.98", "24.99"), ("1e-3", "1.1e-3"), ("3 shots", "4 shots"), ("a", "b")])
def test_without_a_stated_tolerance_all_has_to_be_equal(compare, was, now):
    assert compare.differences("print(x)", stream(was), stream(now))
    assert compare.differences("print(x)", stream(f"  {was}\n"), stream(was)) == []


def test_a_difference_says_what_came_for_what_and_how_far_it_may_go(compare):
    (found,) = compare.differences(SAYS, stream("the perplexity 24.98"), stream("the perplexity 24.91"))
    assert "24.91 for 24.98" in found
    assert "±0.02" in found
    assert "the perplexity" in found


@pytest.mark.parametrize(
    "line",
    ["perplexity", "perplexity 0.02", "±0", "perplexity ±0.02; ±1", "×1", "×0.9", "perplexity ± 0.1", "figure ×1.1"],
)
def test_a_tolerance_that_cannot_be_read_is_an_error(compare, line):
    with pytest.raises(ValueError, match="for example"):
        compare.differences(f"# On another processor: {line}.", stream("1"), stream("1"))


def test_tables_and_html(compare):
    table = "<table><tr><td>blocks</td><td>0.78</td></tr></table>"
    for kind in ("text/html", "text/plain", "text/latex"):
        for now, same in ((table.replace("0.78", "0.80"), True), (table.replace("0.78", "0.98"), False)):
            found = compare.differences(SAYS, displayed(**{kind: table}), displayed(**{kind: now}))
            assert (found == []) == same
    assert compare.differences(SAYS, displayed(text_html=table), displayed(text_html=table.replace("td", "th")))


def test_a_picture_that_comes_without_what_it_shows_has_to_be_the_same():
    from compare import differences

    assert differences("", displayed(image_png="a"), displayed(image_png="a")) == []
    assert differences("", displayed(image_png="a"), displayed(image_png="b"))


def test_the_order_of_keys_in_json_does_not_matter(compare):
    one, other = (displayed(**{"application/json": value}) for value in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert compare.differences("", one, other) == []


def test_an_output_more_or_less_is_a_difference(compare):
    one, two = stream("1"), stream("1") + displayed(text_html="<p>2</p>")
    assert compare.differences("", [], one), "a cell without stored output that prints"
    assert compare.differences("", one, [])
    assert compare.differences("", one, two)
    assert compare.differences("", two, one)
    assert compare.differences("", two, two + displayed(text_html="<p>2</p>"))
    assert compare.differences("", one, [nbformat.v4.new_output("stream", name="stderr", text="1")])
    assert compare.differences("", one, [nbformat.v4.new_output("error", ename="ValueError", evalue="1", traceback=[])])
    split = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a", "b\n")]
    assert compare.differences("", split, stream("ab")) == [], "in how many pieces it came does not matter"


@pytest.fixture
def figure(monkeypatch):
    """Two axes with most of what chapters draw."""
    monkeypatch.setattr(mpl, "rcParams", mpl.rcParams.copy())
    figure = mpl.figure.Figure(figsize=(7, 3))
    left, right = figure.subplots(1, 2)
    left.plot([1, 2, 3], [1.0, 10.0, 100.0], label="a line")
    left.scatter([1, 2], [20.0, 30.0], c=[0.1, 0.9])
    left.errorbar([1.5], [50.0], yerr=[[5.0], [7.0]], capsize=4)
    left.fill_between([1, 2], [1.0, 2.0], [2.0, 3.0])
    left.axhline(60.0)
    left.set(yscale="symlog", xlabel="x", ylabel="y (%)", title="both")
    left.annotate("here", (2, 10.0), (2.5, 20.0))
    left.legend()
    right.bar(["a", "b"], [1.0, 1.2])
    right.imshow(np.arange(4.0).reshape(2, 2))
    figure.legend(["all"])
    return figure


def outputs(figure):
    from cua.plotting import SHOWN, shown_lines

    return displayed(**{"text/plain": "<Figure>", "image/png": "picture", SHOWN: shown_lines(figure)})


def changes(figure):
    """Every way in which a figure could show something else, each one change."""
    left, right = figure.axes
    line, height, image = left.lines[0], right.patches[0].get_height(), right.images[0].get_array()
    yield lambda: line.set_ydata([1.0, 11.0, 100.0]), lambda: line.set_ydata([1.0, 10.0, 100.0])
    yield lambda: line.set_ydata([1.0, np.nan, 100.0]), lambda: line.set_ydata([1.0, 10.0, 100.0])
    yield lambda: line.set_color("red"), lambda: line.set_color("C0")
    yield lambda: line.set_visible(False), lambda: line.set_visible(True)
    scatter = left.collections[0]
    yield lambda: scatter.set_offsets([[1, 20.0], [2, 33.0]]), lambda: scatter.set_offsets([[1, 20.0], [2, 30.0]])
    yield lambda: left.set_ylim(0, 120), lambda: left.set_ylim(0, 100)
    yield lambda: left.set_yscale("linear"), lambda: left.set_yscale("symlog")
    yield lambda: left.set_title("other"), lambda: left.set_title("both")
    yield lambda: left.texts[0].set_text("there"), lambda: left.texts[0].set_text("here")
    yield lambda: left.texts[0].set_x(2.6), lambda: left.texts[0].set_x(2.5)
    yield lambda: setattr(left.texts[0], "xy", (2, 14.0)), lambda: setattr(left.texts[0], "xy", (2, 10.0))
    yield (
        lambda: left.get_legend().get_texts()[0].set_text("b"),
        lambda: left.get_legend().get_texts()[0].set_text("a line"),
    )
    yield (
        lambda: figure.legends[0].get_texts()[0].set_text("b"),
        lambda: figure.legends[0].get_texts()[0].set_text("all"),
    )
    yield lambda: right.patches[0].set_height(1.1), lambda: right.patches[0].set_height(height)
    yield lambda: right.images[0].set_array(image * [[1, 1.3], [1, 1]]), lambda: right.images[0].set_array(image)
    yield lambda: right.set_xticks([0, 1], ["a", "c"]), lambda: right.set_xticks([0, 1], ["a", "b"])


def test_every_change_of_what_a_figure_shows_is_found(compare, figure):
    figure.axes[0].set_ylim(0, 100)
    figure.axes[1].set_xticks([0, 1], ["a", "b"])
    before, n = outputs(figure), 0
    for change, undo in changes(figure):
        change()
        assert compare.differences("", before, outputs(figure)) != [], n
        undo()
        assert compare.differences("", before, outputs(figure)) == [], n
        n += 1
    assert n == 16


def test_what_nobody_can_see_is_no_difference(compare, figure):
    before = outputs(figure)
    figure.axes[0].lines[0].set_ydata([1.0, 10.001, 100.0])
    now = outputs(figure)
    now[0].data["image/png"] = "another machine's picture"
    assert compare.differences("", before, now) == []
    figure.axes[0].lines[0].set_ydata([1.0, 10.5, 100.0])
    assert compare.differences("", before, outputs(figure)) != []
    assert compare.differences("# On another processor: figure ±0.05.", before, outputs(figure)) == []
    figure.axes[0].lines[0].set_ydata([1.0, 30.0, 100.0])
    assert compare.differences("# On another processor: figure ±0.05.", before, outputs(figure)) != []


def test_an_axis_or_a_mark_more_is_a_difference(compare, figure):
    figure.axes[1].autoscale(False)
    before = outputs(figure)
    figure.axes[1].plot([0, 1], [0, 1])
    assert compare.differences("", before, outputs(figure))
    figure.axes[1].lines[0].remove()
    assert compare.differences("", before, outputs(figure)) == []
    figure.add_axes((0, 0, 0.1, 0.1))
    assert compare.differences("", before, outputs(figure))


def test_a_figure_is_stored_in_lines_that_are_json(figure):
    from cua.plotting import shown, shown_lines

    text = shown_lines(figure)
    assert json.loads(text) == json.loads(json.dumps(shown(figure)))
    assert text.count("\n") > 10


def test_nbval_compares_chapters_like_that(tmp_path):
    """A notebook in a folder with the book's ``conftest.py``: each planted change fails, in the cell where it is."""
    for name in ("conftest.py", "compare.py"):
        (tmp_path / name).write_text((BOOK / name).read_text())
    cells = ["import matplotlib.pyplot as plt\nfrom cua.plotting import use_style\nuse_style()"]
    cells += ["# On another processor: perplexity ±0.02.\nprint('perplexity 24.98')"] * 2
    cells += ["print('perplexity 24.98')", "print('a line that is not stored')"]
    cells += ["_, axes = plt.subplots()\naxes.plot([1, 2], [3, 4])\nplt.show()"] * 2
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    from nbclient import NotebookClient

    NotebookClient(notebook).execute()
    planted = copy.deepcopy(notebook)
    shows = next(kind for kind in planted.cells[5].outputs[0].data if "cua" in kind)
    planted.cells[1].outputs[0].text = "perplexity 24.97\n"
    planted.cells[2].outputs[0].text = "perplexity 24.91\n"
    planted.cells[3].outputs[0].text = "perplexity 24.97\n"
    planted.cells[4].outputs = []
    planted.cells[5].outputs[0].data["image/png"] = "another machine's picture"
    planted.cells[6].outputs[0].data[shows] = planted.cells[6].outputs[0].data[shows].replace("0.9545", "0.9445")
    nbformat.write(planted, tmp_path / "planted.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-current-env",
        "planted.ipynb",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTEST_ADDOPTS": ""}
    )
    assert re.findall(r"^FAILED planted.ipynb::Cell (\d)", done.stdout, re.MULTILINE) == ["2", "3", "4", "6"]
    assert "24.98 for 24.91 (more than ±0.02 away)" in done.stdout
