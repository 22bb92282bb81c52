"""The estimated memory of a train step against that of its devices, before it is compiled."""

from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from dreambooth_jax import chips, sharding, train
from dreambooth_jax import config as configs
from dreambooth_jax.config import Plan
from dreambooth_jax.experiment.training import shapes
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.train import memory


def line(plan: Plan, kind: str, stages: Mapping[str, Stage], run: train.Compiled) -> str:
    """Log line: estimated memory per device against its capacity, with remedies.

    Of a device that does not tell its memory (a CPU) only the state is added up.
    """
    mesh = run.mesh
    device = mesh.devices.flat[0]
    limit = memory_of(device)
    if limit is None:
        state = memory.of_state(run)
        return f"{kind}: state and gradients take {state / 2**20:.1f} MiB on each device."
    found = estimate(plan, kind, stages, mesh)
    told = f"{kind}: about {found} on each device of {limit / 2**30:.2f} GiB."
    if found.total <= limit:
        return told
    others = [
        (words, estimate(changed, kind, stages, there).total)
        for words, changed, there in _remedies(plan, kind, mesh)
    ]
    enough = [words for words, total in others if total <= limit]
    listed = ", ".join(f"{words} {total / 2**30:.1f}" for words, total in others)
    advice = f"Any of these would make it fit: {'; '.join(enough)}." if enough else "Use several."
    return f"{told} It will probably not fit. {advice} GiB with each: {listed}."


def memory_of(device: Any) -> float | None:
    """Bytes that programs may take on a device; None where they are unknown."""
    try:
        stats = device.memory_stats()
    except Exception:  # devices of a topology that is not here have none
        stats = None
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    chip = chips.of(device)
    return chip.memory if chip else None


def estimate(plan: Plan, kind: str, stages: Mapping[str, Stage], mesh: Mesh) -> memory.Estimate:
    """Estimates the memory of a stage's step on each device."""
    step = shapes.step_of(plan, kind, stages, mesh)
    return memory.estimate(
        step.run,
        step.frozen,
        step.batch,
        stage=step.stage,
        recipe=step.recipe,
        adapter=step.adapter,
    )


def _remedies(plan: Plan, kind: str, mesh: Mesh) -> Iterator[tuple[str, Plan, Mesh]]:
    """Settings that save memory, as (what to write, the configuration with it, its mesh)."""
    c = plan.stages[kind]
    most, most_fsdp = c.train.batch_size // sharding.row_shards(mesh), sharding.row_shards(mesh)
    own = {first: key for key, first in configs.STAGE_KEYS.items()} if kind == "upscaler" else {}
    changes: list[tuple[str, Any, bool]] = [
        ("train.remat", "blocks", c.train.remat != "blocks"),
        (own.get("train.accumulate", "train.accumulate"), most, most > c.train.accumulate),
        ("dtype", "bfloat16", plan.dtype == "float32"),
        ("optim.name", "adamw_bf16", plan.optim.name not in ("adamw_bf16", "adamw8bit")),
        ("optim.name", "adamw8bit", plan.optim.name != "adamw8bit"),
        ("mesh.fsdp", most_fsdp, mesh.shape["fsdp"] < most_fsdp),
        ("adapt.name", "lora", plan.adapt.name == "full"),
    ]
    for key, value, helps in changes:
        if helps:
            there = mesh
            if key == "mesh.fsdp":
                devices = list(mesh.devices.flat)
                tensor = mesh.shape["tensor"]
                there = sharding.make_mesh(data=1, fsdp=value, tensor=tensor, devices=devices)
            yield f"{key}={value}", configs.changed(plan, {key: value}), there
