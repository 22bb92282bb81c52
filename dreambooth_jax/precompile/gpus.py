"""NVIDIA GPUs as XLA's compiler wants them described, so that it works for one that is not here.

Of each its streaming multiprocessors, clock, caches and memory (NVIDIA's data sheets and white
papers); what follows from the compute capability is CUDA's (programming guide, "Compute
Capabilities").
"""

import dataclasses

from dreambooth_jax import chips


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU beyond what `chips.CHIPS` tells of it."""

    kind: str  # as jax and the driver call it
    cores: int  # streaming multiprocessors
    clock: float  # GHz at most
    cache: float  # bytes of the second level


MIB = 2**20

GPUS: dict[str, Gpu] = {  # what precompile.topology calls it -> what it is
    "h100": Gpu("NVIDIA H100 80GB HBM3", 132, 1.98, 50 * MIB),
    "h200": Gpu("NVIDIA H200", 132, 1.98, 50 * MIB),
    "b200": Gpu("NVIDIA B200", 148, 1.965, 126.5 * MIB),
    "a100-40gb": Gpu("NVIDIA A100-SXM4-40GB", 108, 1.41, 40 * MIB),
    "a100-80gb": Gpu("NVIDIA A100-SXM4-80GB", 108, 1.41, 40 * MIB),
    "l4": Gpu("NVIDIA L4", 58, 2.04, 48 * MIB),
    "l40s": Gpu("NVIDIA L40S", 142, 2.52, 96 * MIB),
    "rtx3090": Gpu("NVIDIA GeForce RTX 3090", 82, 1.695, 6 * MIB),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 128, 2.52, 72 * MIB),
    "rtx5090": Gpu("NVIDIA GeForce RTX 5090", 170, 2.407, 96 * MIB),
}

# Compute capability -> threads and KiB of shared memory of a multiprocessor, float32 units of it.
_OF_CAPABILITY = {
    8.0: (2048, 164, 64),
    8.6: (1536, 100, 128),
    8.9: (1536, 100, 128),
    9.0: (2048, 228, 128),
    10.0: (2048, 228, 128),
    12.0: (1536, 100, 128),
}


def description(name: str) -> str:
    """A GPU of `GPUS` as a text of XLA's message `GpuTargetConfigProto`."""
    gpu = GPUS[name]
    chip = chips.CHIPS[gpu.kind]
    threads, shared, units = _OF_CAPABILITY[chip.capability]
    major, minor = str(chip.capability).split(".")
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": shared * 1024,
        "shared_memory_per_block_optin": (shared - 1) * 1024,  # one KiB of each block is CUDA's
        "threads_per_core_limit": threads,
        "core_count": gpu.cores,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": int(gpu.cache),
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": int(chip.memory),
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
    }
    told = "\n".join(f"  {field}: {value}" for field, value in fields.items())
    return (
        f"gpu_device_info {{\n{told}\n"
        f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 patch: 0 }\n"  # whose features XLA may use
        f'device_description_str: "{gpu.kind}"\n'
    )
