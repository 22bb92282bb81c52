"""What a `scheduler_config.json` means, against the diffusers class that wrote it, live."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import process, sampler, schedule

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")


# diffusers passes tensors to numpy in a way that numpy 2 is retiring; torch has to answer it.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
# One of them needs torchsde even to be looked at.
TABLES = [name for name in schedule.TABLES if name != "DPMSolverSDEScheduler"]


def defaults_of(name: str) -> dict[str, object]:
    """What the class takes for every key that a file leaves out."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", TABLES)
def test_keys_that_a_file_leaves_out_have_the_defaults_of_its_class(name):
    expected = defaults_of(name)
    found = schedule.from_config({"_class_name": name})
    for key in ("prediction_type", "clip_sample", "thresholding", "steps_offset"):
        assert getattr(found, key) == expected.get(key, getattr(found, key)), key
    assert found.clip_sample == expected.get("clip_sample", False)
    assert found.timestep_spacing == expected.get("timestep_spacing", "linspace")
    betas = schedule.BETAS[expected["beta_schedule"]](
        expected["num_train_timesteps"], expected["beta_start"], expected["beta_end"]
    )
    np.testing.assert_allclose(found.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-12)
    their = getattr(diffusers, name)().alphas_cumprod.double().numpy()
    np.testing.assert_allclose(found.alphas_cumprod, their, rtol=1e-4)


@pytest.mark.parametrize("name", TABLES)
def test_a_file_that_leaves_everything_out_is_that_which_says_everything(name):
    whole = {k: v for k, v in defaults_of(name).items() if not isinstance(v, float) or v > -1e9}
    short = schedule.from_config({"_class_name": name})
    full = schedule.from_config({"_class_name": name, **whole})
    for field in dataclasses.fields(short):
        np.testing.assert_array_equal(getattr(short, field.name), getattr(full, field.name))


FLOWS = {
    "plain": {},
    "SD 3": {"shift": 3.0},
    "terminal": {"shift": 2.0, "shift_terminal": 0.1},
    "dynamic": {"use_dynamic_shifting": True},
    "dynamic, linear": {
        "use_dynamic_shifting": True,
        "time_shift_type": "linear",
        "max_shift": 0.9,
        "max_image_seq_len": 8192,
        "shift_terminal": 0.02,
    },
}


def pair(name: str, height: int, width: int, count: int, spacing: str):
    """Their scheduler with its levels set, and ours, for an x0 of this size."""
    their = diffusers.FlowMatchEulerDiscreteScheduler(**FLOWS[name])
    ours = schedule.from_config(json.loads(their.to_json_string()))
    ours = dataclasses.replace(ours, timestep_spacing=spacing).at(height, width)
    c = their.config
    tokens = (height // 2) * (width // 2)
    slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
    asked = {"mu": c.base_shift + slope * (tokens - c.base_image_seq_len)}
    asked = asked if c.use_dynamic_shifting else {}
    if spacing == "trailing":
        asked["sigmas"] = np.linspace(1.0, 1 / count, count)
    their.set_timesteps(count, **asked)
    return their, ours


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("name", FLOWS)
def test_levels_of_a_flow_agree_at_every_size_and_number_of_steps(name, spacing):
    for height, width in ((32, 32), (64, 96), (128, 128), (192, 64)):
        for count in (2, 4, 28, 50):
            their, ours = pair(name, height, width, count, spacing)
            times = ours.times(count)
            np.testing.assert_allclose(times, their.sigmas.numpy(), atol=2e-7)
            told = np.asarray(ours.told(jnp.asarray(times[:-1])))
            np.testing.assert_allclose(told, their.timesteps.numpy(), rtol=1e-6, atol=2e-4)


def network(x, t, library):
    return library.tanh(1.3 * x - 0.2) + 0.1 * (t / 500 - 1)


@pytest.mark.parametrize("name", FLOWS)
def test_pictures_of_a_flow_agree(name):
    their, ours = pair(name, 8, 6, 20, "trailing")
    noise = np.random.default_rng(0).normal(size=(2, 8, 6, 4)).astype(np.float32)
    found = sampler.sample(
        lambda x, t: network(x, ours.told(t)[:, None, None, None], jnp),
        jnp.asarray(noise),
        jax.random.split(jax.random.key(0), 2),
        path=ours,
        rule=sampler.SAMPLERS["ddim"],
        times=ours.times(20),
    )
    x = torch.from_numpy(noise)
    for t in their.timesteps:
        x = their.step(network(x, t, torch), t, x).prev_sample
    np.testing.assert_allclose(found, x.numpy(), atol=1e-5)


def test_noise_of_a_flow_agrees(rng):
    their = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = schedule.from_config(json.loads(their.to_json_string()))
    x0, noise = rng.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    at = their.timesteps[[0, 400, 998]]
    found = process.add_noise(ours, x0, noise, jnp.asarray(at.numpy() / 1000))
    expected = their.scale_noise(torch.from_numpy(x0), at, torch.from_numpy(noise))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
