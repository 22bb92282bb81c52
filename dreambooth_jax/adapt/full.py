"""Full fine-tuning: the leaves that a regex table chooses are trained themselves.

This is what Ruiz et al. 2022 do (section 3.3).
"""

from collections.abc import Sequence

from dreambooth_jax import tree


def init(weights: tree.Flat, rules: Sequence[tuple[str, bool]]) -> tuple[tree.Flat, tree.Flat]:
    """(trainable, frozen): first match wins, every leaf must match.

    Raises:
      ValueError: a leaf that no rule matches, or nothing left to train.
    """
    trainable, frozen = tree.split(
        weights, lambda path: tree.first_match(path, rules, what="adapt.train")
    )
    if not trainable:
        raise ValueError(
            f"adapt.train = {tuple(rules)} chooses none of the {len(weights)} leaves: "
            "nothing to train."
        )
    return trainable, frozen


def combine(frozen: tree.Flat, trainable: tree.Flat) -> tree.Flat:
    """The whole weights: trained leaves put back beside the frozen ones."""
    return {**frozen, **trainable}
