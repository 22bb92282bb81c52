"""What a program is traced for: the mesh in context (`sharding.traced_for`), else jax's default.

The mesh may be of devices that this computer does not have.
"""

import math

import jax


def device() -> tuple[str, str]:
    """Platform and kind of the devices: `("tpu", "TPU v5 lite")`."""
    found = jax.sharding.get_abstract_mesh().abstract_device
    if found is not None:
        return found.platform, found.device_kind
    return jax.default_backend(), jax.devices()[0].device_kind


def parts() -> tuple[int, int]:
    """How many devices share rows, and how many heads and channels."""
    sizes = jax.sharding.get_abstract_mesh().axis_sizes
    return (math.prod(sizes[:-1]), sizes[-1]) if sizes else (1, 1)
