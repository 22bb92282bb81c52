"""Adaptation is dictionary arithmetic: `weights = combine(frozen, trainable)`.

One module per way, one line per name.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dreambooth_jax.adapt import full
from dreambooth_jax.tree import Flat


class Adapter(NamedTuple):
    """`init(weights, rules) -> (trainable, frozen)`, and what undoes it.

    That is `combine(frozen, trainable) -> weights`.
    """

    init: Callable[[Flat, Sequence[tuple[str, bool]]], tuple[Flat, Flat]]
    combine: Callable[[Flat, Flat], Flat]


ADAPTERS: dict[str, Adapter] = {"full": Adapter(full.init, full.combine)}
