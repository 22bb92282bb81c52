"""Where arrays live: the mesh, regex tables from paths to shardings, the table of what went where.

Axes: `data` splits the rows of a batch; `fsdp` splits rows as well, and the parameters and
optimizer state (ZeRO-3, Rajbhandari et al. 2020); `tensor` is reserved for splitting single layers.
Networks never mention any of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreambooth_jax import tree

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))
Rules = Sequence[tuple[str, str]]


def make_mesh(
    *, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices; one size may be -1: it takes what the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(open_axes) == 1 and len(devices) % known == 0:
        sizes[open_axes[0]] = len(devices) // known
    if int(np.prod(list(sizes.values()))) != len(devices):
        asked = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"mesh: {asked} do not multiply to the {len(devices)} devices of this run. "
            "Set one of them to -1 to take all that the others leave."
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def whole_rows(rows: int, mesh: Mesh) -> int:
    """`rows`, rounded up to what the devices share evenly."""
    parts = row_shards(mesh)
    return -(-rows // parts) * parts


def check_rows(rows: int, mesh: Mesh, *, key: str) -> None:
    """A batch must divide evenly over the mesh.

    Raises:
      ValueError: names the setting and the nearest sizes that work.
    """
    parts = row_shards(mesh)
    if rows % parts:
        below, above = rows // parts * parts, (rows // parts + 1) * parts
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{key} = {rows} does not divide over {parts} devices (data × fsdp). Set it to {sizes}."
        )


def spec(path: str, leaf: Any, *, rules: Rules, mesh: Mesh, min_bytes: int) -> P:
    """How a leaf is split: `fsdp` cuts its largest axis that divides; small leaves stay whole."""
    rule = tree.first_match(path, rules, what="sharding.rules")
    parts = mesh.shape["fsdp"]
    if rule == "replicate" or parts == 1 or tree.nbytes({path: leaf}) < min_bytes:
        return P()
    for axis in sorted(range(len(leaf.shape)), key=lambda axis: -leaf.shape[axis]):
        if leaf.shape[axis] % parts == 0:
            return P(*(None,) * axis, "fsdp")
    return P()


def shardings(
    flat: Mapping[str, Any], *, rules: Rules, mesh: Mesh, min_bytes: int
) -> dict[str, NamedSharding]:
    """The sharding of each leaf of a flat dictionary."""
    return {
        path: NamedSharding(mesh, spec(path, leaf, rules=rules, mesh=mesh, min_bytes=min_bytes))
        for path, leaf in flat.items()
    }


def like_parameters(
    state: Any, by_path: Mapping[str, NamedSharding], params: Mapping[str, Any], mesh: Mesh
) -> Any:
    """Shardings for a tree with copies of the parameters in it (optimizer state, averages).

    A leaf below a parameter's path and of its shape goes where the parameter is; everything else,
    such as counters, is replicated.
    """

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey)]
        path = next((name for name in reversed(names) if name in by_path), None)
        if path is not None and tuple(leaf.shape) == tuple(params[path].shape):
            return by_path[path]
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(place, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, ROWS)


def traced_for(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, to be jitted for this mesh: inside, it is the mesh in context.

    What depends on the kind of device (`models.attention`) asks there, so that a program may also
    be compiled for devices of which this computer has none.
    """

    @functools.wraps(function)
    def inside(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return inside


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """A host array that every process holds whole, as a global array with this sharding."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """A global array, whole, on every process's host; a host array as it is."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    assert isinstance(array.sharding, NamedSharding)  # the only kind that this project makes
    whole = NamedSharding(array.sharding.mesh, P())
    return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(array))


def table(flat: Mapping[str, Any], by_path: Mapping[str, NamedSharding]) -> str:
    """Where it went: leaves, numbers and bytes for each way of splitting."""
    groups: dict[str, list[str]] = {}
    for path in flat:
        groups.setdefault(str(by_path[path].spec), []).append(path)
    lines = [f"{'sharding':<32}{'leaves':>8}{'parameters':>16}{'MiB':>10}"]
    for name, paths in sorted(groups.items()):
        part = {path: flat[path] for path in paths}
        lines.append(
            f"{name:<32}{len(part):>8}{tree.count(part):>16,}{tree.nbytes(part) / 2**20:>10.1f}"
        )
    return "\n".join(lines)
