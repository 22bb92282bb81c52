"""The optimizer: clipping, an update rule by name, learning rates and phases over its steps."""

from dreambooth_jax.optim.phases import Phase, active, masked, owner
from dreambooth_jax.optim.rules import (
    LR_SCHEDULES,
    OPTIMIZERS,
    OptimSettings,
    average,
    evaluated,
    keeps_average,
    lr_schedule,
    make,
)

__all__ = [
    "LR_SCHEDULES",
    "OPTIMIZERS",
    "OptimSettings",
    "Phase",
    "active",
    "average",
    "evaluated",
    "keeps_average",
    "lr_schedule",
    "make",
    "masked",
    "owner",
]
