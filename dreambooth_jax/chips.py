"""What accelerators can do: memory, arithmetic, bandwidth of a device, by its name in jax.

TPUs: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" (system
architecture), per chip. GPUs: NVIDIA's data sheets of L4, A100, H100 and H200, dense bfloat16.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of jax."""

    name: str
    memory: float  # bytes that programs may take: of a TPU what libtpu 0.0.52 compiles at most
    flops: float  # bfloat16 FLOP per second
    bandwidth: float  # bytes per second between the memory and the processor


GIB, TERA, GIGA = 2.0**30, 1e12, 1e9

CHIPS: dict[str, Chip] = {  # jax's device_kind -> what it is
    "TPU v4": Chip("v4", 30.75 * GIB, 275 * TERA, 1228 * GIGA),
    "TPU v5 lite": Chip("v5e", 15.75 * GIB, 197 * TERA, 819 * GIGA),
    "TPU v5": Chip("v5p", 95.73 * GIB, 459 * TERA, 2765 * GIGA),
    "TPU v6 lite": Chip("v6e", 31.24 * GIB, 918 * TERA, 1638 * GIGA),
    # jax sees two devices in one chip of 192 GiB, 2307 TFLOP/s and 7380 GB/s.
    "TPU7x": Chip("half a 7x", 94.74 * GIB, 1153.5 * TERA, 3690 * GIGA),
    "NVIDIA L4": Chip("L4", 24 * GIB, 121 * TERA, 300 * GIGA),
    "NVIDIA A100-SXM4-40GB": Chip("A100", 40 * GIB, 312 * TERA, 1555 * GIGA),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 80 * GIB, 312 * TERA, 2039 * GIGA),
    "NVIDIA H100 80GB HBM3": Chip("H100", 80 * GIB, 989.4 * TERA, 3350 * GIGA),
    "NVIDIA H200": Chip("H200", 141 * GIGA, 989.4 * TERA, 4800 * GIGA),
}


def of(device: Any) -> Chip | None:
    """What is known of a device of jax; None where nothing is."""
    return CHIPS.get(device.device_kind)
