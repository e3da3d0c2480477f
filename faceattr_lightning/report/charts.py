"""Numbers as people read them, and charts as inline SVG strings.

A chart's box is its plot area: x runs in percent of the width and y in pixels, so the chart fills any screen while its
text keeps its size. Names and numbers hang over the box into margins that the custom properties ``--left`` and
``--right`` tell the style sheet to leave. Colours are classes of the style sheet, so dark mode reaches them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Real

NOT_DEFINED = "n/a"
COLOURS = 6
"""How many line colours (``--line-0``, ``--line-1``, ...) the style sheet has."""

_MINUS, _THIN_SPACE, _ELLIPSIS = "\u2212", "\u202f", "\u2026"
_LONGEST_NAME = 22
_MOST_POINTS = 120  # of a line; more can't be told apart on a screen and would only make the page heavy


def finite(value: object) -> float | None:
    """Return ``value`` as a float, or ``None`` if it is missing, NaN, infinite or no number."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def decimal(value: object, digits: int = 2, sign: bool = False) -> str:
    """Return ``0.4267`` as ``"0.43"`` with a true minus sign, or ``"n/a"``."""
    number = finite(value)
    return NOT_DEFINED if number is None else f"{number:{'+' if sign else ''}.{digits}f}".replace("-", _MINUS)


def rate(value: object) -> str:
    """Return the fraction ``0.873`` as ``"87.3"`` percent, or ``"n/a"``."""
    number = finite(value)
    return NOT_DEFINED if number is None else decimal(100 * number, 1)


def percent(value: object) -> str:
    """Return the fraction ``0.873`` as ``"87.3 %"``, or ``"n/a"``."""
    return NOT_DEFINED if finite(value) is None else f"{rate(value)}{_THIN_SPACE}%"


def points(value: object) -> str:
    """Return the difference ``0.012`` of two fractions as ``"+1.2"`` percentage points, or ``"n/a"``."""
    number = finite(value)
    return NOT_DEFINED if number is None else decimal(100 * number, 1, sign=True)


def shorten(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return ``name`` cut to ``longest`` characters."""
    return name if len(name) <= longest else name[: longest - 1] + _ELLIPSIS


def extremes(values: Sequence[object], count: int) -> tuple[list[int], list[int]]:
    """Return the indices of the ``count`` highest and of the ``count`` lowest values, in no list twice."""
    known = [(number, index) for index, value in enumerate(values) if (number := finite(value)) is not None]
    ranked = [index for _, index in sorted(known, reverse=True)]
    high = ranked[:count]
    return high, ranked[count:][-count:]


def last(values: Sequence[float | None]) -> float | None:
    """Return the last defined value."""
    return next((number for value in reversed(values) if (number := finite(value)) is not None), None)


# ------------------------------------------------------------------------------------------------------------ bars


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its value in the axis's unit (``None``: not defined) and what hovering over it says."""

    name: str
    value: float | None
    title: str


def bar_chart(bars: Sequence[Bar], label: str) -> str:
    """Return horizontal bars that diverge around 0, in the order given; ``label`` says what they show."""
    row, top = 20, 24
    height = top + row * len(bars)
    values = [bar.value for bar in bars if bar.value is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    high = high if high > low else low + 1.0
    at = _percent_scale(low, high)

    parts = []
    for tick in (ticks := _ticks(low, high, most=4)):
        kind = "zero" if tick == 0 else "rule"
        parts.append(_vertical(at(tick), top - 4, height, kind))
        parts.append(_text(at(tick), top - 10, _tick_label(tick, ticks, sign=True), "middle"))
    for index, bar in enumerate(bars):
        middle = top + row * index + row / 2
        value = bar.value or 0.0
        start, end = at(min(value, 0.0)), at(max(value, 0.0))
        parts.append(
            f'<g class="bar{" bad" if value < 0 else ""}"><title>{escape(bar.title)}</title>'
            f'<rect class="hit" x="0" y="{middle - row / 2:g}" width="100%" height="{row}"/>'
            f'<rect class="fill" x="{start:.2f}%" y="{middle - 6:g}" width="{end - start:.2f}%" height="12" rx="2"/>'
            + _text(0, middle, shorten(bar.name), "end", shift=-8, kind="name")
            # To the right of a negative bar too, where no name is in the way.
            + _text(end, middle, decimal(bar.value, 1, sign=True), "start", shift=6)
            + "</g>"
        )
    longest = max((len(shorten(bar.name)) for bar in bars), default=0)
    return _plot(parts, height, label, left=_room(longest), right=_room(6))


def scale_bar(base: float, value: float, base_name: str, value_name: str) -> str:
    """Return one bar from 0 to 100 % that is filled to ``base`` and, in another colour, on to ``value`` (fractions)."""
    low, high = sorted((100 * base, 100 * value))
    kind = "gain" if value >= base else "loss"
    parts = [
        '<rect class="track" x="0" y="24" width="100%" height="16" rx="3"/>',
        f'<rect class="base" x="0" y="24" width="{low:.2f}%" height="16" rx="3"/>',
        f'<rect class="{kind}" x="{low:.2f}%" y="24" width="{high - low:.2f}%" height="16"/>',
        _vertical(100 * base, 18, 46, "mark"),
        _vertical(100 * value, 18, 46, "mark"),
        # One name above and one below the bar: they never meet, however near the two values are.
        _text(100 * base, 10, f"{base_name} {percent(base)}", "end" if base > 0.5 else "start", kind="name"),
        _text(100 * value, 56, f"{value_name} {percent(value)}", "end" if value > 0.5 else "start", kind="name"),
    ]
    label = f"{value_name} {percent(value)}, {base_name} {percent(base)}"
    return _plot(parts, 66, label, left="0px", right="0px")


# ----------------------------------------------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Line:
    """One line: its values per x (``None`` or NaN leaves a gap) and its colour, if it is to stand out with its name."""

    name: str
    values: Sequence[float | None]
    colour: int | None = None
    dashed: bool = False


def line_chart(
    x: Sequence[int], lines: Sequence[Line], label: str, digits: int = 2, reference: float | None = None
) -> str:
    """Return lines over the epochs ``x``. Hovering names a muted line, or all coloured lines' values at an epoch.

    Args:
        x: the epochs, ascending.
        lines: lines as long as ``x``; those with a colour are drawn last and named at their right end.
        label: what the chart shows, for those who can't see it.
        digits: decimals of the values.
        reference: a value that deserves a dotted line of its own.
    """
    height = 260
    low, high = bounds(lines, [] if reference is None else [reference])
    left_of = _percent_scale(*_span(x))

    def above(value: float) -> float:
        return height * (high - value) / (high - low)

    parts = []
    for tick in (ticks := _ticks(low, high, most=6)):
        parts.append(f'<line class="rule" x1="0" x2="100%" y1="{above(tick):.1f}" y2="{above(tick):.1f}"/>')
        parts.append(_text(0, above(tick), _tick_label(tick, ticks), "end", shift=-8))
    for epoch in _epoch_ticks(x):
        parts.append(_text(left_of(epoch), height + 14, str(epoch), "middle"))
    parts.append(_text(50, height + 32, "epoch", "middle"))

    keep = _thinned(len(x))
    stretched = []
    for line in sorted(lines, key=lambda line: line.colour is not None):
        path = _path([(10 * left_of(x[i]), _map(above, line.values[i])) for i in keep])
        if path:
            kind = "line muted" if line.colour is None else f"line c{line.colour % COLOURS}"
            dash = " dashed" if line.dashed else ""
            title = f"{line.name}: {decimal(last(line.values), digits)} at the end"
            stretched.append(
                f'<g class="{kind}{dash}"><title>{escape(title)}</title>'
                f'<path class="stroke" d="{path}"/><path class="hit" d="{path}"/></g>'
            )
    # The nested box is stretched to the plot's width; the style sheet keeps strokes from being stretched with it.
    parts.append(
        f'<svg class="stretched" width="100%" height="{height}" viewBox="0 0 1000 {height}" preserveAspectRatio="none">'
        f"{''.join(stretched)}</svg>"
    )
    if reference is not None:
        y = above(reference)
        parts.append(f'<line class="reference" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')

    coloured = [(line, end) for line in lines if line.colour is not None and (end := last(line.values)) is not None]
    ends = _spread([above(end) for _, end in coloured], gap=15, limit=height)
    names = [f"{shorten(line.name)} {decimal(end, digits)}" for line, end in coloured]
    for (line, _), y, name in zip(coloured, ends, names, strict=True):
        parts.append(_text(100, y, name, "start", shift=8, kind=f"name c{(line.colour or 0) % COLOURS}"))
    if len(coloured) == len(lines):
        width = 100 / max(len(keep) - 1, 1)
        for i in keep:
            rows = "\n".join(f"{line.name}: {decimal(line.values[i], digits)}" for line in lines)
            parts.append(
                f'<rect class="band" x="{left_of(x[i]) - width / 2:.2f}%" y="0" width="{width:.2f}%" height="{height}">'
                f"<title>epoch {x[i]}\n{escape(rows)}</title></rect>"
            )
    longest = max(map(len, names), default=0)
    return _plot(parts, height, label, left=_room(6), right=_room(longest), below=48)


def spark_line(values: Sequence[float | None], low: float, high: float) -> str:
    """Return one small line without axes in a range that its neighbours share."""
    height, last = 36, max(len(values) - 1, 1)

    def above(value: float) -> float:
        return height * (high - value) / (high - low)

    path = _path([(1000 * i / last, _map(above, values[i])) for i in _thinned(len(values), most=60)])
    return (
        f'<svg class="spark stretched" height="{height}" viewBox="0 0 1000 {height}" preserveAspectRatio="none" '
        f'aria-hidden="true"><path class="stroke" d="{path}"/></svg>'
    )


def bounds(lines: Sequence[Line], also: Sequence[float] = ()) -> tuple[float, float]:
    """Return a range that holds all values of all lines with a little air, never an empty one."""
    values = [number for line in lines for value in line.values if (number := finite(value)) is not None]
    values += also
    low, high = min(values, default=0.0), max(values, default=1.0)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    return low - air, high + air


# ----------------------------------------------------------------------------------------------------- reliability


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram, as fractions: its ends, its labelled samples, their mean probability and the
    share of positives (NaN without a sample).
    """

    low: float
    high: float
    count: int
    probability: float
    share: float


def reliability_chart(bins: Sequence[Bin], label: str) -> str:
    """Return the share of positives over the stated probability, and below it how many samples each bin has.

    What lies on the dotted diagonal is calibrated; the line from it to a point is the bin's part in the calibration
    error. A point's area is the bin's share of the samples.
    """
    height, strip, gap = 260, 44, 8
    floor = height + gap + strip
    most = max((one.count for one in bins), default=0) or 1
    parts = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = height * (1 - tick)
        parts.append(f'<line class="rule" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>')
        parts.append(_text(0, y, f"{100 * tick:.0f}", "end", shift=-8))
        parts.append(_text(100 * tick, floor + 14, f"{100 * tick:.0f}", "middle"))
    parts.append(_text(50, floor + 32, "stated probability, %", "middle"))
    parts.append(f'<line class="reference" x1="0" x2="100%" y1="{height}" y2="0"/>')
    for one in bins:
        width = 100 * (one.high - one.low)
        bar = strip * one.count / most
        parts.append(
            f'<rect class="base" x="{100 * one.low + 0.1 * width:.2f}%" y="{floor - bar:.1f}" '
            f'width="{0.8 * width:.2f}%" height="{bar:.1f}"/>'
        )
    parts.append(f'<line class="zero" x1="0" x2="100%" y1="{floor}" y2="{floor}"/>')
    parts += _reliability_marks(bins, height, largest=9)
    for one in bins:
        parts.append(
            f'<rect class="band" x="{100 * one.low:.2f}%" y="0" width="{100 * (one.high - one.low):.2f}%" '
            f'height="{floor}"><title>{escape(_bin_title(one))}</title></rect>'
        )
    return _plot(parts, floor, label, left=_room(3), right="12px", below=48)


def small_reliability_chart(bins: Sequence[Bin]) -> str:
    """Return the diagram alone, without axes, both of which run from 0 to 100 %."""
    height = 110
    diagonal = f'<line class="reference" x1="0" x2="100%" y1="{height}" y2="0"/>'
    marks = "".join(_reliability_marks(bins, height, largest=5))
    return f'<svg class="plot small" height="{height}" aria-hidden="true">{diagonal}{marks}</svg>'


def _reliability_marks(bins: Sequence[Bin], height: float, largest: float) -> list[str]:
    filled = [one for one in bins if one.count]
    most = max((one.count for one in filled), default=1)
    parts = []
    for one in filled:
        x, y, ideal = 100 * one.probability, height * (1 - one.share), height * (1 - one.probability)
        parts.append(f'<line class="off" x1="{x:.2f}%" x2="{x:.2f}%" y1="{ideal:.1f}" y2="{y:.1f}"/>')
        radius = max(2.0, largest * math.sqrt(one.count / most))
        parts.append(f'<circle class="point" cx="{x:.2f}%" cy="{y:.1f}" r="{radius:.1f}"/>')
    return parts


def _bin_title(one: Bin) -> str:
    return (
        f"stated {rate(one.low)} to {percent(one.high)}: {one.count:,} labels\n"
        f"mean probability {percent(one.probability)}\npositive {percent(one.share)}"
    )


# --------------------------------------------------------------------------------------------------------- helpers


def _plot(parts: Sequence[str], height: float, label: str, left: str, right: str, below: int = 0) -> str:
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" height="{height:g}" '
        f'style="--left:{left};--right:{right};margin-bottom:{below}px">{"".join(parts)}</svg>'
    )


def _room(characters: int) -> str:
    """The width of a margin for so many characters, which are a little narrower than a digit on average."""
    return f"calc({0.92 * characters:.1f}ch + 8px)"


def _text(x: float, y: float, text: str, anchor: str, shift: float = 0, kind: str = "tick") -> str:
    """Text at ``x`` percent and ``y`` pixels, moved by ``shift`` pixels to the right."""
    return (
        f'<text class="{kind}" x="{x:.2f}%" y="{y:.1f}" dx="{shift:g}" dy=".35em" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _vertical(x: float, top: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.2f}%" x2="{x:.2f}%" y1="{top:g}" y2="{bottom:g}"/>'


def _percent_scale(low: float, high: float) -> Callable[[float], float]:
    return lambda value: 100 * (value - low) / (high - low)


def _span(x: Sequence[int]) -> tuple[float, float]:
    """The first and the last epoch; a single epoch stands in the middle of a range of two."""
    return (x[0], x[-1]) if x[0] < x[-1] else (x[0] - 1, x[0] + 1)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return the multiples of a round step (1, 2 or 5 times a power of ten) in the range, ``most`` or so."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _tick_label(tick: float, ticks: Sequence[float], sign: bool = False) -> str:
    # As many decimals as tell two neighbours apart.
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(tick) or 1.0
    return decimal(tick, max(0, -math.floor(math.log10(step) + 1e-9)), sign=sign and tick != 0)


def _epoch_ticks(x: Sequence[int]) -> list[int]:
    whole = {round(tick) for tick in _ticks(*_span(x), most=4)}
    return sorted(tick for tick in whole if x[0] <= tick <= x[-1])


def _thinned(count: int, most: int = _MOST_POINTS) -> list[int]:
    """Return at most ``most`` indices of ``count``, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _map(function: Callable[[float], float], value: object) -> float | None:
    number = finite(value)
    return None if number is None else function(number)


def _path(points: Iterable[tuple[float, float | None]]) -> str:
    """Return the path through the points, interrupted where a value is missing."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    # A point without neighbours would be invisible: it becomes a short dash.
    runs = [[(run[0][0] - 10, run[0][1]), (run[0][0] + 10, run[0][1])] if len(run) == 1 else run for run in runs]
    return "".join("M" + "L".join(f"{x:.0f} {y:.1f}" for x, y in run) for run in runs if run)


def _spread(positions: Sequence[float], gap: float, limit: float) -> list[float]:
    """Return the positions moved apart to at least ``gap``, in their order, and kept above ``limit`` if they fit."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + gap)
    if placed:
        placed[-1] = min(placed[-1], max(limit, gap * (len(placed) - 1)))
    for k in range(len(placed) - 2, -1, -1):
        placed[k] = min(placed[k], placed[k + 1] - gap)
    result = [0.0] * len(placed)
    for k, i in enumerate(order):
        result[i] = placed[k]
    return result
