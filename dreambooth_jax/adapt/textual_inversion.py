"""Textual inversion (Gal et al. 2022): nothing is trained but the embeddings of new tokens.

Ruiz et al. 2022 compare with it. A new token's row is written into the table of token embeddings,
which has room for it already (`experiment.subjects.with_new_words`).
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from dreambooth_jax import kernels, tree

ROWS = "new_rows"


def is_row(path: str) -> bool:
    """Returns True for a trainable leaf that holds rows of new tokens."""
    return path.endswith(f"/{ROWS}")


def init(
    weights: tree.Flat, rules: Sequence[tuple[str, bool]], *, ids: Mapping[str, Sequence[int]]
) -> tuple[tree.Flat, tree.Flat]:
    """(trainable, frozen): the rows `ids[path]` of each table, `[n,D]`; all weights stay frozen.

    Args:
      rules: not used; nothing else is trained.
    """
    del rules
    rows = {
        f"{path}/{ROWS}": tree.host(
            jnp.asarray(weights[path])[jnp.asarray(places)].astype(jnp.float32)
        )
        for path, places in ids.items()
    }
    return rows, dict(weights)


def combine(
    frozen: tree.Flat, trainable: tree.Flat, *, ids: Mapping[str, Sequence[int]]
) -> tree.Flat:
    """The whole weights, with the trained rows beside their tables (`kernels.NewRows`)."""
    weights = dict(frozen)
    for path, places in ids.items():
        weights[path] = kernels.with_rows(frozen[path], trainable[f"{path}/{ROWS}"], places)
    return weights
