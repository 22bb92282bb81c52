"""Settings resolved once: those of each stage, frozen, with the fields of `base_config`."""

import dataclasses
import runpy
from pathlib import Path

import jax
import pytest

from dreambooth_jax import config, sharding
from dreambooth_jax.config import plan as groups
from dreambooth_jax.experiment.parts import loading

CONFIGS = Path(__file__).parents[2] / "configs"


def changed(**settings):
    c = config.base_config()
    c.update_from_flattened_dict({key.replace("__", "."): x for key, x in settings.items()})
    return c


def test_every_setting_is_a_field_with_its_value():
    flat = config.flatten(config.base_config())
    plan = config.resolve(flat)
    fields = {}
    for field in dataclasses.fields(groups.Settings):
        value = getattr(plan, field.name)
        if dataclasses.is_dataclass(value):
            fields |= {f"{field.name}.{key}": x for key, x in vars(value).items()}
        else:
            fields["stages" if field.name == "trained" else field.name] = value
    assert fields == flat
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.train.num_steps = 3
    with pytest.raises(TypeError):
        plan.stages["base"] = None


def test_what_cannot_run_is_refused_with_all_problems():
    c = changed(train__num_steps=0, adapt__rank=0)
    with pytest.raises(config.ConfigError, match=r"2 problems.*\n.*adapt.rank.*\n.*num_steps"):
        config.resolve(c)
    with pytest.raises(config.ConfigError, match=r"optim\.warmup_steps"):
        config.changed(config.resolve(changed()), {"optim.warmup_steps": 1001})


def test_second_stage_follows_the_first_where_it_sets_nothing():
    c = changed(train__num_steps=70, train__batch_size=6, optim__learning_rate=3e-4)
    own = config.resolve(c).stages["upscaler"]
    assert (own.train.num_steps, own.train.batch_size, own.optim.learning_rate) == (70, 6, 3e-4)


def test_second_stage_has_its_own_settings_and_the_first_keeps_its():
    c = changed(
        upscaler__num_steps=7,
        upscaler__batch_size=2,
        upscaler__accumulate=2,
        upscaler__learning_rate=0.5,
        sampler__upscaler_num_steps=11,
        sampler__upscaler_guidance_scale=1.25,
        restore__upscaler=3,
    )
    before = config.to_json(c)
    plan = config.resolve(c)
    first, own = plan.to_train
    assert (first.kind, own.kind) == ("base", "upscaler")
    assert (own.train.num_steps, own.train.batch_size, own.train.accumulate) == (7, 2, 2)
    assert (own.train.rows_at_once, first.train.rows_at_once) == (1, 4)
    assert own.optim.learning_rate == 0.5
    assert (own.sampler.num_steps, own.sampler.guidance_scale) == (11, 1.25)
    assert (first.train.num_steps, first.sampler.num_steps) == (1000, 100)
    assert (first.restore_step, own.restore_step) == (None, 3)
    assert config.to_json(c) == config.to_json(plan.flat) == before


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"upscaler__aug_level": 3}, 3),
        ({"upscaler__aug_level": 3, "upscaler__sample_aug_level": 40}, 40),
        ({"stages": ("base",)}, 250),  # diffusers' IF super-resolution: noise_level=250
    ],
)
def test_level_of_the_upscaler_when_sampling(changes, level):
    stages = config.resolve(changed(**changes)).stages
    assert stages["upscaler"].upscaler.sample_aug_level == level
    assert stages["base"].upscaler.sample_aug_level == level


def test_without_an_upscaler_there_is_one_stage():
    plan = config.resolve(changed(upscaler_model="", stages=("base",)))
    assert [*plan.stages] == ["base"]
    assert plan.stages["base"].is_trained


SHIPPED = {
    "imagen_like.py": ("", "smoke"),
    "stable_diffusion.py": ("sd15",),
    "sdxl.py": ("",),
    "deepfloyd_if.py": ("", "medium"),
    "pivotal_tuning.py": ("full", "lora"),
    "textual_inversion.py": ("",),
    "benchmark.py": ("", "trial", "sd15", "deepfloyd_if"),
    "sd3.py": ("medium", "medium35", "large35"),
    "flux.py": ("dev", "schnell"),
    "z_image.py": ("",),
    "flux2.py": ("klein_4b", "klein_9b"),
}


def test_no_shipped_configuration_is_left_out():
    assert {path.name for path in CONFIGS.glob("*.py")} - {"of_run.py"} == SHIPPED.keys()


@pytest.mark.parametrize("devices", [1, 4, 8, 16])
@pytest.mark.parametrize(("name", "arg"), [(n, a) for n, args in SHIPPED.items() for a in args])
def test_shipped_configurations_divide_over_any_usual_number_of_devices(name, arg, devices):
    """The rows of every stage that is trained, in one pass, over data × fsdp."""
    plan = config.resolve(runpy.run_path(str(CONFIGS / name))["get_config"](arg))
    sizes = dataclasses.asdict(plan.mesh)
    if sizes["data"] == -1:
        sizes["data"] = devices // (sizes["fsdp"] * sizes["tensor"])
        sizes = sharding.for_rows(loading.rows_of(plan), **sizes)
    assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == devices
    for own in plan.to_train:
        assert own.train.rows_at_once % (sizes["data"] * sizes["fsdp"]) == 0


def test_devices_that_rows_cannot_use_split_layers():
    mesh = sharding.make_mesh(rows=2, devices=jax.devices()[:8])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    fitting = sharding.make_mesh(rows=8, fsdp=2, devices=jax.devices()[:8])
    assert dict(fitting.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    asked = sharding.make_mesh(data=8, rows=2, devices=jax.devices()[:8])
    assert dict(asked.shape) == {"data": 8, "fsdp": 1, "tensor": 1}  # as written: `check_rows`
    odd = sharding.make_mesh(rows=3, fsdp=2, devices=jax.devices()[:8])
    assert dict(odd.shape) == {"data": 4, "fsdp": 2, "tensor": 1}  # no part would do
