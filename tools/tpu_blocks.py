r"""Blocks of Stable Diffusion's UNet, compiled for a TPU: bytes moved with each `train.remat`.

    python tools/tpu_blocks.py v5e:1x1

Forward and backward of 2 rows at 64² with 320 channels in bfloat16; the figures of docs/tpu.md.
"""

import sys
from typing import Any

import architectures
import jax
import jax.numpy as jnp

from dreambooth_jax import precompile, sharding
from dreambooth_jax.models import layers, transformer, unet, unet_blocks

ROWS, SIDE, CHANNELS, TOKENS = 2, 64, 320, 77


def main(topology: str) -> None:
    devices = precompile.topology(topology)
    mesh = sharding.make_mesh(devices=devices)

    def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding.replicated(mesh))

    cfg: Any = unet.UNetConfig.from_dict(architectures.MODELS["sd15"]["unet/config.json"])
    image, text = shape(ROWS, SIDE, SIDE, CHANNELS), shape(ROWS, TOKENS, cfg.cross_attention_dim)
    blocks = {
        "ResnetBlock": (
            unet_blocks.ResnetBlock(CHANNELS, CHANNELS, cfg),
            shape(ROWS, cfg.time_embed_dim),
        ),
        "Transformer": (transformer.Transformer(CHANNELS, cfg, level=0), text),
    }
    for name, (block, other) in blocks.items():
        network = layers.take_apart(block)
        params = {path: shape(*x.shape, dtype=x.dtype) for path, x in network.abstract.items()}
        for remat, call in unet_blocks.REMAT.items():

            def loss(params, x, other, pull, network=network, call=call):
                answer = call(network.bind(params), x, other)
                return (answer.astype(jnp.float32) * pull).sum()

            step = jax.jit(sharding.traced_for(mesh, jax.grad(loss, argnums=(0, 1))))
            args = (params, image, other, image)
            found = precompile.forecast(f"{name}, {remat}", step, *args, devices=devices)
            print(precompile.as_table([found]).splitlines()[1], flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
