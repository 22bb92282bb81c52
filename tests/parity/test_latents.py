"""Stable Diffusion 1, 2 and XL against PyTorch: every part, whole samples, and the export."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import export, families, generate, pipeline, sharding, tree, weights
from dreambooth_jax.families import sdxl
from dreambooth_jax.pipeline import parts

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import latents  # noqa: E402 (only with torch)
from published import CLASSES  # noqa: E402 (same)
from safetensors.numpy import load_file, save_file  # noqa: E402 (same)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PROMPTS = ["a zib dog", "a dog in the snow"]


@pytest.fixture(scope="module", params=list(latents.VARIANTS))
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def folder(variant, tmp_path_factory):
    return latents.make(tmp_path_factory.mktemp("latent") / variant, variant)


@pytest.fixture(scope="module")
def ours(folder) -> tuple[pipeline.Stage, dict[str, Any]]:
    stage = families.open_stage(str(folder), kind="base")
    return stage, pipeline.read_weights(stage)


@pytest.fixture(scope="module")
def theirs(folder, variant):
    pipe = getattr(diffusers, CLASSES[variant]).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_close(found, expected, tolerance=1e-4):
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found, np.float32) - expected).max()
    assert error <= tolerance * np.abs(expected).max(), error / np.abs(expected).max()


def channels_first(x) -> "torch.Tensor":
    return torch.from_numpy(np.array(x)).movedim(-1, 1)


def texts_of(pipe, variant) -> list["torch.Tensor"]:
    """(states, pooled or None) of PROMPTS, then of the empty prompt."""
    asked = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    with torch.no_grad():
        return list(pipe.encode_prompt(PROMPTS, **asked))


def test_prompts(ours, theirs, variant):
    stage, flat = ours
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    expected = texts_of(theirs, variant)
    states = text.table if variant != "sdxl" else text.table.states
    rows = text.rows(PROMPTS)
    assert_close(np.asarray(states)[rows], expected[0])
    empty = stage.conditioner.empty(text.table)
    assert_close(np.asarray(empty if variant != "sdxl" else empty.states), expected[1][:1])
    if variant == "sdxl":
        assert_close(np.asarray(text.table.pooled)[rows], expected[2])
        assert not np.asarray(empty.pooled).any()


def test_prompts_that_skip_a_layer(ours, folder, theirs, variant):
    """`clip_skip` counts as diffusers does; the vector of the whole prompt passes all layers."""
    skipping = partial(families.open_stage, str(folder), kind="base")
    stage, flat = skipping(changes=families.Changes(clip_skip=1)), ours[1]
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    asked = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        if variant == "sdxl":
            expected = theirs.encode_prompt(PROMPTS, clip_skip=1, **asked)
        else:  # as its encode_prompt does, which fails on the encoders of transformers 5
            ids = theirs.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
            states = theirs.text_encoder(ids, output_hidden_states=True).hidden_states
            norm = getattr(theirs.text_encoder, "text_model", theirs.text_encoder).final_layer_norm
            expected = [norm(states[-2])]
    rows = text.rows(PROMPTS)
    states = text.table if variant != "sdxl" else text.table.states
    assert_close(np.asarray(states)[rows], expected[0])
    if variant == "sdxl":
        assert_close(np.asarray(text.table.pooled)[rows], expected[2])
    with pytest.raises(ValueError, match="clip_skip = 3: expected less than the CLIP's 3 layers"):
        skipping(changes=families.Changes(clip_skip=3))


def test_the_network_and_its_gradient(ours, theirs, variant):
    stage, flat = ours
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *stage.sample_shape)).astype(np.float32)
    t = np.array([3, 801], np.int32)
    width = latents.UNET["cross_attention_dim"] if variant != "sdxl" else 72
    states = rng.normal(size=(2, 77, width)).astype(np.float32)
    pooled = rng.normal(size=(2, 24)).astype(np.float32)
    text = sdxl.PooledText(states, pooled) if variant == "sdxl" else states
    unet = tree.split(flat, lambda path: path.startswith("unet/"))[0]

    @jit
    def run(params):
        def mean_square(params):
            output = stage.predict(params, x, t, text)
            return (output**2).mean(), output

        (_, output), grads = jax.value_and_grad(mean_square, has_aux=True)(params)
        return output, grads

    output, grads = run(unet)
    added = {}
    if variant == "sdxl":
        sizes = torch.tensor([[16, 16, 0, 0, 16, 16]] * 2)
        added = {"added_cond_kwargs": {"text_embeds": torch.from_numpy(pooled), "time_ids": sizes}}
    model = theirs.unet
    expected = model(channels_first(x), torch.from_numpy(t), torch.from_numpy(states), **added)[0]
    assert_close(output, expected.movedim(1, -1))
    model.zero_grad()
    (expected**2).mean().backward()
    theirs_by_key = {key: value.grad.numpy() for key, value in model.named_parameters()}
    assert {weights.key_of(path.removeprefix("unet/")) for path in grads} == theirs_by_key.keys()
    largest = max(np.abs(grad).max() for grad in theirs_by_key.values())
    for path, grad in grads.items():
        key = weights.key_of(path.removeprefix("unet/"))
        turned = weights.turned(path, np.asarray(grad), to_file=True)
        assert np.abs(turned - theirs_by_key[key]).max() <= 1e-4 * largest, path


def test_the_autoencoder(ours, theirs):
    stage, flat = ours
    vae = tree.split(flat, lambda path: path.startswith("vae/"))[0]
    pictures = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    mean, std = jit(stage.encode_images)(vae, pictures)
    with torch.no_grad():
        found = theirs.vae.encode(channels_first(pictures)).latent_dist
        decoded = theirs.vae.decode(found.mean).sample
    assert_close(mean, 0.18215 * found.mean.movedim(1, -1))
    assert_close(std, 0.18215 * found.std.movedim(1, -1))
    assert_close(jit(stage.decode)(vae, mean), decoded.movedim(1, -1))


@pytest.mark.parametrize(
    ("guidance_scale", "size", "negative"),
    [(1.0, None, None), (5.0, None, None), (5.0, (24, 16), "dim, grey")],
)
def test_a_sample_is_theirs(ours, theirs, variant, guidance_scale, size, negative):
    stage, flat = ours
    prompts = [*PROMPTS, negative] if negative else PROMPTS
    text = generate.encode(stage, flat, prompts, dtype=jnp.float32)
    settings = generate.Settings("ddim", 4, guidance_scale, size=size)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = generate.Sampler(stage, settings, mesh=mesh)
    seeds = [5, 6]
    away = {"negative": text.rows([negative] * 2)} if negative else {}
    found = sampler.batch(flat, text, PROMPTS, seeds, None, **away)
    keys = jax.vmap(lambda s: generate.rng.named(jax.random.key(s), "sample/base"))(
        jnp.array(seeds, jnp.uint32)
    )
    noise = generate.sampler.first_noise(keys, generate.sample_shape(stage, settings))
    sides = {"height": 16, "width": 16} if variant == "sdxl" else {}
    sides = sides if size is None else dict(zip(("height", "width"), size, strict=True))
    made = theirs(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        latents=channels_first(noise),
        negative_prompt=[negative] * 2 if negative else None,
        output_type="np",
        **sides,
    ).images
    assert np.abs((found + 1) / 2 - made).max() <= 1e-3
    assert made.std() > 0.01


def test_the_round_trip_and_the_export(ours, folder, variant, tmp_path):
    stage, flat = ours
    tuned_by = np.float32(1e-3)
    moved = {p: x + tuned_by if p.startswith("unet/") else x for p, x in flat.items()}
    made = export.diffusers_folder(stage, flat, tmp_path / "same", dtype="float32", about={})
    for part, stem in stage.components.items():
        before = load_file(folder / part / f"{stem}.safetensors")
        after = load_file(made / part / f"{stem}.safetensors")
        if part == "text_encoder":  # published files have the prefix that transformers 5 leaves out
            before = {
                f"text_model.{key.removeprefix('text_model.')}": x for key, x in before.items()
            }
        assert before.keys() == after.keys()
        assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    tuned = export.diffusers_folder(stage, moved, tmp_path / "tuned", dtype="float32", about={})
    pipe = getattr(diffusers, CLASSES[variant]).from_pretrained(tuned)
    state = pipe.unet.state_dict()
    for key, value in load_file(tuned / "unet" / "diffusion_pytorch_model.safetensors").items():
        assert np.array_equal(state[key].numpy(), value)


def test_old_names_of_the_autoencoder_are_read(ours, folder, variant, tmp_path):
    stage, flat = ours
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, array in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        for new, name in old.items():
            if f"attentions.0.{new}." in key:
                key = key.replace(f".{new}.", f".{name}.")
                array = array[:, :, None, None] if array.ndim == 2 else array
        tensors[key] = array
    assert any("proj_attn" in key for key in tensors)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    found = weights.read(tmp_path, stage.networks["vae"].abstract)
    for path, leaf in found.items():
        assert np.array_equal(leaf, flat[f"vae/{path}"])


def test_large_pictures_are_decoded_one_by_one_on_each_device(ours, variant, monkeypatch):
    stage, flat = ours
    vae = tree.split(flat, lambda path: path.startswith("vae/"))[0]
    x0 = np.random.default_rng(3).normal(size=(8, *stage.sample_shape)).astype(np.float32)
    expected = jit(stage.decode)(vae, x0)
    sizes = []

    def traced(shards):
        def decode(params, x):
            text = str(jax.make_jaxpr(partial(stage.decode, shards=shards))(params, x))
            sizes.append("scan" in text)
            return stage.decode(params, x, shards=shards)

        return jit(decode)(vae, x0)

    monkeypatch.setattr(parts, "_LARGE", 16)
    for shards in (1, 4, 8):
        np.testing.assert_allclose(traced(shards), expected, atol=1e-5)
    assert sizes == [True, True, False]  # with a row for each device there are no turns to take
