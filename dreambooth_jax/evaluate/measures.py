"""Means over pictures and over pairs of pictures, each with a bootstrap interval (Efron 1979).

Drawn again are the prompts, then the pictures of each prompt, and the photos: what would differ if
somebody else had chosen them. Pictures of one prompt are not independent, so they move together.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean, the bounds of its interval, and over how many numbers it was taken."""

    value: float
    low: float
    high: float
    n: int


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarities float64 `[N,M]` of features `[N,D]` and `[M,D]`; 0 with a zero row."""

    def unit(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64)
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        return x / np.where(length == 0, 1, length)

    return unit(a) @ unit(b).T


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Bootstrap intervals: percentiles of the mean over `resamples` draws with replacement."""

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95

    def between(self, values: np.ndarray, groups: Sequence[Hashable]) -> Estimate:
        """Mean of `[N,M]` values of pictures × photos; `groups` are the pictures' prompts."""
        rng = self._rng()
        rows, columns = self._counts(rng, groups), self._counts(rng, [0] * values.shape[1])
        return self._estimate(values, np.ones(values.shape, bool), rows, columns)

    def within(self, values: np.ndarray, groups: Sequence[Hashable]) -> Estimate:
        """Mean of the pairs `[N,N]` of different pictures in the same group; symmetric values.

        Raises:
          ValueError: no group has two pictures.
        """
        index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        label = np.array([index[group] for group in groups])
        same = label[:, None] == label[None, :]
        return self.masked(values, same & ~np.eye(len(label), dtype=bool), groups)

    def masked(self, values: np.ndarray, pairs: np.ndarray, groups: Sequence[Hashable]) -> Estimate:
        """Mean of those pairs `[N,N]` where the symmetric `pairs` is True, each counted once."""
        rows = self._counts(self._rng(), groups)
        found = self._estimate(values, pairs, rows, rows)
        return found._replace(n=found.n // 2)

    def each(self, values: np.ndarray, groups: Sequence[Hashable]) -> Estimate:
        """Mean of one value `[N]` per picture; `groups` are the pictures' prompts."""
        rows = self._counts(self._rng(), groups)
        return self._estimate(
            values[:, None], np.ones((len(values), 1), bool), rows, np.ones((self.resamples, 1))
        )

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def _counts(self, rng: np.random.Generator, groups: Sequence[Hashable]) -> np.ndarray:
        """Counts how often each member is drawn, `[resamples, N]`: groups, then members of each."""
        names = list(dict.fromkeys(groups))
        chosen = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), self.resamples)
        counts = np.zeros((self.resamples, len(groups)))
        for column, name in enumerate(names):
            members = [i for i, group in enumerate(groups) if group == name]
            share = np.full(len(members), 1 / len(members))
            counts[:, members] = rng.multinomial(chosen[:, column] * len(members), share)
        return counts

    def _estimate(
        self, values: np.ndarray, counted: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> Estimate:
        """The mean of the values that are counted, weighted by how often row and column came."""
        if not counted.any():
            raise ValueError("there is no pair of pictures to take a mean over.")
        values = np.where(counted, np.asarray(values, np.float64), 0)
        total = ((rows @ values) * columns).sum(-1)
        weight = ((rows @ counted) * columns).sum(-1)
        means = total[weight > 0] / weight[weight > 0]  # a draw of one picture alone has no pair
        value = float(values.sum() / counted.sum())
        tail = 100 * (1 - self.level) / 2
        low, high = np.percentile(means, [tail, 100 - tail]) if len(means) else (value, value)
        return Estimate(value, float(low), float(high), int(counted.sum()))
