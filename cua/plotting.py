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
from matplotlib.axes import Axes
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.path import Path
from matplotlib.transforms import Bbox

SHOWN = "application/vnd.cua.shown"  # the type under which a notebook stores what a figure shows
MARGIN = 20  # pixels: what lies farther out of its axes is not recorded
PARTS = 24  # of an image, along each side
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
    """What a figure shows, in the order in which it is drawn, for comparison and as data.

    One entry for each line, area, row of markers, text and image, ticks, legends and frames included: its ``kind``;
    ``at``, its points in shares of the figure's width and height from the lower left, as far as they are seen;
    ``colours`` of edge and face (RGBA, 0 to 1); ``look``: line width, dashes, hatching, or a text's size and style; a
    text's ``words``; of markers their ``shape`` in pixels; of an image ``pixels``, means over at most 24 x 24 parts.
    """
    recorder = _Recorder(figure)
    figure.draw(recorder)
    return recorder.marks


def shown_lines(figure: Figure) -> str:
    """:func:`shown` as JSON, a line for each mark."""
    return "[" + ",\n".join(map(json.dumps, shown(figure))) + "]"


class _Recorder(RendererBase):
    """Draws nothing: writes down what it is told to draw."""

    def __init__(self, figure: Figure) -> None:
        super().__init__()
        self.size = figure.canvas.get_width_height()
        agg = RendererAgg(*self.size, figure.dpi)  # knows how large texts are
        self.get_text_width_height_descent = agg.get_text_width_height_descent
        self.points_to_pixels = agg.points_to_pixels
        self.marks: list[dict[str, Any]] = []

    def get_canvas_width_height(self) -> tuple[int, int]:
        return self.size

    def draw_path(self, gc, path, transform, rgbFace=None) -> None:
        if rgbFace is None:
            drawn = path.cleaned(transform, clip=_seen(gc, self.size).extents, curves=True, simplify=False)
            self._add("line", gc, drawn.vertices[drawn.codes != Path.STOP])
            return
        path = transform.transform_path(path)
        if path.codes is None or not np.isin(path.codes, (Path.CURVE3, Path.CURVE4)).any():
            path = path.clip_to_bbox(_seen(gc, self.size))
        self._add("area", gc, path.vertices, rgbFace)

    def draw_markers(self, gc, marker_path, marker_trans, path, trans, rgbFace=None) -> None:
        shape = _rounded(marker_trans.transform_path(marker_path).vertices)
        self._add("markers", gc, trans.transform_path(path).vertices, rgbFace, shape=shape)

    def draw_image(self, gc, x, y, im, transform=None) -> None:
        rows, columns = (np.array_split(np.arange(n), min(n, PARTS)) for n in im.shape[:2])
        pixels = np.array([[im[np.ix_(i, j)].mean((0, 1)) / 255 for j in columns] for i in rows])
        self._add("image", gc, [(x, y), (x + im.shape[1], y + im.shape[0])], pixels=_rounded(pixels))

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None) -> None:
        look = f"{prop.get_size_in_points():g} pt, {prop.get_style()}, weight {prop.get_weight()}, {angle:g} degrees"
        self._add("text", gc, [(x, self.size[1] - y)], words=s, look=look)

    def _add(self, kind, gc, points, face=None, **more) -> None:
        edge = gc.get_rgb() if gc.get_linewidth() > 0 else "none"
        alpha = gc.get_alpha() if gc.get_forced_alpha() or (face is not None and len(face) == 3) else None
        colours = [mpl.colors.to_rgba(edge), mpl.colors.to_rgba("none" if face is None else face, alpha)]
        dashes = [round(float(dash), 2) for dash in gc.get_dashes()[1] or ()]
        look = f"{gc.get_linewidth():.3g} px, dashes {dashes}, hatch {gc.get_hatch()}"
        at = np.ma.filled(np.ma.asarray(points, dtype=float), np.nan).reshape(-1, 2)
        seen = _seen(gc, self.size)
        mark = {"kind": kind, "look": look, "at": _rounded(at.clip(seen.min, seen.max) / self.size)}
        self.marks.append(mark | ({} if kind == "image" else {"colours": _rounded(np.array(colours))}) | more)


def _seen(gc: GraphicsContextBase, size: tuple[int, int]) -> Bbox:
    """Where something is seen, with a margin, so that what ends there does not come and go by rounding."""
    clip = gc.get_clip_rectangle()
    left, bottom, right, top = clip.extents if clip else (0, 0, *size)
    return Bbox.from_extents(left - MARGIN, bottom - MARGIN, right + MARGIN, top + MARGIN)


def _rounded(values: np.ndarray) -> list:
    """To a ten-thousandth; what is not finite as None."""
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
