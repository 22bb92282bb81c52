"""How many floating-point operations a traced program does: its products, 2 for each multiply-add.

Counted from the program itself, loops times their length and kernels times their grid, which the
compilers' own figures leave out: XLA counts the body of a loop once and a Pallas kernel not at all.
What is computed again in a backward pass counts again.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


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
    inner = sum(map(count, _inner(p)))
    if name == "scan":
        return inner * p["length"]
    if name == "pallas_call":
        return inner * math.prod(p["grid_mapping"].grid)
    if name == "shard_map":
        return inner * p["mesh"].size
    return inner


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an operation."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.Jaxpr | core.ClosedJaxpr):
                yield part
