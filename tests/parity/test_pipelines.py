"""Whole pipelines against PyTorch diffusers, live: each opens what the other wrote, and from the
same noise both draw the same picture.
"""

import inspect
import json
import shutil
from pathlib import Path

import cascades
import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dreambooth_jax import export, families, generate, pipeline, rng, sharding, weights
from dreambooth_jax.data import images
from dreambooth_jax.diffusion import sampler

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import torch_cascades  # noqa: E402 (only with torch)
from diffusers.pipelines.deepfloyd_if import (  # noqa: E402 (only where diffusers is there)
    pipeline_if,
    pipeline_if_superresolution,
)
from diffusers.schedulers import scheduling_ddpm  # noqa: E402 (same)

# diffusers passes tensors to numpy in a way that numpy 2 is retiring; torch has to answer it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

KINDS = ("base", "upscaler")
MODULES = {"base": pipeline_if, "upscaler": pipeline_if_superresolution}
PROMPTS = ["a zib bird", " A Bird on the beach, 2 trees "]
SEEDS = [11, 2**32 - 5]
ONE_LEVEL = {
    "block_out_channels": [16],
    "down_block_types": ["SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"],
    # The file format fixes 32 groups for the text: several channels in each, as in real models.
    "cross_attention_dim": 128,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Models by origin and kind; the tiny ones learned their variance, exports are trained on."""
    root = tmp_path_factory.mktemp("models")
    made = {}
    for kind in KINDS:
        made["tiny", kind] = cascades.make(root / "tiny" / kind, kind, unet=ONE_LEVEL, seed=1)
        stage = families.open_stage(str(made["tiny", kind]), kind=kind)
        flat = cascades.random_weights(stage.abstract, seed=2)
        made["export", kind] = export.diffusers_folder(
            stage, flat, root / "export" / kind, dtype="float16", about={"seed": 2}
        )
        made["embedded", kind] = pipeline.locate("embedded", kind=kind)
    return made


@pytest.fixture(scope="module")
def theirs(folders):
    """Their pipelines, opened once each, in float32."""
    opened = {}

    def get(origin: str, kind: str):
        if (origin, kind) not in opened:
            pipe = getattr(diffusers, torch_cascades.CLASSES[kind]).from_pretrained(
                folders[origin, kind]
            )
            pipe.to(torch.float32)
            pipe.set_progress_bar_config(disable=True)
            opened[origin, kind] = pipe
        return opened[origin, kind]

    return get


def encoded(stage, flat) -> generate.Text:
    return generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)


def noise_of(stage, num_steps: int) -> list[np.ndarray]:
    """What our sampler draws, in the order in which theirs asks for it: the documented streams."""
    shape = stage.sample_shape
    seeds = jnp.asarray(SEEDS, jnp.uint32)

    @jax.jit
    def drawn():
        keys = jax.vmap(lambda s: rng.named(jax.random.key(s), f"sample/{stage.kind}"))(seeds)
        low = sampler.first_noise(jax.vmap(lambda key: rng.named(key, "low_res"))(keys), shape)

        def step(i):
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, i + 1), shape)  # noqa: E731 - vmap's argument
            return jax.vmap(draw)(keys)

        return sampler.first_noise(keys, shape), low, jax.vmap(step)(jnp.arange(num_steps - 1))

    first, low, steps = (np.asarray(x) for x in drawn())
    return [first, *([low] if stage.kind == "upscaler" else []), *steps]


def draw_theirs(pipe, kind, stage, low_res, *, monkeypatch, num_steps, guidance_scale, level):
    queue = [torch.from_numpy(x.copy()).movedim(-1, 1) for x in noise_of(stage, num_steps)]

    def pop(shape, **_):
        assert tuple(queue[0].shape) == tuple(shape)
        return queue.pop(0)

    for module in (MODULES[kind], scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", pop)
    extra = {}
    if kind == "upscaler":
        extra = {"image": [Image.fromarray(x) for x in low_res], "noise_level": level}
    made = pipe(
        prompt=PROMPTS,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        clean_caption=False,  # it needs two more packages, and rewrites prompts
        output_type="np",
        **extra,
    )
    assert queue == []
    return made.images * 2 - 1


def draw_ours(stage, flat, low_res, *, num_steps, guidance_scale, level):
    settings = generate.Settings("ddpm", num_steps, guidance_scale, noise_level=level)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    low = None if stage.kind == "base" else images.to_float(low_res)
    return generate.Sampler(stage, settings, mesh=mesh).batch(
        flat, encoded(stage, flat), PROMPTS, SEEDS, low
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("origin", "num_steps", "guidance_scale"),
    [("tiny", 6, 3.0), ("export", 5, 1.0), ("embedded", 5, 4.0)],
)
def test_both_draw_the_same_picture(
    origin, kind, num_steps, guidance_scale, folders, theirs, monkeypatch
):
    """Text, guidance, dynamic thresholding, learned and fixed variance, epsilon and v."""
    stage = families.open_stage(str(folders[origin, kind]), kind=kind)
    flat = pipeline.read_weights(stage)
    expected = {"tiny": "learned_range", "export": "fixed_small", "embedded": "fixed_small"}
    assert stage.path.variance_type == expected[origin] and stage.path.thresholding
    low = np.random.default_rng(0).integers(0, 256, (2, *(side // 2 for side in stage.size), 3))
    low = low.astype(np.uint8)
    asked = {"num_steps": num_steps, "guidance_scale": guidance_scale, "level": 250}
    found = draw_ours(stage, flat, low, **asked)
    pipe = theirs(origin, kind)
    judged = draw_theirs(pipe, kind, stage, low, monkeypatch=monkeypatch, **asked)
    assert found.shape == judged.shape == (2, *stage.size, 3)
    assert judged.std() > 0.05
    assert np.abs(judged[0] - judged[1]).mean() > 0.05
    assert np.abs(found - judged).max() <= 1e-3


@pytest.mark.parametrize("origin", ["tiny", "embedded"])
def test_both_encode_prompts_alike(origin, folders, theirs):
    stage = families.open_stage(str(folders[origin, "base"]), kind="base")
    text = encoded(stage, pipeline.read_weights(stage))
    positive, negative = theirs(origin, "base").encode_prompt(PROMPTS, clean_caption=False)
    found = np.asarray(text.table)
    largest = positive.abs().max()
    for prompt, expected in zip(PROMPTS, positive, strict=True):
        row = found[text.rows([prompt])[0]]
        assert np.abs(row - expected.numpy()).max() <= 1e-4 * largest
    assert np.abs(found[0] - negative[0].numpy()).max() <= 1e-4 * largest
    assert (positive[0] - positive[1]).abs().max() > 0.1 * largest


def test_an_export_opens_without_any_settings(folders):
    """What a user types: no dtype. Networks of two dtypes would fail at the first step."""
    pipe = diffusers.IFPipeline.from_pretrained(folders["export", "base"])
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == pipe.text_encoder.dtype
    made = pipe(PROMPTS, num_inference_steps=2, clean_caption=False, output_type="np").images
    assert made.shape == (2, 8, 8, 3) and np.isfinite(made).all()


@pytest.fixture(scope="module")
def written_by_them(tmp_path_factory):
    """A folder of diffusers' own save_pretrained, with all the keys that it writes, by kind."""
    root = tmp_path_factory.mktemp("theirs")
    return {kind: torch_cascades.make(root / kind, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_write_we_read_and_write_for_them(kind, written_by_them, tmp_path):
    folder, parts = written_by_them[kind]
    assert bool(list(folder.rglob("*.safetensors.index.json"))) == (kind == "base")  # in shards
    stage = families.open_stage(str(folder), kind=kind)
    flat = pipeline.read_weights(stage)
    made = export.diffusers_folder(stage, flat, tmp_path / kind, dtype="float32", about={})
    assert not list(made.rglob("*.index.json"))
    for part, stem in stage.components.items():
        state = {key: x.numpy() for key, x in parts[part].state_dict().items()}
        state.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
        ours = load_file(made / part / f"{stem}.safetensors")
        assert ours.keys() == state.keys()
        assert all(np.array_equal(ours[key], state[key]) for key in state)
    again = getattr(diffusers, torch_cascades.CLASSES[kind]).from_pretrained(made)
    for part in stage.components:
        state, found = parts[part].state_dict(), getattr(again, part).state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)
    assert again.scheduler.config.variance_type == "fixed_small"


@pytest.mark.long
def test_the_main_command_on_their_cascade(written_by_them, tmp_path, monkeypatch):
    """Prior, both stages, resume, samples, export; PyTorch draws from the export what we draw."""
    folders = {kind: folder for kind, (folder, _) in written_by_them.items()}
    c = commands.config(folders, subject__identifier="zib", train__num_steps=3)
    c.prior.num_images = c.upscaler.num_steps = 2
    c.train.sample_every = 0
    asked = {"num_steps": 4, "guidance_scale": 3.0, "level": 250}
    # As below: the same programs draw both.
    c.sampler.num_steps = c.sampler.upscaler_num_steps = asked["num_steps"]
    c.sampler.guidance_scale = c.sampler.upscaler_guidance_scale = asked["guidance_scale"]
    c.upscaler.sample_aug_level = asked["level"]
    workdir = tmp_path / "run"
    commands.run_here(c, workdir)
    last = commands.weights(workdir / "export")
    (workdir / "report.html").unlink()
    shutil.rmtree(workdir / "checkpoints" / "base" / "3")
    commands.run_here(c, workdir)  # goes on from step 2 of the base; the upscaler is done
    again = commands.weights(workdir / "export")
    assert again.keys() == last.keys()
    assert all(np.array_equal(again[name], last[name]) for name in last)
    for kind in KINDS:
        stage = families.open_stage(str(workdir / "export" / kind), kind=kind)
        pipe = getattr(diffusers, torch_cascades.CLASSES[kind]).from_pretrained(
            workdir / "export" / kind
        )
        pipe.set_progress_bar_config(disable=True)
        low = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
        judged = draw_theirs(pipe, kind, stage, low, monkeypatch=monkeypatch, **asked)
        found = draw_ours(stage, pipeline.read_weights(stage), low, **asked)
        assert np.abs(found - judged).max() <= 1e-3
        assert judged.std() > 0.05


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_their_half_precision_variant_is_found(component, written_by_them, tmp_path):
    _, parts = written_by_them["upscaler"]
    parts[component].save_pretrained(tmp_path, variant="fp16")
    files = [path.name for path in tmp_path.glob("*.safetensors")]
    stage = families.open_stage(str(written_by_them["upscaler"][0]), kind="upscaler")
    assert files == [f"{stage.components[component]}.fp16.safetensors"]
    network = stage.networks[component]
    assert (
        weights.read(tmp_path, network.abstract, variant="fp16").keys() == network.abstract.keys()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_folders_say_nothing_that_diffusers_does_not_know(kind, folders, theirs):
    """Every key of ours is one of theirs, so that no setting is silently without effect."""
    pipe = theirs("embedded", kind)
    found = {"unet": pipe.unet, "scheduler": pipe.scheduler}
    if kind == "upscaler":
        found["image_noising_scheduler"] = pipe.image_noising_scheduler
    for name, part in found.items():
        file = "config.json" if name == "unet" else "scheduler_config.json"
        raw = json.loads((folders["embedded", kind] / name / file).read_text())
        known = inspect.signature(type(part).__init__).parameters
        assert {key for key in raw if not key.startswith("_")} <= known.keys()
        assert all(np.all(part.config[key] == raw[key]) for key in raw if not key.startswith("_"))
