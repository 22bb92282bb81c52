"""LoRA of Stable Diffusion 3 and FLUX.1 under original keys: diffusers reads the same change."""

from types import SimpleNamespace

import numpy as np
import pytest
from published import FLUX_DEV, SD35_MEDIUM

from dreambooth_jax import weights
from dreambooth_jax.export import lora_file
from dreambooth_jax.families import flux, original_flow_keys, sd3
from dreambooth_jax.models import flux as flux_network
from dreambooth_jax.models import mmdit

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
utils = pytest.importorskip("diffusers.loaders.single_file_utils", reason="extra `parity`")

RANK, ALPHA = 2, 3.0
DOUBLE, SINGLE = "transformer/transformer_blocks/0", "transformer/single_transformer_blocks/0"
STREAMS = [
    f"{DOUBLE}/attn/{name}"
    for name in (
        *("to_q", "to_k", "to_v", "to_out/0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
]
MLP = [f"{DOUBLE}/{ff}/net/{layer}" for ff in ("ff", "ff_context") for layer in ("0/proj", "2")]
WIDE = [f"{SINGLE}/{name}" for name in ("attn/to_q", "attn/to_k", "attn/to_v", "proj_mlp")]
CLIP = "text_encoder/text_model/encoder/layers/1/self_attn/q_proj"


def stage_of(family, network):
    return SimpleNamespace(family=family, denoiser=SimpleNamespace(network=network))


@pytest.fixture(scope="module")
def flux_dev():
    one = FLUX_DEV | {"num_layers": 1, "num_single_layers": 1}
    return stage_of(flux.FAMILY, flux_network.build(one))


def random_factors(stage, paths, *, inputs=None):
    """Factors of kernels as large as the network's, of `inputs` inputs instead of its own."""
    rng, made = np.random.default_rng(0), {}
    for path in paths:
        leaf = stage.denoiser.network.abstract.get(f"{path.partition('/')[2]}/kernel")
        fan_in, fan_out = (2, 2) if leaf is None else leaf.shape
        fan_in = inputs or fan_in
        made[f"{path}/kernel/lora_down"] = rng.normal(size=(fan_in, RANK)).astype(np.float32)
        made[f"{path}/kernel/lora_up"] = rng.normal(size=(RANK, fan_out)).astype(np.float32)
    return made


def changes(trained):
    """Each kernel's change in PyTorch's layout, by diffusers' key without `.weight`."""
    made = {}
    for path in (name.removesuffix("/lora_up") for name in trained if name.endswith("/lora_up")):
        product = trained[f"{path}/lora_down"] @ trained[f"{path}/lora_up"]
        made[weights.key_of(path).removesuffix(".weight")] = ALPHA / RANK * product.T
    return made


@pytest.mark.parametrize(
    "paths",
    [
        [*STREAMS, *MLP, *WIDE, f"{SINGLE}/proj_out", f"{SINGLE}/norm/linear", CLIP],
        [f"{DOUBLE}/attn/to_q", f"{DOUBLE}/attn/to_v", WIDE[1]],
        [WIDE[3]],
    ],
    ids=["all", "some", "mlp"],
)
def test_diffusers_reads_flux_out_of_kohya_s_file(paths, flux_dev):
    # Its converter knows FLUX.1's own width alone: whole height, two columns.
    trained = random_factors(flux_dev, paths, inputs=2)
    tensors = lora_file.kohya(flux_dev, trained, alpha=ALPHA, dtype="float32")
    read = diffusers.FluxPipeline.lora_state_dict(
        {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in tensors.items()}
    )
    found = {
        key.removesuffix(".lora_A.weight"): read[key.replace("lora_A", "lora_B")] @ down
        for key, down in read.items()
        if key.endswith("lora_A.weight")
    }
    expected = changes(trained)
    clip = {key: x for key, x in read.items() if key.startswith("text_encoder.")}
    if CLIP in paths:  # under diffusers' older names
        (down,) = (key for key in clip if ".down." in key)
        assert down.startswith("text_encoder.text_model.encoder.layers.1.self_attn.")
        product = clip[down.replace(".down.", ".up.")] @ clip[down]
        wanted = expected.pop(next(key for key in expected if key.startswith("text_encoder.")))
        np.testing.assert_allclose(product, wanted, atol=1e-5)
    assert len(clip) == 2 * (CLIP in paths)
    assert expected.keys() <= found.keys()
    for key, change in found.items():
        np.testing.assert_allclose(change, expected.get(key, 0), atol=1e-5, err_msg=key)


def test_diffusers_reads_stable_diffusion_3_out_of_kohya_s_file():
    """Changes of whole kernels in the file's layout, given to the converter of checkpoints."""
    config = SD35_MEDIUM | {
        "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
        "caption_projection_dim": 16, "joint_attention_dim": 8, "pooled_projection_dim": 8,
        "pos_embed_max_size": 4, "dual_attention_layers": [0],
    }  # fmt: skip
    stage = stage_of(sd3.FAMILY, mmdit.build(config))
    abstract = stage.denoiser.network.abstract
    kernels = [
        f"transformer/{path.removesuffix('/kernel')}"
        for path, leaf in abstract.items()
        if path.endswith("/kernel") and len(leaf.shape) == 2
    ]
    trained = random_factors(stage, kernels)
    tensors = lora_file.kohya(stage, trained, alpha=ALPHA, dtype="float32")
    zeros = {
        weights.key_of(path): weights.turned(path, np.zeros(leaf.shape, np.float32), to_file=True)
        for path, leaf in abstract.items()
    }
    original = original_flow_keys.sd3(zeros)
    for key in original:
        name = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
        if (up := tensors.pop(f"{name}.lora_up.weight", None)) is not None:
            down, alpha = tensors.pop(f"{name}.lora_down.weight"), tensors.pop(f"{name}.alpha")
            assert original[key].shape == (len(up), down.shape[1])
            original[key] = alpha / len(down) * up @ down
    assert not tensors  # every key of the file is one of the original layout
    converted = utils.convert_sd3_transformer_checkpoint_to_diffusers(
        {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in original.items()}
    )
    expected = changes(trained)
    for key, change in converted.items():
        wanted = expected.get(f"transformer.{key.removesuffix('.weight')}", 0)
        np.testing.assert_allclose(change, wanted, atol=1e-5, err_msg=key)


def test_names_of_sd3_s_text_encoders_are_kohya_s():
    small = SD35_MEDIUM | {"num_layers": 1, "dual_attention_layers": [0]}
    place = sd3.FAMILY.kohya(stage_of(sd3.FAMILY, mmdit.build(small)))
    assert place(f"{CLIP}/kernel").name == "lora_te1_text_model_encoder_layers_1_self_attn_q_proj"
    second = CLIP.replace("text_encoder/", "text_encoder_2/")
    assert place(f"{second}/kernel").name.startswith("lora_te2_text_model_encoder_layers_1")


def test_lengths_of_dora_scale_rows_of_the_fused_kernel(flux_dev):
    """Rows of a stacked kernel are rows of its parts, so their lengths are as well."""
    parts = [f"{DOUBLE}/attn/{name}" for name in ("to_q", "to_k", "to_v")]
    trained, rng = random_factors(flux_dev, parts, inputs=2), np.random.default_rng(1)
    base = {path: rng.normal(size=(3072, 2)).astype(np.float32) for path in parts}
    for path in parts:
        trained[f"{path}/kernel/dora_length"] = rng.uniform(1, 2, 3072).astype(np.float32)
    tensors = lora_file.kohya(flux_dev, trained, alpha=ALPHA, dtype="float32")
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    total = np.concatenate([*base.values()]) + tensors[f"{name}.alpha"] / len(down) * up @ down
    fused = tensors[f"{name}.dora_scale"] * total / np.linalg.norm(total, axis=1, keepdims=True)
    apart = []
    for path, change in zip(parts, changes(trained).values(), strict=True):
        own = base[path] + change
        length = trained[f"{path}/kernel/dora_length"][:, None]
        apart.append(length * own / np.linalg.norm(own, axis=1, keepdims=True))
    np.testing.assert_allclose(fused, np.concatenate(apart), atol=1e-4)


def test_dora_of_some_parts_of_a_fused_kernel_is_refused(flux_dev):
    trained = random_factors(flux_dev, WIDE[:3], inputs=2)
    for path in WIDE[:3]:
        trained[f"{path}/kernel/dora_length"] = np.ones(3072, np.float32)
    with pytest.raises(ValueError, match=r"single_blocks_0_linear1.*adapt\.dora=False"):
        lora_file.check(flux_dev, trained)
    # Without lengths the others' outputs are left as they are.
    some = {path: x for path, x in trained.items() if "dora" not in path}
    lora_file.check(flux_dev, some)
