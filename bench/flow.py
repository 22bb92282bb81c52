"""DreamBooth on the small flow transformer of `tools/teach_flow.py`: does the flow path learn?

    python tools/teach_flow.py CACHE OUT --pictures 100000
    python bench/flow.py CACHE OUT/flow                    # 3 subjects, by LoRA and in full

Runs of the main command with `configs/z_image.py`'s settings but for size, rate and steps, on
subjects that the model never saw; finished ones are not done again. Subject similarity is the
cosine of EfficientNet-Lite0 features of the subject's prompts' pictures and of its photos:

* photos: among the photos themselves;
* before, after: mean over all pairs, of the untouched and of the tuned model, from the same noise;
* gain: after − before, picture by picture;
* class drift: 1 − cosine of the class prompts' pictures before and after.

Intervals are 95 %, over prompts and pictures; in the last rows over subjects. Exit status 1 where a
method's mean gain is not above 0 with its whole interval. Needs `pip install -e '.[eval,tools]'`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import trials
from nouns import HELD_OUT

from dreambooth_jax.evaluate import encoder, measures

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "z_image.py"
METHODS = {
    "LoRA, rank 16": {"adapt__name": "lora", "adapt__rank": 16, "optim__learning_rate": 2e-3},
    "full": {"adapt__name": "full", "optim__learning_rate": 5e-4},
}


def trial(args: argparse.Namespace, subject: str, method: str) -> trials.Trial:
    """The run of one method on one subject."""
    changed = METHODS[method] | {
        "base_model": str(args.model.resolve()),
        "subject__identifier": "zib",  # its vocabulary has no rare words
        "resolution": 32,
        "dtype": "float32",
        "seed": args.seed,
        "prior__kind": "prediction",
        "prior__folder": "",
        "train__num_steps": args.steps,
        "train__checkpoint_every": args.steps,
        "train__batch_size": 8,
        "train__remat": "none",
        "optim__warmup_steps": 20,
        "sampler__num_steps": 20,
        "sampler__guidance_scale": args.guidance,
        "sample__num_images": args.images,
        "sample__batch_size": 16,  # all prompts of `trials.settings` at once
        "export__dtype": "float32",
    }
    config = trials.settings(args.cache, subject, config=CONFIG, **changed)
    word = f"{subject}-{args.steps}-{args.seed}-{method}".replace(", ", "-").replace(" ", "_")
    return trials.run(config, args.cache / "flow" / word)


def similarity(
    done: trials.Trial, encode: encoder.Encoder
) -> tuple[dict[str, measures.Estimate], float]:
    """The estimates of one run by name, and its mean gain."""
    interval, word, photos = measures.Bootstrap(), done.identifier, encode(done.photos())[0]

    def features(grid: Mapping[str, np.ndarray], *, of_subject: bool) -> np.ndarray:
        chosen = [grid[prompt] for prompt in grid if (word in prompt) == of_subject]
        return encode(np.concatenate(chosen))[0]

    grids = {label: done.pictures(label) for label in ("before", "after")}
    before, after = (
        measures.cosine(features(grids[label], of_subject=True), photos) for label in grids
    )
    counts = {prompt: len(pictures) for prompt, pictures in grids["after"].items()}
    prompts = [p for p, count in counts.items() for _ in range(count) if word in p]
    others = [p for p, count in counts.items() for _ in range(count) if word not in p]
    then, now = (features(grids[label], of_subject=False) for label in grids)
    gain = (after - before).mean(1)
    found = {
        "photos": interval.within(measures.cosine(photos, photos), [0] * len(photos)),
        "before": interval.between(before, prompts),
        "after": interval.between(after, prompts),
        "gain": interval.each(gain, prompts),
        "class drift": interval.each(1 - np.diag(measures.cosine(then, now)), others),
    }
    return found, float(gain.mean())


def shown(found: measures.Estimate) -> str:
    """A mean with its interval."""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="folder of the material")
    parser.add_argument("model", type=Path, help="folder of the small flow transformer")
    parser.add_argument("--subjects", nargs="*", choices=HELD_OUT, default=[*HELD_OUT][:3])
    parser.add_argument("--only", nargs="*", choices=METHODS, default=[*METHODS])
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of each run")
    parser.add_argument("--images", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    done = {(s, m): trial(args, s, m) for s in args.subjects for m in args.only}
    encode = encoder.Encoder()
    names = ("photos", "before", "after", "gain", "class drift")
    print(f"\n{args.steps} steps of 8 rows, {args.images} pictures of each prompt")
    print(f"  {'':26}{''.join(f'{name:>23}' for name in names)}{'seconds':>9}")
    gains: dict[str, list[float]] = {method: [] for method in args.only}
    for (subject, method), one in done.items():
        found, gain = similarity(one, encode)
        gains[method].append(gain)
        cells = "".join(f"{shown(found[name]):>23}" for name in names)
        print(f"  {f'{subject}, {method}':26}{cells}{one.seconds:>9.0f}", flush=True)
    failed = []
    for method, values in gains.items():
        mean = measures.Bootstrap().each(np.array(values), range(len(values)))
        print(f"  {f'all, {method}':26}{'':69}{shown(mean):>23}")
        failed += [] if mean.low > 0 else [method]
    if failed:
        raise SystemExit(f"no gain in subject similarity: {', '.join(failed)}")


if __name__ == "__main__":
    main()
