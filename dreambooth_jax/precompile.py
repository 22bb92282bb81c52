"""Compiles programs for devices that are not here, and tells what they would take there.

The compiler of TPUs (package `libtpu`, extra `precompile`) runs on any computer: memory, bytes
moved and operations of a program are known before a TPU is rented.
"""

import dataclasses
import importlib
import os
import re
import time
from typing import Any

import jax

from dreambooth_jax import chips, flops

# For libtpu: there is no TPU here, and other processes may have it open.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "2",
}
# What the compiler says of a program that is too large, early or late in its work.
_OVER = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
    r"|Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"
)
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def topology(name: str, *, num_slices: int = 1) -> list[Any]:
    """The devices of TPU slices, `v5e:2x2`, to build a mesh of; nothing can run on them.

    The name is the generation and the chips along each side: two for v5e and v6e, three for v4,
    v5p and tpu7x. Several slices are all alike; their devices tell which they are on.

    Raises:
      ValueError: libtpu is not installed, or knows no such slice.
    """
    try:
        importlib.import_module("libtpu")
    except ImportError as error:
        raise ValueError(
            "compiling for TPUs needs the package libtpu, which is not installed. Write pip "
            "install 'dreambooth_jax[precompile]'."
        ) from error
    from jax.experimental import topologies

    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    kind, _, sides = name.partition(":")
    options: dict[str, Any] = {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as on Cloud TPU
    if sides and set(sides) <= set("1x"):  # a single chip, not a host's usual four
        options["chips_per_host_bounds"] = [1, 1, 1]
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except Exception as error:  # whatever the plugin of the TPU raises
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"precompile.topology = {name!r}: {reason}. Write generation and shape, such as "
            "v5e:2x2, v6e:4x4, v4:2x2x1, v5p:2x2x2 or tpu7x:2x2x1."
        ) from error


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What one program takes on each device: bytes, FLOP, seconds.

    `memory` is the peak: arguments, outputs that do not take an argument's place, temporaries.
    `beside` lies there too, though the program does not take it.
    Where the compiler gave up for lack of memory, only it is known. `moved` are bytes between
    memory and processor by the compiler's count, which has the body of a loop once; `operations`
    are `flops.count` of all turns.
    """

    program: str
    device: str
    devices: int
    fits: bool
    memory: float
    limit: float | None
    beside: float = 0.0
    arguments: float | None = None
    outputs: float | None = None
    aliased: float | None = None
    temporaries: float | None = None
    moved: float | None = None
    operations: float | None = None
    least_seconds: float | None = None  # by arithmetic or by bandwidth, whichever takes longer
    compile_seconds: float = 0.0


def forecast(
    name: str, jitted: Any, *args: Any, devices: list[Any], beside: float = 0.0
) -> Forecast:
    """Compiles `jitted` for arguments known by shape and sharding, and reads what it takes.

    Raises:
      ValueError: the compiler refuses the program for another reason than lack of memory.
    """
    chip = chips.of(devices[0])
    common: dict[str, Any] = {
        "program": name,
        "device": chip.name if chip else devices[0].device_kind,
        "devices": len(devices),
        "beside": beside,
        "limit": chip.memory if chip else None,
    }
    begin = time.monotonic()
    traced = jitted.trace(*args)
    operations = flops.count(traced.jaxpr) / len(devices)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        over = _OVER.search(str(error))
        if over is None:
            raise ValueError(f"{name}: the compiler refuses it: {error}") from error
        asked, unit, there, its_unit = (word for word in over.groups() if word)
        used, limit = float(asked) * _UNITS[unit], float(there) * _UNITS[its_unit]
        seconds = time.monotonic() - begin
        common |= {"limit": limit, "operations": operations, "compile_seconds": seconds}
        return Forecast(fits=False, memory=used, **common)
    sizes, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    arguments, outputs = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    aliased, temporaries = sizes.alias_size_in_bytes, sizes.temp_size_in_bytes
    memory = arguments + outputs - aliased + temporaries
    moved = costs.get("bytes accessed")
    least = None
    if chip is not None:
        least = max(operations / chip.flops, (moved or 0.0) / chip.bandwidth)
    return Forecast(
        fits=chip is None or memory + beside <= chip.memory,
        memory=memory,
        arguments=arguments,
        outputs=outputs,
        aliased=aliased,
        temporaries=temporaries,
        moved=moved,
        operations=operations,
        least_seconds=least,
        compile_seconds=time.monotonic() - begin,
        **common,
    )


def as_table(forecasts: list[Forecast]) -> str:
    """One line per program, sizes in GiB (memory) and GB (moved), all per device."""
    head = f"{'per device':<34}{'fits':>5}{'GiB':>8}{'beside':>8}{'of':>8}{'args':>8}{'temps':>8}"
    lines = [f"{head}{'TFLOP':>9}{'GB moved':>10}{'ms at least':>13}"]
    for f in forecasts:
        limit = _number(f.limit, 2.0**30)
        lines.append(
            f"{f.program:<34}{'yes' if f.fits else 'NO':>5}{f.memory / 2**30:>8.2f}"
            f"{f.beside / 2**30:>8.2f}{limit:>8}"
            f"{_number(f.arguments, 2.0**30):>8}{_number(f.temporaries, 2.0**30):>8}"
            f"{_number(f.operations, 1e12, 3):>9}{_number(f.moved, 1e9):>10}"
            f"{_number(f.least_seconds, 1e-3, 1):>13}"
        )
    return "\n".join(lines)


def _number(value: float | None, unit: float, digits: int = 2) -> str:
    return "?" if value is None else f"{value / unit:.{digits}f}"
