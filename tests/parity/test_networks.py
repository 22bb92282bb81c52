"""Networks against PyTorch, live and block by block: small random models, saved, read by us."""

import contextlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import weights
from dreambooth_jax.diffusion import loss, process, schedule
from dreambooth_jax.models import t5, unet, unet_blocks

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
transformers = pytest.importorskip("transformers", reason="compares with transformers")
from diffusers.models import attention_processor, embeddings, resnet  # noqa: E402 (only with torch)
from diffusers.models.unets import unet_2d_blocks  # noqa: E402 (same)
from safetensors.torch import save_file  # noqa: E402 (same)
from transformers.models.t5 import modeling_t5  # noqa: E402 (same)

# The networks are tiny and run once: most of the time would go into optimising their programs.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

STAGE_I = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "attention_head_dim": 16,
    "cross_attention_dim": 64,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 40,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "norm_num_groups": 8,
}
STAGE_II = {
    **STAGE_I,
    "in_channels": 6,
    "block_out_channels": [32, 48, 64],
    "layers_per_block": [1, 2, 1],
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"],
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 72,
}
CONFIGS = {
    "stage I": STAGE_I,
    "stage II": STAGE_II,
    "stage II, text attention only": {**STAGE_II, "only_cross_attention": True},
    # Every other branch of the code: no text vector, no text norm, additive time, odd sinusoids.
    "plain": {
        **STAGE_I,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "addition_embed_type": None,
        "cross_attention_norm": None,
        "cross_attention_dim": 40,
        "resnet_time_scale_shift": "default",
        "act_fn": "silu",
        "only_cross_attention": [False, True],
        "attention_head_dim": [8, 32],
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-3,
    },
}
# Ours, theirs: what is recorded, in the order of the calls.
BLOCKS = [
    (unet_blocks.TimeMLP, (embeddings.TimestepEmbedding,)),
    (unet_blocks.TextTimeEmbedding, (embeddings.TextTimeEmbedding,)),
    (unet_blocks.ResnetBlock, (resnet.ResnetBlock2D,)),
    (unet_blocks.AddedKVAttention, (attention_processor.Attention,)),
    (
        unet_blocks.DownBlock,
        (unet_2d_blocks.ResnetDownsampleBlock2D, unet_2d_blocks.SimpleCrossAttnDownBlock2D),
    ),
    (unet_blocks.MidBlock, (unet_2d_blocks.UNetMidBlock2DSimpleCrossAttn,)),
    (
        unet_blocks.UpBlock,
        (unet_2d_blocks.ResnetUpsampleBlock2D, unet_2d_blocks.SimpleCrossAttnUpBlock2D),
    ),
    (t5.Block, (modeling_t5.T5Block,)),
]


def first(output):
    return output[0] if isinstance(output, tuple) else output


def channels_first(x) -> "torch.Tensor":
    return torch.from_numpy(np.array(x)).movedim(-1, 1)


def assert_close(found, expected, tolerance=1e-4, what="output"):
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert found.shape == expected.shape, what
    error = np.abs(np.asarray(found, np.float32) - expected).max()
    assert error <= tolerance * np.abs(expected).max(), f"{what}: {error / np.abs(expected).max()}"


@contextlib.contextmanager
def ours_recorded(records: list[jax.Array], monkeypatch):
    """Appends the output of every block of ours to `records` while a network is traced."""
    with monkeypatch.context() as patch:
        for kind, _ in BLOCKS:

            def call(self, *args, _original=kind.__call__, **kwargs):
                output = _original(self, *args, **kwargs)
                records.append(first(output))
                return output

            patch.setattr(kind, "__call__", call)
        yield


@contextlib.contextmanager
def theirs_recorded(records: list[tuple[str, "torch.Tensor"]], model):
    """Appends (name, output) of every corresponding module of the PyTorch model."""
    kinds = tuple(kind for _, kinds in BLOCKS for kind in kinds)
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: records.append((name, first(output)))
        )
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    yield
    for handle in handles:
        handle.remove()


def shaken(model):
    """Moves every parameter off its initial value, so that no norm or bias is inert."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model.eval()


class Pair:
    """One model in PyTorch, and what our loader makes of the folder that it is saved to."""

    def __init__(self, model, folder, build):
        self.theirs = shaken(model)
        self.theirs.save_pretrained(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.network = build(self.config)
        self.params = weights.read(folder, self.network.abstract)

    def gradients(self, folder) -> dict[str, np.ndarray]:
        """The PyTorch model's gradients under our paths: its file format serves for them, too."""
        folder.mkdir()
        grads = {name: p.grad for name, p in self.theirs.named_parameters()}
        save_file(grads, folder / "model.safetensors")
        self.theirs.zero_grad()
        return weights.read(folder, self.network.abstract)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            torch.manual_seed(0)
            model = diffusers.UNet2DConditionModel.from_config(CONFIGS[name])
            made[name] = Pair(model, tmp_path_factory.mktemp("unet"), unet.build)
        return made[name]

    return get


def inputs(name: str, rng, batch: int = 2) -> dict[str, np.ndarray]:
    config = CONFIGS[name]
    size = 4 * 2 ** (len(config["block_out_channels"]) - 1)
    text_size = config["encoder_hid_dim"] or config["cross_attention_dim"]
    found = {
        "x": rng.normal(size=(batch, size, size, config["in_channels"])),
        "text": rng.normal(size=(batch, 7, text_size)),
    }
    found = {key: value.astype(np.float32) for key, value in found.items()}
    found["t"] = rng.integers(0, 1000, batch)
    if config.get("class_embed_type"):
        found["noise_level"] = rng.integers(0, 1000, batch)
    return found


def call_theirs(model, given):
    level = given.get("noise_level")
    return model(
        channels_first(given["x"]),
        torch.from_numpy(given["t"]),
        torch.from_numpy(given["text"]),
        class_labels=None if level is None else torch.from_numpy(level),
    ).sample


def call_ours(module, given, **kwargs):
    level = given.get("noise_level")
    return module(given["x"], given["t"], given["text"], noise_level=level, **kwargs)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_block_of_the_unet_agrees(name, pair, rng, monkeypatch):
    both, given = pair(name), inputs(name, rng)
    expected: list[tuple[str, torch.Tensor]] = []
    with torch.no_grad(), theirs_recorded(expected, both.theirs):
        out = call_theirs(both.theirs, given)

    def forward(params, given):
        records = []
        with ours_recorded(records, monkeypatch):
            module = both.network.bind(params)
            output = call_ours(module, given)
        return output, records, module.encoder_hid_proj and module.encoder_hid_proj(given["text"])

    found, records, projected = jit(forward)(both.params, given)
    assert len(records) == len(expected) > 15
    for record, (where, want) in zip(records, expected, strict=True):
        want = want.movedim(1, -1) if want.ndim == 4 else want
        assert_close(record, want, what=where)
    if projected is not None:
        with torch.no_grad():
            want = both.theirs.encoder_hid_proj(torch.from_numpy(given["text"]))
        assert_close(projected, want, what="encoder_hid_proj")
    assert_close(found, out.movedim(1, -1))


def compare_gradients(found, expected, tolerance=1e-4):
    assert set(found) == set(expected)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        error = np.abs(found[path] - leaf).max()
        # A bias on all keys cancels in the softmax: its true gradient is 0, the rest is rounding.
        assert error <= tolerance * np.abs(leaf).max() + 1e-7 * largest, (path, error)


def dreambooth_case(name: str, rng):
    """Two subject rows and one prior row: the network's inputs, x0 and noise."""
    given = inputs(name, rng, batch=3)
    x0, noise = rng.normal(size=(2, *given["x"].shape[:3], 3)).astype(np.float32)
    return given, x0, noise


@pytest.mark.parametrize(
    ("name", "prediction_type", "remat"),
    [("stage I", "epsilon", "none"), ("stage II", "v_prediction", "blocks")],
)
def test_dreambooth_loss_and_all_its_gradients_agree(
    name, prediction_type, remat, pair, rng, tmp_path
):
    both, (given, x0, noise) = pair(name), dreambooth_case(name, rng)
    subjects, prior_loss_weight = 2, 0.7
    raw = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction_type}

    # Ruiz et al. 2022, eq. 2, by hand in PyTorch.
    scheduler = diffusers.DDPMScheduler(**raw)
    x0_t, noise_t, t = channels_first(x0), channels_first(noise), torch.from_numpy(given["t"])
    noisy = scheduler.add_noise(x0_t, noise_t, t).movedim(1, -1).numpy()
    low_res = given["x"][..., 3:]
    words = call_theirs(both.theirs, {**given, "x": np.concatenate([noisy, low_res], -1)})[:, :3]
    target = noise_t if prediction_type == "epsilon" else scheduler.get_velocity(x0_t, noise_t, t)
    mse = torch.nn.functional.mse_loss
    expected = mse(words[:subjects], target[:subjects])
    expected = expected + prior_loss_weight * mse(words[subjects:], target[subjects:])
    expected.backward()
    for parameter in both.theirs.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = both.gradients(tmp_path / "gradients")

    sched = schedule.from_config(raw)
    row_weights = loss.row_weights(jnp.arange(3) >= subjects, prior_loss_weight)

    def total(params):
        xt = process.add_noise(sched, x0, noise, given["t"])
        x = jnp.concatenate([xt, low_res], -1)
        module = both.network.bind(params)
        output = call_ours(module, {**given, "x": x}, remat=remat)
        per_example = loss.denoising(sched, output, x0=x0, noise=noise, t=given["t"])
        return loss.with_prior(per_example, row_weights)[0]

    found, found_gradients = jit(jax.value_and_grad(total))(both.params)
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    compare_gradients(found_gradients, gradients)


def test_bfloat16_stays_near_float32(pair, rng):
    both, given = pair("stage I"), inputs("stage I", rng)
    with torch.no_grad():
        expected = call_theirs(both.theirs, given).movedim(1, -1)
    half = {key: given[key].astype(jnp.bfloat16) for key in ("x", "text")}
    found = jit(lambda params, given: call_ours(both.network.bind(params), given))(
        both.params, {**given, **half}
    )
    assert found.dtype == jnp.bfloat16
    assert_close(found, expected, 5e-2)


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    model = transformers.T5EncoderModel(config)
    return Pair(model, tmp_path_factory.mktemp("text_encoder"), t5.build)


@pytest.mark.parametrize("length", [1, 9, 77])
def test_every_block_of_the_text_encoder_agrees(length, text_encoder, rng, monkeypatch):
    ids = rng.integers(0, 96, (3, length))
    mask = (np.arange(length)[None] < np.array([[length], [length // 2 + 1], [1]])).astype(np.int64)
    expected: list[tuple[str, torch.Tensor]] = []
    with torch.no_grad(), theirs_recorded(expected, text_encoder.theirs):
        out = text_encoder.theirs(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        ).last_hidden_state

    def forward(params):
        records = []
        with ours_recorded(records, monkeypatch):
            output = text_encoder.network.bind(params)(ids, mask)
        return output, records

    found, records = jit(forward)(text_encoder.params)
    assert len(records) == len(expected) == 3
    for record, (where, want) in zip(records, expected, strict=True):
        assert_close(record, want, what=where)
    assert_close(found, out)


def test_without_a_mask_the_text_encoder_reads_padding_as_pytorch_does(text_encoder, rng):
    ids = rng.integers(0, 96, (2, 256))
    ids[1, 9:] = 0
    with torch.no_grad():
        out = text_encoder.theirs(torch.from_numpy(ids)).last_hidden_state
    found = jit(lambda params: text_encoder.network.bind(params)(ids))(text_encoder.params)
    assert_close(found, out)
    masked = jit(lambda params: text_encoder.network.bind(params)(ids, ids > 0))
    assert np.abs(masked(text_encoder.params)[1, 0] - found[1, 0]).max() > 0.01


def test_gradients_of_the_text_encoder_agree(text_encoder, rng, tmp_path):
    ids, mask = rng.integers(0, 96, (2, 12)), np.ones((2, 12), np.int64)
    mask[1, 5:] = 0
    out = text_encoder.theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    pick = rng.normal(size=(2, 12, 32)).astype(np.float32)
    (out.last_hidden_state * torch.from_numpy(pick)).sum().backward()
    gradients = text_encoder.gradients(tmp_path / "gradients")
    found = jit(
        jax.grad(lambda params: (text_encoder.network.bind(params)(ids, mask) * pick).sum())
    )(text_encoder.params)
    compare_gradients(found, gradients)


def test_the_text_encoder_in_bfloat16_stays_near_float32(text_encoder, rng):
    ids, mask = rng.integers(0, 96, (2, 12)), np.ones((2, 12), np.int64)
    with torch.no_grad():
        out = text_encoder.theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    found = jit(lambda params: text_encoder.network.bind(params)(ids, mask, dtype=jnp.bfloat16))(
        text_encoder.params
    )
    assert found.dtype == jnp.bfloat16
    assert_close(found, out.last_hidden_state, 5e-2)
