r"""What a train step takes at each shape of `data.buckets`, traced: memory, operations, least time.

    python tools/shape_tables.py build/shapes                      # Stable Diffusion 1.5 and XL
    python tools/shape_tables.py build/shapes sd15 --count=9 --device=rtx4090

Nothing is compiled and no weights are needed. Memory is the estimate that a run tells before it
compiles; the least time is that of the products at the device's published rate.
"""

import argparse
from pathlib import Path

import architectures
import tpu_tables

from dreambooth_jax import chips, flops, precompile
from dreambooth_jax import config as configs
from dreambooth_jax.experiment.parts import loading, subjects
from dreambooth_jax.experiment.training import memory, shapes

KINDS = {  # configuration, architecture, what differs; 2 rows
    "sd15": (tpu_tables.SD, "sd15", ()),
    "sdxl": (tpu_tables.SDXL, "sdxl", (tpu_tables.LORA, tpu_tables.BLOCKS)),
}


def lines(folder: Path, name: str, device: str, count: int) -> None:
    """Prints a line for each shape."""
    config, architecture, changed = KINDS[name]
    c = tpu_tables.settings(folder, (config, architecture, device, changed))
    c.data.buckets = count
    devices = precompile.topology(device)[:1]
    chip = chips.of(devices[0])
    plan = configs.resolve(c)
    own = loading.open_stages(plan, shapes_only=True)["base"]
    for size in subjects.shapes(plan, own):
        c.resolution = size
        plan = configs.resolve(c)
        mesh = loading.make_mesh(plan, devices)
        stages = loading.open_stages(plan, shapes_only=True)
        step = shapes.step_of(plan, "base", stages, mesh)
        work = flops.count(step.run.step.trace(*step.args).jaxpr)
        found = memory.estimate(plan, "base", stages, mesh)
        pixels = size[0] * size[1] / (own.size[0] * own.size[1])
        least = "" if chip is None else f"{work / chip.flops * 1e3:.1f}"
        print(
            f"| {name} | {size[1]}×{size[0]} | {pixels:.2f} | {found.total / 2**30:.2f} | "
            f"{work / 1e12:.2f} | {least} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(KINDS))
    parser.add_argument("--count", type=int, default=5, help="shapes, an odd number")
    parser.add_argument("--device", default="h100")
    args = parser.parse_args()
    architectures.write(args.folder / "architectures")
    print("| | width×height | of the area | GiB | TFLOP | ms at least |\n|---|---|---|---|---|---|")
    for name in args.names:
        lines(args.folder.resolve(), name, args.device, args.count)


if __name__ == "__main__":
    main()
