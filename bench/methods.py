"""Ways to adapt the model, on the same subject, with the same seeds, photos and steps.

    python bench/methods.py CACHE                          # the parrot, 300 steps of 8 rows
    python bench/methods.py CACHE --subject taxi --steps 100

CACHE is the folder of `tools/make_embedded_base.py`; the runs are kept in it, finished ones are not
done again. Needs `pip install -e '.[eval,tools]'`. Base stage alone (32²), class images as in
`configs/imagen_like.py`, but for textual inversion, to which they are of no use.

* subject: cosine of EfficientNet-Lite0 features, pictures of the subject's prompts and photos, mean
  over all pairs; "photos" is that among the photos themselves;
* prompt: how many of the pictures of "a [V] [class] PLACE" are nearest to real composites of that
  place, by the whitened judge of `bench/embedded_base.py`, %;
* drift: 1 − cosine of class pictures before and after, from the same noise;
* seconds of training; MB to keep beside the base model. Intervals are 95 %.

Exit status 1 when textual inversion reaches the subject better than full fine-tuning, which would
contradict Ruiz et al. 2022, Table 1.
"""

import argparse
from pathlib import Path

import numpy as np
import trials
from embedded_base import Judge, Real
from material import prepare
from nouns import HELD_OUT, PLACES

from dreambooth_jax.evaluate import encoder, measures

# Learning rates are each method's own: that of its configuration in configs/.
METHODS = {
    "full": {"optim__learning_rate": 2e-4},
    "LoRA, rank 4": {"adapt__name": "lora", "adapt__rank": 4, "optim__learning_rate": 1e-3},
    "LoRA, rank 16": {"adapt__name": "lora", "adapt__rank": 16, "optim__learning_rate": 1e-3},
    "textual inversion": {
        "adapt__name": "textual_inversion",
        "prior_loss_weight": 0.0,
        "optim__learning_rate": 2e-2,
        "optim__weight_decay": 0.0,
    },
    "pivotal tuning, full": {
        "adapt__name": "pivotal",
        "adapt__inversion_learning_rate": 2e-2,
        "optim__learning_rate": 2e-4,
    },
    "pivotal tuning, LoRA": {
        "adapt__name": "pivotal",
        "adapt__then": "lora",
        "adapt__rank": 16,
        "adapt__inversion_learning_rate": 2e-2,
        "optim__learning_rate": 1e-3,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="folder of the material")
    parser.add_argument("--subject", choices=HELD_OUT, default="parrot")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each run")
    parser.add_argument("--images", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()

    done = {}
    for name in args.only:
        changed = METHODS[name] | {
            "seed": args.seed,
            "train__num_steps": args.steps,
            "train__checkpoint_every": args.steps,
            "sample__num_images": args.images,
        }
        config = trials.settings(args.cache, args.subject, **changed)
        word = f"{args.subject}-{args.steps}-{args.seed}-{name}".replace(", ", "-")
        folder = args.cache / "methods" / word.replace(" ", "_")
        done[name] = trials.run(config, folder)

    encode = encoder.Encoder()
    real = Real.of(prepare(args.cache), encode, cache=args.cache, size=32)
    known = np.stack([real.features(number) for number in range(2)])
    judge = Judge.fit(known, axis=2, whiten=True)
    photos = encode(next(iter(done.values())).photos())[0]
    interval = measures.Bootstrap()
    among = interval.within(measures.cosine(photos, photos), [0] * len(photos))

    def shown(found: measures.Estimate, scale: float = 1.0, digits: int = 3) -> str:
        value, low, high = (scale * x for x in found[:3])
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    def scored(grid: dict[str, np.ndarray], word: str) -> tuple[measures.Estimate, ...]:
        """(subject similarity, share of the prompts' places) of a run's pictures."""
        own = [(prompt, picture) for prompt in grid if word in prompt for picture in grid[prompt]]
        features = encode(np.stack([picture for _, picture in own]))[0]
        prompts = [prompt for prompt, _ in own]
        subject = interval.between(measures.cosine(features, photos), prompts)
        places = [next((i for i, p in enumerate(PLACES) if t.endswith(p)), -1) for t in prompts]
        placed = np.array(places) >= 0
        right = judge.ranks(features[placed], np.array(places)[placed]) == 0
        groups = [prompt for prompt, is_placed in zip(prompts, placed, strict=True) if is_placed]
        return subject, interval.each(right.astype(float), groups)

    print(f"\n{args.subject}, a {HELD_OUT[args.subject][1]}: {args.steps} steps of 8 rows")
    header = ("subject", "prompt, %", "drift", "seconds", "MB")
    print(f"  {'':22}{header[0]:>24}{header[1]:>22}{header[2]:>24}{header[3]:>9}{header[4]:>8}")
    print(f"  {'photos':22}{shown(among):>24}")
    similarity = {}
    for number, (name, trial) in enumerate(done.items()):
        word = trial.identifier
        before, after = trial.pictures("before"), trial.pictures("after")
        if number == 0:
            subject, prompt = scored(before, word)
            print(f"  {'untouched':22}{shown(subject):>24}{shown(prompt, 100, 1):>22}")
        subject, prompt = scored(after, word)
        similarity[name] = subject.value
        of_class = [prompt for prompt in after if word not in prompt]
        then, now = (encode(np.concatenate([g[p] for p in of_class]))[0] for g in (before, after))
        moved = 1 - np.diag(measures.cosine(then, now))
        drift = interval.each(moved, [p for p in of_class for _ in after[p]])
        print(
            f"  {name:22}{shown(subject):>24}{shown(prompt, 100, 1):>22}{shown(drift):>24}"
            f"{trial.seconds:>9.0f}{trial.nbytes / 1e6:>8.2f}"
        )
    full, inverted = (similarity.get(name) for name in ("full", "textual inversion"))
    if full is not None and inverted is not None and full <= inverted:
        raise SystemExit("textual inversion reaches the subject better than full fine-tuning")


if __name__ == "__main__":
    main()
