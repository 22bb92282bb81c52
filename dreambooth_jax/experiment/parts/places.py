"""The places of a drawn scene and its edit outside of which the two stay the same (local blend)."""

from collections.abc import Sequence

import numpy as np

from dreambooth_jax import regions
from dreambooth_jax.config import Plan
from dreambooth_jax.data import canvas
from dreambooth_jax.experiment.parts import pairs
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.grids import seed_of
from dreambooth_jax.experiment.parts.texts import Weights

_POOLED = 16  # cells along a side of the maps that are pooled by their neighbours


class Places:
    """Finds where a scene and its edit show what their prompts differ in.

    Hertz et al. 2022 average the attention that words get over the steps so far. Here a first
    drawing is made, and both of its pictures are asked with noise (`regions`): so the mask is known
    before the second drawing, may come from the difference of the noise that the prompts read, and
    can be looked at.
    """

    def __init__(self, plan: Plan, painter: Painter):
        self.plan, self.painter = plan, painter
        self.stage, mesh = painter.model.stages["base"], painter.model.mesh
        steps = plan.stages["base"].sampler.num_steps
        self.finder = regions.Finder(self.stage, plan.edit.local_blend, num_steps=steps, mesh=mesh)
        self.seeds = [seed_of(plan.seed, k) for k in range(regions.NOISES)]

    def mask(self, weights: Weights, prompts: Sequence[str], known: np.ndarray) -> np.ndarray:
        """The cells bool `[H,W]` that show it in the scene, in its edit, or in both.

        prompts, known: of the scene and of its edit; x0 `[2,H,W,C]`.
        """
        by_kind = {"word": self._words, "difference": self._difference}
        found = by_kind[self.plan.edit.local_blend](weights, prompts, known)
        return canvas.grown(found, max(1, round(max(found.shape) / _POOLED)))

    def _words(self, weights: Weights, prompts: Sequence[str], known: np.ndarray) -> np.ndarray:
        """The cells in which either of the two shows its words."""
        text = self.painter.texts(weights)["base"]
        columns = pairs.columns(self.plan, self.stage, prompts[1], self.painter.words)
        found = np.zeros(known.shape[1:3], bool)
        for row, x0, own in zip(text.rows(prompts), known, columns, strict=True):
            if own.any():
                found |= self.finder.mask(
                    weights["base"],
                    text.table,
                    x0,
                    {"prompt": int(row)},
                    seeds=self.seeds,
                    columns=own,
                )
        return found

    def _difference(
        self, weights: Weights, prompts: Sequence[str], known: np.ndarray
    ) -> np.ndarray:
        """The cells in which the prompts differ, by both pictures: one unchanged marks noise."""
        text = self.painter.texts(weights)["base"]
        rows = dict(zip(("source", "prompt"), map(int, text.rows(prompts)), strict=True))
        maps = [
            self.finder.map(weights["base"], text.table, x0, rows, seeds=self.seeds) for x0 in known
        ]
        return regions.marked(np.mean(maps, 0), "difference")
