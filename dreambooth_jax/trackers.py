"""Writers to experiment trackers: W&B, and Trackio, which has the same functions.

Their packages are imported where a run asks for them (`log.to`). Tokens are their own: `wandb
login` or WANDB_API_KEY, WANDB_MODE=offline; Trackio keeps everything on this computer.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("wandb", "trackio")


class TrackerError(ValueError):
    """A tracker that does not start; the message tells the remedy."""


class Tracker:
    """A run in a project of W&B or Trackio; method names are those of `metrics.Writer`.

    Names of numbers and pictures begin with a stage or a group, "base/loss": the step counts within
    it, so that the second stage's first step may come after the first stage's last.
    """

    def __init__(
        self,
        package: str,
        *,
        project: str,
        name: str,
        identity: str,
        settings: Mapping[str, Any],
        folder: Path,
    ):
        """Starts the run called `name`, or resumes it.

        package: "wandb" or "trackio".
        identity: kept with the run's folder; the same one resumes the same run.
        settings: hyper-parameters by key.
        folder: where W&B keeps its own files.

        Raises:
          TrackerError: the package is not installed, or it does not start.
        """
        try:
            self._package = importlib.import_module(package)
        except ImportError as error:
            raise TrackerError(
                f"log.to has {package!r}, which is not installed. Write pip install {package}, or "
                "leave it out of log.to."
            ) from error
        self._is_wandb = package == "wandb"
        # W&B knows a run by its id, Trackio by its name.
        own = {"name": name, "id": identity, "dir": str(folder)}
        own = own if self._is_wandb else {"name": f"{name}-{identity}"}
        try:
            self._run = self._package.init(
                project=project, config=_plain(settings), resume="allow", **own
            )
        except Exception as error:  # each package has errors of its own
            login = "Run `wandb login`, set WANDB_MODE=offline, or leave" * self._is_wandb
            raise TrackerError(
                f"log.to: {package} does not start: {str(error).strip() or type(error).__name__}. "
                f"{login or 'Leave'} it out of log.to."
            ) from error
        self._groups: set[str] = set()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Sends numbers, or arrays of one element."""
        self._log(step, {name: float(np.asarray(x).reshape(())) for name, x in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Sends uint8 pictures [N, H, W, C], or [H, W, C]; the caption is the name."""
        found = {}
        for name, value in images.items():
            array = np.asarray(value)
            each = array if array.ndim == 4 else array[None]
            for k, picture in enumerate(each):
                key = name if len(each) == 1 else f"{name} ({k + 1})"
                found[key] = self._package.Image(picture, caption=name.rpartition("/")[2])
        self._log(step, found)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Keeps texts with the run's settings."""
        del step
        how = {"allow_val_change": True} if self._is_wandb else {}
        self._run.config.update(dict(texts), **how)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Does nothing: the run has its settings from the start."""

    def flush(self) -> None:
        """Does nothing: trackers send by themselves."""

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()

    def _log(self, step: int, found: Mapping[str, Any]) -> None:
        """Sends values, those of each group at its own step."""
        by_group: dict[str, dict[str, Any]] = {}
        for name, value in found.items():
            by_group.setdefault(name.partition("/")[0], {})[name] = value
        for group, values in by_group.items():
            if not self._is_wandb:
                self._run.log(values, step=int(step))
                continue
            # W&B drops what comes with a lower step than before; an axis of its own does not.
            if group not in self._groups:
                self._groups.add(group)
                self._run.define_metric(f"{group}/step")
                self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
            self._run.log({**values, f"{group}/step": int(step)})


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as numbers and texts."""
    kept = bool | int | float | str
    return {key: x if isinstance(x, kept) else repr(x) for key, x in settings.items()}
