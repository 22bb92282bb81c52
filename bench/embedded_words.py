"""How truly the embedded base draws words of style and material, and whether "a bird" is a bird.

    python bench/embedded_words.py CACHE --model OUT --base_only --images 2

Drawn pictures are judged as in `embedded_base.py`, by EfficientNet-Lite0's features and a judge
fitted on real composites (whitened): a picture of "a gold fox" by whether it is nearest to
composites in gold, among all materials and things as they are; "a bird", as class images are drawn,
by whether it is nearest to composites of birds, among all nouns, before the studio's backdrop. Real
composites that the judge never saw are judged beside them: no generator can reach more.

`--images` is the number of pictures of each noun and word, `--birds` that of "a bird".
"""

from collections.abc import Mapping, Sequence

import numpy as np
from embedded_base import Judge, Real, arguments, draw, share
from material import prepare
from nouns import MATERIALS, NOUNS, STYLES, Wording

from dreambooth_jax.evaluate import encoder

# What is judged -> the words beside a noun that are told apart; the first are none.
WORDS: dict[str, tuple[Mapping[str, str], ...]] = {
    "style": ({}, *({"style": name} for name in STYLES)),
    "material": ({}, *({"surface": name} for name in MATERIALS)),
}
AIM = {"style": 60, "material": 60, "a bird": 75}


def label(words: Mapping[str, str]) -> str:
    """The word itself, "none" where there is none."""
    return next(iter(words.values()), "none")


def pairs(words: Sequence[Mapping[str, str]], *, images: int, every: int = 1) -> np.ndarray:
    """int `[N,2]`: rows of noun and word, each noun with each word but the first, `images` times.

    every: 3 takes each third noun alone.

    A thing as it is stands among the answers, and is not asked for.
    """
    of_each = [(a, b) for a in range(0, len(NOUNS), every) for b in range(1, len(words))]
    return np.tile(np.array(of_each), (images, 1))


def line(name: str, drawn: np.ndarray, real: np.ndarray, classes: int) -> str:
    """One row of the table: chance, real composites, drawn pictures, aim."""
    cells = (f"{100 / classes:.0f}", share(real), share(drawn), str(AIM[name]))
    return f"  {name:12}" + "".join(f"{cell:>18}" for cell in cells)


def by_class(names: Sequence[str], truth: np.ndarray, nearest: np.ndarray) -> str:
    """Shares of each word, and the word that it is taken for most often where it is missed."""
    lines = []
    for number, name in enumerate(names):
        if (mine := truth == number).any():
            missed = nearest[mine & (nearest != number)]
            taken = f", taken for {names[np.bincount(missed).argmax()]}" if len(missed) else ""
            lines.append(f"    {name:14}{100 * (nearest[mine] == number).mean():4.0f} %{taken}")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--birds", type=int, default=64, help='pictures of "a bird"')
    parser.add_argument("--every", type=int, default=1, help="3: styles of each third noun alone")
    args = parser.parse_args()
    material, encode = prepare(args.cache), encoder.Encoder()
    nouns = list(NOUNS)
    rows, details = [], []
    about = ""
    for name, words in {**WORDS, "a bird": ({},)}.items():
        bird = name == "a bird"
        truth = pairs(words, images=args.images, every=args.every)
        if bird:
            truth = np.tile([[nouns.index("bird"), 0]], (args.birds, 1))
        pictures, about = draw(args, [Wording(nouns[a], **words[b]).caption for a, b in truth])
        real = Real.of(material, encode, cache=args.cache, size=pictures.shape[1], words=words)
        known = np.stack([real.features(number) for number in range(args.references)])
        fresh = real.features(args.references)
        axis = 1 if bird else 2
        judge = Judge.fit(known, axis=axis, whiten=True)
        asked = np.indices(fresh.shape[:2])[axis - 1].ravel()
        right = judge.nearest(fresh.reshape(len(asked), -1)) == asked
        nearest = judge.nearest(encode(pictures, label=name)[0])
        wanted = truth[:, axis - 1]
        rows.append(line(name, nearest == wanted, right, len(nouns) if bird else len(words)))
        names = nouns if bird else [label(word) for word in words]
        details.append(f"  {name}\n{by_class(names, wanted, nearest)}")
    print(f"\nembedded base, {args.model}\n{about}")
    columns = ("chance, %", "real, %", "drawn, %", "aim, %")
    print(f"  {'':12}" + "".join(f"{column:>18}" for column in columns))
    print("\n".join([*rows, *details]))


if __name__ == "__main__":
    main()
