"""Textual inversion: new tokens, nothing else changes, and what PyTorch diffusers makes of it."""

import json
import re
import shutil

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import contents, families, generate, pipeline, sharding
from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.text import tokenizer as tokenizers

pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import latents  # noqa: E402 (only with torch)

CLASSES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
INVERSION = {
    "adapt__name": "textual_inversion",
    "stages": ("base",),
    "upscaler__num_steps": None,
    "upscaler__batch_size": None,
    "train__num_steps": 4,
    "train__sample_every": 0,
    "train__checkpoint_every": 2,
    "optim__learning_rate": 0.05,
    "optim__warmup_steps": 0,
    "prior__num_images": 2,
}


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_a_new_word_leaves_published_tokenizers_as_they_were(name, shared_data):
    plain = tokenizers.load(shared_data / "tokenizers" / name)
    for count in (1, 3):
        more = plain.with_word("<zib>", count=count)
        assert more.new_ids == tuple(range(plain.vocab_size, plain.vocab_size + count))
        for prompt in ("a {} dog", "A photo of {} in the snow, 2 trees", "{}", "a dog"):
            before, _, after = prompt.partition("{}")
            new = more.new_ids if "{}" in prompt else ()
            assert more.ids(prompt.format("<zib>")) == plain.ids(before) + new + plain.ids(after)
    with pytest.raises(ValueError, match="cannot be a new token"):
        plain.with_word("dog", count=1)


def drawn(stage, flat, prompts):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = generate.Sampler(stage, generate.Settings("ddim", 3, 4.0), mesh=mesh)
    text = generate.encode(stage, flat, prompts, dtype=jnp.float32)
    return (sampler.batch(flat, text, prompts, [1, 2], None) + 1) / 2


@pytest.mark.parametrize(
    ("variant", "vectors"), [("sd1", 3), pytest.param("sdxl", 2, marks=pytest.mark.long)]
)
def test_the_whole_command(variant, vectors, tmp_path):
    model = latents.make(tmp_path / "model", variant)
    c = commands.config(
        {"base": model, "upscaler": ""},
        **INVERSION,
        subject__identifier="<zib>",
        adapt__num_vectors=vectors,
        sampler__name="ddim",
        sampler__num_steps=3,
        prior__kind="prediction" if vectors == 3 else "images",
    )
    folder = tmp_path / "run"
    commands.run_here(c, folder)
    last = commands.weights(folder / "export")

    # Nothing but new rows is different, and those moved from the class noun's embedding.
    stage = families.open_stage(str(folder / "export"), kind="base")
    flat = pipeline.read_weights(stage)
    base = families.open_stage(str(model), kind="base")
    for path, before in pipeline.read_weights(base).items():
        now = flat[path]
        if path.endswith("token_embedding/embedding"):
            assert now.shape == (len(before) + vectors, before.shape[1])
            tokenizer = base.tokenizers[path.partition("/")[0]]
            start = before[list(tokenizer.ids("bird"))].mean(0)
            assert (np.abs(now[len(before) :] - start).max(1) > 0.01).all()
            now = now[: len(before)]
        assert np.array_equal(now, before), path

    # PyTorch draws the same from the export, and from the base with the embeddings loaded.
    told = json.loads((folder / "export" / "dreambooth.json").read_text())
    words = ["<zib>", *(f"<zib>_{i}" for i in range(1, vectors))]
    assert told["identifier"] == " ".join(words)
    prompts = [f"a {told['identifier']} bird", "a bird"]
    expected = drawn(stage, flat, prompts)
    pipe = getattr(diffusers, CLASSES[variant]).from_pretrained(folder / "export")
    assert np.abs(latents.drawn_by_them(pipe, stage, prompts) - expected).max() <= 1e-3
    pipe = getattr(diffusers, CLASSES[variant]).from_pretrained(model)
    ends = ("", "_2") if variant == "sdxl" else ("",)
    for end in ends:
        extra = {}
        if variant == "sdxl":
            extra = {
                "text_encoder": getattr(pipe, f"text_encoder{end}"),
                "tokenizer": getattr(pipe, f"tokenizer{end}"),
            }
        name = f"learned_embeds{end}.safetensors"
        pipe.load_textual_inversion(folder / "export", weight_name=name, **extra)
    made = latents.drawn_by_them(pipe, stage, ["a <zib> bird", "a bird"])
    assert np.abs(made - expected).max() <= 1e-3

    # Resumed it is the same; drawn from the checkpoint as well.
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "checkpoints" / "base" / "4")
    commands.run_here(c, folder)
    again = commands.weights(folder / "export")
    assert all(np.array_equal(again[name], last[name]) for name in last)
    made = commands.here(MODES["sample"].function, configs.of_run(str(folder)), folder)
    assert made.name.startswith("base-000004-")


def test_the_embeddings_of_a_t5_go_the_same_way(tmp_path_factory, tmp_path, rng):
    stages = commands.cascade(tmp_path_factory)
    photos = commands.pictures(tmp_path / "toy", ("1", "2", "3"), rng)
    others = ((str(photos), "toy", "auto"),)  # a second subject, with new tokens of its own
    c = commands.config(
        {"base": stages["base"], "upscaler": ""},
        **INVERSION,
        subject__others=others,
        adapt__num_vectors=2,
    )
    folder = tmp_path / "run"
    commands.run_here(c, folder)
    told = json.loads((folder / "export" / "dreambooth.json").read_text())
    stage = families.open_stage(str(folder / "export"), kind="base")
    size = stage.tokenizer.vocab_size
    before, after = commands.weights(stages["base"]), commands.weights(folder / "export")
    table = "text_encoder/model.safetensors: shared.weight"
    (second,) = told["others"]
    for each, name, first in ((told, "", size - 4), (second, "-{}", size - 2)):
        word, _, more = each["identifier"].partition(" ")
        assert re.fullmatch(r"<\w+>", word) and more == f"{word}_1"
        assert stage.tokenizer.ids(each["identifier"])[-2:] == (first, first + 1)
        embeds = after.pop(f"learned_embeds{name.format(word[1:-1])}.safetensors: {word}")
        np.testing.assert_array_equal(after[table][first : first + 2], embeds)
    assert told["identifier"] != second["identifier"]
    assert contents.of(folder / "export").left == []  # all that it wrote is handed on
    np.testing.assert_array_equal(after[table][: len(before[table])], before[table])
    # Class images of the first noun where they always were, of the second one below.
    for place in (".", "toy"):
        assert (folder / "prior" / place / "manifest.json").is_file()
        assert (folder / "prior" / place / "00001.png").is_file()
    assert commands.different({**before, table: after[table]}, after) == set()


def test_with_the_text_encoder_it_makes_no_sense():
    c = configs.base_config()
    c.adapt.name = "textual_inversion"
    c.train.text_encoder = True
    with pytest.raises(configs.ConfigError, match=r"train\.text_encoder = True.*embeddings alone"):
        configs.validate(c)
