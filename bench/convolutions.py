"""Gradients of a 3x3 convolution on a CPU: as a convolution, and as one product.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python bench/convolutions.py   # of one core

For rows of images of a size and channels it prints the milliseconds of both gradients each way, and
their ratio: `models.layers.convolve` takes the product where that is well above 1. With --rounded
it is the value alone, beside the products by position of `models.rounded`.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.models import layers, rounded

ROUNDS = 5
PADDING = (1, 1)
Step = Callable[[], object]


def forms(rows: int, size: int, channels: int, dtype: str, *, by_position: bool) -> dict[str, Step]:
    """The gradients with respect to the images and the kernel, each way, compiled.

    by_position: the value instead, and the other way is `rounded.by_position`.
    """
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(rows, size, size, channels)), dtype)
    kernel = jnp.asarray(random.normal(size=(3, 3, channels, channels)), dtype)

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [PADDING] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return layers.as_product(x, kernel, PADDING)

    def gradients(way: Callable[[jax.Array, jax.Array], jax.Array]) -> Step:
        step = jax.jit(jax.grad(lambda x, k: jnp.sum(way(x, k) ** 2), argnums=(0, 1)))
        jax.block_until_ready(step(x, kernel))
        return functools.partial(step, x, kernel)

    def value(way: Callable[[jax.Array, jax.Array], jax.Array]) -> Step:
        step = jax.jit(way)
        jax.block_until_ready(step(x, kernel))
        return functools.partial(step, x, kernel)

    if by_position:
        other = functools.partial(rounded.by_position, padding=PADDING)
        return {"convolution": value(convolution), "product": value(other)}
    return {"convolution": gradients(convolution), "product": gradients(product)}


def milliseconds(steps: dict[str, Step], seconds: float) -> dict[str, float]:
    """The median over rounds in which the ways take turns, each for `seconds`."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                jax.block_until_ready(step())
                count += 1
            found[name].append((time.perf_counter() - begin) / count * 1e3)
    return {name: float(np.median(times)) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--channels", type=int, nargs="+", default=[128, 320])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounded", action="store_true", help="products of rounded factors")
    parser.add_argument("--seconds", type=float, default=0.1)
    args = parser.parse_args()
    print("| rows | size | channels | convolution ms | product ms | ratio |\n" + "|---" * 6 + "|")
    for rows, size, channels in itertools.product(args.rows, args.sizes, args.channels):
        ways = forms(rows, size, channels, args.dtype, by_position=args.rounded)
        found = milliseconds(ways, args.seconds)
        one, other = found["convolution"], found["product"]
        ratio = one / other
        print(f"| {rows} | {size}² | {channels} | {one:.2f} | {other:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
