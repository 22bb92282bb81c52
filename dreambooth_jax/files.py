"""Files of a run, on this computer or in a bucket of Google Cloud Storage (`gs://…`).

A path of a bucket is an `etils.epath.Path`, which has pathlib's methods, so most code never knows.
What a bucket has not is here: moving a file into its place, adding to a file, removing a tree.
"""

import contextlib
import fnmatch
import functools
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from etils import epath

from dreambooth_jax import untrusted

_BUCKET = "gs://"


def at(place: str | os.PathLike[str]) -> Path:
    """The path of a file or folder; `~` is the user's.

    Raises:
      ValueError: an address of another kind than gs://, or gcsfs, which speaks with it, is absent;
        or see `local`.
    """
    text = os.fspath(place)
    if "://" not in text:
        return local(text)
    if not text.startswith(_BUCKET):
        raise ValueError(
            f"{text}: expected a folder, or an address gs://BUCKET/FOLDER. Mount other storage and "
            "give its folder."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(
            f"{text}: gcsfs, which reads and writes there, is not installed. Write "
            "pip install 'dreambooth_jax[gcs]'."
        )
    import fsspec  # type: ignore[import-untyped]  # it has none

    # Other hosts write there as well: a listing is asked for anew each time.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return cast(Path, epath.Path(text))


def local(place: str | os.PathLike[str]) -> Path:
    """The path of a file or folder of this computer; `~` is the user's.

    Raises:
      ValueError: `~NAME` of a user that this computer does not know, or `~` where none is known.
    """
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{os.fspath(place)}: {error} Write the folder in full.") from error


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns True for a path in a bucket."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def written(file: Path) -> Iterator[Path]:
    """Gives a path of this computer to write to; in the end that is `file`, with its folders.

    So a file appears whole or not at all: when the block fails, what was there before stays.
    """
    if is_remote(file):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / file.name
            with named(part):
                yield part
            _send(part, file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".tmp")
    try:
        with named(file, part=part):
            yield part
            part.replace(file)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def named(file: Path, *, part: Path | None = None) -> Iterator[None]:
    """Names `file` in an error of the system that is raised within it while it is written.

    A full disk is told by `write` and `close`, which know no name; or it is told of `part`, the
    file that is then moved. Errors over other files stay as they are.

    Raises:
      OSError: see `untrusted.unwritten`.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part), str(file)):
            raise untrusted.unwritten(file, error) from error
        if part is not None and error.errno is None and str(part) in str(error):
            raise OSError(str(error).replace(str(part), str(file))) from error
        raise


def write_text(file: Path, text: str) -> None:
    """Writes a file whole or not at all, and its folders where there are none.

    Half a character, as names of files may have, is written as its escape, which JSON reads as the
    same again.
    """
    with written(file) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def filled(folder: Path, *, last: str = "") -> Iterator[Path]:
    """Gives a folder of this computer to fill: `folder` itself, or what then replaces a remote one.

    last: name of the files that tell a reader that the others are there; they are sent last.
    """
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        place = Path(made) / folder.name
        yield place
        remove(folder)
        send(place, folder, last=last)


def send(source: Path, folder: Path, *, last: str = "") -> None:
    """Copies all files below `source`, a folder of this computer, into a remote one; see `filled`.

    What is there already and has another name stays.
    """
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == last):
        _send(path, folder / path.relative_to(source).as_posix())


def here(folder: Path) -> Path:
    """`folder`, or a copy of a remote one without its sub-folders, there until the program ends.

    Raises:
      FileNotFoundError: there is no file in it.
    """
    return Path(_copied(str(folder)).name) / folder.name if is_remote(folder) else folder


@contextlib.contextmanager
def copied(found: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Gives the same files by name, those in a bucket as copies that are there until the end."""
    with tempfile.TemporaryDirectory() as made:
        here = dict(found)
        for number, (name, path) in enumerate(found.items()):
            if is_remote(path):
                here[name] = Path(made) / str(number)
                _send(path, here[name])
        yield here


def mirror(source: Path, place: Path, *, patterns: Sequence[str]) -> None:
    """Makes `place` hold the files below `source`, a remote folder, whose paths match a pattern.

    A star stands for any part of a path. What is there with the same size and time stays; what
    `source` has no longer goes. Of several processes at once, one copies and the others wait.

    Raises:
      FileNotFoundError: `source` has no such file.
      FileError: an object's name leads out of `place`; nothing is copied then.
    """
    import filelock
    import fsspec

    start = os.fspath(source).removeprefix(_BUCKET).rstrip("/")
    system = fsspec.filesystem("gcs")
    found = {
        name.removeprefix(f"{start}/"): about
        for name, about in system.find(start, detail=True).items()
    }
    # A name that ends in a slash is a console's mark of an empty folder.
    wanted = [
        name
        for name in found
        if not name.endswith("/") and any(fnmatch.fnmatch(name, each) for each in patterns)
    ]
    targets = {name: untrusted.below(place, name, of=os.fspath(source)) for name in wanted}
    if not wanted:
        raise FileNotFoundError(f"no file in {source} that is {' or '.join(patterns)}.")
    place.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place.with_name(f"{place.name}.lock")):
        for path in place.rglob("*"):
            if path.is_file() and path.relative_to(place).as_posix() not in found:
                path.unlink()
        for name in wanted:
            size, time = found[name]["size"], found[name]["mtime"].timestamp()
            file = targets[name]
            there = file.stat() if file.is_file() else None
            if there is None or (there.st_size, there.st_mtime) != (size, time):
                with written(file) as part:
                    system.get_file(f"{start}/{name}", str(part))
                    os.utime(part, (time, time))


@functools.cache
def _copied(address: str) -> "tempfile.TemporaryDirectory[str]":
    folder = at(address)
    paths = [path for path in folder.iterdir() if not path.is_dir()] if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(f"no file in {address}; expected those of a folder.")
    made = tempfile.TemporaryDirectory()
    place = Path(made.name) / folder.name
    place.mkdir()
    for path in paths:
        untrusted.below(place, path.name, of=address).write_bytes(path.read_bytes())
    return made


def remove(folder: Path) -> None:
    """Removes a folder with all that is in it, if it is there."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        cast(epath.Path, folder).rmtree()


def _send(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 24)
