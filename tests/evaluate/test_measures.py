"""Means over pictures and pairs of them, and their intervals: closed forms, coverage."""

import itertools

import numpy as np
import pytest

from dreambooth_jax.evaluate import measures
from dreambooth_jax.evaluate.measures import Bootstrap


def width(found: measures.Estimate) -> float:
    return found.high - found.low


def test_cosine_of_known_angles():
    a = np.array([[3.0, 0], [0, 0.1], [0, 0]])
    b = np.array([[1.0, 1], [-2, 0], [5, 0]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        measures.cosine(a, b), [[half, -1, 1], [half, 0, 0], [0, 0, 0]], atol=1e-15
    )


def test_where_nothing_varies_the_interval_is_a_point():
    values = np.full((6, 4), 0.25)
    found = Bootstrap().between(values, ["x", "x", "y", "y", "z", "z"])
    assert found == (0.25, 0.25, 0.25, 24)
    assert Bootstrap().each(values[:, 0], "xxyyzz") == (0.25, 0.25, 0.25, 6)
    assert Bootstrap().within(np.full((6, 6), 0.25), "xxxyyz") == (0.25, 0.25, 0.25, 4)


def test_pairs_are_of_two_pictures_of_one_group(rng):
    """What is no such pair may be anything: it has no part in the mean nor in the interval."""
    points = rng.normal(size=7)
    groups = "aaabbbb"
    values = np.abs(points[:, None] - points[None, :])
    pairs = [(i, j) for i, j in itertools.combinations(range(7), 2) if groups[i] == groups[j]]
    found = Bootstrap().within(values, groups)
    assert found.n == len(pairs) == 3 + 6
    assert found.value == pytest.approx(np.mean([values[i, j] for i, j in pairs]))
    other = values.copy()
    for i, j in itertools.product(range(7), repeat=2):
        if i == j or groups[i] != groups[j]:
            other[i, j] = 1e9
    assert Bootstrap().within(other, groups) == found
    assert found.low < found.value < found.high
    with pytest.raises(ValueError, match="no pair of pictures"):
        Bootstrap().within(values, "abcdefg")


def test_the_interval_of_a_mean_is_as_wide_as_theory_says(rng):
    """Of N independent values it is 2 · 1.96 σ/√N; of prompts with equal pictures, N is theirs."""
    values = rng.normal(size=400)
    theory = 2 * 1.96 * values.std() / 20
    alone = Bootstrap(4000).each(values, range(400))
    assert alone.value == pytest.approx(values.mean())
    assert width(alone) == pytest.approx(theory, rel=0.05)
    together = Bootstrap(4000).each(np.repeat(values, 4), np.repeat(range(400), 4))
    assert width(together) == pytest.approx(theory, rel=0.05)
    # Drawn as if they were independent, it would be half of that.
    one_prompt = Bootstrap(4000).each(np.repeat(values, 4), [0] * 1600)
    assert width(one_prompt) == pytest.approx(theory / 2, rel=0.05)
    # Few photos that differ are a source of their own, however many pictures there are.
    photos = rng.normal(size=5)
    found = Bootstrap(4000).between(np.tile(photos, (300, 1)), range(300))
    assert found.value == pytest.approx(photos.mean())
    assert width(found) == pytest.approx(2 * 1.96 * photos.std() / np.sqrt(5), rel=0.15)


def test_an_interval_holds_the_truth_nineteen_times_of_twenty(rng):
    hits = 0
    for seed in range(400):
        found = Bootstrap(300, seed).each(rng.normal(size=40), range(40))
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / 400 <= 0.98


def test_the_seed_decides():
    values = np.arange(12.0).reshape(4, 3)
    first = Bootstrap(50, 1).between(values, "aabb")
    assert first == Bootstrap(50, 1).between(values, "aabb")
    assert first != Bootstrap(50, 2).between(values, "aabb")
    assert first.value == 5.5
