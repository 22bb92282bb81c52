"""Writers of a run's numbers and pictures: JSON lines, TensorBoard, several at once.

Method names and arguments are those of clu's `MetricWriter`, whose own writers need TensorFlow.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from dreambooth_jax import files, untrusted

_SECONDS = 10  # between two writings of a file in a bucket

_MOST = 2**63  # whole numbers below it are what a file of numbers can hold
_RESERVED = ("step", "time")  # the writer's own keys in a line of metrics.jsonl


class Writer(Protocol):
    """The interface of all writers, a part of clu's `MetricWriter`."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Takes numbers, or arrays of one element, by name."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Takes uint8 pictures [N, H, W, C], or [H, W, C], by name."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Takes texts by name."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Takes the settings of the run by key."""

    def flush(self) -> None:
        """Puts everything taken so far where others can read it."""

    def close(self) -> None:
        """Flushes and lets go of files; nothing may be written afterwards."""


class JsonlWriter:
    """Numbers as JSON lines, `{"step": 10, "loss": 0.5, "time": 1.7e9}`, for `read` and for `jq`.

    Every line is written out at once, to a bucket every few seconds, as nothing can be added to a
    file there. An existing file is continued; what a killed run left of its
    last line is removed. JSON has no NaN and no infinity: both become null. Pictures are
    not kept here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = files.at(path)
        there = self.path.is_file()
        found = self.path.read_bytes() if there else b""
        self._text = _whole(found)
        self._sent = time.monotonic()
        if not there or self._text != found:
            self._send()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line; `time` is in seconds since 1970."""
        if taken := [name for name in _RESERVED if name in scalars]:
            raise ValueError(
                f"a scalar is called {taken[0]!r}, which the writer adds itself; rename it"
            )
        values = {name: _number(name, value) for name, value in scalars.items()}
        line = {
            "step": int(step),
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
            "time": round(time.time(), 3),
        }
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        whole = text.encode() + b"\n"
        if files.is_remote(self.path):
            self._text += whole
            if time.monotonic() - self._sent > _SECONDS:
                self._send()
            return
        with files.named(self.path), open(self.path, "ab") as file:  # a few lines a second at most
            file.write(whole)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Ignores pictures: a JSON line holds none."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Ignores texts: these are numbers."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Ignores settings: they are in config.json."""

    def flush(self) -> None:
        """Sends what waits for a bucket; on this computer every line is in the file already."""
        if files.is_remote(self.path):
            self._send()

    def close(self) -> None:
        """The same."""
        self.flush()

    def _send(self) -> None:
        with files.written(self.path) as part:
            part.write_bytes(self._text)
        self._sent = time.monotonic()


class TensorBoardWriter:
    """TensorBoard's event files in a folder, by tensorboardX; no TensorFlow.

    Raises ImportError when tensorboardX is not installed.
    """

    def __init__(self, logdir: str | os.PathLike[str]) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise ImportError(
                "TensorBoard files need the package tensorboardX, which is not installed. Write "
                "pip install 'dreambooth_jax[tensorboard]', or do without TensorBoard: the same "
                "numbers are in metrics.jsonl."
            ) from error
        self._writer = tensorboardX.SummaryWriter(os.fspath(logdir))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """One point per number; not-a-number and infinity are kept."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, _number(name, value), int(step))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """One picture per name: the N pictures in a grid. Raises ValueError on other than uint8."""
        for name, value in images.items():
            array = np.asarray(value)
            if array.dtype != np.uint8 or array.ndim not in (3, 4):
                raise ValueError(
                    f"images {name!r} are {array.dtype} {list(array.shape)}; expected uint8 "
                    "[N, H, W, C] or [H, W, C]: convert them to 0…255 first"
                )
            grid = array if array.ndim == 4 else array[None]
            self._writer.add_images(name, grid, int(step), dataformats="NHWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes one text per name."""
        for name, text in texts.items():
            self._writer.add_text(name, text, int(step))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the settings for the table of runs (the plugin "hparams")."""
        from tensorboardX.summary import hparams as summary

        plain = {
            key: x if isinstance(x, bool | int | float | str) else repr(x)
            for key, x in hparams.items()
        }
        for part in summary(plain, {}):
            self._writer.file_writer.add_summary(part)

    def flush(self) -> None:
        """Writes what waits in memory."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the event file; a second call does nothing."""
        self._writer.close()


class MultiWriter:
    """Tells several writers the same, in their order."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """To every writer."""
        for writer in self.writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """To every writer."""
        for writer in self.writers:
            writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """To every writer."""
        for writer in self.writers:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """To every writer."""
        for writer in self.writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Every writer."""
        for writer in self.writers:
            writer.flush()

    def close(self) -> None:
        """Every writer, also when one of them fails."""
        with contextlib.ExitStack() as stack:
            for writer in self.writers:
                stack.callback(writer.close)


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a `JsonlWriter`, one per step, by step; null is None.

    A run that went on from a checkpoint writes some steps a second time: the last value per step
    and name counts. A half-written last line is left out. So is any other bad line, and a value
    that is no number, with a warning: a line of a log is no reason to end a run.
    """
    path = files.at(path)
    lines = untrusted.regular(path).read_bytes().split(b"\n")
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parsed(line)
        if record is None:
            if number < len(lines):  # the last one has no line end: it was, or is being, written
                _left_out(path, number, line.decode(errors="replace"), "a JSON object with a step")
            continue
        sound = {name: value for name, value in record.items() if _is_number(value)}
        for name in record.keys() - sound.keys():
            _left_out(path, number, f"{name} = {record[name]!r}", "a number or null")
        records.setdefault(record["step"], {}).update(sound)
    return [records[step] for step in sorted(records)]


def _left_out(path: Path, number: int, found: str, expected: str) -> None:
    logging.warning(
        "%s, line %d: found %.80r, expected %s; it is left out", path, number, found, expected
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | type(None)):
        return False
    return value is None or isinstance(value, float) or abs(value) < _MOST


def _whole(text: bytes) -> bytes:
    """The same up to a line end: completes a whole last line, cuts off a half-written one."""
    start = text.rfind(b"\n") + 1
    if start == len(text):
        return text
    return text[:start] if _parsed(text[start:]) is None else text + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None when it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # bad JSON or bad UTF-8; nested without end
        return None
    if isinstance(record, dict) and isinstance(record.get("step"), int):
        return record if 0 <= record["step"] < _MOST else None
    return None


def _number(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(
            f"scalar {name!r} has shape {list(array.shape)}; expected one number: write its mean"
        )
    return float(array.reshape(()))
