"""Products with what stands in a kernel's place: the same as with the sum, and never made of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.sharding import PartitionSpec as P

from dreambooth_jax import adapt, config, kernels, sharding
from dreambooth_jax.models import layers, transformer, words

SMALL = ("lora_down", "lora_up", "dora_length")


def settings(**changed):
    c = config.base_config().adapt
    c.update({"name": "lora", "rank": 3, "alpha": 1.5, "targets": ".*/kernel", **changed})
    return c


def numbers(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def summed(kernel, down, up, length=None, *, scale):
    """The kernel that LoRA and DoRA mean, as their papers write it; no gradient through norms."""
    whole = kernel + scale * jnp.tensordot(down, up, 1)
    if length is None:
        return whole
    norm = jnp.sqrt(jnp.square(whole).sum(tuple(range(whole.ndim - 1)), keepdims=True))
    return whole / jax.lax.stop_gradient(norm) * length.reshape((1,) * (whole.ndim - 1) + (-1,))


def convolved(x, kernel, *, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, [padding] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


LAYERS = {
    "linear": (lambda: layers.Linear(6, 8), (2, 5, 6), lambda x, w: x @ w),
    "conv": (
        lambda: layers.Conv(4, 6),
        (2, 9, 8, 4),
        functools.partial(convolved, stride=1, padding=(1, 1)),
    ),
    "conv of few positions": (
        lambda: layers.Conv(4, 6),
        (2, 4, 4, 4),
        functools.partial(convolved, stride=1, padding=(1, 1)),
    ),
    "conv 1x1": (
        lambda: layers.Conv(4, 6, width=1),
        (2, 5, 5, 4),
        functools.partial(convolved, stride=1, padding=(0, 0)),
    ),
    "conv that halves": (
        lambda: layers.Conv(4, 6, stride=2, padding=(0, 1)),
        (2, 8, 8, 4),
        functools.partial(convolved, stride=2, padding=(0, 1)),
    ),
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_beside_the_product_is_as_in_the_sum_and_so_are_all_gradients(name, dora, rng):
    make, shape, product = LAYERS[name]
    network = layers.take_apart(make())
    flat = {path: numbers(rng, *leaf.shape) for path, leaf in network.abstract.items()}
    # Of a network there is a prefix before each path.
    flat = {f"unet/{path}": leaf for path, leaf in flat.items()}
    adapter = adapt.make(settings(dora=dora), seed=0)
    trainable, frozen = adapter.init(flat, ((".*", True),))
    trained = {path: numbers(rng, *leaf.shape) for path, leaf in trainable.items()}
    x, weights = numbers(rng, *shape), None

    def beside(trained, x):
        params = adapter.combine(frozen, trained)
        y = network.bind({path.removeprefix("unet/"): leaf for path, leaf in params.items()})(x)
        return (y * weights).sum() if weights is not None else y

    def merged(trained, x):
        factors = [trained.get(f"unet/kernel/{part}") for part in SMALL]
        rank = factors[1].shape[0]
        y = product(x, summed(frozen["unet/kernel"], *factors, scale=1.5 / rank))
        y = y + frozen["unet/bias"].reshape((1,) * (y.ndim - 1) + (-1,))
        return (y * weights).sum() if weights is not None else y

    found, expected = beside(trained, x), merged(trained, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    weights = numbers(rng, *expected.shape)
    found, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(trained, x) for f in (beside, merged))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def attention_with_lora(*, dora=False, width=16, seed=0):
    """Attention, its weights, a forward pass by the trained factors, and these."""
    network = layers.take_apart(transformer.Attention(width, 12, heads=4, upcast=False))
    flat = {f"unet/{path}": leaf for path, leaf in layers.initial(network, seed).items()}
    rng = np.random.default_rng(seed)
    flat |= {path: numbers(rng, *leaf.shape) / 4 for path, leaf in flat.items()}
    adapter = adapt.make(settings(dora=dora), seed=0)
    trainable, frozen = adapter.init(flat, ((".*", True),))
    trained = {path: numbers(rng, *leaf.shape) for path, leaf in trainable.items()}
    x, others = jnp.asarray(numbers(rng, 4, 10, width)), jnp.asarray(numbers(rng, 4, 7, 12))

    def loss(trained, frozen, rows=slice(None)):
        params = adapter.combine(frozen, trained)
        bound = network.bind({path.removeprefix("unet/"): leaf for path, leaf in params.items()})
        return jnp.square(bound(x[rows], others[rows], attend=words.plain, text=7)).sum()

    return loss, trained, frozen


def shapes_made(jaxpr):
    """Shapes of all that a program computes, those of inner programs included."""
    for equation in jaxpr.eqns:
        for value in equation.outvars:
            yield tuple(value.aval.shape)
        for inner in core.jaxprs_in_params(equation.params):
            yield from shapes_made(inner)


def test_no_second_kernel_is_made_and_no_gradient_of_a_whole_one():
    # No other array has the shape of a kernel: 16 inputs or 12, 16 outputs; 10 and 7 tokens.
    loss, trained, frozen = attention_with_lora()
    made = set(shapes_made(jax.make_jaxpr(jax.grad(loss))(trained, frozen).jaxpr))
    assert not {(16, 16), (12, 16)} & made
    assert {(16, 3), (12, 3), (3, 16)} <= made  # the gradients of the factors are

    def merged(trained, frozen):
        params = kernels.all_fused(adapt.make(settings(), seed=0).combine(frozen, trained))
        return sum(leaf.sum() for leaf in params.values())

    assert (16, 16) in set(shapes_made(jax.make_jaxpr(merged)(trained, frozen).jaxpr))


@pytest.mark.parametrize("dora", [False, True])
def test_subjects_at_once_are_each_as_alone_and_what_is_frozen_is_there_once(dora, rng):
    loss, trained, frozen = attention_with_lora(dora=dora)
    both = {path: np.stack([leaf, numbers(rng, *leaf.shape)]) for path, leaf in trained.items()}
    grads = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(both, frozen)
    for k in range(2):
        alone = jax.jit(jax.grad(loss))({path: leaf[k] for path, leaf in both.items()}, frozen)
        for path, expected in alone.items():
            size = np.abs(expected).max()
            np.testing.assert_allclose(grads[path][k], expected, rtol=0, atol=1e-5 * size)
    program = jax.make_jaxpr(jax.vmap(jax.grad(loss), in_axes=(0, None)))(both, frozen)
    assert not {(2, 16, 16), (2, 12, 16)} & set(shapes_made(program.jaxpr))


@pytest.mark.parametrize("dora", [False, True])
def test_computed_again_in_the_backward_pass_it_is_the_same(dora):
    loss, trained, frozen = attention_with_lora(dora=dora)
    again = jax.jit(jax.grad(lambda *args: jax.checkpoint(loss)(*args)))(trained, frozen)
    for path, expected in jax.jit(jax.grad(loss))(trained, frozen).items():
        np.testing.assert_allclose(again[path], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 1, 4), (2, 2, 2)])
def test_on_a_mesh_the_gradients_are_those_of_one_device(sizes, bits):
    loss, trained, frozen = attention_with_lora(dora=True)
    if bits == 8:
        frozen = {
            path: kernels.rounded_to_int8(leaf) if path.endswith("/kernel") else leaf
            for path, leaf in frozen.items()
        }
    expected = jax.jit(jax.grad(loss))(trained, frozen)
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)))
    rules = (
        (r".*/to_[qkv]/kernel(/lora_up|/dora_length)?", "columns"),
        (r".*/to_out/0/kernel(/lora_down)?", "rows"),
        (".*", "fsdp"),
    )
    place = functools.partial(
        sharding.shardings, rules=rules, mesh=mesh, min_bytes=0, heads={"unet": 4}
    )
    placed = jax.device_put(trained, place(trained))
    found = jax.jit(
        sharding.traced_for(mesh, jax.grad(loss)), in_shardings=(place(trained), place(frozen))
    )(placed, jax.device_put(frozen, place(frozen)))
    for path, leaf in expected.items():
        size = np.abs(leaf).max()
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=2e-5 * size)


def test_a_network_known_by_shape_has_the_shapes_of_its_output():
    loss, trained, frozen = attention_with_lora(dora=True)
    small = {
        path: kernels.abstract_int8(leaf) if path.endswith("/kernel") else leaf
        for path, leaf in frozen.items()
    }
    assert jax.eval_shape(loss, trained, small).shape == ()
    adapter = adapt.make(settings(dora=True), seed=0)
    found = adapt.abstract(adapter, small, ((".*", True),))
    assert {path: leaf.shape for path, leaf in found.items()} == {
        path: leaf.shape for path, leaf in trained.items()
    }


@pytest.mark.parametrize("name", LAYERS)
def test_8_bits_give_the_product_with_what_they_stand_for_and_its_gradient(name, rng):
    make, shape, product = LAYERS[name]
    network = layers.take_apart(make())
    flat = {path: numbers(rng, *leaf.shape) for path, leaf in network.abstract.items()}
    small = {**flat, "kernel": kernels.rounded_to_int8(flat["kernel"])}
    x = numbers(rng, *shape)
    meant = np.float32(np.float64(small["kernel"].values) * small["kernel"].scale)
    weights = None

    def ours(x):
        y = network.bind(small)(x)
        return y if weights is None else (y * weights).sum()

    def theirs(x):
        y = product(x, meant) + flat["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
        return y if weights is None else (y * weights).sum()

    expected = theirs(x)
    np.testing.assert_allclose(ours(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    # Closed form: an error of at most half a scale in each weight, times the sum of |inputs|.
    inputs = np.abs(product(np.abs(x), np.ones_like(meant)))
    error = np.abs(
        theirs(x) - (product(x, flat["kernel"]) + flat["bias"].reshape((1,) * (x.ndim - 1) + (-1,)))
    )
    assert (error <= inputs * small["kernel"].scale / 2 * 1.001 + 1e-5).all()
    weights = numbers(rng, *expected.shape)
    np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(theirs)(x), rtol=1e-4, atol=1e-4)


def test_half_precision_keeps_a_change_too_small_for_the_kernel():
    signs = jnp.asarray([[1.0], [-1.0], [1.0], [-1.0]])
    tiny = kernels.LowRank(jnp.ones((4, 4)), 2.0**-6 * signs, jnp.full((1, 4), 2.0**-6))
    x = signs.T.astype(jnp.bfloat16)
    # 1 ± 2⁻¹² is 1 in 16 bits, and the product with ones is 0: only beside it there is 4·2⁻¹².
    assert not np.any(np.float32(x @ kernels.fused(tiny).astype(jnp.bfloat16)))
    found = layers.multiply(x, tiny)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(found), np.full((1, 4), 2.0**-10))


def test_new_rows_are_looked_up_beside_their_table_and_have_all_of_the_gradient(rng):
    table, rows = numbers(rng, 9, 4), numbers(rng, 2, 4)
    ids = jnp.asarray([[3, 7, 0], [8, 3, 3]])
    stand = functools.partial(kernels.with_rows, jnp.asarray(table), ids=(3, 8))
    meant = np.array(table)
    meant[[3, 8]] = rows
    np.testing.assert_array_equal(layers.look_up(ids, stand(rows)), meant[np.asarray(ids)])
    weights = numbers(rng, 2, 3, 4)
    grad = jax.grad(lambda rows: (layers.look_up(ids, stand(rows)) * weights).sum())(rows)
    expected = np.stack([weights[0, 0] + weights[1, 1] + weights[1, 2], weights[1, 0]])
    np.testing.assert_allclose(grad, expected, rtol=1e-6)
    many = jax.vmap(lambda rows: layers.look_up(ids, stand(rows)))(np.stack([rows, 2 * rows]))
    meant[[3, 8]] = 2 * rows
    np.testing.assert_array_equal(many[1], meant[np.asarray(ids)])


def test_a_frozen_tables_place_is_as_its_kernel():
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
    leaf = jax.ShapeDtypeStruct((16, 32), jnp.float32)
    rules = ((".*/first/kernel", "columns"), (".*", "rows"))
    how = {"rules": rules, "mesh": mesh, "min_bytes": 0}
    small = {"a/first/kernel": kernels.abstract_int8(leaf), "a/second/kernel": leaf}
    small["a/second/kernel"] = kernels.abstract_int8(leaf)
    found = sharding.shardings(small, **how)
    first, second = found["a/first/kernel"], found["a/second/kernel"]
    assert (first.values.spec, first.scale.spec) == (P("fsdp", "tensor"), P("tensor"))
    assert (second.values.spec, second.scale.spec) == (P("tensor", "fsdp"), P("fsdp"))
