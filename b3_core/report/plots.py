"""Distributions as inline SVG: step lines that follow the page's colours, and their numbers.

    shares a bin, of several series -> the bins that hold anything, merged to a few -> path, axes

No colour is written here: a series has a class, and a dash of its own for who sees no colours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_At = Callable[[float, float], tuple[float, float]]

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 12, 46
_MOST = 40  # bins that are drawn
_LEAST = 5e-4  # share of a bin at either end that is worth drawing


@dataclass(frozen=True)
class Series:
    """One line: shares that add up to 1, of bins that all series of a plot have in common."""

    name: str
    shares: Sequence[float]


@dataclass(frozen=True)
class Plot:
    """A drawn distribution, and the numbers it was drawn from."""

    svg: Markup
    title: str
    x_label: str
    names: list[str]
    table: list[tuple[str, list[str]]]
    """A line a bin: where it is, and each series' share."""


@dataclass(frozen=True)
class _Bins:
    """Bins as they are drawn: several of those that were counted."""

    first: range
    start: float
    step: float
    whole: bool

    def edge(self, place: int) -> float:
        """Return where a bin begins, and the one before it ends."""
        return self.start + self.step * (self.first.start + place * self.first.step)

    def name(self, place: int) -> str:
        """Say which values a bin holds."""
        if not self.whole:
            return f"{self.edge(place):.2f} to {self.edge(place + 1):.2f}"
        low = self.first[place]
        return str(low) if self.first.step == 1 else f"{low} to {low + self.first.step - 1}"


def distribution(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    start: float,
    step: float,
    ident: str,
    whole: bool = False,
) -> Plot:
    """Draw the distributions of several series over each other.

    Parameters
    ----------
    start, step
        Where the first bin begins, and how wide bins are.
    ident
        Unique in the page; letters, digits and dashes.
    whole
        The bins are numbers 0, 1, 2, ...
    """
    first, stop = _held(series)
    merge = -(-(stop - first) // _MOST)
    if not whole:  # so that merged bins begin at round numbers
        merge = next(size for size in (1, 2, 5, 10) if size >= min(merge, 10))
        first -= first % merge
    bins = _Bins(range(first, stop, merge), start, step, whole)
    values = [[sum(each.shares[low : low + merge]) for low in bins.first] for each in series]
    high = max((max(row, default=0.0) for row in values), default=0.0) or 1.0
    low_x, high_x = bins.edge(0), bins.edge(len(bins.first))
    top, ticks_y = _ticks(0.0, high)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x) * (WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, HEIGHT - _BOTTOM - y / top * (HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(at, (low_x, high_x), ticks_y, x_label=x_label, y_label=y_label, whole=whole)]
    for number, row in reversed(list(enumerate(values))):
        parts.append(_line(at, bins, row, number))
    said = "; ".join(
        f"{each.name}: most at {bins.name(max(range(len(row)), key=row.__getitem__))}"
        for each, row in zip(series, values, strict=True)
    )
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{ident}-t {ident}-d">'
        f'<title id="{ident}-t">{escape(title)}</title>'
        f'<desc id="{ident}-d">{escape(said)}. The numbers are in the table below.</desc>'
        f"{''.join(parts)}</svg>"
    )
    table = [
        (bins.name(place), [f"{row[place]:.2%}" for row in values])
        for place in range(len(bins.first))
    ]
    names = [each.name for each in series]
    return Plot(Markup(svg), title, x_label, names, table)  # noqa: S704 - escaped above


def _line(at: _At, bins: _Bins, row: Sequence[float], number: int) -> str:
    points = [at(bins.edge(0), 0.0)]
    for place, value in enumerate(row):
        points += [at(bins.edge(place), value), at(bins.edge(place + 1), value)]
    points.append(at(bins.edge(len(row)), 0.0))
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="line s{number}" d="{path}"/>'


def _held(series: Sequence[Series]) -> tuple[int, int]:
    """Return the bins from the first to the last that holds anything worth drawing."""
    held = [
        place for each in series for place, share in enumerate(each.shares) if share >= _LEAST
    ] or [0]
    return min(held), max(held) + 1


def _ticks(low: float, high: float) -> tuple[float, list[float]]:
    """Return a round end of an axis, and some four round places on it."""
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    count = math.ceil((high - low) / step - 1e-9)
    first = math.ceil(low / step - 1e-9)
    return low + count * step, [step * (first + place) for place in range(count + 1)]


def _axes(
    at: _At,
    span: tuple[float, float],
    ticks_y: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    whole: bool,
) -> str:
    parts = []
    for y in ticks_y:
        _, height = at(span[0], y)
        digits = 0 if ticks_y[1] >= 0.01 else 1
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{height:.1f}" '
            f'y2="{height:.1f}"/><text x="{_LEFT - 6}" y="{height + 4:.1f}" '
            f'text-anchor="end">{y:.{digits}%}</text>'
        )
    _, places = _ticks(*span)
    shift = 0.5 if whole else 0.0
    for x in places:
        if x + shift > span[1] + 1e-9 or (whole and x != round(x)):
            continue
        across, base = at(x + shift, 0.0)
        name = f"{x + 0.0:.0f}" if whole else f"{round(x, 2) + 0.0:g}"
        parts.append(
            f'<line class="tick" x1="{across:.1f}" x2="{across:.1f}" y1="{base:.1f}" '
            f'y2="{base + 4:.1f}"/><text x="{across:.1f}" y="{base + 17:.1f}" '
            f'text-anchor="middle">{name}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    center = (HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text transform="translate(12 {center}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)
