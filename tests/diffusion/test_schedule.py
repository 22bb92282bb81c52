import decimal
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_jax.diffusion import path, schedule

# (beta_schedule, beta_start, beta_end) as DDPM, Stable Diffusion and IF set them.
KINDS = {
    "linear": ("linear", 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),
}


def make(kind: str = "linear", **settings: object) -> path.BetaTable:
    name, start, end = KINDS[kind]
    settings = {"prediction_type": "v_prediction", **settings}
    return schedule.from_config(
        {"beta_schedule": name, "beta_start": start, "beta_end": end, **settings}
    )


def exact_remaining(kind: str, count: int = 1000) -> list[decimal.Decimal]:
    """alphas_cumprod from the papers' formulas, in decimal arithmetic with 50 digits."""
    _, start, end = KINDS[kind]
    with decimal.localcontext(prec=50):
        low, high = decimal.Decimal(str(start)), decimal.Decimal(str(end))
        if kind == "scaled_linear":
            low, high = low.sqrt(), high.sqrt()
        betas = [low + (high - low) * i / (count - 1) for i in range(count)]
        if kind == "scaled_linear":
            betas = [beta * beta for beta in betas]
        return list(itertools.accumulate((1 - beta for beta in betas), lambda a, b: a * b))


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_products_of_alphas_agree_with_decimal_arithmetic(kind):
    exact = np.array([float(value) for value in exact_remaining(kind)])
    np.testing.assert_allclose(make(kind).alphas_cumprod, exact, rtol=1e-12)


def test_cosine_products_telescope_to_the_papers_ratio():
    # Nichol & Dhariwal 2021, eq. 17: alphas_cumprod = f(t)/f(0), until the cap of beta at 0.999.
    u = np.arange(1, 1001) / 1000
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    remaining = make("cosine").alphas_cumprod
    np.testing.assert_allclose(remaining[:-1], f[:-1], rtol=1e-10)
    np.testing.assert_allclose(remaining[-1] / remaining[-2], 0.001, rtol=1e-10)


def test_published_noise_levels():
    # k-diffusion's sigma = sigma_t / alpha_t of Stable Diffusion 1: 0.0292 to 14.6146.
    remaining = make("scaled_linear").alphas_cumprod
    ratio = np.sqrt((1 - remaining) / remaining)
    assert (round(ratio[0], 4), round(ratio[-1], 4)) == (0.0292, 14.6146)
    # Noise levels of IF's upscaler, which conditions on steps of the cosine schedule.
    sigma = np.asarray(make("cosine").alpha_sigma(jnp.array([0, 1, 100, 250, 300]))[1])
    np.testing.assert_allclose(sigma, [0.0064, 0.0094, 0.169, 0.393, 0.463], atol=6e-4)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_signal_and_noise_share_one_variance_and_snr_falls(kind, zero):
    sched = make(kind, rescale_betas_zero_snr=zero)
    alpha, sigma = (np.asarray(v, np.float64) for v in sched.alpha_sigma(jnp.arange(1000)))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=2e-7)
    snr = np.asarray(sched.snr(jnp.arange(1000)), np.float64)
    assert (np.diff(snr) < 0).all()
    np.testing.assert_allclose(snr * sigma**2, alpha**2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_sigma_keeps_float32_precision_at_the_clean_end(kind):
    # 1 - alpha² taken in float32 would be wrong by up to 1e-3 here.
    with decimal.localcontext(prec=50):
        exact = [float((1 - value).sqrt()) for value in exact_remaining(kind)[:5]]
    np.testing.assert_allclose(make(kind).alpha_sigma(jnp.arange(5))[1], exact, rtol=1e-7)


def test_step_minus_one_is_the_clean_end():
    alpha, sigma = make().alpha_sigma(jnp.array([[-1, 0]]))
    assert alpha.shape == (1, 2)
    assert (alpha[0, 0], sigma[0, 0]) == (1, 0)
    assert sigma[0, 1] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step(kind):
    plain, rescaled = make(kind), make(kind, rescale_betas_zero_snr=True)
    assert rescaled.alphas_cumprod[-1] == 0
    assert rescaled.snr(jnp.array(999)) == 0
    np.testing.assert_allclose(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0], rtol=1e-12)
    # Lin et al. 2023: sqrt(alphas_cumprod) is an affine function of what it was.
    before, after = np.sqrt(plain.alphas_cumprod), np.sqrt(rescaled.alphas_cumprod)
    slopes = np.diff(after) / np.diff(before)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)


def test_zero_terminal_snr_with_epsilon_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="Use 'v_prediction' or 'sample'"):
        make(prediction_type="epsilon", rescale_betas_zero_snr=True)


def test_trained_betas_replace_the_formula():
    betas = [0.1, 0.2, 0.5]
    np.testing.assert_allclose(make(trained_betas=betas).alphas_cumprod, [0.9, 0.72, 0.36])


def test_published_step_tables():
    # Lin et al. 2023, table 2: T = 1000, 10 steps, there counted from 1.
    table = {
        "leading": [1, 101, 201, 301, 401, 501, 601, 701, 801, 901],
        "linspace": [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000],
        "trailing": [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000],
    }
    for spacing, steps in table.items():
        found = make(timestep_spacing=spacing).times(10)
        assert found.dtype == np.float32
        assert found.tolist() == [t - 1 for t in steps[::-1]] + [-1]


@pytest.mark.parametrize("spacing", schedule.SPACINGS)
def test_any_number_of_steps_gives_a_strictly_falling_table(spacing):
    for offset in (0, 1):
        sched = make(timestep_spacing=spacing, steps_offset=offset)
        for count in range(1, 1001):
            times = sched.times(count)
            assert len(times) == count + 1, count
            assert times[-1] == -1
            assert times[0] < 1000, count
            assert (np.diff(times) < 0).all(), count


@given(
    total=st.integers(1, 60),
    part=st.floats(0, 1),
    spacing=st.sampled_from(schedule.SPACINGS),
    offset=st.integers(0, 70),
)
def test_step_tables_of_short_schedules_are_strictly_falling(total, part, spacing, offset):
    count = 1 + int(part * (total - 1))
    sched = make(
        num_train_timesteps=total,
        trained_betas=[0.1] * total,
        timestep_spacing=spacing,
        steps_offset=offset,
    )
    times = sched.times(count)
    assert len(times) == count + 1
    assert times[0] < total
    assert times[-1] == -1
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("count", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(count):
    with pytest.raises(ValueError, match=f"found {count}, expected 1 to 1000"):
        make().times(count)


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("beta_schedule", "scaledlinear", "Did you mean 'scaled_linear'?"),
        ("prediction_type", "v-prediction", "Did you mean 'v_prediction'?"),
        ("prediction_type", "flow_prediction", "A flow is read from the file of a FlowMatchEuler"),
        ("variance_type", "fixed_larg", "Did you mean 'fixed_large'?"),
        ("timestep_spacing", "trail", "Did you mean 'trailing'?"),
    ],
)
def test_unknown_values_name_the_key_and_the_choices(key, value, hint):
    with pytest.raises(ValueError, match="cannot be honoured") as error:
        schedule.from_config({key: value})
    assert f"{key} = {value!r}" in str(error.value)
    assert hint in str(error.value)


def test_all_problems_are_told_at_once():
    raw = {"beta_schedule": "sigmoid", "variance_type": "learned", "sigma_dat": 0.5}
    with pytest.raises(ValueError, match="cannot be honoured") as error:
        schedule.from_config(raw)
    for key in raw:
        assert key in str(error.value)


def test_values_of_the_file_arrive():
    # scheduler_config.json of DeepFloyd IF-I-XL.
    raw = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.16.0",
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": True,
        "dynamic_thresholding_ratio": 0.95,
        "lambda_min_clipped": -5.1,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.5,
        "thresholding": True,
        "trained_betas": None,
        "variance_type": "learned_range",
    }
    sched = schedule.from_config(raw)
    assert sched.num_steps == 1000
    assert sched.variance_type == "learned_range"
    assert (sched.thresholding, sched.dynamic_thresholding_ratio) == (True, 0.95)
    assert (sched.sample_max_value, sched.clip_sample) == (1.5, True)
    # Stable Diffusion 2.1 as a DPM-Solver folder saves it: no variance of its own.
    sched = schedule.from_config({"prediction_type": "v_prediction", "variance_type": None})
    assert (sched.prediction_type, sched.variance_type) == ("v_prediction", "fixed_small")


@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("DDPMScheduler", True),
        ("DDIMScheduler", True),
        ("PNDMScheduler", False),
        ("EulerDiscreteScheduler", False),
        ("DPMSolverMultistepScheduler", False),
    ],
)
def test_a_file_without_clip_sample_clips_only_where_its_class_would(name, clips):
    # Clipping to [-1, 1] would destroy the latents of Stable Diffusion, whose files name these.
    assert schedule.from_config({"_class_name": name}).clip_sample is clips
    assert schedule.from_config({"_class_name": name, "clip_sample": not clips}).clip_sample is (
        not clips
    )


TABLE = {"_class_name": "DDPMScheduler"}
FLOWS = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
NO_STEPS = (0, -1, 10**5 + 1, 10**10, 1.5, 1000.0, "1000", True, [1000], {}, float("nan"))
NO_NUMBERS = (-1e9, 1e9, float("nan"), float("inf"), "1", True, [1.0], {})


@pytest.mark.parametrize(
    ("raw", "key", "values"),
    [
        (TABLE, "num_train_timesteps", NO_STEPS),
        (FLOWS, "num_train_timesteps", NO_STEPS),
        (TABLE, "steps_offset", (-1, 101, 0.5, "1", True, [])),
        (TABLE, "beta_start", NO_NUMBERS),
        (TABLE, "beta_end", NO_NUMBERS),
        (TABLE, "dynamic_thresholding_ratio", NO_NUMBERS),
        (TABLE, "sample_max_value", NO_NUMBERS),
        (TABLE, "clip_sample_range", (0, *NO_NUMBERS)),
        (TABLE, "clip_sample", (1, "true", [])),
        (TABLE, "thresholding", (1, "true", [])),
        (TABLE, "rescale_betas_zero_snr", (1, "true", [])),
        (
            TABLE,
            "trained_betas",
            ([], "x", [2.0], [-0.1], [None], {"a": 1}, [float("nan")], [[0.1]]),
        ),
        (FLOWS, "shift", (0, -1, *NO_NUMBERS)),
        (FLOWS, "base_shift", NO_NUMBERS),
        (FLOWS, "max_shift", NO_NUMBERS),
        (FLOWS, "base_image_seq_len", (0, -1, 0.5, "x", True, [])),
        (FLOWS, "max_image_seq_len", (0, -1, 0.5, "x", True, [])),
        (FLOWS, "shift_terminal", NO_NUMBERS),
        (FLOWS, "use_dynamic_shifting", (1, "true", [])),
    ],
)
def test_a_number_that_no_schedule_has_is_told_with_its_key(raw, key, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{key}( = |: )") as error:
            schedule.from_config({**raw, key: value})
        assert "expected" in str(error.value)


def test_a_shift_by_tokens_needs_two_numbers_of_tokens():
    with pytest.raises(ValueError, match="base_image_seq_len = max_image_seq_len = 256"):
        schedule.from_config({**FLOWS, "base_image_seq_len": 256, "max_image_seq_len": 256})
    with pytest.raises(ValueError, match="base_image_seq_len = max_image_seq_len = 4096"):
        schedule.from_config({**FLOWS, "base_image_seq_len": 4096})
