r"""The tables of docs/tpu.md: programs of published architectures on TPU slices.

    python tools/tpu_tables.py build/tpu estimate           # traced alone: seconds a row
    python tools/tpu_tables.py build/tpu compile sd15       # compiled: minutes to an hour a row
    python tools/tpu_tables.py build/tpu table              # Markdown of what was compiled so far

Rows whose name begins with one of the last words; all without any. Compiling a row is the main
command with --mode=precompile, in a process of its own; what is there is not compiled again.
"""

import argparse
import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import architectures

from dreambooth_jax import config as configs
from dreambooth_jax import flops, precompile
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.training import memory as budget
from dreambooth_jax.experiment.training import shapes

ROOT = Path(__file__).resolve().parent.parent
SD, SDXL, IF = "stable_diffusion.py:sd15", "sdxl.py", "deepfloyd_if.py"
EIGHT, BF16 = "optim.name=adamw8bit", "optim.name=adamw_bf16"
NONE, BLOCKS, LORA = "train.remat=none", "train.remat=blocks", "adapt.name=lora"
DRAW = "precompile.programs=('sample',)"
FLEET = "precompile.programs=('fleet',)"
HALF, INT8 = "adapt.frozen_dtype=bfloat16", "adapt.frozen_dtype=int8"  # float32 without
# Name -> configuration, architecture, slice, what differs. Rows are of all devices together.
Row = tuple[str, str, str, tuple[str, ...]]
ROWS: dict[str, Row] = {
    "sd15 full, 2 rows": (SD, "sd15", "v5e:1x1", ()),
    "sd15 full, remat none, 2 rows": (SD, "sd15", "v5e:1x1", (NONE,)),
    "sd15 full, bf16 moments, 2 rows": (SD, "sd15", "v5e:1x1", (BF16,)),
    "sd15 full, 8-bit, 2 rows": (SD, "sd15", "v5e:1x1", (EIGHT,)),
    "sd15 full, 8-bit, remat blocks, 8 rows": (
        SD,
        "sd15",
        "v5e:1x1",
        ("train.batch_size=8", EIGHT, BLOCKS),
    ),
    "sd15 LoRA, 2 rows": (SD, "sd15", "v5e:1x1", (LORA,)),
    "sd15 LoRA, bfloat16, 2 rows": (SD, "sd15", "v5e:1x1", (LORA, HALF)),
    "sd15 LoRA, int8, 2 rows": (SD, "sd15", "v5e:1x1", (LORA, INT8)),
    "sd15 LoRA, fleet of 8 x 2 rows, bfloat16": (SD, "sd15", "v5e:1x1", (LORA, HALF, FLEET)),
    "sd15 LoRA, 8 rows": (SD, "sd15", "v5e:1x1", (LORA, "train.batch_size=8")),
    "sd15 full, 2 rows, v4": (SD, "sd15", "v4:1x1x1", ()),
    "sd15 full, 2 rows, v5p": (SD, "sd15", "v5p:1x1x1", ()),
    "sd15 full, 2 rows, v6e": (SD, "sd15", "v6e:1x1", ()),
    "sd15 LoRA, 2 rows, v4": (SD, "sd15", "v4:1x1x1", (LORA,)),
    "sd15 LoRA, 2 rows, v5p": (SD, "sd15", "v5p:1x1x1", (LORA,)),
    "sd15 LoRA, 2 rows, v6e": (SD, "sd15", "v6e:1x1", (LORA,)),
    "sd15 drawing, 8 images": (SD, "sd15", "v5e:1x1", (DRAW,)),
    "sdxl drawing, 4 images": (SDXL, "sdxl", "v5e:1x1", (DRAW,)),
    "if_xl drawing, fsdp 4, 8 images, v5p-8": (IF, "if_xl", "v5p:2x2x1", ("mesh.fsdp=4", DRAW)),
    "sdxl LoRA, 2 rows": (SDXL, "sdxl", "v5e:1x1", (LORA, BLOCKS)),
    "sdxl LoRA, bfloat16, 2 rows": (SDXL, "sdxl", "v5e:1x1", (LORA, BLOCKS, HALF)),
    "sdxl LoRA, int8, 2 rows": (SDXL, "sdxl", "v5e:1x1", (LORA, BLOCKS, INT8)),
    "sdxl full, fsdp 4, 4 rows": (
        SDXL,
        "sdxl",
        "v5e:2x2",
        ("mesh.fsdp=4", "train.batch_size=4", EIGHT, BLOCKS),
    ),
    "if_xl full, fsdp 4, v5p-8": (IF, "if_xl", "v5p:2x2x1", ("mesh.fsdp=4", BLOCKS)),
    "if_xl full, fsdp 16, v5e-16": (
        IF,
        "if_xl",
        "v5e:4x4",
        ("mesh.fsdp=16", "train.batch_size=16", EIGHT, BLOCKS),
    ),
}

# LoRA of rank 16 of transformers at 1024 pixels; on one chip one photo and one class image.
FLOWS = {
    "sd35_large": "sd3.py:large35",
    "flux_dev": "flux.py:dev",
    "z_image": "z_image.py",
    "klein_4b": "flux2.py:klein_4b",
}
SPLIT = ("mesh.fsdp=8", "train.batch_size=8")
for _name, _config in FLOWS.items():
    ROWS |= {
        f"{_name} LoRA, int8, v5e": (_config, _name, "v5e:1x1", (INT8,)),
        f"{_name} LoRA, fsdp 8, 8 rows, v5e-8": (_config, _name, "v5e:2x4", SPLIT),
    }


def flags(folder: Path, row: Row) -> list[str]:
    """The main command's flags for a row, short of --workdir."""
    config, architecture, topology, changed = row
    told = [
        f"base_model={folder / 'architectures' / architecture}",
        *(["upscaler_model=", "stages=('base',)"] if config == IF else []),
        f"precompile.topology={topology}",
        *([] if {DRAW, FLEET} & {*changed} else ["precompile.programs=('train',)"]),
        *changed,
    ]
    return [f"--config=configs/{config}", *(f"--config.{setting}" for setting in told)]


def settings(folder: Path, row: Row) -> Any:
    """The same as a configuration."""
    file, _, variant = row[0].partition(":")
    c = runpy.run_path(str(ROOT / "configs" / file))["get_config"](variant)
    known = configs.flatten(c)
    for flag in flags(folder, row)[1:]:
        key, _, value = flag.removeprefix("--config.").partition("=")
        kinds = {int: int, tuple: lambda text: tuple(text.strip("(),").replace("'", "").split(","))}
        c.update_from_flattened_dict({key: kinds.get(type(known[key]), str)(value)})
    return c


def estimate(folder: Path, name: str, row: Row) -> None:
    c = settings(folder, row)
    if "train" not in c.precompile.programs:
        return
    devices, plan = precompile.topology(c.precompile.topology), configs.resolve(c)
    mesh = setup.make_mesh(plan, devices)
    stages = setup.open_stages(plan, shapes_only=True)
    step = shapes.step_of(plan, "base", stages, mesh)
    work = flops.count(step.run.step.trace(*step.args).jaxpr) / len(devices)
    found = budget.estimate(plan, "base", stages, mesh)
    limit = budget.memory_of(devices[0])
    print(f"{name}: {found}, of {limit / 2**30:.2f}; {work / 1e12:.2f} TFLOP", flush=True)


def compile_row(folder: Path, name: str, row: Row) -> None:
    out = folder / name.replace(" ", "_").replace(",", "")
    if (out / "precompile.json").is_file():
        return
    words = [sys.executable, "-m", "dreambooth_jax.main", "--mode=precompile"]
    words += [*flags(folder, row), f"--workdir={out}"]
    print(shlex.join(words), flush=True)
    subprocess.run(words, cwd=ROOT, check=False)  # status 1: it does not fit, and says so


def table(folder: Path, names: list[str]) -> None:
    head = (
        "| | chip | fits | GiB | arguments | temporaries | TFLOP | GB moved | sent | ms at least |"
    )
    print(f"{head} compiled in s |\n{'|---' * 11}|")
    for name in names:
        file = folder / name.replace(" ", "_").replace(",", "") / "precompile.json"
        if not file.is_file():
            continue
        (f,) = [precompile.Forecast(**told) for told in json.loads(file.read_text())]
        line = precompile.as_table([f]).splitlines()[1][len(f"{f.program:<34}") :].split()
        fits, memory, _, _, arguments, temporaries, work, moved, sent, least = line
        seconds = f"{f.compile_seconds:.0f}"
        cells = (name, f.device, fits, memory, arguments, temporaries, work, moved, sent, least)
        print(f"| {' | '.join((*cells, seconds))} |")


def main(rows: dict[str, Row], manual: str) -> None:
    parser = argparse.ArgumentParser(description=manual)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("estimate", "compile", "table"))
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    chosen = [n for n in rows if n.startswith(tuple(args.names) or "")]
    architectures.write(args.folder / "architectures")
    if args.what == "table":
        table(args.folder, chosen)
        return
    for name in chosen:
        {"estimate": estimate, "compile": compile_row}[args.what](
            args.folder.resolve(), name, rows[name]
        )


if __name__ == "__main__":
    main(ROWS, __doc__)
