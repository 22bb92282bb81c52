"""How long the subjects of a benchmark will take: measured on a few steps, then multiplied."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts
from dreambooth_jax.data.prompts import expanded
from dreambooth_jax.experiment import class_images, setup, subjects, tuning
from dreambooth_jax.experiment.painter import Painter
from dreambooth_jax.experiment.workdir import Workdir
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
    mesh = setup.make_mesh(config)
    device = f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
    file = folder / "speed.json"
    if file.is_file():
        known = Speed(**json.loads(file.read_text()))
        if known.device == device and set(known.step) == set(config.stages):
            return known
    c = config.copy_and_resolve_references().unlock()
    for key in ("train.num_steps", "upscaler.num_steps"):
        c.update_from_flattened_dict({key: 2 * counted})
    c.train.log_every, c.train.checkpoint_every, c.train.sample_every = counted, 2 * counted, 0
    c.train.held_out_every = 0
    c.prior.folder = c.prior.images = ""
    c.optim.warmup_steps = min(c.optim.warmup_steps, 2 * counted)

    if jax.process_index() == 0:
        files.remove(folder / "trial")
    hosts.meet("no trial of before is left")
    began = time.monotonic()
    workdir = Workdir.open(folder / "trial", c)
    stages = setup.open_stages(c)
    folders = subjects.audit(c, stages)
    model = setup.load(c, stages)
    words = subjects.words(c, model, workdir)
    cast = subjects.read(c, model, folders, words)
    model = subjects.with_new_words(c, model, words)
    painter = Painter(c, model, words, workdir, [p for each in cast for p in each.row_prompts])
    c.prior.num_images = painter.block  # their first call compiles, the second is measured
    classes = class_images.drawn(c, model, words, painter, workdir, stop)
    seeds = list(range(painter.block))
    if not classes:
        painter.class_images(model.weights, words[0].class_prompt, seeds)
    drawing = time.monotonic()
    painter.class_images(model.weights, words[0].class_prompt, seeds)
    drawing = time.monotonic() - drawing
    step = {}
    for kind in c.stages:
        tuning.fine_tune(kind, c, model, cast, classes, painter, workdir, stop)
        hosts.meet(f"the trial of {kind} is written")  # one writes the lines that all read
        name = f"{kind}/steps_per_second"
        rates = [line[name] for line in workdir.scalars() if name in line]
        step[kind] = 1 / rates[-1]
    steady = 2 * drawing + 2 * counted * sum(step.values())
    start = max(time.monotonic() - began - steady, 0.0)
    hosts.meet("the trial is over")
    speed = Speed(start, drawing / painter.block, step, device)
    if jax.process_index() == 0:
        files.remove(workdir.root)
        files.write_text(file, json.dumps(dataclasses.asdict(speed), indent=1) + "\n")
    return speed


def parts(config: ConfigDict, speed: Speed, class_nouns: Sequence[str]) -> dict[str, float]:
    """Seconds of each part of the runs to come; class images are drawn once for a class noun."""
    runs = len(class_nouns)
    stages = {kind: configs.for_stage(config, kind).train for kind in config.stages}
    in_grid = len(expanded(config.sample.prompts)) * config.sample.num_images
    drawn = configs.draws_class_images(config)
    number = configs.num_class_images(config)[0] if drawn else 0
    class_pictures = number * len(set(class_nouns))
    return {
        "starting": runs * speed.start,
        "class images": class_pictures * speed.picture,
        **{
            f"training {kind}": runs * train.num_steps * speed.step[kind]
            for kind, train in stages.items()
        },
        "pictures": runs * configs.num_grids(config) * in_grid * speed.picture,
    }


def told(seconds: Mapping[str, float], *, subjects: int, device: str) -> str:
    """The hours in all, and how they are divided."""
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
