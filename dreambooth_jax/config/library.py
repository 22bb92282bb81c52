"""The configurations that come with the package, by name: `--config=sdxl` works in any folder."""

import ast
import re
from pathlib import Path

import dreambooth_jax

_PACKAGE = Path(dreambooth_jax.__file__).parent
# An installed package holds them itself; a working tree has them beside it.
_PLACES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def files() -> dict[str, Path]:
    """Returns the file of each configuration by name, sorted; {} where none are installed."""
    for place in _PLACES:
        if found := sorted(place.glob("*.py")):
            return {file.stem: file for file in found if not file.stem.startswith("_")}
    return {}


def summaries() -> dict[str, str]:
    """Returns the first sentence of each configuration's docstring by name."""
    return {
        name: _first_sentence(file.read_text(encoding="utf-8")) for name, file in files().items()
    }


def located(value: str) -> str:
    """Returns the value of `--config` with a file's path in the place of a name.

    `sdxl`, `sdxl:VARIANT` and `configs/sdxl.py` stand for the file that comes with the package,
    where there is no file of that name; everything else is returned as it is.
    """
    path, colon, variant = value.partition(":")
    name = re.fullmatch(r"(?:configs/)?([a-z]\w*?)(?:\.py)?", path)
    if Path(path).is_file() or not name or name[1] not in files():
        return value
    return f"{files()[name[1]]}{colon}{variant}"


def _first_sentence(source: str) -> str:
    """The docstring of a module up to its first full stop, as one line."""
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    return re.split(r"(?<=\w)\.(?= |$)", text)[0]
