"""Speaks for a process of several that ended without a word: killed, or aborted by jax itself.

    python witness.py TEXT WORKDIR

It waits at its standard input for "bye"; without it, it says TEXT and what is saved in WORKDIR. A
program of its own, of the standard library alone: jax ends a process that lost its coordinator from
C++, where no Python is run any more.
"""

import sys
from pathlib import Path


def saved(workdir: str) -> str:
    """Returns one sentence on what a run can resume from."""
    if "://" in workdir:
        return f"What is saved is in {workdir}."
    steps: dict[str, int] = {}
    for path in Path(workdir).glob("checkpoints/*/[0-9]*"):
        if path.name.isdigit():  # committed: others have a longer name
            steps[path.parent.name] = max(int(path.name), steps.get(path.parent.name, 0))
    told = ", ".join(f"{kind} step {step}" for kind, step in sorted(steps.items()))
    pictures = Path(workdir).glob("prior/**/[0-9]*.png")
    images = sum(path.parent.name != "low_res" for path in pictures)  # those are a stage before
    drawn = f" and {images} class images" if images else ""
    return f"Saved in {workdir}: {told or 'no checkpoint yet'}{drawn}."


GO_ON = "Start all processes again with the same command to go on from there."

if __name__ == "__main__":
    if sys.stdin.readline().strip() != "bye":
        text, workdir = sys.argv[1:]
        print(f"{text} {saved(workdir)} {GO_ON}", file=sys.stderr, flush=True)
