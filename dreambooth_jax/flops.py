"""Counts the floating-point operations of a traced program: 2 for each multiply-add.

Counted from the program itself, loops times their length and kernels times their grid, which the
compilers' own figures leave out: XLA counts the body of a loop once and a kernel not at all. What
is computed again in a backward pass counts again, but not what a kernel of attention computes again
on its own: two products forward and four backward (Dao et al. 2022, appendix B), whichever form
attention has. Nor does what a kernel's queries and keys are filled up with (`counted`).
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

# Products of the kernels that a backward pass needs, of those that they do: the scores' and, of the
# one for queries, those of the probabilities' gradients are there twice.
_NEEDED = {"flash_attention_dkv": 3 / 4, "flash_attention_dq": 1 / 3}
_SHARE = re.compile(r"counts_(\d+)_of_(\d+)")


def counted(function: Callable[..., Any], some: int, *, of: int) -> Callable[..., Any]:
    """`function`, of whose operations only a share counts, forward and backward."""

    def inside(*args: Any) -> Any:
        return function(*args)

    inside.__name__ = f"counts_{some}_of_{of}"
    return jax.jit(inside)


def count(jaxpr: Any) -> float:
    """FLOP of a program (`jax.make_jaxpr(f)(x).jaxpr`, `jitted.trace(x).jaxpr`), all devices."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # a closed one
    return float(sum(_of(equation) for equation in jaxpr.eqns))


def _of(equation: Any) -> float:
    name, p = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = p["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        length = math.prod(shape[axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * length
    if name == "conv_general_dilated":
        # Every number of the kernel meets every output of its channel.
        kernel, output = equation.invars[1].aval, equation.outvars[0].aval
        channels = output.shape[p["dimension_numbers"].out_spec[1]]
        return 2.0 * math.prod(kernel.shape) * math.prod(output.shape) / channels
    if name == "cond":
        return max(map(count, p["branches"]))
    if name in ("dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper"):
        (rows, queries, heads, size), v = (equation.invars[i].aval.shape for i in (0, 2))
        forward = 2.0 * rows * heads * queries * v[1] * (size + v[3])
        return forward if "fwd" in name else 2 * forward
    inner = sum(map(count, _inner(p)))
    if name == "scan":
        return inner * p["length"]
    if name == "pallas_call":
        kernel = p["jaxpr"].debug_info.func_src_info or ""
        needed = [part for name, part in _NEEDED.items() if name in kernel]
        return inner * math.prod(p["grid_mapping"].grid) * math.prod(needed)
    if name == "shard_map":
        return inner * p["mesh"].size
    share = _SHARE.search(str(p.get("name", "")))
    return inner if share is None else inner * int(share[1]) / int(share[2])


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an operation."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.Jaxpr | core.ClosedJaxpr):
                yield part
