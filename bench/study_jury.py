"""The study's judges: what the pictures of one trial are worth, grid by grid.

Not a command: `study.py` has what is found here in each trial's folder.
"""

import json
from pathlib import Path

import numpy as np
import trials
from embedded_base import Judge, Real
from material import prepare
from nouns import PLACES

from dreambooth_jax.evaluate import encoders, scores
from dreambooth_jax.evaluate.pictures import Pictures

FILE = "study.json"  # in a trial's folder
SUBJECT, PROMPT, PRES, DIV = "subject", "prompt", "PRES", "DIV"
_OF_SCORES = {"subject_similarity": SUBJECT, "prior_similarity": PRES, "diversity": DIV}
# By grid, "before", "base-000060", …, "after", and "photos"; by measure.
Worth = dict[str, dict[str, float]]


class Jury:
    """EfficientNet-Lite0, LPIPS, and the whitened judge of places."""

    def __init__(self, cache: Path) -> None:
        sources = {
            name: encoders.Source("", None, offline=True, batch_size=rows, mesh=None)
            for name, rows in {"efficientnet_lite0": 16, "lpips_alex": 5}.items()  # of one grid
        }
        self._judges = encoders.open_all(list(sources), sources)
        self._features = next(j for j in self._judges if isinstance(j, encoders.Features)).images
        real = Real.of(
            prepare(cache), lambda x, label: (self._features(x, label), None), cache=cache, size=32
        )
        known = np.stack([real.features(number) for number in range(2)])
        self._places = Judge.fit(known, axis=2, whiten=True)

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
        prompts = [prompt for prompt in grid for _ in grid[prompt]]
        drawn = Pictures([picture for own in grid.values() for picture in own], prompts)
        rows = scores.judge({name: drawn}, list(photos), self._judges, identifier=word)
        of_grid = {
            _OF_SCORES[row.measure]: row.value
            for row in rows
            if row.pictures == name and row.measure in _OF_SCORES
        }
        placed = [
            (picture, number)
            for picture, prompt in zip(drawn.images, prompts, strict=True)
            for number, place in enumerate(PLACES)
            if word in prompt.split() and prompt.endswith(place)
        ]
        seen = self._features([picture for picture, _ in placed], "places")
        right = self._places.ranks(seen, np.array([number for _, number in placed])) == 0
        of_grid[PROMPT] = 100 * float(right.mean())
        among = next(row.value for row in rows if row.pictures == scores.PHOTOS)
        return {name: of_grid, "photos": {SUBJECT: among}}
