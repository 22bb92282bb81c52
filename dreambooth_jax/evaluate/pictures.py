"""The pictures to be judged: in memory or in a folder, each with the prompt it was drawn for."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_jax import files, untrusted
from dreambooth_jax.data import images
from dreambooth_jax.data.colour import ImageError
from dreambooth_jax.data.prompts import mentions

_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip
_SHEET = "grid.png"  # of our own folders of samples: all pictures in one


@dataclasses.dataclass(frozen=True)
class Pictures:
    """N uint8 pictures `[H,W,3]` of any sizes, and the prompt of each, "" where none is known."""

    images: Sequence[np.ndarray]
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.prompts):
            raise ValueError(f"{len(self.images)} pictures, but {len(self.prompts)} prompts.")

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, word: str | None, *, present: bool = True) -> list[int]:
        """The numbers of the pictures whose prompt has the word, or has it not.

        Without a word every picture counts as one that has it.
        """
        if word is None:
            return list(range(len(self))) if present else []
        return [i for i, prompt in enumerate(self.prompts) if mentions(prompt, word) == present]


def read(folder: str | Path) -> Pictures:
    """Every picture below a folder, in the order of their names.

    The prompt of a picture is what `prompts.json` in the folder says, `{"sub/name.png": prompt}`;
    or what the picture says of itself, as those of `--mode=sample` do; or the name of the
    sub-folder it lies in, with spaces for "_".

    Raises:
      FileNotFoundError: no such folder, or no picture in it.
      ValueError: a file cannot be read, or `prompts.json` names files that are not there.
    """
    root = files.local(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; expected one with pictures.")
    paths = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    told = _told(root, paths)
    found: list[tuple[np.ndarray, str]] = []
    for path in paths:
        name = path.relative_to(root)
        prompt = told.get(name.as_posix()) or _own(path)
        if prompt is None and path.name == _SHEET:
            continue
        if prompt is None:
            prompt = name.parts[-2].replace("_", " ") if len(name.parts) > 1 else ""
        try:
            found.append((images.read(path), prompt))
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from error
    if not found:
        raise FileNotFoundError(f"no picture in {root}; expected {', '.join(_SUFFIXES)} files.")
    pixels, prompts = zip(*found, strict=True)
    return Pictures(pixels, prompts)


def _told(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Returns the prompts of `prompts.json`, by file."""
    file = root / "prompts.json"
    if not file.is_file():
        return {}
    told = untrusted.json_object(file)
    if not all(isinstance(text, str) for text in told.values()):
        raise ValueError(f'{file}: expected {{"picture.png": "its prompt", …}}.')
    names = {path.relative_to(root).as_posix() for path in files}
    if absent := sorted(told.keys() - names):
        raise ValueError(f"{file} names {', '.join(absent[:5])}, which {root} does not have.")
    return told


def _own(path: Path) -> str | None:
    """The prompt in a PNG file's own text, as `--mode=sample` writes it."""
    if path.suffix.lower() != ".png":
        return None
    try:
        with Image.open(path) as image:
            told = json.loads(image.info["dreambooth_jax"])["prompt"]
    except Exception:  # without that text; damaged files make Pillow raise nearly anything
        return None
    return told if isinstance(told, str) else None
