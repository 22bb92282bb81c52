"""Operations and seconds of edits beside plain sampling of the same size, on this computer.

    python bench/edit.py                       # the embedded base, 4 pictures of 20 steps
    python bench/edit.py --base=FOLDER --rows=2 --steps=10

Counted is one program for all rows, by `flops` (two for each multiply-add): drawn from prompts;
with a mask and what it keeps; beside a source prompt (Prompt-to-Prompt: half of the rows are
sources); along a photo (inversion), beside a source prompt as well. They take turns; seconds are
medians. Image-to-image takes the same steps as plain sampling, as many as its strength says.
"""

import argparse
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import families, flops, generate, pipeline
from dreambooth_jax.text import alignment

SOURCE, EDIT = "a bird in the snow", "a zib bird in the snow"


def programs(stage: Any, rows: int) -> dict[str, dict[str, np.ndarray]]:
    """The rows of each program, besides prompts and seeds."""
    rng = np.random.default_rng(0)
    known = rng.uniform(-1, 1, (rows, *stage.sample_shape)).astype(np.float32)
    mask = np.zeros((*known.shape[:3], 1), np.float32)
    mask[:, : mask.shape[1] // 2] = 1
    length = stage.tokenizer.max_length
    ids = [alignment.read(stage.tokenizer, prompt) for prompt in (SOURCE, EDIT)]
    found = alignment.aligned(*ids, length=length)
    beside = {
        "words": np.stack([found.words] * rows),
        "own": np.stack([found.own] * rows),
        "cross_steps": np.full(rows, 8, np.int32),
        "self_steps": np.full(rows, 4, np.int32),
    }
    made: dict[str, dict[str, np.ndarray]] = {"plain": {}, "mask": {"mask": mask, "known": known}}
    if stage.denoiser.attends:
        made["Prompt-to-Prompt"] = beside
        made["inversion"] = {"follow": known, **beside}
    else:
        made["inversion"] = {"follow": known}
    return made


def main() -> None:
    """Prints a line for each program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    stage = families.open_stage(asked.base, kind="base")
    flat = pipeline.read_weights(stage)
    text = generate.encode(stage, flat, [SOURCE, EDIT], dtype=jnp.float32)
    drawing = {path: jnp.asarray(x) for path, x in flat.items() if path.startswith(stage.drawing)}
    settings = generate.Settings("ddim", asked.steps, 4.0)
    prompts = text.rows([SOURCE, EDIT] * (asked.rows // 2))
    given = {"prompt": prompts, "seed": np.repeat(np.arange(asked.rows // 2, dtype=np.uint32), 2)}
    pure = functools.partial(generate.sample_batch, stage=stage, settings=settings)
    ready, counts = {}, {}
    for name, more in programs(stage, asked.rows).items():
        rows = {**given, **more}
        traced = jax.jit(pure).trace(drawing, text.table, rows)
        counts[name] = flops.count(traced.jaxpr)
        ready[name] = functools.partial(traced.lower().compile(), drawing, text.table, rows)
        jax.block_until_ready(ready[name]())
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(asked.turns):
        for name, run in ready.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begin)
    print(f"{asked.base}: {asked.rows} rows, {asked.steps} steps, {jax.devices()[0].device_kind}")
    for name, count in counts.items():
        took = statistics.median(seconds[name])
        ratio = statistics.median(
            a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)
        )
        print(
            f"{name:18} {count / 1e9:10.2f} GFLOP ({count / counts['plain']:.4f} ×) "
            f"{took:8.3f} s ({ratio:.3f} ×)"
        )


if __name__ == "__main__":
    main()
