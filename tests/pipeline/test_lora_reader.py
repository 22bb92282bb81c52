"""LoRA files as others write them, read as factors of a stage's kernels."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from dreambooth_jax import export, kernels, weights
from dreambooth_jax.adapt import lora
from dreambooth_jax.export import lora_start
from dreambooth_jax.families import flux, flux2, z_image
from dreambooth_jax.models import flux as flux_network
from dreambooth_jax.models import flux2 as flux2_network
from dreambooth_jax.models import z_image as z_image_network
from dreambooth_jax.pipeline import lora_reader
from dreambooth_jax.untrusted import FileError

FLUX = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 4,
    "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8,
    "axes_dims_rope": (0, 2, 2),
}  # fmt: skip
FLUX2 = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 2, 2),
}  # fmt: skip
Z_IMAGE = {
    "in_channels": 4, "dim": 16, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 2, "cap_feat_dim": 8, "axes_dims": [2, 2, 4], "axes_lens": [64, 8, 8],
}  # fmt: skip
FAMILIES = {
    "flux": (flux.FAMILY, flux_network.build, FLUX),
    "klein": (flux2.FAMILY, flux2_network.build, FLUX2),
    "z_image": (z_image.FAMILY, z_image_network.build, Z_IMAGE),
}
RANK, ALPHA = 3, 1.5


def stage_of(name):
    family, build, config = FAMILIES[name]
    denoiser = SimpleNamespace(component="transformer", network=build(config))
    return SimpleNamespace(family=family, denoiser=denoiser, folder="MODEL")


def trained(stage):
    """Random weights, the first factors of all that the family adapts, and others."""
    abstract = {f"transformer/{path}": x for path, x in stage.denoiser.network.abstract.items()}
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in abstract.items()}
    rules = ((".*", True),)
    targets = stage.family.lora_targets
    factors, _ = lora.init(flat, rules, rank=RANK, targets=targets, dora=False, seed=0)
    moved = {path: x + rng.normal(size=x.shape).astype(np.float32) for path, x in factors.items()}
    return flat, factors, moved


@pytest.mark.parametrize("written", [export.lora_file.PEFT, export.lora_file.KOHYA])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_both_files_are_read_as_the_change_that_was_written(name, written, tmp_path):
    stage = stage_of(name)
    flat, fresh, factors = trained(stage)
    about = {"dtype": "float32", "alpha": ALPHA, "about": {}}
    export.lora_file.write(stage, factors, tmp_path, **about)
    found = lora.beside(flat, lora_reader.read(stage, tmp_path / written))
    adapted = lora.adapted(factors)
    assert {path for path, x in found.items() if isinstance(x, kernels.LowRank)} == {*adapted}
    for path in adapted:
        down, up = factors[f"{path}/lora_down"], factors[f"{path}/lora_up"]
        expected = flat[path] + ALPHA / len(up) * down @ up
        np.testing.assert_allclose(kernels.fused(found[path]), expected, atol=1e-5)
        assert found[path].up.shape == up.shape  # of a fused kernel its own columns alone
    # Training begins from the same change.
    begun = lora_start.begun(stage, str(tmp_path / written), fresh, alpha=4.0)
    combined = lora.combine(flat, begun, alpha=4.0)
    for path in adapted:
        np.testing.assert_allclose(
            kernels.fused(combined[path]), kernels.fused(found[path]), atol=1e-5
        )


@pytest.mark.parametrize(
    ("told", "scale"),
    [
        ({}, 1.0),
        ({"lora_alpha": 12}, 4.0),  # 12 / 3
        ({"lora_alpha": 12, "use_rslora": False, "alpha_pattern": {}}, 4.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / 3**0.5),
        ({"lora_alpha": 12, "alpha_pattern": {"attn.to_q": 6}}, 2.0),
        ({"lora_alpha": 12, "alpha_pattern": {"tn.to_q": 6, "^attn.to_q": 9}}, 4.0),
        ({"lora_alpha": 12, "alpha_pattern": {"^transformer_blocks.0.attn.to_q": 9}}, 3.0),
    ],
)
def test_the_scale_is_what_peft_says_in_the_metadata(told, scale, tmp_path):
    stage, rng = stage_of("flux"), np.random.default_rng(0)
    name, kernel = "transformer.transformer_blocks.0.attn.to_q", (8, 8)
    down = rng.normal(size=(RANK, 8)).astype(np.float32)
    up = rng.normal(size=(8, RANK)).astype(np.float32)
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    about = {f"transformer.{key}": value for key, value in told.items()}
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(about)})
    path = "transformer/transformer_blocks/0/attn/to_q/kernel"
    whole = lora.beside({path: np.zeros(kernel, np.float32)}, lora_reader.read(stage, file))
    np.testing.assert_allclose(kernels.fused(whole[path]), scale * (up @ down).T, rtol=1e-5)
    changes = lora_start.factors(path, stage.family.kohya(stage)(path), tensors, about)
    assert changes.scale == pytest.approx(scale)


@pytest.mark.parametrize("pattern", [{".*to_q": 6}, {"to_q": "much"}, ["to_q"]])
def test_an_alpha_of_layers_that_is_none_is_told(pattern, tmp_path):
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": np.ones((2, 8)), f"{name}.lora_B.weight": np.ones((8, 2))}
    about = {"transformer.alpha_pattern": pattern}
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(about)})
    with pytest.raises(FileError, match=r"alpha_pattern of its metadata|α of to_q in its metadata"):
        lora_reader.read(stage_of("flux"), file)


def test_keys_of_other_trainers_are_read(tmp_path):
    """The factors of ai-toolkit's files: original names with dots, and no α."""
    stage, rng = stage_of("klein"), np.random.default_rng(0)
    down, up = rng.normal(size=(2, 16)), rng.normal(size=(48, 2))
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    file = weights.save(
        tmp_path / "file.safetensors",
        {
            f"{name}.lora_A.weight": down.astype(np.float32),
            f"{name}.lora_B.weight": up.astype(np.float32),
        },
    )
    found = lora_reader.read(stage, file)
    for i, part in enumerate("qkv"):
        path = f"transformer/transformer_blocks/0/attn/to_{part}/kernel"
        change = found[f"{path}/lora_down"] @ found[f"{path}/lora_up"]
        np.testing.assert_allclose(change.T, up[16 * i : 16 * (i + 1)] @ down, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"transformer.layers.9.attention.to_q.lora_A.weight": (2, 16)}, "belongs to the transf"),
        ({"transformer.layers.0.attention.to_q.lora_A.weight": (2, 16)}, "expected two factors"),
        ({"transformer.layers.0.attention.to_q.weight": (16, 16)}, "no factor of LoRA"),
        ({"lora_unet_layers_0_attention_to_q.dora_scale": (16, 1)}, "no factor of LoRA"),
        (
            {
                "transformer.layers.0.attention.to_q.lora_A.weight": (2, 8),
                "transformer.layers.0.attention.to_q.lora_B.weight": (16, 2),
            },
            r"\(8, 16\).*\(16, 16\).*another model",
        ),
        ({}, "nothing in it belongs to the transformer of MODEL"),
    ],
)
def test_a_file_of_something_else_is_refused(tensors, message, tmp_path):
    arrays = {key: np.ones(shape, np.float32) for key, shape in tensors.items()}
    file = weights.save(tmp_path / "file.safetensors", arrays)
    with pytest.raises(ValueError, match=message):
        lora_reader.read(stage_of("z_image"), file)


@pytest.mark.parametrize(
    ("down", "up", "alpha", "message"),
    [
        ((0, 16), (16, 0), None, "a rank r of 1 or more"),
        ((2, 16), (16, 3), None, "a rank r of 1 or more"),
        ((2,), (16, 2), None, "expected two factors"),
        ((2, 16), (16, 2), -2.0, "its alpha is .*above 0"),
        ((2, 16), (16, 2), 0.0, "its alpha is .*above 0"),
        ((2, 16), (16, 2), np.zeros(0), r"its alpha is of shape \(0,\)"),
        ((2, 16), (16, 2), np.ones(3), r"its alpha is of shape \(3,\)"),
    ],
)
def test_factors_that_are_none_are_told_with_file_and_key(down, up, alpha, message, tmp_path):
    name = "transformer.layers.0.attention.to_q"
    arrays = {f"{name}.lora_A.weight": np.ones(down), f"{name}.lora_B.weight": np.ones(up)}
    arrays |= {} if alpha is None else {f"{name}.alpha": np.asarray(alpha)}
    file = tmp_path / "odd.safetensors"
    weights.save(file, {key: x.astype(np.float32) for key, x in arrays.items()})
    with pytest.raises(ValueError, match=message) as caught:
        lora_reader.read(stage_of("z_image"), file)
    assert "odd.safetensors" in str(caught.value) and name in str(caught.value)


def test_a_missing_file_and_one_of_another_kind_are_told(tmp_path):
    stage, file = stage_of("z_image"), tmp_path / "file.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no such file; expected a \.safetensors file"):
        lora_reader.read(stage, file)
    file.write_bytes(b"PK" * 50)
    with pytest.raises(ValueError, match="safetensors"):
        lora_reader.read(stage, file)
