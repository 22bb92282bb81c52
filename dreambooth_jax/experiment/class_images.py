"""The class images of a run: drawn by the untouched base, or read from the user's folder."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts, train
from dreambooth_jax.data import class_images, prior
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment import subjects
from dreambooth_jax.experiment.model import Model
from dreambooth_jax.experiment.painter import Painter
from dreambooth_jax.experiment.subjects import Folders
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.signals import GracefulStop


def own(
    config: ConfigDict, model: Model, folders: Folders, chosen: Sequence[Words]
) -> tuple[ClassImages, ...]:
    """The user's class images, one set for each class noun; none without `prior.images`."""
    words = {each.class_noun: each for each in chosen}
    sizes = [stage.size for stage in model.stages.values()]
    found = []
    for noun, report in folders.class_images.items():
        limit = config.prior.num_images
        own = class_images.of_audit(report, words[noun], sizes=sizes, max_photos=limit)
        logging.info("Class images of %r: %d of %s.", own.class_prompt, len(own), report.folder)
        found.append(own)
    return tuple(found)


def drawn(
    config: ConfigDict,
    model: Model,
    chosen: Sequence[Words],
    painter: Painter,
    workdir: Workdir,
    stop: GracefulStop,
) -> tuple[ClassImages, ...]:
    """Class images by the untouched base, one set for each class noun; none where none are needed.

    Raises:
      PriorError: they cannot be used, or cannot be made.
      Interrupted: a signal came; those drawn so far are kept.
    """
    if not configs.draws_class_images(config):
        return ()
    root = config.prior.folder
    folders = subjects.class_folders(config, files.at(root) if root else workdir.root / "prior")
    samplers = {kind: dataclasses.asdict(s) for kind, s in painter.settings.items()}
    words = {each.class_noun: each for each in chosen}
    shares = configs.class_shares(config)
    made = []
    for noun, folder in folders.items():
        prompt = words[noun].class_prompt
        number, why = configs.num_class_images(config, share=shares[noun])
        logging.info("Class images of %r: %s", prompt, why)

        def draw(seeds: Sequence[int], prompt: str = prompt) -> list[Any]:
            train.leave_if_asked(stop, "the class images so far are kept")
            return painter.class_images(model.weights, prompt, seeds)

        with workdir.timed("class images"):
            found = prior.make_or_reuse(
                folder,
                num_images=number,
                block=painter.block,
                made_by={
                    "prompt": prompt,
                    "samplers": samplers,
                    "base": dict(model.fingerprints),
                    "dtype": config.dtype,
                },
                seed=config.seed,
                draw=draw,
                share=(jax.process_index(), jax.process_count()),
                wait=functools.partial(hosts.meet, noun),
            )
        made.append(class_images.drawn(found, words[noun]))
    return tuple(made)


def prints(classes: Sequence[ClassImages]) -> dict[str, Any]:
    """Fingerprints of the user's class images with their prompts; drawn ones follow settings."""
    told = {
        f"{each.class_noun}/{photo.path.name}": hashlib.sha256(
            f"{photo.sha256} {each.own.prompts[photo.path.name]}".encode()
        ).hexdigest()
        for each in classes
        if each.own is not None
        for photo in each.own.audit.kept
    }
    return {"class_images": told} if told else {}
