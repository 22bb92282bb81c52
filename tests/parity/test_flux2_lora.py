"""LoRA files of FLUX.2 [klein]: diffusers reads the same change out of both layouts."""

from types import SimpleNamespace

import numpy as np
import pytest

from dreambooth_jax import weights
from dreambooth_jax.export import lora_file
from dreambooth_jax.families import flux2_keys

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
pytest.importorskip("peft", reason="diffusers reads LoRA with it: extra `parity`")
import qwen_pipelines  # noqa: E402 (only with torch)

RANK, ALPHA = 2, 3.0
BLOCK = "transformer/transformer_blocks/0"
TARGETS = [
    *(f"{BLOCK}/attn/{name}" for name in ("to_q", "to_k", "to_v", "to_out/0")),
    *(f"{BLOCK}/attn/{name}" for name in ("add_q_proj", "add_v_proj", "to_add_out")),
    *(f"{BLOCK}/{name}" for name in ("ff/linear_in", "ff/linear_out", "ff_context/linear_in")),
    *(f"transformer/single_transformer_blocks/0/attn/{name}" for name in ("to_out",)),
    "transformer/single_transformer_blocks/0/attn/to_qkv_mlp_proj",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model folder, random factors of its kernels by path, and both files of them."""
    folder = tmp_path_factory.mktemp("klein")
    qwen_pipelines.make(folder / "model", "klein")
    pipe = diffusers.Flux2KleinPipeline.from_pretrained(folder / "model")
    shapes = {name: tuple(p.shape) for name, p in pipe.transformer.named_parameters()}
    rng, trained = np.random.default_rng(0), {}
    for path in TARGETS:
        key = weights.key_of(f"{path.partition('/')[2]}/kernel")
        outputs, inputs = shapes[key]
        trained[f"{path}/kernel/lora_down"] = rng.normal(size=(inputs, RANK)).astype(np.float32)
        trained[f"{path}/kernel/lora_up"] = rng.normal(size=(RANK, outputs)).astype(np.float32)
    family = SimpleNamespace(kohya=lambda stage: flux2_keys.kohya)
    lora_file.write(
        SimpleNamespace(family=family),
        trained,
        folder,
        alpha=ALPHA,
        dtype="float32",
        about={},
    )
    return folder, trained


@pytest.mark.parametrize("name", [lora_file.PEFT, lora_file.KOHYA])
def test_diffusers_fuses_the_change_that_was_written(name, made):
    folder, trained = made
    pipe = diffusers.Flux2KleinPipeline.from_pretrained(folder / "model")
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(folder, weight_name=name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = pipe.transformer.state_dict()
    expected = {
        weights.key_of(f"{path.partition('/')[2]}/kernel"): ALPHA
        / RANK
        * (trained[f"{path}/kernel/lora_down"] @ trained[f"{path}/kernel/lora_up"]).T
        for path in TARGETS
    }
    for key, value in before.items():
        change = (after[key] - value).numpy()
        np.testing.assert_allclose(change, expected.get(key, 0), atol=1e-4, err_msg=key)


def test_parts_without_factors_leave_their_outputs_alone(made):
    _, trained = made
    family = SimpleNamespace(kohya=lambda stage: flux2_keys.kohya)
    some = {path: leaf for path, leaf in trained.items() if "add_" in path}
    stage = SimpleNamespace(family=family)
    tensors = lora_file.kohya(stage, some, alpha=ALPHA, dtype="float32")
    name = "lora_unet_double_blocks_0_txt_attn_qkv"
    change = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
    q, k, v = np.split(change, 3)
    assert np.abs(q).min() >= 0 and np.abs(q).max() > 0.1 and np.abs(v).max() > 0.1
    np.testing.assert_array_equal(k, np.zeros_like(k))


def test_dora_of_fused_kernels_is_refused(made):
    _, trained = made
    path = f"{BLOCK}/attn/to_q/kernel"
    more = {name: leaf for name, leaf in trained.items() if name.startswith(path)}
    more[f"{path}/dora_length"] = np.ones(32, np.float32)
    stage = SimpleNamespace(family=SimpleNamespace(kohya=lambda stage: flux2_keys.kohya))
    with pytest.raises(ValueError, match=r"adapt\.dora=False"):
        lora_file.kohya(stage, more, alpha=ALPHA, dtype="float32")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("norm_out/linear", ("final_layer.adaLN_modulation.1", 0, 1, True)),
        ("x_embedder", ("img_in", 0, 1, False)),
        ("transformer_blocks/3/attn/to_v", ("double_blocks.3.img_attn.qkv", 2, 3, False)),
        ("single_transformer_blocks/11/attn/to_out", ("single_blocks.11.linear2", 0, 1, False)),
    ],
)
def test_places_are_the_published_ones(path, expected):
    assert flux2_keys.slot(f"transformer/{path}/kernel") == (*expected, 1)
