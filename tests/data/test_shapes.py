"""Shapes of equal area: which there are, which a photo gets, and which a step has."""

import math

import numpy as np
import pytest

from dreambooth_jax.data import shapes
from dreambooth_jax.data.batches import Pictures, SubjectBatches

PHONE = {"3:4": (4032, 3024), "9:16": (1920, 1080), "16:9": (1080, 1920), "panorama": (800, 4000)}


def test_the_shapes_of_sdxl_are_among_those_it_was_trained_at():
    # Podell et al. 2023, appendix I: multiples of 64 near 1024² pixels.
    published = {
        *((512, 2048), (512, 1984), (576, 1792), (640, 1600), (704, 1408), (704, 1472)),
        *((768, 1280), (768, 1344), (832, 1152), (832, 1216), (896, 1088), (896, 1152)),
        *((960, 1024), (960, 1088), (1024, 960), (1024, 1024), (704, 1344), (640, 1536)),
    }
    published |= {(width, height) for height, width in published}
    found = shapes.of_area((1024, 1024), multiple=64, count=9)
    assert len(found) == 9
    assert set(found) <= published


@pytest.mark.parametrize("count", [1, 3, 5, 9])
@pytest.mark.parametrize(
    ("size", "multiple"), [((512, 512), 64), ((1024, 1024), 32), ((64, 64), 8), ((96, 64), 16)]
)
def test_shapes_have_the_area_of_the_size_and_come_in_pairs(size, multiple, count):
    found = shapes.of_area(size, multiple=multiple, count=count)
    assert size in found and len(set(found)) == len(found) <= count
    assert shapes.of_area(size, multiple=multiple, count=1) == (size,)
    area = size[0] * size[1]
    for height, width in found:
        assert height % multiple == width % multiple == 0
        # At most one more multiple would fit along the shorter side.
        assert area - max(height, width) * multiple < height * width <= area
        assert 9 * max(height, width) <= 16 * min(height, width)
    if size[0] == size[1]:
        assert {(width, height) for height, width in found} == set(found)
    aspects = [width / height for height, width in found]
    assert aspects == sorted(aspects)


def test_five_shapes_are_those_of_phones_and_cameras():
    found = shapes.of_area((2304, 2304), multiple=16, count=5)
    wanted = [9 / 16, 3 / 4, 1, 4 / 3, 16 / 9]
    assert [width / height for height, width in found] == pytest.approx(wanted, rel=0.01)


def test_no_side_is_longer_than_the_model_s_positions():
    found = shapes.of_area((1024, 1024), multiple=16, count=9, most=1152)
    assert max(map(max, found)) <= 1152
    assert len(found) > 1


@pytest.mark.parametrize("count", [0, 2, 8, -1])
def test_an_even_number_of_shapes_is_refused(count):
    with pytest.raises(ValueError, match=rf"count = {count}: expected an odd number"):
        shapes.of_area((64, 64), multiple=8, count=count)


def test_a_photo_gets_the_shape_that_cuts_least_off():
    found = shapes.of_area((1024, 1024), multiple=64, count=9)
    for height, width in PHONE.values():
        areas = []
        for rows, columns in found:
            scale = min(height / rows, width / columns)  # the largest crop of this shape
            areas.append(rows * columns * scale**2 / (height * width))
        place = shapes.nearest((height, width), found)
        assert areas[place] == pytest.approx(max(areas))
        assert shapes.kept((height, width), found[place]) == pytest.approx(max(areas))
    assert found[shapes.nearest((3000, 3000), found)] == (1024, 1024)
    square = shapes.kept(PHONE["9:16"], (1024, 1024))
    assert square == pytest.approx(9 / 16)
    assert shapes.kept(PHONE["9:16"], found[shapes.nearest(PHONE["9:16"], found)]) > 0.9


def test_every_picture_has_the_same_number_of_steps():
    plan = shapes.Steps(counts=(3, 1, 2), seed=7)
    seen = [plan.at(step) for step in range(60)]
    for r in range(10):
        of_round = [shape for shape, _ in seen[6 * r : 6 * r + 6]]
        assert np.bincount(of_round, minlength=3).tolist() == [3, 1, 2]
    for shape in range(3):
        assert [own for at, own in seen if at == shape] == list(range(10 * plan.counts[shape]))
    orders = {tuple(shape for shape, _ in seen[6 * r : 6 * r + 6]) for r in range(10)}
    assert len(orders) > 1


def test_the_shape_of_a_step_is_a_function_of_the_seed_and_the_step():
    plan = shapes.Steps(counts=(4, 5), seed=1)
    forward = [plan.at(step) for step in range(40)]
    assert [shapes.Steps(counts=(4, 5), seed=1).at(step) for step in reversed(range(40))] == [
        *reversed(forward)
    ]
    other = [shapes.Steps(counts=(4, 5), seed=2).at(step) for step in range(40)]
    assert other != forward
    assert [shapes.Steps(counts=(0, 2, 0), seed=0).at(step)[0] for step in range(6)] == [1] * 6
    assert math.isclose(np.mean([shape for shape, _ in forward]), 5 / 9, abs_tol=0.06)


def test_subjects_have_equal_turns_and_the_photos_of_one_are_seen_equally_often():
    tall, square, wide = (6, 4), (5, 5), (4, 6)
    counts = [{square: 4}, {tall: 1, wide: 1}, {square: 2, wide: 1}]
    found = shapes.weights(counts)
    totals = [sum(each.values()) for each in found]
    assert len(set(totals)) == 1
    for each, count in zip(found, counts, strict=True):
        assert each.keys() == count.keys()
        assert len({each[shape] / count[shape] for shape in each}) == 1
    assert np.gcd.reduce([n for each in found for n in each.values()]) == 1
    assert shapes.weights([{square: 5}]) == [{square: 1}]
    assert shapes.weights([{tall: 2, square: 2}]) == [{tall: 1, square: 1}]


@pytest.mark.parametrize("shares", [(1,), (1, 1, 1), (2, 4), (3, 1), (6, 3, 2)])
def test_turns_are_in_proportion_and_spread(shares):
    found = shapes.order(shares)
    lowest = [share // np.gcd.reduce(shares) for share in shares]
    assert [found.count(k) for k in range(len(shares))] == lowest
    for n in range(len(found) + 1):  # never more than a turn away from its share so far
        for k, each in enumerate(lowest):
            assert abs(found[:n].count(k) - n * each / len(found)) <= 1
    if len(set(shares)) == 1:
        assert found == (*range(len(shares)),)


@pytest.mark.parametrize(
    ("number", "shares", "expected"),
    [
        (10, [1, 1], [5, 5]),
        (7, [1, 2], [2, 5]),  # 2.33 and 4.67
        (4, [1, 2], [1, 3]),
        (50, [1, 200], [1, 49]),  # at least one
        (2, [1, 1, 1], [1, 1, 1]),
        (8, [3], [8]),
    ],
)
def test_class_images_are_parted_in_proportion(number, shares, expected):
    assert shapes.parts(number, shares) == expected


def test_photos_of_all_shapes_are_seen_equally_often_beside_class_rows_of_their_shape():
    sizes, counts, rows = [(4, 6), (6, 4), (8, 3)], [3, 1, 2], 2

    def numbered(size, first, count):
        values = np.arange(first, first + count, dtype=np.float32)[:, None, None, None]
        mean = np.broadcast_to(values, (count, *size, 1))
        return Pictures(mean, np.full(count, first, np.int32))

    sources = [
        SubjectBatches(
            subjects=[numbered(size, 10 * k, count)],
            classes=[numbered(size, 100 + 10 * k, 4)],
            turns=[0],
            batch_size=2 * rows,
            prior_fraction=0.5,
            seed=5,
        )
        for k, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]
    made = shapes.ShapedBatches(sources, shapes.Steps(tuple(counts), seed=5))
    assert made.prompts.tolist() == [0, 10, 20, 100, 110, 120]
    seen: dict[float, int] = {}
    for step in range(6 * 4):
        batch = made.batch(step)
        shape = batch["mean"].shape[1:3]
        k = sizes.index(shape)
        assert batch["is_prior"].tolist() == [False] * rows + [True] * rows
        values = batch["mean"][:, 0, 0, 0]
        assert ((values[:rows] // 10) == k).all()
        assert ((values[rows:] // 10) == 10 + k).all()
        for value in values[:rows]:
            seen[value] = seen.get(value, 0) + 1
        again = made.batch(step)
        assert all(np.array_equal(again[name], batch[name]) for name in batch)
    assert seen == dict.fromkeys([0.0, 1.0, 2.0, 10.0, 20.0, 21.0], 4 * rows)
