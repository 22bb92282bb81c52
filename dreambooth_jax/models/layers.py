"""Layers of the networks, and the bridge between an NNX module and a flat dictionary of parameters.

Four conventions keep the networks short:

* A module declares parameters by shape alone (`param`). Values always come from a flat dictionary,
  so building even a 4-billion-parameter network takes no memory and no time; `bind` puts the two
  together inside `jax.jit`.
* A layer computes in the dtype of its input and casts its parameters to it. Normalisations,
  softmax and embeddings of time compute in float32 and return the dtype of their input.
* A kernel is whatever `multiply` and `convolve` can use: an array, or a pytree of
  `dreambooth_jax.kernels` in its place.
* Images are `[B, H, W, C]`, token sequences `[B, L, D]`. Attribute names are the keys of the
  published weight files.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from dreambooth_jax import kernels, tree
from dreambooth_jax.models import rounded, target
from dreambooth_jax.models.attention import attention as attention

Array = jax.Array

_CPU_POSITIONS = 4  # of an image up to which any convolution is a product on CPU


def param(*shape: int) -> nnx.Param:
    """A float32 parameter known by its shape only."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Network:
    """An NNX module taken apart: `structure`, and its `abstract` leaves by path.

    They are shapes and dtypes, `{"conv_in/kernel": ShapeDtypeStruct}`. `heads` are those of each
    module that is an attention: its projections make sense in whole heads only.
    """

    structure: Any
    abstract: Mapping[str, jax.ShapeDtypeStruct]
    heads: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def bind(self, params: Mapping[str, Array]) -> Any:
        """The module with these parameters; cheap enough to call inside a jitted function.

        Raises:
          ValueError: the paths or a shape differ from the module's own.
        """
        tree.check_keys(self.abstract, params, what="parameters of the network")
        for path, leaf in self.abstract.items():
            found = tuple(params[path].shape)
            if found != leaf.shape:
                raise ValueError(f"{path}: found shape {found}, expected {leaf.shape}.")
        leaves: dict[Any, Any] = {
            _as_nnx_path(path): nnx.Param(params[path]) for path in self.abstract
        }
        return nnx.merge(self.structure, nnx.from_flat_state(leaves))


def _as_nnx_path(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))


def take_apart(module: nnx.Module) -> Network:
    """`module` as a `Network`."""
    structure, state = nnx.split(module)
    leaves = {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    heads = {
        "/".join(map(str, path)): part.heads
        for path, part in nnx.iter_modules(module)
        if hasattr(part, "heads")
    }
    return Network(structure, leaves, heads)


_ZERO_AT_FIRST = ("conv2/kernel", "to_out/0/kernel", "conv_out/kernel")


def initial(network: Network, seed: int) -> tree.Flat:
    """Fresh float32 parameters: scales 1, biases 0, embeddings N(0, 1), the rest N(0, 1/fan_in).

    Output layers of residual branches start at zero, so that each block begins as the identity
    (Ho et al. 2020, appendix B; Dhariwal & Nichol 2021).
    """
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, leaf in network.abstract.items():
        name = path.rsplit("/", 1)[-1]
        if name in ("scale", "running_var"):
            value = np.ones(leaf.shape)
        elif name in ("bias", "running_mean") or path.endswith(_ZERO_AT_FIRST):
            value = np.zeros(leaf.shape)
        elif name == "kernel":
            value = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name == "embedding":
            value = rng.normal(size=leaf.shape)
        else:
            value = rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-1])
        leaves[path] = value.astype(np.float32)
    return leaves


def _per_channel(values: Array, x: Array) -> Array:
    """`[C]` in the dtype of x, its axis written out: `[1, ..., 1, C]`."""
    return kernels.per_channel(values.astype(x.dtype), x)


def whole(x: Array) -> Array:
    """`x`, all of it on every device that has its rows.

    For what layers hand on to each other: how a mesh splits their weights ends there, and is not
    for the compiler to carry on. Nothing is said of the rows, the first axis.
    """
    if target.is_one_device():
        return x
    rest = (None,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, P(P.UNCONSTRAINED, *rest))


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis; kernel `[in, out]`."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool = True):
        self.kernel = param(size_in, size_out)
        self.bias = param(size_out) if bias else None

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel.get_value()
        return _linear(x, kernel, None if self.bias is None else self.bias[...])

    def halves(self) -> list[Callable[[Array], Array]]:
        """Two layers: with the first half of the outputs, and with the second."""
        parts = kernels.halves(self.kernel.get_value())
        biases = [None] * 2 if self.bias is None else jnp.split(self.bias[...], 2)
        return [
            functools.partial(_linear, kernel=k, bias=b) for k, b in zip(parts, biases, strict=True)
        ]


def _linear(x: Array, kernel: Any, bias: Array | None) -> Array:
    y = multiply(x, kernel)
    return y if bias is None else y + _per_channel(bias, y)


def multiply(x: Array, kernel: Any) -> Array:
    """`x @ kernel` over the last axis, in the dtype of x; the kernel as in `kernels`, or an array.

    `LowRank` stays beside the product, `x@W + (x@down)@up` (Hu et al. 2021, eq. 3); the scales of
    `Int8` follow it, `(x@q)·s`.
    """
    match kernel:
        case kernels.LowRank():
            side = x @ kernel.down.astype(x.dtype) @ kernel.scaled_up.astype(x.dtype)
            return _times(multiply(x, kernel.kernel) + side, kernel.stretch)
        case kernels.Int8():
            return _times(_product(x, kernel.values), kernel.scale)
        case _:
            return _product(x, kernel)


def _product(x: Array, kernel: Array) -> Array:
    kernel = kernel.astype(x.dtype)
    return rounded.multiply(x, kernel) if rounded.are_on(x) else x @ kernel


def _times(y: Array, factors: Array | None) -> Array:
    """`y`, each channel times its float32 factor; the product is rounded once."""
    if factors is None:
        return y
    return (y.astype(jnp.float32) * kernels.per_channel(factors, y)).astype(y.dtype)


class Conv(nnx.Module):
    """Convolution `[B,H,W,in] -> [B,H,W,out]`, same H, W at stride 1; kernel `[k, k, in, out]`.

    padding: zeros before and after each side; as many as keep H, W when not given.
    """

    def __init__(
        self,
        size_in: int,
        size_out: int,
        *,
        width: int = 3,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        bias: bool = True,
    ):
        self.kernel = param(width, width, size_in, size_out)
        self.bias = param(size_out) if bias else None
        self.stride = stride
        self.padding = ((width - 1) // 2,) * 2 if padding is None else padding

    def __call__(self, x: Array) -> Array:
        y = convolve(x, self.kernel.get_value(), stride=self.stride, padding=self.padding)
        return y if self.bias is None else y + _per_channel(self.bias[...], y)


def convolve(x: Array, kernel: Any, *, stride: int, padding: tuple[int, int]) -> Array:
    """Convolution of `[B,H,W,in]` with a kernel `[k,k,in,out]` as in `multiply`.

    `LowRank` is a convolution with `down`, then a 1x1 convolution with `up`, added to the kernel's.
    """
    same = functools.partial(convolve, x, stride=stride, padding=padding)
    match kernel:
        case kernels.LowRank():
            side = same(kernel.down) @ kernel.scaled_up.astype(x.dtype)
            return _times(same(kernel.kernel) + side, kernel.stretch)
        case kernels.Int8():
            return _times(same(kernel.values), kernel.scale)
    kernel = kernel.astype(x.dtype)
    keeps = stride == 1 and sum(padding) == len(kernel) - 1
    if keeps and rounded.are_on(x) and rounded.gain_by_position(kernel):
        return rounded.by_position(x, kernel, padding)
    if keeps and len(kernel) > 1 and _few_positions_on_cpu(x, kernel):
        return as_product(x, kernel, padding)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[padding] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _few_positions_on_cpu(x: Array, kernel: Array) -> bool:
    """Returns True where a CPU's gradients of a convolution take up to 9 times a product's time.

    That is at four positions; of more, the product is the faster one while all images together have
    fewer positions than the kernel has channels (`bench/convolutions.py`).
    """
    alone = target.device()[0] == "cpu" and target.parts() == (1, 1)
    positions = x.shape[1] * x.shape[2]
    return alone and (positions <= _CPU_POSITIONS or len(x) * positions <= kernel.shape[-1])


def as_product(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    """The same convolution, of stride 1, as one product of all neighbourhoods with the kernel."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    side = range(len(kernel))
    near = [padded[:, i : i + height, j : j + width] for i in side for j in side]
    flat = kernel.reshape(len(kernel) ** 2 * channels, -1)
    return jnp.concatenate(near, axis=-1) @ flat


class Embedding(nnx.Module):
    """Rows of a table: int `[...] -> [..., D]`."""

    def __init__(self, rows: int, size: int):
        self.embedding = param(rows, size)

    def __call__(self, ids: Array) -> Array:
        return look_up(ids, self.embedding.get_value())


def look_up(ids: Array, table: Any) -> Array:
    """Rows of a table, an array or `kernels.NewRows`: int `[...] -> [..., D]`, float32."""
    if not isinstance(table, kernels.NewRows):
        return jnp.take(table, ids, axis=0).astype(jnp.float32)
    own = jnp.asarray(table.ids, ids.dtype).reshape((1,) * ids.ndim + (-1,))
    same = ids[..., None] == own
    mine = jnp.take(table.rows, jnp.argmax(same, -1), axis=0)
    plain = jnp.take(table.table, ids, axis=0)
    return jnp.where(same.any(-1, keepdims=True), mine, plain.astype(jnp.float32))


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He 2018): statistics over positions and a group of channels."""

    def __init__(self, channels: int, *, groups: int, eps: float = 1e-5):
        if channels % groups:
            raise ValueError(f"GroupNorm: {channels} channels do not divide into {groups} groups.")
        self.scale = param(channels)
        self.bias = param(channels)
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        plainly = functools.partial(_group_norm, groups=self.groups, eps=self.eps)
        # Computed again in the backward pass from x of 16 bits: else XLA writes what has 32.
        norm = jax.checkpoint(plainly) if x.dtype.itemsize < 4 else plainly
        return norm(x, self.scale[...], self.bias[...])


def _group_norm(x: Array, scale: Array, bias: Array, *, groups: int, eps: float) -> Array:
    # Sums per channel first, then groups: 2-3 times faster on CPU than reshaping x to groups.
    # Around a value of the channel itself, so that E[x²] - E[x]² does not cancel when a channel is
    # nearly constant. Where x has 16 bits rounding took more than that would, and the sums can be
    # made while x is: fewer bytes to move on TPU.
    x32 = x.astype(jnp.float32)
    positions = tuple(range(1, x.ndim - 1))
    first = jax.lax.stop_gradient(x32[(slice(None), *(slice(0, 1) for _ in positions))])
    first = jnp.zeros_like(first) if x.dtype.itemsize < 4 else first
    around = x32 - first
    offset = jnp.mean(around, positions)
    spread_c = jnp.maximum(jnp.mean(around * around, positions) - offset * offset, 0.0)
    mean_c = first.reshape(offset.shape) + offset

    def of_group(values: Array) -> Array:
        """The mean over each group's channels, given back to all of them: `[B, C]`."""
        grouped = values.reshape(values.shape[0], groups, -1)
        means = jnp.broadcast_to(grouped.mean(2, keepdims=True), grouped.shape)
        return means.reshape(values.shape)

    mean = of_group(mean_c)
    unit = jax.lax.rsqrt(of_group(spread_c + jnp.square(mean_c - mean)) + eps)
    factor = _per_channel(scale, unit) * unit
    shift = _per_channel(bias, mean) - mean * factor
    spread = (slice(None), *(None for _ in positions), slice(None))
    return (x32 * factor[spread] + shift[spread]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016)."""

    def __init__(self, size: int, *, eps: float = 1e-5):
        self.scale = param(size)
        self.bias = param(size)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        unit = centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + self.eps)
        scale, bias = _per_channel(self.scale[...], unit), _per_channel(self.bias[...], unit)
        return (unit * scale + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation without centring (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, *, eps: float):
        self.scale = param(size)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        unit = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.eps)
        return (unit * _per_channel(self.scale[...], unit)).astype(x.dtype)


def _gelu_exact(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": _gelu_exact,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "mish": jax.nn.mish,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation of that name in the model files.

    Raises:
      ValueError: unknown name; the message lists the known ones.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ValueError(f"activation {name!r} is not known; known: {known}.")
    return ACTIVATIONS[name]


def time_sinusoid(t: Array, size: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Array:
    """Sinusoidal embedding `[B] -> [B, size]` of a time step, float32.

    Frequencies are `10000^(-i / (size/2 - freq_shift))` (Vaswani et al. 2017; Ho et al. 2020);
    `flip_sin_to_cos` puts the cosines first.
    """
    half = size // 2
    place = jnp.arange(half, dtype=jnp.float32)
    frequency = jnp.exp(-np.log(10_000.0) * place / (half - freq_shift))
    angle = t.astype(jnp.float32)[:, None] * frequency[None, :]
    sines, cosines = jnp.sin(angle), jnp.cos(angle)
    parts = [cosines, sines] if flip_sin_to_cos else [sines, cosines]
    return jnp.pad(jnp.concatenate(parts, -1), ((0, 0), (0, size - 2 * half)))
