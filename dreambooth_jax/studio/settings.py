"""The settings of runs, asked of a child process: they need jax, which this one never imports.

python -m dreambooth_jax.studio.settings describe
python -m dreambooth_jax.studio.settings check --config=configs/sdxl.py --config.seed=1
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from dreambooth_jax import files
from dreambooth_jax.studio.runs import record

_PATIENCE = 300  # seconds for an answer of a busy computer
_NOT_PRESETS = ("of_run", "benchmark")  # they want a folder of their own


class Library:
    """Knows the configurations, settings and modes; asked for once, in the background.

    `configs`: by name {"file", "summary", "values": settings by dotted key, "size": pixels or
    None}.
    `settings`: rows {"key", "default", "meaning", "values"}. `modes`: by name, a line of help.
    `of_run`: the path of the configuration that reads a run's own settings.
    """

    def __init__(self, cache: Path) -> None:
        """cache: a file that keeps the answer while the program's files are the same."""
        self._cache = cache
        self._found: dict[str, Any] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Asks in a thread, so that the first page does not wait."""

        def ask() -> None:
            with contextlib.suppress(RuntimeError, OSError):  # told where a page needs it
                self.known()

        threading.Thread(target=ask, name="settings", daemon=True).start()

    def known(self) -> dict[str, Any]:
        """Returns the answer of `describe`; waits for it where it is not there yet.

        Raises:
          RuntimeError: the child failed; with what it printed.
        """
        with self._lock:
            if not self._found:
                self._found = self._kept() or self._new()
            return self._found

    def modes(self) -> list[str]:
        """Returns the names of the modes; [] while they are not known, without waiting."""
        return list(self._found.get("modes", ()))

    def _kept(self) -> dict[str, Any]:
        found = record(self._cache)
        answer = found.get("answer")
        return answer if found.get("of") == _fingerprint() and isinstance(answer, dict) else {}

    def _new(self) -> dict[str, Any]:
        answer = _asked("describe")
        with contextlib.suppress(OSError):  # a full disk: it is asked for again
            files.write_text(self._cache, json.dumps({"of": _fingerprint(), "answer": answer}))
        return answer

    def check(self, arguments: list[str]) -> dict[str, Any]:
        """Returns {"problem": text, "steps": by stage, "size": pixels, "values": settings by key}.

        arguments: a command line. With a problem it is all that there is.

        Raises:
          RuntimeError: the child failed; with what it printed.
        """
        return _asked("check", *arguments)


def _fingerprint() -> str:
    """A number for the files that the answer comes from, and for the program that reads them."""
    package = Path(__file__).parent.parent
    places = [package / "config", package / "configs", package.parent / "configs"]
    sources = [path for place in places for path in sorted(place.glob("*.py"))]
    sources.append(package / "experiment" / "modes" / "table.py")
    stamps = [[str(path), path.stat().st_mtime_ns] for path in sources]
    return hashlib.sha256(json.dumps([sys.version, stamps]).encode()).hexdigest()


def _asked(*words: str) -> dict[str, Any]:
    """The JSON object that a child prints last; it may use no accelerator and no network."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dreambooth_jax.studio.settings", *words],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the settings were not read in {_PATIENCE} seconds") from error
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not last.startswith("{"):
        text = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"the settings cannot be read: {' '.join(text[-3:])}")
    found: dict[str, Any] = json.loads(last)
    return found


def describe() -> dict[str, Any]:
    """Returns what `Library.known` documents; imports the settings, so for the child alone."""
    from dreambooth_jax import config as configs
    from dreambooth_jax.config import library, reference
    from dreambooth_jax.experiment.modes.table import MODES

    told: dict[str, Any] = {}
    found, summaries = library.files(), library.summaries()
    for name, file in found.items():
        if name in _NOT_PRESETS:
            continue
        config = _made(file)
        values = {key: _plain(value) for key, value in configs.flatten(config).items()}
        told[name] = {"file": str(file), "summary": summaries[name], "values": values}
        told[name]["size"] = _size(config)
    rows = [
        {
            "key": each.key,
            "default": _plain(each.default),
            "meaning": " ".join(filter(None, (each.meaning, each.details))),
            "values": each.values,
        }
        for each in reference.settings()
    ]
    modes = {name: mode.help for name, mode in MODES.items()}
    return {"configs": told, "settings": rows, "modes": modes, "of_run": str(found["of_run"])}


def check(arguments: list[str]) -> dict[str, Any]:
    """Returns what `Library.check` documents: nothing is loaded but the settings."""
    from absl import flags
    from ml_collections import config_flags

    from dreambooth_jax import config as configs

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
    for name in ("workdir", "mode"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    try:
        configs.parse_flags(["check", *arguments], values)
        config = values["config"].value
        plan = configs.resolve(config)
    except SystemExit as error:  # how `parse_flags` tells
        return {"problem": str(error.code)}
    except (ValueError, OSError) as error:
        return {"problem": str(error)}
    steps = {own.kind: own.train.num_steps for own in plan.to_train}
    told = {key: _plain(value) for key, value in configs.flatten(config).items()}
    return {"problem": "", "steps": steps, "size": _size(config), "values": told}


def _made(file: Path) -> Any:
    import runpy

    return runpy.run_path(str(file))["get_config"]()


def _size(config: Any) -> Any:
    """Height and width in pixels of the largest stage, or `resolution`.

    Which is None where neither it nor the model on this computer tells.
    """
    from dreambooth_jax import config as configs
    from dreambooth_jax.experiment.parts import loading

    try:
        stages = loading.open_stages(configs.resolve(config))
        return max(stage.size for stage in stages.values())
    except Exception:  # not downloaded yet, or no such folder: the run itself will tell
        return config.resolution


def _plain(value: Any) -> Any:
    """A setting as JSON has it; what it has not, as text."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def main(words: list[str]) -> None:
    """Prints the answer to one question as a line of JSON."""
    if words[:1] not in (["describe"], ["check"]):
        sys.exit("expected describe, or check and the words of a command line")
    answer = describe() if words[0] == "describe" else check(words[1:])
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
