"""Adaptation is dictionary arithmetic: `weights = combine(frozen, trainable)`.

One module per way, one line per name.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dreambooth_jax.adapt import full, lora, pivotal, textual_inversion
from dreambooth_jax.tree import Flat


@dataclasses.dataclass(frozen=True)
class AdaptSettings:
    """A way to adapt, by name, and LoRA's rank, scale and kernels."""

    name: str
    rank: int
    alpha: float | None
    targets: str
    dora: bool
    then: str


class Adapter(NamedTuple):
    """`init(weights, rules) -> (trainable, frozen)`, and what undoes it.

    That is `combine(frozen, trainable) -> weights`, whose leaves are arrays or those of `kernels`.
    `keeps_base`: `frozen` has all weights as they were, those that the trainable ones change
    included.
    """

    init: Callable[[Flat, Sequence[tuple[str, bool]]], tuple[Flat, Flat]]
    combine: Callable[[Flat, Flat], Flat]
    keeps_base: bool = False


FULL = Adapter(full.init, full.combine)


def _lora(settings: AdaptSettings, seed: int) -> Adapter:
    init = functools.partial(
        lora.init, rank=settings.rank, targets=settings.targets, dora=settings.dora, seed=seed
    )
    combine = functools.partial(lora.combine, alpha=alpha_of(settings))
    return Adapter(init, combine, keeps_base=True)


def alpha_of(settings: AdaptSettings) -> float:
    """LoRA's α: the rank, where it is not given."""
    return float(settings.rank if settings.alpha is None else settings.alpha)


NewRows = Mapping[str, Sequence[int]]


def _textual_inversion(new_rows: NewRows) -> Adapter:
    return Adapter(
        functools.partial(textual_inversion.init, ids=_known(new_rows)),
        functools.partial(textual_inversion.combine, ids=new_rows),
        keeps_base=True,
    )


def _pivotal(settings: AdaptSettings, seed: int, new_rows: NewRows) -> Adapter:
    then = THEN[settings.then](settings, seed)
    return Adapter(
        functools.partial(pivotal.init, ids=_known(new_rows), then=then),
        functools.partial(pivotal.combine, ids=new_rows, then=then),
        keeps_base=then.keeps_base,
    )


def _known(new_rows: NewRows) -> NewRows:
    if not new_rows:
        raise ValueError("new tokens are trained of a stage that has some (Stage.with_word)")
    return new_rows


# The second phase of pivotal tuning, after the new tokens are trained.
THEN: dict[str, Callable[[AdaptSettings, int], Adapter]] = {
    "full": lambda settings, seed: FULL,
    "lora": _lora,
}
ADAPTERS: dict[str, Callable[[AdaptSettings, int, NewRows], Adapter]] = {
    "full": lambda settings, seed, rows: FULL,
    "lora": lambda settings, seed, rows: _lora(settings, seed),
    "textual_inversion": lambda settings, seed, rows: _textual_inversion(rows),
    "pivotal": _pivotal,
}


def makes_words(settings: AdaptSettings) -> bool:
    """Returns True if the identifier becomes new tokens whose embeddings are trained."""
    return settings.name in ("textual_inversion", "pivotal")


def makes_factors(settings: AdaptSettings) -> bool:
    """Returns True if LoRA's factors are trained."""
    return settings.name == "lora" or (settings.name, settings.then) == ("pivotal", "lora")


def keeps_base(settings: AdaptSettings) -> bool:
    """Returns `Adapter.keeps_base` from the settings alone."""
    return settings.name == "textual_inversion" or makes_factors(settings)


def make(settings: AdaptSettings, *, seed: int, new_rows: NewRows | None = None) -> Adapter:
    """The adapter that the settings name; `seed` is that of its first values.

    new_rows: path of each table of token embeddings -> ids of the subject's own new tokens.
    """
    return ADAPTERS[settings.name](settings, seed, new_rows or {})


def abstract(
    adapter: Adapter, leaves: Mapping[str, Any], rules: Sequence[tuple[str, bool]]
) -> Flat:
    """Shapes and dtypes of what would be trained, from those of all weights; computes nothing."""
    return dict(jax.eval_shape(lambda flat: adapter.init(flat, rules)[0], dict(leaves)))
