"""The judge of the embedded base: on features whose right answer is known by construction."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))  # scripts, not a package

import embedded_base


def features(rng, *, draws, nouns=7, places=3, size=40, place_weight=1.0):
    """Features `[draws, nouns, places, size]`: noun + place + some noise, off centre."""
    directions = np.linalg.qr(rng.normal(size=(size, size)))[0]
    noun, place = directions[:nouns], directions[nouns : nouns + places]
    noise = 0.1 * rng.normal(size=(draws, nouns, places, size))
    return noun[:, None] + place_weight * place + noise + 3 * directions[-1]


def test_every_pair_comes_once_and_every_noun_in_each_round():
    nouns, places = len(embedded_base.NOUNS), len(embedded_base.PLACES)
    pairs = embedded_base.pairs_in_turn(nouns * places)
    assert {tuple(pair) for pair in pairs.tolist()} == set(np.ndindex(nouns, places))
    for start in range(0, len(pairs), nouns):
        assert sorted(pairs[start : start + nouns, 0]) == list(range(nouns))


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
def test_clear_classes_are_told_apart_and_wrong_labels_are_not_right(rng, axis, whiten):
    *known, fresh = features(rng, draws=4)
    judge = embedded_base.Judge.fit(np.stack(known), axis=axis, whiten=whiten)
    truth = np.indices(fresh.shape[:2])[axis - 1].ravel()
    flat = fresh.reshape(len(truth), -1)
    np.testing.assert_array_equal(judge.ranks(flat, truth), 0)
    np.testing.assert_array_equal(judge.nearest(flat), truth)
    wrong = (truth + 1) % (truth.max() + 1)
    assert (judge.ranks(flat, wrong) >= 1).all()


def test_whitening_hides_a_place_that_outshines_the_noun(rng):
    """Means keep some of a strong place: cosine then follows the place instead of the noun."""
    *known, fresh = features(rng, draws=3, places=8, place_weight=6.0)
    truth = np.indices(fresh.shape[:2])[0].ravel()
    known = np.stack(known)
    known[:, 0, 0] += 4 * (known[:, 1, 0] - known[:, 1, 1])  # noun 0 leans to the first place

    def right(whiten):
        judge = embedded_base.Judge.fit(known, axis=1, whiten=whiten)
        return (judge.ranks(fresh.reshape(len(truth), -1), truth) == 0).mean()

    assert right(True) > right(False) + 0.1


def test_shares_and_hardest_nouns_are_counted_by_picture():
    assert embedded_base.share(np.array([True, False, True, True])).split() == ["75.0", "±", "42.4"]
    pairs = np.array([[0, 0], [0, 1], [1, 0]])
    ranks = np.array([[0, 3, 0], [0, 0, 5]])
    nearest = np.array([[0, 2, 1], [0, 1, 4]])
    text = embedded_base.details(pairs, ranks, nearest)
    first, _, third = list(embedded_base.NOUNS)[:3]
    assert f"{first:16}  50  {third} (1×)" in text
    assert list(embedded_base.NOUNS)[1] not in text.split("hardest")[1]
    assert f"{next(iter(embedded_base.PLACES)):16}  50" in text
