"""`--mode=edit`: the subject in photos that are there."""

from pathlib import Path

from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import hosts, regions, turns
from dreambooth_jax.config import ConfigDict, Plan
from dreambooth_jax.data import annotations
from dreambooth_jax.data.prompts import expanded
from dreambooth_jax.evaluate.scores import UNTOUCHED
from dreambooth_jax.experiment.modes.sample import reopened, restored
from dreambooth_jax.experiment.parts import editing, finding, pairs, scenes
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.editing import Edit, Editor
from dreambooth_jax.experiment.parts.grids import prompts_of
from dreambooth_jax.experiment.parts.model import weights_name
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import edits as results


def edit(config: ConfigDict, folder: Path) -> Path:
    """Draws `edit.prompts` into the photos of `edit.images`; returns the folder of the edits.

    With the run's fine-tuned weights, as `--mode=sample`. With masks the photo stays as it is
    outside of them, bit for bit. Nothing that was drawn before is replaced.

    Raises:
      ConfigError, CheckpointError, ValueError, OSError: what was found, expected, and what to do.
    """
    plan = configs.resolve(config)
    plan = _checked(plan)
    workdir = Workdir.of_run(folder, plan)
    stages = setup.open_stages(plan)
    is_drawn = plan.edit.method == pairs.DRAWN
    shape = editing.shape_of([*stages.values()][-1])
    found = scenes.drawn(plan) if is_drawn else scenes.found(plan, shape)
    _tell_unnamed(plan)
    model, words = reopened(plan, workdir, stages)
    prompts = prompts_of(plan, words, plan.edit.prompts)
    sources: tuple[str, ...] = ()
    finds = plan.edit.masks in regions.MAPS
    if plan.edit.method != "sdedit":
        pairs.check(plan, model.stages["base"], prompts, words)
    if plan.edit.method != "sdedit" or finds:
        sources = tuple(pairs.source_of(plan, prompt, words) for prompt in prompts)
    drawn = {"sample.prompts": plan.edit.prompts, "evaluate.prompts": ()}
    plan = configs.changed(plan, drawn)
    plain = editing.of_class(prompts, words)
    painter = Painter(plan, model, words, workdir, (*plain, *sources))
    tuned, steps = restored(plan, model, workdir)
    editor, label = Editor(plan, painter), weights_name(steps)
    if finds:
        found = finding.with_masks(editor, tuned.weights, found, prompts)
    wanted = editing.wanted(plan, found, prompts)
    place = editor.folder(label, wanted)
    editor.draw(tuned.weights, wanted, place, label=label)
    untouched = None
    if plan.edit.untouched and steps:
        same = [
            Edit(each.scene, plain[prompts.index(each.prompt)], each.seed, each.file)
            for each in wanted
        ]
        untouched = place / UNTOUCHED
        editor.draw(model.weights, same, untouched, label=UNTOUCHED)
    made = results.read(editor, wanted, place, untouched)
    scored = results.judge(plan, made, words[0].identifier, model.mesh)
    if turns.is_first():
        results.write(editor, made, scored, place, label=label)
    hosts.meet("the report of the edits")
    return place


def _checked(plan: Plan) -> Plan:
    """The plan, with masks that fit the method.

    Raises:
      ConfigError: settings of the edit that do not go together.
    """
    c, strength = plan.edit, editing.strength_of(plan)
    for kind, own in plan.stages.items():
        count = own.sampler.num_steps
        if round(strength * count) < 1:
            raise configs.ConfigError(
                f"edit.strength = {strength:g}: of the {count} steps of the {kind} stage that is "
                f"none. Write --config.edit.strength={max(1 / count, 0.01):.2g} or more."
            )
    if c.cutout and (c.method != "sdedit" or c.masks == "none" or c.soft or strength == 1):
        raise configs.ConfigError(
            f"edit.cutout = {c.cutout!r}: expected a mask, edit.method = 'sdedit', edit.soft = "
            "False and a strength below 1: it is pasted into the mask and then drawn over. Write "
            "--config.edit.masks=files --config.edit.strength=0.5, or leave it out."
        )
    scenes.cutout(plan)
    if c.method == pairs.DRAWN and c.images:
        raise configs.ConfigError(
            f"edit.images = {c.images!r}: expected '' with edit.method = {c.method!r}, which draws "
            "its scenes. Write --config.edit.method=inversion for photos."
        )
    if c.method == pairs.DRAWN and strength < 1:
        raise configs.ConfigError(
            f"edit.strength = {strength:g}: expected 1 with edit.method = {c.method!r}: there is "
            "nothing to start from. Leave it out."
        )
    if c.local_blend != "none" and c.method != pairs.DRAWN:
        raise configs.ConfigError(
            f"edit.local_blend = {c.local_blend!r}: expected edit.method = {pairs.DRAWN!r}, whose "
            f"scenes are drawn beside their edits. With {c.method!r} a mask keeps the photo "
            f"outside: write --config.edit.masks={c.local_blend} --config.edit.local_blend=none."
        )
    if c.soft and c.masks not in annotations.PAINTED:
        raise configs.ConfigError(
            "edit.soft = True: expected a mask that is painted. Write --config.edit.masks=files."
        )
    if c.method == pairs.DRAWN and c.masks != "none":
        return configs.changed(plan, {"edit.masks": "none"})
    return plan


def _tell_unnamed(plan: Plan) -> None:
    """Warns of templates with the class noun alone; `Painter` warns of those without braces.

    Not of those of a background, where a second subject would be drawn beside the first.
    """
    if plan.edit.outside:
        return
    named = ("{subject}", "{identifier}", "{instance_prompt}")
    for template in expanded(plan.edit.prompts):
        if "{" in template and not any(name in template for name in named):
            logging.warning(
                "The prompt %r does not name the subject. Write {subject} where it is to be.",
                template,
            )
