"""The rows of a stage's steps: photos and class images as it sees them, shape by shape."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from dreambooth_jax import generate, sharding, tree
from dreambooth_jax.config import StageSettings
from dreambooth_jax.data import images, shapes
from dreambooth_jax.data.batches import Pictures, SubjectBatches, assembled, weights_of
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.images import Size
from dreambooth_jax.data.shapes import ShapedBatches
from dreambooth_jax.data.subject import Subject
from dreambooth_jax.experiment.parts import photo_shapes
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.experiment.training import checks

_CLASS_ROWS_LOOKED_AT = 4  # of each class, by the held-out loss

Batch = dict[str, np.ndarray]


class _Rows(NamedTuple):
    """A stage's pictures of one shape, encoded: of each subject, and of each class noun.

    learned: by the subject's place; looked_at: those of the held-out loss; classes: by class noun,
    or, where photos take their place, by the subject's.
    """

    learned: dict[int, Pictures]
    looked_at: list[Pictures]
    classes: dict[str | int, Pictures]


def batches(
    c: StageSettings,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    *,
    text: generate.Text,
) -> tuple[SubjectBatches | ShapedBatches, list[Batch]]:
    """Returns the stage's batches, and the fixed batches of the held-out loss, one of each shape.

    Photos and class images at its size; an upscaler's with low-res ones. The fixed batches have the
    photos held out, or else all of them, and a few class rows of each class.

    Raises:
      ValueError: no photo is left to train on.
    """
    by_shape = photo_shapes.weights(c, [each.audit for each in cast]) if c.data.buckets else []
    sizes: list[Size] = [model.stages[c.kind].size]
    if by_shape:
        sizes = sorted({size for each in cast for size in each.pixels}, key=_aspect)
    sources, counts, fixed = [], [], []
    for size in sizes:
        rows = _of_shape(c, model, cast, classes, size=size, text=text)
        if rows.learned:
            # Without several shapes subjects take turns, one by one.
            shares = [by_shape[k][size] if by_shape else 1 for k in rows.learned]
            sources.append(_source(c, cast, rows, shares))
            counts.append(sum(shares))
        if rows.looked_at:
            fixed.append(_looked_at(rows))
    if not by_shape:
        return sources[0], fixed
    return ShapedBatches(sources, shapes.Steps(tuple(counts), c.seed)), fixed


def _aspect(size: Size) -> float:
    return size[1] / size[0]


def _source(
    c: StageSettings, cast: Sequence[Subject], rows: _Rows, shares: Sequence[int]
) -> SubjectBatches:
    """The batches of one shape, whose subjects have these shares of its rows."""
    places, order = [*rows.learned], shapes.order(shares)
    kinds = [*rows.classes]
    # Each turn's class: its noun's, or the subject's own photos.
    of = [k if k in rows.classes else cast[k].class_noun for k in places]
    return SubjectBatches(
        subjects=[*rows.learned.values()],
        classes=[*rows.classes.values()],
        turns=[kinds.index(of[turn]) for turn in order] if kinds else [],
        batch_size=c.train.batch_size,
        prior_fraction=c.train.prior_fraction,
        seed=c.seed,
        order=order,
    )


def _looked_at(rows: _Rows) -> Batch:
    """The fixed batch of one shape."""
    few = [
        (x, i)
        for x in rows.classes.values()
        for i in range(min(_CLASS_ROWS_LOOKED_AT, len(x.mean)))
    ]
    seen = [*((x, i) for x in rows.looked_at for i in range(len(x.mean))), *few]
    return assembled(seen, np.arange(len(seen)) >= len(seen) - len(few))


def _of_shape(
    c: StageSettings,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    *,
    size: Size,
    text: generate.Text,
) -> _Rows:
    """The pictures of all subjects and class nouns at one size."""
    found = _Rows({}, [], {})
    for k, each in enumerate(cast):
        if size not in each.pixels:
            continue
        part = each.at(size)
        learned, held = parted(each, c.subject.held_out, part)
        whole = photos_of(c, model, part, size=size, text=text)
        own = whole.take(learned)
        if c.subject.flip:
            sized = model.stages[c.kind].denoiser.sized
            own = own.with_mirrored(part.sizes(size, mirrored=True)[learned] if sized else None)
        own = encoded(own, model, c.kind) if learned else own
        if learned:
            found.learned[k] = own
        # Without any held out they are all among the trained ones, in the same rows.
        apart = c.subject.held_out > 0
        if held:
            seen = encoded(whole.take(held), model, c.kind) if apart else own.take(held)
            found.looked_at.append(seen)
    if c.prior_loss_weight > 0 and c.prior.kind == "prediction":
        # Photos under the class prompt; what the base says of them is the target.
        for k, own in found.learned.items():
            prompt = np.repeat(text.rows([cast[k].class_prompt]), len(own.mean))
            found.classes[k] = dataclasses.replace(own, prompt=prompt, pixel_weights=None)
        return found
    nouns = {cast[k].class_noun for k in found.learned}
    for images_of in classes:
        if images_of.class_noun in nouns:
            several = images_of.at(size) if c.data.buckets else images_of
            pictures = pictures_of(c.kind, model, several, size=size, text=text)
            found.classes[images_of.class_noun] = encoded(pictures, model, c.kind)
    return found


def parted(
    subject: Subject, held_out: int, part: Subject | None = None
) -> tuple[list[int], list[int]]:
    """Rows of a subject's pictures to train on, and the rows that the held-out loss looks at.

    The latter are the centres of the last `held_out` photos by name, or of all photos for 0.

    part: those of its pictures that the rows are of (`Photos.at`), all of them where it is left
      out; either list may be empty then.

    Raises:
      ValueError: no photo is left to train on.
    """
    count = len(subject.photos)
    if problem := checks.held_out_problem(held_out, count, subject.audit.folder):
        raise ValueError(problem)
    part = subject if part is None else part
    held = {*subject.photos[count - held_out :]}
    learned = [i for i, window in enumerate(part.windows) if window.photo not in held]
    crops = len(subject.windows) // count
    centres = {name: n * crops for n, name in enumerate(part.photos)}
    return learned, [row for name, row in centres.items() if name in held or not held]


def photos_of(
    c: StageSettings, model: Model, subject: Subject, *, size: Size, text: generate.Text
) -> Pictures:
    """A subject's photos as a stage sees them, the loss weighted where they have masks."""
    photos = pictures_of(c.kind, model, subject, size=size, text=text)
    if not subject.masks:
        return photos
    factor = model.stages[c.kind].codec.factor
    shape = size[0] // factor, size[1] // factor
    weights = weights_of(subject.masks[size], shape=shape, outside=c.loss.outside_mask)
    return dataclasses.replace(photos, pixel_weights=weights)


def pictures_of(
    kind: str, model: Model, found: Subject | ClassImages, *, size: Size, text: generate.Text
) -> Pictures:
    """Photos or class images as a stage sees them; an upscaler with the base's size beside it."""
    stage, small = model.stages[kind], model.stages["base"].size
    return Pictures(
        images.to_float(found.pixels[size]),
        text.rows(found.row_prompts),
        low_res=images.to_float(found.pixels[small]) if kind == "upscaler" else None,
        sizes=found.sizes(size) if stage.denoiser.sized else None,
    )


def encoded(pictures: Pictures, model: Model, kind: str) -> Pictures:
    """Encodes the pictures with the VAE, one at a time; returns them as they are without one.

    At 1024 pixels a VAE's activations are larger than a UNet.
    """
    stage = model.stages[kind]
    if not stage.codec.is_latent:
        return pictures
    coder = tree.split(model.weights[kind], stage.is_codec)[0]
    encode = jax.jit(stage.encode_images, out_shardings=sharding.replicated(model.mesh))
    whole = sharding.replicated(model.mesh)
    pairs = [encode(coder, sharding.put(image[None], whole)) for image in pictures.mean]
    mean, std = (np.concatenate([np.asarray(x) for x in part]) for part in zip(*pairs, strict=True))
    return dataclasses.replace(pictures, mean=mean, std=std)
