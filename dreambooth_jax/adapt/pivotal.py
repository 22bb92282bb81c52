"""Pivotal tuning (Roich et al. 2021): first the word is found, then the model is tuned around it.

The embeddings of new tokens are trained as in textual inversion and rest from then on, the pivot;
only now the other leaves move, in full or by LoRA. All are trainable leaves from the start, and
phases (`optim.phases`) tell when each is trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth_jax import tree
from dreambooth_jax.adapt import textual_inversion


def init(
    weights: tree.Flat,
    rules: Sequence[tuple[str, bool]],
    *,
    ids: Mapping[str, Sequence[int]],
    then: Any,
) -> tuple[tree.Flat, tree.Flat]:
    """(trainable, frozen): the rows `ids[path]` of each table, and what the adapter `then` trains.

    Raises:
      ValueError: as that adapter's `init`.
    """
    rows, _ = textual_inversion.init(weights, rules, ids=ids)
    trainable, frozen = then.init(weights, rules)
    return {**rows, **trainable}, frozen


def combine(
    frozen: tree.Flat, trainable: tree.Flat, *, ids: Mapping[str, Sequence[int]], then: Any
) -> tree.Flat:
    """The whole weights: those of `then`, with the trained rows written over its tables."""
    rows, others = tree.split(trainable, textual_inversion.is_row)
    return textual_inversion.combine(then.combine(frozen, others), rows, ids=ids)
