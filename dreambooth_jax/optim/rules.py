"""Update rules by name, what is put around them, and averages of the weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from dreambooth_jax.optim.adam8bit import EIGHT_BITS
from dreambooth_jax.optim.bfloat16 import BFLOAT16
from dreambooth_jax.optim.moments import Coding, scale_by_adam
from dreambooth_jax.optim.phases import Phases, owner, phased
from dreambooth_jax.tree import Flat


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """An update rule by name, its learning rates and its constants."""

    name: str
    learning_rate: float
    text_encoder_learning_rate: float | None
    warmup_steps: int
    schedule: str
    final_fraction: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    grad_clip: float


LR_SCHEDULES: dict[str, Callable[[float, float, int], optax.Schedule]] = {
    "constant": lambda peak, final, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, final, steps: optax.cosine_decay_schedule(peak, steps, alpha=final),
    "linear": lambda peak, final, steps: optax.linear_schedule(peak, peak * final, steps),
}

Rule = Callable[[optax.Schedule, OptimSettings], optax.GradientTransformation]


def _decayed(
    rule: optax.GradientTransformation, lr: optax.Schedule, settings: OptimSettings
) -> optax.GradientTransformation:
    """`rule` at learning rate 1, with decay of the weights, both times the learning rate.

    Optax's own `adafactor` does not multiply its decay by the learning rate, `sgd` has none.
    """
    decay = optax.add_decayed_weights(-settings.weight_decay)
    return optax.chain(rule, decay, optax.scale_by_learning_rate(lr, flip_sign=False))


def _with_moments(coding: Coding) -> Rule:
    """AdamW with moments kept as `coding` does."""
    return lambda lr, o: optax.chain(
        scale_by_adam(o.b1, o.b2, o.eps, coding=coding),
        optax.add_decayed_weights(o.weight_decay),
        optax.scale_by_learning_rate(lr),
    )


OPTIMIZERS: dict[str, Rule] = {
    "adamw": lambda lr, o: optax.adamw(lr, o.b1, o.b2, o.eps, weight_decay=o.weight_decay),
    "adamw_bf16": _with_moments(BFLOAT16),
    "adamw8bit": _with_moments(EIGHT_BITS),
    "prodigy": lambda lr, o: optax.contrib.prodigy(
        lr, betas=(o.b1, o.b2), eps=o.eps, weight_decay=o.weight_decay
    ),
    "schedule_free_adamw": lambda lr, o: optax.contrib.schedule_free_adamw(
        o.learning_rate,
        warmup_steps=o.warmup_steps or None,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
    ),
    "adafactor": lambda lr, o: _decayed(optax.adafactor(None), lr, o),
    "lion": lambda lr, o: optax.lion(lr, o.b1, o.b2, weight_decay=o.weight_decay),
    "sgd": lambda lr, o: _decayed(optax.sgd(1.0, momentum=o.b1 or None), lr, o),
}


def lr_schedule(
    settings: OptimSettings, *, num_steps: int, peak: float | None = None
) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then the named shape until `num_steps` optimizer steps.

    peak: None is the settings' own.
    """
    peak = settings.learning_rate if peak is None else peak
    warmup = settings.warmup_steps
    shape = LR_SCHEDULES[settings.schedule]
    after = shape(peak, settings.final_fraction, max(num_steps - warmup, 1))
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _slower_text(
    settings: OptimSettings, phases: Phases, is_text: Callable[[str], bool]
) -> list[optax.GradientTransformation]:
    """Text encoders at their own learning rate: every rule's update is proportional to it.

    Leaves whose phase has a learning rate keep that one.
    """
    rate = settings.text_encoder_learning_rate
    if rate is None:
        return []
    ratio = rate / settings.learning_rate

    def slower(path: str) -> bool:
        own = phases[owner(phases, path)].learning_rate if phases else None
        return is_text(path) and own is None

    def scaled(updates: Flat, params: Any) -> Flat:
        return {path: ratio * x if slower(path) else x for path, x in updates.items()}

    return [optax.stateless(scaled)]


def make(
    settings: OptimSettings,
    *,
    num_steps: int,
    phases: Phases = (),
    is_text: Callable[[str], bool] = lambda path: False,
) -> optax.GradientTransformation:
    """Clipping to a global norm (0 = off), then the update rule, at one or two learning rates.

    Args:
      phases: with some, `update` takes the optimizer step, as `step`.
      is_text: tells by its path a leaf that `text_encoder_learning_rate` is for.
    """
    clip = [optax.clip_by_global_norm(settings.grad_clip)] if settings.grad_clip else []
    by_name = OPTIMIZERS[settings.name]
    if phases:
        rules = [
            by_name(
                lr_schedule(settings, num_steps=max(p.stop - p.first, 1), peak=p.learning_rate),
                settings,
            )
            for p in phases
        ]
        rule: optax.GradientTransformation = phased(phases, rules)
    else:
        rule = by_name(lr_schedule(settings, num_steps=num_steps), settings)
    parts = [*clip, rule, *_slower_text(settings, phases, is_text)]
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def keeps_average(name: str, ema_decay: float) -> bool:
    """Returns True if a run keeps averaged weights, which then are its result."""
    return ema_decay > 0 or name == "schedule_free_adamw"


def evaluated(opt_state: Any, params: Flat) -> Flat | None:
    """The average that schedule-free AdamW makes itself; None for other rules."""

    def its_own(part: Any) -> bool:
        return isinstance(part, optax.contrib.ScheduleFreeState)

    for part in jax.tree.leaves(opt_state, is_leaf=its_own):
        if its_own(part):
            return dict(optax.contrib.schedule_free_eval_params(part, params))
    return None


def average(ema: Flat, new: Flat, step: jax.Array, decay: float, *, phases: Phases = ()) -> Flat:
    """The exponential moving average after n + 1 updates; n is `step`.

    The decay rises as (1 + n) / (10 + n), up to `decay`, which lets the average forget the starting
    point early (as in TensorFlow's ExponentialMovingAverage). With phases n counts from the start
    of a leaf's own, before which its average stays; after its end it continues towards the
    leaf's last value.
    """

    def one(path: str) -> jax.Array:
        first = phases[owner(phases, path)].first if phases else 0
        n = jnp.maximum(step - first, 0)
        rate = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
        moved = rate * ema[path] + (1 - rate) * new[path]
        return moved if first == 0 else jnp.where(step < first, ema[path], moved)

    return {path: one(path) for path in ema}
