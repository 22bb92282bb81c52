"""Runs of the train step with real networks of a single level, in several layouts of devices."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cascades
import jax
import numpy as np
from toy_stage import batch, bits, start

from dreambooth_jax import adapt, families, pipeline, train, tree
from dreambooth_jax.checkpoint import Checkpoints

ONE_LEVEL = {
    "block_out_channels": [16],
    "down_block_types": ["SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"],
    "attention_head_dim": 8,  # two heads
}
# Which leaves are trained: nearly all of the network, or what a test of them needs to compile.
CHOSEN = (("unet/(conv_in|time_embedding)/.*", False), ("unet/.*", True), (".*", False))
MIDDLE = (("unet/mid_block/.*", True), (".*", False))
TABLE = np.random.default_rng(2).normal(size=(2, 5, 32)).astype(np.float32)
LAYOUTS = {"one": (1, 1), "data": (8, 1), "fsdp": (1, 8), "tensor": (2, 2, 2)}


def stages(root: Path) -> dict[str, pipeline.Stage]:
    """The stages of a cascade that is made in `root`."""
    folders = {
        kind: cascades.make(root / kind, kind, unet=ONE_LEVEL) for kind in ("base", "upscaler")
    }
    return {kind: families.open_stage(str(folder), kind=kind) for kind, folder in folders.items()}


def unet_alone(stage: pipeline.Stage) -> tree.Flat:
    return tree.split(pipeline.read_weights(stage), lambda path: path.startswith("unet/"))[0]


@dataclasses.dataclass
class Run:
    """A compiled program and what came out of its steps."""

    program: train.Compiled
    frozen: dict[str, tree.Flat]
    state: train.TrainState
    losses: np.ndarray
    at_six: list[tuple[str, bytes]]

    def go_on(self, state: train.TrainState, steps: range) -> tuple[train.TrainState, list[float]]:
        """The state after `steps`, each with a batch of its own, and their losses."""
        losses = []
        for step in steps:
            given = self.program.put_batch(batch(5, 3, seed=step, size=8))
            state, metrics = self.program.step(state, self.frozen, given)
            losses.append(float(metrics["loss"]))
        return state, losses


def trained(
    stage: pipeline.Stage,
    layout: str,
    recipe: train.Recipe,
    settings: SimpleNamespace,
    *,
    steps: int,
    rules: Any = CHOSEN,
    **how: Any,
) -> Run:
    """A run of `steps` in a layout, on a UNet whose chosen leaves are trained."""
    program, state, frozen = start(
        recipe,
        settings,
        stage=stage,
        flat=unet_alone(stage),
        rules=rules,
        mesh=LAYOUTS[layout],
        table=TABLE,
        min_bytes=1024,
        **how,
    )
    run = Run(program, frozen, state, np.zeros(0), [])
    state, first = run.go_on(state, range(6))
    at_six = bits(state)
    state, others = run.go_on(state, range(6, steps))
    return dataclasses.replace(run, state=state, losses=np.array(first + others), at_six=at_six)


def restored(
    folder: Path,
    first: Run,
    then: Run,
    stage: pipeline.Stage,
    *,
    adapter: adapt.Adapter = adapt.FULL,
    rules: Any = CHOSEN,
) -> train.TrainState:
    """The state after three steps in one layout, saved, and restored into that of another run."""
    trainable, _ = adapter.init(unet_alone(stage), rules)
    state, _ = first.go_on(first.program.init(trainable), range(3))
    with Checkpoints(folder, config={}) as saved:
        saved.save(3, state)
        found = saved.restore(then.program.state)
    assert found is not None
    assert bits(found[0]) == bits(state)
    return found[0]


def adam_moments(state: train.TrainState) -> list[tree.Flat]:
    found = [
        part for part in jax.tree.leaves(state.opt_state, is_leaf=has_moments) if has_moments(part)
    ]
    assert len(found) == 1
    return [found[0].mu, found[0].nu]


def has_moments(part: object) -> bool:
    return hasattr(part, "mu")
