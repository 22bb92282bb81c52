"""Local blend against PyTorch's UNet, by attention maps that are made and looked at.

The places of words in noised pictures, then a drawing in which the edit is its source elsewhere.
"""

import cascades
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import families, generate, pipeline, regions, rng, sharding, tree
from dreambooth_jax.diffusion import sampler
from dreambooth_jax.models.words import Swap
from dreambooth_jax.text import alignment

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import latents  # noqa: E402 (only with torch)
from attention_maps import Heat, Maps  # noqa: E402 (same)

TOKENS, STEPS, SCALE, SEED = 77, 5, 4.0, 3
CROSS, AMONG = 4, 2  # steps that follow the source
PROMPTS = ("", "source", "edit")
START, A, DOG, CAT, END = range(5)
SOURCE, EDIT = [START, A, DOG, END], [START, A, CAT, END]
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(3, TOKENS, 32)).astype(np.float32)


@pytest.fixture(scope="module", params=["sd1", "if"])
def both(request, tmp_path_factory):
    """Our stage and its weights; their UNet and folder."""
    root, name = tmp_path_factory.mktemp("models"), request.param
    if name == "if":
        folder = cascades.make(root / name, "base", unet=cascades.ONE_LEVEL)
    else:
        folder = latents.make(root / name, name)
    stage = families.open_stage(str(folder), kind="base")
    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").to(torch.float32)
    return stage, pipeline.read_weights(stage), network, folder


def channels_first(x) -> "torch.Tensor":
    return torch.from_numpy(np.array(x)).movedim(-1, 1)


def test_the_places_of_words_are_those_of_the_maps(both):
    stage, flat, network, folder = both
    columns = np.zeros((2, TOKENS), np.float32)
    columns[0, 2] = columns[1, 2] = columns[1, 1] = 1
    known = RNG.normal(size=(2, *stage.sample_shape)).astype(np.float32)
    seeds = np.array([5, 6], np.uint32)
    rows = {"known": known, "prompt": np.array([1, 2]), "seed": seeds, "columns": columns}
    params = tree.split(flat, stage.is_denoiser)[0]
    found = jax.jit(
        lambda params, rows: regions.heat(
            params, jnp.asarray(STATES), rows, stage=stage, num_steps=STEPS
        )
    )(params, rows)

    noise = sampler.first_noise(
        jnp.stack([rng.named(jax.random.key(seed), "regions") for seed in seeds]),
        stage.sample_shape,
    )
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps[STEPS - round(STEPS / 2)]
    noised = scheduler.add_noise(channels_first(known), channels_first(noise), t[None])
    heat = Heat(columns)
    network.set_attn_processor(heat)
    with torch.no_grad():
        network(noised, t, torch.from_numpy(STATES[1:]))
        size = stage.sample_shape[:2]
        large = [
            torch.nn.functional.interpolate(
                one.reshape(2, 1, round(one.shape[1] ** 0.5), -1), size, mode="bilinear"
            )[:, 0]
            for one in heat.kept
            if one.shape[1] <= 256
        ]
    expected = torch.stack(large).mean(0).numpy()
    assert len(large) >= 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Random networks look everywhere: the same in what is above the mean.
    ours, theirs = (regions.marked(x - x.mean(), "word") for x in (np.asarray(found), expected))
    np.testing.assert_array_equal(ours, theirs)
    assert 0 < theirs.mean() < 1


@pytest.mark.parametrize("both", ["sd1"], indirect=True)
def test_elsewhere_the_edit_is_its_source(both):
    """`x_t ← x_s + mask·(x_t - x_s)` after every step of their scheduler."""
    stage, flat, network, folder = both
    edit = alignment.aligned(SOURCE, EDIT, length=TOKENS)
    mask = np.zeros((2, *stage.sample_shape[:2], 1), np.float32)
    mask[:, 2:6, 1:5] = 1
    rows = {
        "words": np.stack([edit.words] * 2),
        "own": np.stack([edit.own] * 2),
        "cross_steps": np.full(2, CROSS, np.int32),
        "self_steps": np.full(2, AMONG, np.int32),
        "differ": mask,
    }
    made = generate.Sampler(
        stage,
        generate.Settings("ddim", STEPS, SCALE),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )
    text = generate.Text(PROMPTS, jnp.asarray(STATES))
    found = made.batch(flat, text, PROMPTS[1:], [SEED] * 2, None, **rows)

    key = rng.named(jax.random.key(np.uint32(SEED)), "sample/base")
    x = channels_first(sampler.first_noise(jnp.stack([key, key]), stage.sample_shape))
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(STEPS)
    states = torch.from_numpy(STATES[[1, 0, 2, 0]])  # each, then without the prompt
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    off = np.zeros_like(edit.words), np.ones_like(edit.own)
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            given, own = (edit.words, edit.own) if i < CROSS else off
            network.set_attn_processor(Maps(Swap(given[None], own[None], np.array([i < AMONG]))))
            output = network(x.repeat_interleave(2, 0), t, states)[0]
            guided = output[1::2] + SCALE * (output[0::2] - output[1::2])
            x = scheduler.step(guided, t, x).prev_sample
            x = torch.stack([x[0], x[0] + channels_first(mask)[1] * (x[1] - x[0])])
        expected = vae.decode(x / vae.config.scaling_factor).sample.movedim(1, -1).numpy()
    expected = np.clip(expected, -1, 1)
    print("largest difference", np.abs(found - expected).max())
    assert np.abs(found - expected).max() <= 1e-5
    assert np.abs(expected[1] - expected[0]).max() > 1e-3
