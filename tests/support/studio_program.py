"""Stands in the place of the main command: writes what a run writes, until it is asked to stop."""

import json
import signal
import sys
import time
from pathlib import Path

import studios

from dreambooth_jax import lock


def main(words: list[str]) -> None:
    folder = Path(next(w for w in words if w.startswith("--workdir=")).partition("=")[2])
    claim = lock.Lock(folder)
    before = studios.runs_steps(folder)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    print("words:", *words, flush=True)
    step = before
    while not asked:
        step += 1
        told = {"state": "training", "step": step, "steps": 5000, "loss": 1 / step}
        grids = ("before", "base-000002") if step > before + 2 else ("before",)
        studios.make_run(folder, status=told, steps=step, grids=grids)
        (folder / "log.txt").write_text("".join(f"step {k + 1}\n" for k in range(step)))
        time.sleep(0.3)
    studios.make_run(folder, status=told | {"state": "stopped", "message": "saved"}, steps=step)
    claim.release()
    sys.exit(143)


if __name__ == "__main__":
    print(json.dumps(sys.argv[1:]), flush=True)
    main(sys.argv[1:])
