"""The recommended step of each stage, by its images and its held-out loss."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from dreambooth_jax import checkpoint, report
from dreambooth_jax.config import Plan
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results.scores import GridScore


@dataclasses.dataclass(frozen=True)
class Step:
    """The measurements of the weights after a step; None is not measured.

    subject_similarity: of the subject's pictures to the photos; class_drift: 1 − the similarity of
    class pictures to those of the untouched model; held_out, held_out_prior: the loss on photos and
    class rows.
    """

    step: int
    subject_similarity: float | None = None
    class_drift: float | None = None
    held_out: float | None = None
    held_out_prior: float | None = None
    on_disk: bool = False


@dataclasses.dataclass(frozen=True)
class Advice:
    """The step of stage `kind` that is recommended, for which reason, and all that were compared.

    The first of `steps` is the untouched model's, 0, where it was evaluated.
    """

    kind: str
    step: int
    why: str
    steps: tuple[Step, ...]

    @property
    def exported(self) -> int:
        """The step that the run's export holds: the last."""
        return self.steps[-1].step

    def __str__(self) -> str:
        return f"{self.kind}: {sentence(self)}"


def sentence(found: Advice) -> str:
    """Returns which step is recommended, which one is exported, and why."""
    if found.step == found.exported:
        return f"Step {found.step}, the last, is exported. {found.why}"
    return (
        f"Step {found.step} is recommended; the export holds step {found.exported}, the last. "
        f"{found.why}"
    )


def advise(kind: str, steps: Sequence[Step], *, held_out: bool) -> Advice:
    """The step whose pictures gained more likeness, compared with the untouched model's, than its
    class pictures moved. Both are differences of cosines by the same encoder.

    Without an encoder, or where the last step's pictures are not scored, it is the step with the
    lowest loss on photos that were held out, if there are such (`held_out`), or else the last one.
    Of equals it is the earliest: it has trained least.
    """
    steps = sorted(steps, key=lambda each: each.step)
    before = next((each for each in steps if each.step == 0), Step(0))
    after = [each for each in steps if each.step > 0]
    seen = [each for each in after if each.subject_similarity is not None]
    start = before.subject_similarity or 0.0
    whole = bool(seen) and seen[-1] is after[-1]
    if whole and (len(seen) > 1 or not held_out):
        best = max(seen, key=lambda each: (each.subject_similarity or 0) - (each.class_drift or 0))
        why = f"Subject similarity {start:.3f} → {best.subject_similarity:.3f}"
        if best.class_drift is None:
            why += ", the highest. No prompt shows the class alone, so its drift is not known."
        else:
            why += f", class drift {best.class_drift:.3f}: the largest difference of the two."
        return Advice(kind, best.step, why, tuple(steps))
    known = [each for each in after if each.held_out is not None]
    if held_out and known:
        best = min(known, key=lambda each: each.held_out or 0)
        why = f"The loss on photos that were not trained on is lowest there, {best.held_out:.4f}."
        return Advice(kind, best.step, why, tuple(steps))
    if seen and not whole:
        why = (
            f"No pictures of this step are scored, so the others are not compared with it. Write "
            f"a --config.train.sample_every that divides {after[-1].step}."
        )
        return Advice(kind, after[-1].step, why, tuple(steps))
    why = (
        "No evaluation compares the steps. For one write pip install 'dreambooth_jax[eval]' and "
        "--config.train.sample_every=N, or --config.subject.held_out=1."
    )
    return Advice(kind, after[-1].step, why, tuple(steps))


def of_run(plan: Plan, workdir: Workdir, grid_scores: Mapping[str, GridScore]) -> list[Advice]:
    """The advice for each stage, also in the log and in `advice.json`."""
    lines = workdir.scalars()
    found = [of_stage(kind, plan, workdir, grid_scores, lines) for kind in plan.trained]
    for each in found:
        logging.info("%s", "\n".join(filter(None, (str(each), command(each, workdir)))))
    workdir.write("advice.json", as_json(found))
    return found


def of_stage(
    kind: str,
    plan: Plan,
    workdir: Workdir,
    grid_scores: Mapping[str, GridScore],
    lines: Sequence[Mapping[str, Any]],
) -> Advice:
    """The advice for a stage: by the scores of its grids, by label, and its lines of metrics."""
    last = plan.stages[kind].train.num_steps

    def losses(name: str) -> dict[int, float]:
        curve = report.series(lines, f"{kind}/held_out/{name}")
        return {int(step): value for points in curve.values() for step, value in points}

    subject, prior = losses("subject"), losses("prior")
    grids = {0: grid_scores.get("before")} | {
        int(label.removeprefix(f"{kind}-")): found
        for label, found in grid_scores.items()
        if label.startswith(f"{kind}-")
    }
    there = {
        step
        for folder in (workdir.checkpoints(kind), workdir.kept_weights(kind))
        for step in checkpoint.Checkpoints(folder, config={}).steps()
    }
    steps = []
    for step in sorted({last, *subject, *(n for n, found in grids.items() if found)}):
        found = grids.get(step)
        steps.append(
            Step(
                step,
                subject_similarity=found.subject_similarity if found else None,
                class_drift=found.class_drift if found and step else None,
                held_out=subject.get(step),
                held_out_prior=prior.get(step),
                on_disk=step in there,
            )
        )
    return advise(kind, steps, held_out=plan.subject.held_out > 0)


def command(found: Advice, workdir: Workdir) -> str:
    """Returns the command that exports the recommended step, or the setting that would keep it.

    "" where that step is exported.
    """
    if found.step == found.exported:
        return ""
    chosen = next(each for each in found.steps if each.step == found.step)
    if not chosen.on_disk:
        return (
            f"# Not on the disk any more; another run keeps such steps with\n"
            f"--config.train.keep_weights_every={found.step}"
        )
    of_run = shlex.quote(f"--config=configs/of_run.py:{workdir.root}")
    return (
        f"python -m dreambooth_jax.main {of_run} --mode=export "
        f"--config.restore.{found.kind}={found.step}"
    )


def table(found: Advice, *, held_out: bool) -> list[tuple[str, ...]]:
    """The steps as a header and rows of cells; the recommended one is marked.

    A column that says nothing is left out. held_out: the loss is that of photos that were not
    trained on.
    """

    def numbers(name: str) -> list[str]:
        values = [getattr(step, name) for step in found.steps]
        return ["" if x is None else f"{x:.4f}" for x in values]

    chosen = "\N{NO-BREAK SPACE}←"
    loss = "loss on held-out photos" if held_out else "loss on the photos, same noise"
    columns = {
        "step": [str(x.step) + chosen * (x.step == found.step) for x in found.steps],
        "subject similarity": numbers("subject_similarity"),
        "class drift": numbers("class_drift"),
        loss: numbers("held_out"),
        "loss on class images, same noise": numbers("held_out_prior"),
        "on disk": ["yes" if x.on_disk else "" for x in found.steps],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return [tuple(kept), *zip(*kept.values(), strict=True)]


def as_json(found: Sequence[Advice]) -> str:
    """Returns the text of `advice.json`: `{stage: {step, why, steps}}`."""
    told: dict[str, Any] = {}
    for each in found:
        entry = dataclasses.asdict(each)
        told[entry.pop("kind")] = entry
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"
