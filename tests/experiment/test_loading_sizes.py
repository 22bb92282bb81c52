"""The stages of a model opened together: sizes that fit each other."""

import cascades
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import generate
from dreambooth_jax.experiment.parts import loading


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sizes")
    return {kind: cascades.make(root / kind, kind) for kind in ("base", "upscaler")}


def opened(folders, resolution):
    c = configs.base_config()
    c.base_model, c.upscaler_model = (str(folders[kind]) for kind in ("base", "upscaler"))
    c.resolution = resolution
    return loading.open_stages(configs.resolve(c))


@pytest.mark.parametrize(
    ("resolution", "small", "large"),
    [
        (None, (8, 8), (16, 16)),
        (12, (12, 12), (24, 24)),
        ((12, 8), (12, 8), (24, 16)),
        ((4, 10), (4, 10), (8, 20)),
    ],
)
def test_an_upscaler_enlarges_every_shape_as_its_model_does(folders, resolution, small, large):
    stages = opened(folders, resolution)
    assert (stages["base"].size, stages["upscaler"].size) == (small, large)
    settings = generate.Settings("ddim", 2, 1.0, size=stages["upscaler"].asked)
    stage = stages["upscaler"]
    tokens = stage.conditioner.abstract_tokens(2)
    params = stage.abstract

    def drawn(params, tokens, low_res):
        table = stage.encode_text(params, tokens, dtype=jnp.float32)
        rows = {"prompt": jnp.arange(2), "seed": jnp.arange(2, dtype=jnp.uint32)}
        rows["low_res"] = low_res
        return generate.sample_batch(params, table, rows, stage=stage, settings=settings)

    low = jax.ShapeDtypeStruct((2, *small, 3), np.float32)
    assert jax.eval_shape(drawn, params, tokens, low).shape == (2, *large, 3)


def test_a_size_that_a_stage_cannot_make_is_told_before_anything_is_read(folders):
    with pytest.raises(ValueError, match=r"two multiples of 2\. Write --config\.resolution=8,8\."):
        opened(folders, (9, 8))
