"""Sampling a stage and a cascade: what each image depends on, and what it does not.

Where the network is a formula, the picture is known; the tiny cascade shows the rest.
"""

import dataclasses
import io
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import cascades
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import families, generate, pipeline, rng, sharding
from dreambooth_jax.diffusion import sampler, schedule
from dreambooth_jax.pipeline import Frame

PROMPTS = ["a zib bird", "a bird", "a zib bird in the snow", "a zib bird", "a bird"]
SEEDS = [0, 1, 2, 2**32 - 1, 1]
STEPS = 3


@dataclasses.dataclass
class Formula:
    """A stage whose network is a formula; `rows` keeps the batch sizes that it was given.

    It says x0 = the text's number + the condition: the low-res image's mean + its level / 1000, or
    (`shows_noise`) a quarter of the noise on the low-res side. In "epsilon", that is the noise.
    """

    kind: str = "base"
    prediction_type: str = "sample"
    shows_noise: bool = False
    size: int = 4
    channels: int = 3
    rows: set[int] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        raw = {"prediction_type": self.prediction_type, "clip_sample": False, "beta_end": 0.002}
        self.path = schedule.from_config(raw)
        self.family = SimpleNamespace(guidance="classifier_free")

    @property
    def sample_shape(self):
        return *(side // self.codec.factor for side in self.asked or [self.size] * 2), self.channels

    def at(self, size):
        other = dataclasses.replace(self)
        other.codec, other.asked = self.codec, Frame((4, 4), self.codec.factor).at(size)
        return other

    @property
    def conditioner(self):
        return SimpleNamespace(empty=lambda table: table[:1])

    codec, asked = SimpleNamespace(factor=1, component=None), None

    def decode(self, params, x0, *, shards=1):
        return x0

    def condition(self, low_res, noise, noise_level):
        if self.shows_noise:
            return noise / 4
        level = noise_level[:, None, None, None] / 1000
        return jnp.broadcast_to(low_res.mean((1, 2, 3), keepdims=True) + level, noise.shape)

    def predict(self, params, xt, t, text, *, condition=None, noise_level=None):
        assert t.shape == (len(xt),) and (noise_level is None or noise_level.shape == t.shape)
        self.rows.add(len(xt))
        said = jnp.broadcast_to(text[:, :1, :1, None], xt.shape)
        said = said if condition is None else said + condition
        # Six channels, as a network with a learned variance has.
        return jnp.concatenate([said, jnp.zeros_like(said)], -1)


def settings(name="ddpm", **changed) -> generate.Settings:
    values = {"name": name, "num_steps": STEPS, "guidance_scale": 3.0, "threshold": "none"}
    return generate.Settings(**{**values, **changed})


def draw(
    stage, rows, seeds, *, low_res=None, numbers=(0.1, 0.2, -0.15), more=None, **changed
) -> np.ndarray:
    table = jnp.asarray(numbers, jnp.float32)[:, None, None]  # one token of one number
    run = jax.jit(partial(generate.sample_batch, stage=stage, settings=settings(**changed)))
    given = {"prompt": np.asarray(rows), "seed": np.asarray(seeds, np.uint32), **(more or {})}
    given |= {} if low_res is None else {"low_res": low_res}
    return np.asarray(run({}, table, given))


def assert_plain(images: np.ndarray, expected: list[float]) -> None:
    """Each image has one value everywhere."""
    values = np.asarray(expected)[:, None, None, None]
    np.testing.assert_allclose(images, np.broadcast_to(values, images.shape), atol=1e-5)


@pytest.mark.parametrize("name", list(sampler.SAMPLERS))
def test_guidance_moves_from_the_empty_prompt_to_the_row_s_own(name):
    """u + g (c - u), u = 0.1: 0.4, -0.65, 0.1 for g = 3."""
    images = draw(Formula(), [1, 2, 0], [5, 6, 7], name=name)
    assert images.shape == (3, 4, 4, 3)
    assert_plain(images, [0.4, -0.65, 0.1])


def test_guidance_leads_away_from_the_negative_prompt_in_the_place_of_the_empty_one():
    """u + 3 (c - u) with u = -0.15, the third row of the table, is 0.3 + 3 c."""
    away = {"negative": np.array([2, 2, 2])}
    assert_plain(draw(Formula(), [1, 2, 0], [5, 6, 7], more=away), [0.9, -0.15, 0.6])
    # One each, as a table of two prompts has them.
    away = {"negative": np.array([2, 1, 0])}
    assert_plain(draw(Formula(), [1, 2, 0], [5, 6, 7], more=away), [0.9, -0.85, 0.1])


def test_rows_keep_their_own_low_res_image_and_its_level_of_noise():
    low = np.array([-0.2, -0.55, -0.05], np.float32)[:, None, None, None]
    low = np.tile(low, (1, 2, 2, 3))
    stage = Formula(kind="upscaler")
    images = draw(stage, [1, 2, 1], [0, 1, 2], low_res=low, noise_level=250)
    assert_plain(images, [0.4 - 0.2 + 0.25, -0.65 - 0.55 + 0.25, 0.4 - 0.05 + 0.25])


def test_scale_one_is_one_pass_of_the_conditional_model_alone():
    once, guided = Formula(), Formula()
    assert_plain(draw(once, [1, 2], [0, 1], guidance_scale=1.0), [0.2, -0.15])
    draw(guided, [1, 2], [0, 1], guidance_scale=1.5)
    assert (once.rows, guided.rows) == ({2}, {4})


def test_guidance_stays_in_its_interval():
    """A network that predicts x0: the last step alone decides what is drawn."""
    first = draw(Formula(), [1, 2], [5, 6], name="ddim", guidance_interval=(0.0, 0.5))
    assert_plain(first, [0.2, -0.15])
    last = draw(Formula(), [1, 2], [5, 6], name="ddim", guidance_interval=(0.5, 1.0))
    assert_plain(last, [0.4, -0.65])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"guidance_rescale": 0.7, "guidance_scale": 1.0}, r"guidance_rescale = 0.7.*=\"0.0\""),
        ({"name": "lcm", "num_steps": 60}, "found 60, expected 1 to 50"),
        ({"num_steps": 2000}, "found 2000, expected 1 to 1000"),
    ],
)
def test_what_a_stage_cannot_be_sampled_with_is_told_at_once(changed, message):
    with pytest.raises(ValueError, match=message):
        generate.check({"base": Formula()}, {"base": settings(**changed)})


def test_settings_at_their_defaults_are_told_as_before_they_existed():
    assert settings().told() == {
        "name": "ddpm",
        "num_steps": STEPS,
        "guidance_scale": 3.0,
        "threshold": "none",
        "noise_level": 0,
        "size": None,
    }
    told = settings(guidance_interval=(0.2, 0.8), spacing="trailing").told()
    assert (told["guidance_interval"], told["spacing"]) == ([0.2, 0.8], "trailing")


def test_pictures_stay_in_range_whatever_guidance_does():
    images = draw(Formula(), [1, 2], [0, 1], guidance_scale=40.0)
    assert (images[0] == 1).all() and (images[1] == -1).all()


@pytest.mark.parametrize("kind", ["base", "upscaler"])
def test_noise_comes_from_the_documented_streams_of_each_seed(kind):
    """A network that sees no noise in xt: DDIM takes it for the picture, x0 = noise / alpha_T."""
    stage = Formula(kind=kind, prediction_type="epsilon")
    low = np.zeros((2, 2, 2, 3), np.float32) if kind == "upscaler" else None
    seeds = [3, 2**32 - 1]
    images = draw(
        stage, [0, 0], seeds, low_res=low, numbers=[0], name="ddim", guidance_scale=1.0, num_steps=4
    )
    first = 1000 // 4 * 3
    alpha = np.sqrt(np.prod(1 - np.linspace(1e-4, 0.002, 1000)[: first + 1]))
    for image, seed in zip(images, seeds, strict=True):
        key = rng.named(jax.random.key(np.uint32(seed)), f"sample/{kind}")
        noise = jax.random.normal(jax.random.fold_in(key, 0), (4, 4, 3))
        assert (np.abs(noise) < alpha).mean() > 0.3  # not all of it is clipped
        np.testing.assert_allclose(image, np.clip(noise / alpha, -1, 1), atol=1e-5)


def test_the_low_res_side_has_a_stream_of_its_own():
    stage, seeds = Formula(kind="upscaler", shows_noise=True), [3, 4]
    low = np.zeros((2, 2, 2, 3), np.float32)
    images = draw(stage, [0, 0], seeds, low_res=low, numbers=[0], guidance_scale=2.0)
    for image, seed in zip(images, seeds, strict=True):
        key = rng.named(rng.named(jax.random.key(seed), "sample/upscaler"), "low_res")
        noise = jax.random.normal(jax.random.fold_in(key, 0), (4, 4, 3))
        np.testing.assert_allclose(image, np.clip(noise / 4, -1, 1), atol=1e-5)


# The cascade: order, filling up, passing on.


@dataclasses.dataclass
class Recorder:
    """In the place of a jitted sampler: a picture's first value is its seed, the others are 0.5."""

    size: int
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def batch(self, params, text, prompts, seeds, low_res):
        self.calls.append({"prompts": prompts, "seeds": seeds, "low_res": low_res})
        made = np.full((len(prompts), self.size, self.size, 3), 0.5, np.float32)
        made[:, 0, 0, 0] = np.asarray(seeds) / 127.5 - 1
        return made


def test_a_short_batch_is_filled_up_and_the_filling_thrown_away():
    small, large = Recorder(2), Recorder(4)
    cascade = generate.Cascade([small, large], [None, None], 4)
    prompts, seeds = [f"p{i}" for i in range(6)], list(range(10, 16))
    pictures = cascade.draw([{}, {}], prompts, seeds, label="some")
    assert [p.shape for p in pictures] == [(6, 2, 2, 3), (6, 4, 4, 3)]
    assert [p.dtype for p in pictures] == [np.uint8] * 2
    for made in pictures:
        assert made[:, 0, 0, 0].tolist() == seeds
    assert [len(call["prompts"]) for call in small.calls + large.calls] == [4] * 4
    assert small.calls[1]["prompts"] == ["p4", "p5", "p0", "p1"]
    assert small.calls[1]["seeds"] == [14, 15, 10, 11]
    assert small.calls[0]["low_res"] is None


def test_an_upscaler_gets_the_picture_as_it_is_on_disk():
    """What a user would feed it: the base's picture rounded to bytes, and back to [-1, 1]."""
    small, large = Recorder(2), Recorder(4)
    (picture, _) = generate.Cascade([small, large], [None, None], 2).draw(
        [{}, {}], ["a", "b"], [7, 200], label="some"
    )
    np.testing.assert_allclose(
        large.calls[0]["low_res"], picture.astype(np.float64) / 127.5 - 1, atol=1e-6
    )


def test_what_is_not_finite_becomes_black():
    class Broken(Recorder):
        def batch(self, *args):
            made = super().batch(*args)
            made[1] = np.nan
            made[2, 0, 0] = np.inf
            return made

    (pictures,) = generate.Cascade([Broken(2)], [None], 3).draw([{}], ["a"] * 3, [9] * 3, label="x")
    assert (pictures[1] == 0).all()
    assert (pictures[2, 0, 0] == 0).all() and (pictures[2, 1] == 191).all()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_counts_images_on_a_terminal_and_elsewhere_nothing_is_drawn(monkeypatch, capsys):
    cascade = generate.Cascade([Recorder(2)], [None], 1)
    cascade.draw([{}], ["a"] * 40, list(range(40)), label="class images")
    said = capsys.readouterr()
    assert said.out == "" and "\r" not in said.err
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    cascade.draw([{}], ["a"] * 40, list(range(40)), label="class images")
    assert "class images: 100%" in terminal.getvalue() and "40/40" in terminal.getvalue()


# Real networks, tiny.

ONE_LEVEL = {
    "block_out_channels": [16],
    "down_block_types": ["SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"],
}
RULES = {"base": "ddpm", "upscaler": "ddim"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Stages of one level, which compile in half the time; their weights and encoded prompts."""
    root = tmp_path_factory.mktemp("one_level")
    folders = {kind: cascades.make(root / kind, kind, unet=ONE_LEVEL) for kind in RULES}
    stages = [families.open_stage(str(path), kind=kind) for kind, path in folders.items()]
    flats = [pipeline.read_weights(stage) for stage in stages]
    texts = [
        generate.encode(stage, flat, PROMPTS, dtype=jnp.float32, keep="zib")
        for stage, flat in zip(stages, flats, strict=True)
    ]
    return stages, flats, texts


def sampler_on(stage, devices: int, name: str) -> generate.Sampler:
    level = 100 if stage.kind == "upscaler" else 0
    return generate.Sampler(
        stage,
        settings(name, threshold="model", noise_level=level),
        mesh=sharding.make_mesh(devices=jax.devices()[:devices]),
    )


def cascade_on(tiny, devices: int, batch_size: int) -> generate.Cascade:
    samplers = [sampler_on(stage, devices, RULES[stage.kind]) for stage in tiny[0]]
    return generate.Cascade(samplers, tiny[2], batch_size)


@pytest.fixture(scope="module")
def on_eight(tiny):
    """Five pictures of both stages, drawn in one batch over 8 devices."""
    return cascade_on(tiny, 8, 8).draw(tiny[1], PROMPTS, SEEDS, label="eight")


def test_prompts_are_encoded_once_after_the_empty_one(tiny):
    stages, flats, (text, _) = tiny
    assert text.prompts == ("", "a zib bird", "a bird", "a zib bird in the snow")
    assert text.rows(PROMPTS).tolist() == [1, 2, 3, 1, 2]
    assert text.rows(PROMPTS).dtype == np.int32
    assert text.table.shape == (4, 77, 32)
    flat = dict(flats[0])
    alone = generate.encode(stages[0], flat, ["a bird"], dtype=jnp.float32).table
    np.testing.assert_allclose(alone, np.asarray(text.table)[[0, 2]], atol=1e-5)


@pytest.mark.parametrize("block", [2, 3, 4])
def test_many_prompts_are_encoded_in_blocks(tiny, block, monkeypatch):
    stages, flats, _ = tiny
    prompts = ["a zib", "a bird", "a", "bird", "zib zib bird"]  # six with the empty one
    whole = generate.encode(stages[0], flats[0], prompts, dtype=jnp.float32)
    monkeypatch.setattr(generate, "TEXTS_AT_ONCE", block)
    found = generate.encode(stages[0], flats[0], prompts, dtype=jnp.float32)
    assert found.prompts == whole.prompts
    np.testing.assert_allclose(found.table, whole.table, atol=1e-5)


def test_the_cascade_makes_both_sizes(on_eight):
    base, upscaled = on_eight
    assert (base.shape, base.dtype) == ((5, 8, 8, 3), np.uint8)
    assert (upscaled.shape, upscaled.dtype) == ((5, 16, 16, 3), np.uint8)
    for pictures in on_eight:
        assert all(picture.std() > 10 for picture in pictures)  # not flat


def test_a_picture_depends_on_its_prompt_and_its_seed(on_eight):
    for pictures in on_eight:
        values = pictures.astype(int)
        np.testing.assert_array_equal(values[1], values[4])  # the same prompt and seed
        for a, b in ((0, 3), (0, 2), (1, 2)):  # another seed; another prompt and seed
            assert np.abs(values[a] - values[b]).mean() > 5


def test_neither_the_batch_nor_the_devices_change_a_picture(tiny, on_eight):
    """The same pictures in another order, two at a time, on one device."""
    order = [3, 0, 2]
    alone = cascade_on(tiny, 1, 2).draw(
        tiny[1], [PROMPTS[i] for i in order], [SEEDS[i] for i in order], label="one"
    )
    for found, expected in zip(alone, on_eight, strict=True):
        difference = np.abs(found.astype(int) - expected[order].astype(int))
        assert difference.max() <= 1


def test_the_third_sampler_runs_on_a_real_network_too(tiny, on_eight):
    (stage, _), (flat, _), (text, _) = tiny
    made = sampler_on(stage, 1, "dpmpp_2m").batch(flat, text, PROMPTS[:2], SEEDS[:2], None)
    assert made.shape == (2, 8, 8, 3) and made.dtype == np.float32
    assert np.abs(made).max() <= 1 and made.std() > 0.05
    assert (
        np.abs(made - (on_eight[0][:2] / 127.5 - 1)).mean() > 0.02
    )  # another rule, another picture


def test_pictures_have_the_height_and_width_that_are_asked_for():
    images = draw(Formula(), [1, 2], [5, 6], size=(8, 4))
    assert images.shape == (2, 8, 4, 3)
    assert_plain(images, [0.4, -0.65])
    halves = Formula()
    halves.codec = SimpleNamespace(factor=2)
    assert draw(halves, [1], [5], size=(8, 4)).shape == (1, 4, 2, 3)  # it decodes nothing
    with pytest.raises(ValueError, match="two multiples of 2"):
        draw(halves, [1], [5], size=(9, 4))


@pytest.mark.parametrize("name", list(sampler.SAMPLERS))
def test_rows_start_from_pictures_of_their_own_and_keep_what_is_known(name):
    start = np.full((2, 4, 4, 3), 0.75, np.float32)
    mask = np.zeros((2, 4, 4, 1), np.float32)
    mask[:, 2:] = 1
    strength = np.array([0.0, 1.0], np.float32)
    images = draw(Formula(), [1, 2], [5, 6], name=name, more={"start": start, "strength": strength})
    assert_plain(images, [0.75, -0.65])
    images = draw(Formula(), [1, 2], [5, 6], name=name, more={"mask": mask, "known": start})
    assert (images[:, :2] == 0.75).all()
    assert_plain(images[:, 2:], [0.4, -0.65])
    both = {"start": start, "strength": strength, "mask": mask, "known": start}
    images = draw(Formula(), [1, 2], [5, 6], name=name, more=both)
    assert_plain(images[:, 2:], [0.75, -0.65])
    assert (images[:, :2] == 0.75).all()
