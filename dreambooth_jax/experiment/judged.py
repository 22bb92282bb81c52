"""What the judges of a run found."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.evaluate.encoders import Distance, Features
from dreambooth_jax.evaluate.scores import Score
from dreambooth_jax.experiment.painter import Grid


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
class Worth:
    """What one grid of pictures is worth, by one encoder.

    similarity: of the subjects' pictures to their photos; moved: 1 − the mean similarity of class
    pictures to those of the untouched model; None where no prompt shows the class alone.
    """

    similarity: float
    moved: float | None
