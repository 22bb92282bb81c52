"""A run's train step by shape alone: no weights, no photos, no devices are needed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dreambooth_jax import adapt, generate, sharding, train, tree
from dreambooth_jax import config as configs
from dreambooth_jax.adapt import Adapter
from dreambooth_jax.config import Plan
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import grids, holding
from dreambooth_jax.experiment.parts.model import as_tuned, compute_dtype
from dreambooth_jax.experiment.training import program
from dreambooth_jax.pipeline import TOKENS, Stage


class Step(NamedTuple):
    """A jitted step and its arguments, as `ShapeDtypeStruct`s on the mesh."""

    stage: Stage
    recipe: train.Recipe
    adapter: Adapter
    run: train.Compiled
    frozen: Any
    batch: dict[str, Any]

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of `run.step`."""
        return self.run.state, self.frozen, self.batch


def step_of(plan: Plan, kind: str, stages: Mapping[str, Stage], mesh: Mesh) -> Step:
    """The train step of a stage.

    Raises:
      ValueError: settings that do not fit the model or the mesh.
    """
    stage = stages[kind]
    if adapt.makes_words(plan.adapt) and not stage.new_rows:
        if any(tokenizer.hf is None for tokenizer in stage.tokenizers.values()):
            raise ValueError(
                f"{stage.folder} has no tokenizer, and adapt.name = {plan.adapt.name!r} adds a "
                "word to it. Copy the model's tokenizer folder there."
            )
        for each in words_of(plan):
            word = f"<{each.identifier.strip('<>')}>"
            stage = stage.with_word(word, count=plan.adapt.num_vectors)
        stages = {**stages, kind: stage}
    table = texts(plan, stage)[1]
    c, adapter = plan.stages[kind], program.adapter_of(plan, stage)
    recipes = []

    def start(weights: tree.Flat, table: Any) -> Any:
        text = generate.Text((), table)
        trainable, frozen, recipe = program.start(c, stage, weights, text, adapter)
        recipes.append(recipe)  # no array: it cannot be what is returned
        return trainable, frozen

    trainable, frozen = jax.eval_shape(start, holding.shapes(plan, stage), table)
    (recipe,) = recipes
    stage = as_tuned(plan, stage)
    run = program.step(c, stage, mesh, trainable, frozen, recipe, adapter)
    rows, whole = sharding.rows(mesh), sharding.replicated(mesh)
    batch = {
        name: on(whole if name in TOKENS else rows, x)
        for name, x in batch_of(plan, kind, stages).items()
    }
    frozen = jax.tree.map(lambda x, place: on(place, x), frozen, run.frozen)
    return Step(stage, recipe, adapter, run, frozen, batch)


def on(place: Any, shapes: Any) -> Any:
    """The same shapes, all of them on one sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def words_of(plan: Plan) -> tuple[Words, ...]:
    """The subjects' words; for one that is to be chosen, and needs weights for that, any other."""
    return tuple(
        Words.of(identifier=f"word{k}" if word == "auto" else word, class_noun=noun)
        for k, (_, noun, word) in enumerate(configs.subjects(plan))
    )


def texts(plan: Plan, stage: Stage) -> tuple[dict[str, Any], Any]:
    """Tokens of all prompts of the run, captions left out, and their embeddings."""
    words = words_of(plan)
    asked = [*grids.grid_of(plan, words), *grids.judged_of(plan, words)]
    prompts = [prompt for _, prompt, _ in asked]
    for each in words:
        prompts += [each.instance_prompt, each.class_prompt]
    tokens = tokens_of(stage, len({"", *prompts}))
    dtype = compute_dtype(plan)
    table = jax.eval_shape(
        lambda params, tokens: stage.encode_text(params, tokens, dtype=dtype),
        holding.shapes(plan, stage),
        tokens,
    )
    return tokens, table


def tokens_of(stage: Stage, prompts: int) -> dict[str, Any]:
    """The token arrays of so many prompts, by shape."""
    return dict(stage.conditioner.abstract_tokens(prompts))


def batch_of(plan: Plan, kind: str, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """A batch of the step, as `SubjectBatches` and `StepTokens` make it; see `train`.

    Of several shapes it is the model's own: all have about its area.
    """
    stage, rows = stages[kind], plan.stages[kind].train.batch_size
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "mean": (stage.sample_shape, jnp.float32),
        "prompt": ((), jnp.int32),
        "is_prior": ((), jnp.bool_),
    }
    if stage.codec.is_latent:
        shapes["std"] = (stage.sample_shape, jnp.float32)
    if stage.denoiser.sized:
        shapes["sizes"] = ((6,), jnp.float32)
    if kind == "upscaler":
        shapes["low_res"] = (stages["base"].sample_shape, jnp.float32)
    if plan.subject.masks != "none":
        shapes["pixel_weights"] = ((*stage.sample_shape[:2], 1), jnp.float32)
    tokens: dict[str, Any] = {}
    if configs.learns_text(plan):
        trained = {each.instance_prompt for each in words_of(plan)}
        if plan.prior_loss_weight > 0:
            trained |= {each.class_prompt for each in words_of(plan)}
        tokens = tokens_of(stage, min(len(trained), rows))
        shapes["token_row"] = ((), jnp.int32)
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in shapes.items()
    }
    return batch | tokens
