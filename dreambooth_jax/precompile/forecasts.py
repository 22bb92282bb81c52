"""Memory, operations and time of a program on each device, by its compiler."""

import dataclasses
import re
import time
from typing import Any

import jax

from dreambooth_jax import chips, flops
from dreambooth_jax.precompile import traffic

# What the compiler says of a program that is too large, early or late in its work.
_OVER = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
    r"|Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"
)
# With no GPU to measure on, the tile of a Triton product is a guess that the compiler then may not
# find; cuBLAS needs none.
_OF_GPUS = {"xla_gpu_enable_triton_gemm": False}
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The cost of one program on each device: bytes, FLOP, seconds.

    `memory` is the peak: arguments, outputs that do not take an argument's place, temporaries.
    `beside` lies there too, though the program does not take it.
    Where the compiler gave up for lack of memory, only it is known. `moved` are bytes between
    memory and processor: of TPUs by the compiler's count, which has the body of a loop once, of
    GPUs by `traffic.moved`, which has all turns; `operations` are `flops.count` of all turns.
    `between` are bytes that a GPU sends to others, by `traffic.between`; of TPUs it is not known.
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
    between: float | None = None
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
    begin = time.monotonic()
    traced = jitted.trace(*args)
    operations = flops.count(traced.jaxpr) / len(devices)
    common: dict[str, Any] = {"devices": devices, "operations": operations, "beside": beside}
    try:
        options = _OF_GPUS if devices[0].platform == "gpu" else None
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        over = _OVER.search(str(error))
        if over is None:
            raise ValueError(f"{name}: the compiler refuses it: {error}") from error
        asked, unit, there, its_unit = (word for word in over.groups() if word)
        used, limit = float(asked) * _UNITS[unit], float(there) * _UNITS[its_unit]
        return Forecast(
            program=name,
            device=_called(devices[0]),
            devices=len(devices),
            fits=False,
            memory=used,
            limit=limit,
            beside=beside,
            operations=operations,
            compile_seconds=time.monotonic() - begin,
        )
    seconds = time.monotonic() - begin
    return dataclasses.replace(read(name, compiled, **common), compile_seconds=seconds)


def read(
    name: str, compiled: Any, *, devices: list[Any], operations: float, beside: float = 0.0
) -> Forecast:
    """The cost of a compiled program; `operations`: FLOP on each device."""
    chip = chips.of(devices[0])
    sizes, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    arguments, outputs = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    aliased, temporaries = sizes.alias_size_in_bytes, sizes.temp_size_in_bytes
    memory = arguments + outputs - aliased + temporaries
    told, gpu = costs.get("bytes accessed"), devices[0].platform == "gpu"
    text = compiled.as_text() if gpu or not told else ""
    moved = told or traffic.moved(text)
    between = traffic.between(text) if gpu else None
    least = None
    if chip is not None:
        least = max(operations / chip.flops, moved / chip.bandwidth)
    return Forecast(
        program=name,
        device=_called(devices[0]),
        devices=len(devices),
        fits=chip is None or memory + beside <= chip.memory,
        memory=memory,
        limit=chip.memory if chip else None,
        beside=beside,
        arguments=arguments,
        outputs=outputs,
        aliased=aliased,
        temporaries=temporaries,
        moved=moved,
        between=between,
        operations=operations,
        least_seconds=least,
    )


def _called(device: Any) -> str:
    chip = chips.of(device)
    return chip.name if chip else device.device_kind


def as_table(forecasts: list[Forecast]) -> str:
    """One line per program, sizes in GiB (memory) and GB (moved, sent), per device."""
    head = f"{'per device':<34}{'fits':>5}{'GiB':>8}{'beside':>8}{'of':>8}{'args':>8}{'temps':>8}"
    lines = [f"{head}{'TFLOP':>9}{'GB moved':>10}{'sent':>8}{'ms at least':>13}"]
    for f in forecasts:
        limit = _number(f.limit, 2.0**30)
        lines.append(
            f"{f.program:<34}{'yes' if f.fits else 'NO':>5}{f.memory / 2**30:>8.2f}"
            f"{f.beside / 2**30:>8.2f}{limit:>8}"
            f"{_number(f.arguments, 2.0**30):>8}{_number(f.temporaries, 2.0**30):>8}"
            f"{_number(f.operations, 1e12, 3):>9}{_number(f.moved, 1e9):>10}"
            f"{_number(f.between, 1e9):>8}"
            f"{_number(f.least_seconds, 1e-3, 1):>13}"
        )
    return "\n".join(lines)


def _number(value: float | None, unit: float, digits: int = 2) -> str:
    return "?" if value is None else f"{value / unit:.{digits}f}"
