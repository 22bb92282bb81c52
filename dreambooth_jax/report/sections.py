"""The sections of a report: plain values that know when they are empty or do not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side: uint8 [H,W,3], with one label each or none at all.

    `collapsed`, here and below, shows the section's heading alone until it is clicked.
    """

    title: str
    caption: str
    images: Sequence[np.ndarray]
    labels: Sequence[str] = ()
    collapsed: bool = False

    def is_empty(self) -> bool:
        """Say whether there is no picture."""
        return len(self.images) == 0

    def check(self) -> None:
        """Raise ValueError unless each picture has its label."""
        if len(self.labels) not in (0, len(self.images)):
            raise ValueError(
                f"report section {self.title!r}: {len(self.images)} images but "
                f"{len(self.labels)} labels; give one label per image or none"
            )


@dataclass(frozen=True)
class Comparison:
    """Pictures by prompt and state: `cells[row][column]` lists uint8 [H,W,3], one per seed.

    `rows` are the prompts, `columns` the states ("before", "after" or "step 0", "step 100", …).
    `photos` are pictures beside each row, what its prompt is to show. `slider` shows one column at
    a time, chosen by a slider, where the page has scripts.
    """

    title: str
    caption: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Sequence[np.ndarray]]]
    photos: Sequence[Sequence[np.ndarray]] = ()
    slider: bool = False
    collapsed: bool = False

    def is_empty(self) -> bool:
        """Say whether there is no picture."""
        return not any(len(cell) for row in self.cells for cell in row)

    def check(self) -> None:
        """Raise ValueError rather than show a picture under the wrong words."""
        found = [len(row) for row in self.cells]
        expected = [len(self.columns)] * len(self.rows)
        if found != expected:
            raise ValueError(
                f"report section {self.title!r}: {len(self.rows)} prompts and "
                f"{len(self.columns)} columns need cells of lengths {expected}, found {found}; "
                "give an empty list where there is no picture"
            )
        if len(self.photos) not in (0, len(self.rows)):
            raise ValueError(
                f"report section {self.title!r}: {len(self.rows)} prompts but photos for "
                f"{len(self.photos)}; give an empty list where there are none"
            )


@dataclass(frozen=True)
class Curves:
    """Lines over steps, `{name: [(step, value)]}`.

    A step given twice (a resumed run) counts once, as it was last written. A value that cannot be
    drawn (not finite; with `log`, not above 0) leaves a gap that is marked and told in words.
    """

    title: str
    caption: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = False
    x_label: str = "step"
    y_label: str = "loss"

    def is_empty(self) -> bool:
        """Say whether there is no point."""
        return not any(len(points) for points in self.series.values())

    def check(self) -> None:
        """Raise ValueError for a step that is no number: it has no place on the axis."""
        for name, points in self.series.items():
            bad = [step for step, _ in points if not math.isfinite(step)]
            if bad:
                raise ValueError(
                    f"report section {self.title!r}: {name!r} has the step {bad[0]}; "
                    "steps must be finite (values need not be)"
                )


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first cell naming its row; `command` is a line to copy below them."""

    title: str
    caption: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    collapsed: bool = False
    command: str = ""

    def is_empty(self) -> bool:
        """Say whether there is no row."""
        return len(self.rows) == 0

    def check(self) -> None:
        """Raise ValueError unless all rows, and the header if any, have the same length."""
        widths = {len(row) for row in self.rows} | {len(self.header) or len(self.rows[0])}
        if len(widths) > 1 or widths == {0}:
            raise ValueError(
                f"report section {self.title!r}: rows (and header) of {sorted(widths)} cells; "
                "all need the same number, at least 1: fill up with ''"
            )


@dataclass(frozen=True)
class Text:
    """Paragraphs parted by blank lines or, `preformatted`, lines whose columns stay aligned."""

    title: str
    body: str
    caption: str = ""
    preformatted: bool = False
    collapsed: bool = False

    def is_empty(self) -> bool:
        """Say whether there is nothing but blanks."""
        return not self.body.strip()

    def check(self) -> None:
        """Any text will do."""


@dataclass(frozen=True)
class State:
    """State of the run that a page is about: "running", "stopped", "failed" or "finished".

    line: a sentence about it. written: seconds since 1970.
    """

    name: str
    line: str
    written: float


Section = Gallery | Comparison | Curves | Table | Text


def series(
    records: Iterable[Mapping[str, Any]], *patterns: str
) -> dict[str, list[tuple[float, float]]]:
    """Return `{name: [(step, value)]}` for `Curves` from what `metrics.read` returns.

    Names are chosen by shell patterns such as "loss/*". A value of None stands for not a number.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and any(fnmatchcase(name, pattern) for pattern in patterns):
                number = math.nan if value is None else float(value)
                found.setdefault(name, []).append((float(record["step"]), number))
    return found
