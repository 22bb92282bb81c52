"""Training one stage: the pure step, its compilation over a mesh, and the loop.

loss_fn → train_step (pure) → compiled (jit with shardings, the state donated) → fit (the loop)
"""

from dreambooth_jax.train.held_out import HeldOutLoss
from dreambooth_jax.train.loop import (
    Hooks,
    Interrupted,
    Log,
    NonFiniteError,
    Pace,
    fit,
    leave_if_asked,
    result,
)
from dreambooth_jax.train.profile import Profile
from dreambooth_jax.train.step import (
    Batch,
    Compiled,
    Recipe,
    TrainState,
    compiled,
    draw,
    gradients,
    initial_state,
    loss_fn,
    rows_of,
    train_step,
)

__all__ = [
    "Batch",
    "Compiled",
    "HeldOutLoss",
    "Hooks",
    "Interrupted",
    "Log",
    "NonFiniteError",
    "Pace",
    "Profile",
    "Recipe",
    "TrainState",
    "compiled",
    "draw",
    "fit",
    "gradients",
    "initial_state",
    "leave_if_asked",
    "loss_fn",
    "result",
    "rows_of",
    "train_step",
]
