"""8-bit AdamW against AdamW: how far apart two runs end that differ in nothing else.

    python bench/optimizers.py                 # 100 steps of the embedded base, about 10 minutes
    python bench/optimizers.py --steps 20 --folder runs/optimizers

Both runs are `configs/imagen_like.py` on its base stage: the same photos, class images, seeds. It
prints how far apart the losses of each step are, the weights in the end (as a share of the way that
AdamW took from the base model), the pictures (of 255), and what each optimizer keeps in memory.
Ends with status 1 where 8 bits are further from AdamW than `LIMITS`.
"""

import argparse
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file

from dreambooth_jax import config as configs
from dreambooth_jax import metrics, optim, tree
from dreambooth_jax.adapt import FULL
from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.training import program

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "imagen_like.py"
LIMITS = {
    "loss, mean relative difference": 1e-4,
    "loss, largest relative difference": 1e-3,
    "weights, difference over AdamW's way": 0.1,
    "pictures, mean difference of 255": 1.0,
    "state, share of AdamW's bytes": 0.27,
}


def settings(name: str, steps: int, prior: Path) -> ConfigDict:
    """The main job's configuration, its base stage alone, with this optimizer."""
    c = runpy.run_path(str(CONFIG))["get_config"]()
    c.stages, c.upscaler_model = ("base",), ""
    c.prior.num_images, c.prior.folder = 16, str(prior)
    c.train.num_steps, c.train.log_every = steps, 1
    c.train.sample_every, c.train.checkpoint_every = 0, steps
    c.sample.num_images = 1
    c.export.dtype = "float32"
    c.optim.name = name
    configs.validate(c)
    return c


def losses(workdir: Path) -> np.ndarray:
    """The loss of every step."""
    lines = metrics.read(workdir / "metrics.jsonl")
    return np.array([line["base/loss"] for line in lines if "base/loss" in line])


def unet(folder: Path) -> np.ndarray:
    """All numbers of an exported UNet in one row."""
    flat = load_file(next((folder / "unet").glob("*.safetensors")))
    return np.concatenate([flat[name].astype(np.float64).ravel() for name in sorted(flat)])


def pictures(workdir: Path) -> np.ndarray:
    files = sorted((workdir / "samples" / "after").glob("*.png"))
    return np.stack([np.asarray(Image.open(file), np.float64) for file in files])


def state_bytes(c: ConfigDict, name: str, trainable: tree.Flat) -> int:
    """What an optimizer keeps beside the weights."""
    c = c.copy_and_resolve_references()
    c.optim.name = name
    state = jax.eval_shape(optim.make(c.optim, num_steps=1).init, trainable)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def trainable_leaves(c: ConfigDict) -> tree.Flat:
    stage = setup.open_stages(configs.resolve(c))["base"]
    rules = program.rules_of(configs.resolve(c).stages["base"], stage)
    chosen, _ = FULL.init(stage.abstract, rules)
    return {path: jax.ShapeDtypeStruct(x.shape, jnp.float32) for path, x in chosen.items()}


def compared(folder: Path, steps: int) -> dict[str, float]:
    """Runs both, then measures by the names of `LIMITS`; prints what is behind the numbers."""
    runs: dict[str, Path] = {}
    for name in ("adamw", "adamw8bit"):
        c = settings(name, steps, folder / "prior")
        runs[name] = folder / name
        MODES["train"].function(c, runs[name])
    curve = {name: losses(run) for name, run in runs.items()}
    apart = np.abs(curve["adamw8bit"] - curve["adamw"]) / curve["adamw"]
    for part in np.array_split(np.arange(steps), 5):
        ends = f"steps {part[0] + 1:>4} to {part[-1] + 1:<4}"
        means = ", ".join(f"{name} {values[part].mean():.5f}" for name, values in curve.items())
        print(f"{ends} loss: {means}; relative difference {apart[part].mean():.2e}")
    final = {name: unet(run / "export") for name, run in runs.items()}
    start = unet(Path(setup.open_stages(configs.resolve(c))["base"].folder))
    way = np.linalg.norm(final["adamw"] - start)
    drawn = {name: pictures(run) for name, run in runs.items()}
    leaves = trainable_leaves(c)
    print(f"\n{'optimizer':<22}{'MiB of state':>14}{'bytes per parameter':>22}")
    sizes = {name: state_bytes(c, name, leaves) for name in optim.OPTIMIZERS}
    for name, size in sizes.items():
        print(f"{name:<22}{size / 2**20:>14.2f}{size / tree.count(leaves):>22.3f}")
    values: list[Any] = [
        apart.mean(),
        apart.max(),
        np.linalg.norm(final["adamw8bit"] - final["adamw"]) / way,
        np.abs(drawn["adamw8bit"] - drawn["adamw"]).mean(),
        sizes["adamw8bit"] / sizes["adamw"],
    ]
    return dict(zip(LIMITS, map(float, values), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each run")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; else they are not")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = compared(args.folder or Path(temporary), args.steps)
    print()
    for name, limit in LIMITS.items():
        print(f"{name:<40}{found[name]:>10.2g}   at most {limit}")
    sys.exit(any(found[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    main()
