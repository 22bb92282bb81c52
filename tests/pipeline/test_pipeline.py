"""From a name to the parts of a stage: where it is looked for, what is in it, what is refused."""

import json
import shutil
from pathlib import Path

import cascades
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import dreambooth_jax
from dreambooth_jax import families, pipeline, tree

KINDS = ("base", "upscaler")
ASSETS = Path(dreambooth_jax.__file__).parent / "assets"


@pytest.fixture(scope="module")
def stages(tiny_cascade):
    return {
        kind: families.open_stage(str(folder), kind=kind) for kind, folder in tiny_cascade.items()
    }


@pytest.fixture
def copied(tiny_cascade, tmp_path):
    """A base that a test may damage; without weights, which opening does not look at."""
    leave = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(tiny_cascade["base"], tmp_path / "model", ignore=leave))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# Where a model is.


@pytest.mark.parametrize("kind", KINDS)
def test_embedded_is_a_folder_of_the_package(kind):
    found = pipeline.locate("embedded", kind=kind)
    assert found == ASSETS / kind
    assert (found / "model_index.json").is_file()


def test_a_folder_is_taken_as_it_is(copied, monkeypatch):
    assert pipeline.locate(str(copied), kind="base") == copied
    monkeypatch.setenv("HOME", str(copied.parent))
    assert pipeline.locate("~/model", kind="base") == copied
    monkeypatch.chdir(copied.parent)
    (copied / "owner").mkdir()
    # A folder of that name goes before a hub id.
    assert pipeline.locate("model/owner", kind="base").samefile(copied / "owner")


@pytest.mark.parametrize("name", ["embeded", "./a/b", "/a/b", "~/a", "a/b/c", "../x"])
def test_nonsense_is_answered_with_what_could_be_written(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match="Write 'embedded'") as error:
        pipeline.locate(name, kind="base")
    assert repr(name) in str(error.value) and "owner/name" in str(error.value)


@pytest.mark.parametrize("name", ["nobody-at-all/no-model", "a b/c", "--x/y..", "a/b@v1"])
def test_a_hub_that_gives_nothing_is_reported_in_one_line(name):
    with pytest.raises(FileNotFoundError, match="model hub gave none") as error:
        pipeline.locate(name, kind="base")
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_a_gated_model_tells_how_to_log_in(monkeypatch):
    def silent(*args, **kwargs):
        raise OSError  # some errors have no text at all

    monkeypatch.setattr("huggingface_hub.snapshot_download", silent)
    with pytest.raises(FileNotFoundError, match="hf auth login"):
        pipeline.locate("owner/gated", kind="base")


def test_a_hub_id_brings_what_is_read_and_no_pickle(copied, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    asked = {}

    def download(repo, *, allow_patterns, **how):
        asked[repo] = allow_patterns
        return str(copied)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert pipeline.locate("owner/name", kind="base") == copied
    needed = {str(p.relative_to(copied)) for p in copied.rglob("*") if p.is_file()}
    needed |= {"unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}
    needed |= {"text_encoder/model-00001-of-00002.safetensors", "tokenizer/spiece.model"}
    others = {"unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "all.ckpt"}
    kept = set(filter_repo_objects(needed | others, allow_patterns=asked["owner/name"]))
    assert kept == needed


# What is in it.


def test_the_embedded_cascade_is_whole():
    """The two stages fit each other, and their weights are those that their networks ask for."""
    base, upscaler = (families.open_stage("embedded", kind=kind) for kind in KINDS)
    assert (base.kind, upscaler.kind) == KINDS
    assert (base.size, upscaler.size) == ((32, 32), (64, 64))
    assert base.channels == upscaler.channels == 3
    assert base.noising is None and upscaler.noising is not None
    assert base.path.prediction_type == upscaler.path.prediction_type == "v_prediction"
    flats = [pipeline.read_weights(stage) for stage in (base, upscaler)]
    for stage, flat in zip((base, upscaler), flats, strict=True):
        assert flat.keys() == stage.abstract.keys()
        assert all(np.isfinite(leaf).all() for leaf in flat.values())
        found = 0
        for file in stage.folder.glob("*/*.safetensors"):
            with safe_open(str(file), framework="numpy") as tensors:
                found += sum(tensors.get_tensor(key).size for key in tensors.keys())  # noqa: SIM118 - no mapping
        assert tree.count(flat) == found
    # One tokenizer for both.
    for name in ("spiece.model", "tokenizer.json"):
        files = [(stage.folder / "tokenizer" / name).read_bytes() for stage in (base, upscaler)]
        assert files[0] == files[1]


def test_leaves_carry_the_name_of_their_component(stages):
    for stage in stages.values():
        assert {path.split("/")[0] for path in stage.abstract} == {"unet", "text_encoder"}
        assert stage.abstract["text_encoder/shared/embedding"].shape == (2000, 32)
        assert stage.abstract["unet/conv_out/kernel"].shape == (3, 3, 16, 6)
    assert stages["base"].abstract["unet/conv_in/kernel"].shape == (3, 3, 3, 16)
    # An upscaler sees its own sample and the low-res image.
    assert stages["upscaler"].abstract["unet/conv_in/kernel"].shape == (3, 3, 6, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_compute_in_the_dtype_of_the_text_and_answer_in_float32(kind, stages, monkeypatch):
    stage, seen = stages[kind], []
    size, count = 32, 2  # of few positions a convolution is a product on CPU
    image = jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((count,), jnp.int32)
    ids = jax.ShapeDtypeStruct((count, 7), jnp.int32)
    convolve = jax.lax.conv_general_dilated

    def spied(x, kernel, *args, **kwargs):
        seen.append((x.dtype, kernel.dtype))
        return convolve(x, kernel, *args, **kwargs)

    monkeypatch.setattr(jax.lax, "conv_general_dilated", spied)

    def run(params, image, t, ids):
        text = stage.encode_text(params, {"ids": ids, "mask": ids}, dtype=jnp.bfloat16)
        extra = {"condition": image, "noise_level": t} if kind == "upscaler" else {}
        return text, stage.predict(params, image, t, text, **extra)

    text, output = jax.eval_shape(run, stage.abstract, image, t, ids)
    assert (text.shape, text.dtype) == ((count, 7, 32), jnp.bfloat16)
    assert (output.shape, output.dtype) == ((count, size, size, 6), jnp.float32)
    assert len(seen) > 10 and set(seen) == {(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"))}


def test_the_upscaler_sees_the_enlarged_image_at_its_level_of_noise(stages):
    """Cosine schedule: alpha_t² = f(t + 1)/f(0), f(u) = cos²((u/T + 0.008)/1.008 · π/2)."""
    stage, levels = stages["upscaler"], np.array([0, 250, 700])
    colours = np.array([-0.5, 0.25, 1.0], np.float32)
    low = np.tile(colours[:, None, None, None], (1, 8, 8, 3))
    noise = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    found = stage.condition(jnp.asarray(low), jnp.asarray(noise), jnp.asarray(levels))
    f = np.cos((np.array([0, *levels + 1]) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha2 = (f[1:] / f[0])[:, None, None, None]
    expected = np.sqrt(alpha2) * colours[:, None, None, None] + np.sqrt(1 - alpha2) * noise
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_learned_variance_gives_way_once_the_network_was_trained(stages):
    stage = stages["base"]
    assert stage.path.variance_type == "learned_range"  # as the file says
    tuned = stage.fine_tuned()
    assert tuned.path.variance_type == "fixed_small"
    assert tuned.path.alphas_cumprod is stage.path.alphas_cumprod
    assert tuned.path.sample_max_value == stage.path.sample_max_value == 1.5
    assert tuned.denoiser is stage.denoiser and stage.path.variance_type == "learned_range"
    assert tuned.fine_tuned() is tuned
    assert stage.fine_tuned(learned_variance="trained").path.variance_type == "learned_range"


# What is refused.


def test_a_stage_in_the_place_of_the_other_names_the_setting(tiny_cascade):
    upscaler, base = str(tiny_cascade["upscaler"]), str(tiny_cascade["base"])
    with pytest.raises(ValueError, match=r"base_model = .* an IFSuperResolutionPipeline"):
        families.open_stage(upscaler, kind="base")
    with pytest.raises(ValueError, match=r"upscaler_model = .* is the 'base' stage"):
        families.open_stage(base, kind="upscaler")


@pytest.mark.parametrize("name", ["StableDiffusionUpscalePipeline", None])
def test_another_pipeline_is_answered_with_those_supported(name, copied):
    change(copied / "model_index.json", _class_name=name)
    with pytest.raises(ValueError, match="IFPipeline, IFSuperResolutionPipeline") as error:
        families.open_stage(str(copied), kind="base")
    assert repr(name) in str(error.value) and str(copied) in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer",
    ],
)
def test_a_missing_file_is_named(name, copied):
    file = copied / name
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    with pytest.raises(FileNotFoundError) as error:
        families.open_stage(str(copied), kind="base")
    assert str(file) in str(error.value)


def test_an_upscaler_needs_its_noising_schedule(tiny_cascade, tmp_path):
    leave = shutil.ignore_patterns("*.safetensors", "image_noising_scheduler")
    folder = shutil.copytree(tiny_cascade["upscaler"], tmp_path / "model", ignore=leave)
    with pytest.raises(FileNotFoundError, match="image_noising_scheduler"):
        families.open_stage(str(folder), kind="upscaler")


@pytest.mark.parametrize("content", ['{"beta_schedule": ', "", "\ufeff{}"])
def test_a_file_that_is_no_json_is_named(content, copied):
    file = copied / "scheduler" / "scheduler_config.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="cannot be read as JSON") as error:
        families.open_stage(str(copied), kind="base")
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("scheduler/scheduler_config.json", {"beta_schedule": "cosin"}, "beta_schedule = 'cosin'"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "v-prediction"},
            "Did you mean 'v_prediction'",
        ),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "variance_type"),
        ("unet/config.json", {"sample_size": None}, "sample_size = None"),
        ("unet/config.json", {"sample_size": [8, 8, 8]}, "or height and width"),
        ("unet/config.json", {"class_embed_type": "projection"}, "class_embed_type"),
        ("text_encoder/config.json", {"feed_forward_proj": "relu"}, "feed_forward_proj"),
    ],
)
def test_a_value_that_is_not_supported_is_named_with_its_folder(file, values, said, copied):
    change(copied / file, **values)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        families.open_stage(str(copied), kind="base")
    assert said in str(error.value) and str(copied) in str(error.value)


def test_weights_of_another_network_are_refused(tiny_cascade, tmp_path):
    folder = cascades.make(tmp_path / "base", "base")
    change(folder / "unet" / "config.json", block_out_channels=[16, 48])
    stage = families.open_stage(str(folder), kind="base")
    with pytest.raises(ValueError, match=r"shapes differ from config\.json"):
        pipeline.read_weights(stage)
