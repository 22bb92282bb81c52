"""Sharding: the mesh, regex tables from paths to shardings, the table of shardings.

Axes: `data` splits the rows of a batch; `fsdp` splits rows as well, and the parameters and
optimizer state (ZeRO-3, Rajbhandari et al. 2020); `tensor` splits single layers, in pairs: the
outputs of the first, the inputs of the second, whose results are then summed over the devices
(Shoeybi et al. 2019). Networks never mention any of them.
"""

import collections
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreambooth_jax import kernels, tree

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))
Rules = Sequence[tuple[str, str]]
LAYER_AXES = {"columns": -1, "rows": -2}  # of a kernel [..., inputs, outputs]: what `tensor` cuts
NO_HEADS: Mapping[str, int] = {}
_BLOCK = 256  # numbers of the last axis that share a scale, of 8-bit moments (`optim.adam8bit`)


def make_mesh(
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
    rows: int | None = None,
) -> Mesh:
    """A mesh over all devices; one size may be -1: it takes what the others leave.

    rows: of a forward pass, over which an open `data` must divide. Devices that are left over then
    split layers (`tensor`) instead of standing idle.

    Where devices are on several fast networks (slices of TPUs, hosts of GPUs, processes), `data`
    goes over the slower one between these, `fsdp` only where `data` is too small, `tensor` never.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or not so over the networks.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(open_axes) == 1 and len(devices) % known == 0:
        sizes[open_axes[0]] = len(devices) // known
        if rows is not None and open_axes == ["data"]:
            sizes |= for_rows(rows, **sizes)
    if int(np.prod(list(sizes.values()))) != len(devices):
        asked = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"mesh: {asked} do not multiply to the {len(devices)} devices of this run. "
            "Set one of them to -1 to take all that the others leave."
        )
    axis_types = (AxisType.Auto,) * len(AXES)
    count, word = _networks(devices)
    if count == 1:
        shape = tuple(sizes.values())
        return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)
    outer = _between(sizes, count, len(devices), word)
    inner = [size // parts for size, parts in zip(sizes.values(), outer, strict=True)]
    array = mesh_utils.create_hybrid_device_mesh(
        inner,
        outer,
        devices,
        process_is_granule=word == "processes",
        allow_split_physical_axes=True,
    )
    return Mesh(array, AXES, axis_types=axis_types)


def for_rows(rows: int, *, data: int, fsdp: int, tensor: int) -> dict[str, int]:
    """Returns the sizes with the largest part of `data` over which `rows` divide.

    The rest goes to `tensor`. Sizes stay as they are where no part would do.
    """
    fitting = [n for n in range(1, data + 1) if data % n == 0 and rows % (n * fsdp) == 0]
    if not fitting:  # `check_rows` says so
        return {"data": data, "fsdp": fsdp, "tensor": tensor}
    return {"data": fitting[-1], "fsdp": fsdp, "tensor": tensor * data // fitting[-1]}


def _network(device: Any) -> tuple[int, str]:
    """The fast network that a device is on, and what those are: slices, or else processes."""
    found = getattr(device, "slice_index", None)
    if found is not None:
        return found, "slices"
    return (0, "slices") if device.platform == "tpu" else (device.process_index, "processes")


def _networks(devices: Sequence[Any]) -> tuple[int, str]:
    """Returns the number of fast networks, and their name.

    Raises:
      ValueError: they have not all as many devices.
    """
    found = collections.Counter(map(_network, devices))
    word = next(iter(found))[1]
    if word == "processes" and set(found.values()) == {1}:
        return 1, word  # a process for each device: that says nothing of networks
    if len(set(found.values())) > 1:
        told = ", ".join(str(size) for size in found.values())
        raise ValueError(
            f"mesh: the {len(found)} {word} of this run have {told} devices. A mesh over several "
            "needs as many of each: start the run with equal ones."
        )
    return len(found), word


def _between(sizes: Mapping[str, int], count: int, total: int, word: str) -> tuple[int, int, int]:
    """Into how many parts each axis is cut between `count` fast networks: data, then fsdp.

    Raises:
      ValueError: they do not divide so; the message has sizes that do.
    """
    data, fsdp, tensor = sizes.values()
    over_data = math.gcd(data, count)
    over_fsdp = count // over_data
    if fsdp % over_fsdp == 0:
        return over_data, over_fsdp, 1
    each = total // count
    fewer = math.gcd(tensor, each)
    parts = math.gcd(fsdp, each // fewer)
    asked = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    raise ValueError(
        f"mesh: {asked} on {count} {word} of {each} devices. Only data, and then fsdp, may go over "
        f"the slower network between {word}, and tensor never: mesh.data × mesh.fsdp must split "
        f"into {count} parts. Write --config.mesh.data={total // (fewer * parts)} "
        f"--config.mesh.fsdp={parts} --config.mesh.tensor={fewer}."
    )


def describe(mesh: Mesh) -> str:
    """The sizes of a mesh in one line, and which axes go over a slower network."""
    told = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    count, word = _networks(list(mesh.devices.flat))
    if count == 1:
        return told
    where = np.vectorize(lambda device: _network(device)[0])(mesh.devices)
    crossing = [
        axis for k, axis in enumerate(mesh.axis_names) if (where != where.take([0], axis=k)).any()
    ]
    return f"{told}; {count} {word} along {' and '.join(crossing)}"


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


def spec(
    path: str,
    leaf: Any,
    *,
    rules: Rules,
    mesh: Mesh,
    min_bytes: int,
    heads: Mapping[str, int] = NO_HEADS,
) -> P:
    """Returns the `PartitionSpec` of a leaf, by the first rule that matches its path.

    "columns" and "rows" cut a layer's outputs (the last axis) and inputs (the one before it) over
    `tensor`, in whole heads below a module in `heads`. Whatever is not to "replicate" is cut over
    `fsdp` as well, unless it has less than `min_bytes`: along the largest other axis that divides;
    the last one only where no other does, if that would cut blocks of 8-bit moments.
    """
    return _cut(path, leaf, rules=rules, mesh=mesh, min_bytes=min_bytes, heads=heads)[0]


def _cut(
    path: str, leaf: Any, *, rules: Rules, mesh: Mesh, min_bytes: int, heads: Mapping[str, int]
) -> tuple[P, tuple[str, ...]]:
    """`spec`, and the axes of the mesh over which the leaf stays whole for want of a divisor."""
    rule = tree.first_match(path, rules, what="sharding.rules")
    if rule == "replicate":
        return P(), ()
    cut: list[str | None] = [None] * len(leaf.shape)
    failed = []
    parts = mesh.shape["tensor"]
    if parts > 1 and rule in LAYER_AXES and len(leaf.shape) >= -LAYER_AXES[rule]:
        axis = LAYER_AXES[rule]
        if leaf.shape[axis] % parts or _heads_of(path, heads, leaf.shape[axis]) % parts:
            failed.append("tensor")
        else:
            cut[axis] = "tensor"
    parts = mesh.shape["fsdp"]
    if parts > 1 and tree.nbytes({path: leaf}) >= min_bytes:
        free = [axis for axis, taken in enumerate(cut) if not taken]
        last = len(cut) - 1 if _cuts_blocks(leaf, parts) else None
        for axis in sorted(free, key=lambda axis: (axis == last, -leaf.shape[axis])):
            if leaf.shape[axis] % parts == 0:
                cut[axis] = "fsdp"
                break
        else:
            failed.append("fsdp")
    return _as_spec(cut), tuple(failed)


def _as_spec(cut: list[str | None]) -> P:
    """Without what is not cut at its end, so that specs of one meaning are equal."""
    while cut and cut[-1] is None:
        cut.pop()
    return P(*cut)


def _cuts_blocks(leaf: Any, parts: int) -> bool:
    """Returns True if so many parts of the last axis would cut blocks of 8-bit moments.

    A block on two devices has the whole axis gathered in each step.
    """
    last = leaf.shape[-1] if leaf.shape else 1
    return last % _BLOCK == 0 and last // parts % _BLOCK != 0


def _heads_of(path: str, heads: Mapping[str, int], default: int) -> int:
    """Heads of the attention that a leaf belongs to; `default` where it belongs to none."""
    parts = path.split("/")
    above = ("/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((heads[module] for module in above if module in heads), default)


def shardings(
    flat: Mapping[str, Any],
    *,
    rules: Rules,
    mesh: Mesh,
    min_bytes: int,
    heads: Mapping[str, int] = NO_HEADS,
) -> dict[str, Any]:
    """The sharding of each leaf of a flat dictionary; `heads` as in `spec`.

    The scales of a kernel in 8 bits are where its output channels are.
    """
    how: dict[str, Any] = {"rules": rules, "mesh": mesh, "min_bytes": min_bytes, "heads": heads}

    def place(path: str, leaf: Any) -> Any:
        found = spec(path, leaf, **how)
        whole = NamedSharding(mesh, found)
        if not isinstance(leaf, kernels.Int8):
            return whole
        channels = found[-1] if len(found) == len(leaf.shape) else None
        return kernels.Int8(whole, NamedSharding(mesh, _as_spec([channels])))

    return {path: place(path, leaf) for path, leaf in flat.items()}


def like_parameters(
    state: Any, by_path: Mapping[str, NamedSharding], params: Mapping[str, Any], mesh: Mesh
) -> Any:
    """Shardings for a tree with copies of the parameters in it (optimizer state, averages).

    A leaf below a parameter's path with as many axes goes where the parameter is, as far as the
    axes that are cut have its sizes; everything else, such as counters, is replicated.
    """

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey)]
        path = next((name for name in reversed(names) if name in by_path), None)
        if path is None or len(leaf.shape) != len(params[path].shape):
            return NamedSharding(mesh, P())
        sizes = zip(by_path[path].spec, leaf.shape, params[path].shape, strict=False)
        cut = [axis if own == its else None for axis, own, its in sizes]
        return NamedSharding(mesh, _as_spec(cut))

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
    return np.asarray(_gather(array.sharding.mesh)(array))


@functools.cache
def _gather(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Returns the program that gathers an array; cached, else each leaf would compile its own.

    Leaves of one shape and sharding share a program.
    """
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


def left_whole(
    flat: Mapping[str, Any],
    *,
    rules: Rules,
    mesh: Mesh,
    min_bytes: int,
    heads: Mapping[str, int] = NO_HEADS,
) -> str:
    """Lists leaves that are not sharded because no axis divides; "" if there are none."""
    how: dict[str, Any] = {"rules": rules, "mesh": mesh, "min_bytes": min_bytes, "heads": heads}
    failed: dict[str, list[str]] = {}
    for path, leaf in flat.items():
        for axis in _cut(path, leaf, **how)[1]:
            failed.setdefault(axis, []).append(path)
    lines = []
    for axis, paths in sorted(failed.items()):
        part = {path: flat[path] for path in paths}
        largest = max(paths, key=lambda path: tree.nbytes({path: flat[path]}))
        shape = tuple(flat[largest].shape)
        of = _heads_of(largest, heads, 0)
        told = (
            f"{shape}, {of} head{'' if of == 1 else 's'}" if axis == "tensor" and of else f"{shape}"
        )
        lines.append(
            f"Not split over {axis}, which {mesh.shape[axis]} does not divide: {len(paths)} "
            f"leaves, {tree.nbytes(part) / 2**20:.1f} MiB; the largest: {largest} {told}."
        )
    return "\n".join(lines)


def table(flat: Mapping[str, Any], by_path: Mapping[str, NamedSharding]) -> str:
    """Table of sharding specs: leaves, parameters and bytes of each."""
    groups: dict[str, list[str]] = {}
    for path in flat:
        place = by_path[path]
        place = place.values if isinstance(place, kernels.Int8) else place
        groups.setdefault(str(place.spec), []).append(path)
    lines = [f"{'sharding':<32}{'leaves':>8}{'parameters':>16}{'MiB':>10}"]
    for name, paths in sorted(groups.items()):
        part = {path: flat[path] for path in paths}
        lines.append(
            f"{name:<32}{len(part):>8}{tree.count(part):>16,}{tree.nbytes(part) / 2**20:>10.1f}"
        )
    return "\n".join(lines)
