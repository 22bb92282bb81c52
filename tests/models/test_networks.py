"""Structure, published sizes and errors of the networks.

Values: test_layers, test_parity_layers, test_parity_networks.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import tree
from dreambooth_jax.models import layers, t5, unet, vae
from dreambooth_jax.train import memory

# DeepFloyd's published unet/config.json; 4.3 B and 1.2 B parameters in its model zoo.
IF_I_XL = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.17.0.dev0",
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [704, 1408, 2112, 2816],
    "layers_per_block": 3,
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "attention_head_dim": 64,
    "cross_attention_dim": 2816,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "class_embed_type": None,
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "mid_block_scale_factor": 1,
    "time_embedding_type": "positional",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
IF_II_L = {
    **IF_I_XL,
    "sample_size": 256,
    "in_channels": 6,
    "block_out_channels": [160, 320, 640, 960, 1280],
    "layers_per_block": [2, 2, 3, 5, 5],
    "down_block_types": [
        *["ResnetDownsampleBlock2D"] * 3,
        *["SimpleCrossAttnDownBlock2D"] * 2,
    ],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, *["ResnetUpsampleBlock2D"] * 3],
    "cross_attention_dim": 1280,
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 1280,
}
T5_XXL = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
TINY = {
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "encoder_hid_dim": 24,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "act_fn": "gelu",
}


@pytest.mark.parametrize(("config", "billions"), [(IF_I_XL, 4.305), (IF_II_L, 1.243)])
def test_deepfloyd_if_has_its_published_size(config, billions):
    assert round(tree.count(unet.build(config).abstract) / 1e9, 3) == billions


def test_the_t5_xxl_encoder_has_its_published_size():
    assert tree.count(t5.build(T5_XXL).abstract) == 4_762_310_656


@pytest.mark.parametrize("config", [IF_I_XL, IF_II_L])
def test_sizes_and_keys_are_those_of_pytorch(config):
    torch = pytest.importorskip("torch", reason="counts the same network: extra `parity`")
    diffusers = pytest.importorskip("diffusers", reason="counts the same network: extra `parity`")
    # The layers of the real file at a fraction of its widths: as many keys, in a tenth of the time.
    thin = {
        **config,
        "block_out_channels": [
            size // 10 // 32 * 32 or 32 for size in config["block_out_channels"]
        ],
        "attention_head_dim": 32,
        "cross_attention_dim": 64,
        "encoder_hid_dim": 128,
        "addition_embed_type_num_heads": 4,
    }
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(thin)
    ours = unet.build(thin).abstract
    assert len(ours) == len(theirs.state_dict())
    assert tree.count(ours) == sum(p.numel() for p in theirs.parameters())


def test_paths_are_the_keys_of_the_published_files():
    paths = set(unet.build(IF_I_XL).abstract) | set(t5.build(T5_XXL).abstract)
    assert {
        "conv_in/kernel",
        "time_embedding/linear_1/kernel",
        "add_embedding/pool/positional_embedding",
        "add_embedding/norm1/scale",
        "encoder_hid_proj/bias",
        "down_blocks/1/attentions/2/add_k_proj/kernel",
        "down_blocks/1/attentions/2/norm_cross/scale",
        "down_blocks/0/downsamplers/0/conv1/kernel",
        "mid_block/attentions/0/to_out/0/bias",
        "up_blocks/2/resnets/3/conv_shortcut/kernel",
        "conv_norm_out/scale",
        "shared/embedding",
        "encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding",
        "encoder/block/23/layer/1/DenseReluDense/wi_1/kernel",
        "encoder/final_layer_norm/scale",
    } <= paths


def problems_of(build, config: dict[str, object]) -> str:
    with pytest.raises(ValueError, match=r"config\.json") as error:
        build(config)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "supported"),
    [
        ("mid_block_type", "UNetMidBlock2D", "UNetMidBlock2DSimpleCrossAttn"),
        ("mid_block_type", None, "UNetMidBlock2DSimpleCrossAttn"),
        ("resnet_time_scale_shift", "ada_group", "'default', 'scale_shift'"),
        ("cross_attention_norm", "layer_norm", "'group_norm'"),
        ("class_embed_type", "projection", "'timestep'"),
        ("addition_embed_type", "text_image", "'text'"),
        ("addition_embed_type", "text_time", "needs addition_time_embed_dim"),
        ("act_fn", "gelu_fast", "'gelu'"),
        ("dropout", 0.1, "0.0"),
        ("conv_in_kernel", 5, "3"),
        ("attention_type", "gated", "'default'"),
        ("time_embedding_type", "fourier", "'positional'"),
        ("center_input_sample", True, "False"),
        ("no_such_key", 3, "not known"),
        ("cross_attention_dim", [32, 32], "one value"),
        ("norm_num_groups", None, "a number"),
        ("encoder_hid_dim", None, "needs encoder_hid_dim"),
    ],
)
def test_what_cannot_be_honoured_is_named_with_what_can(key, value, supported):
    text = problems_of(unet.build, {**TINY, key: value})
    assert key in text
    assert repr(value) in text or value is None
    assert supported in text


def test_all_problems_of_a_file_are_told_at_once():
    text = problems_of(unet.build, {**TINY, "dropout": 0.1, "act_fn": "x", "novelty": 1})
    assert all(word in text for word in ("dropout", "act_fn", "novelty"))


@pytest.mark.parametrize("side", ["down", "up"])
def test_unknown_blocks_are_named_with_the_known_ones(side):
    key = f"{side}_block_types"
    text = problems_of(unet.build, {**TINY, key: ["CrossAttnBlock2D", *TINY[key][1:]]})
    assert key in text
    assert "CrossAttnBlock2D" in text
    resample = "Downsample" if side == "down" else "Upsample"
    assert f"Resnet{resample}Block2D" in text
    assert f"SimpleCrossAttn{side.capitalize()}Block2D" in text


@pytest.mark.parametrize(
    "key",
    ["down_block_types", "up_block_types", "layers_per_block", "attention_head_dim"],
)
def test_one_entry_per_level_is_asked_for_by_name(key):
    value = TINY[key] if isinstance(TINY[key], list) else [TINY[key]]
    text = problems_of(unet.build, {**TINY, key: [*value, value[0]] if len(value) == 2 else value})
    assert key in text
    assert "2 entries" in text


@pytest.mark.parametrize("key", ["in_channels", "block_out_channels", "cross_attention_dim"])
def test_a_missing_key_is_named(key):
    config = {name: value for name, value in TINY.items() if name != key}
    assert f"{key} is missing" in problems_of(unet.build, config)


def test_heads_and_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="32 channels do not divide into heads of 24"):
        unet.build({**TINY, "attention_head_dim": 24})
    with pytest.raises(ValueError, match="16 channels do not divide into 5 groups"):
        unet.build({**TINY, "norm_num_groups": 5})


def test_a_t5_that_is_not_v1_1_is_refused():
    assert "'relu'" in problems_of(t5.build, {**T5_XXL, "feed_forward_proj": "relu"})
    assert "d_model" in problems_of(t5.build, {"model_type": "clip_text_model"})
    assert t5.T5Config.from_dict({**T5_XXL, "feed_forward_proj": None}) == (
        t5.T5Config.from_dict({**T5_XXL, "feed_forward_proj": "gated-gelu"})  # as in transformers
    )


@pytest.mark.parametrize("channels", [{}, {"block_out_channels": None}, {"block_out_channels": []}])
def test_a_vae_without_its_channels_is_refused_by_name(channels):
    config = {"down_block_types": ["DownEncoderBlock2D"] * 2, **channels}
    assert "block_out_channels is missing" in problems_of(vae.build, config)


@pytest.fixture(scope="module")
def tiny():
    network = unet.build(TINY)
    return network, layers.initial(network, seed=3)


def run(network, params, batch=1, size=8, **kwargs):
    x, text = jnp.ones((batch, size, size, 3)), jnp.ones((batch, 5, 24))
    return network.bind(params)(x, jnp.full((batch,), 7), text, **kwargs)


def test_parameters_of_another_shape_or_name_are_refused(tiny):
    network, params = tiny
    with pytest.raises(ValueError, match=r"conv_in/kernel: found shape \(1, 1\), expected \(3, 3"):
        network.bind({**params, "conv_in/kernel": jnp.zeros((1, 1))})
    rest = {path: leaf for path, leaf in params.items() if path != "conv_out/bias"}
    with pytest.raises(ValueError, match="missing") as error:
        network.bind({**rest, "conv_out/biass": params["conv_out/bias"]})
    assert "conv_out/bias\n" in str(error.value)
    assert "conv_out/biass" in str(error.value)


def test_building_takes_no_memory():
    leaves = unet.build(IF_I_XL).abstract.values()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_an_upscaler_asks_for_its_noise_level():
    network = unet.build({**TINY, "class_embed_type": "timestep"})
    with pytest.raises(ValueError, match="needs noise_level"):
        jax.eval_shape(lambda p: run(network, p), dict(network.abstract))


def test_fresh_parameters(tiny):
    network, params = tiny
    assert list(params) == list(network.abstract)
    assert all(leaf.dtype == np.float32 for leaf in params.values())
    again, other = layers.initial(network, seed=3), layers.initial(network, seed=4)
    assert tree.fingerprint(params) == tree.fingerprint(again) != tree.fingerprint(other)
    assert (params["conv_norm_out/scale"] == 1).all()
    assert (params["conv_in/bias"] == 0).all()
    kernel = params["up_blocks/0/resnets/0/conv1/kernel"]
    fan_in = np.prod(kernel.shape[:-1])
    assert abs(kernel.std() * np.sqrt(fan_in) - 1) < 4 / np.sqrt(2 * kernel.size)


def test_a_fresh_network_says_zero_and_its_residual_branches_are_silent(tiny):
    network, params = tiny
    x, text = jnp.ones((2, 8, 8, 3)), jnp.stack([jnp.ones((5, 24)), -jnp.ones((5, 24))])
    forward = jax.jit(lambda params: network.bind(params)(x, jnp.array([3, 900]), text))
    assert (np.asarray(forward(params)) == 0).all()
    # With an open output it shows what the blocks made of the image: neither text nor time.
    heard = {**params, "conv_out/kernel": np.ones_like(params["conv_out/kernel"])}
    both = forward(heard)
    assert np.abs(both).max() > 0
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


@pytest.mark.parametrize("text_dtype", [jnp.float32, jnp.bfloat16])
def test_the_network_computes_in_the_dtype_of_the_image(tiny, text_dtype):
    network, params = tiny

    def forward(params, x, text):
        return network.bind(params)(x, jnp.zeros(1), text)

    x, text = jnp.zeros((1, 32, 32, 3), jnp.bfloat16), jnp.zeros((1, 5, 24), text_dtype)
    jaxpr = str(jax.make_jaxpr(forward)(params, x, text))
    assert jax.eval_shape(forward, params, x, text).dtype == jnp.bfloat16
    convolutions = [line for line in jaxpr.splitlines() if "conv_general_dilated[" in line]
    assert len(convolutions) > 10
    assert all(":bf16[" in line for line in convolutions)


def test_any_size_that_halves_at_each_level_fits(tiny):
    network, _ = tiny
    shape = jax.eval_shape(lambda p: run(network, p, batch=3, size=20), dict(network.abstract))
    assert shape.shape == (3, 20, 20, 6)


def test_recomputing_activations_changes_neither_output_nor_gradients(rng):
    one_level = {
        "block_out_channels": [16],
        "down_block_types": ["SimpleCrossAttnDownBlock2D"],
        "up_block_types": ["SimpleCrossAttnUpBlock2D"],
    }
    network = unet.build({**TINY, **one_level})
    params = {
        path: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32)
        for path, leaf in network.abstract.items()
    }
    x = rng.normal(size=(2, 12, 12, 3)).astype(np.float32)
    text = rng.normal(size=(2, 5, 24)).astype(np.float32)
    t = jnp.array([3, 900])

    def total(params, remat):
        output = network.bind(params)(x, t, text, remat=remat)
        return (output**2).mean(), output

    # Unoptimised programs: the network runs twice, its compilation would take most of the time.
    options = {"xla_backend_optimization_level": 0}
    run = jax.jit(
        jax.value_and_grad(total, has_aux=True), static_argnums=1, compiler_options=options
    )
    (_, plain), gradients = run(params, "none")
    largest = max(float(np.abs(leaf).max()) for leaf in gradients.values())
    for remat in ("dots", "blocks"):
        (_, again), gradients_again = run(params, remat)
        np.testing.assert_allclose(again, plain, atol=1e-5 * np.abs(plain).max())
        for path, leaf in gradients.items():
            found = gradients_again[path]
            np.testing.assert_allclose(found, leaf, atol=1e-5 * largest, err_msg=path)
    # And it does recompute: the backward pass holds the forward convolutions once more.
    counts = {}
    for remat in ("none", "dots", "blocks"):
        program = jax.make_jaxpr(partial(jax.grad(total, has_aux=True), remat=remat))(params)
        counts[remat] = str(program).count("conv_general_dilated[")
    assert counts["none"] == counts["dots"] < counts["blocks"]

    # What the backward pass finds of the forward one shrinks from policy to policy.
    def kept(remat):
        def residuals(x):
            return jax.vjp(lambda x: network.bind(params)(x, t, text, remat=remat).sum(), x)[1]

        return memory.saved(residuals, x)[0]

    assert kept("none") > 1.2 * kept("dots") > 2 * kept("blocks") > 0
