"""The train step that a run's settings make of a stage, from weights or from their shapes alone."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dreambooth_jax import adapt, generate, optim, sharding, train, tree
from dreambooth_jax import config as configs
from dreambooth_jax.experiment.model import compute_dtype
from dreambooth_jax.pipeline import Stage


def adapter_of(config: ConfigDict, stage: Stage) -> adapt.Adapter:
    """The way in which the run's settings adapt a stage."""
    return adapt.make(config.adapt, seed=config.seed, new_rows=stage.new_rows)


def start(
    c: ConfigDict, weights: tree.Flat, text: generate.Text, adapter: adapt.Adapter
) -> tuple[tree.Flat, dict[str, Any], train.Recipe]:
    """What a stage's settings make of its weights and texts: trainable, frozen, the recipe.

    Raises:
      ValueError: nothing to train, or no text encoder to which its learning rate would apply.
    """
    trainable, frozen_weights = adapter.init(dict(weights), configs.trainable_rules(c))
    phases = configs.phases(c)
    rates = {path: phases[optim.owner(phases, path)].learning_rate for path in trainable if phases}
    slower = [path for path in trainable if optim.is_text(path) and rates.get(path) is None]
    if c.optim.text_encoder_learning_rate and not slower:
        raise ValueError(
            f"optim.text_encoder_learning_rate = {c.optim.text_encoder_learning_rate}, but no text "
            "encoder is trained. Write --config.train.text_encoder=True, or leave it out."
        )
    frozen: dict[str, Any] = {"weights": frozen_weights}
    if not configs.learns_text(c):  # encoded once: the encoder has no part in the steps
        frozen = {
            "weights": tree.split(frozen_weights, lambda path: path.startswith("unet/"))[0],
            "table": text.table,
        }
    if by_prediction := c.prior_loss_weight > 0 and c.prior.kind == "prediction":
        frozen["table"] = text.table  # of the untouched text encoder, too
        if not adapter.keeps_base:  # a second copy: the trained one is overwritten in place
            unet = tree.split(trainable, lambda path: path.startswith("unet/"))[0]
            frozen["before"] = jax.tree.map(jnp.copy, unet)
    recipe = train.Recipe(
        seed=c.seed,
        prior_loss_weight=c.prior_loss_weight,
        min_snr_gamma=c.loss.min_snr_gamma,
        accumulate=c.train.accumulate,
        ema_decay=c.train.ema_decay,
        dtype=compute_dtype(c),
        aug_levels=(c.upscaler.aug_level, c.upscaler.aug_level),
        time_steps=(c.loss.first_step, c.loss.last_step),
        offset_noise=c.loss.offset_noise,
        prior_by_prediction=by_prediction,
        phases=phases,
        learned_variance=c.loss.learned_variance == "trained",
        remat=c.train.remat,
    )
    return trainable, frozen, recipe


def step(
    kind: str,
    c: ConfigDict,
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
    rows_at_once = c.train.batch_size // c.train.accumulate
    sharding.check_rows(rows_at_once, mesh, key=f"batch_size of stage {kind!r}")
    return train.compiled(
        trainable,
        frozen,
        stage=stage,
        recipe=recipe,
        adapter=adapter,
        tx=optim.make(c.optim, num_steps=c.train.num_steps, phases=recipe.phases),
        mesh=mesh,
        rules=c.sharding.rules,
        min_bytes=c.sharding.min_bytes,
    )
