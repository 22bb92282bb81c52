"""The scores of a set of pictures: every measure by every judge, as rows of a file and a table.

Measures of Ruiz et al. 2022, section 4.1 and appendix, and one of our own, the drift. Where the
paper is silent: prompts are compared without the identifier, DIV is a mean of LPIPS distances.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax import files, untrusted
from dreambooth_jax.data.prompts import without_word
from dreambooth_jax.evaluate import measures
from dreambooth_jax.evaluate.encoders import KINDS, Distance, Features
from dreambooth_jax.evaluate.pictures import Pictures

SCHEMA = 1  # of the file; goes up when a reader of the old one would misread it
UNTOUCHED, TUNED, PHOTOS = "untouched", "tuned", "photos"
Judges = Sequence[Features | Distance]


class Measure(NamedTuple):
    """A title, which way is better, and what is averaged."""

    title: str
    better: str
    meaning: str


MEASURES = {
    "subject_similarity": Measure(
        "subject",
        "higher",
        "cosine of features, pictures of the subject's prompts × photos; of photos: between them",
    ),
    "prompt_similarity": Measure(
        "prompt",
        "higher",
        "cosine of features, picture and its prompt without the identifier",
    ),
    "prior_similarity": Measure(
        "class pictures like the subject",
        "lower",
        "cosine of features, pictures of prompts without the identifier × photos",
    ),
    "diversity": Measure(
        "diversity",
        "higher",
        "perceptual distance of two pictures of the same prompt, which names the subject",
    ),
    "drift_similarity": Measure(
        "class pictures before and after, similarity",
        "higher",
        "cosine of features, untouched and tuned picture of a prompt without the identifier, "
        "same seed",
    ),
    "drift_distance": Measure(
        "class pictures before and after, distance",
        "lower",
        "perceptual distance, untouched and tuned picture of a prompt without the identifier, "
        "same seed",
    ),
}
# What the paper calls a measure, which is by one encoder each: others have no claim to the name.
PAPER = {
    ("subject_similarity", "dino_vits16"): "DINO",
    ("subject_similarity", "clip_vitb32"): "CLIP-I",
    ("subject_similarity", "clip_vitl14"): "CLIP-I",
    ("prompt_similarity", "clip_vitb32"): "CLIP-T",
    ("prompt_similarity", "clip_vitl14"): "CLIP-T",
    ("prior_similarity", "dino_vits16"): "PRES",
    ("diversity", "lpips_alex"): "DIV",
    ("diversity", "lpips_vgg"): "DIV",
}


@dataclasses.dataclass(frozen=True)
class Score:
    """One number: a measure, by an encoder, of a set of pictures, with its 95 % interval.

    n: pairs, or pictures, that it is the mean of.
    """

    measure: str
    encoder: str
    pictures: str
    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, measure: str, encoder: str, pictures: str, found: measures.Estimate) -> "Score":
        """The score that an estimate gives."""
        return cls(measure, encoder, pictures, *found)


def judge(
    sets: Mapping[str, Pictures],
    photos: Sequence[np.ndarray],
    judges: Judges,
    *,
    identifier: str | None,
    bootstrap: measures.Bootstrap | None = None,
) -> list[Score]:
    """All scores that these sets of pictures and these judges allow.

    sets: by name; `UNTOUCHED` and `TUNED`, where both are there, have the same prompts and seeds in
      the same order, and give the drift.
    identifier: the subject's word; None when it is not known, and every picture is the subject's.
    """
    bootstrap = bootstrap or measures.Bootstrap()
    found: list[Score] = []
    for one in judges:
        if isinstance(one, Features):
            found += _by_features(one, sets, photos, identifier, bootstrap)
        else:
            found += _by_distance(one, sets, identifier, bootstrap)
    order = list(MEASURES)
    return sorted(found, key=lambda score: order.index(score.measure))


def _by_features(
    one: Features,
    sets: Mapping[str, Pictures],
    photos: Sequence[np.ndarray],
    identifier: str | None,
    bootstrap: measures.Bootstrap,
) -> list[Score]:
    title = KINDS[one.name].title
    real = one.images(photos, f"{title}, photos")
    features = {name: one.images(s.images, f"{title}, {name}") for name, s in sets.items()}
    rows: list[tuple[str, str, measures.Estimate]] = []
    for name, pictures in sets.items():
        for measure, present in (("subject_similarity", True), ("prior_similarity", False)):
            if chosen := pictures.rows(identifier, present=present):
                similarity = measures.cosine(features[name][chosen], real)
                groups = [pictures.prompts[i] for i in chosen]
                rows.append((measure, name, bootstrap.between(similarity, groups)))
        if one.texts is not None:
            rows += _of_prompts(one, name, pictures, features[name], identifier, bootstrap)
    if len(real) > 1:
        among = bootstrap.within(measures.cosine(real, real), [0] * len(real))
        rows.append(("subject_similarity", PHOTOS, among))
    if drifting := _drifting(sets, identifier):
        before, after = features[UNTOUCHED][drifting], features[TUNED][drifting]
        groups = [sets[TUNED].prompts[i] for i in drifting]
        similarity = np.diag(measures.cosine(before, after))
        rows.append(("drift_similarity", TUNED, bootstrap.each(similarity, groups)))
    return [Score.of(measure, one.name, name, estimate) for measure, name, estimate in rows]


def _of_prompts(
    one: Features,
    name: str,
    pictures: Pictures,
    features: np.ndarray,
    identifier: str | None,
    bootstrap: measures.Bootstrap,
) -> list[tuple[str, str, measures.Estimate]]:
    """CLIP-T: every picture of the subject with its own prompt."""
    assert one.texts is not None
    chosen = [i for i in pictures.rows(identifier) if pictures.prompts[i]]
    if not chosen:
        return []
    plain = [without_word(pictures.prompts[i], identifier) for i in chosen]
    unique = list(dict.fromkeys(plain))
    text = one.texts(unique, f"{KINDS[one.name].title}, prompts")
    similarity = measures.cosine(features[chosen], text)
    own = similarity[np.arange(len(chosen)), [unique.index(prompt) for prompt in plain]]
    return [("prompt_similarity", name, bootstrap.each(own, plain))]


def _by_distance(
    one: Distance,
    sets: Mapping[str, Pictures],
    identifier: str | None,
    bootstrap: measures.Bootstrap,
) -> list[Score]:
    title = KINDS[one.name].title
    rows: list[tuple[str, str, measures.Estimate]] = []
    for name, pictures in sets.items():
        chosen = [i for i in pictures.rows(identifier) if pictures.prompts[i]]
        groups = [pictures.prompts[i] for i in chosen]
        pairs = [
            (a, b)
            for a, b in itertools.combinations(range(len(chosen)), 2)
            if groups[a] == groups[b]
        ]
        if not pairs:
            continue
        first = [pictures.images[chosen[a]] for a, _ in pairs]
        second = [pictures.images[chosen[b]] for _, b in pairs]
        square = np.zeros((len(chosen), len(chosen)))
        a, b = np.array(pairs).T
        square[a, b] = square[b, a] = one.pairs(first, second, f"{title}, {name}")
        rows.append(("diversity", name, bootstrap.within(square, groups)))
    if drifting := _drifting(sets, identifier):
        before = [sets[UNTOUCHED].images[i] for i in drifting]
        after = [sets[TUNED].images[i] for i in drifting]
        groups = [sets[TUNED].prompts[i] for i in drifting]
        distance = one.pairs(before, after, f"{title}, drift")
        rows.append(("drift_distance", TUNED, bootstrap.each(distance, groups)))
    return [Score.of(measure, one.name, name, estimate) for measure, name, estimate in rows]


def _drifting(sets: Mapping[str, Pictures], identifier: str | None) -> list[int]:
    """Class pictures that the untouched model and the tuned one drew from the same seeds."""
    if UNTOUCHED not in sets or TUNED not in sets:
        return []
    if list(sets[UNTOUCHED].prompts) != list(sets[TUNED].prompts):
        raise ValueError("drift: the untouched and the tuned pictures have different prompts.")
    return sets[TUNED].rows(identifier, present=False)


def write(
    file: Path,
    scores: Sequence[Score],
    about: Mapping[str, Any],
    prompts: Mapping[str, Sequence[Score]] | None = None,
) -> Path:
    """Writes `scores.json`: `{"schema", "measures", "about", "scores", "prompts"}`.

    `scores` is a list of `{"measure", "encoder", "pictures", "value", "low", "high", "n"}`;
    "measures" says what each measure is, and which way is better; "prompts" has such a list for the
    pictures of each prompt.
    """
    by_prompt = {
        prompt: [dataclasses.asdict(score) for score in own]
        for prompt, own in (prompts or {}).items()
    }
    content = {
        "schema": SCHEMA,
        "measures": explained(scores),
        "about": dict(about),
        "scores": [dataclasses.asdict(score) for score in scores],
        "prompts": by_prompt,
    }
    return replace(file, content)


def explained(scores: Sequence[Score]) -> dict[str, dict[str, str]]:
    """Explains each measure among these scores."""
    return {score.measure: MEASURES[score.measure]._asdict() for score in scores}


def replace(file: Path, content: Any) -> Path:
    """Writes JSON whole or not at all."""
    files.write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return file


def read(file: Path) -> list[Score]:
    """The scores of a file that `write` made.

    Raises:
      ValueError: it has another schema.
    """
    content = untrusted.json_object(files.at(file))
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{file}: schema {content.get('schema')!r}, expected {SCHEMA}.")
    with untrusted.values(file):
        return [Score(**row) for row in content["scores"]]


HEADER = ("measure", "encoder", "pictures", "mean", "95 % interval", "of")


def rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """The scores as cells of a table with the columns of `HEADER`."""

    def title(score: Score) -> str:
        measure, paper = MEASURES[score.measure], PAPER.get((score.measure, score.encoder))
        name = f"{measure.title} ({paper})" if paper else measure.title
        return f"{name} {'↑' if measure.better == 'higher' else '↓'}"

    return [
        (
            title(s),
            KINDS[s.encoder].title,
            s.pictures,
            f"{s.value:.3f}",
            f"{s.low:.3f} to {s.high:.3f}",
            str(s.n),
        )
        for s in scores
    ]


def as_table(scores: Sequence[Score]) -> str:
    """The same as text with aligned columns."""
    cells = [HEADER, *rows(scores)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
