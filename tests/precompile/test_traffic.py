"""Bytes that compiled programs move, against those that their shapes give."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
import targets
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dreambooth_jax import precompile, sharding
from dreambooth_jax.precompile import traffic

pytestmark = pytest.mark.compilers
N = 2**20  # numbers, 4 MiB


def of(function, *shapes, device, dtype=jnp.float32):
    """Bytes moved by a program for a device, by its text."""
    mesh = targets.mesh_of(device)
    on = partial(jax.ShapeDtypeStruct, dtype=dtype, sharding=sharding.replicated(mesh))
    compiled = jax.jit(function).lower(*(on(shape) for shape in shapes)).compile()
    return traffic.moved(compiled.as_text())


def turned(x):
    """Seven turns, each of which reads and writes all."""
    return jax.lax.fori_loop(0, 7, lambda i, x: jnp.sin(x), x)


def summed(x):
    """Reads row after row; the sum stays small."""
    return jax.lax.scan(lambda total, row: (total + jnp.sin(row).sum(), None), 0.0, x)[0]


def grown(x):
    """Writes row after row into one array."""
    return jax.lax.scan(lambda row, _: (jnp.sin(row), row), x, None, 64)[1]


@pytest.mark.parametrize("device", ["h100", "rtx4090"])
@pytest.mark.parametrize(
    ("function", "shapes", "numbers"),
    [
        (jnp.sin, [(N,)], 2 * N),
        (lambda x, y: jnp.cos(jnp.sin(x) + y), [(N,), (N,)], 3 * N),  # one kernel
        (turned, [(N,)], 7 * 2 * N),
        (summed, [(64, N // 64)], 3 * N),  # a row, and its sine written and read again
        (grown, [(N // 64,)], 5 * N),  # zeros first; a row is copied in, its sine made
        (lambda x: x[1024:2048] * 2, [(N,)], 2 * 1024),
        (jnp.matmul, [(1024, 1024), (1024, 1024)], 3 * N),
    ],
)
def test_numbers_read_and_written(function, shapes, numbers, device):
    found = of(function, *shapes, device=device) / 4
    assert numbers <= found <= 1.15 * numbers + 512  # counters; copies of rows


def test_attention_reads_and_writes_no_scores():
    shape = (2, 4096, 8, 64)

    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")

    found = of(attend, shape, shape, shape, device="h100", dtype=jnp.bfloat16)
    assert found == 4 * 2 * 4096 * 8 * 64 * 2


def test_a_program_of_hand_written_text():
    text = """HloModule step

%inside (p: f32[8,100], i: s32[], u: f32[1,100]) -> f32[8,100] {
  %p = f32[8,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %u = f32[1,100]{1,0} parameter(2)
  %z = s32[] constant(0)
  ROOT %d = f32[8,100]{1,0} dynamic-update-slice(%p, %u, %i, %z)
}

ENTRY %main (a: f32[8,100], b: s32[], c: f32[1,100]) -> f32[8,100] {
  %a = f32[8,100]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[1,100]{1,0} parameter(2)
  %room = (bf16[10]{0}, u8[4096]{0}) custom-call(%c), custom_call_target="x"
  ROOT %f = f32[8,100]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%inside
}
"""
    in_place = 400 + 4 + 400  # written; the index and the new row are read
    assert traffic.moved(text) == in_place + 400 + 20


def test_forecasts_of_gpus_have_bytes_too():
    mesh = targets.mesh_of("a100-40gb")
    x = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=sharding.rows(mesh))
    found = precompile.forecast("2x", jax.jit(lambda x: 2 * x), x, devices=list(mesh.devices.flat))
    assert found.device == "A100"
    assert (found.fits, found.arguments, found.moved) == (True, 1024 * 512 * 4, 1024 * 512 * 8)
    assert found.least_seconds == pytest.approx(1024 * 512 * 8 / 1555e9)


@pytest.mark.parametrize(
    ("names", "result", "shares"),
    [
        (P("fsdp"), P(), 7 / 8),  # all gather the parts of others
        (P(None, "fsdp"), P(), 2 * 7 / 8),  # sums of parts, by all of them
    ],
)
def test_what_each_gpu_sends_to_others(names, result, shares):
    mesh = targets.mesh_of("h100:8", fsdp=8)
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=NamedSharding(mesh, names))
    whole = NamedSharding(mesh, result)

    def rows(x):  # of the first, [1024, 1024]; of the other, sums over the axis that is split
        return x * 2 if names == P("fsdp") else jnp.outer(x.sum(1), jnp.ones(1024))

    compiled = jax.jit(rows, out_shardings=whole).lower(x).compile()
    numbers = 1024 * 1024 if names == P("fsdp") else 1024
    assert traffic.between(compiled.as_text()) == pytest.approx(4 * numbers * shares)


def test_turns_of_a_loop_send_each_time():
    mesh = targets.mesh_of("h100:8", fsdp=8)
    x = jax.ShapeDtypeStruct((8192, 8), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))

    def step(_, x):
        return x * (1 + x.sum(0, keepdims=True))

    compiled = jax.jit(lambda x: jax.lax.fori_loop(0, 5, step, x)).lower(x).compile()
    assert traffic.between(compiled.as_text()) == pytest.approx(5 * 4 * 8 * 2 * 7 / 8)


@pytest.mark.parametrize(
    "groups",
    ["{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "mesh['a'=2,'b'=4] {'b'}", "mesh['a'=8] {'a':(2)4}"],
)
def test_a_group_is_known_in_every_form_that_programs_have(groups):
    text = f"""HloModule m

ENTRY %main (p: f32[256]) -> f32[1024] {{
  %p = f32[256]{{0}} parameter(0)
  ROOT %g = f32[1024]{{0}} all-gather(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}
}}
"""
    assert traffic.between(text) == 3 * 1024
