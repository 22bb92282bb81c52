"""The class images that a run trains on: drawn by the base, or the user's own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dreambooth_jax.data import photos
from dreambooth_jax.data.audit import Audit
from dreambooth_jax.data.photos import Photos
from dreambooth_jax.data.prior import Prior
from dreambooth_jax.data.subject import Words


@dataclasses.dataclass(frozen=True)
class ClassImages:
    """M class images of one class noun: `pixels[size]` is uint8 [M, size, size, 3].

    `row_prompts` are theirs. `redone` of the drawn ones came out empty at first; `own` are
    those of a folder of the user's.
    """

    class_noun: str
    class_prompt: str
    pixels: Mapping[int, np.ndarray]
    row_prompts: tuple[str, ...]
    redone: int = 0
    own: Photos | None = None

    def __len__(self) -> int:
        return len(self.row_prompts)

    def sizes(self, size: int) -> np.ndarray:
        """See `Photos.sizes`; a drawn picture is whole."""
        if self.own is not None:
            return self.own.sizes(size)
        return np.tile(np.array([size, size, 0, 0, size, size], np.float32), (len(self), 1))


def drawn(made: Prior, words: Words) -> ClassImages:
    """What the untouched base drew of the class, by `prior.make_or_reuse`."""
    stages = [made.images] if made.low_res is None else [made.low_res, made.images]
    return ClassImages(
        class_noun=words.class_noun,
        class_prompt=words.class_prompt,
        pixels={pictures.shape[1]: pictures for pictures in stages},
        row_prompts=(words.class_prompt,) * len(made.images),
        redone=made.redone,
    )


def of_audit(report: Audit, words: Words, **how: Any) -> ClassImages:
    """The class images of a folder; one without a caption has the class prompt.

    how: that of `photos.cut`; `max_photos` is how many at most.
    """
    named = {"class_noun": words.class_noun}
    found = photos.cut(report, prompt=words.class_prompt, words=named, **how)
    return ClassImages(
        class_noun=words.class_noun,
        class_prompt=words.class_prompt,
        pixels=found.pixels,
        row_prompts=tuple(found.row_prompts),
        own=found,
    )
