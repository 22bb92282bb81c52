"""Seconds until a run answers a request to stop, and until it has ended, in each of its parts.

    python bench/stops.py --workdir=stops

One run of the embedded base is sent SIGINT while it compiles, draws class images, trains, draws a
grid and exports; each start resumes the one before. The programs are compiled once beforehand, by a
run in another folder, unless `--cold`.
"""

import argparse
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dreambooth_jax import status

SETTINGS = {
    "prior.num_images": 64,
    "prior.batch_size": 4,
    "sample.num_images": 16,
    "sample.batch_size": 2,
    "train.num_steps": 100,
    "train.sample_every": 50,
    "train.checkpoint_every": 50,
    "upscaler.num_steps": 2,
}
WARM = SETTINGS | {"prior.num_images": 4, "train.num_steps": 4, "upscaler.num_steps": 1}
Wanted = Callable[[status.Status, str], bool]  # the state, and the last part that was announced
_PART = re.compile(r"\d+ of \d+: (.*)")


def amid(found: status.Status) -> bool:
    """Returns True between the first and the last unit of a part."""
    return found.step is not None and 0 < found.step < (found.steps or 0)


PARTS: dict[str, Wanted] = {
    "class images": lambda s, _: s.part == "class images" and s.state == "drawing" and amid(s),
    "compilation": lambda s, _: s.state == "compiling" and s.stage == "base",
    "training": lambda s, _: s.state == "training" and s.stage == "base" and amid(s),
    "grid on the way": lambda s, _: s.state == "drawing" and s.stage == "base",
    "export": lambda _, part: part.startswith("export"),  # shorter than a state is kept
}


def started(workdir: Path, settings: dict[str, int], more: list[str]) -> subprocess.Popen[str]:
    """Starts a run of the embedded base."""
    own = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [
        sys.executable,
        "-u",
        "-m",
        "dreambooth_jax.main",
        "--config=configs/imagen_like.py:smoke",
    ]
    line = [*command, f"--workdir={workdir}", *own, *more]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)


def measured(workdir: Path, wanted: Wanted, more: list[str]) -> tuple[float, float, int] | None:
    """Seconds until the answer and until the end, and the exit code; None: it never came there."""
    process = started(workdir, SETTINGS, more)
    answers: list[float] = []
    parts = [""]

    def listen() -> None:
        for line in process.stderr or ():
            if line.startswith("SIGINT:"):
                answers.append(time.monotonic())
            if part := _PART.search(line):
                parts.append(part[1])

    listener = threading.Thread(target=listen)
    listener.start()
    asked = None
    while process.poll() is None:
        found = status.read(workdir)
        if asked is None and found and found.pid == process.pid and wanted(found, parts[-1]):
            asked = time.monotonic()
            process.send_signal(2)
        time.sleep(0.01)
    ended = time.monotonic()
    listener.join()
    if asked is None or not answers:
        return None
    return answers[0] - asked, ended - asked, process.returncode


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--cold", action="store_true", help="compile nothing beforehand")
    parser.add_argument("more", nargs="*", help="arguments of the run")
    args = parser.parse_args()
    if not args.cold:
        with started(args.workdir / "warm", WARM, args.more) as process:
            _, said = process.communicate()
        if process.returncode:
            sys.exit(said)
    print("| stop during | answer, s | end, s | exit code |\n|---|---|---|---|", flush=True)
    for name, wanted in PARTS.items():
        found = measured(args.workdir / "run", wanted, args.more)
        row = "never there | | " if found is None else "{:.2f} | {:.1f} | {}".format(*found)
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
