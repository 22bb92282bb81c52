"""Recipes of both stages: the arms of a bake-off, and those that are trained for long."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib
from folders import UPSCALER_UNET, base_unet

from dreambooth_jax import optim, train

OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 1e-3,
    "text_encoder_learning_rate": None,
    "warmup_steps": 100,
    "schedule": "constant",  # a run goes on for as long as work lasts; the average is what is kept
    "final_fraction": 1.0,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "grad_clip": 1.0,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that shapes the training of a stage.

    channels, layers: of a base's UNet; an upscaler's is `UPSCALER_UNET`. start: "fresh"; "text":
    the shipped text encoder, a fresh UNet; "shipped": all shipped weights whose shapes match.
    small: pictures seen at 16² before those at full size. thing: weight of the error on a thing's
    pixels. optimizer: "adamw", "muon" or "schedule_free_adamw". seed: of the initial weights and of
    the noise. kind: the stage; an upscaler has the text encoder of the base beside it, which stays
    as it is. cool: pictures from which on the rate falls to zero in a line, and where it ends; the
    average is `COOL_EMA` then, which has forgotten the rest of the run.
    """

    channels: tuple[int, ...] = (48, 96, 192)
    layers: int = 1
    start: str = "text"
    small: int = 100_000
    rows: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    min_snr: float = 0.0
    thing: float = 1.0
    ema: float = 0.999
    seed: int = 0
    kind: str = "base"
    cool: tuple[int, int] = (0, 0)

    @property
    def unet(self) -> dict[str, Any]:
        """The configuration of the UNet."""
        return UPSCALER_UNET if self.kind == "upscaler" else base_unet(self.channels, self.layers)

    @property
    def size(self) -> int:
        """Pixels a side of the stage's pictures."""
        return int(self.unet["sample_size"])

    @property
    def step_recipe(self) -> train.Recipe:
        """The recipe of the train step."""
        return train.Recipe(
            seed=self.seed,
            ema_decay=COOL_EMA if any(self.cool) else self.ema,
            min_snr_gamma=self.min_snr,
            aug_levels=(0, 400) if self.kind == "upscaler" else (0, 0),
        )

    def at(self, step: int) -> tuple[int, int]:
        """Returns the number of the first scene of a step, and the pixels a side it is seen at."""
        first = step * self.rows
        return first, 16 if first < self.small else self.size

    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        if self.optimizer == "muon":
            rule = muon(self.learning_rate, OPTIMIZER["warmup_steps"])
        else:
            given = {"name": self.optimizer, "learning_rate": self.learning_rate}
            settings = ml_collections.ConfigDict(OPTIMIZER | given)
            rule = optim.make(settings, num_steps=10**9)  # constant: the end does not matter
        return cooled(rule, *(number // self.rows for number in self.cool))


def cooled(
    rule: optax.GradientTransformation, first: int, end: int
) -> optax.GradientTransformation:
    """Returns the rule with updates that fall to zero in a line between two steps.

    Its state is that of `rule`, whose own count of steps is read: a run that was begun without an
    end is cooled from any checkpoint. `end` 0: the rule as it is.
    """
    if not end:
        return rule

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(updates, state, params)
        counts = optax.tree_utils.tree_get_all_with_path(state, "count")
        step = counts[0][1] - 1
        share = jnp.clip((end - step) / (end - first), 0.0, 1.0)
        return jax.tree.map(lambda x: x * share.astype(x.dtype), updates), state

    return optax.GradientTransformation(rule.init, update)


def muon(learning_rate: float, warmup: int) -> optax.GradientTransformation:
    """Returns Muon for kernels, AdamW with Nesterov's momentum for others (Jordan et al. 2024).

    A convolution's kernel `[h,w,in,out]` is a matrix `[h·w·in, out]`. The update of a matrix has
    the root mean square of AdamW's, so that one learning rate serves both (Liu et al. 2025).
    """
    dimensions = optax.contrib.MuonDimensionNumbers

    def kind(path: Any, leaf: jax.Array) -> Any:
        if leaf.ndim < 2 or "embedding" in jax.tree_util.keystr(path):
            return None
        return dimensions(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    def kinds(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(kind, params)

    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup), optax.constant_schedule(learning_rate)],
        [warmup],
    )
    rule = optax.contrib.muon(
        rate,
        weight_decay=OPTIMIZER["weight_decay"],
        adam_b1=OPTIMIZER["b1"],
        adam_b2=OPTIMIZER["b2"],
        muon_weight_dimension_numbers=kinds,
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(OPTIMIZER["grad_clip"]), rule)


COOL_EMA = 0.99
MIDDLE = (32, 64, 128, 160)
RECIPES: dict[str, Recipe] = {
    # For an accelerator: with the upscaler 16 MB in float16.
    "long": Recipe(channels=(40, 80, 160), small=400_000, rows=128, learning_rate=1.4e-3),
    # For a processor: four levels cost no more than three of the same channels.
    "middle": Recipe(channels=MIDDLE, small=150_000),
    # From what the package ships, towards a thing's shape: errors of little noise count less.
    "middle on": Recipe(channels=MIDDLE, start="shipped", small=0, min_snr=5.0, thing=2.0),
    # And with all pixels alike, cooled from its first picture: meant for places, which it left as
    # they were (docs/embedded_base.md).
    "middle end": Recipe(
        channels=MIDDLE, start="shipped", small=0, min_snr=5.0, learning_rate=7e-4
    ),
    # In the world as it is now, with birds shown ten times as often as another noun, not three.
    "birds": Recipe(channels=MIDDLE, start="shipped", small=0, min_snr=5.0, thing=2.0),
    # From those, with the optimizer that the bake-off found ahead; errors of all noise count again.
    "muon on": Recipe(
        channels=MIDDLE, start="shipped", small=0, thing=2.0, optimizer="muon", learning_rate=2e-3
    ),
    "upscaler": Recipe(kind="upscaler", start="shipped", small=0, rows=8, learning_rate=8e-4),
}

# The arms of `tools/bake_off.py`: the text encoder that ships, a fresh UNet, as many pictures in
# each, most of them at 16². The first is what the others differ from in one thing.
_FIRST = Recipe(channels=MIDDLE, small=16_000, cool=(17_600, 20_800))
BAKE_OFF = {
    "reference": _FIRST,
    "channels 16-32-64-128": dataclasses.replace(_FIRST, channels=(16, 32, 64, 128)),
    "channels 48-96-192": dataclasses.replace(_FIRST, channels=(48, 96, 192)),
    "32-64-128, two layers": dataclasses.replace(_FIRST, channels=(32, 64, 128), layers=2),
    "Muon, 2e-3": dataclasses.replace(_FIRST, optimizer="muon", learning_rate=2e-3),
    "schedule-free AdamW": dataclasses.replace(_FIRST, optimizer="schedule_free_adamw"),
    "16 rows, 7e-4": dataclasses.replace(_FIRST, rows=16, learning_rate=7e-4),
    "64 rows, 1.4e-3": dataclasses.replace(_FIRST, rows=64, learning_rate=1.4e-3),
    "min-SNR 5": dataclasses.replace(_FIRST, min_snr=5.0),
    "thing 2": dataclasses.replace(_FIRST, thing=2.0),
    "19,200 at 16²": dataclasses.replace(_FIRST, small=19_200),
    "EMA 0.999, not cooled": dataclasses.replace(_FIRST, cool=(0, 0)),
}
RECIPES |= {f"bake-off: {name}": recipe for name, recipe in BAKE_OFF.items()}
LOSS_TIMES = jnp.array([100, 300, 500, 700, 900])  # time steps at which held-out errors are taken
