"""The pure train step of one stage, and its compilation over a mesh.

    loss_fn → train_step (pure) → compiled (jit with shardings, the state donated)

A batch is small arrays: `mean` `[B,H,W,C]`, `prompt` int32 `[B]`, `is_prior` bool `[B]`; a latent
model's adds `std` `[B,H,W,C]`, SDXL's `sizes` `[B,6]`, an upscaler's `low_res` `[B,h,w,C]`, photos'
with masks `pixel_weights` `[B,H,W,1]`, a trained text encoder's the tokens of the step's prompts
(`pipeline.TOKENS`), int32 `[P,L]`, and, where these are not all prompts, `token_row` int32 `[B]`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from dreambooth_jax import optim, rng, sharding, tree
from dreambooth_jax.adapt import Adapter, lora
from dreambooth_jax.diffusion import loss, process, variance
from dreambooth_jax.diffusion.path import MODEL_DENSITY, Density
from dreambooth_jax.pipeline import TOKENS, Stage

Array = jax.Array
Batch = Mapping[str, Any]
_FROM_BATCH = ("prompt", "token_row", "is_prior", "sizes", "pixel_weights", *TOKENS)


@struct.dataclass
class TrainState:
    """All that changes in a run.

    `bad_steps` counts non-finite steps in a row; `ema` is None unless averaged weights are kept.
    """

    step: Array
    bad_steps: Array
    trainable: tree.Flat
    opt_state: Any
    ema: tree.Flat | None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a step that never change in a run.

    `aug_levels` are the first and last level of the noise on the low-res input, as time steps,
    `time_steps` those that x0 is noised to, with `density` on a flow. With `prior_by_prediction` a
    class row's target is what the untouched model says (`frozen["before"]`), not its picture.
    `phases` tell which leaves are trained when; the optimizer knows the same ones.
    `learned_variance` adds the variational bound.
    `remat` is one of `models.unet_blocks.REMAT`.
    """

    seed: int
    prior_loss_weight: float = 1.0
    min_snr_gamma: float = 0.0
    accumulate: int = 1
    ema_decay: float = 0.0
    dtype: Any = jnp.float32
    aug_levels: tuple[int, int] = (0, 0)
    time_steps: tuple[int, int] = (0, 999)
    density: Density = MODEL_DENSITY
    offset_noise: float = 0.0
    prior_by_prediction: bool = False
    phases: tuple[optim.Phase, ...] = ()
    learned_variance: bool = False
    remat: str = "none"


def draw(stage: Stage, recipe: Recipe, batch: Batch, step: Array) -> dict[str, Array]:
    """Everything random of one step, for all rows.

    A function of (seed, step, name), on any number of devices.
    """
    x0 = batch["mean"]

    def key(name: str) -> Array:
        return rng.key(recipe.seed, step, f"{stage.kind}/{name}")

    if "std" in batch:  # a latent is drawn anew each time, as its encoder means it
        x0 = x0 + batch["std"] * jax.random.normal(key("latent"), x0.shape)
    noise = jax.random.normal(key("noise"), x0.shape)
    if recipe.offset_noise:  # lets the mean brightness change
        channels = (x0.shape[0], 1, 1, x0.shape[-1])
        shared = jax.random.normal(key("offset_noise"), channels)
        noise = noise + recipe.offset_noise * jnp.broadcast_to(shared, x0.shape)
    path, count = stage.path.at(*x0.shape[1:3]), x0.shape[:1]
    t = path.draw(key("t"), count, steps=recipe.time_steps, density=recipe.density)
    drawn = {"x0": x0, "t": t, "noise": noise}
    if "low_res" in batch:
        assert stage.noising is not None
        level = stage.noising.draw(
            key("noise_level"), count, steps=recipe.aug_levels, density=MODEL_DENSITY
        )
        noise = jax.random.normal(key("low_res"), x0.shape)
        drawn["noise_level"] = level
        drawn["condition"] = stage.condition(batch["low_res"], noise, level)
    return drawn


def rows_of(stage: Stage, recipe: Recipe, batch: Batch, step: Array) -> dict[str, Any]:
    """All that the loss of a step needs of its rows: what is drawn, the batch, weights of rows."""
    rows: dict[str, Any] = draw(stage, recipe, batch, step)
    rows |= {name: batch[name] for name in _FROM_BATCH if name in batch}
    rows["weights"] = loss.row_weights(batch["is_prior"], recipe.prior_loss_weight)
    return rows


def loss_fn(
    trainable: tree.Flat,
    frozen: Mapping[str, Any],
    rows: Batch,
    *,
    stage: Stage,
    recipe: Recipe,
    adapter: Adapter,
) -> tuple[Array, dict[str, Array]]:
    """Denoising loss on subject rows plus λ times that on class rows (Ruiz et al. 2022, eq. 2)."""
    # A distilled model is trained with its assistant beside it, and draws without.
    base = lora.beside(frozen["weights"], frozen.get("assistant", {}))
    params = adapter.combine(base, trainable)
    if tokens := {name: rows[name] for name in TOKENS if name in rows}:
        table = stage.encode_text(params, tokens, dtype=recipe.dtype)
    else:
        table = jax.tree.map(lambda x: x.astype(recipe.dtype), frozen["table"])
    xt = process.add_noise(stage.path, rows["x0"], rows["noise"], rows["t"])
    told = stage.path.told(rows["t"])
    extra = {name: rows[name] for name in ("condition", "noise_level", "sizes") if name in rows}

    def predict(params: tree.Flat, table: Any, at: Array, remat: str) -> Array:
        text = jax.tree.map(lambda x: x[at], table)
        return stage.predict(params, xt, told, text, **extra, remat=remat)

    at = rows["token_row"] if "token_row" in rows else rows["prompt"]
    output = predict(params, table, at, recipe.remat)
    target = said = None
    if recipe.prior_by_prediction:
        before = jax.tree.map(lambda x: x.astype(recipe.dtype), frozen["table"])
        untouched = {**base, **frozen.get("before", {})}
        said = predict(untouched, before, rows["prompt"], "none")
        said = jax.lax.stop_gradient(said)
        plain = process.target(stage.path, rows["x0"], rows["noise"], rows["t"])
        is_prior = rows["is_prior"][:, None, None, None]
        target = jnp.where(is_prior, said[..., : xt.shape[-1]], plain)
    per_example = loss.denoising(
        stage.path,
        output,
        x0=rows["x0"],
        noise=rows["noise"],
        t=rows["t"],
        min_snr_gamma=recipe.min_snr_gamma,
        target=target,
        pixel_weights=rows.get("pixel_weights"),
    )
    if recipe.learned_variance:
        per_example += variance.bound(
            stage.path,
            output,
            x0=rows["x0"],
            xt=xt,
            t=rows["t"],
            before=said,
            is_prior=rows["is_prior"],
            pixel_weights=rows.get("pixel_weights"),
        )
    return loss.with_prior(per_example, rows["weights"])


def gradients(
    trainable: tree.Flat,
    frozen: Mapping[str, Any],
    rows: dict[str, Any],
    places: Mapping[str, Any] | None = None,
    *,
    recipe: Recipe,
    **static: Any,
) -> tuple[Array, dict[str, Array], tree.Flat]:
    """(loss, parts, gradients); with `accumulate` > 1 summed over parts of the batch, in turn.

    Each gradient goes where `places` says, at once: else the compiler may split it in another way,
    and gather parameter and moments once they are updated.

    Row weights are those of the whole batch, so the sum is the large batch's gradient, whatever
    lies in which part.
    """
    plain = jax.value_and_grad(functools.partial(loss_fn, recipe=recipe, **static), has_aux=True)

    def grad_fn(*args: Any) -> Any:
        value, grads = plain(*args)
        return value, grads if places is None else jax.lax.with_sharding_constraint(grads, places)

    if recipe.accumulate == 1:
        (value, parts), grads = grad_fn(trainable, frozen, rows)
        return value, parts, grads

    whole = {name: rows.pop(name) for name in TOKENS if name in rows}
    # Part a takes rows a, a + A, …: every device keeps its own rows.
    shape = (-1, recipe.accumulate)
    cut = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*shape, *x.shape[1:]), 1, 0), rows)

    def add(total: Any, part: dict[str, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad_fn(trainable, frozen, {**part, **whole})), None

    first = {**jax.tree.map(lambda x: x[0], cut), **whole}
    abstract = jax.eval_shape(grad_fn, trainable, frozen, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    ((value, parts), grads), _ = jax.lax.scan(add, zeros, cut)
    return value, parts, grads


def train_step(
    state: TrainState,
    frozen: Mapping[str, Any],
    batch: Batch,
    *,
    stage: Stage,
    recipe: Recipe,
    adapter: Adapter,
    tx: optax.GradientTransformation,
    places: Mapping[str, Any] | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step; where loss or gradient is not finite, only the counters change.

    places: the `PartitionSpec` of each gradient; where there is one device, None.
    """
    rows = rows_of(stage, recipe, batch, state.step)
    value, parts, grads = gradients(
        state.trainable, frozen, rows, places, recipe=recipe, stage=stage, adapter=adapter
    )
    on = optim.active(recipe.phases, grads, state.step)
    grads = optim.masked(grads, on) if recipe.phases else grads
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)

    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads, state.opt_state, state.trainable, step=state.step
    )
    trainable = optax.apply_updates(state.trainable, updates)
    # By choice, not by adding nothing: that would turn -0 into 0, and flush what is denormal.
    trainable = {p: jnp.where(on[p] & finite, x, state.trainable[p]) for p, x in trainable.items()}
    ema = optim.evaluated(opt_state, trainable)
    if ema is None and state.ema is not None:
        ema = state.ema
        ema = optim.average(ema, trainable, state.step, recipe.ema_decay, phases=recipe.phases)
    new, old = (opt_state, ema), (state.opt_state, state.ema)
    opt_state, ema = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
    metrics = {"loss": value, **parts, "grad_norm": norm, "bad_steps": bad_steps}
    return TrainState(state.step + 1, bad_steps, trainable, opt_state, ema), metrics


def initial_state(
    trainable: tree.Flat, tx: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    average = jax.tree.map(jnp.copy, trainable) if ema else None
    # Copies: some rules keep the first parameters, and the state is donated leaf by leaf.
    opt_state = jax.tree.map(jnp.copy, tx.init(trainable))
    return TrainState(zero, zero, trainable, opt_state, average)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The jitted step with the shardings it was compiled for."""

    step: Any  # jitted: (state, frozen, batch) -> (state, metrics)
    init: Callable[[tree.Flat], TrainState]
    state: Any  # tree of ShapeDtypeStruct with shardings: what a checkpoint is restored into
    frozen: Any
    mesh: Mesh

    def put_batch(self, batch: Batch) -> dict[str, jax.Array]:
        """A host batch on the devices: rows split, prompt tables whole."""
        rows, whole = sharding.rows(self.mesh), sharding.replicated(self.mesh)
        return {
            name: sharding.put(x, whole if name in TOKENS else rows) for name, x in batch.items()
        }


def compiled(
    trainable: Mapping[str, Any],
    frozen: Any,
    *,
    stage: Stage,
    recipe: Recipe,
    adapter: Adapter,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: sharding.Rules,
    min_bytes: int,
) -> Compiled:
    """Jits the step over the mesh.

    State and frozen weights are split by the rules, batches by rows; metrics are everywhere.
    """
    place = functools.partial(
        sharding.shardings, rules=rules, mesh=mesh, min_bytes=min_bytes, heads=stage.heads
    )
    by_path, whole = place(trainable), sharding.replicated(mesh)
    own = jax.eval_shape(lambda flat: optim.evaluated(tx.init(flat), flat), dict(trainable))
    init = functools.partial(initial_state, tx=tx, ema=recipe.ema_decay > 0 or own is not None)
    abstract = jax.eval_shape(init, dict(trainable))
    states = sharding.like_parameters(abstract, by_path, trainable, mesh)
    frozen_shardings: dict[str, Any] = {"weights": place(frozen["weights"])}
    for name in ("before", "assistant"):
        if name in frozen:
            frozen_shardings[name] = place(frozen[name])
    if "table" in frozen:
        frozen_shardings["table"] = jax.tree.map(lambda _: whole, frozen["table"])
    # Gradients go where their parameters are.
    places = {path: place.spec for path, place in by_path.items()} if mesh.size > 1 else None
    step = functools.partial(
        train_step, stage=stage, recipe=recipe, adapter=adapter, tx=tx, places=places
    )
    return Compiled(
        # Batches come with their shardings (rows split, prompt tables whole): None takes them as
        # they are.
        step=jax.jit(
            sharding.traced_for(mesh, step),
            in_shardings=(states, frozen_shardings, None),
            out_shardings=(states, whole),
            donate_argnums=0,
        ),
        init=jax.jit(init, out_shardings=states),
        state=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, states
        ),
        frozen=frozen_shardings,
        mesh=mesh,
    )
