"""LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024): low-rank changes of chosen kernels.

`W + (α/r)·down·up`, with `up` zero at the start, so that nothing changes at first. A convolution
`[h,w,in,out]` gets a `down` of its own height and width and a 1×1 `up`. DoRA scales each output
channel of the sum to a trained length.

The change is made to weights, not beside each layer, so that no network knows of it; that costs the
gradient of a whole kernel, 1.2 times as long over the attention of two pictures on a CPU by
`python bench/lora_level.py`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import rng, tree

DOWN, UP, LENGTH = "lora_down", "lora_up", "dora_length"


def init(
    weights: tree.Flat,
    rules: Sequence[tuple[str, bool]],
    *,
    rank: int,
    targets: str,
    dora: bool,
    seed: int,
) -> tuple[tree.Flat, tree.Flat]:
    """(trainable, frozen): two factors for each kernel that `rules` choose and `targets` matches.

    Args:
      weights: all of them; all stay frozen.
      rank: r, of the factors; never more than the kernel's own.
      targets: regex of whole paths.
      dora: lengths of the output channels as well.

    Raises:
      ValueError: no kernel is chosen.
    """
    trainable: tree.Flat = {}
    only = [(targets, True), (".*", False)]
    for path, leaf in weights.items():
        chosen = tree.first_match(path, rules, what="adapt.train")
        if not (chosen and tree.first_match(path, only, what="adapt.targets")):
            continue
        if not path.endswith("/kernel") or len(leaf.shape) not in (2, 4):
            continue
        *window, fan_in, fan_out = leaf.shape
        r = min(rank, int(np.prod(window)) * fan_in, fan_out)
        # As PyTorch draws a linear layer: uniform, ±1/√(inputs).
        bound = 1 / np.sqrt(np.prod(window) * fan_in)
        drawn = rng.generator(seed, "lora", path).uniform(-bound, bound, (*window, fan_in, r))
        trainable[f"{path}/{DOWN}"] = drawn.astype(np.float32)
        trainable[f"{path}/{UP}"] = np.zeros((r, fan_out), np.float32)
        if dora:
            trainable[f"{path}/{LENGTH}"] = _lengths(jnp.asarray(leaf))
    if not trainable:
        raise ValueError(
            f"adapt.targets = {targets!r} and adapt.train = {tuple(rules)} choose no kernel: "
            "nothing to train."
        )
    return trainable, dict(weights)


def adapted(trainable: tree.Flat) -> list[str]:
    """The paths of the kernels that the factors belong to."""
    return [path.removesuffix(f"/{DOWN}") for path in trainable if path.endswith(f"/{DOWN}")]


def _lengths(kernel: jax.Array) -> jax.Array:
    """The length of each output channel's weights `[out]`."""
    return jnp.sqrt(jnp.square(kernel).sum(tuple(range(kernel.ndim - 1))))


def change(trainable: tree.Flat, path: str, *, alpha: float) -> jax.Array:
    """(α/r)·down·up of one kernel, in its shape; r is that of the factors."""
    down, up = trainable[f"{path}/{DOWN}"], trainable[f"{path}/{UP}"]
    return (alpha / up.shape[0]) * jnp.tensordot(down, up, 1)


def combine(frozen: tree.Flat, trainable: tree.Flat, *, alpha: float) -> tree.Flat:
    """The whole weights, with every factor's change added to its kernel."""
    weights: dict[str, Any] = dict(frozen)
    for path in adapted(trainable):
        kernel = frozen[path] + change(trainable, path, alpha=alpha)
        length = trainable.get(f"{path}/{LENGTH}")
        if length is not None:
            # No gradient through the division, which saves memory and costs nothing that was
            # measured (Liu et al. 2024, section 4.3).
            kernel = (
                kernel
                * (length / jax.lax.stop_gradient(_lengths(kernel)))[(None,) * (kernel.ndim - 1)]
            )
        weights[path] = kernel
    return weights
