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
        ("a 9.97      \nb      9.98", "a      9.97 \nb      9.98", False),
        ("a  9.97\nb 10.00", "a 10.02\nb 10.00", True),
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
    assert compare.differences("print(x)", stream(f"{was} \n"), stream(was)) == []


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
    assert compare.differences("", two, two[::-1]), "printed before it was displayed"
    split = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a", "b\n")]
    assert compare.differences("", split, stream("ab")) == [], "in how many pieces it came does not matter"


@pytest.fixture
def figure(monkeypatch):
    """Most of what chapters draw, and what readers might."""
    monkeypatch.setattr(mpl, "rcParams", mpl.rcParams.copy())
    figure = mpl.figure.Figure(figsize=(9, 5))
    left, right, low, last = figure.subplots(2, 2).ravel()
    left.plot([1, 2, 3], [1.0, 10.0, 100.0], "o--", label="a line")
    left.scatter([1, 2], [20.0, 30.0], s=[20, 40], c=[0.1, 0.9])
    left.errorbar([1.5], [50.0], yerr=[[5.0], [7.0]], capsize=4)
    left.fill_between([1, 2], [1.0, 2.0], [2.0, 3.0], alpha=0.3, hatch="/")
    left.axhline(60.0)
    left.set(yscale="symlog", xlabel="x", ylabel="y (%)", title="both", ylim=(0, 100), xlim=(0.5, 3.5))
    left.annotate("here", (2, 10.0), (2.5, 20.0), arrowprops={"arrowstyle": "->"})
    left.legend()
    right.bar(["a", "b"], [1.0, 1.2])
    right.text("b", 0.5, "on a category")
    right.set_ylim(0, 1.5)
    low.imshow(np.arange(4.0).reshape(2, 2))
    low.inset_axes((0.5, 0.5, 0.4, 0.4)).plot([0, 1], [0, 1])
    last.table([["1", "2"]], loc="center")
    last.pie([1, 2])
    figure.legend(["all"])
    return figure


def outputs(figure):
    from cua.plotting import SHOWN, shown_lines

    return displayed(**{"text/plain": "<Figure>", "image/png": "picture", SHOWN: shown_lines(figure)})


CHANGES = {
    "a point": lambda left, *_: left.lines[0].set_ydata([1.0, 11.0, 100.0]),
    "a point that is missing": lambda left, *_: left.lines[0].set_ydata([1.0, np.nan, 100.0]),
    "a colour": lambda left, *_: left.lines[0].set_color("red"),
    "a line's dashes": lambda left, *_: left.lines[0].set_linestyle(":"),
    "a line's width": lambda left, *_: left.lines[0].set_linewidth(3),
    "markers": lambda left, *_: left.lines[0].set_marker("s"),
    "the size of markers": lambda left, *_: left.lines[0].set_markersize(9),
    "a line that is hidden": lambda left, *_: left.lines[0].set_visible(False),
    "a line over another": lambda left, *_: left.lines[0].set_zorder(9),
    "a point of a cloud": lambda left, *_: left.collections[0].set_offsets([[1, 20.0], [2, 33.0]]),
    "the size of a point": lambda left, *_: left.collections[0].set_sizes([20, 80]),
    "a point's place on the colour scale": lambda left, *_: left.collections[0].set_array([0.1, 0.5]),
    "a colour map": lambda left, *_: left.collections[0].set_cmap("gray"),
    "an area's opacity": lambda left, *_: left.collections[-1].set_alpha(0.6),
    "hatching": lambda left, *_: left.collections[-1].set_hatch("x"),
    "limits": lambda left, *_: left.set_ylim(0, 120),
    "scale": lambda left, *_: left.set_yscale("linear"),
    "title": lambda left, *_: left.set_title("other"),
    "label": lambda left, *_: left.set_xlabel("z"),
    "a text": lambda left, *_: left.texts[0].set_text("there"),
    "a text's place": lambda left, *_: left.texts[0].set_x(2.6),
    "a text's size": lambda left, *_: left.texts[0].set_size(14),
    "where an arrow points": lambda left, *_: setattr(left.texts[0], "xy", (2, 14.0)),
    "a legend's words": lambda left, *_: left.get_legend().get_texts()[0].set_text("b"),
    "a legend's key": lambda left, *_: left.get_legend().legend_handles[0].set_color("red"),
    "no legend": lambda left, *_: left.get_legend().remove(),
    "the grid": lambda left, *_: left.grid(visible=True),
    "a bar": lambda _, right, *__: right.patches[0].set_height(1.1),
    "a bar's colour": lambda _, right, *__: right.patches[0].set_facecolor("red"),
    "a category": lambda _, right, *__: right.set_xticks([0, 1], ["a", "c"]),
    "where a tick is": lambda _, right, *__: right.set_xticks([0, 0.9], ["a", "b"]),
    "a text on a category": lambda _, right, *__: right.texts[0].set_x("a"),
    "no frame": lambda _, right, *__: right.spines["top"].set_visible(False),
    "an image": lambda _, __, low, *___: low.images[0].set_array(np.array([[0.0, 1.3], [2.0, 3.0]])),
    "an image's colours": lambda _, __, low, *___: low.images[0].set_cmap("gray"),
    "a line in an inset": lambda _, __, low, *___: low.child_axes[0].lines[0].set_ydata([0, 0.9]),
    "a table's cell": lambda *axes: axes[3].tables[0][0, 0].get_text().set_text("3"),
    "a slice of a pie": lambda *axes: axes[3].patches[0].set_theta2(100),
    "the figure's legend": lambda left, *_: left.figure.legends[0].get_texts()[0].set_text("b"),
    "a text on the figure": lambda left, *_: left.figure.text(0.5, 0.5, "more"),
    "more axes": lambda left, *_: left.figure.add_axes((0, 0, 0.1, 0.1)),
    "the size of the figure": lambda left, *_: left.figure.set_size_inches(9, 6),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_what_a_figure_shows_is_found(compare, figure, name):
    before = outputs(figure)
    assert compare.differences("", before, outputs(figure)) == [], "drawing it twice changes nothing"
    CHANGES[name](*figure.axes)
    assert compare.differences("", before, outputs(figure)) != []


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


def test_what_lies_outside_the_axes_does_not_matter(compare, figure):
    left = figure.axes[0]
    (line,), (far,) = left.plot([1, 200], [1, 5], "--"), left.plot([50, 60], [1, 1], "o")
    before = outputs(figure)
    line.set_data([1, 399], [1, 9.0])  # the same line, farther
    far.set_xdata([70, 80])
    assert compare.differences("", before, outputs(figure)) == []


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
    cells += ["_, axes = plt.subplots()\naxes.plot([1, 2], [3, 4], color='#0072B2')\nplt.show()"] * 2
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
    marks = json.loads(planted.cells[6].outputs[0].data[shows])
    next(mark for mark in marks if mark["colours"][0] == [0, 0.4471, 0.698, 1])["at"][0][1] += 0.01  # the line's end
    planted.cells[6].outputs[0].data[shows] = json.dumps(marks)
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
