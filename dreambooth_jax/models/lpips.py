"""LPIPS, a perceptual distance of two pictures (Zhang et al. 2018), over AlexNet or VGG16.

Each of five layers' features has its channels brought to unit length; squared differences are
weighted by channel (`lin0` … `lin4`), averaged over the picture and summed over the layers.
Attribute names are the keys of the state dictionary of the authors' package `lpips`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers
from dreambooth_jax.models.layers import Array

_EPS = 1e-10  # added to a length before it divides
# Mean and spread of ImageNet for pictures in [-1, 1], as the authors round them.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Step(NamedTuple):
    """A convolution: its number in torchvision's `features`, channels, width, stride, padding."""

    number: int
    channels: int
    width: int = 3
    stride: int = 1
    padding: int = 1


class Slice(NamedTuple):
    """The convolutions up to the next features, after max-pooling `(width, stride)` if any."""

    steps: Sequence[Step]
    pool: tuple[int, int] | None = None


# Krizhevsky 2014 ("one weird trick"), and configuration D of Simonyan & Zisserman 2015.
SLICES: dict[str, tuple[Slice, ...]] = {
    "alex": (
        Slice([Step(0, 64, 11, 4, 2)]),
        Slice([Step(3, 192, 5, 1, 2)], (3, 2)),
        Slice([Step(6, 384)], (3, 2)),
        Slice([Step(8, 256)]),
        Slice([Step(10, 256)]),
    ),
    "vgg": (
        Slice([Step(0, 64), Step(2, 64)]),
        Slice([Step(5, 128), Step(7, 128)], (2, 2)),
        Slice([Step(10, 256), Step(12, 256), Step(14, 256)], (2, 2)),
        Slice([Step(17, 512), Step(19, 512), Step(21, 512)], (2, 2)),
        Slice([Step(24, 512), Step(26, 512), Step(28, 512)], (2, 2)),
    ),
}


class Nothing(nnx.Module):
    """Placeholder for ReLU, pooling or dropout, so that indices match the weight file."""


def _numbered(plan: Slice, size_in: int) -> nnx.List[Any]:
    """The convolutions of a slice, each at its number."""
    found: list[nnx.Module] = [Nothing() for _ in range(plan.steps[-1].number + 1)]
    for step in plan.steps:
        found[step.number] = layers.Conv(
            size_in,
            step.channels,
            width=step.width,
            stride=step.stride,
            padding=(step.padding, step.padding),
        )
        size_in = step.channels
    return nnx.List(found)


def _max_pool(x: Array, width: int, stride: int) -> Array:
    """`[B,H,W,C]`, only whole windows."""
    window, strides = (1, width, width, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")


class Trunk(nnx.Module):
    """The classifier without its head: pictures to the features of five layers."""

    def __init__(self, name: str):
        size_in = 3
        for i, plan in enumerate(SLICES[name], start=1):
            setattr(self, f"slice{i}", _numbered(plan, size_in))
            size_in = plan.steps[-1].channels
        self.name = name

    def __call__(self, x: Array) -> list[Array]:
        kept = []
        for i, plan in enumerate(SLICES[self.name], start=1):
            if plan.pool is not None:
                x = _max_pool(x, *plan.pool)
            for step in plan.steps:
                x = jax.nn.relu(getattr(self, f"slice{i}")[step.number](x))
            kept.append(x)
        return kept


class Head(nnx.Module):
    """Squared differences `[B,H,W,C]` to `[B]`: weighted over channels, averaged over places."""

    def __init__(self, channels: int):
        self.model = nnx.List([Nothing(), PlainConv(channels)])

    def __call__(self, x: Array) -> Array:
        return self.model[1](x).mean((1, 2, 3))


class PlainConv(nnx.Module):
    """One number per place, without bias; kernel `[1,1,C,1]`."""

    def __init__(self, channels: int):
        self.kernel = layers.param(1, 1, channels, 1)

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...][0, 0]


class Lpips(nnx.Module):
    """Pictures `[B,H,W,3]` in [-1, 1], twice, to their distances `[B]`, float32."""

    def __init__(self, name: str):
        self.net = Trunk(name)
        for i, plan in enumerate(SLICES[name]):
            setattr(self, f"lin{i}", Head(plan.steps[-1].channels))

    def __call__(self, first: Array, second: Array) -> Array:
        shift, scale = (jnp.array(c)[None, None, None] for c in (_SHIFT, _SCALE))
        both = (jnp.concatenate([first, second]) - shift) / scale
        total = jnp.zeros(first.shape[0])
        for i, features in enumerate(self.net(both)):
            length = jnp.sqrt(jnp.sum(features * features, -1, keepdims=True))
            a, b = jnp.split(features / (length + _EPS), 2)
            total = total + getattr(self, f"lin{i}")(jnp.square(a - b))
        return total


def build(name: str) -> layers.Network:
    """The network over "alex" or "vgg"."""
    return layers.take_apart(Lpips(name))
