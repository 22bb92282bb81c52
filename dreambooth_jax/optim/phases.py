"""Phases: which leaves are trained at which optimizer steps.

Outside of its phase a leaf has no gradient, hence no share in the global norm that gradients are
clipped to, and neither its value nor what the update rule remembers of it changes. A phase is a run
of its own to its leaves: the rule counts the phase's steps, so that bias corrections, warm-up and
the fall of the learning rate are as they would be from step 0.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreambooth_jax.tree import Flat


class Phase(NamedTuple):
    """The leaves whose whole path `paths` matches, from step `first` up to `stop`, not included.

    learning_rate: the peak, None for that of the settings. Of several phases that match a path the
    first one counts.
    """

    paths: str
    first: int
    stop: int
    learning_rate: float | None = None


Phases = Sequence[Phase]


def owner(phases: Phases, path: str) -> int:
    """The number of the phase that a leaf belongs to.

    Raises:
      ValueError: none matches.
    """
    for number, phase in enumerate(phases):
        if re.fullmatch(phase.paths, path):
            return number
    raise ValueError(f"no phase matches {path!r}: end the table with one for '.*'")


def active(phases: Phases, flat: Mapping[str, Any], step: jax.Array) -> dict[str, jax.Array]:
    """Returns, for each leaf, whether it is trained at this step; without phases all are."""
    if not phases:
        return dict.fromkeys(flat, jnp.ones((), bool))
    now = [(step >= phase.first) & (step < phase.stop) for phase in phases]
    return {path: now[owner(phases, path)] for path in flat}


def masked(grads: Flat, on: Mapping[str, jax.Array]) -> Flat:
    """Gradients of leaves that are not trained now are zero."""
    return {path: jnp.where(on[path], grad, 0) for path, grad in grads.items()}


def phased(
    phases: Phases, rules: Sequence[optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """One rule for each phase and its leaves; `update` is told the optimizer step as `step`.

    The state is a tuple of theirs; that of a phase which is not under way stays as it is.
    """

    def own(flat: Flat, number: int) -> Flat:
        return {path: leaf for path, leaf in flat.items() if owner(phases, path) == number}

    def init(params: Flat) -> tuple[Any, ...]:
        return tuple(rule.init(own(params, number)) for number, rule in enumerate(rules))

    def update(
        updates: Flat, state: tuple[Any, ...], params: Flat, *, step: jax.Array, **extra: Any
    ) -> tuple[Flat, tuple[Any, ...]]:
        del extra
        moved: Flat = {}
        states = []
        for number, (phase, rule) in enumerate(zip(phases, rules, strict=True)):
            on = (step >= phase.first) & (step < phase.stop)
            new, after = rule.update(own(updates, number), state[number], own(params, number))
            moved |= {path: jnp.where(on, x, 0) for path, x in new.items()}
            states.append(
                jax.tree.map(lambda a, b, on=on: jnp.where(on, a, b), after, state[number])
            )
        return moved, tuple(states)

    return optax.GradientTransformationExtraArgs(init, update)
