"""What a run starts from: the base model on the mesh, and what its weights depend on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from dreambooth_jax import config as configs
from dreambooth_jax import hosts, pipeline, sharding, tree
from dreambooth_jax.experiment.model import Model, as_tuned
from dreambooth_jax.pipeline import Stage


def open_stages(config: ConfigDict, *, shapes_only: bool = False) -> dict[str, Stage]:
    """The stages of the base model, without weights (`pipeline.open_stage` tells of `shapes_only`).

    Raises:
      FileNotFoundError, ValueError: which file or value is missing or not supported, or that the
        stages do not fit together.
    """
    reading: dict[str, Any] = {
        "shapes_only": shapes_only,
        "variant": config.variant or None,
        "cache_dir": config.hub.cache_dir or None,
        "offline": config.hub.offline,
    }
    stages = {
        "base": pipeline.open_stage(
            config.base_model, kind="base", resolution=config.resolution, **reading
        )
    }
    if config.upscaler_model and stages["base"].latents:
        raise ValueError(
            f"upscaler_model = {config.upscaler_model!r}: the base model {config.base_model!r} "
            'makes its pictures at full size. Write --config.upscaler_model="" and '
            "--config.stages=\"('base',)\"."
        )
    if config.upscaler_model:
        stages["upscaler"] = pipeline.open_stage(config.upscaler_model, kind="upscaler", **reading)
        small, large = stages["base"].size, stages["upscaler"].size
        if large <= small:
            raise ValueError(
                f"upscaler_model makes {large} pixels from the base's {small}: it must make more."
            )
    for kind in config.stages:
        as_tuned(config, stages[kind])  # raises where a stage cannot be trained as asked
    return stages


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that the settings ask for, over all devices or these.

    Raises:
      ValueError: its sizes do not fit their number.
    """
    over: dict[str, Any] = {} if devices is None else {"devices": devices}
    return sharding.make_mesh(**config.mesh.to_dict(), **over)


def load(config: ConfigDict, stages: Mapping[str, Stage]) -> Model:
    """Reads the weights, each leaf straight to its place; logs where each kind of leaf went.

    Raises:
      Disagreement: not all hosts have the same weights.
    """
    mesh = make_mesh(config)
    starts = "" if configs.learns_text(config) else ("unet/", "vae/")
    weights, fingerprints = {}, {}
    for kind, stage in stages.items():
        by_path = places(config, stage, mesh)
        tell_places(config, kind, stage, mesh)
        weights[kind], fingerprints[kind] = load_stage(stage, by_path, starts)
    hosts.agree(
        "the base model's weights", fingerprints, remedy="Give every host the same model files."
    )
    return Model(stages, weights, fingerprints, mesh)


def places(config: ConfigDict, stage: Stage, mesh: Mesh) -> dict[str, NamedSharding]:
    """Where each leaf of a stage's weights goes."""
    return sharding.shardings(stage.abstract, **_how(config, stage, mesh))


def tell_places(config: ConfigDict, kind: str, stage: Stage, mesh: Mesh) -> None:
    """Logs where each kind of leaf goes, and which ones cannot be split as they should."""
    table = sharding.table(stage.abstract, places(config, stage, mesh))
    logging.info("%s: where its weights go (%s)\n%s", kind, sharding.describe(mesh), table)
    if whole := sharding.left_whole(stage.abstract, **_how(config, stage, mesh)):
        logging.warning("%s: %s", kind, whole)


def _how(config: ConfigDict, stage: Stage, mesh: Mesh) -> dict[str, Any]:
    return {
        "rules": config.sharding.rules,
        "mesh": mesh,
        "min_bytes": config.sharding.min_bytes,
        "heads": stage.heads,
    }


def load_stage(
    stage: Stage, by_path: Mapping[str, NamedSharding], starts: str | tuple[str, ...] = ""
) -> tuple[tree.Flat, str]:
    """The weights of a stage and their fingerprint.

    A leaf whose path starts so goes onto its sharding as soon as it is read, so that the host never
    holds two of all; the others stay there.
    """
    digests = {}

    def place(path: str, leaf: np.ndarray) -> Any:
        digests[path] = tree.digest(path, leaf)
        return sharding.put(leaf, by_path[path]) if path.startswith(starts) else leaf

    flat = pipeline.read_weights(stage, put=place)
    return flat, tree.combined(digests)


# What `settings_of_run` has of files, beside settings and the base model.
OF_FILES = ("photos", "captions", "masks", "class_images")


def settings_of_run(config: ConfigDict, model: Model, files: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the trained weights: settings, fingerprints of the base and of files.

    files: by the names in `OF_FILES` (`subjects.prints`, `class_images.prints`).
    """
    return {
        "config": configs.flatten(config),
        "base": dict(model.fingerprints),
        **files,
    }
