"""--mode=edit on small flow transformers: start, mask and offsets (FlowEdit) beside PyTorch's."""

import json
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax import rng
from dreambooth_jax.experiment.modes.edit import edit

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import flows  # noqa: E402 (only with torch)

STEPS, SCALE, VARIANT = 4, 4.0, "sd3 without t5"
SHORT = {
    "stages": ("base",),
    "resolution": 16,
    "subject__identifier": "zib",
    "subject__class_noun": "dog",
    "upscaler__num_steps": None,
    "upscaler__batch_size": None,
    "sample__batch_size": 4,
    "sampler__name": "ddim",
    "sampler__num_steps": STEPS,
}
SOURCE, PROMPTS = "a dog on a sofa", ("a dog on a sofa", "a zib dog on a sofa")
MASKED = {"masks": "files"}
STARTED = {"masks": "none", "strength": 0.5}
OFFSETS = {"masks": "none", "strength": 0.75, "method": "inversion"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return flows.make(tmp_path_factory.mktemp("flow") / "model", VARIANT)


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """A photo of the model's own size, so that its window is itself, and a mask."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "room.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 6:14] = 255
    Image.fromarray(mask).save(folder / "room.mask.png")
    return folder / "room.png"


def read(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def edited(model: Path, photo: Path, workdir: Path, how, scale: float = SCALE, **more) -> Path:
    """The folder of the edits by both prompts; nothing is grown or faded."""
    own = {"images": str(photo), "prompts": PROMPTS, "source_prompt": SOURCE, "num_images": 1}
    own |= {"grow": 0, "feather": 0} | how
    changed = {f"edit__{key}": value for key, value in own.items()} | more
    c = commands.config(
        {"base": model, "upscaler": ""}, **SHORT, sampler__guidance_scale=scale, **changed
    )
    return commands.here(edit, c, workdir)


@pytest.fixture(scope="module")
def made(model, photo, tmp_path_factory) -> dict[str, Path]:
    """The folders of the edits, on one device."""
    workdir = tmp_path_factory.mktemp("run")
    asked = {"mask": MASKED, "start": STARTED, "offsets": OFFSETS}
    return {name: edited(model, photo, workdir, how) for name, how in asked.items()}


class Theirs:
    """PyTorch's transformer with guidance, its autoencoder, and the steps written out."""

    def __init__(self, model: Path):
        self.pipe = flows.opened_by_them(model, VARIANT)
        self.pipe.scheduler.set_timesteps(STEPS)
        self.sigmas = self.pipe.scheduler.sigmas.numpy()
        self.vae = self.pipe.vae

    def x0(self, picture: np.ndarray) -> "torch.Tensor":
        pixels = torch.from_numpy(picture / np.float32(127.5) - 1).movedim(-1, 0)[None]
        mean = self.vae.encode(pixels).latent_dist.mean
        return (mean - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def picture(self, x0: "torch.Tensor") -> np.ndarray:
        latent = x0 / self.vae.config.scaling_factor + self.vae.config.shift_factor
        pixels = self.vae.decode(latent).sample[0].movedim(0, -1).numpy()
        return np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)

    def velocity(self, x: "torch.Tensor", sigma: float, prompt: str) -> "torch.Tensor":
        states, empty, pooled, no_pooled = self.pipe.encode_prompt(prompt, prompt, prompt)
        output = self.pipe.transformer(
            torch.cat([x, x]),
            timestep=torch.full((2,), 1000 * float(sigma)),
            encoder_hidden_states=torch.cat([states, empty]),
            pooled_projections=torch.cat([pooled, no_pooled]),
        ).sample
        return output[1:] + SCALE * (output[:1] - output[1:])


@pytest.fixture(scope="module")
def theirs(model):
    with torch.no_grad():
        yield Theirs(model)


def noise_of(file: Path, step: int) -> "torch.Tensor":
    """The noise of a file's seed, at the start (0) or of a step."""
    with Image.open(file) as image:
        seed = json.loads(image.info["dreambooth_jax"])["seed"]
    key = rng.named(jax.random.key(np.uint32(seed)), "sample/base")
    drawn = np.asarray(jax.random.normal(jax.random.fold_in(key, step), (8, 8, 4)))
    return torch.from_numpy(drawn.copy()).movedim(-1, 0)[None]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """The same to a grey level, by rounding."""
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("p", [0, 1])
def test_a_start_at_half_of_the_steps(made, theirs, photo, p):
    file = made["start"] / f"room_{p:02d}_00.png"
    x0, noise = theirs.x0(read(photo)), noise_of(file, 0)
    with torch.no_grad():
        t = theirs.sigmas[2]
        x = (1 - t) * x0 + t * noise
        for t, s in zip(theirs.sigmas[2:-1], theirs.sigmas[3:], strict=True):
            x = x + (s - t) * theirs.velocity(x, t, PROMPTS[p])
        expected = theirs.picture(x)
    close(read(file), expected)
    assert np.abs(expected.astype(int) - read(photo)).max() > 10


@pytest.mark.parametrize("p", [0, 1])
def test_a_mask(made, theirs, photo, p):
    """Outside of it the photo bit for bit; inside what a blend of latents gives."""
    file, inside = made["mask"] / f"room_{p:02d}_00.png", np.zeros((16, 16), bool)
    inside[4:12, 6:14] = True
    cells = torch.from_numpy(inside[::2, ::2].astype(np.float32))[None, None]
    x0, noise = theirs.x0(read(photo)), noise_of(file, 0)
    with torch.no_grad():
        x = noise
        for t, s in zip(theirs.sigmas[:-1], theirs.sigmas[1:], strict=True):
            drawn = x + (s - t) * theirs.velocity(x, t, PROMPTS[p])
            x = cells * drawn + (1 - cells) * ((1 - s) * x0 + s * noise)
        expected = theirs.picture(x)
    found = read(file)
    np.testing.assert_array_equal(found[~inside], read(photo)[~inside])
    close(found[inside], expected[inside])
    listed = json.loads((made["mask"] / "edits.json").read_text())
    assert listed["photos"][0]["largest_difference_outside"] == 0


def test_offsets_are_flow_edit(made, theirs, photo):
    """The last three of four steps; with the source's prompt what the autoencoder makes of it."""
    file, x0 = made["offsets"] / "room_01_00.png", theirs.x0(read(photo))
    with torch.no_grad():
        close(read(made["offsets"] / "room_00_00.png"), theirs.picture(x0))
        z, noise = x0, noise_of(file, 0)
        for i in range(1, STEPS):
            t, s = theirs.sigmas[i], theirs.sigmas[i + 1]
            along = (1 - t) * x0 + t * noise
            moved = theirs.velocity(z + along - x0, t, PROMPTS[1])
            z = z + (s - t) * (moved - theirs.velocity(along, t, SOURCE))
            noise = noise_of(file, i + 1)
        expected = theirs.picture(z)
        assert np.abs(expected.astype(int) - theirs.picture(x0)).max() > 2
    close(read(file), expected)


def test_eight_devices_draw_the_same(made, model, photo, tmp_path):
    for name, how in {"mask": MASKED, "offsets": OFFSETS}.items():
        folder = edited(model, photo, tmp_path, how, **commands.MESH)
        for p in range(2):
            close(read(folder / f"room_{p:02d}_00.png"), read(made[name] / f"room_{p:02d}_00.png"))


def test_flux_with_a_mask_and_offsets(photo, tmp_path):
    """Guidance is an input here. Both prompts keep the photo outside of the mask, bit for bit."""
    model = flows.make(tmp_path / "model", "flux dev")
    folder = edited(model, photo, tmp_path / "run", OFFSETS | MASKED, scale=3.5)
    inside = np.zeros((16, 16), bool)
    inside[4:12, 6:14] = True
    same, other = (read(folder / f"room_{p:02d}_00.png") for p in range(2))
    for picture in (same, other):
        np.testing.assert_array_equal(picture[~inside], read(photo)[~inside])
    pipe = flows.opened_by_them(model, "flux dev")
    with torch.no_grad():
        pixels = torch.from_numpy(read(photo) / np.float32(127.5) - 1).movedim(-1, 0)[None]
        coded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample[0]
    expected = np.rint((np.clip(coded.movedim(0, -1).numpy(), -1, 1) + 1) * 127.5)
    close(same[inside], expected[inside])
    assert (other[inside] != same[inside]).any()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"method": "prompt_to_prompt", "images": "", "local_blend": "difference"},
            "the attention of a .* cannot follow another prompt's",
        ),
        ({"masks": "word"}, "does not tell where a word is. Write --config.edit.masks=difference"),
    ],
)
def test_what_needs_a_unet_is_refused(model, photo, tmp_path, how, message):
    with pytest.raises(configs.ConfigError, match=message):
        edited(model, photo, tmp_path, how)
