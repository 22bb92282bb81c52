"""Every sampler against the diffusers scheduler of its name: one network, one noise, 20 steps."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import guidance, sampler, schedule

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
from diffusers.pipelines.stable_diffusion import (  # noqa: E402 (only where diffusers is there)
    pipeline_stable_diffusion,
)
from diffusers.schedulers import (  # noqa: E402 (only where diffusers is there)
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
)

# diffusers passes tensors to numpy in a way that numpy 2 is retiring; torch has to answer it.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

STEPS, SHAPE = 20, (5, 6, 3)
KEYS = jax.random.split(jax.random.key(5), 2)
SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def network(x, t, library):
    """The same function of pixel and time for both libraries."""
    return library.tanh(1.3 * x - 0.2) + 0.1 * (t / 500 - 1)


def noise_of_step(i: int) -> "torch.Tensor":
    """The documented stream: fold_in(key, i + 1) of each image's key."""
    draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i + 1), SHAPE))
    return torch.from_numpy(np.array(draw(KEYS), np.float64))


def start() -> np.ndarray:
    return np.array(sampler.first_noise(KEYS, SHAPE), np.float64)


def ours(name: str, path, times: np.ndarray, *, whole: bool = False) -> np.ndarray:
    """whole: the network is told whole time steps, as theirs is by some schedulers."""

    def denoise(x, t):
        told = path.told(t)[:, None, None, None]
        return network(x, jnp.round(told) if whole else told, jnp)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(x):
        rule = sampler.SAMPLERS[name]
        return sampler.sample(denoise, x, KEYS, path=path, rule=rule, times=times)

    return np.asarray(run(jnp.asarray(start(), jnp.float32)))


def theirs(scheduler, *, by_ratio: bool = False, monkeypatch=None, module=None, **asked):
    """by_ratio: the sample is x / alpha, as in k-diffusion. asked: of each step, by its number."""
    x = torch.from_numpy(start())
    if by_ratio:
        x = x * torch.sqrt(scheduler.sigmas[0].double() ** 2 + 1)
    for i, t in enumerate(scheduler.timesteps):
        if module is not None:
            drawn = noise_of_step(i)
            monkeypatch.setattr(module, "randn_tensor", lambda *a, drawn=drawn, **k: drawn)
        given = scheduler.scale_model_input(x, t) if by_ratio else x
        more = {name: make(i) for name, make in asked.items()}
        x = scheduler.step(network(given, float(t), torch), t, x, **more).prev_sample
    return x.numpy()


def file_of(scheduler) -> dict[str, object]:
    return json.loads(scheduler.to_json_string())


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isfinite(expected).all()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras", "exponential"])
@pytest.mark.parametrize(
    ("name", "scheduler"), [("euler", "EulerDiscrete"), ("heun", "HeunDiscrete")]
)
def test_euler_and_heun_agree(name, scheduler, spacing, predicts):
    settings = {**SD, "prediction_type": predicts}
    if spacing in ("karras", "exponential"):
        settings |= {"timestep_spacing": "linspace", f"use_{spacing}_sigmas": True}
    else:
        settings["timestep_spacing"] = spacing
    their = getattr(diffusers, f"{scheduler}Scheduler")(**settings)
    their.set_timesteps(STEPS)
    path = schedule.from_config(file_of(their))
    times = sampler.levels(name, path, STEPS, spacing=spacing)
    np.testing.assert_allclose(times[:-1], their.timesteps.numpy(), atol=2e-2)
    assert_close(ours(name, path, times), theirs(their, by_ratio=True))


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_euler_ancestral_agrees(predicts, monkeypatch):
    their = diffusers.EulerAncestralDiscreteScheduler(**SD, prediction_type=predicts)
    their.set_timesteps(STEPS)
    path = schedule.from_config(file_of(their))
    module = scheduling_euler_ancestral_discrete
    expected = theirs(their, by_ratio=True, monkeypatch=monkeypatch, module=module)
    assert_close(ours("euler_ancestral", path, path.times(STEPS)), expected)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_dpmpp_2m_between_karras_levels_agrees(predicts):
    their = diffusers.DPMSolverMultistepScheduler(
        **SD, prediction_type=predicts, use_karras_sigmas=True
    )
    their.set_timesteps(STEPS)
    path = schedule.from_config(file_of(their))
    times = sampler.levels("dpmpp_2m_karras", path, STEPS)
    np.testing.assert_allclose(times[:-1], their.timesteps.numpy(), atol=0.5 + 1e-3)
    assert_close(ours("dpmpp_2m_karras", path, times, whole=True), theirs(their))


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_dpmpp_2m_sde_agrees(predicts):
    their = diffusers.DPMSolverMultistepScheduler(
        **SD, prediction_type=predicts, algorithm_type="sde-dpmsolver++"
    )
    path = schedule.from_config(file_of(their))
    times = path.times(STEPS)
    their.set_timesteps(timesteps=times[:-1].astype(int).tolist())
    expected = theirs(their, variance_noise=noise_of_step)
    assert_close(ours("dpmpp_2m_sde", path, times), expected)


@pytest.mark.parametrize("count", [2, 3, STEPS])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_unipc_agrees(predicts, count):
    their = diffusers.UniPCMultistepScheduler(**SD, prediction_type=predicts)
    their.set_timesteps(count)
    path = schedule.from_config(file_of(their))
    times = np.append(their.timesteps.numpy(), -1)
    assert_close(ours("unipc", path, times), theirs(their))


@pytest.mark.parametrize("count", [4, STEPS])
def test_lcm_agrees(count, monkeypatch):
    their = diffusers.LCMScheduler()
    their.set_timesteps(count)
    path = schedule.from_config(file_of(their))
    times = sampler.levels("lcm", path, count)
    np.testing.assert_array_equal(times[:-1], their.timesteps.numpy())
    expected = theirs(their, monkeypatch=monkeypatch, module=scheduling_lcm)
    assert_close(ours("lcm", path, times), expected)


def test_rescaled_guidance_agrees(rng):
    cond, uncond = rng.normal(size=(2, 3, 4, 5, 4)).astype(np.float32)
    found = guidance.classifier_free(cond, uncond, 7.5, channels=4, rescale=0.7)
    plain = torch.from_numpy(uncond + 7.5 * (cond - uncond))
    expected = pipeline_stable_diffusion.rescale_noise_cfg(
        plain, torch.from_numpy(cond), guidance_rescale=0.7
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


# ---- Flows


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_levels_and_pictures_of_a_flow_with_another_spacing_agree(spacing):
    their = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **{f"use_{spacing}_sigmas": True})
    their.set_timesteps(STEPS)
    plain = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    path = schedule.from_config(file_of(plain))
    times = sampler.levels("euler", path, STEPS, spacing=spacing)
    np.testing.assert_allclose(times, their.sigmas.numpy(), atol=1e-6)
    assert_close(ours("euler", path, times), theirs(their))


def test_heun_on_a_flow_agrees():
    their = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    their.set_timesteps(STEPS)
    path = schedule.from_config({"_class_name": schedule.FLOW, "shift": 3.0})
    distinct = np.unique(their.sigmas.numpy())[::-1]
    np.testing.assert_allclose(sampler.twice(distinct), their.sigmas.numpy(), atol=1e-6)
    assert_close(ours("heun", path, sampler.twice(distinct)), theirs(their))


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_multistep_samplers_on_a_flow_agree(name):
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    if name == "unipc":
        their = diffusers.UniPCMultistepScheduler(**flow)
    else:
        kind = "sde-dpmsolver++" if name.endswith("sde") else "dpmsolver++"
        their = diffusers.DPMSolverMultistepScheduler(**flow, algorithm_type=kind)
    their.set_timesteps(STEPS)
    path = schedule.from_config({"_class_name": schedule.FLOW, "shift": 3.0})
    more = {"variance_noise": noise_of_step} if name.endswith("sde") else {}
    assert_close(ours(name, path, their.sigmas.numpy()), theirs(their, **more))
