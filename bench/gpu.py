"""Stable Diffusion 1.5 at 512 pixels on one GPU, in less than ten minutes: speed and memory.

    python bench/gpu.py                    # 1 subject row and 1 class row, full fine-tuning
    python bench/gpu.py --size tiny        # that this script works, on any computer

Weights are random numbers in the architecture of `tools/architectures.py`: nothing is downloaded,
and no number here depends on their values. The train step and the sampler of class images are the
programs of a run of `configs/stable_diffusion.py`. Where PyTorch with CUDA and diffusers can be
imported, the same is measured of them, in a process before ours: bfloat16 autocast, fused AdamW,
PyTorch's own attention. Models' FLOP utilisation (MFU) is for chips of `dreambooth_jax/chips.py`.
"""

import argparse
import importlib.util
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS, TOKENS = 2, 77
TINY = {
    "unet/config.json": {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 64},
    "vae/config.json": {"block_out_channels": [32, 32, 32, 32]},
    "text_encoder/config.json": {"hidden_size": 64, "num_attention_heads": 4},
}


def prepare(folder: Path, size: str) -> None:
    """The model's folder, without weights."""
    files = runpy.run_path(str(ROOT / "tools" / "architectures.py"))["MODELS"]["sd15"]
    for name, content in files.items():
        content = content | (TINY.get(name, {}) if size == "tiny" else {})
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def median_seconds(step: Callable[[], Any], *, count: int) -> float:
    """Of a step that returns when it is done, the first one left out."""
    step()
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def ours(folder: Path, args: argparse.Namespace) -> dict[str, float | None]:
    """What a run's own two programs take here."""
    import jax
    import numpy as np

    from dreambooth_jax import chips, flops
    from dreambooth_jax.experiment import forecasting, setup, shapes

    c = runpy.run_path(str(ROOT / "configs" / "stable_diffusion.py"))["get_config"]("sd15")
    c.base_model, c.train.batch_size, c.prior.batch_size = str(folder), ROWS, args.pictures
    c.sampler.num_steps = args.sampler_steps
    c.resolution = 64 if args.size == "tiny" else 512
    device = jax.devices()[0]
    mesh = setup.make_mesh(c, [device])
    stages = setup.open_stages(c, shapes_only=True)
    rng = np.random.default_rng(0)

    def filled(leaf: Any) -> Any:
        """Small random floats; zeros for what counts or chooses."""
        random = np.issubdtype(leaf.dtype, np.floating) or leaf.dtype.name == "bfloat16"
        values = rng.standard_normal(leaf.shape, np.float32) * 0.02 if random else 0
        return jax.device_put(np.broadcast_to(values, leaf.shape).astype(leaf.dtype), leaf.sharding)

    step = shapes.step_of(c, "base", stages, mesh)
    work = flops.count(step.run.step.trace(*step.args).jaxpr)
    begin = time.perf_counter()
    train = step.run.step.lower(*step.args).compile()
    compiled = time.perf_counter() - begin
    trainable, frozen, batch = jax.tree.map(
        filled, (step.run.state.trainable, step.frozen, step.batch)
    )
    rows = np.arange(ROWS) % 2 == 1  # a row of the subject, a row of the class
    batch["is_prior"] = jax.device_put(rows, step.batch["is_prior"].sharding)
    held: dict[str, Any] = {"state": step.run.init(trainable), "given": (frozen, batch)}
    del trainable

    def one() -> None:
        held["state"], _ = train(held["state"], *held["given"])
        jax.block_until_ready(held["state"])

    seconds = median_seconds(one, count=args.steps)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    held.clear()  # makes room for what draws
    _, drawing, inputs = forecasting.PROGRAMS["sample"](c, "base", stages, mesh)
    begin = time.perf_counter()
    draw = drawing.lower(*inputs).compile()
    compiled += time.perf_counter() - begin
    inputs = jax.tree.map(filled, inputs)
    drawn = median_seconds(lambda: jax.block_until_ready(draw(*inputs)), count=2)
    chip = chips.of(device)
    return {
        "steps/s": 1 / seconds,
        "class images/s": args.pictures / drawn,
        "peak GiB of the step": peak / 2**30 if peak else None,
        "compilation, s": compiled,
        "MFU": work / seconds / chip.flops if chip else None,
    }


def of_torch(folder: Path, args: argparse.Namespace) -> dict[str, float | None]:
    """PyTorch diffusers: the UNet's train step, and its forward under guidance, then the VAE."""
    import diffusers
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads((folder / "unet/config.json").read_text())
    net = diffusers.UNet2DConditionModel.from_config(config).to(device)
    vae_config = json.loads((folder / "vae/config.json").read_text())
    vae = diffusers.AutoencoderKL.from_config(vae_config).to(device, torch.bfloat16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=device == "cuda")
    side = 8 if args.size == "tiny" else 64

    def inputs(rows: int) -> tuple[Any, Any, Any]:
        text = torch.randn(rows, TOKENS, config["cross_attention_dim"], device=device)
        return torch.randn(rows, 4, side, side, device=device), torch.tensor(500), text

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    x, t, text = inputs(ROWS)
    t = t.to(device)

    def train() -> None:
        with torch.autocast(device, torch.bfloat16):
            said = net(x, t, text).sample
        loss = (said.float() - x).square().mean((1, 2, 3)).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        wait()

    seconds = median_seconds(train, count=args.steps)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    optimizer.zero_grad()
    both, _, texts = inputs(2 * args.pictures)

    @torch.no_grad()
    def draw() -> None:
        latent = both[: args.pictures]
        with torch.autocast(device, torch.bfloat16):
            for _ in range(args.sampler_steps):
                empty, full = net(torch.cat([latent, latent]), t, texts).sample.chunk(2)
                latent = latent - 0.01 * (empty + 7.5 * (full - empty))
            for one in latent:
                vae.decode(one[None].to(torch.bfloat16))
        wait()

    return {
        "steps/s": 1 / seconds,
        "class images/s": args.pictures / median_seconds(draw, count=2),
        "peak GiB of the step": peak,
    }


def torch_apart(folder: Path, args: argparse.Namespace) -> dict[str, float | None]:
    """The same in a process of its own, so that its memory is free afterwards; empty without."""
    found = [importlib.util.find_spec(name) for name in ("torch", "diffusers")]
    ready = all(found) and (args.size == "tiny" or _torch_has_cuda())
    if not ready:
        print("PyTorch with CUDA and diffusers are not both installed: left out.")
        return {}
    words = [sys.executable, __file__, "--size", args.size, "--worker", str(folder)]
    for name in ("steps", "pictures", "sampler_steps"):
        words += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _torch_has_cuda() -> bool:
    asked = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--steps", type=int, default=20, help="train steps, whose median counts")
    parser.add_argument("--pictures", type=int, default=4, help="class images drawn at once")
    parser.add_argument("--sampler_steps", type=int, default=50, help="time steps of a picture")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(of_torch(args.worker, args)))
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, args.size)
        other = torch_apart(folder, args)
        mine = ours(folder, args)
    import jax

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {ROWS} rows, bfloat16")
    print("| | ours | PyTorch |\n|---|---|---|")
    for name, value in mine.items():
        cells = ["" if x is None else f"{x:.3g}" for x in (value, other.get(name))]
        print(f"| {name} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
