"""From the form of a new run to its command, the check of it, an estimate, and the start."""

import json
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.responses import Response

from dreambooth_jax import files
from dreambooth_jax.data import images
from dreambooth_jax.studio import commands, forecasts, photos, runs
from dreambooth_jax.studio.answers import Studio, back
from dreambooth_jax.studio.pages import layout, new
from dreambooth_jax.studio.places import STARTED, Places, RefusedError

_SIZE = 512  # pixels to look at photos with where the model's own size is not known
_ALIKE = (  # settings that the time of a step depends on
    "base_model", "resolution", "adapt.name", "train.batch_size", "train.accumulate",
    "upscaler.batch_size", "upscaler.accumulate", "train.remat", "dtype",
)  # fmt: skip


def free_name(places: Places, subject: str) -> str:
    """Returns a name for a run of a subject that no folder has."""
    for number in range(1, 1000):
        name = subject if number == 1 else f"{subject}-{number}"
        if not (places.root / name).exists() and name != places.photos.name:
            return name
    return ""


def page(
    studio: Studio,
    subject: str,
    values: Mapping[str, str],
    checked: Mapping[str, Any] | None = None,
) -> Response:
    """Returns the page of a new run with these values in its fields."""
    folder, library = studio.places.subject(subject), studio.library.known()
    config = library["configs"].get(values["config"])
    size = images.sides((checked or {}).get("size") or (config or {}).get("size") or _SIZE)
    shown, general = photos.looked_at(
        folder, size=size, captions=values["captions"], masks=values["masks"]
    )
    told = forecasts.told(studio, values["name"].strip())
    return new.form(subject, shown, general, values, library, size, checked=checked, forecasts=told)


def arguments(studio: Studio, subject: str, values: Mapping[str, str]) -> list[str]:
    """Returns the arguments of the command that the form describes.

    Raises:
      RefusedError: a field holds what cannot be; says which and what to write.
    """
    library, places = studio.library.known(), studio.places
    if values["config"] not in library["configs"]:
        raise RefusedError(f"There is no configuration {values['config']!r}.")
    for name, allowed in (("captions", ("prompt", "files")), ("masks", ("none", "files"))):
        if values[name] not in allowed:
            raise RefusedError(f"{name}: {values[name]!r}; expected {' or '.join(allowed)}.")
    if not values["class_noun"].strip():
        raise RefusedError("Write what the subject is: one noun, such as dog.")
    folder = places.new_run(values["name"].strip())
    changed: dict[str, Any] = {
        "subject.images": places.subject(subject),
        "subject.class_noun": values["class_noun"].strip(),
        "subject.identifier": values["identifier"].strip() or "auto",
        "subject.captions": values["captions"],
        "subject.masks": values["masks"],
    }
    if values["adapt"]:
        changed["adapt.name"] = values["adapt"]
    if values["steps"].strip():
        changed["train.num_steps"] = values["steps"].strip()
    if prompts := commands.lines(values["prompts"]):
        changed["sample.prompts"] = prompts
    changed |= commands.pairs(values["more"])
    known = [each["key"] for each in library["settings"]]
    config = library["configs"][values["config"]]["file"]
    return commands.train(config, folder, changed, known=known)


def sent(studio: Studio, subject: str, values: Mapping[str, str], action: str) -> Response:
    """Checks the form; starts or queues its command where that is asked and nothing is wrong."""
    try:
        line = arguments(studio, subject, values)
        found = studio.library.check(line)
    except (RefusedError, RuntimeError) as error:
        return page(studio, subject, values, {"problem": str(error)})
    name = values["name"].strip()
    if not found["problem"]:
        found["problem"] = _of_photos(studio, subject, values, found.get("size"))
    if not found["problem"] and action == "forecast":
        try:
            forecasts.begin(studio, name, line, values["topology"])
        except RefusedError as error:
            found["problem"] = str(error)
    if not found["problem"] and action in ("start", "queue"):
        folder = studio.places.new_run(name)
        note = json.dumps({"command": line, "time": time.time()}, indent=1)
        files.write_text(folder / STARTED, note + "\n")
        studio.jobs.add(name, "train", line, queued=action == "queue")
        return back(layout.url("run", name) if action == "start" else "/queue")
    estimate = _estimate(studio.places, found.get("values") or {}, found.get("steps") or {})
    return page(studio, subject, values, {**found, "command": line, "estimate": estimate})


def again(studio: Studio, name: str, folder: Path) -> list[str]:
    """Returns the arguments that start a run again, in the folder that it has now.

    They are those of its last start; the run's own settings, where that was a shell's or the folder
    was moved or copied since; its noted command, where it wrote no settings yet.

    Raises:
      RefusedError: it wrote and noted nothing.
    """
    ended = next((job for job in studio.jobs.of(name, "train") if job.state == "ended"), None)
    if ended is not None and _is_at(commands.workdir(ended.arguments), folder):
        return list(ended.arguments)
    library = studio.library.known()
    keys = [each["key"] for each in library["settings"]]
    noted = list(ended.arguments) if ended is not None else _noted(folder)
    if (folder / "config.json").is_file():
        old, now = Path(commands.workdir(noted)).parent, folder.parent
        changed = {
            key: there
            for key, value in runs.settings(folder).items()
            # Photos that are still there are those that the run was begun with.
            if isinstance(value, str)
            and (there := commands.beside(value, old, now)) != value
            and not os.path.exists(value)  # Path's raises where the way there is another user's
        }
        return commands.of_run("train", library["of_run"], folder, changed, known=keys)
    if not noted:
        raise RefusedError(f"{name} wrote no settings. Start it again where it was started.")
    configs = {each: about["file"] for each, about in library["configs"].items()}
    return commands.train_again(noted, folder, configs=configs, known=keys)


def _is_at(told: str, folder: Path) -> bool:
    """Returns True where a command's --workdir is this folder, by whatever way."""
    if not told or files.is_remote(told) or files.is_remote(folder):
        return told == str(folder)
    return Path(told).resolve() == folder.resolve()


def _noted(folder: Path) -> list[str]:
    """The command that the page noted when it started a run; [] without one."""
    found = runs.record(folder / STARTED).get("command")
    whole = isinstance(found, list) and all(isinstance(word, str) for word in found)
    return list(found) if isinstance(found, list) and whole else []


def _of_photos(studio: Studio, subject: str, values: Mapping[str, str], size: Any) -> str:
    """Findings of the audit that would end the run; "" without one."""
    folder = studio.places.subject(subject)
    shown, _ = photos.looked_at(
        folder, size=size or _SIZE, captions=values["captions"], masks=values["masks"]
    )
    if not any(photo.usable for photo in shown):
        return "No photo can be used. Add some above; 3 to 5 are a good number."
    if values["captions"] == "files" or values["masks"] == "files":
        wrong = [f"{p.name}: {'; '.join(p.findings)}" for p in shown if not p.usable]
        return "\n".join(wrong)
    return ""


def _estimate(places: Places, wanted: Mapping[str, Any], steps: Mapping[str, int]) -> list[str]:
    """Sentences on time and memory, from runs of the folder that were alike.

    wanted: all settings by key, as the check found them; steps by stage, {} where it failed.
    """
    seconds: dict[str, list[float]] = {}
    for name in places.runs():
        folder = places.run(name)
        flat = runs.settings(folder)
        if not flat or any(flat.get(key) != wanted.get(key) for key in _ALIKE):
            continue
        for stage, each in _seconds_per_step(folder).items():
            seconds.setdefault(stage, []).append(each)
    known = {s: statistics.median(seconds[s]) * n for s, n in steps.items() if s in seconds}
    if not known:
        return ["Time: not known; no run of this model and batch was made in this folder."]
    parts = ", ".join(f"{stage} {layout.duration(each)}" for stage, each in known.items())
    return [f"Time of the training, from runs like it in this folder: {parts}."]


def _seconds_per_step(folder: Path) -> dict[str, float]:
    """The median seconds of a step by stage, without the first, which compiles."""
    found: dict[str, list[float]] = {}
    for line in runs.scalars(folder):
        for name, value in line.items():
            stage, _, rest = name.partition("/")
            if rest == "seconds_per_step" and isinstance(value, int | float):
                found.setdefault(stage, []).append(float(value))
    return {stage: statistics.median(each[1:] or each) for stage, each in found.items()}
