"""The optimizer: clipping, an update rule by name, the learning rate over optimizer steps."""

from dreambooth_jax.optim.rules import (
    LR_SCHEDULES,
    OPTIMIZERS,
    OptimSettings,
    average,
    evaluated,
    is_text,
    keeps_average,
    lr_schedule,
    make,
)

__all__ = [
    "LR_SCHEDULES",
    "OPTIMIZERS",
    "OptimSettings",
    "average",
    "evaluated",
    "is_text",
    "keeps_average",
    "lr_schedule",
    "make",
]
