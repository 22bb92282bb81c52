"""Checks of how photos are cut: the place of the crop, and the shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

from dreambooth_jax.config.problems import Problem, write


def wrong_crop(crop: tuple[Any, ...]) -> Iterator[Problem]:
    """Yields the problem of `subject.crop`, if there is one."""
    shares = [x for x in crop if type(x) in (int, float) and 0 <= x <= 1]
    if crop and (len(crop), len(shares)) != (2, 2):
        expected = "(fy, fx), two numbers from 0.0 (top, left) to 1.0 (bottom, right), or ()"
        yield Problem("subject.crop", crop, expected, write("subject.crop", (0.0, 0.5)))


def wrong_shapes(c: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields the problems of `data.buckets`, among settings by dotted key."""
    key, count = "data.buckets", c["data.buckets"]
    if not count:
        return
    if count % 2 == 0:
        expected = "an odd number: the model's own shape, and as many taller as wider ones; or 0"
        yield Problem(key, count, expected, write(key, count + 1))
    if c["upscaler_model"]:
        expected = (
            "'' with data.buckets: an upscaler enlarges pictures of one size, and its rows need "
            "them at both sizes"
        )
        instead = (
            'Write --config.upscaler_model="" --config.stages="(\'base\',)", or '
            "--config.data.buckets=0."
        )
        yield Problem("upscaler_model", c["upscaler_model"], expected, instead)
    if c["fleet.table"]:
        expected = (
            "0 with fleet.table: all subjects of a fleet are trained in one program, whose step "
            "has rows of one shape, and each subject's photos have shapes of their own"
        )
        yield Problem(key, count, expected, write(key, 0))
