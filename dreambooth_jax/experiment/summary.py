"""What a run tells in the end: `report.html` and the model card."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dreambooth_jax import __version__, report, tree
from dreambooth_jax import config as configs
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.prompts import is_of_class
from dreambooth_jax.data.subject import Subject, Words
from dreambooth_jax.evaluate import scores
from dreambooth_jax.evaluate.scores import TUNED, UNTOUCHED
from dreambooth_jax.experiment import advice
from dreambooth_jax.experiment.advice import Advice
from dreambooth_jax.experiment.judged import Judged
from dreambooth_jax.experiment.model import Model
from dreambooth_jax.experiment.painter import grids_of, prompts_of
from dreambooth_jax.experiment.workdir import Workdir

_SHOWN_CLASS_IMAGES = 24


def model_card(
    config: ConfigDict, words: Sequence[Words], kind: str, num_steps: int
) -> dict[str, Any]:
    """The lines of an export's README; `num_steps` is 0 for a stage as the base model has it."""
    c = configs.for_stage(config, kind)
    tuned = num_steps > 0
    steps = f"{num_steps} steps of {c.train.batch_size} rows"
    return {
        "base model": config.base_model if kind == "base" else config.upscaler_model,
        "instance prompt": _listed(each.instance_prompt for each in words),
        "class prompt": _listed(each.class_prompt for each in words),
        "fine-tuned": steps if tuned else "no, as the base model",
        "learning rate": c.optim.learning_rate if tuned else "none",
        "adapted": _way(config) if tuned else "none",
        "text encoder trained": bool(config.train.text_encoder) if tuned else False,
        "prior_loss_weight": config.prior_loss_weight,
        "prior": config.prior.kind if config.prior_loss_weight else "none",
        "captions": config.subject.captions if tuned else "none",
        "masks": config.subject.masks if tuned else "none",
        "seed": config.seed,
    }


def _way(config: ConfigDict) -> str:
    name, then = config.adapt.name, config.adapt.then
    return f"{name}, then {then}" if name == "pivotal" else name


def scored(judged: Judged, words: Sequence[Words]) -> list[Any]:
    """The sections that tell how well it went: the scores, and how far the class drifted."""
    prompts = [prompt for prompt in judged.grids[TUNED] if is_of_class(prompt, words)]
    return [
        report.Table(
            "Scores",
            "Means with 95 % bootstrap intervals over prompts, pictures and photos; in scores.json "
            "with what each of them means. The photos among themselves are what the subject's "
            "similarity can reach. Numbers of different encoders cannot be compared.",
            rows=scores.rows(judged.scores),
            header=scores.HEADER,
        ),
        report.Comparison(
            "Drift of the class",
            "Prompts without a subject's word, the same seeds: the less they changed, the better "
            "the class was kept.",
            rows=prompts,
            columns=[UNTOUCHED, TUNED],
            cells=[[judged.grids[name][p] for name in (UNTOUCHED, TUNED)] for p in prompts],
        ),
    ]


def write(
    config: ConfigDict,
    workdir: Workdir,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    judged: Judged | None = None,
    advised: Sequence[Advice] = (),
) -> Path:
    """Writes `report.html`, the last file of a run, and returns its path."""
    prompts = prompts_of(config, cast)
    grids = grids_of(config, workdir, cast)
    names = _listed(repr(each.identifier) for each in cast)
    photos = sum(len(each.photos) for each in cast)
    lines = workdir.scalars()
    seconds = workdir.timings()
    trained = sum(tree.count(model.trained[kind]) for kind in config.stages)
    steps = [str(configs.for_stage(config, kind).train.num_steps) for kind in config.stages]
    device = model.mesh.devices.flat[0]

    sections: list[Any] = [
        report.Comparison(
            "Before and after",
            f"The same prompts and seeds, drawn by the untouched model and by the fine-tuned one. "
            f"What the photos show is called {names}.",
            rows=list(prompts),
            columns=["before", "after"],
            cells=[[grids["before"][p], grids["after"][p]] for p in prompts],
        ),
        *([] if judged is None else scored(judged, cast)),
        *(section for each in cast for section in _photos(each, alone=len(cast) == 1)),
        *(_class_images(each, alone=len(classes) == 1) for each in classes),
    ]
    for each in advised:
        sections.append(
            report.Table(
                f"Which step, {each.kind}",
                f"Step {each.step} is recommended. {each.why} {advice.command(each, workdir)}",
                rows=advice.rows(each),
                header=advice.HEADER,
            )
        )
    for kind in config.stages:
        curves = report.series(lines, f"{kind}/loss/*", f"{kind}/held_out/*")
        sections.append(
            report.Curves(
                f"Loss, {kind}",
                "Mean squared error of what the network predicts; photos and class images apart. "
                "The held-out losses see the same rows, time steps and noise every time.",
                series={name.removeprefix(f"{kind}/"): points for name, points in curves.items()},
            )
        )
    if len(grids) > 2:
        sections.append(
            report.Comparison(
                "Over training",
                "The first picture of each prompt at every grid that was drawn on the way.",
                rows=list(prompts),
                columns=list(grids),
                cells=[[grids[label][p][:1] for label in grids] for p in prompts],
            )
        )
    sections += [
        report.Text(
            "Photo audit",
            "\n".join(
                str(folder.audit)
                for folder in (*cast, *(each.own for each in classes if each.own is not None))
            ),
            preformatted=True,
            collapsed=True,
        ),
        report.Table(
            "Timings",
            "Seconds of each part, over all starts of this run.",
            rows=[(name, f"{value:.1f}") for name, value in seconds.items()],
            header=("part", "seconds"),
        ),
        report.Table(
            "Files",
            "Beside this report.",
            rows=_files(workdir),
            header=("what", "where"),
        ),
        report.Table(
            "Settings",
            "All of them, as in config.json.",
            rows=[(key, repr(value)) for key, value in configs.flatten(config).items()],
            header=("key", "value"),
            collapsed=True,
        ),
    ]
    report.build(
        workdir.report,
        title=_listed(each.instance_prompt for each in cast),
        subtitle="DreamBooth, "
        + _listed(f"{len(each.photos)} photos of {each.class_prompt}" for each in cast)
        + ". "
        f"dreambooth_jax {__version__}.",
        facts=[
            ("photos", str(photos)),
            ("class images", str(sum(map(len, classes)))),
            ("steps", " + ".join(steps)),
            ("trained", f"{trained / 1e6:.1f} M"),
            ("devices", f"{model.mesh.size} {device.platform}"),
            ("minutes", f"{sum(seconds.values()) / 60:.1f}"),
        ],
        sections=sections,
        highlight=[each.identifier for each in cast],
        cover=[grids["after"][p][0] for p in prompts[:4]],
    )
    return workdir.report


def _photos(subject: Subject, *, alone: bool) -> list[report.Gallery]:
    """What a subject is trained on: its photos with their prompts, and their masks."""
    of = "" if alone else f", {subject.identifier} {subject.class_noun}"
    size = max(subject.pixels)
    captioned = any(photo.caption is not None for photo in subject.audit.kept)
    labels = [window.photo for window in subject.windows]
    if captioned:
        labels = [
            f"{name}: {prompt}" for name, prompt in zip(labels, subject.row_prompts, strict=True)
        ]
    told = "Their captions are the prompts." if captioned else f"{subject.instance_prompt!r}."
    found = [
        report.Gallery(
            f"The photos{of}",
            f"As the model sees them: upright, resized to cover the square and cropped. {told}",
            images=list(subject.pixels[size]),
            labels=labels,
        )
    ]
    if subject.masks:
        # Off the subject in a colour that photos seldom have, so that dark ones show it as well.
        mask = subject.masks[size][..., None]
        veiled = 0.35 * subject.pixels[size] + 0.65 * np.array([255.0, 0.0, 255.0])
        shown = mask * subject.pixels[size] + (1 - mask) * veiled
        found.append(
            report.Gallery(
                f"The masks{of}",
                "What is veiled counts less in the loss (loss.outside_mask).",
                images=list(np.rint(shown).astype(np.uint8)),
                labels=labels,
            )
        )
    return found


def _class_images(found: ClassImages, *, alone: bool) -> report.Gallery:
    """Some of the class images, with their captions where they have any."""
    count = min(_SHOWN_CLASS_IMAGES, len(found))
    if found.own is None:
        whence = "drawn by the untouched model for prior preservation"
        redone = f"; {found.redone} came out empty and were drawn again"
    else:
        whence, redone = "from the folder prior.images, for prior preservation", ""
    captioned = set(found.row_prompts) != {found.class_prompt}
    return report.Gallery(
        "Class images" if alone else f"Class images, {found.class_noun}",
        f"{found.class_prompt!r}, {whence}: {count} of {len(found)}{redone}.",
        images=list(found.pixels[max(found.pixels)][:count]),
        labels=found.row_prompts[:count] if captioned else (),
    )


def _listed(words: Iterable[str]) -> str:
    """Each once, with commas between them."""
    return ", ".join(dict.fromkeys(words))


def _files(workdir: Workdir) -> list[tuple[str, str]]:
    found: Mapping[str, str] = {
        "the fine-tuned model (diffusers format)": "export/",
        "the pictures of this report": "samples/",
        "class images and their manifest": "prior/",
        "checkpoints": "checkpoints/",
        "trained weights of other steps": "kept_weights/",
        "numbers": "metrics.jsonl",
        "scores": "scores.json",
        "settings": "config.json",
    }
    return [(what, where) for what, where in found.items() if (workdir.root / where).exists()]
