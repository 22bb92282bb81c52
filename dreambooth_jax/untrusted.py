"""Reads files that others wrote: damaged, of another kind, or made to do harm.

One place for the rules of such files. A file is opened only if it is a regular one of a sensible
size: a pipe or a device never ends. A name that stands in a file or in a bucket never leads out of
its folder. JSON has the shape that is expected. Whatever another library raises over a file becomes
one message that names the file, what is wrong with it and what to do.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

MB = 2**20
AGAIN = "Copy or download it again."
# Limits of settings of networks: published ones have up to 100 layers in a row, 10^6 words.
_MOST_LAYERS, _LARGEST_NUMBER, _MOST_NUMBERS = 1000, 10**7, 10**4
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room, or none that this user may take
_LONGEST = 300  # characters of another library's message
# A failure inside a library written in Rust (tokenizers, safetensors). Its class cannot be imported
# and derives from BaseException alone.
_PANIC = "PanicException"


class FileError(ValueError):
    """A file that cannot be used; the text names it, what was found and the remedy."""


def in_short(error: BaseException | str) -> str:
    """The first line of a message, its two ends if it is long; an exception without one is named.

    Of an OSError the reason and the file, which `str` leaves out where the library raised it bare.
    """
    if isinstance(error, OSError) and error.errno and error.strerror is None:
        text = f"{type(error).__name__}: {os.strerror(error.errno)}"
    elif isinstance(error, BaseException):
        text = str(error).strip() or type(error).__name__
        if isinstance(error, LookupError | RecursionError | MemoryError):
            text = f"{type(error).__name__}: {text}" if str(error).strip() else text
    else:
        text = error
    line = next((line for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _LONGEST else f"{line[:100]} … {line[-150:]}"


@contextlib.contextmanager
def reading(file: str | os.PathLike[str], what: str, *, remedy: str = AGAIN) -> Iterator[None]:
    """Turns whatever is raised within it over `file` into one message that names it.

    Errors of the operating system (no such file, no permission, a full disk) keep their kind: they
    accuse no content. A `FileError` passes unchanged.

    Args:
      what: what the file should be: "a safetensors file".

    Raises:
      FileError: `file` is not that; the cause is in its text.
      OSError: with the name of the file.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        if error.errno is None:  # a library's own, such as Pillow's
            raise _refused(file, what, error, remedy) from error
        if error.filename is not None:
            raise
        reason = error.strerror or os.strerror(error.errno)
        raise OSError(error.errno, reason, os.fspath(file)) from error
    except Exception as error:  # another library's: any kind of it is about this file
        raise _refused(file, what, error, remedy) from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise _refused(file, what, error, remedy) from error


@contextlib.contextmanager
def values(file: str | os.PathLike[str]) -> Iterator[None]:
    """Reports a wrong value of `file` that is met within it, with the file's name.

    A ValueError's own text stays; what a value of another kind provokes (TypeError, KeyError,
    ZeroDivisionError, …) is told in short.

    Raises:
      FileError: see above.
    """
    try:
        yield
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{os.fspath(file)}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise FileError(
            f"{os.fspath(file)} holds a value of a wrong kind, or lacks one: "
            f"{type(error).__name__}: {in_short(str(error))}. {AGAIN}"
        ) from error


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turns what a library raises while it writes `file` into an OSError that names it.

    Raises:
      OSError: see `unwritten`.
    """
    try:
        yield
    except Exception as error:
        raise unwritten(file, error) from error


def unwritten(file: Path, error: Exception) -> OSError:
    """The error of a file that cannot be written: with its name, and the room where it was to be.

    It is of the kind of the system's own error, of which it keeps the number.
    """
    number = error.errno if isinstance(error, OSError) else None
    reason = in_short(error) if number is None else os.strerror(number)
    told = f"{file} cannot be written: {reason.rstrip('.')}."
    free = shutil.disk_usage(file.parent).free / MB if file.parent.is_dir() else 0.0
    if number in (None, *FULL):
        told += (
            f" {free:.3g} MB are free there: make room, or choose another folder, and run the same "
            "command again."
        )
    return OSError(told) if number is None else OSError(number, told)


def _refused(
    file: str | os.PathLike[str], what: str, error: BaseException, remedy: str
) -> FileError:
    return FileError(f"{os.fspath(file)} cannot be read as {what}: {in_short(error)}. {remedy}")


def regular(file: Path, *, limit: int | None = None) -> Path:
    """The same path, which is a regular file or a link to one, of at most `limit` bytes.

    Raises:
      FileNotFoundError: there is none.
      FileError: a folder, a pipe, a socket or a device, which might never end; or it is too large.
    """
    if "://" in os.fspath(file):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing.")
        return file
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, a socket or a device"
        raise FileError(f"{file} is {kind}; expected a regular file. Put the file itself there.")
    if limit is not None and about.st_size > limit:
        raise FileError(
            f"{file} has {about.st_size / MB:.3g} MB; expected at most {limit / MB:.3g} MB. Is it "
            "the right file?"
        )
    return file


def text(file: Path, *, limit: int = 64 * MB, encoding: str = "utf-8") -> str:
    """The text of a regular file.

    Raises:
      FileNotFoundError, FileError: see `regular`; or it is no text in this encoding.
    """
    file = regular(file, limit=limit)
    with reading(file, "text in UTF-8", remedy="Save or copy it again."):
        return file.read_bytes().decode(encoding)


def parsed(content: str | bytes, file: str | os.PathLike[str], *, remedy: str = AGAIN) -> Any:
    """The value of a JSON text, wherever it came from; `file` names it in the message.

    Raises:
      FileError: it is no JSON, or nested too deeply.
    """
    with reading(file, "JSON", remedy=remedy):
        return json.loads(content.decode() if isinstance(content, bytes) else content)


def json_object(
    file: Path, *, limit: int = 64 * MB, remedy: str = AGAIN, missing: str = ""
) -> dict[str, Any]:
    """The object `{…}` in a JSON file.

    Args:
      missing: what to add to the message when there is no such file.

    Raises:
      FileNotFoundError: there is none.
      FileError: it is no JSON, or a list or another value.
    """
    try:
        content = regular(file, limit=limit).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} is missing{missing}.") from error
    found = parsed(content, file, remedy=remedy)
    if not isinstance(found, dict):
        kind = type(found).__name__.replace("NoneType", "null")
        raise FileError(f"{file} holds a JSON {kind}; expected an object {{…}}. {remedy}")
    return found


def bounded(settings: dict[str, Any], file: str | os.PathLike[str]) -> dict[str, Any]:
    """The same settings of a network or schedule, none of which could take all memory or time.

    They are followed before any weight is read: a number of layers makes a loop, a width an array.

    Raises:
      FileError: names every number outside of the limits.
    """
    problems = []

    def walk(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{key}.{name}" if key else str(name), inner)
        elif isinstance(value, list) and len(value) <= _MOST_NUMBERS:
            for inner in value:
                walk(key, inner)
        elif isinstance(value, list):
            problems.append(f"{key}: {len(value)} values; expected at most {_MOST_NUMBERS}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            most = _MOST_LAYERS if "layers" in key or key == "depth" else _LARGEST_NUMBER
            if not abs(value) <= most:
                huge = isinstance(value, int) and value.bit_length() > 1000
                shown = "a number of hundreds of digits" if huge else f"{value:.6g}"
                problems.append(f"{key} = {shown}; expected at most {most}")

    walk("", settings)
    if problems:
        raise FileError(f"{os.fspath(file)}: {'; '.join(problems[:20])}.")
    return settings


def below(folder: Path, name: Any, *, of: str) -> Path:
    """The path of `name` in `folder`, for a name that another wrote: it may not lead elsewhere.

    Args:
      of: where the name stands, for the message: "the bucket", or the path of an index file.

    Raises:
      FileError: the name is no text, is absolute, or has an empty part, `.`, `..` or a backslash.
    """
    plain = isinstance(name, str) and not any(mark in name for mark in ("\\", "\0"))
    if plain:
        windows = PureWindowsPath(name)  # a drive is no folder
        plain = not windows.drive and not {"", ".", ".."} & set(name.split("/"))
    if not plain:
        raise FileError(
            f"{of} names {name!r}, which is no path of a file inside {folder}; nothing was read or "
            "written there. Do not use this model, or remove that name."
        )
    return folder / name
