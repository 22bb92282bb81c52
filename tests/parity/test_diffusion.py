"""Schedules, samplers and the loss against PyTorch diffusers, live.

Same model function, same noise, whole trajectories.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import guidance, loss, process, rules, sampler, schedule

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
from diffusers.schedulers import scheduling_ddpm  # noqa: E402 (only where diffusers is there)

# diffusers passes tensors to numpy in a way that numpy 2 is retiring; torch has to answer it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "stable_diffusion": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
IF = {
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
}
SHAPE = (5, 6, 3)  # H W C, nothing square


def channels_first(x: jax.Array) -> "torch.Tensor":
    return torch.from_numpy(np.array(x, np.float64)).movedim(-1, 1)


def channels_last(x: "torch.Tensor") -> np.ndarray:
    return x.movedim(1, -1).numpy()


def file_of(scheduler) -> dict[str, object]:
    """What `save_pretrained` writes as scheduler_config.json."""
    return json.loads(scheduler.to_json_string())


class FakeNetwork:
    """tanh of an affine map of pixel and time: the same function for both libraries."""

    def __init__(self, outputs: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.kernel, self.bias = rng.normal(size=(3, outputs)), rng.normal(size=outputs)

    def jax(self, x, t):
        time = t[:, None, None, None].astype(jnp.float32) / 500 - 1
        bias = jnp.asarray(self.bias, jnp.float32)[None, None, None]
        return 1.5 * jnp.tanh(x @ jnp.asarray(self.kernel, jnp.float32) + bias * time)

    def torch(self, x, t):
        kernel, bias = torch.from_numpy(self.kernel), torch.from_numpy(self.bias)
        out = 1.5 * torch.tanh(x.movedim(1, -1) @ kernel + bias * (float(t) / 500 - 1))
        return out.movedim(-1, 1)


def in_double(scheduler) -> None:
    """Lets a diffusers scheduler count in float64: what differs is then the rounding of ours."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas, 0)
    for name in ("one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, torch.tensor(1.0, dtype=torch.float64))


KEYS = jax.random.split(jax.random.key(5), 2)


@jax.jit
def first_noise():
    return sampler.first_noise(KEYS, SHAPE)


@jax.jit
def noise_of_step(i):
    """The documented stream: fold_in(key, i + 1) of each image's key."""
    draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i + 1), SHAPE))
    return draw(KEYS)


def ours(sched, rule, times, network):
    # Small programs run in no time; optimising them would take most of it.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(x):
        threshold = guidance.THRESHOLDS["model"](sched)
        return sampler.sample(
            network.jax, x, KEYS, path=sched, rule=rule, times=times, threshold=threshold
        )

    return np.asarray(run(first_noise()))


def theirs(scheduler, network, monkeypatch) -> np.ndarray:
    sample = channels_first(first_noise())
    for i, t in enumerate(scheduler.timesteps):
        if isinstance(scheduler, diffusers.DDPMScheduler):
            drawn = channels_first(noise_of_step(i))
            monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, d=drawn, **k: d)
        sample = scheduler.step(network.torch(sample, t), t, sample).prev_sample
    return channels_last(sample)


def assert_close(found, expected, tolerance=1e-4):
    assert np.isfinite(expected).all()
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_agree(name, zero):
    settings = {**SCHEDULES[name], "rescale_betas_zero_snr": zero, "prediction_type": "sample"}
    their = diffusers.DDPMScheduler(**settings)
    sched = schedule.from_config(file_of(their))
    # Theirs is a float32 product of 1000 factors.
    expected = their.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(sched.alphas_cumprod, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_step_tables_agree_for_every_number_of_steps(spacing, offset):
    their = diffusers.DDPMScheduler(timestep_spacing=spacing, steps_offset=offset)
    sched = schedule.from_config(file_of(their))
    differ = []
    for count in range(1, 1001):
        their.set_timesteps(count)
        expected = their.timesteps.tolist()
        if sched.times(count).tolist() != [*expected, -1]:
            differ.append(count)
            # Only where theirs leaves the schedule (step 1000) or visits one step too many.
            assert max(expected) > 999 or len(expected) != count, count
    assert len(differ) < 100


@pytest.mark.parametrize(
    "name",
    [
        "DDPMScheduler",
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    ],
)
def test_the_file_of_any_usual_scheduler_is_understood(name):
    their = getattr(diffusers, name)(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
    )
    raw = file_of(their)
    sched = schedule.from_config(raw)
    assert sched.prediction_type == "v_prediction"
    # The single-step solver has no key for it; its steps are rounded from linspace(0, 999, n + 1).
    absent = "linspace" if name == "DPMSolverSinglestepScheduler" else "leading"
    assert sched.timestep_spacing == raw.get("timestep_spacing", absent)
    assert sched.clip_sample == raw.get("clip_sample", False)
    assert sched.thresholding == raw.get("thresholding", False)
    assert sched.steps_offset == raw.get("steps_offset", 0)
    expected = their.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(sched.alphas_cumprod, expected, rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_and_targets_agree(name, rng):
    their = diffusers.DDPMScheduler(**SCHEDULES[name])
    in_double(their)
    sched = schedule.from_config({**file_of(their), "prediction_type": "v_prediction"})
    x0, noise = rng.normal(size=(2, 4, *SHAPE)).astype(np.float32)
    t = np.array([0, 3, 500, 999])
    args = channels_first(x0), channels_first(noise), torch.from_numpy(t)
    found = process.add_noise(sched, x0, noise, jnp.asarray(t))
    assert_close(found, channels_last(their.add_noise(*args)), 1e-6)
    found = process.target(sched, x0, noise, jnp.asarray(t))
    assert_close(found, channels_last(their.get_velocity(*args)), 1e-6)


DDPM_CASES = {
    "linear fixed_small epsilon clipped": {"beta_schedule": "linear"},
    "cosine fixed_small_log v": {
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "fixed_small_log",
        "prediction_type": "v_prediction",
        "clip_sample": False,
    },
    "scaled_linear fixed_large sample": {
        **SCHEDULES["stable_diffusion"],
        "variance_type": "fixed_large",
        "prediction_type": "sample",
        "clip_sample_range": 0.8,
    },
    "IF": IF,
    "IF upscaler": {**IF, "sample_max_value": 1.0},
    "linear learned_range v unclipped": {
        "beta_schedule": "linear",
        "variance_type": "learned_range",
        "prediction_type": "v_prediction",
        "clip_sample": False,
    },
    "cosine epsilon unclipped": {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
    "zero terminal SNR, trailing": {
        **SCHEDULES["stable_diffusion"],
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    },
    "linspace": {"beta_schedule": "linear", "timestep_spacing": "linspace"},
}


LONG = ("IF", "linear fixed_small epsilon clipped", "cosine epsilon unclipped")


@pytest.mark.parametrize(
    ("case", "count"), [(case, 27) for case in DDPM_CASES] + [(case, 250) for case in LONG]
)
def test_ddpm_trajectories_agree(case, count, monkeypatch):
    their = diffusers.DDPMScheduler(**DDPM_CASES[case])
    in_double(their)
    their.set_timesteps(count)
    sched = schedule.from_config(file_of(their))
    times = sched.times(count)
    assert times.tolist() == [*their.timesteps.tolist(), -1]
    network = FakeNetwork(6 if sched.variance_type == "learned_range" else 3)
    found = ours(sched, rules.ddpm, times, network)
    assert_close(found, theirs(their, network, monkeypatch))


DDIM_CASES = {
    "linear epsilon clipped": {"beta_schedule": "linear"},
    "cosine v thresholded": {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "thresholding": True,
    },
    "stable diffusion epsilon": {**SCHEDULES["stable_diffusion"], "clip_sample": False},
    "stable diffusion sample, trailing": {
        **SCHEDULES["stable_diffusion"],
        "clip_sample": False,
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    },
    "zero terminal SNR": {
        **SCHEDULES["stable_diffusion"],
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}


@pytest.mark.parametrize("case", DDIM_CASES)
def test_ddim_trajectories_agree(case, monkeypatch):
    count = 25  # divides 1000: theirs steps by 1000 // count, whatever the table says
    their = diffusers.DDIMScheduler(**DDIM_CASES[case])
    in_double(their)
    their.set_timesteps(count)
    sched = schedule.from_config(file_of(their))
    network = FakeNetwork(3)
    found = ours(sched, rules.ddim, sched.times(count), network)
    assert_close(found, theirs(their, network, monkeypatch))


DPM_CASES = {
    "linear epsilon": {"beta_schedule": "linear"},
    "stable diffusion v": {
        **SCHEDULES["stable_diffusion"],
        "prediction_type": "v_prediction",
    },
    "cosine sample thresholded": {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "thresholding": True,
    },
}


@pytest.mark.parametrize("count", [2, 14, 30])
@pytest.mark.parametrize("case", DPM_CASES)
def test_dpm_solver_trajectories_agree(case, count, monkeypatch):
    their = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        **DPM_CASES[case],
    )
    sched = schedule.from_config(file_of(their))
    times = sched.times(count)
    their.set_timesteps(timesteps=times[:-1].astype(int).tolist())
    network = FakeNetwork(3)
    found = ours(sched, rules.dpmpp_2m, times, network)
    assert_close(found, theirs(their, network, monkeypatch))


def test_bilinear_enlargement_agrees(rng):
    x = rng.normal(size=(2, 7, 5, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        channels_first(x), size=(16, 12), mode="bilinear", align_corners=True
    )
    found = process.upsample_bilinear(jnp.asarray(x), (16, 12))
    np.testing.assert_allclose(found, channels_last(expected), atol=1e-5)


@pytest.mark.parametrize("prior", [0, 1, 3])
@pytest.mark.parametrize("prediction_type", schedule.PREDICTION_TYPES)
@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_the_loss_is_mean_of_subject_plus_lambda_mean_of_prior(prior, prediction_type, weight, rng):
    their = diffusers.DDPMScheduler(prediction_type=prediction_type)
    in_double(their)
    sched = schedule.from_config(file_of(their))
    subjects, rows = 2, 2 + prior
    x0, noise, output = rng.normal(size=(3, rows, *SHAPE)).astype(np.float32)
    t = rng.integers(0, 1000, rows)
    per_example = loss.denoising(sched, output, x0=x0, noise=noise, t=jnp.asarray(t))
    weights = loss.row_weights(jnp.arange(rows) >= subjects, weight)
    found, _ = loss.with_prior(per_example, weights)

    args = channels_first(x0), channels_first(noise), torch.from_numpy(t)
    target = {"epsilon": args[1], "sample": args[0]}.get(prediction_type)
    target = their.get_velocity(*args) if target is None else target
    words = channels_first(output)
    mse = torch.nn.functional.mse_loss
    expected = mse(words[:subjects], target[:subjects])
    if prior:
        expected = expected + weight * mse(words[subjects:], target[subjects:])
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
