"""The devices that a program is traced for: the mesh in context, else jax's default.

The mesh may be of devices that this computer does not have.
"""

import math

import jax

from dreambooth_jax import chips


def device() -> tuple[str, str]:
    """Platform and kind of the devices: `("tpu", "TPU v5 lite")`."""
    found = jax.sharding.get_abstract_mesh().abstract_device
    if found is not None:
        return found.platform, found.device_kind
    return jax.default_backend(), jax.devices()[0].device_kind


def capability() -> float:
    """CUDA's compute capability of the devices; 0.0 of others, and where nothing tells."""
    kind = device()[1]
    known = chips.CHIPS.get(kind)
    if known is not None:
        return known.capability
    told = (
        getattr(d, "compute_capability", "") for d in jax.local_devices() if d.device_kind == kind
    )
    return float(next(told, "") or 0.0)


def is_one_device() -> bool:
    """Returns True where the program, or the part of `jax.shard_map` in it, is one device's own."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size <= 1 or mesh.are_all_axes_manual


def parts() -> tuple[int, int]:
    """Returns the number of devices that share rows, and that share heads and channels."""
    if is_one_device():
        return 1, 1
    sizes = jax.sharding.get_abstract_mesh().axis_sizes
    return math.prod(sizes[:-1]), sizes[-1]
