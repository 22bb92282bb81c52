"""LoRA beside frozen weights of each dtype: the losses of the embedded run, and the bytes.

    python bench/frozen.py --workdir=build/frozen

One run of the main command for each dtype, with the same photos, class images, seeds and steps, so
that the losses of a step differ by the rounding of the frozen weights alone. Printed are the mean
loss of the photos and of the class images over all steps, its difference from that of float32,
and the bytes of the stage's weights as they were held. The aim: int8 within 2 % of float32.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from dreambooth_jax import config as configs
from dreambooth_jax import metrics
from dreambooth_jax.experiment.parts import loading

DTYPES = ("float32", "bfloat16", "int8")
AIM = 0.02


def settings(steps: int) -> dict[str, object]:
    return {
        "stages": ("base",),
        "upscaler_model": "",
        "adapt.name": "lora",
        "train.num_steps": steps,
        "optim.warmup_steps": steps // 10,
        "train.log_every": 1,
        "train.sample_every": 0,
        "train.held_out_every": 0,
        "train.checkpoint_every": steps,
        "prior.num_images": 32,
        "sample.num_images": 1,
        "sample.prompts": ("a {subject}",),
    }


def run(folder: Path, dtype: str, own: dict[str, object]) -> None:
    flags = [f"--config.{key}={value}" for key, value in own.items()]
    flags += [f"--config.adapt.frozen_dtype={dtype}", f"--config.prior.folder={folder / 'prior'}"]
    command = [sys.executable, "-m", "dreambooth_jax.main", "--config=configs/imagen_like.py"]
    subprocess.run([*command, f"--workdir={folder / dtype}", *flags], check=True)


def held(folder: Path) -> int:
    """Bytes of the weights as a run in `folder` reads them."""
    plan = configs.resolve(configs.of_run(str(folder)))
    model = loading.load(plan, loading.open_stages(plan))
    return sum(x.nbytes for x in jax.tree.leaves(model.weights["base"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    names = ("base/loss", "base/loss/subject", "base/loss/prior")
    usual: dict[str, float] = {}
    print(f"{'':<10}{'MB':>8}" + "".join(f"{name:>22}" for name in names))
    for dtype in DTYPES:
        folder = args.workdir.absolute()
        run(folder, dtype, settings(args.steps))
        lines = [x for x in metrics.read(folder / dtype / "metrics.jsonl") if names[0] in x]
        means = {name: float(np.mean([line[name] for line in lines])) for name in names}
        usual = usual or means
        cells = [f"{means[k]:.4f} ({means[k] / usual[k] - 1:+.2%})" for k in names]
        told = "".join(f"{cell:>22}" for cell in cells)
        print(f"{dtype:<10}{held(folder / dtype) / 1e6:>8.2f}{told}", flush=True)
    print(f"aim: int8 within {AIM:.0%} of float32")


if __name__ == "__main__":
    main()
