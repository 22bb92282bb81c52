"""Forms of softmax attention on this CPU, beside PyTorch's: milliseconds of 2 rows and 8 heads.

    python bench/attention.py

Forward alone, and forward with the gradients of queries, keys and values; medians of 7, float32,
2 threads each. Shapes are those of Stable Diffusion 1.5 at 256 and 512 pixels and of a smaller
network. Needs the extra `parity`.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dreambooth_jax.models import attention

ROWS, HEADS = 2, 8
SHAPES = ((256, 256, 32), (1024, 77, 16), (1024, 1024, 16), (1024, 1024, 40), (4096, 4096, 40))


def median_ms(step: Callable[[], Any]) -> float:
    """Of a step that returns when it is done, the first one left out."""
    step()
    taken = []
    for _ in range(7):
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    return 1000 * statistics.median(taken)


def ours(form: str, arrays: list[np.ndarray], pull: np.ndarray) -> tuple[float, float]:
    given = [jnp.asarray(x) for x in arrays]
    scale = arrays[0].shape[-1] ** -0.5

    def answer(q: Any, k: Any, v: Any) -> Any:
        return attention.FORMS[form](q, k, v, None, scale)

    def slopes(q: Any, k: Any, v: Any) -> Any:
        found, back = jax.vjp(answer, q, k, v)
        return found, back(jnp.asarray(pull))

    steps = [functools.partial(jax.jit(f), *given) for f in (answer, slopes)]
    forward, both = (median_ms(lambda s=s: jax.block_until_ready(s())) for s in steps)
    return forward, both


def of_torch(arrays: list[np.ndarray], pull: np.ndarray) -> tuple[float, float]:
    first = [torch.from_numpy(x).transpose(1, 2).contiguous().requires_grad_() for x in arrays]
    back = torch.from_numpy(pull).transpose(1, 2).contiguous()
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward() -> None:
        with torch.no_grad():
            attend(*first)

    def both() -> None:
        torch.autograd.grad(attend(*first), first, back)

    return median_ms(forward), median_ms(both)


def main() -> None:
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    forms = ("whole", "by head", "blockwise")
    print(f"| queries × keys × width | {' | '.join(forms)} | PyTorch |\n|{'---|' * 5}")
    for queries, keys, width in SHAPES:
        lengths = (queries, keys, keys, queries)
        *given, pull = (rng.standard_normal((ROWS, n, HEADS, width), np.float32) for n in lengths)
        found = [ours(form, given, pull) for form in forms] + [of_torch(given, pull)]
        cells = (f"{forward:.1f}, {both:.1f}" for forward, both in found)
        print(f"| {queries} × {keys} × {width} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
