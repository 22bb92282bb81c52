"""The small flow transformer's folder: 32 tokens, no velocity at first, opened by PyTorch."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import flow_folder
import teach_flow
from nouns import typical_captions

from dreambooth_jax import families, tree, weights
from dreambooth_jax.models import layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("flow")
    flow_folder.write_skeleton(made, typical_captions())
    return made


@pytest.fixture(scope="module")
def stage(folder):
    return families.open_stage(str(folder), kind="base", resolution=flow_folder.PIXELS)


def test_the_network_gets_all_captions_at_one_length(stage):
    captions = typical_captions()
    assert stage.tokens(captions)["ids"].shape == (len(captions), 32)
    assert stage.sample_shape == (16, 16, flow_folder.CHANNELS)
    assert not stage.distilled
    for word in ("bird", "background"):
        assert stage.tokenizer.pieces(f"a {word}")[1:] == (f"Ġ{word}",)


def test_it_begins_with_no_velocity_and_every_kernel_can_learn(stage):
    """Where two factors were zero at first, neither would ever have a gradient."""
    flat = flow_folder.initial(stage, seed=0)
    tokens = stage.tokens(["a bird", "a small dog in the desert"])
    x = np.random.default_rng(0).normal(size=(2, *stage.sample_shape)).astype(np.float32)

    def velocity(flat):
        text = stage.encode_text(flat, tokens, dtype=jnp.float32)
        return stage.predict(flat, x, jnp.array([300.0, 700.0]), text)

    assert not np.asarray(jax.jit(velocity)(flat)).any()
    # A step along the gradient of the output layer, then of the gates: all others have one then.
    step = jax.jit(jax.grad(lambda flat: jnp.square(velocity(flat) - x).mean()))
    for _ in range(3):
        grads = step(flat)
        flat = {path: leaf - 10 * grads[path] for path, leaf in flat.items()}
    still = {path for path, leaf in grads.items() if not np.asarray(leaf).any()}
    assert still <= {"transformer/x_pad_token"}  # 64 tokens need no filling up


def test_what_is_written_is_opened_by_pytorch(stage, folder):
    diffusers = pytest.importorskip("diffusers", reason="compares with PyTorch: extra `parity`")
    flat = flow_folder.initial(stage, seed=0)
    flow_folder.write_weights(folder, flat)
    coder = layers.initial(stage.networks["vae"], 0)
    weights.write(folder / "vae", coder, dtype="float32", stem="diffusion_pytorch_model")
    pipe = diffusers.ZImagePipeline.from_pretrained(folder)
    found = {name: leaf.numpy() for name, leaf in pipe.transformer.state_dict().items()}
    for path, leaf in tree.prefixed(flat, "transformer").items():
        theirs = found.pop(weights.key_of(path))
        np.testing.assert_array_equal(theirs, leaf.T if path.endswith("kernel") else leaf)
    assert not found
    assert len(pipe.text_encoder.layers) == 3


def test_latents_have_the_weights_of_the_pixels_under_them(stage):
    class Halves:
        def rows(self, first, count):
            coverage = np.zeros((count, 32, 32), np.uint8)
            coverage[:, 16:] = 255  # the lower half shows the thing
            return np.zeros((count, 32, 32, 3), np.uint8), coverage, ["a bird"] * count

    coder = tree.with_prefix(layers.initial(stage.networks["vae"], 0), "vae")
    plain = teach_flow.Batches(Halves(), stage, thing=3.0)
    batch = teach_flow.Latents(plain, coder).batch(0, first=9, count=4, size=32)
    assert batch["mean"].shape == batch["std"].shape == (4, *stage.sample_shape)
    expected = np.repeat([1.0, 3.0], 8)[:, None, None]
    np.testing.assert_allclose(batch["pixel_weights"], np.tile(expected, (4, 1, 16, 1)))
