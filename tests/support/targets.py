"""Meshes of devices that are not here, where their compiler is installed."""

import functools

import pytest
from jax.sharding import Mesh

from dreambooth_jax import precompile, sharding


@functools.cache
def mesh_of(name: str, **sizes: int) -> Mesh:
    """A mesh of TPUs, `v5e:1x1`, or of GPUs, `h100`; skips where their compiler is absent."""
    tpu = name[0] == "v" or name.startswith("tpu")
    package, extra = ("libtpu", "precompile") if tpu else ("jax_cuda13_plugin", "precompile-gpu")
    pytest.importorskip(package, reason=f"needs the compiler {package} (the extra {extra})")
    return sharding.make_mesh(devices=precompile.topology(name), **sizes)
