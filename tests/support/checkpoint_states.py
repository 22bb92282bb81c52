"""Training states for the tests of checkpoints, and how to compare them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreambooth_jax.checkpoint import Checkpoints

CONFIG = {"train": {"lr": 0.001, "num_steps": 10, "sizes": (1, 2)}, "log": {"every": 5}}
KERNEL = "unet/down/0/kernel"
BIAS = "unet/down/0/bias"


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    step: Any
    trainable: Any
    opt_state: Any
    ema: Any


def mesh(count: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))


def make_state(step: int, *, devices: int = 8, ema: bool = True) -> TrainState:
    """Random bits do not compress: KERNEL and BIAS lie in the files as they are in memory.

    Their chunks are larger than 1 kB: smaller ones OCDBT keeps in its index, under a CRC.
    """
    rng = np.random.default_rng(step)

    def weights() -> dict[str, jax.Array]:
        return {
            KERNEL: jnp.asarray(rng.integers(0, 2**32, (64, 96), np.uint32).view(np.float32)),
            BIAS: jnp.asarray(rng.integers(0, 2**16, (8192,), np.uint16).view(jnp.bfloat16)),
            "embedding": jnp.asarray(rng.standard_normal((8, 3), dtype=np.float32)),
        }

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    trainable = weights()
    state = TrainState(jnp.int32(step), trainable, tx.init(trainable), weights() if ema else None)

    def place(leaf: jax.Array) -> jax.Array:
        split = leaf.ndim > 0 and leaf.shape[0] % devices == 0
        spec = PartitionSpec("data") if split else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh(devices), spec))

    return jax.tree.map(place, state)


def like(state: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def bits(state: Any) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Everything about a state that must survive, leaf by leaf."""
    return [
        (jax.tree_util.keystr(path), str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def saved(folder: Path, *steps: int, config: Any = None, **settings: Any) -> Path:
    with Checkpoints(folder, config=CONFIG if config is None else config, **settings) as writer:
        for step in steps:
            writer.save(step, make_state(step))
    return folder


def reader(folder: Path, config: Any = None, **settings: Any) -> Checkpoints:
    return Checkpoints(folder, config=CONFIG if config is None else config, **settings)


def files(step_folder: Path) -> list[Path]:
    return sorted(path for path in step_folder.rglob("*") if path.is_file())
