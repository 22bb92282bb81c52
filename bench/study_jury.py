"""The study's judges: what the pictures of one trial are worth, grid by grid.

Not a command: `study.py` has what is found here in each trial's folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import trials
from embedded_base import Judge, Real
from embedded_words import WORDS
from material import prepare
from nouns import PLACES
from study_prompts import APPLICATIONS, OTHER_NOUNS, application

from dreambooth_jax.evaluate import encoders, measures, scores
from dreambooth_jax.evaluate.pictures import Pictures

FILE = "study.json"  # in a trial's folder
SUBJECT, PROMPT, PRES, DIV = "subject", "prompt", "PRES", "DIV"
APPLICATION, DRIFT = "application", "drift"
_OF_SCORES = {"subject_similarity": SUBJECT, "prior_similarity": PRES, "diversity": DIV}
# By grid, "before", "base-000060", …, "after", and "photos"; by measure.
Worth = dict[str, dict[str, float]]


class Jury:
    """EfficientNet-Lite0, LPIPS, and the whitened judges of places, styles and materials."""

    def __init__(self, cache: Path) -> None:
        sources = {
            name: encoders.Source("", None, offline=True, batch_size=rows, mesh=None)
            for name, rows in {"efficientnet_lite0": 16, "lpips_alex": 5}.items()  # of one grid
        }
        self._judges = encoders.open_all(list(sources), sources)
        self._features = next(j for j in self._judges if isinstance(j, encoders.Features)).images
        material = prepare(cache)

        def judge(words: tuple[Mapping[str, str], ...]) -> Judge:
            encode = lambda x, label: (self._features(x, label), None)  # noqa: E731 - short
            real = Real.of(material, encode, cache=cache, size=32, words=words)
            known = np.stack([real.features(number) for number in range(2)])
            return Judge.fit(known, axis=2, whiten=True)

        self._places = judge(tuple({"place": place} for place in PLACES))
        self._words = {name: judge(words) for name, words in WORDS.items()}

    def of(self, done: trials.Trial, photos: np.ndarray) -> Worth:
        """A trial's measures, found now or earlier; `photos` are all of its subject."""
        file = done.folder / FILE
        if not file.is_file():
            found: Worth = {}
            for folder in sorted((done.folder / "samples").iterdir()):
                if folder.is_dir():
                    found |= self._grid(folder.name, done, photos)
            scores.replace(file, found)
        return json.loads(file.read_text())

    def _grid(self, name: str, done: trials.Trial, photos: np.ndarray) -> Worth:
        grid, word = done.pictures(name), done.identifier
        of_grid = self._as_in_the_paper(grid, photos, word)
        of_grid[PROMPT] = self._placed(grid, word)
        of_grid[APPLICATION] = self._applied(grid, word)
        of_grid[DRIFT] = self._drift(grid, done.pictures("before"))
        among = of_grid.pop(scores.PHOTOS)
        return {name: of_grid, "photos": {SUBJECT: among}}

    def _as_in_the_paper(
        self, grid: Mapping[str, np.ndarray], photos: np.ndarray, word: str
    ) -> dict[str, float]:
        """Subject, PRES and DIV of the subject's and the class's prompts, and the photos' own."""
        pairs = [
            (prompt, picture)
            for prompt, own in grid.items()
            if prompt not in OTHER_NOUNS and application(prompt, word) is None
            for picture in own
        ]
        drawn = Pictures([picture for _, picture in pairs], [prompt for prompt, _ in pairs])
        rows = scores.judge({"drawn": drawn}, list(photos), self._judges, identifier=word)
        found = {
            _OF_SCORES[row.measure]: row.value
            for row in rows
            if row.pictures == "drawn" and row.measure in _OF_SCORES
        }
        photos_own = next(row.value for row in rows if row.pictures == scores.PHOTOS)
        return found | {scores.PHOTOS: photos_own}

    def _placed(self, grid: Mapping[str, np.ndarray], word: str) -> float:
        """Share of the subject's pictures that are nearest to the place of their prompt, %."""
        placed = [
            (picture, number)
            for prompt, own in grid.items()
            for number, place in enumerate(PLACES)
            if word in prompt.split() and prompt.endswith(place)
            for picture in own
        ]
        seen = self._features([picture for picture, _ in placed], "places")
        return 100 * float(np.mean(self._places.nearest(seen) == [row for _, row in placed]))

    def _applied(self, grid: Mapping[str, np.ndarray], word: str) -> float:
        """Share of pictures that are nearest to the material or style of their prompt, %."""
        right: list[bool] = []
        for prompt, own in grid.items():
            if (key := application(prompt, word)) is None:
                continue
            for name, words in WORDS.items():
                if (asked := APPLICATIONS[key]) in words:
                    nearest = self._words[name].nearest(self._features(list(own), name))
                    right += list(nearest == words.index(asked))
        return 100 * float(np.mean(right))

    def _drift(self, grid: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> float:
        """1 − cosine of other nouns' pictures, here and before training."""
        sides = [
            self._features([picture for prompt in OTHER_NOUNS for picture in side[prompt]], "drift")
            for side in (grid, before)
        ]
        return 1 - float(np.diag(measures.cosine(*sides)).mean())
