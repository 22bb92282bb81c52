"""What a run tells in the end: `report.html` and the model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dreambooth_jax import __version__, report, tree
from dreambooth_jax import config as configs
from dreambooth_jax.data.prior import Prior
from dreambooth_jax.data.prompts import mentions
from dreambooth_jax.data.subject import Subject, Words
from dreambooth_jax.evaluate import scores
from dreambooth_jax.evaluate.scores import TUNED, UNTOUCHED
from dreambooth_jax.experiment.judged import Judged
from dreambooth_jax.experiment.model import Model
from dreambooth_jax.experiment.painter import grid_of, is_drawn, prompts_of, read_grid
from dreambooth_jax.experiment.workdir import Workdir

_SHOWN_CLASS_IMAGES = 24


def model_card(config: ConfigDict, subject: Words, kind: str, num_steps: int) -> dict[str, Any]:
    """The lines of an export's README; `num_steps` is 0 for a stage as the base model has it."""
    c = configs.for_stage(config, kind)
    tuned = num_steps > 0
    steps = f"{num_steps} steps of {c.train.batch_size} rows"
    return {
        "base model": config.base_model if kind == "base" else config.upscaler_model,
        "instance prompt": subject.instance_prompt,
        "class prompt": subject.class_prompt,
        "fine-tuned": steps if tuned else "no, as the base model",
        "learning rate": c.optim.learning_rate if tuned else "none",
        "adapted": _way(config) if tuned else "none",
        "text encoder trained": bool(config.train.text_encoder) if tuned else False,
        "prior_loss_weight": config.prior_loss_weight,
        "prior": config.prior.kind if config.prior_loss_weight else "none",
        "seed": config.seed,
    }


def _way(config: ConfigDict) -> str:
    name, then = config.adapt.name, config.adapt.then
    return f"{name}, then {then}" if name == "pivotal" else name


def grids_of(
    config: ConfigDict, workdir: Workdir, subject: Subject
) -> dict[str, dict[str, list[np.ndarray]]]:
    """The prompt grids in order, before, over training, after: pictures by label and prompt.

    A grid that was drawn on the way for other prompts is left out.
    """
    labels = ["before"]
    for kind in config.stages:
        labels += sorted(p.name for p in workdir.samples.glob(f"{kind}-*"))
    wanted = grid_of(config, subject)
    return {
        label: read_grid(workdir.samples / label, wanted)
        for label in [*labels, "after"]
        if is_drawn(workdir.samples / label, wanted)
    }


def scored(judged: Judged, identifier: str) -> list[Any]:
    """The sections that tell how well it went: the scores, and how far the class drifted."""
    prompts = [prompt for prompt in judged.grids[TUNED] if not mentions(prompt, identifier)]
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
            "Prompts without the subject's word, the same seeds: the less they changed, the better "
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
    subject: Subject,
    prior: Prior | None,
    judged: Judged | None = None,
) -> Path:
    """Writes `report.html`, the last file of a run, and returns its path."""
    prompts = prompts_of(config, subject)
    grids = grids_of(config, workdir, subject)
    lines = workdir.scalars()
    seconds = workdir.timings()
    trained = sum(tree.count(model.trained[kind]) for kind in config.stages)
    steps = [str(configs.for_stage(config, kind).train.num_steps) for kind in config.stages]
    device = model.mesh.devices.flat[0]

    sections: list[Any] = [
        report.Comparison(
            "Before and after",
            f"The same prompts and seeds, drawn by the untouched model and by the fine-tuned one. "
            f"{subject.identifier!r} is the word that the subject was given.",
            rows=list(prompts),
            columns=["before", "after"],
            cells=[[grids["before"][p], grids["after"][p]] for p in prompts],
        ),
        *([] if judged is None else scored(judged, subject.identifier)),
        report.Gallery(
            "The photos",
            "As the model sees them: upright, resized to cover the square and cropped.",
            images=list(subject.pixels[max(subject.pixels)]),
            labels=[window.photo for window in subject.windows],
        ),
    ]
    if prior is not None:
        sections.append(
            report.Gallery(
                "Class images",
                f"{subject.class_prompt!r}, drawn by the untouched model for prior preservation: "
                f"{min(_SHOWN_CLASS_IMAGES, len(prior.images))} of {len(prior.images)}; "
                f"{prior.redone} came out empty and were drawn again.",
                images=list(prior.images[:_SHOWN_CLASS_IMAGES]),
            )
        )
    for kind in config.stages:
        curves = report.series(lines, f"{kind}/loss/*")
        sections.append(
            report.Curves(
                f"Loss, {kind}",
                "Mean squared error of what the network predicts; photos and class images apart.",
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
        report.Text("Photo audit", str(subject.audit), preformatted=True, collapsed=True),
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
        title=subject.instance_prompt,
        subtitle=f"DreamBooth, {len(subject.photos)} photos of {subject.class_prompt}. "
        f"dreambooth_jax {__version__}.",
        facts=[
            ("photos", str(len(subject.photos))),
            ("class images", str(0 if prior is None else len(prior.images))),
            ("steps", " + ".join(steps)),
            ("trained", f"{trained / 1e6:.1f} M"),
            ("devices", f"{model.mesh.size} {device.platform}"),
            ("minutes", f"{sum(seconds.values()) / 60:.1f}"),
        ],
        sections=sections,
        highlight=[subject.identifier],
        cover=[grids["after"][p][0] for p in prompts[:4]],
    )
    return workdir.report


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
