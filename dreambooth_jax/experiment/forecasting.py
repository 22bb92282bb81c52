"""--mode=precompile: a run's programs, compiled from shapes for a TPU that is not here."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dreambooth_jax import config as configs
from dreambooth_jax import files, generate, precompile, sharding, tree
from dreambooth_jax.experiment import budget, painter, setup, shapes
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.train import memory


class DoesNotFit(ValueError):
    """A program needs more memory than its device has."""


def forecast(config: ConfigDict, folder: Path) -> Path:
    """Compiles `precompile.programs` of every stage for TPU slices; nothing runs.

    Those of `precompile.topology`, `precompile.num_slices` of them.

    Needs the model's configuration files alone: no weights, no photos, no TPU. A table goes to the
    log, and to `precompile.json` in `folder`, which is returned.

    Raises:
      DoesNotFit: after all of that, where a program needs more memory than a device has.
      ValueError, OSError: what was found, expected, and what to do.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing is to run, whatever is in this computer
    c = config.precompile
    devices = precompile.topology(c.topology, num_slices=c.num_slices)
    target = c.topology if c.num_slices == 1 else f"{c.num_slices} slices of {c.topology}"
    mesh = setup.make_mesh(config, devices)
    stages = setup.open_stages(config, shapes_only=True)
    for kind, stage in stages.items():
        setup.tell_places(config, kind, stage, mesh)
    found: list[precompile.Forecast] = []
    for what in c.programs:
        for kind in stages if what == "sample" else config.stages:
            logging.info("Compiling %s, %s, for %s.", kind, what, target)
            name, jitted, args = PROGRAMS[what](config, kind, stages, mesh)
            beside = _beside(config, what, stages[kind], mesh)
            found.append(precompile.forecast(name, jitted, *args, devices=devices, beside=beside))
    logging.info("%s, mesh %s:\n%s", target, sharding.describe(mesh), precompile.as_table(found))
    file = folder / "precompile.json"
    files.write_text(file, json.dumps([dataclasses.asdict(f) for f in found], indent=1) + "\n")
    over = [f for f in found if not f.fits]
    if over:
        told = "; ".join(
            f"{f.program} takes {f.memory / 2**30:.2f} GiB of {(f.limit or 0) / 2**30:.2f}"
            for f in over
        )
        raise DoesNotFit(
            f"{target}: {told} on each device. Less memory: mesh.fsdp, "
            "train.remat, train.accumulate, optim.name=adamw_bf16 or adamw8bit, "
            "adapt.name=lora, dtype=bfloat16; for drawing a smaller prior.batch_size."
        )
    return file


def _beside(config: ConfigDict, what: str, stage: Stage, mesh: Mesh) -> float:
    """Bytes on each device, while a stage trains, of the VAE that draws its prompt grids."""
    weights = _weights(config, stage, mesh)
    coder = {path: leaf for path, leaf in weights.items() if path.startswith("vae/")}
    return memory.per_device(coder) if what == "train" else 0.0


def _weights(config: ConfigDict, stage: Stage, mesh: Mesh) -> tree.Flat:
    """The stage's leaves as they lie on the mesh, by shape."""
    by_path = setup.places(config, stage, mesh)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_path[path])
        for path, leaf in stage.abstract.items()
    }


def _drawing(
    config: ConfigDict, kind: str, stages: Mapping[str, Stage], mesh: Mesh
) -> tuple[str, Any, tuple[Any, ...]]:
    """The sampler of a stage as it draws class images."""
    stage, rows = stages[kind], sharding.rows(mesh)
    count = sharding.whole_rows(config.prior.batch_size, mesh)
    weights = _weights(config, stage, mesh)
    drawing = {path: leaf for path, leaf in weights.items() if path.startswith(generate.DRAWING)}
    low = None
    if kind == "upscaler":
        shape = (count, *stages["base"].sample_shape)
        low = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
    numbers = [jax.ShapeDtypeStruct((count,), t, sharding=rows) for t in (jnp.int32, jnp.uint32)]
    table = shapes.on(sharding.replicated(mesh), shapes.texts(config, stage)[1])
    made = generate.Sampler(stage, painter.settings_of(config, kind), mesh=mesh)
    name = f"{kind}: draw, {count // sharding.row_shards(mesh)} row(s)"
    return name, made.program, (drawing, table, *numbers, low)


def _training(
    config: ConfigDict, kind: str, stages: Mapping[str, Stage], mesh: Mesh
) -> tuple[str, Any, tuple[Any, ...]]:
    """The train step of a stage."""
    step = shapes.step_of(config, kind, stages, mesh)
    logging.info("%s", budget.line(config, kind, stages, step.run))
    rows = configs.for_stage(config, kind).train.batch_size // sharding.row_shards(mesh)
    return f"{kind}: train step, {rows} row(s)", step.run.step, step.args


PROGRAMS = {"sample": _drawing, "train": _training}
