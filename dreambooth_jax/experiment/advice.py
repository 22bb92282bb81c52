"""Which step of a stage to take: what its pictures and its held-out loss were worth, and why."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import checkpoint, report
from dreambooth_jax import config as configs
from dreambooth_jax.experiment.judged import Worth
from dreambooth_jax.experiment.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Step:
    """What is known of the weights after a step; None is not known.

    similarity: of the subject's pictures to the photos; moved: 1 − the similarity of class pictures
    to those of the untouched model; held_out, held_out_prior: the loss on photos and class rows.
    """

    step: int
    similarity: float | None = None
    moved: float | None = None
    held_out: float | None = None
    held_out_prior: float | None = None
    on_disk: bool = False


@dataclasses.dataclass(frozen=True)
class Advice:
    """The step of stage `kind` that is recommended, for which reason, and all that were compared.

    The first of `steps` is the untouched model's, 0, where it was looked at.
    """

    kind: str
    step: int
    why: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.kind}: step {self.step} is recommended. {self.why}"


def advise(kind: str, steps: Sequence[Step], *, held_out: bool) -> Advice:
    """The step whose pictures gained more likeness, compared with the untouched model's, than its
    class pictures moved. Both are differences of cosines by the same encoder.

    Without an encoder it is the step with the lowest loss on photos that were held out, if there
    are such (`held_out`), or else the last one. Of equals it is the earliest: it has trained least.
    """
    steps = sorted(steps, key=lambda each: each.step)
    before = next((each for each in steps if each.step == 0), Step(0))
    after = [each for each in steps if each.step > 0]
    seen = [each for each in after if each.similarity is not None]
    start = before.similarity or 0.0
    if len(seen) > 1 or (seen and not held_out):
        best = max(seen, key=lambda each: (each.similarity or 0) - (each.moved or 0))
        why = f"Likeness to the photos {start:.3f} → {best.similarity:.3f}"
        if best.moved is None:
            why += ", the highest. No prompt shows the class alone, so its drift is not known."
        else:
            why += f", class pictures moved by {best.moved:.3f}: the largest difference of the two."
        return Advice(kind, best.step, why, tuple(steps))
    known = [each for each in after if each.held_out is not None]
    if held_out and known:
        best = min(known, key=lambda each: each.held_out or 0)
        why = f"The loss on photos that were not trained on is lowest there, {best.held_out:.4f}."
        return Advice(kind, best.step, why, tuple(steps))
    why = (
        "It is the last, and nothing speaks for another: pictures are compared when "
        "train.sample_every > 0 and pip install 'dreambooth_jax[eval]', losses when "
        "subject.held_out > 0."
    )
    return Advice(kind, after[-1].step, why, tuple(steps))


def of_run(config: ConfigDict, workdir: Workdir, worth: Mapping[str, Worth]) -> list[Advice]:
    """The advice for each stage, also in the log and in `advice.json`; `worth` is of the grids."""
    lines = workdir.scalars()
    found = [of_stage(kind, config, workdir, worth, lines) for kind in config.stages]
    for each in found:
        logging.info("%s\n%s", each, command(each, workdir))
    workdir.write("advice.json", as_json(found))
    return found


def of_stage(
    kind: str,
    config: ConfigDict,
    workdir: Workdir,
    worth: Mapping[str, Worth],
    lines: Sequence[Mapping[str, Any]],
) -> Advice:
    """The advice for a stage of a run; `worth` is of its grids, by label, `lines` its metrics."""
    last = configs.for_stage(config, kind).train.num_steps

    def losses(name: str) -> dict[int, float]:
        curve = report.series(lines, f"{kind}/held_out/{name}")
        return {int(step): value for points in curve.values() for step, value in points}

    subject, prior = losses("subject"), losses("prior")
    grids = {0: worth.get("before")} | {
        int(label.removeprefix(f"{kind}-")): found
        for label, found in worth.items()
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
                similarity=found.similarity if found else None,
                moved=found.moved if found and step else None,
                held_out=subject.get(step),
                held_out_prior=prior.get(step),
                on_disk=step in there,
            )
        )
    return advise(kind, steps, held_out=config.subject.held_out > 0)


def command(found: Advice, workdir: Workdir) -> str:
    """How to export the recommended step, or to have it on the disk the next time."""
    chosen = next(each for each in found.steps if each.step == found.step)
    if not chosen.on_disk:
        return (
            "It is not on the disk any more. Write --config.train.keep_weights_every="
            f"{found.step} to keep such steps in another run."
        )
    return (
        f"python -m dreambooth_jax.main --config=configs/of_run.py:{workdir.root} --mode=export "
        f"--config.restore.{found.kind}={found.step}"
    )


HEADER = ("step", "likeness", "class moved", "held-out loss", "of the class", "on disk")


def rows(found: Advice) -> list[tuple[str, ...]]:
    """The steps as cells of a table with the columns of `HEADER`; the recommended one is marked."""

    def number(x: float | None) -> str:
        return "" if x is None else f"{x:.4f}"

    return [
        (
            f"{x.step} ←" if x.step == found.step else str(x.step),
            number(x.similarity),
            number(x.moved),
            number(x.held_out),
            number(x.held_out_prior),
            "yes" if x.on_disk else "",
        )
        for x in found.steps
    ]


def as_json(found: Sequence[Advice]) -> str:
    """What `advice.json` has: `{stage: {step, why, steps}}`."""
    told: dict[str, Any] = {}
    for each in found:
        entry = dataclasses.asdict(each)
        told[entry.pop("kind")] = entry
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"
