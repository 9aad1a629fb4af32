"""One figure style: the Okabe-Ito palette, which colour-blind readers can tell apart, and quiet axes.

Colours keep their meaning through the book; marks and line styles repeat what the colour says.

In a notebook every figure is stored as its picture and as what it shows (:func:`shown`), so that two runs can be
compared by the data: pictures of equal data differ from machine to machine.
"""

import json
import sys
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.spines import Spine
from matplotlib.text import Annotation, Text

SHOWN = "application/vnd.cua.shown"  # the type under which a notebook stores what a figure shows, a line a mark

COLOURS = {
    "base": "#555555",
    "exact": "#0072B2",
    "sign-constrained": "#D55E00",
    "paper": "#009E73",
    "accent": "#CC79A7",
    "highlight": "#E69F00",
}


def use_style() -> None:
    """Set matplotlib's defaults for every figure of the book (7 x 3.4 inches at 144 dpi).

    In a notebook, also have what each figure shows stored beside its picture.
    """
    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 3.4),
            "figure.dpi": 144,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.size": 10,
            "axes.prop_cycle": mpl.cycler(color=list(COLOURS.values())),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
        }
    )
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        from IPython.core.formatters import BaseFormatter

        formatter = BaseFormatter(parent=shell.display_formatter)
        formatter.format_type, formatter.print_method = SHOWN, "_repr_shown_"
        formatter.for_type(FigureBase, shown_lines)  # the inline backend drops what is registered for Figure
        shell.display_formatter.formatters[SHOWN] = formatter


def shown(figure: Figure) -> list[dict[str, Any]]:
    """What a figure shows, one entry for each of its axes, for comparison and as data.

    ``texts``: title, axis labels, named ticks, legend; with the first axes, the figure's own. ``limits``: x and y, as
    the axis is scaled (powers of ten on a logarithmic one). ``marks``: of each line, bar, area, image and text inside,
    its kind, its colours (RGBA, 0 to 1), a text's words, and where it is, in shares of the axes' width and height; of
    an image, its values as shares of the colour scale. None stands for what is not drawn.
    """
    figure.draw_without_rendering()  # limits and the places of annotations are settled only then
    return [
        {
            "texts": _texts(axes) + (_figure_texts(figure) if axes is figure.axes[0] else []),
            "limits": [*_scaled(axes.xaxis, axes.get_xlim()), *_scaled(axes.yaxis, axes.get_ylim())],
            "marks": [mark for artist in axes.get_children() if (mark := _mark(axes, artist))],
        }
        for axes in figure.axes
    ]


def shown_lines(figure: Figure) -> str:
    """:func:`shown` as JSON, a line for each mark, so that a change of one is a change of one line in a notebook."""
    axes = [
        f'{{"texts": {json.dumps(one["texts"])}, "limits": {json.dumps(one["limits"])}, "marks": [\n'
        + ",\n".join(map(json.dumps, one["marks"]))
        + "]}"
        for one in shown(figure)
    ]
    return "[" + ",\n".join(axes) + "]"


def _texts(axes: Axes) -> list[str]:
    texts = [axes.get_title(loc) for loc in ("left", "center", "right")] + [axes.get_xlabel(), axes.get_ylabel()]
    for axis in (axes.xaxis, axes.yaxis):
        if not isinstance(axis.get_major_formatter(), mpl.ticker.ScalarFormatter | mpl.ticker.LogFormatter):
            texts += [label.get_text() for label in axis.get_ticklabels()]
    if legend := axes.get_legend():
        texts += [text.get_text() for text in (legend.get_title(), *legend.get_texts())]
    return [text for text in texts if text]


def _figure_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()] + [
        text.get_text() for text in figure.texts
    ]


def _scaled(axis: mpl.axis.Axis, limits: tuple[float, float]) -> list[float]:
    return [float(f"{limit:.6g}") for limit in axis.get_transform().transform(np.asarray(limits, dtype=float))]


def _mark(axes: Axes, artist: Artist) -> dict[str, Any] | None:
    if not artist.get_visible() or artist is axes.patch or isinstance(artist, Spine):
        return None
    colours, words = [], {}
    if isinstance(artist, Line2D):
        points, colours = artist.get_transform().transform(artist.get_xydata()), [artist.get_color()]
    elif isinstance(artist, PathCollection):
        points, colours = artist.get_offset_transform().transform(artist.get_offsets()), artist.get_facecolor()
    elif isinstance(artist, Collection):
        paths = [artist.get_transform().transform_path(path).vertices for path in artist.get_paths()]
        points, colours = (
            np.concatenate(paths or [np.empty((0, 2))]),
            [*artist.get_facecolor(), *artist.get_edgecolor()],
        )
    elif isinstance(artist, Patch):
        points = artist.get_transform().transform_path(artist.get_path()).vertices
        colours = [artist.get_facecolor()]
    elif isinstance(artist, AxesImage):
        return {"kind": "image", "at": _rounded(artist.norm(artist.get_array()))}
    elif isinstance(artist, Text) and artist.get_text():
        points = artist.get_transform().transform([artist.get_position()])
        if isinstance(artist, Annotation) and artist.xycoords == "data":
            points = [*points, axes.transData.transform(artist.xy)]
        words = {"words": artist.get_text()}
    else:
        return None
    at = axes.transAxes.inverted().transform(np.ma.filled(np.ma.asarray(points, dtype=float), np.nan))
    rgba = [[round(float(value), 2) for value in colour] for colour in mpl.colors.to_rgba_array(colours)]
    return {"kind": type(artist).__name__, **words, "colours": rgba, "at": _rounded(at)}


def _rounded(values: np.ndarray) -> list:
    """To a ten-thousandth; what is not finite as None."""
    values = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    flat = [round(float(value), 4) + 0.0 if np.isfinite(value) else None for value in values.ravel()]
    return np.array(flat, dtype=object).reshape(values.shape).tolist()


def interval(axes: Axes, number: dict, *, x: float | None = None, y: float | None = None, **style: object) -> None:
    """Draw a number ``{value, low, high}`` as a point with its interval, if any: upright at x, or lying at y."""
    low, value, high = number["low"], number["value"], number["high"]
    error = None if low is None else [[value - low], [high - value]]
    if y is None:
        axes.errorbar(x, value, yerr=error, capsize=4, **style)
    else:
        axes.errorbar(value, y, xerr=error, capsize=4, **style)
