"""The class images of a run: drawn by the untouched base, or read from the user's folder."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts, train
from dreambooth_jax.config import Plan
from dreambooth_jax.data import class_images, images, prior, shapes
from dreambooth_jax.data.audit import Audit
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.images import Size
from dreambooth_jax.data.prior import Prior
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import photo_shapes, subjects
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.experiment.parts.subjects import Folders
from dreambooth_jax.experiment.parts.workdir import Workdir, check_writable
from dreambooth_jax.progress import progress
from dreambooth_jax.signals import GracefulStop


def own(plan: Plan, folders: Folders, chosen: Sequence[Words]) -> tuple[ClassImages, ...]:
    """The user's class images, one set for each class noun; none without `prior.images`.

    Where photos have several shapes, all of them are cut at each shape of their subjects.
    """
    words = {each.class_noun: each for each in chosen}
    found = []
    for noun, report in folders.class_images.items():
        own = class_images.of_audit(report, folders.cuts[report.folder], words[noun])
        limit = plan.prior.num_images
        if limit is not None and len(own) < limit:
            logging.warning(
                "prior.num_images is %d, and %s holds %d class images: they are shown more often.",
                *(limit, report.folder, len(own)),
            )
        logging.info("Class images of %r: %d of %s.", own.class_prompt, len(own), report.folder)
        found.append(own)
    return tuple(found)


def _folders(plan: Plan, workdir: Workdir) -> dict[str, Path]:
    """The folders of drawn class images by class noun."""
    root = plan.prior.folder
    return subjects.class_folders(plan, files.at(root) if root else workdir.root / "prior")


def check(plan: Plan, workdir: Workdir) -> None:
    """Checks, before anything compiles, that drawn class images can be kept in their folders.

    Raises:
      PriorError: one of them is a file, or holds what is no class image.
      OSError: it cannot be made or written to; names `prior.folder`.
    """
    if not configs.draws_class_images(plan):
        return
    for folder in _folders(plan, workdir).values():
        prior.check(folder)
        if plan.prior.folder and not (folder / prior.MANIFEST).is_file():
            check_writable(folder, told="--config.prior.folder")


def drawn(
    plan: Plan,
    model: Model,
    chosen: Sequence[Words],
    painter: Painter,
    workdir: Workdir,
    stop: GracefulStop,
    photos: Sequence[Audit] = (),
) -> tuple[ClassImages, ...]:
    """Class images by the untouched base, one set for each class noun; none where none are needed.

    photos: of each subject; where they have several shapes, the class images have them in the
    same proportions.

    Raises:
      PriorError: they cannot be used, or cannot be made.
      Interrupted: a signal came; those drawn so far are kept.
    """
    if not configs.draws_class_images(plan):
        return ()
    folders = _folders(plan, workdir)
    words = {each.class_noun: each for each in chosen}
    shares, by_noun = configs.class_shares(plan), photo_shapes.by_noun(plan, photos)
    made = []
    for noun, folder in folders.items():
        number, why = configs.num_class_images(plan, share=shares[noun])
        logging.info("Class images of %r: %s", words[noun].class_prompt, why)
        weights = by_noun[noun]
        counts = shapes.parts(number, [*weights.values()]) if weights else [number]
        found = []
        with workdir.timed("class images"):
            for size, count in zip(weights or [None], counts, strict=True):
                drawing = _Drawing(painter, model, words[noun].class_prompt, size, stop)
                found.append(_of_shape(plan, drawing, folder, number=count))
        made.append(class_images.drawn(found, words[noun]))
    return tuple(made)


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """The untouched base's pictures of a prompt; size: height and width, None is its own."""

    painter: Painter
    model: Model
    prompt: str
    asked: Size | None
    stop: GracefulStop

    @property
    def size(self) -> Size | None:
        """Height and width, None where they are those of all other pictures."""
        return None if self.asked == self.model.stages["base"].size else self.asked

    def told(self) -> dict[str, Any]:
        """The sampler settings of all stages, for the manifest."""
        told = {kind: s.told() for kind, s in self.painter.settings.items()}
        if self.size is not None:
            told["base"] |= {"size": list(self.size)}
        return told

    def draw(self, seeds: Sequence[int]) -> Sequence[np.ndarray]:
        """Pictures of every stage, one for each seed.

        Raises:
          Interrupted: a signal came.
        """
        train.leave_if_asked(self.stop, "the class images so far are kept")
        return self.painter.class_images(self.model.weights, self.prompt, seeds, size=self.size)


def _of_shape(plan: Plan, drawing: _Drawing, folder: Path, *, number: int) -> Prior:
    """Class images of one shape; those of another shape than the model's own lie in a sub-folder.

    Its name is height x width, "80x48".
    """
    label, negative = "class images", plan.prior.negative_prompt
    if drawing.size is not None:
        height, width = drawing.size
        folder, label = folder / f"{height}x{width}", f"{label}, {images.told(drawing.size)}"
    there = min(number, len([*folder.glob("*.png")]) if folder.is_dir() else 0)
    with progress(number, label, "image", initial=there) as update:

        def draw(seeds: Sequence[int]) -> Sequence[np.ndarray]:
            pictures = drawing.draw(seeds)
            update(len(seeds), None)
            return pictures

        return prior.make_or_reuse(
            folder,
            num_images=number,
            block=drawing.painter.block,
            made_by={
                "prompt": drawing.prompt,
                "samplers": drawing.told(),
                **({"negative_prompt": negative} if negative else {}),
                "base": dict(drawing.model.fingerprints),
                "dtype": plan.dtype,
            },
            seed=plan.seed,
            draw=draw,
            share=(jax.process_index(), jax.process_count()),
            wait=functools.partial(hosts.meet, f"{drawing.prompt}, {drawing.size}"),
        )


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
