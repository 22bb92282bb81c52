"""Estimated duration of a benchmark: measured on a few steps, then multiplied."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts, turns, untrusted
from dreambooth_jax.config import ConfigDict, Plan
from dreambooth_jax.data.prompts import expanded
from dreambooth_jax.experiment.parts import class_images, subjects
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.training import fine_tune as tuning
from dreambooth_jax.signals import GracefulStop


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds, measured: to start a run (load, compile), of a picture, of a step by stage."""

    start: float
    picture: float
    step: Mapping[str, float]
    device: str


def measure(config: ConfigDict, folder: Path, stop: GracefulStop, *, counted: int) -> Speed:
    """The speed of a run with these settings, from two blocks of pictures and a few steps.

    `counted` steps are measured, after as many that are not. What it writes is removed again, but
    for `speed.json`, which is read next time if the devices are the same.

    Raises:
      Interrupted: a signal came.
    """
    plan = configs.resolve(config)
    mesh = setup.make_mesh(plan)
    device = f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
    file = folder / "speed.json"
    if known := _known(file, device, plan.trained):
        return known
    plan = configs.changed(plan, _short(plan, counted))

    if turns.is_first():
        files.remove(folder / "trial")
    hosts.meet("no trial of before is left")
    began = time.monotonic()
    workdir = Workdir.open(folder / "trial", plan)
    stages = setup.open_stages(plan)
    folders = subjects.audit(plan, stages)
    model = setup.load(plan, stages)
    words = subjects.words(plan, model, workdir)
    cast = subjects.read(plan, model, folders, words)
    model = subjects.with_new_words(plan, model, words)
    painter = Painter(plan, model, words, workdir, [p for each in cast for p in each.row_prompts])
    # Their first call compiles, the second is measured.
    plan = configs.changed(plan, {"prior.num_images": painter.block})
    classes = class_images.drawn(plan, model, words, painter, workdir, stop, folders.photos)
    seeds = list(range(painter.block))
    if not classes:
        painter.class_images(model.weights, words[0].class_prompt, seeds)
    drawing = time.monotonic()
    painter.class_images(model.weights, words[0].class_prompt, seeds)
    drawing = time.monotonic() - drawing
    step = {}
    for own in plan.to_train:
        kind = own.kind
        tuning.fine_tune(own, plan, model, cast, classes, painter, workdir, stop)
        hosts.meet(f"the trial of {kind} is written")  # one writes the lines that all read
        name = f"{kind}/steps_per_second"
        rates = [line[name] for line in workdir.scalars() if name in line]
        step[kind] = 1 / rates[-1]
    steady = 2 * drawing + 2 * counted * sum(step.values())
    start = max(time.monotonic() - began - steady, 0.0)
    hosts.meet("the trial is over")
    speed = Speed(start, drawing / painter.block, step, device)
    workdir.close()
    if turns.is_first():
        files.remove(workdir.root)
        files.write_text(file, json.dumps(dataclasses.asdict(speed), indent=1) + "\n")
    return speed


def _known(file: Path, device: str, kinds: Sequence[str]) -> Speed | None:
    """The speed that was measured before on the same devices; None where there is none."""
    if file.is_file():
        try:
            content = untrusted.json_object(file, remedy="It is measured again.")
            with untrusted.values(file):
                known = Speed(**content)
                if known.device == device and set(known.step) == set(kinds):
                    return known
        except untrusted.FileError as error:
            logging.warning("%s", error)
    return None


def _short(plan: Plan, counted: int) -> dict[str, Any]:
    """The settings of the measured run that differ: few steps, nothing on the way."""
    return {
        "train.num_steps": 2 * counted,
        "upscaler.num_steps": 2 * counted,
        "train.log_every": counted,
        "train.checkpoint_every": 2 * counted,
        "train.sample_every": 0,
        "train.held_out_every": 0,
        "train.text_encoder_steps": None,
        "adapt.inversion_steps": None,
        "prior.folder": "",
        "prior.images": "",
        "optim.warmup_steps": min(plan.optim.warmup_steps, counted),
    }


def parts(plan: Plan, speed: Speed, class_nouns: Sequence[str]) -> dict[str, float]:
    """Seconds of each part of the runs to come; class images are drawn once for a class noun."""
    runs = len(class_nouns)
    stages = {own.kind: own.train for own in plan.to_train}
    in_grid = len(expanded(plan.sample.prompts)) * plan.sample.num_images
    drawn = configs.draws_class_images(plan)
    number = configs.num_class_images(plan)[0] if drawn else 0
    class_pictures = number * len(set(class_nouns))
    return {
        "starting": runs * speed.start,
        "class images": class_pictures * speed.picture,
        **{
            f"training {kind}": runs * train.num_steps * speed.step[kind]
            for kind, train in stages.items()
        },
        "pictures": runs * configs.num_grids(plan) * in_grid * speed.picture,
    }


def told(seconds: Mapping[str, float], *, subjects: int, device: str) -> str:
    """Returns the total hours and those of each part."""
    total = sum(seconds.values())
    rows = [
        f"  {name:<20} {value / 3600:8.2f} h {value / max(total, 1e-9):5.0%}"
        for name, value in seconds.items()
    ]
    head = (
        f"About {total / 3600:.2f} hours for {subjects} subjects on {device}, one after another, "
        "besides the judging at the end of each:"
    )
    return "\n".join([head, *rows])
