"""Scores in parts and in sum: of each prompt of a subject, of all subjects of a benchmark."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dreambooth_jax.evaluate import scores
from dreambooth_jax.evaluate.encoders import Distance, Features, Images
from dreambooth_jax.evaluate.measures import Bootstrap
from dreambooth_jax.evaluate.pictures import Pictures
from dreambooth_jax.evaluate.scores import PHOTOS, Judges, Score


def judge(
    sets: Mapping[str, Pictures],
    photos: Sequence[np.ndarray],
    judges: Judges,
    *,
    identifier: str | None,
    bootstrap: Bootstrap,
) -> tuple[list[Score], dict[str, list[Score]]]:
    """Scores of `scores.judge` over all pictures, and by prompt over those of each.

    Every judge sees every picture once.
    """
    remembering = [_remembering(one) for one in judges]

    def of(chosen: Mapping[str, Pictures]) -> list[Score]:
        return scores.judge(chosen, photos, remembering, identifier=identifier, bootstrap=bootstrap)

    whole, own = of(sets), {}
    for prompt in dict.fromkeys(p for pictures in sets.values() for p in pictures.prompts):
        rows = {
            name: [i for i, other in enumerate(pictures.prompts) if other == prompt]
            for name, pictures in sets.items()
        }
        chosen = {
            name: Pictures([sets[name].images[i] for i in mine], [prompt] * len(mine))
            for name, mine in rows.items()
            if mine
        }
        own[prompt] = [score for score in of(chosen) if score.pictures != PHOTOS]
    return whole, own


def overall(subjects: Mapping[str, Sequence[Score]], bootstrap: Bootstrap) -> list[Score]:
    """The mean over subjects of each of their scores; for the intervals subjects are drawn again.

    `n` is the number of subjects that have the score.
    """
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, own in subjects.items():
        for score in own:
            key = (score.measure, score.encoder, score.pictures)
            found.setdefault(key, {})[name] = score.value
    return [
        Score.of(*key, bootstrap.each(np.array(list(values.values())), list(values)))
        for key, values in found.items()
    ]


def _remembering(one: Features | Distance) -> Features | Distance:
    """The same judge; what it said of a picture, a prompt or a pair is not asked again."""
    # By identity: the pictures are the caller's, and kept here so that no other gets their place.
    seen: dict[object, np.ndarray] = {}
    kept: list[Images] = []

    if isinstance(one, Distance):
        distance = one

        def pairs(first: Images, second: Images, label: str) -> np.ndarray:
            keys = [(id(a), id(b)) for a, b in zip(first, second, strict=True)]
            if new := [i for i, key in enumerate(keys) if key not in seen]:
                made = distance.pairs([first[i] for i in new], [second[i] for i in new], label)
                seen.update(zip((keys[i] for i in new), made, strict=True))
                kept.extend((first, second))
            return np.array([seen[key] for key in keys])

        return dataclasses.replace(one, pairs=pairs)

    features, read = one, one.texts

    def images(pictures: Images, label: str) -> np.ndarray:
        if new := [picture for picture in pictures if id(picture) not in seen]:
            seen.update(zip(map(id, new), features.images(new, label), strict=True))
            kept.append(new)
        return np.stack([seen[id(picture)] for picture in pictures])

    def texts(prompts: Sequence[str], label: str) -> np.ndarray:
        assert read is not None
        if new := [prompt for prompt in prompts if prompt not in seen]:
            seen.update(zip(new, read(new, label), strict=True))
        return np.stack([seen[prompt] for prompt in prompts])

    return dataclasses.replace(one, images=images, texts=None if read is None else texts)
