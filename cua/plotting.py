"""One figure style: the Okabe-Ito palette, which colour-blind readers can tell apart, and quiet axes.

Colours keep their meaning through the book; marks and line styles repeat what the colour says.
"""

import matplotlib as mpl
from matplotlib.axes import Axes

COLOURS = {
    "base": "#555555",
    "exact": "#0072B2",
    "sign-constrained": "#D55E00",
    "paper": "#009E73",
    "accent": "#CC79A7",
    "highlight": "#E69F00",
}


def use_style() -> None:
    """Set matplotlib's defaults for every figure of the book (7 x 3.4 inches at 144 dpi)."""
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


def interval(axes: Axes, number: dict, *, x: float | None = None, y: float | None = None, **style: object) -> None:
    """Draw a number ``{value, low, high}`` as a point with its interval, if any: upright at x, or lying at y."""
    low, value, high = number["low"], number["value"], number["high"]
    error = None if low is None else [[value - low], [high - value]]
    if y is None:
        axes.errorbar(x, value, yerr=error, capsize=4, **style)
    else:
        axes.errorbar(value, y, xerr=error, capsize=4, **style)
