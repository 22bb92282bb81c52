"""The class images that a run trains on: drawn by the base, or the user's own."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.data.audit import Audit
from dreambooth_jax.data.images import Size, sides
from dreambooth_jax.data.photos import Cuts, Photos
from dreambooth_jax.data.prior import Prior
from dreambooth_jax.data.subject import Words


@dataclasses.dataclass(frozen=True)
class ClassImages:
    """M class images of one class noun: `pixels[h, w]` is uint8 [M, h, w, 3].

    Of several shapes drawn ones are of one each, M in all, and those of a folder are cut at each.
    `row_prompts` are theirs. `redone` of the drawn ones came out empty at first; `own` are
    those of a folder of the user's.
    """

    class_noun: str
    class_prompt: str
    pixels: Mapping[Size, np.ndarray]
    row_prompts: tuple[str, ...]
    redone: int = 0
    own: Photos | None = None

    def __len__(self) -> int:
        return len(self.row_prompts)

    def at(self, size: Size) -> "ClassImages":
        """Returns those that have pictures of this size, with these pictures alone."""
        rows = self.pixels[size]
        prompts = self.row_prompts[: len(rows)]  # all are the same where these are fewer
        return dataclasses.replace(self, pixels={size: rows}, row_prompts=prompts)

    @property
    def shown(self) -> list[np.ndarray]:
        """Every class image once: of its several sizes the largest."""
        largest = self.pixels[max(self.pixels)]
        if len(largest) == len(self):
            return [*largest]
        return [picture for rows in self.pixels.values() for picture in rows]

    def sizes(self, size: int | Size) -> np.ndarray:
        """See `Photos.sizes`; a drawn picture is whole."""
        if self.own is not None:
            return self.own.sizes(size)
        height, width = sides(size)
        told = np.array([height, width, 0, 0, height, width], np.float32)
        return np.tile(told, (len(self), 1))


def drawn(made: Sequence[Prior], words: Words) -> ClassImages:
    """Class images drawn by the untouched base, by `prior.make_or_reuse`, of one or more shapes."""
    stages = [x for each in made for x in (each.low_res, each.images) if x is not None]
    return ClassImages(
        class_noun=words.class_noun,
        class_prompt=words.class_prompt,
        pixels={sides(pictures.shape[1:3]): pictures for pictures in stages},
        row_prompts=(words.class_prompt,) * sum(len(each.images) for each in made),
        redone=sum(each.redone for each in made),
    )


def of_audit(report: Audit, cuts: Cuts, words: Words) -> ClassImages:
    """The class images of a folder; one without a caption has the class prompt."""
    named = {"class_noun": words.class_noun}
    found = cuts.photos(report, prompt=words.class_prompt, words=named)
    return ClassImages(
        class_noun=words.class_noun,
        class_prompt=words.class_prompt,
        pixels=found.pixels,
        row_prompts=tuple(found.row_prompts),
        own=found,
    )
