"""The shapes that a run's photos are cut to, and how often each is shown."""

import collections
import math
from collections.abc import Sequence

from dreambooth_jax import config as configs
from dreambooth_jax.config import Plan
from dreambooth_jax.config.plan import Settings
from dreambooth_jax.data import images, shapes
from dreambooth_jax.data.audit import Audit
from dreambooth_jax.data.images import Size
from dreambooth_jax.pipeline import Stage

# Sides of a large model's pictures are multiples of so many pixels, as SDXL's were in its training.
_STEP = 64


def chosen(plan: Plan, stage: Stage) -> tuple[Size, ...]:
    """Returns the shapes that photos are cut to, of about the area of the stage's pictures.

    () where all have the stage's own.

    Raises:
      ValueError: the model can make no other shape of this area.
    """
    if not plan.data.buckets:
        return ()
    multiple = math.lcm(stage.frame.multiple, _STEP)
    if min(stage.size) < 8 * multiple or any(side % multiple for side in stage.size):
        multiple = stage.frame.multiple
    found = shapes.of_area(
        stage.size, multiple=multiple, count=plan.data.buckets, most=stage.frame.most
    )
    if len(found) == 1 < plan.data.buckets:
        most = "" if stage.frame.most is None else f" up to {stage.frame.most}"
        raise ValueError(
            f"data.buckets = {plan.data.buckets}: {stage.folder} makes pictures whose sides are "
            f"multiples of {stage.frame.multiple}{most} pixels, and none of them is a shape beside "
            f"{images.told(stage.size)} of its area. Write --config.data.buckets=0, or a "
            "larger --config.resolution."
        )
    return found


def weights(plan: Settings, reports: Sequence[Audit]) -> list[dict[Size, int]]:
    """Returns the weight of each shape for each subject (`data.shapes.weights`).

    By the photos that are trained on.
    """
    learned = [each.kept[: len(each.kept) - plan.subject.held_out] for each in reports]
    counts = [collections.Counter(p.shape for p in kept if p.shape) for kept in learned]
    return shapes.weights(counts)


def by_noun(plan: Plan, photos: Sequence[Audit]) -> dict[str, dict[Size, int]]:
    """Returns the weight of each shape among a class noun's rows, from tall to wide.

    None where photos have one shape.
    """
    found: dict[str, dict[Size, int]] = {noun: {} for noun in configs.class_shares(plan)}
    if not plan.data.buckets:
        return found
    of_subjects = weights(plan, photos)
    for (_, noun, _), each in zip(configs.subjects(plan), of_subjects, strict=True):
        for size in sorted(each, key=lambda size: size[1] / size[0]):
            found[noun][size] = found[noun].get(size, 0) + each[size]
    return found
