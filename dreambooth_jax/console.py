"""The console command `dreambooth-jax`: a mode as its first word, or `settings`, or `studio`.

    dreambooth-jax train --config=imagen_like
    dreambooth-jax settings learning_rate

`dreambooth-jax MODE …` is `python -m dreambooth_jax.main --mode=MODE …`, and
`python -m dreambooth_jax.console …` is `dreambooth-jax …` where the package is not installed.
"""

import argparse
import importlib.util
import runpy
import sys
from collections.abc import Sequence

from dreambooth_jax import __version__, log_file

_HELP = ("--help", "-h", "-help", "help")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these words, by default those of the command line.

    Ends the program with status 1 and a message where the first word is no command.
    """
    log_file.escape_others()
    words = [*(sys.argv[1:] if argv is None else argv)]
    first = words[0] if words else ""
    if first == "--version":
        print(f"dreambooth_jax {__version__}")
    elif first == "settings":
        settings(words[1:])
    elif first == "studio":
        studio(words[1:])
    else:
        _mode(first, words[1:])


def _mode(name: str, words: Sequence[str]) -> None:
    """Runs a mode of the main program, or prints the help text."""
    from absl import app

    from dreambooth_jax import main as program
    from dreambooth_jax import usage
    from dreambooth_jax.config import suggest
    from dreambooth_jax.experiment.modes.table import MODES

    if not name or name in _HELP or _HELP[0] in words:
        print(usage.text(program.options(), installed=True), end="")
        return
    if name not in MODES:
        known = [*MODES, *usage.OTHERS]
        sys.exit(
            f"{name}: no such command. {suggest(name, known)} There are {', '.join(known)}; "
            "`dreambooth-jax --help` describes them.".replace("  ", " ")
        )
    sys.argv = ["dreambooth-jax", f"--mode={name}", *words]  # ml_collections reads it as well
    app.run(program.main, flags_parser=program.parse_flags)


def settings(words: Sequence[str]) -> None:
    """Prints the settings that contain every word, or all of them.

    Ends the program with status 1 where no setting does.
    """
    parser = argparse.ArgumentParser(
        prog="dreambooth-jax settings",
        description="Print settings: key, default, meaning, choices. On the command line of a run "
        "they are written --config.KEY=VALUE.",
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="print those that contain it")
    parser.add_argument("--markdown", action="store_true", help="print docs/settings.md")
    given = parser.parse_args([*words])

    from dreambooth_jax.config import reference, suggest

    if given.markdown:
        print(reference.markdown(), end="")
        return
    known = reference.settings()
    found = [each for each in known if all(map(each.has, given.words))]
    if not found:
        near = suggest(given.words[0], [each.key for each in known])
        sys.exit(f"no setting contains {' and '.join(map(repr, given.words))}. {near}".rstrip())
    print(reference.text(found))


def studio(words: Sequence[str]) -> None:
    """Starts the page over runs, `python -m dreambooth_jax.studio`, with these words.

    Ends the program with status 1 where it is not installed.
    """
    if importlib.util.find_spec("dreambooth_jax.studio") is None:
        sys.exit("This version of dreambooth_jax has no studio. Read report.html of a run instead.")
    sys.argv = ["dreambooth-jax studio", *words]
    runpy.run_module("dreambooth_jax.studio", run_name="__main__")


if __name__ == "__main__":
    main()
