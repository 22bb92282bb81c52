"""The manager: when to write, what to read, which steps to refuse."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from dreambooth_jax import hosts, turns
from dreambooth_jax.checkpoint import manifest
from dreambooth_jax.checkpoint.reading import (
    CheckpointError,
    Damaged,
    agreement,
    in_short,
    patient_loops,
    read_arrays,
)
from dreambooth_jax.checkpoint.space import estimate_bytes, free_bytes, readable
from dreambooth_jax.closing import Closing

_MANIFEST = "manifest"
_STATE = "state"


class Checkpoints(Closing):
    """The checkpoints of one stage; as a context manager it waits for the last save.

    All processes of a run construct it and call its methods together.

    Args:
      folder: where they lie; made at the first save. A local path or gs://….
      config: the settings that determine the result, nested; stored with each checkpoint. One made
        with other settings is not continued from.
      max_to_keep: how many to keep; with 1 there is nothing to fall back on when it is damaged.
        With None all are kept, and steps that are missing may be filled in.
      may_differ: patterns of dotted keys of `config` that may change between runs: "train.num_*";
        "log" covers all keys below it.
      may_grow: `(settings of a checkpoint, config) -> more keys that may change`, both by dotted
        key.
      defaults: settings, nested as `config`, of checkpoints that do not tell theirs, being older.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        config: Mapping[str, Any],
        max_to_keep: int | None = 2,
        may_differ: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
        may_grow: Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[str]] | None = None,
    ) -> None:
        if max_to_keep is not None and max_to_keep < 1:
            raise ValueError(f"max_to_keep is {max_to_keep}; keep at least 1, better 2")
        path = str(folder)
        self.folder = epath.Path(path if "://" in path else os.path.abspath(path))
        self._config = manifest.flat_config(config)
        self._defaults = manifest.flat_config(defaults or {})
        self._max_to_keep = max_to_keep
        self._may_differ = tuple(may_differ)
        self._may_grow = may_grow
        self._refused: dict[int, str] = {}
        self._manager: ocp.CheckpointManager | None = None
        self._loops = contextlib.ExitStack()  # while a save is on its way
        self._saving = (0, 0)  # step and bytes of the last save, for the message when it fails

    def steps(self) -> list[int]:
        """The committed steps in rising order, without those that `restore` refused."""
        found = [step for step in self._committed() if step not in self._refused]
        return [step for step in found if self._manifest_file(step).exists()]

    def save(self, step: int, state: Any) -> None:
        """Save the pytree `state` of jax arrays; returns once they are on the host, and writes on.

        A step that is there already with the same values is left alone.

        Raises:
          CheckpointError: this or the previous save failed (no space, …), the step is there with
            other values, or a later step is there.
        """
        step = int(step)
        leaves = manifest.named(state)
        for name, leaf in leaves.items():
            if not isinstance(leaf, jax.Array):
                raise TypeError(
                    f"leaf {name!r} of the state is {type(leaf).__name__}, expected a jax array: "
                    "wrap it in jnp.asarray"
                )
        self.wait()
        manager = self._manager = self._manager or self._opened()
        steps = self.steps()
        if self._max_to_keep is not None and steps and steps[-1] > step:
            raise CheckpointError(
                f"{self.folder} already holds step {steps[-1]}, later than {step}. "
                "Restore before training on, or choose another workdir."
            )
        described = manifest.make(step, self._config, leaves)
        if step in steps:
            self._compare(step, described["leaves"])
            return
        items = {
            _STATE: ocp.args.PyTreeSave(leaves),
            _MANIFEST: ocp.args.JsonSave(described),
        }
        self._saving = (step, estimate_bytes(leaves))
        self._loops.enter_context(patient_loops())
        try:
            # force: without it Orbax may decide not to save, and says so by returning False.
            manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._failed(error) from error
        self._refused.pop(step, None)  # what was refused is replaced

    def restore(
        self, like: Any, *, partial: bool = False, step: int | None = None
    ) -> tuple[Any, int] | None:
        """The newest intact checkpoint as `(state, step)`; None when the folder holds none at all.

        A damaged step is refused with a warning that names the step and the leaf or file; the one
        before it is tried. The next save renames the refused ones to `<step>.corrupt`.

        Args:
          like: a pytree of arrays or `jax.ShapeDtypeStruct`; leaves come back in its structure and
            shardings (default: the first device), whatever devices they were saved from.
          partial: `like` may be a part of what was saved (the weights without the optimizer).
          step: this one and no other.

        Raises:
          CheckpointError: there are checkpoints but none is intact, or the settings differ, or
            there is none of `step`.
          ValueError: the leaves saved and those of `like` differ in name, shape or dtype.
        """
        self.close()  # the next save starts from what is on disk then
        self._refused = {}
        wanted = {name: _abstract(leaf) for name, leaf in manifest.named(like).items()}
        committed = self._committed()
        if step is not None and step not in committed:
            there = ", ".join(map(str, committed)) or "none at all"
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; has: {there}.")
        for found in reversed(committed if step is None else [step]):
            try:
                leaves = self._read(found, wanted, partial=partial)
            except Damaged as damage:
                self._refused[found] = str(damage)
                logging.warning("REFUSED checkpoint %s: %s", self.folder / str(found), damage)
                continue
            logging.info("Restored checkpoint %s", self.folder / str(found))
            return jax.tree.unflatten(jax.tree.structure(like), leaves), found
        if self._refused:
            reasons = "".join(f"\n  {number}: {why}" for number, why in self._refused.items())
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} is intact:{reasons}\n"
                "To start over, move that folder away or choose another workdir."
            )
        return None

    def wait(self) -> None:
        """Block until the last save is committed.

        Raises:
          CheckpointError: it failed.
        """
        if self._manager is not None:
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                raise self._failed(error) from error
            finally:
                self._loops.close()

    def close(self) -> None:
        """Wait for the last save and end Orbax's threads; a later save starts them again."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _committed(self) -> list[int]:
        """Every folder that looks like a step, good or not; an unfinished one has another name."""
        if not self.folder.is_dir():
            return []
        named = [path for path in self.folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name)]
        done = [path for path in named if path.is_dir() and ocp.utils.is_checkpoint_finalized(path)]
        return sorted(int(path.name) for path in done)

    def _manifest_file(self, step: int) -> epath.Path:
        return self.folder / str(step) / _MANIFEST / "metadata"  # "metadata": Orbax's name for it

    def _read(self, step: int, wanted: dict[str, Any], *, partial: bool) -> list[jax.Array]:
        """The leaves of `step`, verified, in the order of `wanted`; raises `Damaged`."""
        what = f"checkpoint {self.folder / str(step)}"
        with agreement():
            saved = manifest.read(self._manifest_file(step), step)
        settings = {**self._defaults, **saved["config"]}
        free = self._may_differ
        if self._may_grow is not None:
            free = (*free, *self._may_grow(settings, self._config))
        manifest.check_config(settings, self._config, may_differ=free, what=what)
        leaves = saved["leaves"]
        if partial:
            leaves = {name: leaf for name, leaf in leaves.items() if name in wanted}
        manifest.check_leaves(leaves, wanted, what=what)
        with agreement():
            found = read_arrays(self.folder / str(step) / _STATE, wanted, partial=partial)
        manifest.check_values(leaves, found)
        return [found[name] for name in wanted]

    def _compare(self, step: int, leaves: dict[str, Any]) -> None:
        """A step that is saved again must have the values it has."""
        saved = manifest.read(self._manifest_file(step), step)["leaves"]
        other = sorted(n for n in saved | leaves if saved.get(n) != leaves.get(n))
        if other:
            raise CheckpointError(
                f"step {step} is already in {self.folder} with other values ({len(other)} leaves "
                f"differ, the first is {other[0]!r}). Restore before training on, or choose "
                "another workdir."
            )
        logging.info("Step %d is already saved in %s", step, self.folder)

    def _opened(self) -> ocp.CheckpointManager:
        """Orbax's manager, on a folder cleared of what it would take for a checkpoint."""
        if turns.is_first():
            good = self.steps()
            for step in sorted(set(self._committed()) - set(good)):
                path, aside = self.folder / str(step), self.folder / f"{step}.corrupt"
                old = self._max_to_keep is not None and good and step < good[-1]
                if old:  # an old one whose deletion was interrupted
                    path.rmtree()
                    continue
                # Left in place a refused step would count as the latest, and push out a good one.
                if aside.exists():
                    aside.rmtree()
                path.rename(aside)
                logging.warning("Renamed the refused checkpoint %s; it may be deleted", aside)
        hosts.meet("checkpoint: refused steps are renamed")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._max_to_keep, cleanup_tmp_directories=True, lightweight_initialize=True
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _failed(self, error: Exception) -> CheckpointError:
        """Returns the error of a failed save; drops Orbax's manager, whose count may be wrong."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # it may repeat the current error
                manager.close()
        self._loops.close()
        step, nbytes = self._saving
        cause = in_short(_cause(error)).rstrip(".")
        free = free_bytes(self.folder)
        room = "" if free is None else f"Free there: {readable(free)}. "
        return CheckpointError(
            f"saving step {step} in {self.folder} failed: {cause}. {room}The checkpoint needs "
            f"{readable(nbytes)}. Earlier checkpoints are untouched: fix the cause and run the "
            "same command again."
        )


def _cause(error: BaseException) -> str:
    """The innermost reason of a failed save; of the system's errors their text and their file."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename}" if error.filename else ""
        return f"{name}: {error.strerror or os.strerror(error.errno)}{place}"
    return f"{name}: {error}" if str(error) else name


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of a leaf; the first local device where it names none."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
