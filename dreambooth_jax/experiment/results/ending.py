"""Last lines of a run: where its report and model are, how to open them, what to do next."""

import json
import shlex
from pathlib import Path

from dreambooth_jax import adapt, files
from dreambooth_jax.config import Plan
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.experiment.parts.workdir import Workdir


def address(path: Path) -> str:
    """Returns the address of a file as a browser takes it."""
    return str(path) if files.is_remote(path) else path.resolve().as_uri()


def lines(plan: Plan, workdir: Workdir, model: Model, prompt: str) -> str:
    """Returns the lines, quoted for pasting; `prompt` names a subject."""
    several = len(model.kinds) > 1
    opened = []
    for kind in model.kinds:
        folder = workdir.export / kind if several else workdir.export
        name = model.stages[kind].family.name
        opened.append(f"{kind} = {name}.from_pretrained({str(folder)!r})")
        if adapt.makes_factors(plan.adapt) and kind in plan.trained:
            opened.append(f"# or of the base model: {kind}.load_lora_weights({f'{folder}/lora'!r})")
    names = sorted({model.stages[kind].family.name for kind in model.kinds})
    example = prompt + ", watercolour painting"
    command = [
        *("python", "-m", "dreambooth_jax.main", "--mode=sample"),
        f"--config=configs/of_run.py:{workdir.root}",
        f"--config.sample.prompts=({json.dumps(example, ensure_ascii=False)},)",
    ]
    python = "\n".join(f"    {line}" for line in opened)
    return (
        f"The report: {address(workdir.report)}\n"
        f"The model:  {workdir.export}\n"
        f"In Python:\n    from diffusers import {', '.join(names)}\n{python}\n"
        f"More pictures:\n    {shlex.join(command)}"
    )
