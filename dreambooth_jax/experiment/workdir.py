"""The folder of one run: where its files are, whether it is finished, what it was started with."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts, metrics

_MADE = (
    "prior",
    "samples",
    "checkpoints",
    "kept_weights",
    "export",
)  # what depends on the settings


@dataclasses.dataclass(frozen=True)
class Workdir:
    """One folder with all that a run writes.

    It holds `config.json`, `subjects.json`, `metrics.jsonl`, `timings.json`, `prior/`, `samples/`,
    `export/`, `checkpoints/<stage>/<step>/`, `kept_weights/<stage>/<step>/` and, last of all,
    `report.html`.
    """

    root: Path
    writer: metrics.Writer
    as_before: bool  # the settings are those of the last start, all of them
    of_others: bool = False  # opened by `of_run`: its records stay as they are

    @classmethod
    def open(cls, root: Path, config: ConfigDict) -> "Workdir":
        """Makes the folder, or goes on in it.

        Raises:
          ConfigError: the folder holds a run with other settings; names every difference that
            matters.
          Disagreement: it is not the same folder on all hosts.
        """
        root = files.at(root)
        root.mkdir(parents=True, exist_ok=True)
        file = root / "config.json"
        as_before = False
        if file.is_file():
            saved = configs.from_json(file.read_text())
            as_before = configs.flatten(saved) == configs.flatten(config)
            conflicts = configs.resume_conflicts(saved, config)
            # A start that ended before anything was made (no such photos, say) binds nobody.
            if conflicts and any((root / name).exists() for name in _MADE):
                raise configs.ConfigError(
                    f"{root} holds a run with other settings:\n  "
                    + "\n  ".join(conflicts)
                    + "\nPut them back to go on with that run, or write another --workdir."
                )
        shared = "It must be one folder that all hosts see: on a shared disk, or gs://…."
        seen = {"of these settings": as_before, "finished": (root / "report.html").is_file()}
        hosts.agree(f"the runs in {root}", seen, remedy=shared)
        writers: list[metrics.Writer] = []
        if jax.process_index() == 0:
            if not as_before:  # first, else a kill would leave new settings beside an old report
                (root / "report.html").unlink(missing_ok=True)
            files.write_text(file, configs.to_json(config))
            writers.append(metrics.JsonlWriter(root / "metrics.jsonl"))
            if config.log.tensorboard:
                writers.append(metrics.TensorBoardWriter(root / "tensorboard"))
        hosts.agree(f"the parts of starting in {root}", "written", remedy="")
        hosts.agree(f"the files of {root}", {"config.json": file.is_file()}, remedy=shared)
        return cls(root, metrics.MultiWriter(writers), as_before)

    @classmethod
    def of_run(cls, root: Path, config: ConfigDict) -> "Workdir":
        """A run's folder to read from and to add pictures or exports to; there may be no run in it.

        Raises:
          ConfigError: the run has other settings, among those that its checkpoints depend on.
        """
        root = files.at(root)
        file = root / "config.json"
        if file.is_file():
            saved = configs.from_json(file.read_text())
            conflicts = configs.restore_conflicts(saved, config)
            if conflicts:
                raise configs.ConfigError(
                    f"{root} holds a run with other settings:\n  "
                    + "\n  ".join(conflicts)
                    + f"\nWrite --config=configs/of_run.py:{root} to take all of its settings."
                )
        return cls(root, metrics.MultiWriter([]), as_before=False, of_others=True)

    @property
    def is_finished(self) -> bool:
        """The report is there, a run's last file; with other prompts or formats a run goes on."""
        return self.as_before and self.report.is_file()

    @property
    def report(self) -> Path:
        """The page that tells of the run, written last."""
        return self.root / "report.html"

    @property
    def export(self) -> Path:
        """The folder of the fine-tuned model, in the diffusers layout."""
        return self.root / "export"

    @property
    def samples(self) -> Path:
        """The folder of the prompt grids, one sub-folder each."""
        return self.root / "samples"

    def checkpoints(self, kind: str) -> Path:
        """The folder of a stage's checkpoints."""
        return self.root / "checkpoints" / kind

    def kept_weights(self, kind: str) -> Path:
        """The folder of a stage's trained weights that `train.keep_weights_every` keeps."""
        return self.root / "kept_weights" / kind

    def write(self, name: str, text: str) -> None:
        """Writes a file of the folder whole or not at all."""
        files.write_text(self.root / name, text)

    def scalars(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return metrics.read(self.root / "metrics.jsonl")

    def words(self, chosen_by: Any) -> list[dict[str, str]] | None:
        """What the run calls its subjects, if that was settled by the same means (`keep_words`)."""
        file = self.root / "subjects.json"
        saved = json.loads(file.read_text()) if file.is_file() else {}
        same = saved.get("chosen_by") == chosen_by
        return saved["subjects"] if same else None

    def keep_words(self, chosen_by: Any, words: list[dict[str, str]]) -> None:
        """Writes `subjects.json`: what the run calls its subjects; `chosen_by` determines it."""
        if jax.process_index() == 0 and not self.of_others:
            content = {"subjects": words, "chosen_by": chosen_by}
            self.write("subjects.json", json.dumps(content, indent=1) + "\n")

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of its block to `timings.json`, over all starts of this run."""
        begin = time.monotonic()
        try:
            yield
        finally:
            if jax.process_index() == 0 and not self.of_others:
                seconds = self.timings()
                seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - begin, 3)
                self.write("timings.json", json.dumps(seconds, indent=1) + "\n")

    def timings(self) -> dict[str, float]:
        """Seconds by part of the run."""
        file = self.root / "timings.json"
        return json.loads(file.read_text()) if file.is_file() else {}
