"""--mode=precompile for GPUs: programs of Stable Diffusion, narrow but at its 512 pixels."""

import json
import re
import runpy

import numpy as np
import pytest
import targets

from dreambooth_jax import config as configs
from dreambooth_jax import precompile
from dreambooth_jax.experiment.modes import precompile as mode
from dreambooth_jax.experiment.parts import loading

pytestmark = pytest.mark.compilers
NARROW = {
    # Heads are counted by this name there: two of 16 numbers, then of 32.
    "unet/config.json": {
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 64,
    },
    "vae/config.json": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    "text_encoder/config.json": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
    },
}
TOKENS = 64 * 64


@pytest.fixture(scope="module")
def settings(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    files = runpy.run_path(str(repository / "tools" / "architectures.py"))["MODELS"]["sd15"]
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content | NARROW.get(name, {})))
    c = runpy.run_path(str(repository / "configs" / "stable_diffusion.py"))["get_config"]("sd15")
    c.base_model, c.train.batch_size, c.prior.batch_size = str(folder), 2, 2
    c.sampler.num_steps = 5
    return configs.resolve(c)


@pytest.mark.parametrize("what", [pytest.param("train", marks=pytest.mark.long), "sample"])
def test_a_gpu_s_program_has_cudnn_s_attention_and_nowhere_whole_scores(settings, what):
    targets.mesh_of("h100")  # skips without its compiler
    mesh = loading.make_mesh(settings, precompile.topology("h100"))
    stages = loading.open_stages(settings, shapes_only=True)
    _, program, args = mode.PROGRAMS[what](settings, "base", stages, mesh)
    text = program.trace(*args).lower().compile().as_text()
    called = set(re.findall(r'custom_call_target="__cudnn\$(fmha\w+)"', text))
    backward = {"fmhaSoftmaxBackward"} if what == "train" else set()
    assert called == {"fmhaSoftmax"} | backward
    arrays = re.findall(r"\b(?:bf16|f16|f32)\[([\d,]+)\]", text)
    sides = [[int(side) for side in array.split(",")] for array in arrays]
    assert [shape for shape in sides if np.prod(shape) >= TOKENS * TOKENS] == []
