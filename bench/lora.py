"""LoRA beside the product against the summed kernel, and against PyTorch with PEFT, on this CPU.

    python bench/lora.py                 # blocks like FLUX's, attention like SD 1.5's
    python bench/lora.py --peft          # the blocks in PyTorch as well (extra `parity`)
    python bench/lora.py --only blocks --rank 4 --dtype bfloat16

What a LoRA step computes of a layer inside a network: the value, and gradients of the factors and
of the input; kernels are frozen. "summed" adds `down·up` to the kernel first, as the export does,
"beside" is what the package trains with (`models.layers.multiply`). They take turns in one process;
medians of both and the ratio of each turn's pair, its median. Both have to agree on the gradients.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import adapt, config, kernels
from dreambooth_jax.models import layers

TOKENS, WIDTH, HEADS = 1024, 1024, 8
# Tokens per picture, inputs, outputs; how many such projections the UNet has (queries, keys, values
# and outputs of self-attention and of cross-attention, whose keys and values see 77 tokens).
PROJECTIONS = {
    "64x64 positions": (4096, 320, 320, 5 * 6),
    "32x32 positions": (1024, 640, 640, 5 * 6),
    "16x16 positions": (256, 1280, 1280, 5 * 6),
    "8x8 positions": (64, 1280, 1280, 1 * 6),
    "text to 320": (77, 768, 320, 5 * 2),
    "text to 640": (77, 768, 640, 5 * 2),
    "text to 1280": (77, 768, 1280, 6 * 2),
}
AIMS = {"block": 0.8, "projections": 1.0, "PEFT": 1.0}
Step = Callable[[], Any]


class Block(layers.nnx.Module):
    """One block: attention of all tokens, then a feed-forward of four times the width."""

    def __init__(self) -> None:
        self.norm1, self.norm2 = layers.LayerNorm(WIDTH), layers.LayerNorm(WIDTH)
        self.to_q, self.to_k = layers.Linear(WIDTH, WIDTH), layers.Linear(WIDTH, WIDTH)
        self.to_v, self.to_out = layers.Linear(WIDTH, WIDTH), layers.Linear(WIDTH, WIDTH)
        self.up, self.down = layers.Linear(WIDTH, 4 * WIDTH), layers.Linear(4 * WIDTH, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = self.norm1(x)
        heads = (*x.shape[:2], HEADS, -1)
        q, k, v = (f(normed).reshape(heads) for f in (self.to_q, self.to_k, self.to_v))
        x = x + self.to_out(layers.attention(q, k, v).reshape(x.shape))
        hidden = jax.nn.gelu(self.up(self.norm2(x)), approximate=True)
        return x + self.down(hidden)


def steps_of(
    network: layers.Network, x: np.ndarray, *, rank: int, dtype: str
) -> tuple[dict[str, Step], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The step with summed kernels and the one beside, the frozen leaves and the factors."""
    settings = config.base_config().adapt
    settings.update({"name": "lora", "rank": rank, "targets": ".*/kernel"})
    adapter = adapt.make(settings, seed=0)
    flat = {f"net/{path}": leaf for path, leaf in layers.initial(network, 0).items()}
    trainable, frozen = adapter.init(flat, ((".*", True),))
    rng = np.random.default_rng(0)
    trainable = {p: rng.normal(0, 0.02, leaf.shape).astype("f4") for p, leaf in trainable.items()}

    def value(trainable: Any, x: Any, frozen: Any, *, summed: bool) -> Any:
        params = adapter.combine(frozen, trainable)
        params = kernels.all_fused(params) if summed else params
        y = network.bind({path.removeprefix("net/"): leaf for path, leaf in params.items()})(x)
        return jnp.square(y.astype(jnp.float32)).mean()

    given = jax.device_put((trainable, jnp.asarray(x, dtype), frozen))
    steps: dict[str, Step] = {}
    for name, summed in (("summed", True), ("beside", False)):
        grad = jax.value_and_grad(lambda *a, s=summed: value(*a, summed=s), argnums=(0, 1))
        program = jax.jit(grad).lower(*given).compile()
        steps[name] = lambda program=program: jax.block_until_ready(program(*given))
    return steps, frozen, trainable


def check(steps: dict[str, Step], dtype: str) -> None:
    """Both forms must have the same value and gradients within rounding.

    Raises:
      AssertionError: they do not.
    """
    found = [jax.tree.leaves(jax.tree.map(np.float32, steps[n]())) for n in ("summed", "beside")]
    for a, b in zip(*found, strict=True):
        worst = np.abs(a - b).max() / np.abs(a).max()
        assert worst < (1e-4 if dtype == "float32" else 0.1), worst


def timed(steps: dict[str, Step], turns: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of each step, and the median of its ratio to the first one by turn."""
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 2):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn >= 2:  # warm
                seen[name].append(1e3 * (time.perf_counter() - begin))
    first = next(iter(seen.values()))
    medians = {name: statistics.median(times) for name, times in seen.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, first, strict=True))
        for name, times in seen.items()
    }
    return medians, ratios


def peft_step(x: np.ndarray, frozen: dict[str, Any], trainable: dict[str, Any], rank: int) -> Step:
    """The block in PyTorch, its linear layers wrapped by PEFT, with the same weights."""
    import peft
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            for name in ("to_q", "to_k", "to_v", "to_out"):
                setattr(self, name, nn.Linear(WIDTH, WIDTH))
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            normed = self.norm1(x)
            q, k, v = (
                f(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for f in (self.to_q, self.to_k, self.to_v)
            )
            seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + self.to_out(seen.flatten(2))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    names = ["to_q", "to_k", "to_v", "to_out", "up", "down"]
    net = Net()
    with torch.no_grad():
        for name in names:
            kernel = torch.from_numpy(np.array(frozen[f"net/{name}/kernel"]).T.copy())
            getattr(net, name).weight.copy_(kernel)
            getattr(net, name).bias.zero_()
    chosen = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    wrapped = peft.get_peft_model(net, chosen)
    with torch.no_grad():
        for name in names:
            layer = getattr(wrapped.base_model.model, name)
            for part, key in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
                factor = np.array(trainable[f"net/{name}/kernel/{key}"]).T.copy()
                getattr(layer, part)["default"].weight.copy_(torch.from_numpy(factor))
    given = torch.from_numpy(x).requires_grad_()

    def step() -> tuple[float, Any]:
        wrapped.zero_grad()
        given.grad = None
        loss = wrapped(given).square().mean()
        loss.backward()
        return float(loss.detach()), given.grad

    return step


def blocks(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, TOKENS, WIDTH)).astype(np.float32)
    network = layers.take_apart(Block())
    steps, frozen, trainable = steps_of(network, x, rank=args.rank, dtype=args.dtype)
    check(steps, args.dtype)
    if args.peft:
        steps["PEFT"] = peft_step(x, frozen, trainable, args.rank)
        ours, theirs = steps["beside"](), steps["PEFT"]()
        np.testing.assert_allclose(float(ours[0]), theirs[0], rtol=1e-4)
        size = np.abs(theirs[1].numpy()).max()
        np.testing.assert_allclose(ours[1][1], theirs[1].numpy(), atol=1e-3 * size, rtol=0)
    medians, ratios = timed(steps, args.turns)
    told = ", ".join(f"{name} {ms:.0f} ms" for name, ms in medians.items())
    print(f"block of {TOKENS} tokens, width {WIDTH}, rank {args.rank}: {told}")
    print(f"  beside / summed {ratios['beside']:.2f} (aim {AIMS['block']})")
    if args.peft:
        of_peft = medians["beside"] / medians["PEFT"]
        print(f"  beside / PEFT eager {of_peft:.2f} (aim {AIMS['PEFT']})")


def projections(args: argparse.Namespace) -> None:
    total = {"summed": 0.0, "beside": 0.0}
    print(f"{'projection':<18}{'summed, ms':>12}{'beside, ms':>12}{'ratio':>8}")
    rng = np.random.default_rng(1)
    for name, (tokens, fan_in, fan_out, count) in PROJECTIONS.items():
        x = rng.normal(size=(args.rows, tokens, fan_in)).astype(np.float32)
        network = layers.take_apart(layers.Linear(fan_in, fan_out, bias=False))
        steps = steps_of(network, x, rank=args.rank, dtype=args.dtype)[0]
        check(steps, args.dtype)
        medians, ratios = timed(steps, args.turns)
        total = {key: total[key] + count * ms for key, ms in medians.items()}
        print(
            f"{name:<18}{medians['summed']:>12.2f}{medians['beside']:>12.2f}"
            f"{ratios['beside']:>8.2f}"
        )
    ratio = total["beside"] / total["summed"]
    print(f"{'all of the UNet':<18}{total['summed']:>12.0f}{total['beside']:>12.0f}{ratio:>8.2f}")
    print(f"  aim {AIMS['projections']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("blocks", "projections"))
    parser.add_argument("--rows", type=int, default=2, help="pictures in a batch of the UNet")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--peft", action="store_true", help="the blocks in PyTorch with PEFT")
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {args.rows} rows, rank {args.rank}, {args.dtype}")
    for name, part in (("blocks", blocks), ("projections", projections)):
        if args.only in (None, name):
            part(args)


if __name__ == "__main__":
    main()
