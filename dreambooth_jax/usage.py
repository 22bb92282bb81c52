"""The help text of the command: modes, configurations and options, for users."""

import textwrap
from collections.abc import Mapping

from dreambooth_jax.config import library
from dreambooth_jax.experiment.modes.table import MODES

_WIDTH = 98
OTHERS = {  # commands of `dreambooth-jax` that are no modes
    "settings": "print every setting; settings WORD: those that contain the word",
    "studio": "open a page to watch and start runs: studio RUNS",
}


def text(options: Mapping[str, str], *, installed: bool) -> str:
    """Returns the help text.

    options: the command line's flags by name, with a sentence each.
    installed: the program was started as `dreambooth-jax`, not by `python -m dreambooth_jax.main`.
    """
    commands = {name: mode.help for name, mode in MODES.items()}
    parts = [
        "DreamBooth: from 3-5 photos of a subject to a text-to-image model that knows it by name.",
        _examples(installed=installed),
        _heading("Commands" if installed else "Modes, --mode=NAME"),
        _table(commands | (OTHERS if installed else {})),
        _heading("Configurations, --config=NAME, NAME:VARIANT or FILE.py"),
        _table(library.summaries()),
        _heading("Options"),
        _table({f"--{name}": line for name, line in options.items() if name != "config"}),
        _heading("Settings"),
        _paragraph(
            "--config.KEY=VALUE changes any setting of the configuration, for example "
            "--config.train.num_steps=400. `dreambooth-jax settings` prints all keys with their "
            "defaults and meanings, `dreambooth-jax settings memory` those about memory; "
            "docs/settings.md is the same as a page."
        ),
    ]
    return "\n".join(parts) + "\n"


def _examples(*, installed: bool) -> str:
    run, sample = (
        ("dreambooth-jax train", "dreambooth-jax sample")
        if installed
        else ("python -m dreambooth_jax.main", "python -m dreambooth_jax.main --mode=sample")
    )
    return textwrap.dedent(f"""
        A first run, with nothing to download:
          {run} --config=imagen_like
        Your own photos:
          {run} --config=sdxl --config.subject.images=photos/duck \\
              --config.subject.class_noun=toy --workdir=runs/duck
        The same command resumes a run that was stopped. Draw with what it learned:
          {sample} --config=of_run:runs/duck \\
              --config.sample.prompts="('a {{subject}} on the moon',)"
    """).rstrip()


def _heading(title: str) -> str:
    return f"\n{title}"


def _paragraph(line: str) -> str:
    indent = "  "
    return textwrap.fill(line, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _table(rows: Mapping[str, str]) -> str:
    """Names and their lines, in two columns."""
    left = max(map(len, rows), default=0) + 4
    return "\n".join(
        textwrap.fill(
            line,
            _WIDTH,
            initial_indent=f"  {name}".ljust(left),
            subsequent_indent=" " * left,
            break_on_hyphens=False,
        )
        for name, line in rows.items()
    )
