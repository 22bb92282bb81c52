"""Stable Diffusion 1, 2 and XL against PyTorch: every part, whole samples, and the export."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import export, generate, pipeline, sharding, tree, weights

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import latents  # noqa: E402 (only with torch)
from safetensors.numpy import load_file, save_file  # noqa: E402 (same)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
PROMPTS = ["a zib dog", "a dog in the snow"]


@pytest.fixture(scope="module", params=list(latents.VARIANTS))
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def folder(variant, tmp_path_factory):
    return latents.make(tmp_path_factory.mktemp("latent") / variant, variant)


@pytest.fixture(scope="module")
def ours(folder) -> tuple[pipeline.Stage, dict[str, Any]]:
    stage = pipeline.open_stage(str(folder), kind="base")
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
    empty = stage.unguided(text.table)
    assert_close(np.asarray(empty if variant != "sdxl" else empty.states), expected[1][:1])
    if variant == "sdxl":
        assert_close(np.asarray(text.table.pooled)[rows], expected[2])
        assert not np.asarray(empty.pooled).any()


def test_the_network_and_its_gradient(ours, theirs, variant):
    stage, flat = ours
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *stage.sample_shape)).astype(np.float32)
    t = np.array([3, 801], np.int32)
    width = latents.UNET["cross_attention_dim"] if variant != "sdxl" else 72
    states = rng.normal(size=(2, 77, width)).astype(np.float32)
    pooled = rng.normal(size=(2, 24)).astype(np.float32)
    text = pipeline.PooledText(states, pooled) if variant == "sdxl" else states
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


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_sample_is_theirs(ours, theirs, variant, guidance_scale):
    stage, flat = ours
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    settings = generate.Settings("ddim", 4, guidance_scale)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = generate.Sampler(stage, settings, mesh=mesh)
    seeds = [5, 6]
    found = sampler.batch(flat, text, PROMPTS, seeds, None)
    keys = jax.vmap(lambda s: generate.rng.named(jax.random.key(s), "sample/base"))(
        jnp.array(seeds, jnp.uint32)
    )
    noise = generate.sampler.first_noise(keys, stage.sample_shape)
    made = theirs(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        latents=channels_first(noise),
        output_type="np",
        **({} if variant != "sdxl" else {"height": 16, "width": 16}),
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

    monkeypatch.setattr(pipeline.stage, "_LARGE", 16)
    for shards in (1, 4, 8):
        np.testing.assert_allclose(traced(shards), expected, atol=1e-5)
    assert sizes == [True, True, False]  # with a row for each device there are no turns to take


# Published numbers of parameters, and the published configurations that have them.
SD1 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD2 = SD1 | {
    "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "use_linear_projection": True,
}  # fmt: skip
SDXL = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048, "use_linear_projection": True,
    "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
}  # fmt: skip
KL = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
CLIP_L = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
CLIP_H = CLIP_L | {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "hidden_act": "gelu",
}  # fmt: skip
BIG_G = CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
    "architectures": ["CLIPTextModelWithProjection"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "config", "count"),
    [
        (pipeline.folder.unet.build, SD1, 859_520_964),
        (pipeline.folder.unet.build, SD2, 865_910_724),
        (pipeline.folder.unet.build, SDXL, 2_567_463_684),
        (pipeline.folder.vae.build, KL, 83_653_863),
        (pipeline.families.clip.build, CLIP_L, 123_060_480),
        (pipeline.families.clip.build, CLIP_H, 340_387_840),
        (pipeline.families.clip.build, BIG_G, 694_659_840),
    ],
    ids=["sd1", "sd2", "sdxl", "vae", "clip-l", "clip-h", "big-g"],
)
def test_full_size_networks_have_the_published_number_of_parameters(build, config, count):
    assert tree.count(build(config).abstract) == count
