"""What a run starts from: the base model on the mesh, the subject, its identifier, the class images."""

import dataclasses
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import config as configs
from dreambooth_jax import pipeline, sharding, tree
from dreambooth_jax.data import audit as photo_audit
from dreambooth_jax.data import prior as class_images
from dreambooth_jax.data import subject as subjects
from dreambooth_jax.data.audit import Audit
from dreambooth_jax.data.prior import Prior
from dreambooth_jax.data.subject import Subject
from dreambooth_jax.experiment.model import Model
from dreambooth_jax.experiment.painter import Painter
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.text import identifier


def open_stages(config: ConfigDict) -> dict[str, Stage]:
    """The stages of the base model, without weights.

    Raises:
      FileNotFoundError, ValueError: which file or value is missing or not supported; or stages that do not fit together.
    """
    stages = {"base": pipeline.open_stage(config.base_model, kind="base")}
    if config.upscaler_model:
        stages["upscaler"] = pipeline.open_stage(config.upscaler_model, kind="upscaler")
        small, large = stages["base"].size, stages["upscaler"].size
        if large <= small:
            raise ValueError(f"upscaler_model makes {large} pixels from the base's {small}: it must make more.")
    return stages


def photo_folder(config: ConfigDict) -> Path:
    """The subject's folder; "embedded" is the one that the package carries."""
    if config.subject.images == "embedded":
        return Path(str(resources.files("dreambooth_jax") / "assets" / "subject"))
    return Path(config.subject.images).expanduser()


def audit(config: ConfigDict, stages: Mapping[str, Stage]) -> Audit:
    """Looks at every file of the subject's folder and logs one report.

    Raises:
      AuditError: no photo can be used, or `subject.strict` and one cannot.
    """
    size = max(stage.size for stage in stages.values())
    report = photo_audit.audit(photo_folder(config), size=size, strict=config.subject.strict)
    logging.info("Photos of the subject:\n%s", report)
    return report


def load(config: ConfigDict, stages: Mapping[str, Stage]) -> Model:
    """Reads the weights; logs where each kind of leaf went."""
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    weights, fingerprints = {}, {}
    for kind, stage in stages.items():
        flat = pipeline.read_weights(stage)
        fingerprints[kind] = tree.fingerprint(flat)
        by_path = sharding.shardings(
            flat, rules=config.sharding.rules, mesh=mesh, min_bytes=config.sharding.min_bytes
        )
        logging.info("%s: where its weights are\n%s", kind, sharding.table(flat, by_path))
        on_device = flat if config.train.text_encoder else tree.split(flat, lambda path: path.startswith("unet/"))[0]
        weights[kind] = flat | {path: sharding.put(leaf, by_path[path]) for path, leaf in on_device.items()}
    return Model(stages, weights, fingerprints, mesh)


def subject(config: ConfigDict, model: Model, photos: Audit) -> Subject:
    """The subject's pictures at the size of every stage, with its identifier chosen."""
    base = model.stages["base"]
    word = identifier.choose(
        base.tokenizer,
        config.subject.identifier,
        class_noun=config.subject.class_noun,
        seed=config.seed,
        embeddings=np.asarray(model.weights["base"]["text_encoder/shared/embedding"]),
    )
    read = subjects.read(
        photos.folder,
        class_noun=config.subject.class_noun,
        identifier=word,
        sizes=[stage.size for stage in model.stages.values()],
        crops=config.subject.crops,
        seed=config.seed,
        strict=config.subject.strict,
    )
    logging.info("The subject is %r, its class %r.", read.instance_prompt, read.class_prompt)
    return read


def prior(config: ConfigDict, model: Model, subject: Subject, painter: Painter, workdir: Workdir) -> Prior | None:
    """The class images, made by the untouched base with the ancestral sampler; None without prior preservation."""
    if config.prior_loss_weight == 0:
        return None
    folder = Path(config.prior.folder).expanduser() if config.prior.folder else workdir.root / "prior"
    samplers = {kind: dataclasses.asdict(s) for kind, s in painter.settings.items()}
    with workdir.timed("class images"):
        return class_images.make_or_reuse(
            folder,
            num_images=config.prior.num_images,
            block=painter.block,
            made_by={
                "prompt": subject.class_prompt,
                "samplers": samplers,
                "base": dict(model.fingerprints),
                "dtype": config.dtype,
            },
            seed=config.seed,
            draw=lambda seeds: painter.class_images(model.weights, subject.class_prompt, seeds),
            writes=jax.process_index() == 0,
        )


def settings_of_run(config: ConfigDict, model: Model, photos: Audit) -> dict[str, Any]:
    """All that determines the trained weights: the settings, the base's fingerprint, the photos'."""
    return {
        "config": {key: value for key, value in configs.flatten(config).items()},
        "base": dict(model.fingerprints),
        "photos": {photo.path.name: photo.sha256 for photo in photos.kept},
    }
