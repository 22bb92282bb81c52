"""The subject's source of the train loop: photo rows and class rows, a function of the step."""

import dataclasses

import numpy as np

from dreambooth_jax import rng


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures as the network sees them, float32 `[N,H,W,C]`.

    mean: pixels in [-1, 1], or the mean of their latents; std: these latents' standard deviation.
    low_res: an upscaler's low-res pictures `[N,h,w,C]`.
    sizes: `[N,6]`, where each was cut from, for models that are told (`Subject.sizes`).
    """

    mean: np.ndarray
    low_res: np.ndarray | None = None
    std: np.ndarray | None = None
    sizes: np.ndarray | None = None

    def with_mirrored(self) -> "Pictures":
        """These pictures, then the same mirrored left to right (pixels alone: no latents)."""

        def doubled(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, x[:, :, ::-1]])

        low_res = None if self.low_res is None else doubled(self.low_res)
        sizes = self.sizes
        if sizes is not None:
            # What lay right of the window lies left of it now.
            height, width, _, left, _, side = sizes.T
            other = sizes.copy()
            other[:, 3] = np.maximum(np.round(width * side / np.minimum(height, width)), side)
            other[:, 3] = np.maximum(other[:, 3] - side - left, 0)
            sizes = np.concatenate([sizes, other])
        return Pictures(doubled(self.mean), low_res, sizes=sizes)


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
    """Batches of photos and class images; works for any number of either.

    Each kind walks through its pictures in an order shuffled anew each round, so all are seen
    equally often.
    """

    subject: Pictures
    prior: Pictures | None
    batch_size: int
    prior_fraction: float
    instance_row: int
    class_row: int
    seed: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of one step, all of the subject first.

        `mean` `[B,H,W,C]`, `prompt` `[B]`, `is_prior` `[B]`; for an upscaler `low_res` `[B,h,w,C]`,
        for a latent model `std` `[B,H,W,C]`, for SDXL `sizes` `[B,6]`.
        """
        fraction = 0 if self.prior is None else self.prior_fraction
        counts = split_rows(self.batch_size, prior_fraction=fraction)
        kinds = [(self.subject, self._walk("subject", len(self.subject.mean), step, counts[0]))]
        if self.prior is not None:
            kinds.append((self.prior, self._walk("prior", len(self.prior.mean), step, counts[1])))
        is_prior = np.repeat([False, True], counts)
        batch = {
            "mean": np.concatenate([kind.mean[rows] for kind, rows in kinds]),
            "prompt": np.where(is_prior, self.class_row, self.instance_row).astype(np.int32),
            "is_prior": is_prior,
        }
        for name in ("low_res", "std", "sizes"):
            found = [getattr(kind, name) for kind, _ in kinds]
            if all(array is not None for array in found):
                parts = [array[rows] for array, (_, rows) in zip(found, kinds, strict=True)]
                batch[name] = np.concatenate(parts)
        return batch

    def _walk(self, kind: str, size: int, step: int, count: int) -> np.ndarray:
        """Positions step·count … of an endless walk through rounds of `size` shuffled pictures."""
        places = np.arange(step * count, (step + 1) * count)
        rounds = {
            r: rng.generator(self.seed, "round", kind, int(r)).permutation(size)
            for r in set(places // size)
        }
        return np.array([rounds[place // size][place % size] for place in places], np.int64)
