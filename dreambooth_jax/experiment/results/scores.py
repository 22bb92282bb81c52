"""The scores of a run and of its prompt grids."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.evaluate.encoders import Distance, Features
from dreambooth_jax.evaluate.scores import Score
from dreambooth_jax.experiment.parts.grids import Grid


@dataclasses.dataclass(frozen=True)
class Judged:
    """The scores of a run, and the grids that they are of, by name of the weights.

    judges: those that gave them, whose programs are compiled; photos: of each subject.
    """

    scores: Sequence[Score]
    grids: Mapping[str, Grid]
    judges: Sequence[Features | Distance]
    photos: Sequence[Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class GridScore:
    """The score of one grid of pictures, by one encoder.

    subject_similarity: of the subjects' pictures to their photos; class_drift: 1 − the mean
    similarity of class pictures to those of the untouched model; None where no prompt shows the
    class alone.
    """

    subject_similarity: float
    class_drift: float | None
