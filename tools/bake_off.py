r"""The bake-off of recipes for the embedded base: short trainings that differ in one thing each.

    python tools/bake_off.py CACHE OUT                      # all arms, one after another
    python tools/bake_off.py CACHE OUT "min-SNR 5" "thing 2"
    python tools/bake_off.py CACHE OUT --table              # Markdown of what is there

CACHE is that of `tools/make_embedded_base.py`, which trains each arm of `recipes.BAKE_OFF` into a
folder of OUT; `bench/embedded_base.py` judges what it draws. An arm that is there is not trained
again, one that was stopped goes on. Pace is compared between arms that ran on equally busy cores.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from recipes import BAKE_OFF

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = 20_800  # of an arm
SHARDS = 3  # of 10,000 scenes
JUDGED = ("--base_only", "--pairs", "64", "--steps", "20", "--sampler", "dpmpp_2m")
COLUMNS = (
    "pictures/s at 16²",
    "at 32²",
    "minutes",
    "x0_error",
    "thing_error",
    "noun, %",
    "in the nearest 5, %",
    "place, %",
)


def folder_of(out: Path, arm: str) -> Path:
    """The folder of an arm."""
    return out / re.sub(r"[^a-z0-9.]+", "-", arm.lower()).strip("-")


def commands(cache: Path, out: Path, arm: str) -> dict[str, list[str]]:
    """The two commands of an arm, by what they leave in its folder."""
    folder = str(folder_of(out, arm))
    numbers = {"pictures": PICTURES, "shards": SHARDS, "save_every": 200}
    numbers["check_every"] = 100 * 32 // BAKE_OFF[arm].rows
    flags = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    train = ["tools/make_embedded_base.py", str(cache), folder, "--recipe", f"bake-off: {arm}"]
    judge = ["bench/embedded_base.py", str(cache), "--model", folder, *JUDGED]
    return {
        "trained.txt": [sys.executable, *train, *flags],
        "judged.txt": [sys.executable, *judge],
    }


def run(cache: Path, out: Path, arm: str) -> None:
    """Trains and judges an arm, as far as it is not done."""
    folder = folder_of(out, arm)
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in commands(cache, out, arm).items():
        if not (folder / name).is_file():
            print(f"{arm}: {' '.join(command[1:])}", flush=True)
            done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
            (folder / name).write_bytes(done.stdout)


def paces(curve: Sequence[dict[str, float]], *, rows: int, small: int) -> tuple[float, ...]:
    """Pictures a second at 16² and at 32², and minutes in all, from the lines of a curve.

    A line tells of the steps since the one before. Medians: a pause is not the pace.
    """
    rates = "base/steps_per_second"  # checks have none
    steps = [(line["step"], line[rates]) for line in curve if rates in line]
    first, minutes = 0.0, 0.0
    found: dict[bool, list[float]] = {True: [], False: []}
    for step, rate in steps:
        found[step * rows <= small].append(rows * rate)
        minutes += (step - first) / rate / 60
        first = step
    return float(np.median(found[True])), float(np.median(found[False])), minutes


def row(out: Path, arm: str) -> list[str]:
    """The cells of an arm that was trained and judged."""
    folder, recipe = folder_of(out, arm), BAKE_OFF[arm]
    curve = [json.loads(line) for line in (folder / "base.jsonl").read_text().splitlines()]
    errors = [line for line in curve if "base/thing_error" in line][-1]
    small, full, minutes = paces(curve, rows=recipe.rows, small=recipe.small)
    judged = (folder / "judged.txt").read_text()
    shares = re.findall(r"\d+\.\d ± *\d+\.\d", judged.partition("drawn (64), whitened")[2])
    return [
        arm,
        f"{small:.1f}",
        f"{full:.1f}",
        f"{minutes:.1f}",
        f"{errors['base/x0_error']:.4f}",
        f"{errors['base/thing_error']:.4f}",
        *(" ".join(share.split()) for share in shares[:3]),
    ]


def table(out: Path) -> str:
    """Returns Markdown of the arms that are there, in their order."""
    lines = [["", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    lines += [row(out, arm) for arm in BAKE_OFF if (folder_of(out, arm) / "judged.txt").is_file()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="folder of the material and the scenes")
    parser.add_argument("out", type=Path, help="folder of the arms")
    parser.add_argument("arms", nargs="*", help="all without any")
    parser.add_argument("--table", action="store_true", help="print what is there, train nothing")
    args = parser.parse_args()
    if unknown := [arm for arm in args.arms if arm not in BAKE_OFF]:
        parser.error(f"{unknown[0]!r} is no arm: {', '.join(BAKE_OFF)}")
    if not args.table:
        for arm in args.arms or BAKE_OFF:
            run(args.cache, args.out, arm)
    print(table(args.out))


if __name__ == "__main__":
    main()
