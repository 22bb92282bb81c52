"""Lines over steps as SVG.

The drawing has its own units (`WIDTH` by `HEIGHT`) and is stretched to whatever width the page has;
only positions stretch. Line widths and letters keep their size, so that a phone shows readable
axes. The axes span exactly the data: first to last step, smallest to largest value drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 1000, 400
COLOURS = 6  # the page knows this many; later lines use them again, dashed
MOST_POINTS = 1200  # per line; more than a screen has columns is only weight


@dataclass(frozen=True)
class Plot:
    """A drawing and what is said below it.

    Per line a `key` for its colour and the legend [name, start, end, lowest], of smoothed values if
    any line is `smoothed`; `notices` are sentences about values that could not be drawn.
    """

    svg: str
    keys: list[str]
    legend: list[list[str]]
    smoothed: bool
    notices: list[str]


@dataclass(frozen=True)
class Axis:
    """A range of data laid over `length` units, upwards when `up`, in decades when `log`."""

    low: float
    high: float
    length: float
    up: bool = False
    log: bool = False

    @classmethod
    def over(cls, data: np.ndarray, length: float, *, up: bool = False, log: bool = False) -> Axis:
        """Span the finite values of `data`; a single value gets room on both sides."""
        data = data[np.isfinite(data)]
        low, high = (float(data.min()), float(data.max())) if data.size else (1.0, 2.0)
        if low == high:
            room = abs(low) / 2 or 0.5
            low, high = low - room, high + room
        return cls(low, high, length, up=up, log=log)

    def place(self, value: np.ndarray | float) -> np.ndarray:
        """Position of a value, in units from the left or, for `up`, from the top."""
        value = np.asarray(value, np.float64)
        low, high = self.low, self.high
        if self.log:
            value = np.log(np.where(value > 0, value, math.nan))
            low, high = math.log(low), math.log(high)
        part = (value - low) / (high - low)
        return self.length * ((1 - part) if self.up else part)

    def ticks(self, *, whole: bool = False) -> list[float]:
        """Round numbers inside the range, about five; `whole` keeps to whole numbers."""
        if self.log and self.high / self.low >= 8:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = max(1, math.ceil((last - first) / 7))
            factors = (1, 2, 3, 5) if last - first <= 2 else (1,)
            marks = (f * 10.0**d for d in range(first, last + 1, every) for f in factors)
            return [mark for mark in marks if self.low <= mark <= self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
        step = max(step, 1.0) if whole else step
        start, stop = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(start, stop + 1)]


def draw(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log: bool = False,
    x_label: str = "step",
    y_label: str = "value",
) -> Plot:
    """Draw `{name: [(step, value)]}`; lines of many points get a smoothed line over the raw one.

    Values that are not finite or, with `log`, not above 0 leave a gap in the line and a mark.
    """
    lines = {name: _in_order(points, log=log) for name, points in series.items() if len(points)}
    steps = np.concatenate([x for x, _ in lines.values()])
    across = Axis.over(steps, WIDTH)
    down = Axis.over(np.concatenate([y for _, y in lines.values()]), HEIGHT, up=True, log=log)
    below, above, texts = _axes(across, down, whole=bool(np.all(steps == np.round(steps))))
    raws, smooths, bads, keys, legend, notices = [], [], [], [], [], []
    for index, (name, (x, y)) in enumerate(lines.items()):
        key = f"s{index % COLOURS}" + (" dashed" if index >= COLOURS else "")
        smooth = _smooth(y, _half(y))
        left = across.place(x)
        if _half(y):
            raws += _polylines(left, down.place(y), f"raw {key}")
        smooths += _polylines(left, down.place(smooth), f"line {key}")
        for a, b in _runs(~np.isfinite(y)):
            right = f"H{left[b]:.2f}V0Z" if b > a else ""
            bads.append(f'<path class="bad" d="M{left[a]:.2f} 0V{HEIGHT}{right}"/>')
        ends = smooth[np.isfinite(smooth)]
        values = [f"{v:,.4g}" for v in (ends[0], ends[-1], ends.min())] if ends.size else ["–"] * 3
        keys.append(key)
        legend.append([name, *values])
        notices += _notice(name, x, y, x_label=x_label, log=log)
    words = "; ".join(f"{name} from {start} to {end}" for name, start, end, _ in legend)
    marks = "".join([*below, *bads, *raws, *smooths, *above])
    svg = (
        f'<svg role="img" aria-label="{escape(f"{y_label} against {x_label}: {words}")}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" width="100%" '
        f'height="100%">{marks}</svg>{"".join(texts)}</svg>'
    )
    smoothed = any(_half(y) for _, y in lines.values())
    return Plot(svg, keys, legend, smoothed, notices)


def _in_order(points: Sequence[tuple[float, float]], *, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Steps in order, each once with its last value; what cannot be drawn becomes NaN."""
    last = {float(step): float(value) for step, value in points}
    x = np.array(sorted(last), np.float64)
    y = np.array([last[step] for step in x], np.float64)
    drawable = np.isfinite(y) & (y > 0) if log else np.isfinite(y)
    return x, np.where(drawable, y, math.nan)


def _half(y: np.ndarray) -> int:
    """Points to either side that a line is smoothed over: a twentieth of it in all, or none."""
    return len(y) // 40


def _smooth(y: np.ndarray, half: int) -> np.ndarray:
    """Mean over the values up to `half` points to either side; gaps are left out and stay gaps."""
    known = np.isfinite(y)
    window = np.ones(2 * half + 1)
    sums = np.convolve(np.where(known, y, 0.0), window, mode="same")
    counts = np.convolve(known.astype(np.float64), window, mode="same")
    return np.where(known, sums / np.maximum(counts, 1), math.nan)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def _polylines(x: np.ndarray, y: np.ndarray, kind: str) -> list[str]:
    """One polyline per stretch without a gap; a lone point is drawn as a dot."""
    drawn = []
    every = max(1, math.ceil(2 * len(x) / MOST_POINTS))
    for a, b in _runs(np.isfinite(y)):
        if a == b:
            dot = kind.replace("line", "dot")
            drawn.append(f'<path class="{dot}" d="M{x[a]:.2f} {y[a]:.2f}h0"/>')
            continue
        keep = [a, b]  # of every few points the highest and the lowest, so that no spike is lost
        for start in range(a, b + 1, every):
            part = y[start : min(start + every, b + 1)]
            keep += [start + int(part.argmin()), start + int(part.argmax())]
        points = " ".join(f"{x[n]:.2f},{y[n]:.2f}" for n in sorted(set(keep)))
        drawn.append(f'<polyline class="{kind}" points="{points}"/>')
    return drawn


def _axes(across: Axis, down: Axis, *, whole: bool) -> tuple[list[str], list[str], list[str]]:
    """Grid below the lines, frame above them, and the letters beside the plot."""
    grid, texts = [], []
    frame = [f'<path class="frame" d="M0 {HEIGHT}H{WIDTH}"/>']
    for tick in down.ticks():
        y = float(down.place(tick))
        grid.append(f'<path class="grid" d="M0 {y:.2f}H{WIDTH}"/>')
        at = f'x="0" dx="-.7em" y="{y / HEIGHT:.3%}" dy=".35em" text-anchor="end"'
        texts.append(f"<text {at}>{_short(tick)}</text>")
    for tick in across.ticks(whole=whole):
        x = float(across.place(tick))
        frame.append(f'<path class="frame" d="M{x:.2f} {HEIGHT}v7"/>')
        at = f'x="{x / WIDTH:.3%}" y="100%" dy="1.6em" text-anchor="middle"'
        texts.append(f"<text {at}>{_short(tick)}</text>")
    return grid, frame, texts


def _short(tick: float) -> str:
    """A tick's number in few letters: there are six of them side by side on a phone."""
    size = abs(tick)
    if size >= 1e9:
        return f"{tick:.4g}"
    if size >= 1e6:
        return f"{tick / 1e6:.6g}M"
    return f"{tick / 1e3:.6g}k" if size >= 1e4 else f"{tick:,.9g}"


def _notice(name: str, x: np.ndarray, y: np.ndarray, *, x_label: str, log: bool) -> list[str]:
    """A sentence saying which values are missing from a line, or none."""
    runs = _runs(~np.isfinite(y))
    if not runs:
        return []
    spans = [f"{x[a]:,.9g}" + (f"–{x[b]:,.9g}" if b > a else "") for a, b in runs]
    more = f" and {len(spans) - 8} more places" if len(spans) > 8 else ""
    what = "not finite or not above 0" if log else "not finite"
    count = int(np.sum(~np.isfinite(y)))
    return [f"{name}: {count} of {len(y)} values {what}, at {x_label} {', '.join(spans[:8])}{more}"]
