"""Programs of a run that are the same as another's: the cache of compiled programs finds them.

Its key is the program as jax lowers it, with the compiler's settings and the devices.
"""

import commands
import jax
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import families, sharding
from dreambooth_jax.experiment.modes import precompile as forecasting


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """The programs of the base stage, as a function of settings and of which are wanted."""
    folders = commands.cascade(tmp_path_factory)
    mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])

    def lower(names=tuple(forecasting.PROGRAMS), **changed):
        plan = configs.resolve(commands.config(folders, **changed))
        stages = {
            kind: families.open_stage(str(folder), kind=kind, shapes_only=True)
            for kind, folder in folders.items()
        }
        made = {what: forecasting.PROGRAMS[what](plan, "base", stages, mesh) for what in names}
        return {
            what: jitted.trace(*args).lower().as_text() for what, (_, jitted, args) in made.items()
        }

    return lower


@pytest.fixture(scope="module")
def usual(lowered):
    """All programs with the settings as they are."""
    return lowered()


def test_a_second_start_lowers_the_same_programs(lowered, usual):
    assert lowered() == usual


@pytest.mark.parametrize(
    "changed",
    [
        {"train__num_steps": 7},
        {"subject__class_noun": "teapot"},
        {"subject__identifier": "qud"},
        {"subject__images": "elsewhere"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_steps_prompts_and_photos_are_no_part_of_a_program(lowered, usual, changed):
    assert lowered(**changed) == usual


@pytest.mark.parametrize(
    ("name", "changed"),
    [("train", {"train__batch_size": 16}), ("sample", {"sampler__num_steps": 3})],
)
def test_what_shapes_a_program_is_part_of_it(lowered, usual, name, changed):
    assert lowered([name], **changed)[name] != usual[name]
