"""Edits that follow their sources, against PyTorch's UNets in which attention maps are changed.

Tiny random Stable Diffusion 1, XL and DeepFloyd IF; every kind of edit is an argument of one
program.
"""

import cascades
import jax
import numpy as np
import pytest

from dreambooth_jax import families, pipeline, tree
from dreambooth_jax.families import sdxl
from dreambooth_jax.models import words
from dreambooth_jax.models.words import Swap
from dreambooth_jax.text import alignment

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import latents  # noqa: E402 (only with torch)
from attention_maps import Maps  # noqa: E402 (same)

TOKENS, LEVEL = 77, 501.0
WIDTHS = {"sd1": 32, "sdxl": 72, "if": 32}


def edits() -> dict[str, Swap]:
    """Every kind of edit: words replaced, added, weighted; attention among positions or not."""
    start, end, a, dog, cat, snow, big = range(7)
    same = alignment.aligned([start, a, dog, end], [start, a, dog, end], length=TOKENS)
    replaced = alignment.aligned([start, a, dog, end], [start, a, cat, end], length=TOKENS)
    longer = alignment.aligned([start, a, dog, end], [start, a, big, cat, end], length=TOKENS)
    added = alignment.aligned([start, a, dog, end], [start, a, dog, snow, end], length=TOKENS)
    weights = np.ones(TOKENS, np.float32)
    weights[2], weights[3] = 0.5, 3.0

    def of(found: alignment.Alignment, shared: bool, by: np.ndarray | float = 1.0) -> Swap:
        return Swap(found.words[None] * by, found.own[None] * by, np.array([shared]))

    return {
        "replace": of(replaced, False),
        "replace by more": of(longer, True),
        "refine": of(added, True),
        "re-weight": of(same, False, weights),
        "refine and re-weight": of(added, False, weights),
        "off": Swap(
            np.zeros_like(same.words[None]), np.ones((1, TOKENS), np.float32), np.array([False])
        ),
    }


@pytest.fixture(scope="module", params=list(WIDTHS))
def both(request, tmp_path_factory):
    """Our jitted network of a swap, and theirs of a swap, on the same input of one pair."""
    root, name = tmp_path_factory.mktemp("models"), request.param
    if name == "if":
        folder = cascades.make(root / name, "base", unet=cascades.ONE_LEVEL)
    else:
        folder = latents.make(root / name, name)
    stage = families.open_stage(str(folder), kind="base")
    params = tree.split(pipeline.read_weights(stage), stage.is_denoiser)[0]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, *stage.sample_shape)).astype(np.float32)
    states = rng.normal(size=(4, TOKENS, WIDTHS[name])).astype(np.float32)
    pooled = rng.normal(size=(4, 24)).astype(np.float32)
    cond = sdxl.PooledText(states, pooled) if name == "sdxl" else states
    t = np.full(4, LEVEL, np.float32)

    @jax.jit
    def ours(swap: Swap) -> jax.Array:
        return stage.predict(params, x, t, cond, attend=words.swapped(swap, every=2))

    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").to(torch.float32)
    added = {}
    if name == "sdxl":
        sizes = torch.tensor([[16, 16, 0, 0, 16, 16]] * 4)
        added = {"added_cond_kwargs": {"text_embeds": torch.from_numpy(pooled), "time_ids": sizes}}

    def theirs(swap: Swap) -> np.ndarray:
        network.set_attn_processor(Maps(swap))
        inputs = torch.from_numpy(x).movedim(-1, 1), torch.tensor(LEVEL), torch.from_numpy(states)
        with torch.no_grad():
            return network(*inputs, **added)[0].movedim(1, -1).numpy()

    return ours, theirs


def test_every_kind_of_edit_is_that_of_changed_maps(both):
    ours, theirs = both
    off = None
    for kind, swap in reversed(edits().items()):
        found, expected = np.asarray(ours(swap)), theirs(swap)
        off = expected if kind == "off" else off
        error = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"{kind}: {error:.1e}")
        assert error <= 1e-5, kind
        if kind != "off":  # the edit differs from what it is alone, the other rows do not
            assert np.abs(expected[2] - off[2]).max() > 1e-3
            np.testing.assert_allclose(expected[[0, 1, 3]], off[[0, 1, 3]], atol=1e-5)
