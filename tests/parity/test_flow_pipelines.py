"""Stable Diffusion 3 and FLUX.1 against PyTorch: texts, the autoencoder, whole samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import families, generate, pipeline, sharding, tree

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import flows  # noqa: E402 (only with torch)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PROMPTS = ["A photo of a Zib dog", "a dog in the SNOW"]


@pytest.fixture(scope="module", params=list(flows.CLASSES))
def both(request, tmp_path_factory):
    """The variant, our stage with its weights, and their pipeline."""
    folder = flows.make(tmp_path_factory.mktemp("flow") / "model", request.param)
    stage = families.open_stage(str(folder), kind="base", resolution=16)
    theirs = flows.opened_by_them(folder, request.param)
    return request.param, stage, pipeline.read_weights(stage), theirs


def assert_close(found, expected, tolerance=1e-4):
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found, np.float32) - expected).max()
    assert error <= tolerance * np.abs(expected).max(), error / np.abs(expected).max()


def theirs_of(pipe, variant):
    """(states, pooled) of PROMPTS as the pipeline gives them to its transformer."""
    with torch.no_grad():
        if variant.startswith("sd3"):
            states, _, pooled, _ = pipe.encode_prompt(
                PROMPTS, PROMPTS, PROMPTS, do_classifier_free_guidance=False
            )
        else:
            states, pooled, _ = pipe.encode_prompt(PROMPTS, PROMPTS)
    return states, pooled


def test_texts_agree_capitals_and_padding_included(both):
    variant, stage, flat, pipe = both
    text = stage.encode_text(flat, stage.tokens(PROMPTS), dtype=jnp.float32)
    states, pooled = theirs_of(pipe, variant)
    assert states.shape[1] == (77 + 256 if variant.startswith("sd3") else 512)
    assert_close(text.states, states)
    assert_close(text.pooled, pooled)


def test_capitals_reach_t5(both):
    variant, stage, *_ = both
    tokens = stage.tokens(["a Zib", "a zib"])
    name = {"sd3": "ids_3", "sd3 without t5": None}.get(variant, "ids_2")
    if name is None:
        assert not any(key.endswith("_3") for key in tokens)
    else:
        assert (tokens[name][0] != tokens[name][1]).any()
    assert (tokens["ids"][0] == tokens["ids"][1]).all()  # CLIP's own tokenizer lower-cases


def test_the_autoencoder_shifts_and_scales(both, rng):
    _, stage, flat, pipe = both
    vae = tree.split(flat, lambda path: path.startswith("vae/"))[0]
    pictures = rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    mean, std = jit(stage.encode_images)(vae, pictures)
    with torch.no_grad():
        latent = pipe.vae.encode(torch.from_numpy(pictures).movedim(-1, 1)).latent_dist
        decoded = pipe.vae.decode(latent.mean).sample
    shift, scale = pipe.vae.config.shift_factor, pipe.vae.config.scaling_factor
    assert_close(mean, ((latent.mean - shift) * scale).movedim(1, -1))
    assert_close(std, (latent.std * scale).movedim(1, -1))
    assert_close(jit(stage.decode)(vae, mean), decoded.movedim(1, -1))


def test_whole_samples_agree(both):
    variant, stage, flat, pipe = both
    scale = {"flux dev": 3.5, "flux schnell": 1.0}.get(variant, 4.0)
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    sampler = generate.Sampler(
        stage,
        generate.Settings("ddim", 3, scale),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )
    found = sampler.batch(flat, text, PROMPTS, [1, 2], None)
    made = flows.drawn_by_them(pipe, stage, PROMPTS, scale=scale)
    assert np.abs((found + 1) / 2 - made).max() <= 1e-3


def test_schnell_has_no_guidance_to_scale(tmp_path):
    folder = flows.make(tmp_path / "model", "flux schnell")
    stage = families.open_stage(str(folder), kind="base", resolution=16)
    flat = pipeline.read_weights(stage)
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    sampler = generate.Sampler(
        stage,
        generate.Settings("ddim", 2, 3.5),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )
    with pytest.raises(ValueError, match=r"no guidance.*--config.sampler.guidance_scale=1.0"):
        sampler.batch(flat, text, PROMPTS, [1, 2], None)


@pytest.mark.parametrize(
    ("variant", "resolution", "message"),
    [
        ("sd3", 18, "expected a multiple of 4. Write --config.resolution=16"),
        ("sd3", 64, "knows positions up to 48 pixels along a side"),
        ("flux dev", 30, "expected a multiple of 4"),
    ],
)
def test_sizes_that_a_model_cannot_draw_are_refused(variant, resolution, message, tmp_path):
    folder = flows.make(tmp_path / "model", variant)
    with pytest.raises(ValueError, match=message):
        families.open_stage(str(folder), kind="base", resolution=resolution)


def test_a_folder_with_another_scheduler_is_refused(tmp_path):
    folder = flows.make(tmp_path / "model", "sd3")
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler"):
        families.open_stage(str(folder), kind="base")
