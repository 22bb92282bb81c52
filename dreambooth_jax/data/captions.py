"""The captioned source of the train loop: any number of (picture, caption) pairs, drawn by step.

A base model is trained on it; the subject's source (`batches.py`) has the same face, `batch(step)`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from dreambooth_jax import rng
from dreambooth_jax.data import images


@dataclasses.dataclass(frozen=True)
class Captions:
    """Batches of captioned pictures.

    render: index -> (uint8 `[H,W,3]`, caption), the caption one of `prompts`.
    prompts: every caption there is; the first is "".
    low_size: pixels along a side of the low-res picture beside each, or None.
    drop: share of rows whose caption becomes "", for classifier-free guidance (Ho & Salimans 2022).
    """

    render: Callable[[int], tuple[np.ndarray, str]]
    prompts: Sequence[str]
    batch_size: int
    seed: int
    low_size: int | None = None
    drop: float = 0.1

    def __post_init__(self) -> None:
        if not self.prompts or self.prompts[0] != "":
            raise ValueError(
                'Captions: prompts must begin with "" (the caption of the dropped rows).'
            )

    @functools.cached_property
    def _row(self) -> dict[str, int]:
        return {prompt: row for row, prompt in enumerate(self.prompts)}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of one step, a function of (seed, step) alone; each batch has fresh pictures."""
        drawn = rng.generator(self.seed, "captions", step)
        pairs = [self.render(step * self.batch_size + i) for i in range(self.batch_size)]
        pictures = np.stack([picture for picture, _ in pairs])
        rows = np.array([self._row[caption] for _, caption in pairs], np.int32)
        batch = {
            "mean": images.to_float(pictures),
            "prompt": np.where(drawn.random(self.batch_size) < self.drop, 0, rows).astype(np.int32),
            "is_prior": np.zeros(self.batch_size, bool),
        }
        if self.low_size is not None:
            factor = pictures.shape[1] // self.low_size
            shape = (self.batch_size, self.low_size, factor, self.low_size, factor, 3)
            batch["low_res"] = batch["mean"].reshape(shape).mean((2, 4))
        return batch
