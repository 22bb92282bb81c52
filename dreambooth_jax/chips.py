"""Memory, arithmetic and bandwidth of accelerators, by their name in jax.

TPUs: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" (system
architecture), per chip. GPUs: NVIDIA's data sheets of L4, L40S, A100, H100, H200 and B200 and its
white papers of GeForce RTX 30, 40 and 50, dense bfloat16 with sums in float32; memory is what the
driver reports, of which it keeps some hundred MB itself.
"""

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of jax."""

    name: str
    memory: float  # bytes that programs may take: of a TPU what libtpu 0.0.52 compiles at most
    flops: float  # bfloat16 FLOP per second
    bandwidth: float  # bytes per second between the memory and the processor
    capability: float = 0.0  # CUDA's compute capability


GIB, TERA, GIGA = 2.0**30, 1e12, 1e9

CHIPS: dict[str, Chip] = {  # jax's device_kind -> what it is
    "TPU v4": Chip("v4", 30.75 * GIB, 275 * TERA, 1228 * GIGA),
    "TPU v5 lite": Chip("v5e", 15.75 * GIB, 197 * TERA, 819 * GIGA),
    "TPU v5": Chip("v5p", 95.73 * GIB, 459 * TERA, 2765 * GIGA),
    "TPU v6 lite": Chip("v6e", 31.24 * GIB, 918 * TERA, 1638 * GIGA),
    # jax sees two devices in one chip of 192 GiB, 2307 TFLOP/s and 7380 GB/s.
    "TPU7x": Chip("half a 7x", 94.74 * GIB, 1153.5 * TERA, 3690 * GIGA),
    "NVIDIA L4": Chip("L4", 22.49 * GIB, 121 * TERA, 300 * GIGA, 8.9),
    "NVIDIA L40S": Chip("L40S", 44.99 * GIB, 362 * TERA, 864 * GIGA, 8.9),
    "NVIDIA A100-SXM4-40GB": Chip("A100", 39.42 * GIB, 312 * TERA, 1555 * GIGA, 8.0),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 79.26 * GIB, 312 * TERA, 2039 * GIGA, 8.0),
    "NVIDIA H100 80GB HBM3": Chip("H100", 79.11 * GIB, 989.4 * TERA, 3350 * GIGA, 9.0),
    "NVIDIA H200": Chip("H200", 141 * GIGA, 989.4 * TERA, 4800 * GIGA, 9.0),
    "NVIDIA B200": Chip("B200", 178.36 * GIB, 2250 * TERA, 7700 * GIGA, 10.0),
    "NVIDIA GeForce RTX 3090": Chip("RTX 3090", 23.69 * GIB, 71 * TERA, 936 * GIGA, 8.6),
    "NVIDIA GeForce RTX 4090": Chip("RTX 4090", 23.65 * GIB, 165.2 * TERA, 1008 * GIGA, 8.9),
    "NVIDIA GeForce RTX 5090": Chip("RTX 5090", 31.36 * GIB, 209.5 * TERA, 1792 * GIGA, 12.0),
}


def of(device: Any) -> Chip | None:
    """Returns the record of a device of jax, None for an unknown one."""
    return CHIPS.get(device.device_kind)


_GOOGLE = "0x1ae0"  # the vendor of TPUs on the PCI bus; below its devices, from v3 to TPU7x
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def tpus_here(bus: Path = Path("/sys/bus/pci/devices")) -> int:
    """Returns the number of TPU chips in this computer, also of those that jax cannot use."""
    found = 0
    for device in bus.glob("*"):
        try:
            vendor, model = (
                (device / name).read_text(encoding="utf-8").strip() for name in ("vendor", "device")
            )
        except OSError:  # it was unplugged, or is not for this user
            continue
        found += vendor == _GOOGLE and model in _TPUS
    return found
