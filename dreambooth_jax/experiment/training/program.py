"""The train step that a run's settings make of a stage, from weights or from their shapes alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dreambooth_jax import adapt, generate, optim, sharding, train, tree
from dreambooth_jax import config as configs
from dreambooth_jax.config import Plan, Settings, StageSettings
from dreambooth_jax.diffusion.path import Density
from dreambooth_jax.experiment.parts.model import compute_dtype
from dreambooth_jax.export import lora_start
from dreambooth_jax.pipeline import Stage, lora_reader

_WORD = "<estimated-word-"  # stands for a subject's own tokens, whatever they will be called


def adapter_of(plan: Settings, stage: Stage, *, begins: bool = True) -> adapt.Adapter:
    """Returns the way in which the run's settings adapt a stage.

    begins: its `init` is that of a training, which may begin from a LoRA file; else the shapes of
    what a checkpoint holds are wanted.
    """
    targets = plan.adapt.targets or stage.family.lora_targets
    settings = dataclasses.replace(plan.adapt, targets=targets)
    made = adapt.make(settings, seed=plan.seed, new_rows=stage.new_rows)
    if not (begins and plan.adapt.lora_file) or stage.kind != "base":
        return made

    def init(weights: tree.Flat, rules: Sequence[tuple[str, bool]]) -> tuple[tree.Flat, tree.Flat]:
        trainable, frozen = made.init(weights, rules)
        given, alpha = plan.adapt.lora_file, adapt.alpha_of(plan.adapt)
        return lora_start.begun(stage, given, trainable, alpha=alpha), frozen

    return made._replace(init=init)


def rules_of(own: StageSettings, stage: Stage) -> tuple[tuple[str, bool], ...]:
    """Returns path regexes, each with True where its leaves are trained; the first match wins."""
    denoiser = stage.denoiser
    rules = configs.trainable_rules(
        own, denoiser=denoiser.component, text=stage.conditioner.trainable_pattern
    )
    return ((f"{denoiser.component}/{denoiser.tables}", False), *rules)


def phases_of(own: StageSettings, stage: Stage) -> tuple[optim.Phase, ...]:
    """Returns the steps in which each leaf of a stage is trained; () is all leaves in all steps."""
    return configs.phases(own, text=stage.conditioner.trainable_pattern)


def abstract_trainable(plan: Plan, own: StageSettings, stage: Stage) -> tree.Flat:
    """Returns the shapes of the leaves that a stage trains, new tokens included.

    Raises:
      ValueError: no leaf would be trained.
    """
    if adapt.makes_words(plan.adapt) and not stage.new_rows:
        for k in range(len(configs.subjects(plan))):
            stage = stage.with_word(f"{_WORD}{k}>", count=plan.adapt.num_vectors)
    return adapt.abstract(adapter_of(plan, stage), stage.abstract, rules_of(own, stage))


def check_rates(own: StageSettings, stage: Stage, trainable: tree.Flat) -> None:
    """Checks that text encoders have leaves that are trained, where a setting is about them.

    Raises:
      ValueError: none is trained, or none at the learning rate that is set.
    """
    if own.train.text_encoder and not any(stage.is_text(path) for path in trainable):
        raise ValueError(
            "train.text_encoder = True, but adapt.train and adapt.targets choose no leaf of a text "
            "encoder. Write --config.train.text_encoder=False, or targets that match its kernels."
        )
    phases = phases_of(own, stage)
    rates = {path: phases[optim.owner(phases, path)].learning_rate for path in trainable if phases}
    slower = [path for path in trainable if stage.is_text(path) and rates.get(path) is None]
    if own.optim.text_encoder_learning_rate and not slower:
        raise ValueError(
            f"optim.text_encoder_learning_rate = {own.optim.text_encoder_learning_rate}, but no "
            "text encoder is trained. Write --config.train.text_encoder=True, or leave it out."
        )


def density_of(own: StageSettings) -> Density:
    """Returns the distribution of the noise levels that a flow's training draws."""
    loss = own.loss
    numbers = {"mean": loss.logit_mean, "spread": loss.logit_std, "scale": loss.mode_scale}
    return Density(loss.density, **numbers, shift=loss.shift)


def time_steps_of(own: StageSettings, stage: Stage) -> tuple[int, int]:
    """Returns the first and last time step that are drawn, of the model's own number of them.

    The settings count in thousandths, so that their defaults are all steps of any model.
    """
    steps = stage.path.num_steps
    first = own.loss.first_step * steps // 1000
    return first, max(first, (own.loss.last_step + 1) * steps // 1000 - 1)


def check_rows(own: StageSettings, mesh: Mesh) -> None:
    """Checks that the rows of a forward pass divide over the mesh.

    Raises:
      ValueError: they do not.
    """
    sharding.check_rows(own.train.rows_at_once, mesh, key=f"batch_size of stage {own.kind!r}")


def start(
    c: StageSettings,
    stage: Stage,
    weights: tree.Flat,
    text: generate.Text,
    adapter: adapt.Adapter,
) -> tuple[tree.Flat, dict[str, Any], train.Recipe]:
    """Splits a stage's weights into trainable and frozen, and builds the recipe.

    Raises:
      ValueError: nothing to train, no text encoder to which its learning rate would apply, or an
        assistant of another model.
    """
    trainable, frozen_weights = adapter.init(dict(weights), rules_of(c, stage))
    check_rates(c, stage, trainable)
    frozen: dict[str, Any] = {"weights": frozen_weights}
    if not configs.learns_text(c):  # encoded once: the encoder has no part in the steps
        frozen = {
            "weights": tree.split(frozen_weights, stage.is_denoiser)[0],
            "table": text.table,
        }
    if by_prediction := c.prior_loss_weight > 0 and c.prior.kind == "prediction":
        frozen["table"] = text.table  # of the untouched text encoder, too
        if not adapter.keeps_base:  # a second copy: the trained one is overwritten in place
            own = tree.split(trainable, stage.is_denoiser)[0]
            frozen["before"] = jax.tree.map(jnp.copy, own)
    if c.adapt.assistant_file:
        frozen["assistant"] = lora_reader.read(stage, c.adapt.assistant_file)
    recipe = train.Recipe(
        seed=c.seed,
        prior_loss_weight=c.prior_loss_weight,
        min_snr_gamma=c.loss.min_snr_gamma,
        accumulate=c.train.accumulate,
        ema_decay=c.train.ema_decay,
        dtype=compute_dtype(c),
        aug_levels=(c.upscaler.aug_level, c.upscaler.aug_level),
        time_steps=time_steps_of(c, stage),
        density=density_of(c),
        offset_noise=c.loss.offset_noise,
        prior_by_prediction=by_prediction,
        phases=phases_of(c, stage),
        learned_variance=c.loss.learned_variance == "trained",
        remat=c.train.remat,
    )
    return trainable, frozen, recipe


def optimizer(c: StageSettings, stage: Stage, recipe: train.Recipe) -> optax.GradientTransformation:
    """The update rule of a stage's settings, in the phases of what `start` gave."""
    return optim.make(
        c.optim, num_steps=c.train.num_steps, phases=recipe.phases, is_text=stage.is_text
    )


def step(
    c: StageSettings,
    stage: Stage,
    mesh: Mesh,
    trainable: tree.Flat,
    frozen: Mapping[str, Any],
    recipe: train.Recipe,
    adapter: adapt.Adapter,
) -> train.Compiled:
    """The jitted step of a stage on the mesh, for what `start` gave; `c` are the stage's settings.

    Raises:
      ValueError: the rows do not divide over the mesh.
    """
    check_rows(c, mesh)
    return train.compiled(
        trainable,
        frozen,
        stage=stage,
        recipe=recipe,
        adapter=adapter,
        tx=optimizer(c, stage, recipe),
        mesh=mesh,
        rules=c.sharding.rules or stage.family.sharding_rules,
        min_bytes=c.sharding.min_bytes,
    )
