"""Training one stage: the pure step, its compilation over a mesh, and the loop.

    loss_fn → train_step (pure) → compiled (jit with shardings, the state donated) → fit (the loop)

A batch is small arrays: `mean` `[B,H,W,C]`, `prompt` int32 `[B]`, `is_prior` bool `[B]`; a latent
model's adds `std` `[B,H,W,C]`, SDXL's `sizes` `[B,6]`, an upscaler's `low_res` `[B,h,w,C]`, a
trained text encoder's the tokens (`pipeline.TOKENS`), int32 `[P,L]`.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from tqdm import tqdm

from dreambooth_jax import optim, rng, sharding, tree
from dreambooth_jax.adapt import Adapter
from dreambooth_jax.diffusion import loss, process
from dreambooth_jax.pipeline import TOKENS, Stage

Array = jax.Array
Batch = Mapping[str, Any]


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
    """What shapes a step and never changes in a run.

    `aug_levels` are the first and last level of the noise on the low-res input, as time steps.
    """

    seed: int
    prior_loss_weight: float = 1.0
    min_snr_gamma: float = 0.0
    accumulate: int = 1
    ema_decay: float = 0.0
    dtype: Any = jnp.float32
    aug_levels: tuple[int, int] = (0, 0)
    remat: bool = False


class NonFiniteError(RuntimeError):
    """The run was stopped after too many non-finite steps in a row."""


def draw(stage: Stage, recipe: Recipe, batch: Batch, step: Array) -> dict[str, Array]:
    """Everything random of one step, for all rows.

    A function of (seed, step, name), on any number of devices.
    """
    x0 = batch["mean"]

    def key(name: str) -> Array:
        return rng.key(recipe.seed, step, f"{stage.kind}/{name}")

    if "std" in batch:  # a latent is drawn anew each time, as its encoder means it
        x0 = x0 + batch["std"] * jax.random.normal(key("latent"), x0.shape)
    drawn = {
        "x0": x0,
        "t": jax.random.randint(key("t"), x0.shape[:1], 0, stage.schedule.num_steps),
        "noise": jax.random.normal(key("noise"), x0.shape),
    }
    if "low_res" in batch:
        first, last = recipe.aug_levels
        level = jax.random.randint(key("noise_level"), x0.shape[:1], first, last + 1)
        noise = jax.random.normal(key("low_res"), x0.shape)
        drawn["noise_level"] = level
        drawn["condition"] = stage.condition(batch["low_res"], noise, level)
    return drawn


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
    params = adapter.combine(frozen["weights"], trainable)
    if tokens := {name: rows[name] for name in TOKENS if name in rows}:
        table = stage.encode_text(params, tokens, dtype=recipe.dtype)
    else:
        table = jax.tree.map(lambda x: x.astype(recipe.dtype), frozen["table"])
    xt = process.add_noise(stage.schedule, rows["x0"], rows["noise"], rows["t"])
    output = stage.predict(
        params,
        xt,
        rows["t"],
        jax.tree.map(lambda x: x[rows["prompt"]], table),
        condition=rows.get("condition"),
        noise_level=rows.get("noise_level"),
        sizes=rows.get("sizes"),
        remat=recipe.remat,
    )
    per_example = loss.denoising(
        stage.schedule,
        output,
        x0=rows["x0"],
        noise=rows["noise"],
        t=rows["t"],
        min_snr_gamma=recipe.min_snr_gamma,
    )
    return loss.with_prior(per_example, rows["weights"])


def gradients(
    trainable: tree.Flat,
    frozen: Mapping[str, Any],
    rows: dict[str, Any],
    *,
    recipe: Recipe,
    **static: Any,
) -> tuple[Array, dict[str, Array], tree.Flat]:
    """(loss, parts, gradients); with `accumulate` > 1 summed over parts of the batch, in turn.

    Row weights are those of the whole batch, so the sum is the large batch's gradient, whatever
    lies in which part.
    """
    grad_fn = jax.value_and_grad(functools.partial(loss_fn, recipe=recipe, **static), has_aux=True)
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
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step; where loss or gradient is not finite, only the counters change."""
    rows: dict[str, Any] = draw(stage, recipe, batch, state.step)
    rows |= {name: batch[name] for name in ("prompt", "sizes", *TOKENS) if name in batch}
    rows["weights"] = loss.row_weights(batch["is_prior"], recipe.prior_loss_weight)
    value, parts, grads = gradients(
        state.trainable, frozen, rows, recipe=recipe, stage=stage, adapter=adapter
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)

    updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    ema = state.ema
    if ema is not None:
        ema = optim.average(ema, trainable, state.step, recipe.ema_decay)
    new, old = (trainable, opt_state, ema), (state.trainable, state.opt_state, state.ema)
    trainable, opt_state, ema = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
    metrics = {"loss": value, **parts, "grad_norm": norm, "bad_steps": bad_steps}
    return TrainState(state.step + 1, bad_steps, trainable, opt_state, ema), metrics


def initial_state(
    trainable: tree.Flat, tx: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    average = jax.tree.map(jnp.copy, trainable) if ema else None
    return TrainState(zero, zero, trainable, tx.init(trainable), average)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The jitted step with the shardings it was compiled for."""

    step: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, Array]]]
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
    place = functools.partial(sharding.shardings, rules=rules, mesh=mesh, min_bytes=min_bytes)
    by_path, whole = place(trainable), sharding.replicated(mesh)
    init = functools.partial(initial_state, tx=tx, ema=recipe.ema_decay > 0)
    abstract = jax.eval_shape(init, dict(trainable))
    states = sharding.like_parameters(abstract, by_path, trainable, mesh)
    frozen_shardings: dict[str, Any] = {"weights": place(frozen["weights"])}
    if "table" in frozen:
        frozen_shardings["table"] = jax.tree.map(lambda _: whole, frozen["table"])
    step = functools.partial(train_step, stage=stage, recipe=recipe, adapter=adapter, tx=tx)
    return Compiled(
        # Batches come with their shardings (rows split, prompt tables whole): None takes them as
        # they are.
        step=jax.jit(
            step,
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


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long a stage trains, and how often the loop does something else, in optimizer steps."""

    num_steps: int
    log_every: int
    checkpoint_every: int
    sample_every: int
    max_bad_steps: int


class Interrupted(RuntimeError):
    """A signal asked the run to stop, all is saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def leave_if_asked(stop: Any, kept: str) -> None:
    """Between the parts of a run; with several processes all call it together.

    Raises:
      Interrupted: a signal came; `kept` tells what there is to go on from.
    """
    if stop is not None and (name := stop.agreed()):
        raise Interrupted(
            f"{name} received: {kept}. Run the same command to go on.", exit_code=stop.exit_code
        )


def fit(
    run: Compiled,
    state: TrainState,
    frozen: Any,
    batch_at: Callable[[int], Batch],
    *,
    pace: Pace,
    label: str,
    writer: Any,
    checkpoints: Any = None,
    stop: Any = None,
    on_sample: Callable[[int, TrainState], None] | None = None,
) -> TrainState:
    """Trains from `state.step` to `pace.num_steps`.

    Metrics of step n are fetched after step n + 1 was dispatched, so the device never waits for the
    host. A request to stop (`signals.GracefulStop`) is honoured after the step at hand: a
    checkpoint is saved first.

    Raises:
      Interrupted: a signal came; the message says how to go on.
      NonFiniteError: more than `pace.max_bad_steps` steps in a row were not finite.
    """
    first = int(state.step)
    pending: list[tuple[int, dict[str, jax.Array]]] = []
    seen: list[dict[str, float]] = []
    since = time.monotonic()
    bar = tqdm(
        total=pace.num_steps,
        initial=first,
        desc=label,
        unit="step",
        disable=jax.process_index() != 0,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )

    def take(step: int, metrics: dict[str, jax.Array]) -> None:
        nonlocal since
        values = {name: float(value) for name, value in metrics.items()}
        if values["bad_steps"] > pace.max_bad_steps:
            raise NonFiniteError(
                f"{label}: {int(values['bad_steps'])} steps in a row, up to step {step}, had a "
                f"loss or gradient that is not finite (loss {values['loss']}, grad_norm "
                f"{values['grad_norm']}). No weight was changed by them. Lower "
                "optim.learning_rate, or set dtype='float32'; checkpoints hold the last good state."
            )
        seen.append(values)
        bar.update(1)
        bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        if (step + 1) % pace.log_every == 0 or step + 1 == pace.num_steps:
            good = [v for v in seen if not v["bad_steps"]] or seen
            names = [name for name in good[0] if name != "bad_steps"]
            mean = {f"{label}/{name}": float(np.mean([v[name] for v in good])) for name in names}
            mean[f"{label}/skipped_steps"] = float(sum(v["bad_steps"] > 0 for v in seen))
            mean[f"{label}/steps_per_second"] = len(seen) / max(time.monotonic() - since, 1e-9)
            writer.write_scalars(step + 1, mean)
            since = time.monotonic()
            seen.clear()

    def sample(step: int) -> None:
        nonlocal since
        assert on_sample is not None
        started = time.monotonic()
        on_sample(step, state)
        since += time.monotonic() - started  # no part of the speed of the steps

    sampled = on_sample is not None and pace.sample_every > 0
    with bar:
        if sampled and first and first % pace.sample_every == 0:
            sample(first)  # again: the run may have been killed before they were drawn
        for step in range(first, pace.num_steps):
            state, metrics = run.step(state, frozen, run.put_batch(batch_at(step)))
            pending.append((step, metrics))
            done = step + 1
            last = done == pace.num_steps
            saving = checkpoints is not None and (last or done % pace.checkpoint_every == 0)
            sampling = sampled and done % pace.sample_every == 0
            # With several processes the question is a collective: it is asked now and then, and
            # not while a step is under way (on CPU the two would wait for each other for ever).
            together = jax.process_count() > 1 and (saving or done % pace.log_every == 0)
            while len(pending) > (0 if saving or sampling or together or last else 1):
                take(*pending.pop(0))
            asking = stop is not None and (together or jax.process_count() == 1)
            stopping = stop.agreed() if asking else None
            while stopping and pending:
                take(*pending.pop(0))
            if saving or (stopping and checkpoints is not None):
                checkpoints.save(done, state)
            if stopping:
                if checkpoints is not None:
                    checkpoints.wait()
                raise Interrupted(
                    f"{stopping} received: {label} is saved at step {done}. "
                    "Run the same command to go on.",
                    exit_code=stop.exit_code,
                )
            if sampling:
                sample(done)
    return state
