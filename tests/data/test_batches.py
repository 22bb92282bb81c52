import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_jax.data.batches import (
    Pictures,
    StepTokens,
    SubjectBatches,
    split_rows,
    weights_of,
)

SUBJECT, PRIOR = 0, 100  # photo i shows i everywhere, class image i shows 100 + i
INSTANCE_ROW, CLASS_ROW = 3, 7


def pictures(count: int, first: int, *, low_res: bool = False) -> Pictures:
    shown = np.arange(first, first + count, dtype=np.float32)[:, None, None, None]
    pixels = np.broadcast_to(shown, (count, 4, 4, 3))
    row = CLASS_ROW if first >= PRIOR else INSTANCE_ROW
    low = np.broadcast_to(shown, (count, 2, 2, 3)) if low_res else None
    return Pictures(pixels, np.full(count, row, np.int32), low)


def source(photos=5, class_images=7, *, batch_size=4, fraction=0.5, seed=0, low_res=False):
    return SubjectBatches(
        subjects=[pictures(photos, SUBJECT, low_res=low_res)],
        classes=[pictures(class_images, PRIOR, low_res=low_res)] if class_images else [],
        turns=[0] if class_images else [],
        batch_size=batch_size,
        prior_fraction=fraction,
        seed=seed,
    )


def shown(batch) -> list[int]:
    return [int(picture[0, 0, 0]) for picture in batch["mean"]]


@pytest.mark.parametrize(
    ("batch_size", "fraction", "expected"),
    [
        (4, 0.5, (2, 2)),
        (4, 0.25, (3, 1)),
        (10, 0.3, (7, 3)),
        (2, 0.9, (1, 1)),  # at least one of each
        (8, 0.01, (7, 1)),
        (1, 0, (1, 0)),
        (5, 0, (5, 0)),
    ],
)
def test_rows_are_split_by_the_fraction_with_at_least_one_of_each(batch_size, fraction, expected):
    assert split_rows(batch_size, prior_fraction=fraction) == expected


def test_one_row_cannot_hold_both_kinds():
    with pytest.raises(ValueError, match=r"train\.batch_size = 1 .*prior_loss_weight = 0"):
        split_rows(1, prior_fraction=0.5)


@given(
    photos=st.integers(1, 7),
    class_images=st.integers(0, 9),
    batch_size=st.integers(2, 9),
    first=st.integers(0, 50),
)
def test_every_picture_is_seen_equally_often(photos, class_images, batch_size, first):
    batches = source(photos, class_images, batch_size=batch_size)
    # From any round's start, N steps of c rows are c rounds of N pictures.
    for kind, count in ((False, photos), (True, class_images)):
        seen: Counter[int] = Counter()
        for step in range(first * count, (first + 1) * count):
            batch = batches.batch(step)
            seen.update(np.array(shown(batch))[batch["is_prior"] == kind].tolist())
        assert len(seen) == count
        assert len(set(seen.values())) == min(count, 1)


def test_no_picture_comes_again_before_all_others_came():
    walk = [
        row for step in range(20) for row in shown(source(batch_size=3, fraction=0.1).batch(step))
    ]
    photos = [row for row in walk if row < PRIOR]
    rounds = [photos[start : start + 5] for start in range(0, len(photos), 5)]
    assert all(sorted(once) == [0, 1, 2, 3, 4] for once in rounds)
    assert len({tuple(once) for once in rounds}) > 3  # each in an order of its own


def test_rows_carry_the_prompt_of_their_kind():
    batch = source(batch_size=6, fraction=1 / 3).batch(2)
    is_class_image = np.array(shown(batch)) >= PRIOR
    np.testing.assert_array_equal(batch["is_prior"], is_class_image)
    assert is_class_image.sum() == 2
    assert batch["prompt"].tolist() == [
        CLASS_ROW if row else INSTANCE_ROW for row in is_class_image
    ]
    assert (batch["prompt"].dtype, batch["is_prior"].dtype) == (np.int32, bool)
    assert (batch["mean"].shape, batch["mean"].dtype) == ((6, 4, 4, 3), np.float32)
    assert "low_res" not in batch


def test_without_class_images_all_rows_are_photos():
    for batch_size in (1, 6):
        batch = source(class_images=0, batch_size=batch_size).batch(0)
        assert not batch["is_prior"].any()
        assert set(batch["prompt"]) == {INSTANCE_ROW}
        assert len(batch["mean"]) == batch_size


def test_one_photo_and_one_class_image_fill_any_batch():
    batch = source(1, 1, batch_size=8).batch(11)
    assert Counter(shown(batch)) == {SUBJECT: 4, PRIOR: 4}


def test_the_low_res_picture_stays_beside_its_own():
    for step in range(5):
        batch = source(low_res=True).batch(step)
        assert batch["low_res"].shape == (4, 2, 2, 3)
        assert batch["low_res"][:, 0, 0, 0].tolist() == shown(batch)


def test_a_batch_is_a_function_of_seed_and_step():
    there = [shown(source().batch(step)) for step in range(12)]
    again = source()
    assert [shown(again.batch(step)) for step in reversed(range(12))] == there[::-1]
    assert [shown(source(seed=1).batch(step)) for step in range(12)] != there


def test_mirrored_pictures_come_after_the_others():
    rng = np.random.default_rng(0)
    pixels, low = (rng.normal(size=(3, size, size, 3)).astype(np.float32) for size in (4, 2))
    weights, prompt = rng.normal(size=(3, 4, 4, 1)), np.array([5, 1, 2])
    both = Pictures(pixels, prompt, low, pixel_weights=weights).with_mirrored()
    assert both.prompt.tolist() == [5, 1, 2, 5, 1, 2]
    for whole, half in ((both.mean, pixels), (both.low_res, low), (both.pixel_weights, weights)):
        assert len(whole) == 6
        np.testing.assert_array_equal(whole[:3], half)
        for row, column in ((0, 0), (1, 1)):
            mirrored = whole[3:, row, column]
            np.testing.assert_array_equal(mirrored, half[:, row, half.shape[2] - 1 - column])
    alone = Pictures(pixels, prompt).with_mirrored()
    assert (alone.low_res, alone.pixel_weights) == (None, None)


def test_mirrored_pictures_have_sizes_of_their_own():
    sizes, others = np.zeros((2, 6), np.float32), np.ones((2, 6), np.float32)
    both = Pictures(np.zeros((2, 4, 4, 3)), np.zeros(2, int), sizes=sizes).with_mirrored(others)
    np.testing.assert_array_equal(both.sizes, [*sizes, *others])


def test_subjects_take_turns_in_the_order_that_is_given_and_with_them_their_classes():
    subjects, classes = [pictures(2, 0), pictures(3, 10)], [pictures(2, 100), pictures(2, 200)]
    batches = SubjectBatches(subjects, classes, [1, 0, 1], 6, 0.5, 0, order=(1, 0, 1))
    for step in range(4):
        rows = shown(batches.batch(step))
        assert [row // 10 for row in rows[:3]] == [1, 0, 1]
        assert [row // 100 for row in rows[3:]] == [2, 1, 2]


def test_sizes_and_spread_stay_beside_their_picture():
    given = pictures(5, SUBJECT)
    told = np.arange(30, dtype=np.float32).reshape(5, 6)
    spread = np.broadcast_to(told[:, :1, None, None], (5, 4, 4, 3))
    photos = Pictures(given.mean, given.prompt, std=spread, sizes=told)
    batches = SubjectBatches([photos], [], [], 3, 0.0, 0)
    for step in range(4):
        batch = batches.batch(step)
        rows = shown(batch)
        np.testing.assert_array_equal(batch["sizes"], told[rows])
        assert batch["std"][:, 0, 0, 0].tolist() == [6.0 * row for row in rows]


def test_subjects_and_their_classes_take_turns_by_row():
    # Three subjects, of classes 0, 1 and 0: the first class has two of three class rows.
    subjects = [pictures(count, 10 * k) for k, count in enumerate((2, 3, 1))]
    classes = [pictures(4, PRIOR), pictures(3, PRIOR + 10)]
    batches = SubjectBatches(subjects, classes, [0, 1, 0], 4, 0.5, 0)
    seen: Counter[int] = Counter()
    for step in range(36):
        batch = batches.batch(step)
        places = range(2 * step, 2 * step + 2)
        rows = shown(batch)
        assert [row // 10 for row in rows[:2]] == [place % 3 for place in places]
        assert [(row - PRIOR) // 10 for row in rows[2:]] == [(0, 1, 0)[p % 3] for p in places]
        seen.update(rows)
    # 72 rows of either kind: 24 of each subject; 48 and 24 of the classes.
    assert [seen[i] for i in (0, 1, 10, 11, 12, 20)] == [12, 12, 8, 8, 8, 24]
    assert [seen[PRIOR + i] for i in (0, 1, 2, 3, 10, 11, 12)] == [12] * 4 + [8] * 3


def test_class_rows_and_photos_without_masks_count_everywhere():
    photos = pictures(3, SUBJECT)
    weights = np.random.default_rng(0).random((3, 4, 4, 1)).astype(np.float32)
    masked = dataclasses.replace(photos, pixel_weights=weights)
    batch = SubjectBatches([masked], [pictures(5, PRIOR)], [0], 6, 0.5, 0).batch(3)
    np.testing.assert_array_equal(batch["pixel_weights"][:3], weights[shown(batch)[:3]])
    assert (batch["pixel_weights"][3:] == 1).all()
    assert "pixel_weights" not in source().batch(0)


def test_weights_of_pixels_by_hand():
    mask = np.zeros((1, 4, 4))
    mask[0, 0, 0] = mask[0, 2:, 2:] = 1  # a quarter of the first quarter, all of the last one
    found = weights_of(mask, shape=(2, 2), outside=0.2)
    assert (found.shape, found.dtype) == ((1, 2, 2, 1), np.float32)
    np.testing.assert_allclose(found[0, :, :, 0], [[0.2 + 0.8 / 4, 0.2], [0.2, 1]], rtol=1e-6)
    np.testing.assert_array_equal(weights_of(mask, shape=(4, 4), outside=0)[..., 0], mask)
    wide = weights_of(mask[:, :2], shape=(1, 2), outside=0)  # latents of a landscape photo
    np.testing.assert_allclose(wide[0, :, :, 0], [[1 / 4, 0]])


@pytest.mark.parametrize("batch_size", [3, 4, 7, 20])
def test_every_row_finds_the_tokens_of_its_own_prompt(batch_size):
    table = np.arange(50)[:, None] * np.ones((1, 6), int)  # the tokens of prompt p are all p
    rows = np.array([2, 3, 11, 12, 30, 31, 49])
    tokens = StepTokens({"ids": table, "mask": -table}, rows, batch_size)
    draws = np.random.default_rng(0)
    for _ in range(20):
        prompt = draws.choice(rows, batch_size)
        told = tokens.of(prompt)
        assert told["ids"].shape == (min(7, batch_size), 6)  # one shape for all steps
        assert told["token_row"].dtype == np.int32
        np.testing.assert_array_equal(told["ids"][told["token_row"], 0], prompt)
        np.testing.assert_array_equal(told["mask"][told["token_row"], 0], -prompt)
