"""The single file of Stable Diffusion against diffusers' own reader of the original layout."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from dreambooth_jax import families, pipeline, weights
from dreambooth_jax.export import single_file
from dreambooth_jax.families import original_keys
from dreambooth_jax.models import clip, unet, vae

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import latents  # noqa: E402 (only with torch)
import published as full_size  # noqa: E402 (same)
from diffusers.loaders import single_file_utils as theirs  # noqa: E402 (same)

ABOUT = {"instance prompt": "a zib dog", "fine-tuned": "3 steps"}


@pytest.fixture(scope="module", params=list(latents.VARIANTS))
def made(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    folder = latents.make(root / request.param, request.param)
    stage = families.open_stage(str(folder), kind="base")
    flat = pipeline.read_weights(stage)
    file = single_file.write(
        stage, flat, root / "zib_dog.safetensors", dtype="float32", about=ABOUT
    )
    return request.param, folder, stage, flat, file


def as_torch(file):
    return {key: torch.from_numpy(value) for key, value in load_file(file).items()}


def assert_same(found, folder, part, stage):
    stem = stage.components[part]
    expected = load_file(folder / part / f"{stem}.safetensors")
    if part.startswith("text_encoder"):
        strip = lambda d: {k.removeprefix("text_model."): v for k, v in d.items()}  # noqa: E731 - short
        found, expected = strip(found), strip(expected)
    found = {key: value for key, value in found.items() if not key.endswith("position_ids")}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(found[key].numpy(), value), key


def test_diffusers_reads_back_every_tensor(made):
    variant, folder, stage, _, file = made
    config = json.loads((folder / "unet" / "config.json").read_text())
    assert_same(theirs.convert_ldm_unet_checkpoint(as_torch(file), config), folder, "unet", stage)
    config = json.loads((folder / "vae" / "config.json").read_text())
    assert_same(theirs.convert_ldm_vae_checkpoint(as_torch(file), config), folder, "vae", stage)
    pipe = getattr(diffusers, full_size.CLASSES[variant]).from_pretrained(folder)
    if variant == "sd2":
        text = theirs.convert_open_clip_checkpoint(
            pipe.text_encoder, as_torch(file), prefix="cond_stage_model.model."
        )
        # The last layer, which SD 2 does not use and diffusers' folders do not have.
        text = {key: value for key, value in text.items() if "layers.3." not in key}
        assert_same(text, folder, "text_encoder", stage)
    else:
        text = theirs.convert_ldm_clip_checkpoint(as_torch(file))
        assert_same(text, folder, "text_encoder", stage)
    if variant == "sdxl":
        text = theirs.convert_open_clip_checkpoint(
            pipe.text_encoder_2, as_torch(file), prefix="conditioner.embedders.1.model."
        )
        assert_same(text, folder, "text_encoder_2", stage)


def test_the_metadata_says_what_it_is(made):
    variant, _, stage, _, file = made
    with safe_open(str(file), framework="numpy") as found:
        about = found.metadata()
    names = {
        "sd1": "stable-diffusion-v1",
        "sd2": "stable-diffusion-v2-768-v",
        "sdxl": "stable-diffusion-xl-v1-base",
    }
    assert about["modelspec.architecture"] == names[variant]
    assert about["modelspec.trigger_phrase"] == "a zib dog"
    assert about["modelspec.prediction_type"] == ("v" if variant == "sd2" else "epsilon")
    assert about["modelspec.resolution"] == f"{stage.size[1]}x{stage.size[0]}"
    assert "3 steps" in about["modelspec.description"]


def test_a_weight_that_does_not_fit_leaves_no_file(made, tmp_path):
    _, _, stage, flat, _ = made
    broken = dict(flat)
    path = next(path for path in flat if path.startswith("unet/conv_in"))
    broken[path] = np.full_like(flat[path], 1e30)
    with pytest.raises(ValueError, match="does not fit float16"):
        single_file.write(stage, broken, tmp_path / "x.safetensors", dtype="float16", about={})
    assert list(tmp_path.iterdir()) == []


def test_a_cascade_has_none(tiny_cascade):
    stage = families.open_stage(str(tiny_cascade["base"]), kind="base")
    assert single_file.layout(stage) is None
    with pytest.raises(ValueError, match="single_file=False"):
        single_file.tensors_of(stage, pipeline.read_weights(stage), dtype="float32")


def names_and_shapes(config, build, convert):
    """The original keys of a full-size network without its 3 GB: zeros that take no memory."""
    abstract = build(config).abstract
    zeros = {
        weights.key_of(path): np.broadcast_to(
            np.float32(0),
            weights.turned(path, np.broadcast_to(np.float32(0), x.shape), to_file=True).shape,
        )
        for path, x in abstract.items()
    }
    return {key: value.shape for key, value in convert(zeros).items()}


# Keys of the published files: `v1-5-pruned-emaonly`, `v2-1_768-ema-pruned`, `sd_xl_base_1.0`.
@pytest.mark.parametrize(
    ("config", "count", "sample"),
    [
        (
            full_size.SD1,
            686,
            ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (320, 768)),
        ),
        (full_size.SD2, 686, ("output_blocks.5.2.conv.weight", (1280, 1280, 3, 3))),
        (full_size.SDXL, 1680, ("label_emb.0.0.weight", (1280, 2816))),
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_full_size_unets_have_the_published_keys(config, count, sample):
    found = names_and_shapes(config, unet.build, original_keys.unet)
    assert len(found) == count
    assert found[sample[0]] == sample[1]
    assert found["input_blocks.0.0.weight"] == (320, 4, 3, 3)
    assert found["out.2.weight"] == (4, 320, 3, 3)


def test_full_size_autoencoder_and_text_encoders_have_the_published_keys():
    found = names_and_shapes(full_size.KL, vae.build, original_keys.vae)
    assert len(found) == 248
    assert found["encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert found["decoder.up.3.upsample.conv.weight"] == (512, 512, 3, 3)
    found = names_and_shapes(full_size.CLIP_L, clip.build, original_keys.clip)
    assert len(found) == 197  # position_ids are one of them
    big = names_and_shapes(
        full_size.BIG_G, clip.build, lambda t: original_keys.open_clip(t, whole=True)
    )
    assert len(big) == 390
    assert 1680 + 248 + 197 + 390 == 2515  # sd_xl_base_1.0.safetensors
    assert big["transformer.resblocks.31.attn.in_proj_weight"] == (3840, 1280)
    h = names_and_shapes(
        full_size.CLIP_H, clip.build, lambda t: original_keys.open_clip(t, whole=False)
    )
    assert len(h) == 24 * 12 + 6
    last = {f"cond_stage_model.model.{key}" for key in h if ".23." in key}
    ignored = set(theirs.SD_2_TEXT_ENCODER_KEYS_TO_IGNORE)
    assert ignored == last | {"cond_stage_model.model.text_projection"}
    assert h["transformer.resblocks.23.mlp.c_fc.weight"] == (4096, 1024)
