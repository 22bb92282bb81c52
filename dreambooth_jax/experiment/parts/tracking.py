"""The pictures of a run in its trackers: by prompt, at their step over all stages."""

from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.config import Plan
from dreambooth_jax.experiment.parts.workdir import Workdir


def write(
    plan: Plan, workdir: Workdir, label: str, cells: Mapping[str, Sequence[np.ndarray]]
) -> None:
    """Gives the pictures of a grid, uint8 [H,W,3] by prompt, to the run's writers."""
    step = step_of(plan, label)
    if step is not None:
        pictures = {f"samples/{prompt}": np.stack(row) for prompt, row in cells.items()}
        workdir.writer.write_images(step, pictures)
        workdir.writer.write_texts(step, {"prompts": "\n".join(cells)})


def step_of(plan: Plan, label: str) -> int | None:
    """Returns the step of a grid over all stages, one after the other; None for other labels."""
    total = 0
    for own in plan.to_train:
        kind, _, step = label.rpartition("-")
        if kind == own.kind and step.isdigit():
            return total + int(step)
        total += own.train.num_steps
    return {"before": 0, "after": total}.get(label)
