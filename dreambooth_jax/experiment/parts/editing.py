"""Draws edits: photos and prompts to rows of the samplers, pictures back into their photos."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from dreambooth_jax import hosts, sharding, tree, turns
from dreambooth_jax.config import Plan
from dreambooth_jax.data import canvas, images
from dreambooth_jax.data.canvas import Canvas
from dreambooth_jax.data.prompts import without_word
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import pairs, scenes
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.grids import is_drawn, save_png, seed_of
from dreambooth_jax.experiment.parts.places import Places
from dreambooth_jax.experiment.parts.scenes import Scene
from dreambooth_jax.experiment.parts.texts import Weights
from dreambooth_jax.pipeline import Stage

# The strength where none is asked for: with a mask, without, with a cut-out, and by inversion.
WITH_MASK, WITHOUT, HARMONISED, INVERTED = 1.0, 0.65, 0.5, 0.64


def strength_of(plan: Plan) -> float:
    """The share of the sampling steps that an edit takes."""
    if plan.edit.strength is not None:
        return plan.edit.strength
    if plan.edit.method != "sdedit":
        return INVERTED if plan.edit.method == pairs.INVERSION else 1.0
    if plan.edit.cutout:
        return HARMONISED
    return WITHOUT if plan.edit.masks == "none" else WITH_MASK


def shape_of(stage: Stage) -> tuple[int, int]:
    """Height and width of a stage's pictures, in pixels."""
    rows, columns, _ = stage.sample_shape
    return rows * stage.codec.factor, columns * stage.codec.factor


@dataclasses.dataclass(frozen=True)
class Edit:
    """One picture to make: photo, prompt and seed, and the name of its file."""

    scene: Scene
    prompt: str
    seed: int
    file: str

    @property
    def mask(self) -> str:
        """The file with the places in which it differs from its scene, of a local blend."""
        return f"{Path(self.file).stem}.mask.png"


def wanted(plan: Plan, found: Sequence[Scene], prompts: Sequence[str]) -> list[Edit]:
    """Every edit, photo by photo and prompt by prompt; seeds are those of the prompt grids.

    A scene that is drawn has a seed of its own, and one edit for each prompt.
    """
    return [
        Edit(scene, prompt, seed_of(plan.seed, k), f"{scene.name}_{p:02d}_{k:02d}.png")
        for n, scene in enumerate(found)
        for p, prompt in enumerate(prompts)
        for k in ([n] if scene.drawn else range(plan.edit.num_images))
    ]


class Editor:
    """The samplers of a `Painter`, with photos that they start from and pixels that they keep.

    With a method other than "sdedit" every edit is drawn beside its source, as a pair of rows.
    """

    def __init__(self, plan: Plan, painter: Painter):
        self.plan, self.painter, self.model = plan, painter, painter.model
        self.strength = strength_of(plan)
        self.shape = shape_of(self.model.stages[self.model.kinds[-1]])
        self.paired = plan.edit.method in (pairs.INVERSION, pairs.DRAWN)
        self.cutout = scenes.cutout(plan)
        self.places = Places(plan, painter) if plan.edit.local_blend != "none" else None
        self._opened: dict[str, Canvas] = {}
        self._encoders: dict[str, Any] = {}

    def about(self) -> dict[str, Any]:
        """The settings that an edit depends on, besides photo, prompt, seed and weights."""
        c = self.plan.edit
        kept = ["method", "masks", "soft", "outside", "grow", "feather", "context"]
        kept += ["source_prompt", "cross_steps", "self_steps", "words"] if self.paired else []
        kept += ["local_blend", "word"] if c.local_blend != "none" else []
        own = {name: getattr(c, name) for name in kept} | {"strength": self.strength}
        if self.cutout is not None:
            own["cutout"] = [scenes.digest(pixels) for pixels in self.cutout]
        return {"edit": own, "samplers": self.painter.about()}

    def folder(self, label: str, edits: Sequence[Edit]) -> Path:
        """A folder of the workdir whose name depends on all that its pictures depend on."""
        given = [
            [edit.file, edit.prompt, edit.seed, edit.scene.sha256, edit.scene.mask_sha256]
            for edit in edits
        ]
        of = json.dumps([given, self.about(), self.model.fingerprints, self.plan.dtype])
        name = f"{label}-{hashlib.sha256(of.encode()).hexdigest()[:8]}"
        return self.painter.workdir.root / "edits" / name

    def canvas(self, scene: Scene) -> Canvas:
        """The photo and mask of a scene; the last one that was asked for is kept."""
        if scene.name not in self._opened:
            self._opened = {scene.name: scene.opened(self.plan, self.shape)}
        return self._opened[scene.name]

    def forget(self) -> None:
        """Opens photos anew: they have other masks now."""
        self._opened = {}

    def draw(self, weights: Weights, edits: Sequence[Edit], folder: Path, *, label: str) -> None:
        """Draws the edits into files of the folder, whole photos; those that are there stay.

        Every sampler call's pictures are written at once, a part of them by each process.
        """
        size = self.painter.rows // 2 if self.paired else self.painter.rows
        calls = [edits[i : i + size] for i in range(0, len(edits), size)]
        left = [call for call in calls if not self._are_there(folder, call)]
        for call in left:
            pictures, masks = self._pictures(weights, call, label)
            sources = pictures[0::2] if self.paired else pictures
            pictures = pictures[1::2] if self.paired else pictures
            for k, edit in enumerate(call):
                if not turns.is_mine(k):
                    continue
                about = self._told(edit, label)
                if masks:
                    places = canvas.cells(masks[k], self.shape)[..., 0].astype(np.uint8) * 255
                    save_png(folder / edit.mask, places, about=about)
                if edit.scene.drawn:
                    of_source = about | {"prompt": self._source(edit)}
                    save_png(folder / edit.scene.source, sources[k], about=of_source)
                    made = pictures[k]
                else:
                    made = self.canvas(edit.scene).finished(pictures[k])
                save_png(folder / edit.file, made, about=about)
        hosts.meet(f"edits {label}")

    def _are_there(self, folder: Path, call: Sequence[Edit]) -> bool:
        files = [(edit.file, edit.prompt, edit.seed) for edit in call]
        files += [
            (edit.scene.source, self._source(edit), edit.seed) for edit in call if edit.scene.drawn
        ]
        if self.places is not None:
            files += [(edit.mask, edit.prompt, edit.seed) for edit in call]
        return is_drawn(folder, files, self.about()["samplers"])

    def _source(self, edit: Edit) -> str:
        return pairs.source_of(self.plan, edit.prompt, self.painter.words)

    def _told(self, edit: Edit, label: str) -> dict[str, Any]:
        """The text of an edit's file."""
        scene = edit.scene
        return {
            "prompt": edit.prompt,
            "seed": edit.seed,
            "weights": label,
            "photo": scene.path.name,
            "photo_sha256": scene.sha256,
            "mask_sha256": scene.mask_sha256,
            "window": None if scene.box is None else scene.box._asdict(),
            **self.about(),
        }

    def _pictures(
        self, weights: Weights, call: Sequence[Edit], label: str
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """uint8 pictures of the last stage: of each edit, or of each source and its edit.

        And, of a local blend, the cells bool `[H,W]` of the base in which each pair differs.
        """
        of_photos = {edit.scene.name: self._of_photo(weights, edit.scene) for edit in call}
        each = [self._rows(edit, of_photos[edit.scene.name]) for edit in call]
        rows = [
            {key: np.concatenate([own[stage][key] for own in each]) for key in each[0][stage]}
            for stage in range(len(self.model.kinds))
        ]
        prompts = [edit.prompt for edit in call]
        seeds = [edit.seed for edit in call]
        if self.paired:
            both = [(self._source(edit), edit.prompt) for edit in call]
            prompts = list(itertools.chain.from_iterable(both))
            seeds = list(np.repeat(seeds, 2))
        cascade = self.painter.cascade(weights, batch_size=self.painter.rows)
        given: dict[str, Any] = {"prompts": prompts, "seeds": seeds, "label": f"edits {label}"}
        given["negative"] = self.plan.sample.negative_prompt
        params = [weights[kind] for kind in self.model.kinds]
        if self.places is None:
            return cascade.draw(params, **given, rows=rows)[-1], []
        base = dataclasses.replace(cascade, samplers=cascade.samplers[:1], texts=cascade.texts[:1])
        everywhere = self._differing(rows, [np.ones((1, 1), bool)] * len(call))
        first = base.draw(params[:1], **given, rows=everywhere[:1])[0]
        masks = []
        for k, edit in enumerate(call):
            x0 = np.stack([self.x0(weights, "base", first[2 * k + side]) for side in (0, 1)])
            masks.append(self.places.mask(weights, both[k], x0))
            share = 100 * masks[-1].mean()
            logging.info("%s: %.1f %% of the scene may change.", edit.file, share)
        return cascade.draw(params, **given, rows=self._differing(rows, masks))[-1], masks

    def _differing(
        self, rows: Sequence[dict[str, np.ndarray]], masks: Sequence[np.ndarray]
    ) -> list[dict[str, np.ndarray]]:
        """The rows of all stages with the cells in which edits differ from their sources."""
        found = []
        for own, stage in zip(rows, self.model.stages.values(), strict=True):
            cells = np.stack([canvas.cells(mask, stage.sample_shape[:2]) for mask in masks])
            found.append(own | {"differ": np.repeat(cells, 2, 0)})
        return found

    def _of_photo(self, weights: Weights, scene: Scene) -> list[dict[str, np.ndarray]]:
        """For each stage x0 of a photo's window, and the cells of its mask."""
        if scene.drawn:
            return [{} for _ in self.model.kinds]
        opened, found = self.canvas(scene), []
        for kind, stage in self.model.stages.items():
            rows: dict[str, np.ndarray] = {}
            masked, follows = opened.inside is not None, self.paired and kind == "base"
            if masked or self.strength < 1 or follows:
                rows["known"] = self.x0(weights, kind, opened.patch(shape_of(stage)))
            if self.cutout is not None and opened.inside is not None:
                begun = canvas.with_cutout(opened.photo, opened.inside, *self.cutout)
                rows["start"] = self.x0(weights, kind, opened.patch(shape_of(stage), begun))
            if opened.amounts is not None:
                rows["amounts"] = opened.shares(stage.sample_shape[:2]) * self.strength
            elif masked:
                rows["mask"] = opened.cells(stage.sample_shape[:2])
            found.append(rows)
        return found

    def _rows(self, edit: Edit, of_photo: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
        """The rows of an edit in each stage, `[1,…]`, or `[2,…]` with its source's before it."""
        found = []
        for (kind, stage), photo in zip(self.model.stages.items(), of_photo, strict=True):
            count = 2 if self.paired else 1
            rows = {key: np.stack([array] * count) for key, array in photo.items()}
            if "known" in rows and self.strength < 1 and "amounts" not in rows:
                rows.setdefault("start", rows["known"])
                rows["strength"] = np.full(count, self.strength, np.float32)
            if self.paired and kind == "base":
                rows |= self._of_pair(stage, edit)
                if not edit.scene.drawn:
                    # The source runs along the photo everywhere, and is what its edit keeps.
                    rows["follow"] = rows.pop("known")
                if "mask" in rows:
                    rows["differ"] = rows.pop("mask")
                if "amounts" in rows:
                    rows["amounts"][0] = 1
            if not {"mask", "amounts"} & rows.keys():
                rows.pop("known", None)
            found.append(rows)
        return found

    def _of_pair(self, stage: Stage, edit: Edit) -> dict[str, np.ndarray]:
        """The attention of an edit that follows its source, where the network can."""
        if not stage.denoiser.attends:
            return {}
        count = self.plan.stages[stage.kind].sampler.num_steps
        first = count - round(count * self.strength)
        return pairs.rows(self.plan, stage, edit.prompt, self.painter.words, first=first)

    def x0(self, weights: Weights, kind: str, picture: np.ndarray) -> np.ndarray:
        """x0 of a uint8 picture: itself, or the mean of its latent."""
        stage, pixels = self.model.stages[kind], images.to_float(picture)
        if not stage.codec.is_latent:
            return pixels
        whole = sharding.replicated(self.model.mesh)
        if kind not in self._encoders:
            self._encoders[kind] = jax.jit(stage.encode_images, out_shardings=whole)
        coder = tree.split(dict(weights[kind]), stage.is_codec)[0]
        mean, _ = self._encoders[kind](coder, sharding.put(pixels[None], whole))
        return sharding.fetch(mean)[0]


def of_class(prompts: Sequence[str], words: Sequence[Words]) -> tuple[str, ...]:
    """The prompts with the class noun alone, which the untouched base knows."""
    plain = tuple(prompts)
    for each in words:
        plain = tuple(without_word(prompt, each.identifier) for prompt in plain)
    return plain


def prompts_in(edits: Sequence[Edit]) -> tuple[str, ...]:
    """Each prompt once."""
    return tuple(dict.fromkeys(edit.prompt for edit in edits))


def by_scene(edits: Sequence[Edit]) -> list[tuple[Scene, list[Edit]]]:
    """The edits of each photo."""
    groups = itertools.groupby(edits, key=lambda edit: edit.scene)
    return [(scene, list(own)) for scene, own in groups]
