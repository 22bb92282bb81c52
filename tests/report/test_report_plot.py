"""Lines over steps: where the points lie, what a gap looks like, what smoothing keeps."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from dreambooth_jax.report import plot


def elements(svg: str, tag: str, kind: str = "") -> list[ElementTree.Element]:
    """Elements of a drawing, of the class `kind` if given; XML, so that a slip in a tag fails."""
    found = ElementTree.fromstring(svg).iter(tag)
    return [e for e in found if not kind or kind in e.get("class", "").split()]


def points(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """The corners of each polyline, in the drawing's units: 1000 across, 400 downwards."""
    lines = [e.get("points", "").split() for e in elements(svg, "polyline", kind)]
    return [[tuple(map(float, pair.split(","))) for pair in line] for line in lines]


def paths(svg: str, kind: str) -> list[str]:
    return [e.get("d", "") for e in elements(svg, "path", kind)]


def test_extremes_lie_at_the_corners_and_between_is_linear():
    drawn = plot.draw({"loss": [(100, 2.0), (200, 3.0), (300, 6.0)]})
    # Up is towards 0: the smallest value at the bottom (400 of 400), the largest at the top;
    # step 200 is half way along, value 3 a quarter of the way up.
    assert points(drawn.svg, "line") == [[(0, 400), (500, 300), (1000, 0)]]
    assert not points(drawn.svg, "raw")
    assert not drawn.smoothed
    assert drawn.legend == [["loss", "2", "6", "2"]]
    assert not drawn.notices


def test_decades_are_equally_far_on_a_logarithmic_axis():
    drawn = plot.draw({"loss": [(0, 1000.0), (1, 1.0), (2, 10.0), (4, 100.0)]}, log=True)
    (line,) = points(drawn.svg, "line")
    expected = [(0, 0), (250, 400), (500, 400 * 2 / 3), (1000, 400 / 3)]
    np.testing.assert_allclose(line, expected, atol=0.006)
    labels = elements(drawn.svg, "text")
    heights = {e.text: e.get("y") for e in labels if e.get("y") != "100%"}
    assert heights == {"1": "100.000%", "10": "66.667%", "100": "33.333%", "1,000": "0.000%"}


def test_values_that_are_no_number_leave_a_marked_gap():
    values = [1.0, 2.0, math.nan, math.inf, 5.0, math.nan, 3.0]
    drawn = plot.draw({"loss": list(enumerate(values)), "fine": [(0, 1.0), (6, 2.0)]})
    first, *_ = points(drawn.svg, "s0")
    assert len(points(drawn.svg, "s0")) == 1
    assert [x for x, _ in first] == [0, 166.67]
    dots = paths(drawn.svg, "dot")
    assert dots == ["M666.67 0.00h0", "M1000.00 200.00h0"]  # values 5 and 3 stand alone
    bad = paths(drawn.svg, "bad")
    assert bad == ["M333.33 0V400H500.00V0Z", "M833.33 0V400"]  # steps 2 to 3, and 5
    assert drawn.notices == ["loss: 3 of 7 values not finite, at step 2–3, 5"]
    assert "nan" not in drawn.svg.lower()
    assert "inf" not in drawn.svg.lower()


def test_a_logarithmic_axis_tells_what_it_cannot_show():
    drawn = plot.draw({"loss": [(0, 1.0), (1, 10.0), (2, 0.0), (3, -1.0)]}, log=True)
    assert points(drawn.svg, "line") == [[(0, 400), (333.33, 0)]]
    assert drawn.notices == ["loss: 2 of 4 values not finite or not above 0, at step 2–3"]


def test_steps_are_put_in_order_and_the_last_writing_counts():
    drawn = plot.draw({"loss": [(0, 9.0), (2, 4.0), (1, 3.0), (0, 0.0)]})
    assert points(drawn.svg, "line") == [[(0, 400), (500, 100), (1000, 0)]]


def test_smoothing_takes_the_noise_and_keeps_the_line():
    n = 1001
    trend = np.linspace(0.0, 1.0, n)
    noise = np.where(np.arange(n) % 2, 0.5, -0.5)
    drawn = plot.draw({"loss": list(enumerate(trend + noise))})
    assert drawn.smoothed
    assert points(drawn.svg, "raw")
    (line,) = points(drawn.svg, "line")
    lowest, highest = -0.5, 1.5  # values drawn: first and last point of the raw line
    inner = np.array([(x / 1000, highest - y / 400 * (highest - lowest)) for x, y in line])
    inner = inner[(inner[:, 0] > 0.05) & (inner[:, 0] < 0.95)]
    assert np.abs(inner[:, 1] - inner[:, 0]).max() < 0.03 < 0.5  # an odd window leaves ±0.5/51


def test_one_enormous_value_spoils_only_its_own_surroundings():
    values = [1.0] * 400
    values[100] = 1e30
    drawn = plot.draw({"loss": list(enumerate(values))})
    assert drawn.legend == [["loss", "1", "1", "1"]]


def test_long_lines_are_thinned_without_losing_a_spike():
    values = np.sin(np.arange(50_000.0))
    values[31_234], values[7] = 9.0, -4.0
    drawn = plot.draw({"loss": list(enumerate(values))})
    (raw,) = points(drawn.svg, "raw")
    assert len(raw) < 2000
    assert len(drawn.svg) < 100_000
    assert min(y for _, y in raw) == 0
    assert max(y for _, y in raw) == 400
    spike = min(raw, key=lambda point: point[1])
    assert spike[0] == pytest.approx(31_234 / 49_999 * 1000, abs=0.006)
    assert [x for x, _ in raw] == sorted(x for x, _ in raw)
    assert raw[0][0] == 0
    assert raw[-1][0] == 1000


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1000, False, [0, 200, 400, 600, 800, 1000]),
        (1, 1000, False, [200, 400, 600, 800, 1000]),
        (-0.3, 0.7, False, [-0.2, 0, 0.2, 0.4, 0.6]),
        (0.02, 0.19, True, [0.02, 0.03, 0.05, 0.1]),
        (1e-4, 1, True, [1e-4, 1e-3, 1e-2, 1e-1, 1]),
        (2, 5, True, [2, 3, 4, 5]),
    ],
)
def test_ticks_are_round_numbers(low, high, log, expected):
    assert plot.Axis(low, high, 1.0, log=log).ticks() == pytest.approx(expected)


def test_whole_steps_get_whole_ticks():
    assert plot.Axis(0, 3, 1.0).ticks(whole=True) == [0, 1, 2, 3]
    assert plot.Axis(0, 1e6, 1.0).ticks(whole=True)[1] == 200_000


def test_tick_labels_stay_short_enough_for_a_phone():
    drawn = plot.draw({"loss": [(0, -2e9), (1_000_000, 2e9)], "other": [(0, 0.0)]})
    labels = elements(drawn.svg, "text")
    across = [e.text for e in labels if e.get("y") == "100%"]
    assert across == ["0", "200k", "400k", "600k", "800k", "1M"]
    assert [e.text for e in labels][:5] == ["-2e+09", "-1e+09", "0", "1e+09", "2e+09"]


def test_more_lines_than_colours_are_told_apart_by_dashes():
    drawn = plot.draw({f"line {n}": [(0, n), (1, n)] for n in range(plot.COLOURS + 2)})
    assert len(set(drawn.keys)) == plot.COLOURS + 2
    assert drawn.keys[-1] == "s1 dashed"
    assert len(points(drawn.svg, "dashed")) == 2
