"""The table of modes: the flag's text, the dispatch and the README's table come from it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from dreambooth_jax.experiment import run
from dreambooth_jax.experiment.modes import (
    benchmark,
    edit,
    evaluate,
    fleet,
    identify,
    precompile,
    push,
    sample,
)


@dataclasses.dataclass(frozen=True)
class Mode:
    """One thing that the command line can do.

    function: takes the settings and the working directory, returns the path of what it left there.
    leaves: name of that result, for the last log line.
    help: one line for `--help` and the README.
    writes: it leaves something in the working directory.
    """

    function: Callable[[ConfigDict, Path], Path]
    leaves: str
    help: str
    writes: bool = True


MODES = {
    "train": Mode(
        run.command, "report", "the whole run: class images, fine-tuning, samples, report"
    ),
    "sample": Mode(sample.sample, "pictures", "draw sample.prompts with a run's checkpoints"),
    "edit": Mode(edit.edit, "edits", "draw the subject into photos: edit.images, their masks"),
    "export": Mode(sample.export, "fine-tuned model", "export a run's checkpoints"),
    "push": Mode(
        push.push, "export that was sent", "send a run's export to a model hub", writes=False
    ),
    "identify": Mode(identify.identify, "identifiers", "list rare tokens to use as identifier"),
    "evaluate": Mode(evaluate.evaluate, "scores", "score a run's pictures, or those of a folder"),
    "precompile": Mode(
        precompile.forecast, "forecast", "compile for devices that are not here: memory and time"
    ),
    "fleet": Mode(fleet.run, "subjects", "learn every subject of a table in one program"),
    "benchmark": Mode(
        benchmark.run, "scores", "train and score every subject of a benchmark, one after the other"
    ),
}


def help_text() -> str:
    """Returns one line of help for each mode."""
    return "; ".join(f"{name}: {mode.help}" for name, mode in MODES.items()) + "."
