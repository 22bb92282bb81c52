"""Memory and time on devices that are not here: `--mode=precompile` of the run that is planned."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax import untrusted
from dreambooth_jax.studio.answers import Studio
from dreambooth_jax.studio.pages.new import TOPOLOGIES
from dreambooth_jax.studio.places import RefusedError

_GB = 2**30


def _folder(studio: Studio, name: str, topology: str) -> Path:
    return studio.places.state / "forecasts" / name / re.sub(r"\W", "_", topology)


def begin(studio: Studio, name: str, arguments: Sequence[str], topology: str) -> None:
    """Compiles a run's programs for devices of `TOPOLOGIES`, in a process of its own.

    Raises:
      RefusedError: none was chosen, or a forecast for this run is at work.
    """
    if not topology or topology not in TOPOLOGIES:
        raise RefusedError("Choose the device that memory and time are forecast for.")
    rest = [each for each in arguments if not each.startswith("--workdir=")]
    rest += [f"--workdir={_folder(studio, name, topology)}", "--mode=precompile"]
    rest.append(f"--config.precompile.topology={topology}")
    studio.jobs.add(f"forecast-{name}", "precompile", rest, queued=False)


def told(studio: Studio, name: str) -> list[str]:
    """Returns a sentence for each program that was forecast for a run of this name."""
    lines = []
    for topology, words in TOPOLOGIES.items():
        file = _folder(studio, name, topology) / "precompile.json"
        if topology and name and file.is_file():
            lines += [f"{words}: {line}" for line in _programs(file)]
    for job in studio.jobs.of(f"forecast-{name}", "precompile")[:1]:
        if job.outcome == "failed" and not lines:
            lines.append("The forecast failed; its output is on the page Queue.")
        if job.state == "running":
            lines.append("A forecast is being made. Check again in some minutes.")
    return lines


def _programs(file: Path) -> list[str]:
    try:
        found = json.loads(untrusted.text(file))
        return [_sentence(each) for each in found]
    except (OSError, ValueError, LookupError, TypeError):
        return ["its table cannot be read. Make it again."]


def _sentence(each: dict[str, Any]) -> str:
    text = f"{each['program']} takes {each['memory'] / _GB:.1f} GiB"
    if each["limit"]:
        text += f" of {each['limit'] / _GB:.0f}"
    text += " on each device" + ("" if each["fits"] else ": too much")
    if each["least_seconds"]:
        text += f"; at least {each['least_seconds']:.3g} s"
    return text + "."
