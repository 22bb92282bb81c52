"""Devices that are not here: TPU slices and NVIDIA GPUs, to build a mesh of."""

import functools
import importlib
import logging
import os
import re
from typing import Any

from dreambooth_jax.precompile import gpus

# For libtpu: there is no TPU here, and other processes may have it open.
_OF_TPUS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "2",
}
# For jax's plugin, which would otherwise ask for a driver and for libraries that only runs need.
_OF_GPUS = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}


def topology(name: str, *, num_slices: int = 1) -> list[Any]:
    """The devices of TPU slices, `v5e:2x2`, or of GPUs, `h100:8`; nothing can run on them.

    A slice's name is the generation and the chips along each side: two for v5e and v6e, three for
    v4, v5p and tpu7x. GPUs are those of `gpus.GPUS`, one where no number stands behind. Several
    slices are all alike, of GPUs they are several computers; devices tell which they are on.

    Raises:
      ValueError: the compiler is not installed, or knows no such devices.
    """
    kind, _, sides = name.partition(":")
    if kind.lower() in gpus.GPUS:
        return _of_gpus(name, kind.lower(), sides or "1", hosts=num_slices)
    return _of_tpus(name, kind, sides, num_slices=num_slices)


def _of_tpus(name: str, kind: str, sides: str, *, num_slices: int) -> list[Any]:
    _need("libtpu", extra="precompile", devices="TPUs")
    from jax.experimental import topologies

    for key, value in _OF_TPUS.items():
        os.environ.setdefault(key, value)
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
        raise _unknown(name, str(error).splitlines()[0]) from error


def _of_gpus(name: str, kind: str, count: str, *, hosts: int) -> list[Any]:
    _need("jax_cuda13_plugin", extra="precompile-gpu", devices="NVIDIA GPUs")
    from jax.experimental import topologies

    if not re.fullmatch(r"[1-9]\d*", count):
        raise _unknown(name, f"{count!r} is no number of GPUs")
    for key, value in _OF_GPUS.items():
        os.environ.setdefault(key, value)
    described = {"target_config": gpus.description(kind), "topology": f"1x{hosts}x{count}"}
    # jax starts its plugins again here, and logs with a traceback that one has already started.
    logger = logging.getLogger("jax._src.xla_bridge")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    describe = functools.partial(topologies.get_topology_desc, kind, "cuda", **described)
    try:
        try:
            found = describe()
        except NotImplementedError:  # jax looked for a GPU before, and gave its plugin up
            importlib.import_module("jax_plugins.xla_cuda13").initialize()
            found = describe()
        return list(found.devices)
    except Exception as error:  # whatever the plugin raises
        raise _unknown(name, str(error).splitlines()[0]) from error
    finally:
        logger.setLevel(level)


def _need(module: str, *, extra: str, devices: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"compiling for {devices} needs the package {module}, which is not installed. Write "
            f"pip install 'dreambooth_jax[{extra}]'."
        ) from error


def _unknown(name: str, reason: str) -> ValueError:
    return ValueError(
        f"precompile.topology = {name!r}: {reason}. Write generation and shape of TPUs, such as "
        "v5e:2x2, v6e:4x4, v4:2x2x1, v5p:2x2x2 or tpu7x:2x2x1, or a GPU and how many, such as "
        f"h100:8, of {', '.join(gpus.GPUS)}."
    )
