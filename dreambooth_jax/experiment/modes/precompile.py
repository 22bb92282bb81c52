"""--mode=precompile: a run's programs, compiled from shapes for devices that are not here."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreambooth_jax import adapt, files, generate, precompile, sharding, tree
from dreambooth_jax import config as configs
from dreambooth_jax.config import ConfigDict, Plan
from dreambooth_jax.experiment.parts import holding
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.model import settings_of
from dreambooth_jax.experiment.training import memory as budget
from dreambooth_jax.experiment.training import program, shapes
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.train import fleet, memory


class DoesNotFit(ValueError):
    """A program needs more memory than its device has."""


def forecast(config: ConfigDict, folder: Path) -> Path:
    """Compiles `precompile.programs` of every stage for TPU slices or GPUs; nothing runs.

    Those of `precompile.topology`, `precompile.num_slices` of them.

    Needs the model's configuration files alone: no weights, no photos, no device. A table goes to
    the log, and to `precompile.json` in `folder`, which is returned.

    Raises:
      DoesNotFit: after all of that, where a program needs more memory than a device has.
      ValueError, OSError: what was found, expected, and what to do.
    """
    plan = configs.resolve(config)
    if "fleet" in plan.precompile.programs and not adapt.keeps_base(plan.adapt):
        raise ValueError(
            f"adapt.name = {plan.adapt.name!r}: a fleet trains small leaves of many subjects "
            "beside one base. Write --config.adapt.name=lora or textual_inversion, or leave "
            "'fleet' out of precompile.programs."
        )
    jax.config.update("jax_platforms", "cpu")  # nothing is to run, whatever is in this computer
    c = plan.precompile
    devices = precompile.topology(c.topology, num_slices=c.num_slices)
    target = c.topology if c.num_slices == 1 else f"{c.num_slices} slices of {c.topology}"
    mesh = setup.make_mesh(plan, devices)
    stages = setup.open_stages(plan, shapes_only=True)
    for kind, stage in stages.items():
        setup.tell_places(plan, kind, stage, mesh)
    found: list[precompile.Forecast] = []
    for what in c.programs:
        for kind in stages if what == "sample" else plan.trained:
            logging.info("Compiling %s, %s, for %s.", kind, what, target)
            name, jitted, args = PROGRAMS[what](plan, kind, stages, mesh)
            beside = _beside(plan, what, stages[kind], mesh)
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


def _beside(plan: Plan, what: str, stage: Stage, mesh: Mesh) -> float:
    """Bytes on each device, while a stage trains, of the VAE that draws its prompt grids."""
    weights = _weights(plan, stage, mesh)
    coder = {path: leaf for path, leaf in weights.items() if stage.is_codec(path)}
    return 0.0 if what == "sample" else memory.per_device(coder)


def _weights(plan: Plan, stage: Stage, mesh: Mesh) -> tree.Flat:
    """The stage's leaves as they lie on the mesh, by shape."""
    by_path = setup.places(plan, stage, mesh)
    return {
        path: jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            leaf,
            by_path[path],
        )
        for path, leaf in holding.shapes(plan, stage).items()
    }


def _drawing(
    plan: Plan, kind: str, stages: Mapping[str, Stage], mesh: Mesh
) -> tuple[str, Any, tuple[Any, ...]]:
    """The sampler of a stage as it draws class images."""
    stage, rows = stages[kind], sharding.rows(mesh)
    count = sharding.whole_rows(plan.prior.batch_size, mesh)
    weights = _weights(plan, stage, mesh)
    drawing = {path: leaf for path, leaf in weights.items() if path.startswith(stage.drawing)}
    given = {
        name: jax.ShapeDtypeStruct((count,), dtype, sharding=rows)
        for name, dtype in (("prompt", jnp.int32), ("seed", jnp.uint32))
    }
    if kind == "upscaler":
        shape = (count, *stages["base"].sample_shape)
        given["low_res"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
    table = shapes.on(sharding.replicated(mesh), shapes.texts(plan, stage)[1])
    made = generate.Sampler(stage, settings_of(plan, stage), mesh=mesh)
    name = f"{kind}: draw, {count // sharding.row_shards(mesh)} row(s)"
    return name, made.program, (drawing, table, given)


def _training(
    plan: Plan, kind: str, stages: Mapping[str, Stage], mesh: Mesh
) -> tuple[str, Any, tuple[Any, ...]]:
    """The train step of a stage."""
    step = shapes.step_of(plan, kind, stages, mesh)
    logging.info("%s", budget.line(plan, kind, stages, step.run))
    rows = plan.stages[kind].train.batch_size // sharding.row_shards(mesh)
    return f"{kind}: train step, {rows} row(s)", step.run.step, step.args


def _of_many(
    plan: Plan, kind: str, stages: Mapping[str, Stage], mesh: Mesh
) -> tuple[str, Any, tuple[Any, ...]]:
    """The train step of `fleet.at_once` subjects, spread over the devices as --mode=fleet does."""
    count, own, devices = plan.fleet.at_once, plan.stages[kind], mesh.devices.flat[:].tolist()
    alone = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=devices[:1])
    step = shapes.step_of(plan, kind, stages, alone)
    over = fleet.mesh_of(devices, subjects=count)
    split, whole = NamedSharding(over, P("data")), sharding.replicated(over)
    tx = program.optimizer(own, step.stage, step.recipe)

    def stacked(part: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=split), part
        )

    together = fleet.compiled(step.stage, step.recipe, step.adapter, tx, mesh=over)
    beside = {name: part for name, part in step.frozen.items() if name != "weights"}
    weights = shapes.on(whole, step.frozen["weights"])
    args = (stacked(step.run.state), weights, stacked(beside), stacked(step.batch))
    name = f"{kind}: fleet, {count // over.size} x {own.train.batch_size} row(s)"
    return name, together, args


PROGRAMS = {"sample": _drawing, "train": _training, "fleet": _of_many}
