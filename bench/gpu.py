"""Stable Diffusion 1.5 at 512 pixels on one GPU, in less than ten minutes: speed and memory.

    python bench/gpu.py                    # 1 subject row and 1 class row, full fine-tuning
    python bench/gpu.py --adapt lora       # the same by LoRA
    python bench/gpu.py --size tiny        # that this script works, on any computer

Weights are random numbers in the architecture of `tools/architectures.py`: nothing is downloaded,
and no number here depends on their values. The train step and the sampler of class images are the
programs of a run of `configs/stable_diffusion.py`. Where PyTorch with CUDA and diffusers can be
imported, the same is measured of them, in a process before ours: bfloat16 autocast, fused AdamW,
PyTorch's own attention. Models' FLOP utilisation (MFU) is for chips of `dreambooth_jax/chips.py`.
First attention of the families' shapes, in the form that this device gets, is compared with plain
softmax in float32: that numbers of keys of which a kernel has no gradient mean what they should can
be seen on the device alone. Last stands what the compiler said of both programs.
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
SHAPES = {  # rows, queries, keys, heads, size of a head; of `--size tiny` the first three
    "pooled text": (2, 1, 78, 8, 64),
    "text, odd": (2, 256, 77, 8, 40),
    "text and image, odd": (1, 589, 589, 4, 64),
    "text at 64²": (2, 4096, 77, 8, 40),
    "two windows of text": (2, 4096, 154, 8, 40),
    "itself at 64²": (2, 4096, 4096, 8, 40),
    "itself at 32²": (2, 1024, 1101, 22, 64),
    "text and image at 64²": (1, 4429, 4429, 4, 64),
    "wide heads": (1, 4128, 4128, 2, 128),
    "middle of a VAE": (1, 4096, 4096, 1, 512),
}
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


def compare_attention(size: str) -> None:
    """Largest differences in bfloat16 from float32, answer and gradients, of the largest number."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dreambooth_jax.models import attention

    rng = np.random.default_rng(0)
    print(f"| attention | form | answer | of queries | of keys | of values |\n{'|---' * 6}|")
    for what, shape in list(SHAPES.items())[: 3 if size == "tiny" else None]:
        rows, queries, keys, heads, width = shape
        q, k, v, pull = (
            jnp.asarray(rng.standard_normal((rows, n, heads, width), np.float32), jnp.bfloat16)
            for n in (queries, keys, keys, queries)
        )

        def answers(q: Any, k: Any, v: Any, pull: Any, plain: bool) -> tuple[Any, ...]:
            def attend(q: Any, k: Any, v: Any) -> Any:
                scale = q.shape[-1] ** -0.5
                if plain:
                    return attention.FORMS["whole"](q, k, v, None, scale)
                return attention.attention(q, k, v)

            found, back = jax.vjp(attend, q, k, v)
            return found, *back(pull)

        found = jax.jit(lambda *args: answers(*args, plain=False))(q, k, v, pull)
        with jax.default_matmul_precision("highest"):
            wide = (x.astype(jnp.float32) for x in (q, k, v, pull))
            exact = jax.jit(lambda *args: answers(*args, plain=True))(*wide)
        errors = [
            float(jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max())
            for x, y in zip(found, exact, strict=True)
        ]
        form = attention.chosen(q.shape, keys, q.dtype, plain=True)
        told = " | ".join(f"{error:.4f}" for error in errors)
        print(f"| {what} {shape} | {form} | {told} |", flush=True)
        if not max(errors) < 0.03:
            raise SystemExit(f"attention, {what}: bfloat16 alone does not explain {errors}")


def ours(folder: Path, args: argparse.Namespace) -> dict[str, float | None]:
    """What a run's own two programs take here."""
    import jax
    import numpy as np

    from dreambooth_jax import chips, flops, precompile
    from dreambooth_jax import config as configs
    from dreambooth_jax.experiment.modes import precompile as forecasting
    from dreambooth_jax.experiment.parts import loading as setup
    from dreambooth_jax.experiment.training import shapes

    c = runpy.run_path(str(ROOT / "configs" / "stable_diffusion.py"))["get_config"]("sd15")
    c.base_model, c.train.batch_size, c.prior.batch_size = str(folder), ROWS, args.pictures
    c.sampler.num_steps, c.adapt.name = args.sampler_steps, args.adapt
    c.resolution = 64 if args.size == "tiny" else 512
    device, plan = jax.devices()[0], configs.resolve(c)
    mesh = setup.make_mesh(plan, [device])
    stages = setup.open_stages(plan, shapes_only=True)
    rng = np.random.default_rng(0)

    def filled(leaf: Any) -> Any:
        """Small random floats; zeros for what counts or chooses."""
        random = np.issubdtype(leaf.dtype, np.floating) or leaf.dtype.name == "bfloat16"
        values = rng.standard_normal(leaf.shape, np.float32) * 0.02 if random else 0
        return jax.device_put(np.broadcast_to(values, leaf.shape).astype(leaf.dtype), leaf.sharding)

    step = shapes.step_of(plan, "base", stages, mesh)
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
    told = [precompile.read("train step", train, devices=[device], operations=work)]
    _, drawing, inputs = forecasting.PROGRAMS["sample"](plan, "base", stages, mesh)
    work_of_drawing = flops.count(drawing.trace(*inputs).jaxpr)
    begin = time.perf_counter()
    draw = drawing.lower(*inputs).compile()
    compiled += time.perf_counter() - begin
    told.append(precompile.read("drawing", draw, devices=[device], operations=work_of_drawing))
    print(precompile.as_table(told), flush=True)
    inputs = jax.tree.map(filled, inputs)
    drawn = median_seconds(lambda: jax.block_until_ready(draw(*inputs)), count=2)
    chip = chips.of(device)
    return {
        "steps/s": 1 / seconds,
        "s of 1,000 steps": 1000 * seconds,
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
        "s of 1,000 steps": 1000 * seconds,
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
    parser.add_argument("--adapt", choices=("full", "lora"), default="full", help="ours")
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
        other = torch_apart(folder, args) if args.adapt == "full" else {}
        compare_attention(args.size)
        mine = ours(folder, args)
    import jax

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {ROWS} rows, bfloat16")
    print("| | ours | PyTorch |\n|---|---|---|")
    for name, value in mine.items():
        cells = ["" if x is None else f"{x:.3g}" for x in (value, other.get(name))]
        print(f"| {name} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
