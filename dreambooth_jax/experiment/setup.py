"""What a run starts from: the base model on the mesh, the subject and its word, class images."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from dreambooth_jax import adapt, export, pipeline, sharding, train, tree
from dreambooth_jax import config as configs
from dreambooth_jax.data import audit as photo_audit
from dreambooth_jax.data import prior as class_images
from dreambooth_jax.data import subject as subjects
from dreambooth_jax.data.audit import Audit
from dreambooth_jax.data.prior import Prior
from dreambooth_jax.data.subject import Subject, Words
from dreambooth_jax.experiment.model import Model
from dreambooth_jax.experiment.painter import Painter
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.signals import GracefulStop
from dreambooth_jax.text import identifier


def open_stages(config: ConfigDict) -> dict[str, Stage]:
    """The stages of the base model, without weights.

    Raises:
      FileNotFoundError, ValueError: which file or value is missing or not supported, or that the
        stages do not fit together.
    """
    reading = {
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


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh over all devices that the settings ask for."""
    sizes = config.mesh
    return sharding.make_mesh(data=sizes.data, fsdp=sizes.fsdp, tensor=sizes.tensor)


def load(config: ConfigDict, stages: Mapping[str, Stage]) -> Model:
    """Reads the weights, each leaf straight to its place; logs where each kind of leaf went."""
    mesh = make_mesh(config)
    starts = "" if configs.learns_text(config) else ("unet/", "vae/")
    weights, fingerprints = {}, {}
    for kind, stage in stages.items():
        by_path = sharding.shardings(
            stage.abstract,
            rules=config.sharding.rules,
            mesh=mesh,
            min_bytes=config.sharding.min_bytes,
        )
        logging.info("%s: where its weights go\n%s", kind, sharding.table(stage.abstract, by_path))
        weights[kind], fingerprints[kind] = load_stage(stage, by_path, starts)
    return Model(stages, weights, fingerprints, mesh)


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


def words(config: ConfigDict, model: Model, *, as_exported: bool = False) -> Words:
    """The subject's own word, chosen where the settings say "auto", and the prompts with it.

    as_exported: with "auto", a base model that is an export of ours says what it calls its subject.
    """
    base = model.stages["base"]
    asked = config.subject.identifier
    if as_exported and asked == "auto" and (told := export.words_in(base.folder)):
        return Words.of(**told)
    inverted = adapt.makes_words(config.adapt)
    if inverted and asked.startswith("<"):  # no word of the vocabulary: nothing to check
        return Words.of(identifier=asked.lower(), class_noun=config.subject.class_noun)
    word = identifier.choose(
        base.tokenizer,
        asked,
        class_noun=config.subject.class_noun,
        seed=config.seed,
        embeddings=sharding.fetch(model.weights["base"][base.token_table]),
    )
    word = f"<{word}>" if inverted else word
    return Words.of(identifier=word, class_noun=config.subject.class_noun)


def with_new_word(config: ConfigDict, model: Model, words: Words) -> Model:
    """The model whose text encoders have rows for the identifier, where these are trained.

    They start as the embedding of `adapt.initial_word`, the mean of its tokens.

    Raises:
      ValueError: the tokenizer cannot take the identifier as new tokens.
    """
    if not adapt.makes_words(config.adapt):
        return model
    initial = config.adapt.initial_word or words.class_noun
    stages, weights = {}, {}
    for kind, stage in model.stages.items():
        stages[kind] = stage.with_word(words.identifier, count=config.adapt.num_vectors)
        weights[kind] = dict(model.weights[kind])
        for path, ids in stages[kind].new_rows.items():
            old = weights[kind][path]
            table = np.zeros(stages[kind].abstract[path].shape, np.float32)
            table[: len(old)] = sharding.fetch(old)
            start = stage.tokenizers[path.partition("/")[0]].ids(initial)
            table[list(ids)] = table[list(start)].mean(0)
            whole = sharding.replicated(model.mesh)
            on_mesh = isinstance(old, jax.Array)
            weights[kind][path] = sharding.put(table, whole) if on_mesh else table
    return dataclasses.replace(model, stages=stages, weights=weights)


def subject(config: ConfigDict, model: Model, photos: Audit) -> Subject:
    """The subject's pictures at the size of every stage, with its identifier chosen."""
    chosen = words(config, model)
    read = subjects.read(
        photos.folder,
        class_noun=chosen.class_noun,
        identifier=chosen.identifier,
        sizes=[stage.size for stage in model.stages.values()],
        crops=config.subject.crops,
        seed=config.seed,
        strict=config.subject.strict,
    )
    logging.info("The subject is %r, its class %r.", read.instance_prompt, read.class_prompt)
    return read


def prior(
    config: ConfigDict,
    model: Model,
    subject: Subject,
    painter: Painter,
    workdir: Workdir,
    stop: GracefulStop,
) -> Prior | None:
    """The class images, drawn by the untouched base; None without prior preservation.

    Raises:
      PriorError: they cannot be used, or cannot be made.
      Interrupted: a signal came; those drawn so far are kept.
    """
    if config.prior_loss_weight == 0 or config.prior.kind != "images":
        return None

    def draw(seeds: Sequence[int]) -> list[np.ndarray]:
        train.leave_if_asked(stop, "the class images so far are kept")
        return painter.class_images(model.weights, subject.class_prompt, seeds)

    chosen = config.prior.folder
    folder = Path(chosen).expanduser() if chosen else workdir.root / "prior"
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
            draw=draw,
            writes=jax.process_index() == 0,
        )


def settings_of_run(config: ConfigDict, model: Model, photos: Audit | None) -> dict[str, Any]:
    """What determines the trained weights: settings, and fingerprints of the base and of photos."""
    kept = photos.kept if photos else ()
    return {
        "config": configs.flatten(config),
        "base": dict(model.fingerprints),
        "photos": {photo.path.name: photo.sha256 for photo in kept},
    }
