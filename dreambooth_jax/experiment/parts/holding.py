"""The dtypes in which a run holds its weights: `adapt.frozen_dtype`, by leaf."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dreambooth_jax import adapt, kernels, pipeline, sharding, tree, weights
from dreambooth_jax import config as configs
from dreambooth_jax.adapt import Adapter, frozen
from dreambooth_jax.config import Plan
from dreambooth_jax.pipeline import Stage


def frozen_dtype(plan: Plan, stage: Stage) -> Callable[[str], str]:
    """`adapt.frozen_dtype` by path; "float32" for leaves that are trained themselves."""
    if stage.kind not in plan.trained or adapt.keeps_base(plan.adapt):
        return lambda path: plan.adapt.frozen_dtype
    own = plan.stages[stage.kind]
    rules = configs.trainable_rules(
        own, denoiser=stage.denoiser.component, text=stage.conditioner.trainable_pattern
    )

    def named(path: str) -> str:
        trained = tree.first_match(path, rules, what="adapt.train")
        return "float32" if trained else plan.adapt.frozen_dtype

    return named


def kept(stage: Stage) -> str:
    """Regex of the leaves that are never in 8 bits: the family's, and all of the codec.

    Errors of a codec's weights are seen in every picture.
    """
    codec = stage.codec.component
    return stage.family.kept if codec is None else f"{codec}/.*|{stage.family.kept}"


def holder(plan: Plan, stage: Stage) -> Callable[[str, np.ndarray], Any]:
    """Returns the leaf in the dtype in which it is held, from path and array."""
    named = frozen_dtype(plan, stage)
    return lambda path, array: frozen.held(path, array, named(path), kept=kept(stage))


def shapes(plan: Plan, stage: Stage) -> tree.Flat:
    """Shapes and dtypes of a stage's weights as they are held; reads headers of files at most.

    Where the files are not here, they are taken to be in their variant's dtype, else float32.
    """
    named = frozen_dtype(plan, stage)
    own = {
        part: weights.dtype_of_files(stage.folder / part, stage.variant) for part in stage.networks
    }
    return {
        path: frozen.abstract(
            path, leaf, own[path.partition("/")[0]], named(path), kept=kept(stage)
        )
        for path, leaf in stage.abstract.items()
    }


def exact(
    plan: Plan, stage: Stage, now: tree.Flat, adapter: Adapter, trained: tree.Flat
) -> tree.Flat:
    """The weights to export: each leaf an array, the base as precise as its files.

    Where `adapt.frozen_dtype` has rounded the base, its files are read again.

    Args:
      stage: without new words.
      now: the weights as they are held, with what was trained.
      trained: of this stage; empty where it was not fine-tuned.
    """
    if not frozen.rounds(plan.adapt.frozen_dtype):
        return kernels.all_fused(now)
    base = pipeline.read_weights(stage)
    for path, leaf in now.items():
        table = leaf.table if isinstance(leaf, kernels.NewRows) else leaf
        if tuple(table.shape) != base[path].shape:  # has rows for new words
            longer = np.zeros(table.shape, np.float32)
            longer[: len(base[path])] = base[path]
            longer[len(base[path]) :] = np.asarray(table)[len(base[path]) :]
            base[path] = longer
    host = {path: sharding.fetch(leaf) for path, leaf in trained.items()}
    return kernels.all_fused(adapter.combine(base, host) if trained else base)
