"""LoRA at the level of weights against that of activations, on layers as large as SD 1.5's.

    python bench/lora_level.py                     # two pictures of 512 pixels, rank 16, float32
    python bench/lora_level.py --rows 1 --rank 4 --dtype bfloat16

Ours adds the change to the kernel, `x @ (W + A·B)`, so that no network knows of it; the other way
is `x @ W + (x @ A) @ B` beside every layer. Of each layer it times the value and the
gradients of A, B and x (what a layer inside a network computes), alternating between the two in
one process, and prints the medians and what XLA reserves for the compiled program. A step has many
such layers and much else, so the last line weighs them by how often SD 1.5's UNet has them.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Tokens per picture, inputs, outputs; how many such layers the UNet has (queries, keys, values and
# outputs of self-attention and of cross-attention, whose keys and values see 77 tokens of text).
LAYERS = {
    "64² attention": (4096, 320, 320, 5 * 6),
    "32² attention": (1024, 640, 640, 5 * 6),
    "16² attention": (256, 1280, 1280, 5 * 6),
    "8² attention": (64, 1280, 1280, 1 * 6),
    "text to 320": (77, 768, 320, 5 * 2),
    "text to 640": (77, 768, 640, 5 * 2),
    "text to 1280": (77, 768, 1280, 6 * 2),
}
Arrays = dict[str, jax.Array]


def by_weights(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """As `adapt.lora`: float32 kernels, cast where the network computes."""
    return x @ (w + a @ b).astype(x.dtype)


def by_activations(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return x @ w.astype(x.dtype) + (x @ a.astype(x.dtype)) @ b.astype(x.dtype)


def compiled(layer: Callable[..., jax.Array], given: Arrays, out: jax.Array) -> Any:
    def value(x: jax.Array, a: jax.Array, b: jax.Array, w: jax.Array) -> jax.Array:
        return (layer(x, w, a, b) * out).astype(jnp.float32).sum()

    grad = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))
    return grad.lower(given["x"], given["a"], given["b"], given["w"]).compile()


def measured(tokens: int, fan_in: int, fan_out: int, *, rank: int, dtype: Any, repeats: int) -> Any:
    """Median seconds and temporary bytes of both ways."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    given = {
        "x": drawn(tokens, fan_in, dtype=dtype),
        "a": drawn(fan_in, rank),
        "b": drawn(rank, fan_out),
        "w": drawn(fan_in, fan_out),
    }
    out = drawn(tokens, fan_out, dtype=dtype)
    programs = [compiled(layer, given, out) for layer in (by_weights, by_activations)]
    seconds: list[list[float]] = [[], []]
    for turn in range(repeats + 2):
        for program, kept in zip(programs, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(program(given["x"], given["a"], given["b"], given["w"]))
            if turn >= 2:  # warm
                kept.append(time.perf_counter() - begin)
    sizes = [program.memory_analysis().temp_size_in_bytes for program in programs]
    return [float(np.median(kept)) for kept in seconds], sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2, help="pictures in a batch")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {args.rows} rows, rank {args.rank}, {args.dtype}")
    print(f"{'layer':<16}{'weights, ms':>13}{'activations, ms':>17}{'ratio':>8}{'MiB of both':>16}")
    total = np.zeros(2)
    for name, (tokens, fan_in, fan_out, count) in LAYERS.items():
        seconds, sizes = measured(
            args.rows * tokens,
            fan_in,
            fan_out,
            rank=args.rank,
            dtype=jnp.dtype(args.dtype),
            repeats=args.repeats,
        )
        total += count * np.array(seconds)
        ratio = seconds[0] / seconds[1]
        mib = "{:.1f} / {:.1f}".format(*(size / 2**20 for size in sizes))
        print(f"{name:<16}{1e3 * seconds[0]:>13.2f}{1e3 * seconds[1]:>17.2f}{ratio:>8.2f}{mib:>16}")
    print(
        f"{'all of a UNet':<16}{1e3 * total[0]:>13.0f}{1e3 * total[1]:>17.0f}"
        f"{total[0] / total[1]:>8.2f}"
    )


if __name__ == "__main__":
    main()
