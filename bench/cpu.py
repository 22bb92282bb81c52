"""Steps of a UNet of Stable Diffusion's shape on this CPU: ours beside PyTorch and Flax diffusers.

    python bench/cpu.py --size small
    python bench/cpu.py --size 142m --flax_python build/flax/bin/python   # 20 minutes

A train step is forward, backward and AdamW on 2 rows; a sampler step is the forward of 1 picture
under guidance (2 rows). All float32, the same weights and inputs, 2 threads each. Each contestant
is a process of its own that waits while another works; they take turns, and what is printed are
medians of the ratios of neighbouring turns, with the smallest and largest. They have to agree on
the first loss. Ours also draws with products of factors rounded to bfloat16 (`sampler.products`),
whose error is printed: of the sampler step's output, root mean square over root mean square.
PyTorch is the extra `parity`, in three forms: eager, eager with its images and
kernels in memory format channels_last, and torch.compile, which needs a C++ compiler and is left
out where it does not work. Its aims are of the form that is fastest here.

Flax's UNet left diffusers in 0.40; a virtualenv for it, without PyTorch:

    python -m venv build/flax
    build/flax/bin/pip install 'diffusers[flax]==0.39.0' transformers==4.57.6 jax==0.10.2 optax
"""

import argparse
import functools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

# Widths of the four levels and pixels along a side of a latent.
SIZES = {
    "tiny": ((32, 32, 64, 64), 8),
    "small": ((64, 128, 256, 256), 16),
    "142m": ((128, 256, 512, 512), 32),
    "860m": ((320, 640, 1280, 1280), 32),
}
ROWS, TOKENS, GUIDANCE, RATE = 2, 77, 7.5, 1e-5
AIMS = {("torch", "train"): 0.75, ("torch", "sample"): 0.70, ("flax", "train"): 0.5}
ROUNDED = "rounded"  # of ours alone: a sampler step
TORCH = ("torch", "torch channels_last", "torch.compile")
QUIET = {"DIFFUSERS_VERBOSITY": "error"}
KINDS = ("train", "sample")
Run = Callable[[], float]  # one step, done when it returns: its loss, or a mean of its output


def inputs(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Noisy latents, their noise, time steps and texts; images as `[B,H,W,C]`."""
    rng = np.random.default_rng(0)
    side, width = config["sample_size"], config["cross_attention_dim"]
    shape = (ROWS, side, side, config["in_channels"])
    x, noise = rng.normal(size=shape), rng.normal(size=shape)
    text = rng.normal(size=(ROWS, TOKENS, width))
    return {
        "x": x.astype(np.float32),
        "noise": noise.astype(np.float32),
        "t": np.array([100, 700], np.int32),
        "text": text.astype(np.float32),
    }


def torch_steps(folder: Path, form: str = "torch") -> dict[str, Run]:
    import diffusers
    import torch

    torch.set_num_threads(2)
    net = diffusers.UNet2DConditionModel.from_pretrained(folder)
    if form == "torch channels_last":
        net = net.to(memory_format=torch.channels_last)
    data = {name: torch.from_numpy(x) for name, x in inputs(dict(net.config)).items()}
    x, noise = (data[name].permute(0, 3, 1, 2).contiguous() for name in ("x", "noise"))
    if form == "torch channels_last":
        x, noise = (y.contiguous(memory_format=torch.channels_last) for y in (x, noise))
    t, text = data["t"].long(), data["text"]
    call = torch.compile(net) if form == "torch.compile" else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)

    def train() -> float:
        loss = torch.nn.functional.mse_loss(call(x, t, text).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def sample() -> float:
        empty, full = call(x[:1].repeat(2, 1, 1, 1), t[:1], text).sample.chunk(2)
        return float((empty + GUIDANCE * (full - empty)).mean())

    return {"train": train, "sample": sample}


def jax_steps(
    forward: Callable[..., Any], params: Any, data: dict[str, np.ndarray], tx: Any
) -> dict[str, Run]:
    """Both steps of `forward(params, x, t, text)`, jitted, the state updated in place."""
    import jax
    import jax.numpy as jnp
    import optax

    @jax.jit
    def begin(params: Any) -> Any:
        return params, tx.init(params)

    def step(state: Any, x: Any, noise: Any, t: Any, text: Any) -> Any:
        params, opt_state = state

        def loss_of(params: Any) -> Any:
            return jnp.mean(jnp.square(forward(params, x, t, text) - noise))

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def guided(params: Any, x: Any, t: Any, text: Any) -> Any:
        output = forward(params, jnp.concatenate([x[:1]] * 2), jnp.repeat(t[:1], 2), text)
        return (output[:1] + GUIDANCE * (output[1:] - output[:1])).mean()

    def with_rounded(params: Any, *given: Any) -> Any:
        from dreambooth_jax.models import rounded

        with rounded.products(True):
            return guided(params, *given)

    stepped, drawn = jax.jit(step, donate_argnums=0), jax.jit(guided)
    drawn_rounded = jax.jit(with_rounded)
    held = {"state": begin(params)}
    x, noise, t, text = (jnp.asarray(data[name]) for name in ("x", "noise", "t", "text"))

    def train() -> float:
        held["state"], loss = stepped(held["state"], x, noise, t, text)
        jax.block_until_ready(held["state"])
        return float(loss)

    return {
        "train": train,
        "sample": lambda: float(drawn(held["state"][0], x, t, text)),
        ROUNDED: lambda: float(drawn_rounded(held["state"][0], x, t, text)),
    }


def our_steps(folder: Path) -> dict[str, Run]:
    import jax

    from dreambooth_jax import optim, weights
    from dreambooth_jax.models import rounded, unet

    config = json.loads((folder / "config.json").read_text())
    network = unet.build(config)
    params = weights.read(folder, network.abstract)
    settings = SimpleNamespace(
        name="adamw",
        learning_rate=RATE,
        text_encoder_learning_rate=None,
        warmup_steps=0,
        schedule="constant",
        final_fraction=0.0,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=1e-2,
        grad_clip=0.0,
    )

    def forward(params: Any, x: Any, t: Any, text: Any) -> Any:
        return network.bind(params)(x, t, text)

    def either(*given: Any, on: bool) -> Any:
        with rounded.products(on):
            return forward(*given)

    data = inputs(config)
    given = tuple(data[name] for name in ("x", "t", "text"))
    exact, found = (
        np.asarray(jax.jit(functools.partial(either, on=on))(params, *given), np.float64)
        for on in (False, True)
    )
    size = np.sqrt(np.mean(np.square(exact)))
    error = np.sqrt(np.mean(np.square(found - exact)))
    print(f"rounded to bfloat16: the output differs by {error / size:.2%} of its size")
    return jax_steps(forward, params, data, optim.make(settings, num_steps=1000))


def flax_steps(folder: Path) -> dict[str, Run]:
    import diffusers
    import jax.numpy as jnp
    import optax
    from diffusers.models import modeling_flax_pytorch_utils as convert
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    net = diffusers.FlaxUNet2DConditionModel.from_config(config)
    flat = load_file(next(folder.glob("*.safetensors")))
    tensors = {key: SimpleNamespace(numpy=lambda x=x: x) for key, x in flat.items()}
    params = convert.convert_pytorch_state_dict_to_flax(tensors, net)

    def forward(params: Any, x: Any, t: Any, text: Any) -> Any:
        answer = net.apply({"params": params}, jnp.moveaxis(x, -1, 1), t, text).sample
        return jnp.moveaxis(answer, 1, -1)

    tx = optax.adamw(RATE, 0.9, 0.999, 1e-8, weight_decay=1e-2)
    return jax_steps(forward, params, inputs(config), tx)


CONTESTANTS: dict[str, Callable[[Path], dict[str, Run]]] = {
    "ours": our_steps,
    **{form: functools.partial(torch_steps, form=form) for form in TORCH},
    "flax": flax_steps,
}


class Ended(Exception):
    """A contestant's process ended, with its own message."""


def work(name: str, folder: Path) -> None:
    """Answers each line "train 3" with the seconds of each of 3 steps and what the first gave."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print
    steps = CONTESTANTS[name](folder)
    for line in sys.stdin:
        kind, count = line.split()
        seconds, values = [], []
        for _ in range(int(count)):
            begin = time.perf_counter()
            values.append(steps[kind]())
            seconds.append(time.perf_counter() - begin)
        print(json.dumps([seconds, values[0]]), file=channel, flush=True)


class Contestant:
    """A process that does steps when told to, and waits otherwise."""

    def __init__(self, name: str, folder: Path, python: str):
        words = [python, __file__, "--worker", name, "--folder", str(folder)]
        clean = {} if name != "flax" else {"PYTHONPATH": ""}
        self.name = name
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | QUIET | clean,
        )

    def __call__(self, kind: str, count: int) -> tuple[list[float], float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(kind, count, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise Ended(f"{self.name} ended early: see its message above.")
        seconds, value = json.loads(line)
        return seconds, value


def prepare(folder: Path, size: str) -> int:
    """Random weights by PyTorch's own initialisation in diffusers' format; how many numbers."""
    import diffusers
    import torch

    tools = Path(__file__).resolve().parents[1] / "tools" / "architectures.py"
    widths, side = SIZES[size]
    config = runpy.run_path(str(tools))["MODELS"]["sd15"]["unet/config.json"] | {
        "block_out_channels": list(widths),
        "sample_size": side,
    }
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel.from_config(config)
    net.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return int(sum(x.numel() for x in net.parameters()))


def started(folder: Path, args: argparse.Namespace) -> dict[str, Contestant]:
    """The contestants, compiled, those left out that do not work here.

    They have to agree on the first loss.
    """
    names = ["ours", *([] if args.without_torch else TORCH)]
    names += ["flax"] if args.flax_python else []
    pythons = {"flax": args.flax_python or ""}
    found, first = {}, {}
    for name in names:
        one = Contestant(name, folder, pythons.get(name, sys.executable))
        begin = time.perf_counter()
        try:
            loss = one("train", 1)[1]
            for kind in ("sample", ROUNDED) if name == "ours" else ("sample",):
                one(kind, 1)
        except Ended as error:
            if name != "torch.compile":
                sys.exit(str(error))
            print(f"{error} It is left out.")
            continue
        found[name], first[name] = one, loss
        print(f"{name}: ready in {time.perf_counter() - begin:.0f} s, loss {loss:.6f}", flush=True)
    if max(first.values()) - min(first.values()) > 1e-3 * first["ours"]:
        sys.exit("Contestants disagree on the first loss, so they do not compute the same.")
    return found


def compare(folder: Path, args: argparse.Namespace) -> None:
    count = prepare(folder, args.size)
    widths, side = SIZES[args.size]
    print(f"{count / 1e6:.1f} M parameters, widths {widths}, {side}² latents, {ROWS} rows, float32")
    all_of = started(folder, args)
    names = [*all_of]
    taken: dict[tuple[str, str], list[float]] = {}
    for turn in range(args.rounds):
        for kind in (*KINDS, ROUNDED):
            for name in names if turn % 2 else names[::-1]:
                if kind == ROUNDED and name != "ours":
                    continue
                seconds = all_of[name](kind, args.steps)[0]
                taken.setdefault((name, kind), []).append(statistics.median(seconds))
    tell(names[1:], taken)
    for one in all_of.values():
        one.process.stdin.close()
        one.process.wait()


def tell(names: Sequence[str], taken: Mapping[tuple[str, str], Sequence[float]]) -> None:
    """Prints the table; an aim stands beside the fastest of PyTorch's forms."""
    fastest = {
        kind: min(
            (name for name in names if name in TORCH),
            key=lambda name: statistics.median(taken[name, kind]),
            default=None,
        )
        for kind in KINDS
    }
    pairs = [(kind, name, kind) for name in names for kind in KINDS]
    pairs += [(ROUNDED, name, "sample") for name in ("ours", *names)]
    print(f"\n| | ours, s | other, s | ours over other | least, most | aim |\n|{'---|' * 6}")
    for own, name, kind in pairs:
        mine, its = taken["ours", own], taken[name, kind]
        ratios = [a / b for a, b in zip(mine, its, strict=True)]
        group = "torch" if name in TORCH else name
        aim = AIMS.get((group, kind), "") if name in ("flax", fastest[kind]) else ""
        told = f"{kind}, {name}" if own == kind else f"{kind} with rounded products, {name}"
        print(
            f"| {told} | {statistics.median(mine):.2f} | {statistics.median(its):.2f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f}, {max(ratios):.2f} "
            f"| {aim} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn, whose median counts")
    parser.add_argument("--flax_python", help="python of an environment with diffusers 0.39")
    parser.add_argument("--without_torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args)


if __name__ == "__main__":
    main()
