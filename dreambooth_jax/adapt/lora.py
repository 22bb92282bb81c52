"""LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024): low-rank changes of chosen kernels.

`W + (α/r)·down·up`, with `up` zero at the start, so that nothing changes at first. A convolution
`[h,w,in,out]` gets a `down` of its own height and width and a 1×1 `up`. DoRA scales each output
channel of the sum to a trained length.

Only the factors have gradients: `combine` puts a `kernels.LowRank` in the kernel's place, and
layers compute with it beside the product. `python bench/lora.py` compares that with the sum.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import kernels, rng, tree

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
            trainable[f"{path}/{LENGTH}"] = kernels.lengths(leaf)
    if not trainable:
        raise ValueError(
            f"adapt.targets = {targets!r} and adapt.train = {tuple(rules)} choose no kernel: "
            "nothing to train."
        )
    return trainable, dict(weights)


def adapted(trainable: tree.Flat) -> list[str]:
    """The paths of the kernels that the factors belong to."""
    return [path.removesuffix(f"/{DOWN}") for path in trainable if path.endswith(f"/{DOWN}")]


def beside(weights: tree.Flat, factors: tree.Flat) -> tree.Flat:
    """The weights with a fixed change beside each kernel that has factors; its scale is 1."""
    changed = dict(weights)
    for path in adapted(factors):
        down, up = factors[f"{path}/{DOWN}"], factors[f"{path}/{UP}"]
        changed[path] = kernels.LowRank(weights[path], down, up)
    return changed


def combine(frozen: tree.Flat, trainable: tree.Flat, *, alpha: float) -> tree.Flat:
    """The whole weights, with a `kernels.LowRank` of each pair of factors around its kernel.

    Its scale is α / r, where r is the rank of the factors.
    """
    weights: dict[str, Any] = dict(frozen)
    for path in adapted(trainable):
        down, up = trainable[f"{path}/{DOWN}"], trainable[f"{path}/{UP}"]
        changed = kernels.LowRank(frozen[path], down, up, scale=alpha / up.shape[0])
        length = trainable.get(f"{path}/{LENGTH}")
        if length is not None:
            # No gradient through the division, which saves memory and costs nothing that was
            # measured (Liu et al. 2024, section 4.3).
            now = jax.lax.stop_gradient(kernels.lengths(changed))
            changed = dataclasses.replace(changed, stretch=length / now)
        weights[path] = changed
    return weights


Changes = Mapping[str, tuple[Any, Any]]  # path of a kernel -> down `[…,in,r]`, up `[r,out]`


def changed(weights: tree.Flat, changes: Changes) -> tree.Flat:
    """The weights with a low-rank change of each kernel, beside those that are there already.

    Changes of one kernel become one, whose rank is the sum of theirs.

    Raises:
      ValueError: a kernel has a change of DoRA, to which nothing can be added.
    """
    made: dict[str, Any] = dict(weights)
    for path, (down, up) in changes.items():
        leaf = made[path]
        if isinstance(leaf, kernels.LowRank):
            if leaf.stretch is not None:
                raise ValueError(
                    f"{path} has trained lengths (DoRA), beside which no other LoRA can stand. "
                    "Export the run, and draw with --config.base_model=<its export>."
                )
            down = jnp.concatenate([leaf.down, down], -1)
            up = jnp.concatenate([leaf.scaled_up, up], 0)
            leaf = leaf.kernel
        made[path] = kernels.LowRank(leaf, down, up)
    return made
