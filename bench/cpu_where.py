"""Where the time of our steps in bench/cpu.py goes on this CPU, by JAX's profiler.

    python bench/cpu_where.py --size 142m

Shares of the time that XLA's operations took, of a sampler step and of a train step. Convolutions
of few positions, which are computed as products, are among the linear layers; attention is what is
inside loops; "other" are norms, copies and everything between the products.
"""

import argparse
import collections
import glob
import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import cpu

PROGRAMS = {"sample": "guided", "train": "step"}  # the functions that bench/cpu.py jits
GROUPS = ("convolutions", "linear layers", "attention", "other")
TURNS = 4


def operations(dumped: str, program: str) -> dict[str, str]:
    """Which of `GROUPS` each operation of a compiled program belongs to, by its name."""
    (file,) = glob.glob(f"{dumped}/*jit_{program}.*after_optimizations.txt")
    found = {}
    for line in Path(file).read_text().splitlines():
        # Those of several results, loops among them, are left out: what is inside them counts.
        said = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = [^( ]+ [\w\-]+\(", line)
        if said is None:
            continue
        source = re.search(r'op_name="([^"]*)"', line)
        origin = source[1] if source else ""
        if "/while/" in origin:
            group = "attention"
        elif "conv_general_dilated" in origin:
            group = "convolutions"
        elif origin.endswith("dot_general"):
            group = "linear layers"
        else:
            group = "other"
        found[said[1]] = group
    return found


def shares(step: Callable[[], float], groups: dict[str, str]) -> dict[str, float]:
    """Milliseconds of a step's operations in each of the groups."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TURNS):
                step()
        (file,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        events = json.loads(gzip.decompress(Path(file).read_bytes()))["traceEvents"]
    total: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and event["name"] in groups:
            total[groups[event["name"]]] += event["dur"] / 1000 / TURNS
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=cpu.SIZES, default="small")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as dumped:
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={dumped} --xla_dump_hlo_as_text"
        cpu.prepare(Path(folder), args.size)
        print(f"| | {' | '.join(GROUPS)} |\n|{'---|' * (len(GROUPS) + 1)}")
        for kind, step in cpu.our_steps(Path(folder)).items():
            step()  # compiles
            found = shares(step, operations(dumped, PROGRAMS[kind]))
            whole = sum(found.values())
            cells = " | ".join(f"{found[group] / whole:.0%}" for group in GROUPS)
            print(f"| {kind}, {whole:.0f} ms in all | {cells} |", flush=True)


if __name__ == "__main__":
    main()
