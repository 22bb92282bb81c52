"""The base model on the mesh: opening, loading, and the fingerprint of a run's inputs."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding

from dreambooth_jax import config as configs
from dreambooth_jax import families, generate, hosts, pipeline, sharding, tree
from dreambooth_jax.config import Plan
from dreambooth_jax.data import images
from dreambooth_jax.experiment.parts import holding
from dreambooth_jax.experiment.parts.model import Model, as_tuned, settings_of
from dreambooth_jax.pipeline import Stage


@dataclasses.dataclass(frozen=True)
class Opened:
    """A base model that several runs share: its stages, weights, and samplers once compiled."""

    stages: Mapping[str, Stage]
    model: Model
    samplers: dict[tuple[str, bool], generate.Sampler]


def open_stages(plan: Plan, *, shapes_only: bool = False) -> dict[str, Stage]:
    """The stages of the base model, without weights (`families.open_stage` tells of `shapes_only`).

    Raises:
      FileNotFoundError, ValueError: which file or value is missing or not supported, or that the
        stages do not fit together.
    """
    reading: dict[str, Any] = {
        "shapes_only": shapes_only,
        "variant": plan.variant or None,
        "cache_dir": plan.hub.cache_dir or None,
        "offline": plan.hub.offline,
    }
    changes = families.Changes(plan.base_settings, plan.vae_model, plan.clip_skip)
    base = families.open_stage(plan.base_model, kind="base", changes=changes, **reading)
    stages = {"base": base}
    if plan.upscaler_model and stages["base"].codec.is_latent:
        raise ValueError(
            f"upscaler_model = {plan.upscaler_model!r}: the base model {plan.base_model!r} "
            'makes its pictures at full size. Write --config.upscaler_model="" and '
            "--config.stages=\"('base',)\"."
        )
    if plan.upscaler_model:
        stages["upscaler"] = families.open_stage(plan.upscaler_model, kind="upscaler", **reading)
    stages = _at(plan.resolution, stages)
    _check_negative(plan, stages)
    # Raises where a stage cannot be trained as asked.
    tuned = {kind: as_tuned(plan, stages[kind]) for kind in plan.trained}
    settings = {kind: settings_of(plan, stage) for kind, stage in stages.items()}
    for drawn in (stages, {**stages, **tuned}):
        generate.check(drawn, settings)
    return stages


def _at(resolution: pipeline.Resolution | None, stages: dict[str, Stage]) -> dict[str, Stage]:
    """The stages with pictures of that size; the second one enlarges as its model does.

    Raises:
      ValueError: a stage cannot make that size, or the second one does not enlarge.
    """
    base = stages["base"].at(resolution)
    if "upscaler" not in stages:
        return {"base": base}
    small, large = stages["base"].size, stages["upscaler"].size
    told = [images.told(size) for size in (large, small)]
    if large[0] <= small[0] or large[0] * small[1] != large[1] * small[0]:
        raise ValueError(
            f"upscaler_model makes {told[0]} pixels from the base's {told[1]}: it must make more, "
            "of the same shape."
        )
    if resolution is None:
        return stages
    # From the base's side, so that a message names that setting's own numbers.
    whole, rest = zip(*(divmod(side * large[0], small[0]) for side in base.size), strict=True)
    multiple = stages["upscaler"].frame.multiple
    if any(rest) or any(side % multiple for side in whole):
        raise ValueError(
            f"resolution = {resolution}: the upscaler enlarges {told[1]} pixels to {told[0]}, and "
            f"makes multiples of {multiple}. Write another resolution, or leave it out."
        )
    return {"base": base, "upscaler": stages["upscaler"].at(whole)}


def _check_negative(plan: Plan, stages: Mapping[str, Stage]) -> None:
    """Raises ValueError for a negative prompt that no stage's guidance leads away from."""
    asked = {
        "sample.negative_prompt": plan.sample.negative_prompt,
        "prior.negative_prompt": plan.prior.negative_prompt,
    }
    keys = [key for key, prompt in asked.items() if prompt]
    if not keys:
        return
    scales = {kind: float(plan.stages[kind].sampler.guidance_scale) for kind in stages}
    if not any(generate.is_guided(stage, scales[kind]) for kind, stage in stages.items()):
        free = stages["base"].family.guidance == "classifier_free"
        why = "sampler.guidance_scale is 1" if free else "this model predicts with the prompt alone"
        instead = "Write --config.sampler.guidance_scale=5.0, or" if free else "Write"
        raise ValueError(
            f"{keys[0]} = {asked[keys[0]]!r}: expected none, because {why} and nothing leads away "
            f'from it. {instead} --config.{keys[0]}="".'
        )


def make_mesh(plan: Plan, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh that the settings ask for, over all devices or these.

    An open `mesh.data` takes as many as the rows of all trained stages divide over.

    Raises:
      ValueError: its sizes do not fit their number.
    """
    over: dict[str, Any] = {} if devices is None else {"devices": devices}
    return sharding.make_mesh(**dataclasses.asdict(plan.mesh), rows=rows_of(plan), **over)


def rows_of(plan: Plan) -> int:
    """Returns a number of rows that divides those of every trained stage's forward pass."""
    return math.gcd(*(own.train.rows_at_once for own in plan.to_train))


def load(plan: Plan, stages: Mapping[str, Stage]) -> Model:
    """Reads the weights, each leaf straight to its place; logs where each kind of leaf went.

    Raises:
      Disagreement: not all hosts have the same weights.
    """
    mesh = make_mesh(plan)
    weights, fingerprints = {}, {}
    for kind, stage in stages.items():
        by_path = places(plan, stage, mesh)
        tell_places(plan, kind, stage, mesh)
        hold = holding.holder(plan, stage)
        weights[kind], fingerprints[kind] = load_stage(
            stage, by_path, "" if configs.learns_text(plan) else stage.drawing, hold=hold
        )
    hosts.agree(
        "the base model's weights", fingerprints, remedy="Give every host the same model files."
    )
    return Model(stages, weights, fingerprints, mesh)


def places(plan: Plan, stage: Stage, mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns the sharding of each leaf of a stage's weights."""
    return sharding.shardings(holding.shapes(plan, stage), **_how(plan, stage, mesh))


def tell_places(plan: Plan, kind: str, stage: Stage, mesh: Mesh) -> None:
    """Logs where each kind of leaf goes, and which ones cannot be split as they should."""
    table = sharding.table(stage.abstract, places(plan, stage, mesh))
    level = logging.INFO if mesh.size > 1 else logging.DEBUG  # on one device nothing is split
    how = sharding.describe(mesh)
    logging.log(level, "%s: where its weights go (%s)\n%s", kind, how, table)
    if whole := sharding.left_whole(stage.abstract, **_how(plan, stage, mesh)):
        logging.warning("%s: %s", kind, whole)


def _how(plan: Plan, stage: Stage, mesh: Mesh) -> dict[str, Any]:
    return {
        "rules": plan.sharding.rules or stage.family.sharding_rules,
        "mesh": mesh,
        "min_bytes": plan.sharding.min_bytes,
        "heads": stage.heads,
    }


def load_stage(
    stage: Stage,
    by_path: Mapping[str, Any],
    starts: str | tuple[str, ...] = "",
    *,
    hold: Callable[[str, np.ndarray], Any] = lambda path, array: array.astype(np.float32),
) -> tuple[tree.Flat, str]:
    """The weights of a stage and their fingerprint, that of their float32 values in the files.

    A leaf whose path starts so goes onto its sharding as soon as it is read and in the dtype that
    `hold` gives it, so that the host never holds two of all; the others stay there.
    """
    digests = {}

    def place(path: str, leaf: np.ndarray) -> Any:
        digests[path] = tree.digest(path, leaf.astype(np.float32, copy=False))
        leaf = hold(path, leaf)
        return jax.tree.map(sharding.put, leaf, by_path[path]) if path.startswith(starts) else leaf

    flat = pipeline.read_weights(stage, put=place, own_dtype=True)
    return flat, tree.combined(digests)


# What `settings_of_run` has of files, beside settings and the base model.
OF_FILES = ("photos", "captions", "masks", "class_images", "assistant")


def settings_of_run(plan: Plan, model: Model, files: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all that determines the trained weights: settings, fingerprints of base and files.

    files: by the names in `OF_FILES` (`subjects.prints`, `class_images.prints`).
    """
    return {
        "config": dict(plan.flat),
        "base": dict(model.fingerprints),
        **files,
    }
