"""The subject's source of the train loop: photo rows and class rows, a function of the step."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dreambooth_jax import rng


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures as the network sees them, float32 `[N,H,W,C]`, and what belongs to each.

    mean: pixels in [-1, 1], or the mean of their latents; std: these latents' standard deviation.
    prompt: int32 `[N]`, the row of its prompt.
    low_res: an upscaler's low-res pictures `[N,h,w,C]`.
    sizes: `[N,6]`, where each was cut from, for models that are told (`Photos.sizes`).
    pixel_weights: of the loss `[N,H,W,1]`; None is 1 everywhere.
    """

    mean: np.ndarray
    prompt: np.ndarray
    low_res: np.ndarray | None = None
    std: np.ndarray | None = None
    sizes: np.ndarray | None = None
    pixel_weights: np.ndarray | None = None

    def take(self, rows: Sequence[int]) -> "Pictures":
        """These rows alone, in this order."""
        at = np.array(rows, np.int64)

        def of(x: np.ndarray | None) -> np.ndarray | None:
            return None if x is None else x[at]

        return Pictures(
            self.mean[at],
            self.prompt[at],
            low_res=of(self.low_res),
            std=of(self.std),
            sizes=of(self.sizes),
            pixel_weights=of(self.pixel_weights),
        )

    def with_mirrored(self, sizes: np.ndarray | None = None) -> "Pictures":
        """These pictures, then the same mirrored left to right (pixels alone: no latents).

        sizes: `[N,6]` of the mirrored ones, where these have sizes (`Photos.sizes`).
        """

        def doubled(x: np.ndarray | None) -> np.ndarray | None:
            return None if x is None else np.concatenate([x, x[:, :, ::-1]])

        if (self.sizes is None) != (sizes is None):
            raise ValueError(
                "sizes: expected of mirrored pictures where these have some, else none"
            )
        return Pictures(
            np.concatenate([self.mean, self.mean[:, :, ::-1]]),
            np.tile(self.prompt, 2),
            low_res=doubled(self.low_res),
            sizes=None if sizes is None else np.concatenate([self.sizes, sizes]),
            pixel_weights=doubled(self.pixel_weights),
        )


def weights_of(masks: np.ndarray, *, shape: tuple[int, int], outside: float) -> np.ndarray:
    """Weights of the loss `[N,h,w,1]` from masks `[N,H,W]` in [0, 1] of the same pictures.

    shape: rows and columns of a sample, h and w.

    1 on the subject, `outside` off it; a pixel of a latent has the mean over its part of the mask.
    With 0 outside nothing holds the background where photos are trained on, and the subject gets no
    surroundings; a small weight keeps both, and the photos' background is hardly learned.
    """
    (rows, columns), (height, width) = shape, masks.shape[1:]
    parts = masks.reshape(len(masks), rows, height // rows, columns, width // columns)
    coarse = parts.mean((2, 4))
    return (outside + (1 - outside) * coarse)[..., None].astype(np.float32)


def split_rows(batch_size: int, *, prior_fraction: float) -> tuple[int, int]:
    """(subject rows, class rows) of a batch: at least one of each, if there are class rows at all.

    Raises:
      ValueError: a batch of one row cannot hold both kinds.
    """
    if prior_fraction == 0:
        return batch_size, 0
    if batch_size < 2:
        raise ValueError(
            f"train.batch_size = {batch_size} leaves no row for class images. Set it to 2 or more, "
            "or prior_loss_weight = 0 to train without prior preservation."
        )
    prior = min(max(round(batch_size * prior_fraction), 1), batch_size - 1)
    return batch_size - prior, prior


@dataclasses.dataclass(frozen=True)
class SubjectBatches:
    """Batches of photos and class images; works for any number of either, and of subjects.

    Each set walks through its pictures in an order shuffled anew each round, so all are seen
    equally often. Subjects take turns, row by row, in the `order` of their places, each once where
    there is none, and with them their classes: `turns[k]` is the place among `classes` of the k-th
    turn's. There are no class rows without `classes`.
    """

    subjects: Sequence[Pictures]
    classes: Sequence[Pictures]
    turns: Sequence[int]
    batch_size: int
    prior_fraction: float
    seed: int
    order: Sequence[int] = ()

    @property
    def prompts(self) -> np.ndarray:
        """The rows of all prompts there are, sorted."""
        return np.unique(np.concatenate([x.prompt for x in (*self.subjects, *self.classes)]))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of one step, all of subjects first.

        `mean` `[B,H,W,C]`, `prompt` `[B]`, `is_prior` `[B]`; for an upscaler `low_res` `[B,h,w,C]`,
        for a latent model `std` `[B,H,W,C]`, for SDXL `sizes` `[B,6]`, where a subject has masks
        `pixel_weights` `[B,H,W,1]`.
        """
        fraction = self.prior_fraction if self.classes else 0
        counts = split_rows(self.batch_size, prior_fraction=fraction)
        first = range(step * counts[0], (step + 1) * counts[0])
        rows = self._walk("subject", self.subjects, self.order or self._each, first)
        if self.classes:
            second = range(step * counts[1], (step + 1) * counts[1])
            rows += self._walk("prior", self.classes, self.turns, second)
        return assembled(rows, np.repeat([False, True], counts))

    @property
    def _each(self) -> Sequence[int]:
        return range(len(self.subjects))

    def _walk(
        self, kind: str, sets: Sequence[Pictures], turns: Sequence[int], places: Iterable[int]
    ) -> list[tuple[Pictures, int]]:
        """These places of an endless walk: `turns` by turns through the sets, each in rounds."""
        found = []
        rounds: dict[tuple[int, int], np.ndarray] = {}
        for place in places:
            cycle, turn = divmod(place, len(turns))
            which = turns[turn]
            # How often this set had its turn before.
            own = cycle * turns.count(which) + [*turns[:turn]].count(which)
            r, i = divmod(own, len(sets[which].mean))
            if (which, r) not in rounds:
                name = f"{kind} {which}" if which else kind
                draw = rng.generator(self.seed, "round", name, r)
                rounds[which, r] = draw.permutation(len(sets[which].mean))
            found.append((sets[which], int(rounds[which, r][i])))
        return found


def assembled(rows: Sequence[tuple[Pictures, int]], is_prior: np.ndarray) -> dict[str, np.ndarray]:
    """A batch of these rows, each one of some pictures; `is_prior` `[B]` says which are class rows.

    What it holds: `SubjectBatches.batch`.
    """
    batch = {
        "mean": np.stack([pictures.mean[i] for pictures, i in rows]),
        "prompt": np.array([pictures.prompt[i] for pictures, i in rows], np.int32),
        "is_prior": is_prior,
    }
    for name in ("low_res", "std", "sizes"):
        found = [(getattr(pictures, name), i) for pictures, i in rows]
        if all(array is not None for array, _ in found):
            batch[name] = np.stack([array[i] for array, i in found])
    if any(pictures.pixel_weights is not None for pictures, _ in rows):
        whole = np.ones((*batch["mean"].shape[1:3], 1), np.float32)
        weights = [(pictures.pixel_weights, i) for pictures, i in rows]
        batch["pixel_weights"] = np.stack([whole if w is None else w[i] for w, i in weights])
    return batch


@dataclasses.dataclass(frozen=True)
class StepTokens:
    """Token ids of the prompts in one step, for a text encoder that is trained.

    tokens: `[P,L]` each, of all prompts (`Stage.tokens`).
    rows: sorted, those of the prompts that training uses at all.
    batch_size: at most so many are read; one shape for all steps.
    """

    tokens: Mapping[str, np.ndarray]
    rows: np.ndarray
    batch_size: int

    def of(self, prompt: np.ndarray) -> dict[str, np.ndarray]:
        """The tokens for rows with these prompts `[B]`, and `token_row` `[B]`, each row's place."""
        used = self.rows if len(self.rows) <= self.batch_size else np.unique(prompt)
        at = np.searchsorted(used, prompt).astype(np.int32)
        read = np.resize(used, min(len(self.rows), self.batch_size))  # repeats fill it up
        return {name: table[read] for name, table in self.tokens.items()} | {"token_row": at}
