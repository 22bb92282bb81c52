r"""Attention of the networks' shapes, compiled for a TPU in each form: the table in docs/tpu.md.

    python tools/tpu_attention.py v5e:1x1

Bytes moved and temporaries are the compiler's, forward and backward, projections around it included
as in a network: layouts are what they are there.
"""

import sys

import jax
import jax.numpy as jnp

from dreambooth_jax import precompile, sharding
from dreambooth_jax.models import attention

SHAPES = {  # what it is -> rows, queries, keys, heads, size of a head
    "SD 1.5 at 64²": (2, 4096, 4096, 8, 40),
    "SD 1.5 at 32²": (2, 1024, 1024, 8, 80),
    "SD 1.5 at 16²": (2, 256, 256, 8, 160),
    "SD 1.5 at 64², text": (2, 4096, 77, 8, 40),
    "IF-I-XL at 32²": (2, 1024, 1101, 22, 64),
}


def main(topology: str) -> None:
    devices = precompile.topology(topology)
    mesh = sharding.make_mesh(devices=devices)
    for what, (rows, queries, keys, heads, size) in SHAPES.items():
        width = heads * size
        for name in ("xla", "pallas"):
            form = attention.FORMS[name]

            def loss(x, others, kernels, form=form, heads=heads, size=size):
                q, k, v = (
                    (y @ kernel).reshape(*y.shape[:2], heads, size)
                    for y, kernel in zip((x, others, others), kernels[:3], strict=True)
                )
                answer = form(q, k, v, None, size**-0.5).reshape(x.shape)
                return (answer @ kernels[3]).astype(jnp.float32).sum()

            shapes = (rows, queries, width), (rows, keys, width), (4, width, width)
            args = [
                jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding.replicated(mesh))
                for shape in shapes
            ]
            step = jax.jit(sharding.traced_for(mesh, jax.value_and_grad(loss, argnums=(0, 1, 2))))
            print(
                precompile.as_table(
                    [precompile.forecast(f"{what}: {name}", step, *args, devices=devices)]
                ).splitlines()[1],
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1])
