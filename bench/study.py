r"""The paper's findings on the embedded base: many subjects, several seeds, one thing changed each.

    python bench/study.py CACHE --quick             # two subjects, one seed, fewer steps: a look
    python bench/study.py CACHE --figures FOLDER    # six subjects, three seeds: hours
    python bench/study.py CACHE --share 0/2         # the half of the subjects, beside another 1/2
    python bench/study.py CACHE --tables_only       # of what is finished

CACHE is the folder of `tools/make_embedded_base.py`. Needs `pip install -e '.[eval,tools]'`. Each
trial is a run of the main program, kept in CACHE/study; what is finished is not run again. It
prints Tables 1, 3, 4 and 5 of Ruiz et al. 2022 with our measures, which words name a subject best,
what more steps do, and for each finding of the paper whether it holds here. Base stage alone (32²).

Measures, each a mean over a trial's pictures (of `study_prompts.py`); the mean over trials has a
95 % bootstrap interval that draws subjects again, then their seeds. Differences are between trials
of the same subject and seed.

* subject: cosine of EfficientNet-Lite0 features, pictures of the subject's prompts × all 5 photos;
* prompt: how many pictures of "a [V] [class] PLACE" are nearest to real composites of that place,
  by the whitened judge of `embedded_base.py`, %;
* PRES: as subject, of pictures of the class alone. DIV: LPIPS (AlexNet) between pictures of the
  same prompt with the subject. Both are the paper's formulas with other encoders;
* application: how many pictures of the subject in gold or in wood, as a pencil drawing or an oil
  painting are nearest to real composites of that word, among all materials or styles, %;
* drift: 1 − cosine between pictures of other nouns ("a fox") after training and before it, from the
  same noise.

The last column of what holds is a power estimate: with how many subjects four of five studies would
exclude 0, were the mean and the spread of subjects those found.
"""

import argparse
import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trials
from nouns import HELD_OUT
from PIL import Image
from study_figures import page
from study_jury import Jury
from study_prompts import NOUNLESS, PROMPTS
from study_tables import Found, report

from dreambooth_jax.report import is_final

SUBJECTS = ("parrot", "taxi", "poodle", "kimono", "black_cat", "palm")  # a noun each
# Per step two rows of the subject and, where there are class images, two of the class.
USUAL: dict[str, Any] = {
    "optim__learning_rate": 5e-4,
    "train__batch_size": 4,
    "prior__num_images": 64,
    "sampler__name": "dpmpp_2m",
    "sampler__num_steps": 16,
    "sample__num_images": 2,
    "sample__prompts": PROMPTS,
}
NO_CLASS_IMAGES = {"prior_loss_weight": 0.0, "train__batch_size": 2}
INVERSION = {  # all four rows are the subject's
    "adapt__name": "textual_inversion",
    "prior_loss_weight": 0.0,
    "optim__learning_rate": 2e-2,
    "optim__weight_decay": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """What a trial does otherwise than the method as it is.

    photos: how many of the five; noun: "right", "wrong" (another subject's) or "none" in the
    captions; longer: how many times the steps, with a prompt grid after each third of the usual.
    """

    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    photos: int = 5
    noun: str = "right"
    longer: int = 1


ARMS = {
    "DreamBooth": Arm(),
    "textual inversion": Arm(INVERSION),
    "no class images": Arm(NO_CLASS_IMAGES),
    "prior by prediction": Arm({"prior__kind": "prediction"}),
    "wrong noun": Arm(noun="wrong"),
    "no noun": Arm({**NO_CLASS_IMAGES, "sample__prompts": NOUNLESS}, noun="none"),
    "common word": Arm({"subject__identifier": "purple"}),
    "random letters": Arm({"subject__identifier": "xxysytqk"}),
    **{f"{count} of 5 photos": Arm(photos=count) for count in (1, 3, 2, 4)},
}
LONG = {
    "longer": Arm(longer=3),
    "longer, no class images": Arm(NO_CLASS_IMAGES, longer=3),
    "longer, textual inversion": Arm(INVERSION, longer=3),
}
QUICK = (
    *("DreamBooth", "textual inversion", "no class images", "wrong noun", "no noun"),
    *("common word", "1 of 5 photos", "longer"),
)


def folder_of_photos(cache: Path, subject: str, seed: int, arm: Arm) -> Path:
    """A folder with the arm's photos, from the one that the seed points at, and their captions."""
    whole = trials.photos(cache, subject)
    if arm.photos == 5 and arm.noun != "none":
        return whole
    folder = cache / "subjects" / f"{subject}-{arm.photos}-from-{seed % 5}-{arm.noun}"
    folder.mkdir(exist_ok=True)
    for number in range(arm.photos):
        name = f"{1 + (seed + number) % 5}.png"
        shutil.copyfile(whole / name, folder / name)
        if arm.noun == "none":
            (folder / name).with_suffix(".txt").write_text("a {identifier}\n")
    return folder


def folder_of(cache: Path, subject: str, seed: int, name: str, steps: int) -> Path:
    """Where a trial is kept: beside those of the same settings, or the mean would mix two kinds."""
    usual = hashlib.sha256(repr(sorted(USUAL.items())).encode()).hexdigest()[:8]
    return cache / "study" / f"{steps}-steps-{usual}" / f"{subject}-{seed}-{name}".replace(" ", "_")


def trial(cache: Path, subject: str, seed: int, name: str, steps: int) -> trials.Trial:
    """Runs one, or takes it as it is; what is large and not looked at goes once it is finished."""
    arm = (ARMS | LONG)[name]
    nouns = [HELD_OUT[other][1] for other in SUBJECTS]
    noun = HELD_OUT[subject][1]
    if arm.noun == "wrong":
        noun = nouns[(nouns.index(noun) + 1) % len(nouns)]
    changed = {
        **USUAL,
        "seed": seed,
        "train__num_steps": arm.longer * steps,
        "train__checkpoint_every": arm.longer * steps,
        "train__sample_every": 0 if arm.longer == 1 else steps // 3,
        "subject__images": str(folder_of_photos(cache, subject, seed, arm)),
        "subject__class_noun": noun,
        "subject__captions": "files" if arm.noun == "none" else "prompt",
        "prior__folder": str(cache / "study" / "class_images" / f"{noun}-{seed}"),
        **arm.changed,
    }
    folder = folder_of(cache, subject, seed, name, steps)
    config = trials.settings(cache, subject, **changed)
    if is_final(folder / "report.html"):  # also of an older version of the program
        return trials.Trial(folder, config)
    done = trials.run(config, folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for file in (folder / "export").glob("*/*.safetensors"):
        file.unlink()
    return done


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """(subject, seed, arm) of every trial: a seed is whole before the next one begins."""
    long = [name for name in LONG if name in args.arms]
    short = [name for name in ARMS if name in args.arms]
    for names in (short, long):
        for seed in range(args.seeds):
            for name in names:
                yield from ((subject, seed, name) for subject in args.subjects)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="folder of the material")
    parser.add_argument("--quick", action="store_true", help="two subjects, one seed, 60 steps")
    parser.add_argument("--steps", type=int, default=180, help="optimizer steps of a trial")
    parser.add_argument("--seeds", type=int, default=3, help="trials of a subject and arm")
    parser.add_argument("--subjects", nargs="*", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--arms", nargs="*", choices=[*ARMS, *LONG], default=[*ARMS, *LONG])
    parser.add_argument("--share", default="0/1", help="I/N: every Nth subject, from the Ith on")
    parser.add_argument("--tables_only", action="store_true", help="run nothing more")
    parser.add_argument("--figures", type=Path, help="folder for figures")
    args = parser.parse_args()
    if args.quick:
        args.subjects, args.seeds, args.steps, args.arms = args.subjects[:2], 1, 60, QUICK
    first, shares = map(int, args.share.split("/"))

    jury, found = Jury(args.cache), Found()
    done: dict[tuple[str, int, str], trials.Trial] = {}
    for subject, seed, name in wanted(args):
        ready = folder_of(args.cache, subject, seed, name, args.steps) / "report.html"
        mine = args.subjects.index(subject) % shares == first and not args.tables_only
        if mine or is_final(ready):
            one = trial(args.cache, subject, seed, name, args.steps)
            done[subject, seed, name] = one
            photos = one.photos(trials.photos(args.cache, subject))
            found.add(subject, seed, name, jury.of(one, photos))
    print(f"\n{args.steps} steps, {len(args.subjects)} subjects × {args.seeds} seeds at most\n")
    print(report(found))
    if args.figures:
        args.figures.mkdir(parents=True, exist_ok=True)
        shown = {}
        for subject in args.subjects[:2]:
            arms = {name: one for (s, seed, name), one in done.items() if (s, seed) == (subject, 0)}
            photos = next(iter(arms.values())).photos(trials.photos(args.cache, subject))
            shown[subject] = photos, arms
        Image.fromarray(page(shown)).quantize(256).save(args.figures / "study.png", optimize=True)


if __name__ == "__main__":
    main()
