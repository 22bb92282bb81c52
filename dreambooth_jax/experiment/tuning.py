"""Fine-tunes one stage: its batches, its optimizer, its checkpoints, the loop."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import checkpoint, chips, flops, generate, sharding, train, tree
from dreambooth_jax import config as configs
from dreambooth_jax.data import images
from dreambooth_jax.data.batches import (
    Pictures,
    StepTokens,
    SubjectBatches,
    assembled,
    split_rows,
    weights_of,
)
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.subject import Subject
from dreambooth_jax.experiment import budget, class_images, program, setup, subjects
from dreambooth_jax.experiment.model import Model, as_tuned
from dreambooth_jax.experiment.painter import Painter
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.signals import GracefulStop

_CLASS_ROWS_LOOKED_AT = 4  # of each class, by the held-out loss


def fine_tune(
    kind: str,
    config: ConfigDict,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    painter: Painter,
    workdir: Workdir,
    stop: GracefulStop,
) -> tree.Flat:
    """What was trained of stage `kind`; goes on from the newest intact checkpoint.

    Raises:
      CheckpointError: no intact checkpoint, or no space for one.
      Interrupted, NonFiniteError: see `train.fit`.
    """
    c = configs.for_stage(config, kind)
    stage = as_tuned(config, model.stages[kind])
    adapter = program.adapter_of(config, stage)
    text = painter.texts(model.weights)[kind]
    trainable, frozen, recipe = program.start(c, model.weights[kind], text, adapter)
    source, fixed = batches(kind, c, model, cast, classes, text=text)
    tokens = None
    if configs.learns_text(c):
        every = stage.tokens(text.prompts, keep=painter.identifiers)
        tokens = StepTokens(every, source.prompts, c.train.batch_size)
        fixed |= StepTokens(every, np.unique(fixed["prompt"]), len(fixed["prompt"])).of(
            fixed["prompt"]
        )
    run = program.step(kind, c, stage, model.mesh, trainable, frozen, recipe, adapter)
    logging.info("%s", budget.line(config, kind, model.stages, run))
    logging.info("%s", announcement(kind, c, model, trainable, run.state))
    frozen = jax.device_put(frozen, run.frozen)

    def trained(state: train.TrainState) -> tree.Flat:
        return next(iter(train.result(state).values()))

    held_out = None
    if c.train.held_out_every:
        held_out = train.HeldOutLoss(
            run,
            fixed,
            stage=stage,
            recipe=recipe,
            adapter=adapter,
            rows_at_once=c.train.batch_size // c.train.accumulate,
        )
    saving = functools.partial(
        checkpoint.Checkpoints,
        defaults={"config": configs.flatten(configs.base_config())},
        config=setup.settings_of_run(
            config, model, subjects.prints(cast) | class_images.prints(classes)
        ),
        may_differ=[f"config.{key.removesuffix('.*')}" for key in configs.RESULT_FREE_KEYS],
    )
    checkpoints = saving(workdir.checkpoints(kind), max_to_keep=c.train.max_to_keep)
    kept = saving(workdir.kept_weights(kind), max_to_keep=None)
    with checkpoints, kept:
        restored = checkpoints.restore(run.state)
        if restored is None:
            state = run.init(trainable)
        else:
            state = restored[0]
            logging.info("%s: goes on from step %d of %d", kind, restored[1], c.train.num_steps)
        if not adapter.keeps_base:
            free(trainable)
        if int(state.step) < c.train.num_steps:
            to_come = c.train.max_to_keep + 1 - len(checkpoints.steps())
            checkpoint.check_space(workdir.root, to_come * checkpoint.estimate_bytes(run.state))

        def batch_at(step: int) -> Mapping[str, Any]:
            batch = source.batch(step)
            return batch | (tokens.of(batch["prompt"]) if tokens else {})

        with workdir.timed(f"training {kind}"):
            state = train.fit(
                run,
                state,
                frozen,
                batch_at,
                pace=train.Pace(
                    num_steps=c.train.num_steps,
                    log_every=c.train.log_every,
                    checkpoint_every=c.train.checkpoint_every,
                    sample_every=c.train.sample_every,
                    keep_every=c.train.keep_weights_every,
                    check_every=c.train.held_out_every,
                    max_bad_steps=c.train.max_bad_steps,
                ),
                label=kind,
                writer=workdir.writer,
                checkpoints=checkpoints,
                kept=kept,
                stop=stop,
                on_sample=lambda step, now: painter.grid(
                    model.with_trained(kind, adapter, trained(now)).weights, f"{kind}-{step:06d}"
                ),
                on_check=None if held_out is None else lambda now: held_out(trained(now), frozen),
                profile=train.Profile(
                    c.log.profile_at, c.log.profile_steps, workdir.root / "profile" / kind
                ),
                share_of_peak=share_of_peak(run, state, frozen, batch_at(0)),
            )
    return trained(state)


def free(weights: tree.Flat) -> None:
    """Gives up the weights that the state has copies of: two of them fill a small device."""
    for leaf in weights.values():
        if isinstance(leaf, jax.Array):
            leaf.delete()


def share_of_peak(
    run: train.Compiled, state: Any, frozen: Any, batch: Mapping[str, Any]
) -> float | None:
    """Of what all devices could compute in a second, the part that one step is; None: not known."""
    chip = chips.of(run.mesh.devices.flat[0])
    if chip is None:
        return None
    traced = run.step.trace(state, frozen, run.put_batch(batch))
    return flops.count(traced.jaxpr) / (chip.flops * run.mesh.size)


def batches(
    kind: str,
    c: ConfigDict,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    *,
    text: generate.Text,
) -> tuple[SubjectBatches, dict[str, np.ndarray]]:
    """The stage's source, and a batch that is the same at every look at the held-out loss.

    Photos and class images at its size; an upscaler's with low-res ones. The fixed batch has the
    photos held out, or else all of them, and a few class rows of each class.

    Raises:
      ValueError: no photo is left to train on.
    """
    photos, looked_at = [], []
    for each in cast:
        learned, held = parted(each, c.subject.held_out)
        whole = photos_of(kind, c, model, each, text=text)
        own = whole.take(learned)
        own = own.with_mirrored() if c.subject.flip else own
        photos.append(encoded(own, model, kind))
        # Without any held out they are all among the trained ones, in the same rows.
        apart = c.subject.held_out > 0
        looked_at.append(encoded(whole.take(held), model, kind) if apart else photos[-1].take(held))
    pictures: list[Pictures] = []
    turns: list[int] = []
    if c.prior_loss_weight > 0 and c.prior.kind == "prediction":
        # Photos under the class prompt; what the base says of them is the target.
        for each, own in zip(cast, photos, strict=True):
            rows = np.repeat(text.rows([each.class_prompt]), len(own.mean))
            pictures.append(dataclasses.replace(own, prompt=rows, pixel_weights=None))
        turns = [*range(len(cast))]
    elif classes:
        nouns = [each.class_noun for each in classes]
        pictures = [encoded(pictures_of(kind, model, x, text=text), model, kind) for x in classes]
        turns = [nouns.index(each.class_noun) for each in cast]
    source = SubjectBatches(
        subjects=photos,
        classes=pictures,
        turns=turns,
        batch_size=c.train.batch_size,
        prior_fraction=c.train.prior_fraction,
        seed=c.seed,
    )
    few = [(x, i) for x in pictures for i in range(min(_CLASS_ROWS_LOOKED_AT, len(x.mean)))]
    seen = [*((x, i) for x in looked_at for i in range(len(x.mean))), *few]
    return source, assembled(seen, np.arange(len(seen)) >= len(seen) - len(few))


def parted(subject: Subject, held_out: int) -> tuple[list[int], list[int]]:
    """Rows of a subject's pictures to train on, and the rows that the held-out loss looks at.

    The latter are the centres of the last `held_out` photos by name, or of all photos for 0.

    Raises:
      ValueError: no photo is left to train on.
    """
    count = len(subject.photos)
    if held_out >= count:
        raise ValueError(
            f"subject.held_out = {held_out}, but {subject.audit.folder} has {count} photos: at "
            f"least one is to be trained on. Write --config.subject.held_out={max(count - 3, 0)}."
        )
    crops = len(subject.windows) // count
    centres = [n * crops for n in range(count)]
    learned = [*range((count - held_out) * crops)]
    return learned, centres[-held_out:] if held_out else centres


def photos_of(
    kind: str, c: ConfigDict, model: Model, subject: Subject, *, text: generate.Text
) -> Pictures:
    """A subject's photos as a stage sees them, the loss weighted where they have masks."""
    stage = model.stages[kind]
    photos = pictures_of(kind, model, subject, text=text)
    if not subject.masks:
        return photos
    masks, side = subject.masks[stage.size], stage.sample_shape[0]
    weights = weights_of(masks, side=side, outside=c.loss.outside_mask)
    return dataclasses.replace(photos, pixel_weights=weights)


def pictures_of(
    kind: str, model: Model, found: Subject | ClassImages, *, text: generate.Text
) -> Pictures:
    """Photos or class images as a stage sees them; an upscaler with the base's size beside it."""
    stage, small = model.stages[kind], model.stages["base"].size
    return Pictures(
        images.to_float(found.pixels[stage.size]),
        text.rows(found.row_prompts),
        low_res=images.to_float(found.pixels[small]) if kind == "upscaler" else None,
        sizes=found.sizes(stage.size) if stage.family.sized else None,
    )


def encoded(pictures: Pictures, model: Model, kind: str) -> Pictures:
    """The same as latents' means and standard deviations, once and for all, where there is a VAE.

    One at a time: at 1024 pixels a VAE's activations are larger than a UNet.
    """
    stage = model.stages[kind]
    if stage.latents is None:
        return pictures
    coder = tree.split(model.weights[kind], lambda path: path.startswith("vae/"))[0]
    encode = jax.jit(stage.encode_images, out_shardings=sharding.replicated(model.mesh))
    whole = sharding.replicated(model.mesh)
    pairs = [encode(coder, sharding.put(image[None], whole)) for image in pictures.mean]
    mean, std = (np.concatenate([np.asarray(x) for x in part]) for part in zip(*pairs, strict=True))
    return dataclasses.replace(pictures, mean=mean, std=std)


def announcement(kind: str, c: ConfigDict, model: Model, trainable: tree.Flat, state: Any) -> str:
    """One line: what is trained, on which devices, for how many steps."""
    fraction = c.train.prior_fraction if c.prior_loss_weight else 0
    rows = split_rows(c.train.batch_size, prior_fraction=fraction)
    device = model.mesh.devices.flat[0]
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return (
        f"{kind}: trains {len(trainable)} leaves, {tree.count(trainable):,} parameters "
        f"({tree.nbytes(trainable) / 2**20:.1f} MiB; {total / 2**20:.1f} MiB with the optimizer's "
        f"state) on {model.mesh.size} {device.device_kind} device(s) "
        f"({sharding.describe(model.mesh)}), for "
        f"{c.train.num_steps} steps of {rows[0]} subject + {rows[1]} class rows{in_phases(c)}."
    )


def in_phases(c: ConfigDict) -> str:
    """Which leaves are trained in which steps, for the announcement; "" when all are always."""
    told = [f"{p.paths!r} in steps {p.first} to {p.stop - 1}" for p in configs.phases(c)]
    return f", the first match of {', '.join(told)}" if told else ""
