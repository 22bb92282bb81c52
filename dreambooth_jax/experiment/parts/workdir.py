"""The folder of one run: where its files are, whether it is finished, what it was started with."""

import contextlib
import dataclasses
import json
import math
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts, lock, metrics, report, trackers, turns, untrusted
from dreambooth_jax.closing import Closing
from dreambooth_jax.config import Plan

_MADE = (
    "prior",
    "samples",
    "checkpoints",
    "kept_weights",
    "export",
)  # what depends on the settings
_FILES = (  # the rest
    "config.json",
    "subjects.json",
    "sources.json",
    "metrics.jsonl",
    "timings.json",
    "report.html",
    "advice.json",
    "scores.json",
    "tracker.json",
    "status.json",
    "log.txt",
)
BEFORE = "report.before.html"  # of a finished run that is resumed with other settings


@dataclasses.dataclass(frozen=True)
class Workdir(Closing):
    """One folder with all that a run writes.

    It holds `config.json`, `subjects.json`, `metrics.jsonl`, `timings.json`, `prior/`, `samples/`,
    `export/`, `checkpoints/<stage>/<step>/`, `kept_weights/<stage>/<step>/` and, last of all,
    `report.html`.
    """

    root: Path
    writer: metrics.Writer
    as_before: bool  # the settings are those of the last start, all of them
    of_others: bool = False  # opened by `of_run`: its records stay as they are
    claim: lock.Lock | None = None  # on the folder, by the first of several processes

    @classmethod
    def open(cls, root: Path, plan: Plan) -> "Workdir":
        """Makes the folder, or resumes the run in it.

        Raises:
          ConfigError: the folder holds a run with other settings; names every difference that
            matters.
          LockedError: another program works in it.
          OSError: it cannot be made, or not be written to.
          Disagreement: it is not the same folder on all hosts.
        """
        root = files.at(root)
        file = root / "config.json"
        _check_apart(root, plan)
        claim = _entered(root) if turns.is_first() else None
        with contextlib.ExitStack() as broken_off:
            if claim is not None:
                broken_off.callback(claim.release)
                _check_places(root)
            as_before, longer = _compared(root, plan)
            shared = "It must be one folder that all hosts see: on a shared disk, or gs://…."
            finished = report.is_final(root / "report.html")
            seen = {"of these settings": as_before, "finished": finished}
            hosts.agree(f"the runs in {root}", seen, remedy=shared)
            writers: list[metrics.Writer] = []
            if turns.is_first():
                if not as_before:  # first, else a kill would leave new settings by an old report
                    _set_aside(root / "report.html")
                    if longer:  # the pictures after the last step were those of an earlier one
                        files.remove(root / "samples" / "after")
                files.write_text(file, configs.to_json(plan.flat))
                if not (as_before and finished):  # a tracker would open a run for nothing
                    for writer in _writers(root, plan):
                        broken_off.callback(writer.close)
                        writers.append(writer)
            hosts.agree(f"the parts of starting in {root}", "written", remedy="")
            hosts.agree(f"the files of {root}", {"config.json": file.is_file()}, remedy=shared)
            broken_off.pop_all()
        return cls(root, metrics.MultiWriter(writers), as_before, claim=claim)

    def close(self) -> None:
        """The run is over, or broken off: another program may work in the folder."""
        with contextlib.ExitStack() as stack:
            if self.claim is not None:
                stack.callback(self.claim.release)
            self.writer.close()
            if turns.is_first() and report.is_final(self.report):
                (self.root / BEFORE).unlink(missing_ok=True)

    @classmethod
    def of_run(cls, root: Path, plan: Plan) -> "Workdir":
        """A run's folder to read from and to add pictures or exports to; there may be no run in it.

        Raises:
          ConfigError: the run has other settings, among those that its checkpoints depend on.
        """
        root = files.at(root)
        file = root / "config.json"
        if file.is_file():
            saved = configs.from_json(untrusted.text(file), file=str(file))
            conflicts = configs.restore_conflicts(saved, plan.flat)
            if conflicts:
                raise configs.ConfigError(
                    f"{root} holds a run with other settings:\n  "
                    + "\n  ".join(conflicts)
                    + "\nWrite "
                    + shlex.quote(f"--config=configs/of_run.py:{root}")
                    + " to take all of its settings."
                )
        return cls(root, metrics.MultiWriter([]), as_before=False, of_others=True)

    @property
    def is_finished(self) -> bool:
        """The report, a run's last file, exists; with other prompts or formats a run resumes."""
        return self.as_before and report.is_final(self.report)

    @property
    def report(self) -> Path:
        """The page about the run, written last."""
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

    @property
    def writes(self) -> bool:
        """True where this process writes the records of the run: it is the first, in its run."""
        return turns.is_first() and not self.of_others

    def write(self, name: str, text: str) -> None:
        """Writes a record of the run whole or not at all.

        Only the first process does, and never in a folder that is opened by `of_run`.
        """
        if self.writes:
            files.write_text(self.root / name, text)

    def scalars(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return metrics.read(self.root / "metrics.jsonl")

    def words(self, chosen_by: Any) -> list[dict[str, str]] | None:
        """Returns the subjects' identifiers, if `keep_words` kept them for the same `chosen_by`."""
        file = self.root / "subjects.json"
        saved = _record(file, remedy="The subjects' words are chosen again.")
        if saved.get("chosen_by") != chosen_by:
            return None
        subjects = saved.get("subjects")
        whole = isinstance(subjects, list) and all(map(_is_words, subjects))
        return cast(list[dict[str, str]], subjects) if whole else None

    def keep_words(self, chosen_by: Any, words: list[dict[str, str]]) -> None:
        """Writes `subjects.json`: what the run calls its subjects; `chosen_by` determines it."""
        content = {"subjects": words, "chosen_by": chosen_by}
        self.write("subjects.json", json.dumps(content, indent=1) + "\n")

    def keep_sources(self, found: Mapping[str, str]) -> None:
        """Writes `sources.json`: the fingerprints of the files that the run is about."""
        text = json.dumps(dict(found), indent=1, ensure_ascii=False)
        self.write("sources.json", text + "\n")

    def sources(self) -> dict[str, Any]:
        """Returns the record of `keep_sources`; {} of an unfinished or an older run."""
        return _record(self.root / "sources.json", remedy="The photos are not compared.")

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of its block to `timings.json`, over all starts of this run.

        What ends the block is what is told: with it, a file that cannot be written is left out.
        """
        begin = time.monotonic()
        try:
            yield
        except BaseException:
            try:
                self._add_seconds(name, time.monotonic() - begin)
            except (OSError, ValueError) as error:
                logging.debug("%s", error)
            raise
        self._add_seconds(name, time.monotonic() - begin)

    def _add_seconds(self, name: str, more: float) -> None:
        if self.writes:
            seconds = self.timings()
            seconds[name] = round(seconds.get(name, 0.0) + more, 3)
            self.write("timings.json", json.dumps(seconds, indent=1) + "\n")

    def timings(self) -> dict[str, float]:
        """Seconds by part of the run."""
        content = _record(self.root / "timings.json", remedy="Seconds are counted anew.")
        sound = {
            name: value
            for name, value in content.items()
            if isinstance(value, int | float) and math.isfinite(value) and value >= 0
        }
        return {name: float(value) for name, value in sound.items()}


def _compared(root: Path, plan: Plan) -> tuple[bool, bool]:
    """Returns if the settings are those of the last start in `root`, and if more steps are asked.

    Raises:
      ConfigError: the folder holds a run with other settings; names every difference that matters.
    """
    file = root / "config.json"
    if not file.is_file():
        return False, False
    saved = configs.from_json(untrusted.text(file), file=str(file))
    conflicts = configs.resume_conflicts(saved, plan.flat)
    # A start that ended before anything was made (no such photos, say) does not bind.
    if conflicts and any((root / name).exists() for name in _MADE):
        raise configs.ConfigError(
            f"{root} holds a run with other settings:\n  "
            + "\n  ".join(conflicts)
            + "\nPut them back to resume that run, or write another --workdir."
        )
    return configs.flatten(saved) == plan.flat, bool(configs.more_steps(saved, plan.flat)[0])


def _writers(root: Path, plan: Plan) -> Iterator[metrics.Writer]:
    """The writers that the settings ask for, JSON lines first, each with the settings.

    Raises:
      TrackerError, ImportError: one of them is not installed, or does not start.
    """

    def told(writer: metrics.Writer) -> metrics.Writer:
        writer.write_hparams(plan.flat)
        return writer

    yield told(metrics.JsonlWriter(root / "metrics.jsonl"))
    if "tensorboard" in plan.log.to:
        yield told(metrics.TensorBoardWriter(root / "tensorboard"))
    for package in (each for each in trackers.NAMES if each in plan.log.to):
        file = root / "tracker.json"
        kept = _record(file, remedy="The trackers begin a new run.").get("id")
        identity = kept if isinstance(kept, str) and kept.isalnum() else secrets.token_hex(4)
        files.write_text(file, json.dumps({"id": identity}) + "\n")
        local = Path(tempfile.mkdtemp()) if files.is_remote(root) else root
        yield told(
            trackers.Tracker(
                package,
                project=plan.log.project,
                name=root.name,
                identity=identity,
                settings=plan.flat,
                folder=local,
            )
        )


def _record(file: Path, *, remedy: str) -> dict[str, Any]:
    """Reads a record that a run can do without; {} where it is absent or damaged."""
    try:
        return untrusted.json_object(file, remedy=remedy) if file.exists() else {}
    except untrusted.FileError as error:
        logging.warning("%s", error)
        return {}


def _is_words(each: Any) -> bool:
    keys = {"identifier", "class_noun"}
    return isinstance(each, dict) and each.keys() == keys and {*map(type, each.values())} == {str}


def _entered(root: Path) -> lock.Lock:
    """Makes a workdir that no other program works in.

    Raises:
      LockedError, OSError: see `Workdir.open`.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        return lock.Lock(root)
    except OSError as error:
        raise _unwritable(root, error) from error


def is_done(config: configs.ConfigDict, root: Path) -> bool:
    """Returns True where the run in `root` is finished, with these settings.

    Settings of a host (`HOST_KEYS`) are not read from a run's folder, and change no result.
    """
    try:
        before = configs.of_run(str(root))
    except configs.ConfigError:  # no run yet, or a damaged one, which its start tells
        return False
    told, now = (
        {key: value for key, value in configs.flatten(one).items() if key not in configs.HOST_KEYS}
        for one in (before, config)
    )
    return told == now and report.is_final(root / "report.html")


def check_writable(root: Path, *, told: str = "--workdir") -> None:
    """Checks that files can be written into a folder, or into one that can be made; leaves nothing.

    told: the flag of the folder, for the message.

    Raises:
      OSError: they cannot; names the flag.
    """
    if files.is_remote(root):
        return
    try:
        near = root.absolute()
        while not near.exists():
            near = near.parent
        with tempfile.TemporaryDirectory(dir=near, prefix=".writable-"):
            pass
    except OSError as error:
        raise _unwritable(root, error, told) from error


def _unwritable(root: Path, error: OSError, told: str = "--workdir") -> OSError:
    return OSError(
        f"{told}={root}: {error.strerror or error}. Write a folder that can be made and written to."
    )


def _check_places(root: Path) -> None:
    """Raises ConfigError where a file lies in a folder's place, or a folder in a file's."""
    wrong = [f"{root / name} is a folder" for name in _FILES if (root / name).is_dir()]
    wrong += [
        f"{place} is a file"
        for name in _MADE
        for place in (root / name, root / name / "base", root / name / "upscaler")
        if place.is_file()
    ]
    if wrong:
        raise configs.ConfigError(
            f"{'; '.join(wrong)}: a run writes there. Move it away, or write another --workdir."
        )


def _check_apart(root: Path, plan: Plan) -> None:
    """Raises ConfigError where a run would write among the photos or class images it reads."""
    read = [("subject.images", plan.subject.images), ("prior.images", plan.prior.images)]
    read += [("subject.others", images) for images, *_ in plan.subject.others]
    for key, place in read:
        if not place or files.is_remote(root) or files.is_remote(place):
            continue
        if files.at(place).resolve() == root.resolve():
            raise configs.ConfigError(
                f"--workdir={root} is the folder of {key}: a run's files would lie among the "
                "photos. Write another --workdir."
            )


def _set_aside(page: Path) -> None:
    """Keeps the report of earlier settings under another name until there is a new one."""
    if report.is_final(page):
        aside = page.with_name(BEFORE)
        with files.written(aside) as part:
            part.write_bytes(page.read_bytes())
        page.unlink()
        logging.info("The report of the settings before is %s until there is a new one.", aside)
