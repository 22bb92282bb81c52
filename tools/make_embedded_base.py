"""Makes the embedded base: a small Imagen-like cascade, trained by this project on composites.

    python tools/make_embedded_base.py CACHE OUT                      # go on for as long as it runs
    python tools/make_embedded_base.py CACHE OUT --recipe "wide thing" --pictures 20000
    python tools/make_embedded_base.py CACHE OUT --pictures 200000 --cool 25000   # and end it
    python tools/make_embedded_base.py CACHE OUT --recipe upscaler    # 32² → 64², on OUT/base's T5

CACHE keeps the material, the scenes and the checkpoints; stop it whenever you like (Ctrl-C saves),
the same command resumes. OUT gets ordinary diffusers folders, `OUT/base` (IFPipeline) and
`OUT/upscaler` (IFSuperResolutionPipeline); each checkpoint rewrites the averaged weights there,
float16. `dreambooth_jax/assets` is such an OUT.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from folders import SHIPPED, initial, skeleton, write_weights
from material import prepare
from recipes import LOSS_TIMES, RECIPES, Recipe
from recorded import Batches, Recorded

from dreambooth_jax import families, pipeline, rng, sharding, train, tree, weights
from dreambooth_jax.adapt import FULL
from dreambooth_jax.checkpoint import Checkpoints
from dreambooth_jax.diffusion import loss, process
from dreambooth_jax.diffusion.path import Flow
from dreambooth_jax.metrics import JsonlWriter
from dreambooth_jax.signals import GracefulStop
from dreambooth_jax.train.loop import Interrupted

HELD_OUT_SEED = 20221206  # of the scenes that errors are measured on; training has the seed 0
HELD_OUT = 100  # of them


def errors_of(stage: pipeline.Stage, batch: dict[str, np.ndarray]) -> Any:
    """Returns a jitted function from weights to the errors of x0 on held-out scenes.

    Both are mean squares over `LOSS_TIMES` (of a flow: thousandths), of all pixels and of the
    thing's. Noise is fixed, so that numbers of one size of pictures compare across recipes.
    """
    scale = 1 / stage.path.num_steps if isinstance(stage.path, Flow) else 1
    coverage = jnp.asarray(batch["coverage"])
    x0, tokens = jnp.asarray(batch["mean"]), {k: jnp.asarray(batch[k]) for k in ("ids", "mask")}
    noise = jax.random.normal(rng.key(HELD_OUT_SEED, 0, "held-out"), x0.shape)
    extra: dict[str, jax.Array] = {}
    if "low_res" in batch:
        extra["noise_level"] = jnp.full(len(x0), 100)
        extra["condition"] = stage.condition(batch["low_res"], noise[::-1], extra["noise_level"])

    @jax.jit
    def errors(params: tree.Flat) -> dict[str, jax.Array]:
        text = stage.encode_text(params, tokens, dtype=jnp.float32)

        def at(t: jax.Array) -> tuple[jax.Array, jax.Array]:
            times = jnp.full(len(x0), scale * t)
            xt = process.add_noise(stage.path, x0, noise, times)
            output = stage.predict(params, xt, stage.path.told(times), text, **extra)
            output = output[..., : x0.shape[-1]]
            found, _ = process.readings(stage.path, output, xt, times)
            square = jnp.square(found - x0)
            return square.mean(), loss.picture_mean(square, coverage + 1e-3).mean()

        whole, thing = jax.lax.map(at, LOSS_TIMES)
        return {"x0_error": whole.mean(), "thing_error": thing.mean()}

    return errors


def compiled(
    stage: pipeline.Stage, recipe: Recipe, trainable: tree.Flat, rest: tree.Flat
) -> train.Compiled:
    """Returns the jitted train step of a recipe, on all devices, with every leaf on each."""
    return train.compiled(
        trainable,
        {"weights": rest},
        stage=stage,
        recipe=recipe.step_recipe,
        adapter=FULL,
        tx=recipe.tx(),
        mesh=sharding.make_mesh(),
        rules=[(".*", "replicate")],
        min_bytes=0,
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """One recipe with its folders, its scenes and its compiled step."""

    recipe: Recipe
    cache: Path
    out: Path
    shards: int
    workers: int = 0

    @functools.cached_property
    def stage(self) -> pipeline.Stage:
        """The stage in its folder of `out`, whose files are written anew."""
        kind = self.recipe.kind
        skeleton(self.out, kind, self.recipe.unet)
        return families.open_stage(str(self.out / kind), kind=kind)

    def initial(self) -> tree.Flat:
        """The weights that training begins with; see `Recipe.start`."""
        recipe, kind = self.recipe, self.recipe.kind
        flat = initial(self.stage, None, seed=recipe.seed)
        if recipe.start != "fresh":
            known = initial(self.stage, SHIPPED / kind, seed=recipe.seed)
            text_only = recipe.start == "text"
            flat |= {p: x for p, x in known.items() if not text_only or p.startswith("text_")}
        if kind == "upscaler":
            text = weights.read(
                self.out / "base" / "text_encoder", self.stage.networks["text_encoder"].abstract
            )
            flat |= tree.with_prefix(text, "text_encoder")
        return flat

    @property
    def learned(self) -> str:
        """Regex of the leaves that are trained."""
        return "unet/.*" if self.recipe.kind == "upscaler" else ".*"

    def write(self, flat: tree.Flat) -> None:
        """Writes the weights into the stage's folder."""
        write_weights(self.out / self.recipe.kind, flat)

    def recorded(self, name: str, *, shards: int, seed: int) -> Recorded:
        """The scenes of one seed."""
        folder = self.cache / "scenes" / f"{name}-{self.recipe.size}"
        material = functools.partial(prepare, self.cache)
        recorded = Recorded(material, folder, size=self.recipe.size, shards=shards, seed=seed)
        if self.workers:
            recorded.ahead(self.workers)
        return recorded

    def scenes(self, name: str, *, shards: int, seed: int, thing: float = 1.0) -> Batches:
        """Batches of the scenes of one seed."""
        recorded = self.recorded(name, shards=shards, seed=seed)
        return Batches(recorded, self.stage, thing=thing)

    def held_out(self, size: int) -> dict[str, np.ndarray]:
        """The scenes that errors are measured on, with their coverage as weights of pixels."""
        scenes = self.scenes("held_out", shards=1, seed=HELD_OUT_SEED, thing=2.0)
        batch = scenes.batch(0, first=0, count=HELD_OUT, size=size)
        batch["coverage"] = batch.pop("pixel_weights") - 1
        return batch

    def run(self, pictures: int, *, save_every: int, check_every: int, stop: Any) -> dict[str, Any]:
        """Trains until `pictures` are seen, resuming; returns the last errors and the pace.

        Raises:
          Interrupted: a signal came; all is saved.
        """
        recipe, stage = self.recipe, self.stage
        flat = self.initial()
        trainable, rest = FULL.init(flat, [(self.learned, True), (".*", False)])
        run = compiled(stage, recipe, trainable, rest)
        state = run.init(trainable)
        scenes = self.scenes("train", shards=self.shards, seed=0, thing=recipe.thing)

        def batch_at(step: int) -> dict[str, np.ndarray]:
            first, size = recipe.at(step)
            return scenes.batch(step, first=first, count=recipe.rows, size=size)

        errors: dict[int, Any] = {}

        def check(state: train.TrainState) -> dict[str, float]:
            _, size = recipe.at(int(state.step))
            if size not in errors:
                errors[size] = errors_of(stage, self.held_out(size))
            found = {k: float(v) for k, v in errors[size]({**rest, **state.ema}).items()}
            return found | {"pictures": float(int(state.step) * recipe.rows), "size": float(size)}

        def export(step: int, state: train.TrainState) -> None:
            ema = jax.tree.map(sharding.fetch, state.ema)
            self.write({**flat, **ema})

        config = {"recipe": dataclasses.asdict(recipe)}
        logging.info("%.2f M parameters", tree.count(trainable) / 1e6)
        steps = -(-pictures // recipe.rows)
        folder = self.out / "checkpoints" / recipe.kind
        end = ("recipe.cool*",)
        with Checkpoints(folder, max_to_keep=2, config=config, may_differ=end) as checkpoints:
            restored = checkpoints.restore(run.state)
            state = state if restored is None else restored[0]
            first, started = int(state.step), time.monotonic()
            state = train.fit(
                run,
                state,
                {"weights": rest},
                batch_at,
                pace=train.Pace(steps, 50, save_every, save_every, 5, 0, check_every),
                log=train.Log(recipe.kind, JsonlWriter(self.out / f"{recipe.kind}.jsonl")),
                hooks=train.Hooks(checkpoints, None, stop, export, check),
            )
        export(steps, state)
        seconds = time.monotonic() - started
        return {"seconds": seconds, "seen": (steps - first) * recipe.rows, **check(state)}


def run_to_its_end(training: Training, args: argparse.Namespace) -> None:
    """Trains as a command does: compiled programs are kept, a signal saves and ends it."""
    logging.set_verbosity(logging.INFO)
    jax.config.update("jax_compilation_cache_dir", str(args.cache.resolve() / "programs"))
    started = time.monotonic()
    with GracefulStop() as stop:
        try:
            found = training.run(
                args.pictures, save_every=args.save_every, check_every=args.check_every, stop=stop
            )
        except Interrupted as asked:
            logging.info("%s", asked)
            raise SystemExit(asked.exit_code) from None
    logging.info("%s in %.0f s: %s", args.recipe, time.monotonic() - started, found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="folder of the material and the scenes")
    parser.add_argument("out", type=Path, help="folder of checkpoints, curve and base/")
    parser.add_argument("--recipe", choices=RECIPES, default="long")
    parser.add_argument("--pictures", type=int, default=10**9, help="to be seen in all")
    parser.add_argument("--cool", type=int, default=0, help="last of them, with a falling rate")
    parser.add_argument("--shards", type=int, default=40, help="of 10,000 scenes, then again")
    parser.add_argument("--workers", type=int, default=0, help="processes that render scenes first")
    parser.add_argument("--save_every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--check_every", type=int, default=500, help="steps between errors")
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    if args.cool:
        recipe = dataclasses.replace(recipe, cool=(args.pictures - args.cool, args.pictures))
    run_to_its_end(Training(recipe, args.cache, args.out, args.shards, args.workers), args)


if __name__ == "__main__":
    main()
