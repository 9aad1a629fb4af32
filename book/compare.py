"""Do two runs of a cell say the same?  ``make book`` and nbval both ask :func:`differences`.

Text has to be equal, and so has every number; another processor rounds otherwise, though, and what is computed may then
differ.  A cell whose numbers do says by how much, in a comment that readers see as well::

    # On another processor: perplexity ±0.02, squared error ×1.1, figure ±0.01.

``perplexity ±0.02`` is for the number that follows that word; ``×1.1`` allows a factor, up or down; ``±0.1`` or ``×1.1``
without a word is for every number with decimals that has none of its own.  A figure is compared by what it shows
(``cua.plotting.shown``), in shares of its width and height, to two thousandths unless ``figure`` says more.
"""

import itertools
import json
import math
import re
from dataclasses import dataclass

import numpy as np
from nbformat import NotebookNode

from cua.plotting import SHOWN

DECLARED = re.compile(r"^\s*# On another processor: (.+?)\.?$", re.MULTILINE)
ITEM = re.compile(r"(?:(?P<word>[^\s±×][^±×]*?) )?(?P<sign>[±×])(?P<size>\d+(?:\.\d+)?)")
NUMBER = re.compile(r"((?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[-+]?\d+)?)")
PICTURES = ("image/png", "image/jpeg")  # a machine's fonts and rounding: what is shown is compared instead
FIGURE = 0.002
COLOUR = 0.02
SHAPE = 0.05  # pixels


@dataclass(frozen=True)
class Tolerance:
    """How far a number may move: by ``size`` (``±``), or by a factor of it (``×``)."""

    sign: str
    size: float

    def allows(self, was: float, now: float) -> bool:
        if self.sign == "±":
            return abs(now - was) <= self.size * (1 + 1e-9)
        smaller, larger = sorted((abs(was), abs(now)))
        return math.copysign(1, was) == math.copysign(1, now) and 0 < larger <= smaller * self.size * (1 + 1e-9)

    def __str__(self) -> str:
        return f"{self.sign}{self.size:g}"


def tolerances(source: str) -> dict[str, Tolerance]:
    """What a cell's comments allow: by the word in front of a number, or by "" for those without.

    Raises:
        ValueError: if a comment cannot be read, or allows nothing.
    """
    found = {}
    for line in DECLARED.findall(source):
        for item in line.split(", "):
            match = ITEM.fullmatch(item)
            relative = match is not None and match["sign"] == "×"
            if match is None or float(match["size"]) <= relative or (relative and match["word"] == "figure"):
                raise ValueError(
                    f"{item!r} in {line!r}: write for example 'perplexity ±0.02', 'squared error ×1.1', '±0.1' or 'figure ±0.01'"
                )
            found[match["word"] or ""] = Tolerance(match["sign"], float(match["size"]))
    return found


def differences(source: str, was: list[NotebookNode], now: list[NotebookNode]) -> list[str]:
    """What a cell's outputs ``now`` say otherwise than they ``was`` stored: one line each, none if nothing.

    Raises:
        ValueError: as :func:`tolerances`.
    """
    allowed, order_was, order_now = tolerances(source), _order(was), _order(now)
    was, now = _parts(was), _parts(now)
    found = [f"{kind} is stored, and did not come now" for kind in was if kind not in now]
    found += [f"{kind} came, and none is stored: {_short(now[kind][0])}" for kind in now if kind not in was]
    for kind in was.keys() & now.keys():
        if len(was[kind]) != len(now[kind]):
            found.append(f"{kind} comes {len(now[kind])} times, not {len(was[kind])}")
        elif kind == SHOWN:
            for figures in zip(was[kind], now[kind], strict=True):
                found += _figure_differences(*map(json.loads, figures), allowed)
        elif kind not in PICTURES or SHOWN not in was:
            for texts in zip(was[kind], now[kind], strict=True):
                found += _text_differences(*texts, allowed)
    if not found and order_was != order_now:
        found.append(f"{', '.join(order_now)} came in this order; {', '.join(order_was)} are stored")
    return found


def _order(outputs: list[NotebookNode]) -> list[str]:
    """What came after what.  Warnings (stderr) come when they come."""
    seen = (output.output_type for output in outputs if output.get("name") != "stderr")
    return [kind for kind, _ in itertools.groupby("print" if type == "stream" else "display" for type in seen)]


def _parts(outputs: list[NotebookNode]) -> dict[str, list[str]]:
    """By stream or type, what was printed there or displayed, in order."""
    parts: dict[str, list[str]] = {}
    for output in outputs:
        if output.output_type == "stream":
            parts[output.name] = ["".join(parts.get(output.name, [])) + output.text]
        elif output.output_type == "error":
            parts.setdefault("error", []).append(f"{output.ename}: {output.evalue}")
        else:
            for kind, value in output.data.items():
                parts.setdefault(kind, []).append(value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    return parts


def _text_differences(was: str, now: str, allowed: dict[str, Tolerance]) -> list[str]:
    """Line by line.  How numbers are aligned matters only where all are as long as they were."""
    lines = [[line.rstrip() for line in text.rstrip().splitlines()] for text in (was, now)]
    if len(lines[0]) != len(lines[1]):
        return [f"{len(lines[1])} lines, not {len(lines[0])}: {_short(now)} for {_short(was)}"]
    if len(set(map(_widths, (was, now)))) > 1:
        lines = [[" ".join(line.split()) for line in text] for text in lines]
    found = []
    for line_was, line_now in zip(*lines, strict=True):
        pieces_was, pieces_now = NUMBER.split(line_was), NUMBER.split(line_now)
        if pieces_was[::2] != pieces_now[::2]:
            found.append(f"{_short(line_now)} for {_short(line_was)}")
            continue
        for before, one, other in zip(pieces_was[::2], pieces_was[1::2], pieces_now[1::2], strict=False):
            if one == other:
                continue
            tolerance = allowed.get(governing(before, f"{one} {other}", allowed))
            if tolerance is None or not tolerance.allows(_value(one), _value(other)):
                limit = f"more than {tolerance} away" if tolerance else "no tolerance is stated"
                found.append(f"{other} for {one} ({limit}) in {_short(line_was)}")
    return found


def _widths(text: str) -> tuple[int, ...]:
    return tuple(len(number) for number in NUMBER.findall(text))


def governing(before: str, number: str, allowed: dict[str, Tolerance]) -> str | None:
    """The word whose tolerance is that of a number: the longest in the text before it; "" if it has decimals; None."""
    words = [word for word in allowed if word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", before)]
    if words:
        return max(words, key=len)
    return "" if "" in allowed and re.search(r"[.e]", number) else None


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")


def _figure_differences(was: list[dict], now: list[dict], allowed: dict[str, Tolerance]) -> list[str]:
    if kinds := _text_differences(*("\n".join(mark["kind"] for mark in marks) for marks in (was, now)), allowed):
        return [f"figure: other marks are drawn: {kinds[0]}"]
    found, limit = [], allowed["figure"].size if "figure" in allowed else FIGURE
    for k, (one, other) in enumerate(zip(was, now, strict=True), start=1):
        where = f"figure, mark {k} ({one['kind']})"
        if one["look"] != other["look"]:
            found.append(f"{where}: {other['look']} for {one['look']}")
        words = (mark.get("words", "").replace("\n", " ") for mark in (one, other))
        found += [f"{where}: {text}" for text in _text_differences(*words, allowed)]
        for what, size in (("at", limit), ("colours", max(COLOUR, limit)), ("shape", SHAPE), ("pixels", max(COLOUR, limit))):
            moved = _distance(one.get(what), other.get(what))
            if not moved <= size:
                found.append(f"{where}: {what} moved by {moved:.3g}, more than {size:g}")
    return found


def _distance(was: list | None, now: list | None) -> float:
    """The farthest that a value moved; infinity where they are not alike."""
    one, other = (np.array([] if values is None else values, dtype=float) for values in (was, now))
    if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
        return math.inf
    return float(np.nan_to_num(np.abs(one - other)).max(initial=0.0))
