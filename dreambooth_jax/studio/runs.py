"""Runs as their folders tell of them: state, settings, pictures, losses; nothing is written."""

import dataclasses
import functools
import json
import math
import os
import re
import socket
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_jax import files, lock, metrics, status, untrusted

ACTIVE = (*status.AT_WORK, "running")  # at work, and at work by a program that tells no more
_GRID = re.compile(r"(base|upscaler)-(\d{4,})")
_DRAWN = re.compile(r"(?:.+_)?\d+_\d+\.png")
_TAIL = 64 * 2**10  # bytes of a log that are shown


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a run, with what it told last.

    name: one of `ACTIVE`, "finished", "stopped", "failed", "lost" (it neither ended nor lives), or
      "new" (nothing is made yet).
    """

    name: str
    stage: str = ""
    part: str = ""
    part_number: int = 0
    parts: int = 0
    step: int = 0
    steps: int = 0
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    updated: float = 0.0
    host: str = ""
    pid: int = 0
    message: str = ""
    loss: float | None = None

    @property
    def active(self) -> bool:
        """True while a process works."""
        return self.name in ACTIVE

    @property
    def here(self) -> bool:
        """True where that process is one of this computer."""
        return self.host == socket.gethostname()


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of a grid: its file's name, prompt and seed; size in pixels."""

    file: str
    prompt: str
    seed: int | None
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Grid:
    """The pictures of one moment: a folder of `samples/`; `changed` tells a new one from it."""

    label: str
    title: str
    pictures: tuple[Picture, ...]
    changed: int
    of_run: bool  # drawn by the run itself; False: by another mode, or to be judged
    place: str = "picture"  # part of the address: "picture" of samples/, "edits" of edits/


def record(file: Path) -> dict[str, Any]:
    """Returns the JSON object of a record; {} where it is absent, damaged or being replaced."""
    try:
        return untrusted.json_object(file)
    except (OSError, untrusted.FileError):  # absent, damaged or being replaced
        return {}


def settings(folder: Path) -> dict[str, Any]:
    """Returns the settings of a run by dotted key; {} before it wrote them."""
    flat: dict[str, Any] = {}
    for key, value in record(folder / "config.json").items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            flat[key] = value
    return flat


def subject(folder: Path) -> str:
    """Returns the subjects' own words, "zib bird"; the class noun before they are chosen."""
    listed = record(folder / "subjects.json").get("subjects")
    if isinstance(listed, list) and all(isinstance(each, dict) for each in listed) and listed:
        return ", ".join(f"{e.get('identifier', '')} {e.get('class_noun', '')}" for e in listed)
    return str(settings(folder).get("subject.class_noun", ""))


def state(folder: Path) -> State:
    """Returns the state of a run, derived from its files each time; see `State`."""
    try:
        told = status.read(folder)
    except (OSError, untrusted.FileError):  # damaged, of a later version, or being replaced
        told = None
    try:
        claim = lock.holder(folder)
    except (OSError, untrusted.FileError):  # damaged: the process is unknown
        claim = None
    known = State("new") if told is None else _told(told)
    if claim is not None:
        name = known.name if known.active else "running"
        now: dict[str, Any] = {"host": claim.host, "pid": claim.pid}
        last = _last_step(folder) if told is None else {}
        return dataclasses.replace(known, name=name, **now, **last)
    if told is not None:
        over = not known.active and not known.steps  # a count ends with its part
        return dataclasses.replace(known, **_last_step(folder)) if over else known
    last = _last_step(folder)
    if (folder / "report.html").is_file():
        return dataclasses.replace(known, name="finished", **last)
    made = any((folder / name).exists() for name in ("checkpoints", "prior", "samples"))
    return dataclasses.replace(known, name="stopped" if made else "new", **last)


def _told(found: status.Status) -> State:
    return State(
        name=found.state,
        stage=found.stage or "",
        part=found.part,
        part_number=found.part_number,
        parts=found.parts,
        step=found.step or 0,
        steps=found.steps or 0,
        seconds_per_step=found.seconds_per_step,
        seconds_left=found.seconds_left,
        updated=found.updated,
        host=found.host,
        pid=found.pid,
        message=found.message,
        loss=found.loss,
    )


def _last_step(folder: Path) -> dict[str, Any]:
    """Returns stage and step of the last line of metrics, for runs without a status."""
    last: dict[str, int] = {}
    for line in scalars(folder):
        last |= {name.partition("/")[0]: line["step"] for name in line if name.endswith("/loss")}
    stage = next((each for each in ("upscaler", "base") if each in last), "")
    if stage:
        flat = settings(folder)
        steps = flat.get("upscaler.num_steps") if stage == "upscaler" else None
        steps = steps or flat.get("train.num_steps")
        return {"stage": stage, "step": last[stage], "steps": steps or last[stage]}
    return {}


def scalars(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics by step; [] where there are none."""
    file = folder / "metrics.jsonl"
    try:
        if files.is_remote(file):
            return metrics.read(file) if file.is_file() else []
        about = file.stat()
        return list(_scalars(file, about.st_size, about.st_mtime_ns))
    except (OSError, untrusted.FileError):  # none yet, or of another user
        return []


@functools.lru_cache(maxsize=16)
def _scalars(file: Path, size: int, changed: int) -> tuple[dict[str, Any], ...]:
    """The same, kept while the file is as it is."""
    return tuple(metrics.read(file))


def losses(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns `{curve: [(step, value)]}` of all stages, NaN where a value is none."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in scalars(folder):
        for name, value in line.items():
            if re.fullmatch(r"\w+/(loss|held_out)/\w+", name):
                number = math.nan if value is None else float(value)
                found.setdefault(name, []).append((float(line["step"]), number))
    return found


def grids(folder: Path) -> list[Grid]:
    """Returns the grids of pictures in the order in which a run draws them, others after those."""
    found = [grid for each in _folders(folder / "samples") if (grid := _grid(each))]
    return sorted(found, key=_order)


def edits(folder: Path) -> list[Grid]:
    """Returns the edits of photos, the newest first."""
    made = [grid for each in _folders(folder / "edits") if (grid := _grid(each))]
    found = [dataclasses.replace(grid, of_run=False, place="edits") for grid in made]
    return sorted(found, key=lambda grid: grid.changed, reverse=True)


def _entries(folder: Path) -> list[Path]:
    """Returns the paths in a folder; none where it is absent, or another user's."""
    try:
        return list(folder.iterdir()) if folder.is_dir() else []
    except PermissionError:
        return []


def _folders(folder: Path) -> list[Path]:
    """Returns the folders in a folder; see `_entries`."""
    return [each for each in _entries(folder) if each.is_dir()]


def _order(grid: Grid) -> tuple[Any, ...]:
    match = _GRID.fullmatch(grid.label)
    if match:
        return (1, match[1] != "base", int(match[2]), "")
    return ({"before": 0, "after": 2}.get(grid.label, 3), False, grid.changed, grid.label)


def _grid(folder: Path) -> Grid | None:
    """A grid of pictures; None where there is none in the folder."""
    paths = sorted(each for each in _entries(folder) if _DRAWN.fullmatch(each.name))
    pictures, changed = [], 0
    for path in paths:
        stamp = 0 if files.is_remote(path) else path.stat().st_mtime_ns
        found = _picture(path, stamp)
        if found is not None:
            pictures.append(found)
            changed = max(changed, stamp // 10**6)
    if not pictures:
        return None
    match = _GRID.fullmatch(folder.name)
    titles = {"before": "before training", "after": "after training"}
    title = titles.get(folder.name, folder.name)
    if match:
        title = f"{match[1]}, after {int(match[2])} steps"
    of_run = match is not None or folder.name in titles
    return Grid(folder.name, title, tuple(pictures), changed, of_run)


@functools.lru_cache(maxsize=20000)
def _picture(path: Path, changed: int) -> Picture | None:
    """A picture by the text of its file; None while it is none."""
    try:
        with path.open("rb") as opened, Image.open(opened, formats=["PNG"]) as image:
            about = json.loads(image.info.get("dreambooth_jax", "{}"))
            width, height = image.size
        if not isinstance(about, dict):
            about = {}
    except Exception:  # damaged files make Pillow raise nearly anything
        return None
    seed = about.get("seed")
    prompt = about.get("prompt")
    return Picture(
        path.name,
        prompt if isinstance(prompt, str) else path.stem,
        seed if isinstance(seed, int) else None,
        width,
        height,
    )


def log(folder: Path, spoken: Path | None) -> str:
    """Returns the end of a run's log: `log.txt`, or what its process printed (`spoken`)."""
    for file in (folder / "log.txt", spoken):
        if file is not None and file.is_file():
            return tail(file)
    return ""


def tail(file: Path) -> str:
    """Returns the last lines of a text; of a line that was rewritten in place its last state."""
    try:
        with file.open("rb") as opened:
            opened.seek(0, os.SEEK_END)
            opened.seek(max(0, opened.tell() - _TAIL))
            text = opened.read().decode("utf-8", errors="replace")
    except (OSError, ValueError):  # it is being replaced
        return ""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    return "\n".join(line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))


def steps_on_disk(folder: Path) -> dict[str, list[int]]:
    """Returns the steps of each stage whose weights can be sampled from and exported."""
    found: dict[str, set[int]] = {}
    for kind in ("checkpoints", "kept_weights"):
        for stage in _folders(folder / kind):
            names = {each.name for each in _entries(stage)}
            steps = {int(name) for name in names if re.fullmatch(r"\d{1,9}", name)}
            found.setdefault(stage.name, set()).update(steps)
    return {stage: sorted(steps) for stage, steps in sorted(found.items()) if steps}
