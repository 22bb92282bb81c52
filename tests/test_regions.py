"""Automatic masks of networks that are formulas: where a word shows and where prompts differ."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import regions, sharding
from dreambooth_jax.data import canvas
from dreambooth_jax.diffusion import schedule

SIZE = 8
MARK = np.zeros((SIZE, SIZE), bool)
MARK[2:5, 3:7] = True
COLUMNS = np.array([0, 1, 0, 0, 0], np.float32)


class Formula:
    """A stage that reads a prompt's number as noise in a place, and asks a word's key there."""

    denoiser = SimpleNamespace(attends=True)
    family = SimpleNamespace(guidance="classifier_free", name="formula")
    conditioner = SimpleNamespace(empty=lambda table: table[:1])
    path = schedule.from_config({"clip_sample": False, "prediction_type": "epsilon"})
    channels, drawing, folder = 2, ("unet/",), "formula"

    def __init__(self, sides: tuple[int, ...] = (SIZE,)):
        """sides: of its layers' maps; those of more than 16² ask where the mark is not."""
        self.sides = sides

    def predict(self, params, xt, t, text, *, attend=None):
        for side in self.sides if attend is not None else ():
            marks = np.repeat(np.repeat(MARK, side // SIZE, 0), side // SIZE, 1)
            marks = jnp.asarray(marks.reshape(1, -1, 1, 1), jnp.float32)
            marks = 1 - marks if side > 16 and 16 in self.sides else marks
            q = 9 * jnp.broadcast_to(marks, (len(xt), side * side, 1, 1))  # to the second token
            k = jnp.asarray([0.0, 1.0, 0.0, 0.0, 0.0])[None, :, None, None]
            k = jnp.broadcast_to(k, (len(xt), 5, 1, 1))
            attend(q, k, k, text=5)
        if xt.shape[1] != SIZE:
            return xt
        place = jnp.asarray(MARK, jnp.float32)[None, :, :, None]
        return xt + text[:, :1, None, None] * place


def found(kind: str, devices: int = 1, sides: tuple[int, ...] = (SIZE,), **how) -> np.ndarray:
    """The mask of a picture as large as the largest layer."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    finder = regions.Finder(Formula(sides), kind, num_steps=4, mesh=mesh)
    size = max(sides)
    known = np.random.default_rng(0).normal(size=(size, size, 2)).astype(np.float32)
    table = jnp.asarray([[0.0], [0.5], [-0.25]])  # the empty prompt, the edit, the source
    prompts = {"word": {"prompt": 2}, "difference": {"prompt": 1, "source": 2}}[kind]
    return finder.mask({}, table, known, prompts, seeds=range(8), **how)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_place_in_which_prompts_differ(devices):
    np.testing.assert_array_equal(found("difference", devices), MARK)


def test_a_map_does_not_depend_on_the_number_of_devices():
    """Nor on the rows that fill up the last of them: ten noises are ten on eight as well."""

    class Own(Formula):
        def predict(self, params, xt, t, text, **how):
            return xt * text[:, :1, None, None]  # each noise has a difference of its own

    known, table = np.zeros((SIZE, SIZE, 2), np.float32), jnp.asarray([[0.0], [0.5], [-0.25]])
    maps = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        finder = regions.Finder(Own(), "difference", num_steps=4, mesh=mesh)
        asked = {"prompt": 1, "source": 2}
        maps.append(finder.map({}, table, known, asked, seeds=range(regions.NOISES)))
    np.testing.assert_allclose(*maps, rtol=1e-6)


def test_the_place_that_shows_a_word():
    np.testing.assert_array_equal(found("word", columns=COLUMNS), MARK)


@pytest.mark.parametrize("sides", [(16, 32), (32, 64)])
def test_layers_of_16_and_where_there_are_none_the_smallest(sides):
    """Latents of 128² have no cross-attention below 32², in Stable Diffusion XL."""
    mask, times = found("word", sides=sides, columns=COLUMNS), max(sides) // SIZE
    mark = np.repeat(np.repeat(MARK, times, 0), times, 1)
    blurred = max(sides) // min(sides)  # where maps are enlarged
    np.testing.assert_array_equal(mask | canvas.grown(~mark, blurred), True)
    np.testing.assert_array_equal(mask & ~canvas.grown(mark, blurred), False)


def test_a_network_of_large_layers_alone_is_told():
    with pytest.raises(ValueError, match="no attention of at most 1024 positions"):
        found("word", sides=(64,), columns=COLUMNS)


def test_thresholds():
    """30 % of the largest heat; half of three times the mean, where differences are cut off."""
    heat = np.array([[1.0, 0.31], [0.29, 0.0]])
    np.testing.assert_array_equal(regions.marked(heat, "word"), [[True, True], [False, False]])
    difference = np.array([[12.0, 0.0, 0.0, 0.0], [1.4, 1.6, 0.5, 0.5]])  # mean 2
    expected = [[True, False, False, False], [False] * 4]
    np.testing.assert_array_equal(regions.marked(difference, "difference"), expected)
    np.testing.assert_array_equal(
        regions.marked(np.array([[4.0, 3.1, 0.9, 0.0]]), "difference"), [[True, True, False, False]]
    )
