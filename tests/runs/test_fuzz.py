"""Files damaged at random: every start ends well or with one message that names a file.

A traceback is any exception that `main` does not tell by its message alone. Bounded in time: as
many cases as fit, each a function of its number.
"""

import json
import logging
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import jax
import numpy as np
import pytest

from dreambooth_jax import families, pipeline
from dreambooth_jax.main import FORESEEN

pytestmark = pytest.mark.long
SECONDS = 150.0  # per test
_ENDINGS = (".json", ".jsonl", ".png", ".safetensors", ".html")


def damaged(file: Path, draw: random.Random) -> str:
    """Damages a file in one of the ways that disks, copies and editors do; says how."""
    whole = file.read_bytes()
    kinds = ["flip", "cut", "empty", "gone", "noise", "folder"]
    kinds += ["swap", "remove"] if file.suffix == ".json" else []
    kind = draw.choice(kinds)
    if kind == "flip" and whole:
        at = draw.randrange(min(len(whole), _header(whole, file)))
        bit = draw.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        return f"flip {bit} of byte {at}"
    if kind == "cut":
        file.write_bytes(whole[: draw.randrange(len(whole) + 1)])
    elif kind == "noise":
        file.write_bytes(draw.randbytes(min(len(whole), 4096)))
    elif kind in ("swap", "remove"):
        try:
            file.write_text(json.dumps(_changed(json.loads(whole), kind, draw)))
        except ValueError:
            file.write_bytes(b"{")
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "empty":
            file.touch()
    return kind


def _header(whole: bytes, file: Path) -> int:
    """Bytes in which a flip can be noticed: numbers of weights have no checksum of their own."""
    if file.suffix != ".safetensors" or len(whole) < 8:
        return len(whole)
    return min(8 + int.from_bytes(whole[:8], "little"), len(whole))


def _changed(content: object, kind: str, draw: random.Random) -> object:
    """JSON with one value, anywhere in it, of another type, or without it."""
    places: list[tuple[dict[str, object], str]] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            places.extend((value, key) for key in value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(content)
    if not places:
        return None
    table, key = draw.choice(places)
    if kind == "remove":
        del table[key]
    else:
        table[key] = draw.choice([None, -1, 10**12, 0.5, "x", [], {}, [[]], True, "../../x"])
    return content


def cases(least: int) -> Iterator[random.Random]:
    """Random numbers of each case, until the time is over, and of so many at least."""
    until, number = time.monotonic() + SECONDS, 0
    while number < least or time.monotonic() < until:
        yield random.Random(number)
        number += 1


class Warned(logging.Handler):
    """Notes warnings that name a file of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.WARNING)
        self.folder, self.any = os.fspath(folder), False

    def emit(self, record: logging.LogRecord) -> None:
        """Notes one."""
        self.any |= self.folder in record.getMessage()


def outcome(start: Callable[[], None], folder: Path, told: str) -> str:
    """What came of a start.

    "harmless"; "healed": ended well, with a warning that names the file; "refused" by a message
    that does.
    """
    warned = Warned(folder)
    logging.getLogger("absl").addHandler(warned)
    try:
        start()
    except FORESEEN as error:
        text = str(error)
        assert os.fspath(folder) in text or "--" in text, f"{told}: names no file: {text}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"{told}: a traceback: {type(error).__name__}: {error}") from error
    finally:
        logging.getLogger("absl").removeHandler(warned)
    return "healed" if warned.any else "harmless"


def summary(what: str, found: Counter[str]) -> None:
    kinds = ", ".join(f"{found[name]} {name}" for name in ("harmless", "healed", "refused"))
    print(f"\n{what}: {sum(found.values())} tried: {kinds}")


def test_a_model_folder(tiny_cascade: dict[str, Path], tmp_path: Path) -> None:
    good = tiny_cascade["base"]
    expected = pipeline.read_weights(families.open_stage(str(good), kind="base"))
    names = sorted(p.relative_to(good) for p in good.rglob("*") if p.suffix in _ENDINGS)
    found: Counter[str] = Counter()
    for draw in cases(least=50):
        folder = tmp_path / "model"
        shutil.copytree(good, folder)
        name = draw.choice(names)
        told = f"{name}: {damaged(folder / name, draw)}"

        def start(folder: Path = folder) -> None:
            read = pipeline.read_weights(families.open_stage(str(folder), kind="base"))
            assert read.keys() == expected.keys()
            assert all(np.array_equal(read[path], expected[path]) for path in expected)

        found[outcome(start, folder, told)] += 1
        shutil.rmtree(folder)
    summary("model folder", found)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run(finished: bool, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    stages = commands.cascade(tmp_path_factory)
    c = commands.config(stages, train__held_out_every=0, evaluate__at_end=False)
    good = tmp_path / "good"
    commands.run_here(c, good)
    expected = commands.weights(good / "export")
    if not finished:
        (good / "report.html").unlink()
        shutil.rmtree(good / "export")
        shutil.rmtree(good / "samples" / "after")
    names = sorted(p.relative_to(good) for p in good.rglob("*") if p.is_file())
    found: Counter[str] = Counter()
    for draw in cases(least=8):
        folder = tmp_path / f"run{found.total()}"
        shutil.copytree(good, folder)
        name = draw.choice(names)
        told = f"{name}: {damaged(folder / name, draw)}"
        which = outcome(lambda: commands.run_here(c, folder) and None, folder, told)  # noqa: B023 - called at once
        if which != "refused" and "export" not in name.parts:
            assert not commands.different(commands.weights(folder / "export"), expected), told
        found[which] += 1
        # What a library's thread still writes after an error is left: each case has its own folder.
        shutil.rmtree(folder, ignore_errors=True)
        jax.clear_caches()  # what each run compiled stays for its own functions alone: 50 MiB
    summary("finished run" if finished else "unfinished run", found)
