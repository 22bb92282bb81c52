r"""Proof of a refactoring: small runs at another commit and in this tree, compared bit for bit.

    python tools/same_results.py                        # every case
    python tools/same_results.py sd1 full               # these alone
    python tools/same_results.py --against HEAD~3 lora  # another commit than the usual one
    python tools/same_results.py --list                 # names of the cases

Each case is a run of the main command: class images, a few steps, samples, export. Compared are the
arrays of all exported weight files and the pixels of class images and samples. Settings that are
absent from the older tree are not written in a case. Both trees run the weights and photos that
this one ships; what only rounds otherwise since the older one is undone here (`UNDONE`). The
results of a commit are kept in `--keep` (default: the user's cache folder), so that only this
tree's runs are repeated. Models of Stable Diffusion and DeepFloyd IF are made by PyTorch diffusers
(extra `parity`). Exit status 1 means that something differs and is not in `MEANT`.
"""

import argparse
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
PARENT = "64a2bab"  # the last commit before stages were cut into four parts


class Meant(NamedTuple):
    """Differences that are meant: regex of case and of array or picture, how large, and why."""

    case: str
    name: str
    limit: float
    reason: str


class Undone(NamedTuple):
    """What a commit changed in rounding alone, and the lines of Python that undo it here."""

    commit: str
    reason: str
    lines: str


UNDONE: tuple[Undone, ...] = (
    Undone(
        "8071578",
        "which convolutions are products on a CPU",
        """
from dreambooth_jax.models import layers, target
def few(x, kernel):
    alone = target.device()[0] == "cpu" and target.parts() == (1, 1)
    return alone and x.shape[1] * x.shape[2] <= 64
assert layers._few_positions_on_cpu
layers._few_positions_on_cpu = few
""",
    ),
)


class Difference(NamedTuple):
    """What differs, in words, and by how much: infinity for what has no counterpart."""

    text: str
    size: float


MEANT: tuple[Meant, ...] = (
    Meant("lora", r"export/|samples/", 1e-3, "LoRA is computed beside the product: other rounding"),
)

_TINY = (
    "prior.num_images=2",
    "prior.batch_size=2",
    "sample.batch_size=2",
    "sample.prompts=('a {subject}', 'a {class_noun}')",
    "train.num_steps=3",
    "train.batch_size=2",
    "train.sample_every=2",
    "train.held_out_every=0",
    "optim.learning_rate=0.001",
    "subject.identifier=zib",
    "sampler.guidance_scale=2.0",
    "export.dtype=float32",
)
_BASE = ("stages=('base',)",)
_LATENT = ("upscaler_model=", *_BASE, "sampler.name=ddim", "train.held_out_every=2")
# Name -> folder of the models, settings; PHOTOS is a folder of noise.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "full": ("embedded", ("train.accumulate=2", "subject.crops=2", "subject.flip=True")),
    "lora": ("embedded", (*_BASE, "adapt.name=lora", "adapt.rank=2", "train.ema_decay=0.5")),
    "inversion": ("embedded", (*_BASE, "adapt.name=textual_inversion", "adapt.num_vectors=2")),
    "pivotal": (
        "embedded",
        (*_BASE, "adapt.name=pivotal", "adapt.inversion_steps=1", "train.text_encoder=True"),
    ),
    "several": ("embedded", (*_BASE, "subject.others=(('PHOTOS', 'toy', 'auto'),)")),
    "prediction": ("embedded", (*_BASE, "prior.kind=prediction", "loss.min_snr_gamma=5.0")),
    "sd1": ("sd1", (*_LATENT, "optim.name=adamw8bit", "export.single_file=True")),
    "sd2": ("sd2", (*_LATENT, "loss.zero_terminal_snr=True", "sampler.name=dpmpp_2m")),
    "sdxl": (
        "sdxl",
        (*_LATENT, "train.text_encoder=True", "subject.crops=2", "export.single_file=True"),
    ),
    "if": ("if", ("loss.learned_variance=fixed", "upscaler.num_steps=2")),
}
DONE = "same_results_done"  # of a finished case: its command line
_PATHS = ("export/**/*.safetensors", "prior/**/*.png", "samples/*/*.png")


def flags(name: str, models: Path, workdir: Path) -> list[str]:
    """Returns the command line of a case."""
    folder, settings = CASES[name]
    written = dict(line.split("=", 1) for line in _TINY)
    if folder in ("if", "embedded"):
        written |= {f"{x}_model": str(models / folder / x) for x in ("base", "upscaler")}
    else:
        written["base_model"] = str(models / folder)
    written["subject.images"] = str(models / "embedded" / "subject")
    written |= dict(line.split("=", 1) for line in settings)
    photos = str(models / "photos")
    settings = tuple(
        f"--config.{key}={value.replace('PHOTOS', photos)}" for key, value in written.items()
    )
    return ["--config=configs/imagen_like.py:smoke", f"--workdir={workdir}", *settings]


def make_models(folder: Path) -> None:
    """Writes the models that are not there yet."""
    support = str(ROOT / "tests" / "support")
    for path in (str(ROOT), support):
        sys.path.insert(0, path)
    last = folder / "photos" / "2.png"
    if not last.is_file() or not (folder / "embedded").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        import latents
        import torch_cascades

        for variant in ("sd1", "sd2", "sdxl"):
            latents.make(folder / variant, variant)
        for kind in ("base", "upscaler"):
            torch_cascades.make(folder / "if" / kind, kind)
        for part in ("base", "upscaler", "subject"):
            shutil.copytree(ROOT / "dreambooth_jax" / "assets" / part, folder / "embedded" / part)
        (folder / "photos").mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
        for k, pixels in enumerate(noise):
            Image.fromarray(pixels).save(folder / "photos" / f"{k}.png")


def undone_since(commit: str) -> tuple[Undone, ...]:
    """Returns what was changed after a commit and is undone in this tree's runs."""
    ask = ["git", "merge-base", "--is-ancestor"]
    return tuple(
        each
        for each in UNDONE
        if subprocess.run([*ask, each.commit, commit], cwd=ROOT).returncode == 1
    )


def run(name: str, tree: Path, models: Path, workdir: Path, undone: Sequence[Undone] = ()) -> float:
    """Runs a case with the package of `tree`; returns its seconds.

    Raises:
      SystemExit: the run failed; its last lines are printed.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    xla = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        # As in tests/conftest.py: what takes time in such runs is LLVM's optimizer.
        "XLA_FLAGS": f"{xla} --xla_backend_optimization_level=0".strip(),
    }
    lines = "".join(each.lines for each in undone)
    start = "import runpy\nrunpy.run_module('dreambooth_jax.main', run_name='__main__')"
    command = [sys.executable, "-c", lines + start, *flags(name, models, workdir)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stderr[-3000:]}\n{name}: failed in {tree}.")
    (workdir / DONE).write_text(shlex.join(flags(name, models, workdir)))
    return time.monotonic() - began


def at_commit(commit: str, folder: Path) -> Path:
    """Unpacks the tree of a commit into `folder`, once; returns it."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        archive = subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
    return folder


def contents(workdir: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of all exported files and the pixels of all pictures, by name.

    Folders below `samples` with a digest in their name are left out: it depends on settings alone.
    """
    found: dict[str, np.ndarray] = {}
    for file in sorted(path for pattern in _PATHS for path in workdir.glob(pattern)):
        name = file.relative_to(workdir).as_posix()
        if file.suffix == ".png":
            if not re.search(r"-[0-9a-f]{8}/", name):
                found[name] = np.asarray(Image.open(file))
        else:
            found |= {f"{name}: {key}": array for key, array in load_file(file).items()}
    return found


def differences(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, Difference]:
    """Returns what differs, by name: absent, another shape or dtype, or the largest difference."""
    told = dict.fromkeys(old.keys() - new.keys(), Difference("only before", math.inf))
    told |= dict.fromkeys(new.keys() - old.keys(), Difference("only now", math.inf))
    for name in old.keys() & new.keys():
        a, b = old[name], new[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            text = f"{a.dtype}{list(a.shape)} is now {b.dtype}{list(b.shape)}"
            told[name] = Difference(text, math.inf)
        elif a.tobytes() != b.tobytes():
            gap = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
            told[name] = Difference(f"differs by up to {gap:.3g}", gap)
    return dict(sorted(told.items()))


def explained(case: str, name: str, found: Difference) -> Meant | None:
    """Returns what `MEANT` says of a difference, if it does."""
    for meant in MEANT:
        named = re.search(meant.case, case) and re.search(meant.name, name)
        if named and found.size <= meant.limit:
            return meant
    return None


def compare(case: str, before: Path, now: Path) -> bool:
    """Prints the verdict on one case; returns whether all is equal or meant."""
    old, new = contents(before), contents(now)
    told = differences(old, new)
    meant = {name: explained(case, name, found) for name, found in told.items()}
    left = {name: found for name, found in told.items() if meant[name] is None}
    weights = sum(".safetensors" in name for name in old)
    counted = f"{weights} arrays, {len(old) - weights} pictures"
    if not old:
        print(f"{case}: nothing to compare in {before}")
        return False
    if not told:
        print(f"{case}: equal bit for bit ({counted})")
        return True
    print(f"{case}: {len(told)} of {len(old.keys() | new.keys())} differ ({counted})")
    for name, found in list(left.items())[:10]:
        print(f"  {name}: {found.text}")
    for each in MEANT:
        sizes = [told[name].size for name, reason in meant.items() if reason is each]
        if sizes:
            print(f"  {len(sizes)} meant, by up to {max(sizes):.3g}: {each.reason}")
    return not left


def main() -> None:
    """Runs what is asked for; exits with 1 where a difference is not meant."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="names of cases; all without any")
    parser.add_argument("--against", default=PARENT, help="the commit to compare with")
    parser.add_argument("--keep", type=Path, default=cache / "dreambooth_jax" / "same_results")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    asked = parser.parse_args()
    if asked.list:
        sys.exit("\n".join(f"{name}: {' '.join(s)}" for name, (_, s) in CASES.items()))
    if unknown := set(asked.cases) - CASES.keys():
        sys.exit(f"{', '.join(sorted(unknown))}: no such case. Known: {', '.join(CASES)}.")
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", asked.against],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    models, here = asked.keep / "models", asked.keep / "now" / ROOT.name
    make_models(models)
    tree = at_commit(commit, asked.keep / commit / "tree")
    undone = undone_since(commit)
    for each in undone:
        print(f"undone here: {each.reason} (changed by {each.commit})")
    fine = True
    for case in asked.cases or CASES:
        before = asked.keep / commit / case
        done = before / DONE
        if not done.is_file() or done.read_text() != shlex.join(flags(case, models, before)):
            print(f"{case}: {commit}, {run(case, tree, models, before):.0f} s", flush=True)
        print(
            f"{case}: this tree, {run(case, ROOT, models, here / case, undone):.0f} s", flush=True
        )
        fine &= compare(case, before, here / case)
        sys.stdout.flush()
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
