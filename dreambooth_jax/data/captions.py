"""The captioned source of the train loop: any number of (picture, caption) pairs, drawn by step.

A base model is trained on it; the subject's source (`batches.py`) has the same face: `prompts` and `batch(step)`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dreambooth_jax import rng
from dreambooth_jax.data import images


@dataclasses.dataclass(frozen=True)
class Captions:
    """Batches of captioned pictures.

    render: index -> (uint8 `[H,W,3]`, caption); every caption is one of `prompts`, whose first entry is "".
    size: pixels along a side of what the stage makes; low_size: of the low-res picture beside it, or None.
    drop: share of rows whose caption is replaced by "", for classifier-free guidance (Ho & Salimans 2022).
    """

    render: Callable[[int], tuple[np.ndarray, str]]
    prompts: Sequence[str]
    batch_size: int
    seed: int
    low_size: int | None = None
    drop: float = 0.1

    def __post_init__(self) -> None:
        if not self.prompts or self.prompts[0] != "":
            raise ValueError('Captions: prompts must begin with "" (the caption of the dropped rows).')
        object.__setattr__(self, "_row", {prompt: row for row, prompt in enumerate(self.prompts)})

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of step `step`: a function of (seed, step) alone. Fresh pictures in every batch."""
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
