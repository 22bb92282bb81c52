"""The page, the labelled grid and the scores of a folder of edits."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dreambooth_jax import __version__, report
from dreambooth_jax.config import Plan
from dreambooth_jax.data import canvas, images
from dreambooth_jax.data.audit import AuditError
from dreambooth_jax.data.canvas import Canvas
from dreambooth_jax.data.prompts import without_word
from dreambooth_jax.evaluate import scores
from dreambooth_jax.evaluate.measures import Bootstrap
from dreambooth_jax.evaluate.pictures import Pictures
from dreambooth_jax.evaluate.scores import PHOTOS, UNTOUCHED, Score
from dreambooth_jax.experiment.parts.editing import Edit, Editor, by_scene, prompts_in
from dreambooth_jax.experiment.parts.grids import save_png
from dreambooth_jax.experiment.parts.scenes import Scene
from dreambooth_jax.experiment.results import judging

EDITS, BEFORE = "edits", "before"  # sets of pictures: the edits; the same place in the photo


@dataclasses.dataclass(frozen=True)
class Made:
    """The edits of one photo, from the files: uint8 whole photos, and what they are compared with.

    untouched: those of the untouched base, in the same order, or none.
    places: of a local blend, bool `[H,W]` of each edit: where it differs from its scene.
    """

    scene: Scene
    canvas: Canvas
    edits: Sequence[Edit]
    pictures: Sequence[np.ndarray]
    untouched: Sequence[np.ndarray]
    places: Sequence[np.ndarray] = ()

    @property
    def outside(self) -> int | None:
        """The largest difference from the photo outside the mask, in grey levels; None without."""
        masks = self.places
        if self.canvas.inside is not None:
            masks = [self.canvas.inside] * len(self.pictures)
        photo = self.canvas.photo.astype(int)
        differences = [
            int(np.abs(made - photo)[~mask].max(initial=0))
            for made, mask in zip(self.pictures, masks, strict=bool(masks))
        ]
        return max(differences, default=None)

    def psnr(self, shape: tuple[int, int]) -> float:
        """Mean peak signal-to-noise ratio of the windows and that of the photo, in decibels."""
        photo = self.canvas.patch(shape).astype(np.float64)
        errors = [
            np.square(self.canvas.patch(shape, made).astype(np.float64) - photo).mean()
            for made in self.pictures
        ]
        return float(np.mean([10 * np.log10(255**2 / max(error, 1e-10)) for error in errors]))


def read(editor: Editor, edits: Sequence[Edit], folder: Path, untouched: Path | None) -> list[Made]:
    """The edits of every photo as the files have them."""
    found = []
    for scene, own in by_scene(edits):
        if scene.drawn:
            scene = dataclasses.replace(scene, path=folder / scene.source)
        made = [images.read(folder / edit.file) for edit in own]
        plain = [images.read(untouched / edit.file) for edit in own] if untouched else []
        places = []
        if editor.places is not None:
            places = [images.read(folder / edit.mask)[..., 0] > 0 for edit in own]
        opened = scene.opened(editor.plan, editor.shape)
        found.append(Made(scene, opened, own, made, plain, places))
    return found


def judge(plan: Plan, made: Sequence[Made], identifier: str, mesh: Any) -> dict[str, list[Score]]:
    """Scores of the edits of each photo by name, and of all under ""; none without encoders.

    Compared is the square around the mask: with the subject's photos, and with the prompt without
    the identifier. `BEFORE` is the same square of the photo as it was.
    """
    names = judging.at_end(plan)
    try:
        photos = judging.photos_of(plan)[0] if names else []
    except (AuditError, OSError) as error:
        logging.warning("The edits are not scored, the subject's photos are missing: %s", error)
        return {}
    if not names:
        return {}
    judges = judging.opened(plan, names, mesh)
    bootstrap = Bootstrap(plan.evaluate.resamples, plan.seed)
    found = {}
    groups: dict[str, Sequence[Made]] = {"": made}
    groups |= {one.scene.name: [one] for one in made} if len(made) > 1 else {}
    for name, some in groups.items():
        told = scores.judge(
            _sets(some, identifier), photos, judges, identifier=None, bootstrap=bootstrap
        )
        found[name] = [score for score in told if score.pictures != PHOTOS or not name]
    logging.info("Scores of the edits:\n%s", scores.as_table(found[""]))
    return found


def _sets(made: Sequence[Made], identifier: str) -> dict[str, Pictures]:
    """The squares around the masks, by set."""
    prompts = [without_word(edit.prompt, identifier) for one in made for edit in one.edits]
    squares: dict[str, list[np.ndarray]] = {BEFORE: [], EDITS: [], UNTOUCHED: []}
    for one in made:
        squares[BEFORE] += [one.canvas.around()] * len(one.edits)
        squares[EDITS] += [one.canvas.around(picture) for picture in one.pictures]
        squares[UNTOUCHED] += [one.canvas.around(picture) for picture in one.untouched]
    return {name: Pictures(some, prompts) for name, some in squares.items() if some}


def write(
    editor: Editor,
    made: Sequence[Made],
    found: Mapping[str, Sequence[Score]],
    folder: Path,
    *,
    label: str,
) -> Path:
    """Writes masks, upright photos, `grid.png`, `edits.json` and, last, `report.html`."""
    for one in made:
        stem, about = one.scene.name, {"photo": one.scene.path.name}
        if not one.scene.drawn:
            save_png(folder / one.scene.source, one.canvas.photo, about=about)
        if one.canvas.inside is not None:
            mask = np.where(one.canvas.inside, 255, 0).astype(np.uint8)
            save_png(folder / f"{stem}.mask.png", mask, about=about)
    shape = editor.shape
    rows = {
        f"{one.scene.name}: {prompt}": [
            one.canvas.shown(shape),
            *(
                one.canvas.patch(shape, picture)
                for edit, picture in zip(one.edits, one.pictures, strict=True)
                if edit.prompt == prompt
            ),
        ]
        for one in made
        for prompt in prompts_in(one.edits)
    }
    save_png(folder / "grid.png", report.sheet(rows), about={"weights": label, **editor.about()})
    content = {
        "weights": label,
        **editor.about(),
        "photos": [_record(one, found.get(one.scene.name, ()), shape) for one in made],
        "measures": scores.explained(found.get("", ())),
        "scores": [dataclasses.asdict(score) for score in found.get("", ())],
    }
    scores.replace(folder / "edits.json", content)
    _page(editor, made, found, folder, label=label)
    return folder / "report.html"


def _record(one: Made, own: Sequence[Score], shape: tuple[int, int]) -> dict[str, Any]:
    """Returns the record of a photo in `edits.json`."""
    box = one.scene.box
    return {
        "photo": str(one.scene.path),
        "sha256": one.scene.sha256,
        "mask_sha256": one.scene.mask_sha256,
        "window": None if box is None else box._asdict(),
        "edits": [
            {"file": edit.file, "prompt": edit.prompt, "seed": edit.seed} for edit in one.edits
        ],
        "largest_difference_outside": one.outside,
        "psnr_of_window": round(one.psnr(shape), 2),
        "scores": [dataclasses.asdict(score) for score in own],
    }


def _page(
    editor: Editor,
    made: Sequence[Made],
    found: Mapping[str, Sequence[Score]],
    folder: Path,
    *,
    label: str,
) -> None:
    """Writes `report.html`: a section for each photo, then scores and settings."""
    shape, about = editor.shape, editor.about()
    sections: list[report.Section] = []
    for one in made:
        sections.append(_photo(one, shape))
    sections.append(
        report.Table(
            "Scores",
            "The square around the mask (without one the whole picture), compared with the "
            f"subject's photos and with the prompt; {BEFORE!r} is the photo as it was. Means with "
            "95 % bootstrap intervals.",
            rows=scores.rows(found.get("", ())),
            header=scores.HEADER,
        )
    )
    rows = [(name, repr(value)) for name, value in about["edit"].items()]
    rows += [(f"sampler, {name}", repr(value)) for name, value in about["samplers"].items()]
    sections.append(
        report.Table("Settings", "", rows=rows, header=("key", "value"), collapsed=True)
    )
    report.build(
        folder / "report.html",
        title=f"Edits of {len(made)} photo{'s' if len(made) > 1 else ''}",
        subtitle=f"Weights {label}. dreambooth_jax {__version__}.",
        facts=[
            ("photos", str(len(made))),
            ("edits", str(sum(len(one.edits) for one in made))),
            ("strength", f"{editor.strength:g}"),
        ],
        sections=sections,
        highlight=list(editor.painter.identifiers),
    )


def _photo(one: Made, shape: tuple[int, int]) -> report.Comparison:
    """The strip of a photo: source, mask, edits."""
    prompts = prompts_in(one.edits)

    def own(pictures: Sequence[np.ndarray], prompt: str) -> list[np.ndarray]:
        pairs = zip(one.edits, pictures, strict=True)
        return [one.canvas.patch(shape, made) for edit, made in pairs if edit.prompt == prompt]

    masked = one.canvas.inside is not None or bool(one.places)
    columns = ["photo", "mask", "edits"] if masked else ["photo", "edits"]
    cells = []
    for prompt in prompts:
        row = [[one.canvas.patch(shape)], [one.canvas.shown(shape)], own(one.pictures, prompt)]
        if one.places:
            scene = one.canvas.patch(shape)
            row[1] = own([canvas.outlined(scene, mask) for mask in one.places], prompt)
        row = row if masked else [row[0], row[2]]
        cells.append([*row, own(one.untouched, prompt)] if one.untouched else row)
    columns += [f"{UNTOUCHED}, the class noun"] if one.untouched else []
    box, size = one.scene.box, one.canvas.photo.shape
    told = f"{one.scene.path.name}, {size[1]}×{size[0]} pixels"
    if box is not None:
        told += (
            f"; the window is {box.width}×{box.height} at ({box.left}, {box.top}), drawn with "
            f"{shape[1]}×{shape[0]}. Largest difference outside the mask: {one.outside} of 255"
        )
    elif one.outside is not None:
        told += f". Largest difference outside of the words' places: {one.outside} of 255"
    told += f". The window differs from the photo's by {one.psnr(shape):.1f} dB (PSNR)."
    return report.Comparison(one.scene.name, told, rows=prompts, columns=columns, cells=cells)
