"""Embeddings of all prompts of a run, for every stage."""

import functools
from collections.abc import Mapping, Sequence

import jax

from dreambooth_jax import generate, sharding, tree
from dreambooth_jax.config import Plan
from dreambooth_jax.data.prompts import without_word
from dreambooth_jax.experiment.parts.model import Model, compute_dtype

Weights = Mapping[str, tree.Flat]


def encoded(
    plan: Plan, model: Model, weights: Weights, prompts: Sequence[str], identifiers: Sequence[str]
) -> dict[str, generate.Text]:
    """Encodes each prompt once with every stage's text encoder of `weights`.

    The tables lie on the whole mesh, which may have devices of other processes. An upscaler that
    never saw the identifiers reads the prompts without them, as diffusers advises for IF.
    """
    dtype, texts = compute_dtype(plan), {}
    whole = sharding.replicated(model.mesh)
    for kind, stage in model.stages.items():
        flat = dict(weights[kind])
        text = generate.encode(stage, flat, prompts, dtype=dtype, keep=identifiers)
        host = jax.tree.map(sharding.fetch, text.table)
        if kind == "upscaler" and "upscaler" not in plan.trained:
            plain = text.prompts
            for word in identifiers:
                plain = tuple(without_word(prompt, word) for prompt in plain)
            bare = generate.encode(stage, flat, plain, dtype=dtype)
            rows = bare.rows(plain)
            host = jax.tree.map(lambda x, rows=rows: sharding.fetch(x)[rows], bare.table)
        table = jax.tree.map(functools.partial(sharding.put, sharding=whole), host)
        texts[kind] = generate.Text(text.prompts, table)
    return texts
