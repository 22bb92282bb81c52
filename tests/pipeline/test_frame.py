"""Sizes of pictures that a model can make, and what is told of others."""

import re

import pytest

from dreambooth_jax.pipeline import Frame

FRAME = Frame((512, 512), multiple=64, most=1024)


@pytest.mark.parametrize(
    ("asked", "size"),
    [(None, (512, 512)), (768, (768, 768)), ((768, 512), (768, 512)), ((64, 1024), (64, 1024))],
)
def test_one_number_is_a_square_and_two_are_height_and_width(asked, size):
    assert FRAME.at(asked) == size


def test_without_a_table_of_positions_there_is_a_plain_bound():
    free = Frame((512, 512), multiple=24)
    most = 8192 // 24 * 24
    assert free.at(most) == (most, most)
    for asked in (most + 24, 10**6, 24 * 10**30, (24, 24 * 10**5)):
        with pytest.raises(ValueError, match=f"expected (at most {most} pixels|.*multiple)"):
            free.at(asked)
    with pytest.raises(ValueError, match=rf"expected at most {most}.*resolution={most}\.$"):
        free.at(24 * 10**6)
    # A hostile model folder's own size, too.
    with pytest.raises(ValueError, match="the model's own: expected at most"):
        Frame((24 * 10**5, 24), multiple=24).at(None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (500, "resolution = 500: expected a multiple of 64. Write --config.resolution=512."),
        (
            (760, 20),
            "(760, 20): expected two multiples of 64. Write --config.resolution=768,64.",
        ),
        (2048, "knows positions up to 1024 pixels along a side. Write --config.resolution=1024."),
        ((512, 1088), "1024 pixels along a side. Write --config.resolution=512,1024."),
    ],
)
def test_the_message_has_the_nearest_size(asked, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FRAME.at(asked)
