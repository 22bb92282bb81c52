"""Subjects an hour on the embedded base: --mode=fleet beside one run for each subject.

    python bench/fleet.py build/dreambooth --workdir=build/fleet              # all of its subjects
    python bench/fleet.py build/dreambooth --workdir=build/fleet --singles=4  # 4 runs for all

The photos are a checkout of github.com/google/dreambooth. Both sides are processes of the main
command with the same settings: 100 steps of LoRA of the base, 32 class images, eight prompts drawn
before and after, the export. A single run draws its own class images, as its user's would; each
side begins with an empty cache of compiled programs, which later runs of it find filled. Half of
the single runs come before the fleet and half behind it. Seconds of processors are beside those of
the clock, since other programs on a computer lengthen the latter; with fewer single runs than
subjects the first, which compiles, counts once and the mean of the others for all the rest.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreambooth_jax.data import benchmark

AIM = 1.5


class Taken(NamedTuple):
    """Seconds of a process and all that it started."""

    clock: float
    processors: float


def settings(steps: int, cache: Path) -> list[str]:
    own: dict[str, object] = {
        "stages": ("base",),
        "upscaler_model": "",
        "adapt.name": "lora",
        "train.num_steps": steps,
        "optim.warmup_steps": steps // 10,
        "prior.num_images": 32,
        "sample.num_images": 1,
        # A fleet does neither; a single run would spend time on it.
        "train.sample_every": 0,
        "train.held_out_every": 0,
        "compile.cache_dir": cache,
    }
    return [f"--config.{key}={value}" for key, value in own.items()]


def timed(words: Sequence[object], log: Path) -> Taken:
    """Runs the main command to its end."""
    command = [sys.executable, "-m", "dreambooth_jax.main", "--config=configs/imagen_like.py"]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with log.open("w") as file:
        subprocess.run([*command, *map(str, words)], check=True, stdout=file, stderr=file)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(time.monotonic() - begin, used)


def single(
    checkout: benchmark.Checkout, member: benchmark.Member, args: argparse.Namespace
) -> Taken:
    photos = checkout.photos_of(member.name)
    words = [f"--config.subject.images={photos}"]
    words += [f"--config.subject.class_noun={member.class_noun}"]
    words += [f"--workdir={args.workdir / 'singles' / member.name}"]
    cache = args.workdir / "cache_of_singles"
    taken = timed([*words, *settings(args.steps, cache)], args.workdir / f"{member.name}.log")
    print(
        f"{member.name} alone: {taken.clock:.0f} s, of processors {taken.processors:.0f}",
        flush=True,
    )
    return taken


def fleet(
    checkout: benchmark.Checkout, members: Sequence[benchmark.Member], args: argparse.Namespace
) -> Taken:
    table = args.workdir / "fleet.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "images", "class_noun", "identifier"))
        rows.writerows((m.name, checkout.photos_of(m.name), m.class_noun, "") for m in members)
    words = [
        "--mode=fleet",
        f"--config.fleet.table={table}",
        f"--config.fleet.at_once={args.at_once}",
    ]
    words += [f"--workdir={args.workdir / 'fleet'}", *settings(args.steps, args.workdir / "cache")]
    taken = timed(words, args.workdir / "fleet.log")
    told = json.loads((args.workdir / "fleet" / "fleet.json").read_text())["subjects"]
    if left := [name for name, each in told.items() if each["state"] != "finished"]:
        sys.exit(f"not finished: {', '.join(left)}; see {args.workdir / 'fleet.log'}")
    print(f"the fleet: {taken.clock:.0f} s, of processors {taken.processors:.0f}", flush=True)
    return taken


def of_all(singles: Sequence[Taken], count: int) -> Taken:
    """Seconds of `count` runs of which these are the first and some later ones."""
    first, *others = singles
    if not others:
        return Taken(*(x * count for x in first))
    means = [sum(each) / len(others) for each in zip(*others, strict=True)]
    return Taken(*(x + (count - 1) * y for x, y in zip(first, means, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument(
        "--workdir", type=Path, required=True, help="a folder that is not there yet"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--subjects", type=int, help="of the first so many alone")
    parser.add_argument("--singles", type=int, help="subjects that are trained alone; all without")
    parser.add_argument("--at_once", type=int, default=8, help="subjects of one program")
    args = parser.parse_args()
    args.workdir = args.workdir.absolute()
    args.workdir.mkdir(parents=True)
    checkout = benchmark.locate(args.photos.absolute())
    members = checkout.present[: args.subjects]
    count = len(members)
    alone = members[:: -(-count // (args.singles or count))]
    half = -(-len(alone) // 2)
    singles = [single(checkout, member, args) for member in alone[:half]]
    together = fleet(checkout, members, args)
    singles += [single(checkout, member, args) for member in alone[half:]]
    apart = of_all(singles, count)
    nouns = len({member.class_noun for member in members})
    print(f"\n{count} subjects of {nouns} class nouns, {args.steps} steps, {len(alone)} alone")
    print(f"| | s | of processors, s | subjects an hour | by processors |\n{'|---' * 5}|")
    for name, taken in (("one run each", apart), ("fleet", together)):
        rates = [f"{3600 * count / x:.0f}" for x in taken]
        print(f"| {name} | {taken.clock:.0f} | {taken.processors:.0f} | {' | '.join(rates)} |")
    ratios = [f"{x / y:.2f}" for x, y in zip(apart, together, strict=True)]
    print(f"| fleet over one run each | | | {' | '.join(ratios)} |\naim: {AIM}")


if __name__ == "__main__":
    main()
