"""A stage whose network is a handful of matrices, so that numpy can say what a step must give.

    output = [xt, condition] @ pixel + mean of text over tokens @ text + (t, noise_level) @ time

with levels in thousandths. All around the network is real: noise path, condition, train step.
"""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import optim, pipeline, sharding, train
from dreambooth_jax.adapt import FULL, Adapter
from dreambooth_jax.diffusion import schedule
from dreambooth_jax.families.unet import SHARDING_RULES

PATH = schedule.from_config({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"})
SIZE, CHANNELS, WIDTH = 4, 3, 6
IDS = np.array([[5, 2, 1], [4, 1, 0]], np.int32)
MASK = np.array([[1, 1, 1], [1, 1, 0]], np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Toy:
    """What `train` needs of a `pipeline.Stage`; `calls` keeps what the network was given."""

    kind: str = "base"
    path: Any = PATH
    noising: Any = PATH
    size: tuple[int, int] = (SIZE, SIZE)
    heads: dict[str, int] = dataclasses.field(default_factory=dict)
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    condition = pipeline.Stage.condition

    def encode_text(self, params, tokens, *, dtype):
        words = params["text_encoder/embedding"][tokens["ids"]]
        return (words * tokens["mask"][..., None]).astype(dtype)

    def predict(self, params, xt, t, text, *, condition=None, noise_level=None, remat="none"):
        self.calls.append({"xt": xt, "t": t, "text": text, "condition": condition})
        self.calls[-1] |= {"noise_level": noise_level, "remat": remat}
        x = xt if condition is None else jnp.concatenate([xt, condition], -1)
        levels = [t] if noise_level is None else [t, noise_level]
        moved = text.mean(1) @ params["unet/text"]
        moved += jnp.stack(levels, -1) / 1000 @ params["unet/time"]
        return x @ params["unet/pixel"] + moved[:, None, None, :]


def weights(*, channels_in: int = CHANNELS, levels: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {
        "unet/pixel": (channels_in, 2 * CHANNELS),
        "unet/text": (WIDTH, 2 * CHANNELS),
        "unet/time": (levels, 2 * CHANNELS),
        "text_encoder/embedding": (8, WIDTH),
    }
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def batch(subject: int, prior: int, *, seed: int = 0, size: int = SIZE) -> dict[str, np.ndarray]:
    """Random pictures, subject and prior rows mixed."""
    rng = np.random.default_rng(seed)
    is_prior = rng.permutation(np.repeat([False, True], [subject, prior]))
    return {
        "mean": rng.uniform(-1, 1, (len(is_prior), size, size, CHANNELS)).astype(np.float32),
        "prompt": is_prior.astype(np.int32),
        "is_prior": is_prior,
    }


def optimizer(name: str = "adamw", **changed: Any) -> Any:
    """Settings of the optimizer; `sgd` and no clipping make a step plain gradient descent."""
    settings = {
        "text_encoder_learning_rate": None,
        "learning_rate": 0.1,
        "warmup_steps": 0,
        "schedule": "constant",
        "final_fraction": 0.0,
        "b1": 0.9 if name != "sgd" else 0.0,
        "b2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "grad_clip": 0.0,
    }
    return SimpleNamespace(name=name, **(settings | changed))


def start(
    recipe: train.Recipe,
    settings: Any,
    *,
    stage: Any = None,
    flat: dict[str, np.ndarray] | None = None,
    rules: Any = (("text_encoder/.*", False), (".*", True)),
    mesh: tuple[int, ...] = (1, 1),
    table: np.ndarray | None = None,
    min_bytes: int = 0,
    adapter: Adapter = FULL,
) -> tuple[train.Compiled, train.TrainState, dict[str, Any]]:
    """The compiled step on `data × fsdp (× tensor)` devices, the state before it, frozen weights.

    `table` holds the texts of a frozen text encoder; the toy's is made from `IDS` and `MASK`, which
    batches carry when it trains. `min_bytes` is far below what a run sets: small leaves are split.
    """
    flat = weights() if flat is None else flat
    trainable, frozen_weights = adapter.init(flat, rules)
    frozen = {"weights": frozen_weights}
    if "text_encoder/embedding" in frozen_weights:
        table = flat["text_encoder/embedding"][IDS] * MASK[..., None]
    if table is not None:
        frozen["table"] = table
    sizes = dict(zip(sharding.AXES, mesh, strict=False))
    run = train.compiled(
        trainable,
        frozen,
        stage=Toy() if stage is None else stage,
        recipe=recipe,
        adapter=adapter,
        tx=optim.make(settings, num_steps=10, is_text=lambda path: path.startswith("text_encoder")),
        mesh=sharding.make_mesh(**sizes, devices=jax.devices()[: math.prod(mesh)]),
        rules=SHARDING_RULES,
        min_bytes=min_bytes,
    )
    return run, run.init(trainable), jax.device_put(frozen, run.frozen)


def bits(tree: Any) -> list[tuple[str, bytes]]:
    """Every leaf with its path, to compare bit for bit."""
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
