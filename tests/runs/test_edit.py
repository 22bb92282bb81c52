"""--mode=edit as a whole: files, bits outside the mask, what is drawn again and what never is."""

import json
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax.experiment.modes.edit import edit
from dreambooth_jax.experiment.modes.sample import sample

RNG = np.random.default_rng(0)
PROMPTS = ("a {subject} on a bench", "a {class_noun}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two photos of 48 × 36 and 40 × 40 pixels with their masks."""
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("garden", (36, 48)), ("street", (40, 40))):
        Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{name}.png")
        mask = np.zeros(size, np.uint8)
        mask[12:24, 20:30] = 255
        Image.fromarray(mask).save(folder / f"{name}.mask.png")
    return folder


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return commands.cascade(tmp_path_factory)


def settings(stages, photos: Path, **changed):
    own = {"images": str(photos), "prompts": PROMPTS, "num_images": 2, "grow": 2, "feather": 1}
    own |= changed
    return commands.config(
        stages, sample__batch_size=4, **{f"edit__{key}": value for key, value in own.items()}
    )


def read(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture(scope="module")
def made(stages, photos, tmp_path_factory):
    """The folder of the edits of both photos, and the workdir."""
    workdir = tmp_path_factory.mktemp("run")
    return commands.here(edit, settings(stages, photos), workdir), workdir


def test_outside_its_mask_a_photo_stays_as_it_is(made, photos):
    folder, workdir = made
    assert folder.parent == workdir / "edits" and folder.name.startswith("untouched-")
    for name in ("garden", "street"):
        photo, inside = read(photos / f"{name}.png"), read(folder / f"{name}.mask.png")[..., 0] > 0
        expected = np.zeros(photo.shape[:2], bool)
        expected[10:26, 18:32] = True  # grown by 2
        np.testing.assert_array_equal(inside, expected)
        np.testing.assert_array_equal(read(folder / f"{name}.source.png"), photo)
        edits = [read(folder / f"{name}_{p:02d}_{k:02d}.png") for p in range(2) for k in range(2)]
        for picture in edits:
            np.testing.assert_array_equal(picture[~inside], photo[~inside])
            assert (picture[inside] != photo[inside]).any(-1).mean() > 0.9
        for k, other in enumerate(edits):  # each prompt and seed makes another picture
            assert all((other != before).any() for before in edits[:k])


def test_files_tell_what_they_are(made):
    folder, _ = made
    with Image.open(folder / "garden_01_00.png") as image:
        about = json.loads(image.info["dreambooth_jax"])
    assert (about["prompt"], about["photo"]) == ("a bird", "garden.png")
    assert about["edit"]["strength"] == 1.0 and about["window"]["height"] == 32
    listed = json.loads((folder / "edits.json").read_text())
    assert [one["largest_difference_outside"] for one in listed["photos"]] == [0, 0]
    assert len(listed["photos"][0]["edits"]) == 4
    page = (folder / "report.html").read_text()
    assert "garden" in page and "Largest difference outside the mask: 0" in page
    assert read(folder / "grid.png").std() > 0


def test_the_same_command_draws_nothing_again_and_what_is_missing_is_drawn(made, stages, photos):
    folder, workdir = made
    before = {file.name: file.read_bytes() for file in folder.glob("*_0?_0?.png")}
    stamp = (folder / "street_00_01.png").stat().st_mtime_ns
    (folder / "garden_00_01.png").unlink()
    assert commands.here(edit, settings(stages, photos), workdir) == folder
    assert {file.name: file.read_bytes() for file in folder.glob("*_0?_0?.png")} == before
    assert (folder / "street_00_01.png").stat().st_mtime_ns == stamp


def test_a_whole_photo_at_strength_1_is_what_the_prompt_alone_draws(stages, photos, tmp_path):
    whole = settings(stages, photos / "garden.png", masks="none", strength=1.0, num_images=1)
    drawn = commands.here(edit, whole, tmp_path)
    plain = commands.config(stages, sample__batch_size=4, sample__prompts=PROMPTS)
    expected = commands.here(sample, plain, tmp_path)
    for p in range(2):
        np.testing.assert_array_equal(
            read(drawn / f"garden_{p:02d}_00.png"), read(expected / f"{p:02d}_00.png")
        )


def test_less_strength_keeps_more_of_the_photo(stages, photos, tmp_path):
    smooth = np.tile(np.linspace(0, 255, 16).astype(np.uint8)[:, None, None], (1, 16, 3))
    Image.fromarray(smooth).save(tmp_path / "smooth.png")
    distances = []
    for strength in (0.5, 1.0):  # 1 and 2 of the 2 steps
        c = settings(stages, tmp_path / "smooth.png", masks="none", strength=strength)
        folder = commands.here(edit, c, tmp_path / "run")
        picture = read(folder / "smooth_00_00.png").astype(float)
        distances.append(np.abs(picture - smooth).mean())
    assert distances[0] < 0.8 * distances[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strength": 0.1}, "of the 2 steps of the base stage that is none"),
        ({"strength": 1.5}, r"edit.strength = 1.5: expected a number in \(0, 1\]"),
        ({"prompts": ()}, "edit.prompts = .*: expected at least one prompt"),
        ({"prompts": ("a {thing}",)}, "edit.prompts = 'a {thing}'"),
        ({"masks": "painted"}, "expected one of 'none', 'files', 'alpha'"),
        ({"images": "nowhere.jpg"}, "no such file or folder"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_read(
    stages, photos, tmp_path, monkeypatch, changed, message
):
    def never(*given, **how):
        raise AssertionError("weights were read")

    monkeypatch.setattr("dreambooth_jax.experiment.parts.loading.load", never)
    with pytest.raises(configs.ConfigError, match=message):
        edit(settings(stages, photos, **changed), tmp_path)


def test_prompts_without_the_subject_are_told(stages, photos, tmp_path, monkeypatch, caplog):
    def ended(*given, **how):
        raise ValueError("far enough")

    monkeypatch.setattr("dreambooth_jax.experiment.parts.loading.load", ended)
    with pytest.raises(ValueError, match="far enough"):
        edit(settings(stages, photos), tmp_path)
    told = "'a {class_noun}' does not name the subject. Write {subject}"
    assert told in caplog.text
    caplog.clear()
    with pytest.raises(ValueError, match="far enough"):
        edit(settings(stages, photos, outside=True), tmp_path)  # of a background
    assert told not in caplog.text


# Edits beside their sources, by the base alone.


def paired(stages, **changed):
    own = {"num_images": 1, "strength": None, "masks": "none"} | changed
    return commands.config(
        {"base": stages["base"]},
        upscaler_model="",
        stages=("base",),
        sample__batch_size=4,
        **{f"edit__{key}": value for key, value in own.items()},
    )


def test_a_drawn_scene_and_its_edit(stages, tmp_path):
    """The same prompt changes no bit; another changes the picture, not the scene's own file."""
    prompts = ("a {class_noun} in the snow", "a {subject} in the snow")
    c = paired(
        stages,
        method="prompt_to_prompt",
        source_prompt="a {class_noun} in the snow",
        prompts=prompts,
        num_images=2,
    )
    folder = commands.here(edit, c, tmp_path)
    for k in range(2):
        scene = read(folder / f"scene_{k:02d}.source.png")
        np.testing.assert_array_equal(read(folder / f"scene_{k:02d}_00_{k:02d}.png"), scene)
        assert (read(folder / f"scene_{k:02d}_01_{k:02d}.png") != scene).any()
    assert (read(folder / "scene_00.source.png") != read(folder / "scene_01.source.png")).any()
    assert json.loads((folder / "edits.json").read_text())["edit"]["cross_steps"] == 0.8


def local(stages, **changed):
    """Scenes of both stages and their edits by a local blend."""
    own = {"method": "prompt_to_prompt", "masks": "none", "images": "", "local_blend": "word"}
    own |= {"source_prompt": "a {class_noun} in the snow"}
    own |= {"prompts": ("a {subject} in the snow",)} | changed
    return settings(stages, "", **own)


@pytest.fixture(scope="module")
def everywhere(stages, tmp_path_factory) -> Path:
    """Scenes and their edits without a local blend."""
    workdir = tmp_path_factory.mktemp("everywhere")
    return commands.here(edit, local(stages, local_blend="none"), workdir)


@pytest.mark.parametrize("kind", ["word", "difference"])
def test_outside_of_its_places_an_edit_is_its_scene(
    stages, everywhere, tmp_path, monkeypatch, kind
):
    """At both stages of a cascade, bit for bit."""
    # A map of a random network is about the same everywhere.
    monkeypatch.setattr("dreambooth_jax.regions.marked", lambda heat, kind: heat == heat.max())
    folder = commands.here(edit, local(stages, local_blend=kind), tmp_path)
    for k in range(2):
        scene, name = read(folder / f"scene_{k:02d}.source.png"), f"scene_{k:02d}_00_{k:02d}"
        inside = read(folder / f"{name}.mask.png")[..., 0] > 0
        assert 0 < inside.mean() < 1
        made = read(folder / f"{name}.png")
        np.testing.assert_array_equal(made[~inside], scene[~inside])
        assert (made[inside] != scene[inside]).any()
        np.testing.assert_array_equal(scene, read(everywhere / f"scene_{k:02d}.source.png"))
    listed = json.loads((folder / "edits.json").read_text())
    assert listed["edit"]["local_blend"] == kind
    assert [one["largest_difference_outside"] for one in listed["photos"]] == [0, 0]
    # A mask that is missing is found again, with the same pictures.
    before = commands.contents(folder)
    (folder / "scene_01_00_01.mask.png").unlink()
    assert commands.here(edit, local(stages, local_blend=kind), tmp_path) == folder
    after = commands.contents(folder)
    assert {k: x for k, x in after.items() if k.endswith("png")} == {
        k: x for k, x in before.items() if k.endswith("png")
    }


def test_eight_devices_find_the_same_places(stages, tmp_path):
    """With all steps of a local blend; to a grey level, by rounding."""
    folders = []
    for number, mesh in enumerate(({}, commands.MESH)):
        c = local(stages, local_blend="difference")
        c.update_from_flattened_dict({k.replace("__", "."): value for k, value in mesh.items()})
        folders.append(commands.here(edit, c, tmp_path / str(number)))
    for k in range(2):
        name = f"scene_{k:02d}_00_{k:02d}"
        masks = [read(folder / f"{name}.mask.png") for folder in folders]
        np.testing.assert_array_equal(*masks)
        pictures = [read(folder / f"{name}.png").astype(int) for folder in folders]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.parametrize("covered", [True, False])
def test_a_mask_of_everything_is_none_and_one_of_nothing_is_the_scene(
    stages, everywhere, tmp_path, monkeypatch, covered
):
    monkeypatch.setattr(
        "dreambooth_jax.regions.marked", lambda found, kind: np.full(found.shape, covered)
    )
    folder = commands.here(edit, local(stages), tmp_path)
    for k in range(2):
        name = f"scene_{k:02d}_00_{k:02d}.png" if covered else f"scene_{k:02d}.source.png"
        expected = read(everywhere / name)
        np.testing.assert_array_equal(read(folder / f"scene_{k:02d}_00_{k:02d}.png"), expected)


def test_a_photo_inverted_with_its_own_prompt_is_the_photo(stages, photos, tmp_path):
    pixels = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    c = paired(
        stages,
        images=str(tmp_path / "small.png"),
        method="inversion",
        strength=0.5,
        source_prompt="a {class_noun}",
        prompts=("a {class_noun}", "a {subject}"),
    )
    folder = commands.here(edit, c, tmp_path / "run")
    np.testing.assert_array_equal(read(folder / "small_00_00.png"), pixels)
    assert (read(folder / "small_01_00.png") != pixels).any()


@pytest.mark.parametrize("soft", [False, True])
def test_with_a_mask_as_well_inside_and_outside(stages, tmp_path, soft):
    """What is kept beside what is drawn is the source at every step, which networks look at."""
    pixels = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    mask = np.full((8, 8), 64 if soft else 0, np.uint8)
    mask[2:6, 3:8] = 255
    Image.fromarray(mask).save(tmp_path / "small.mask.png")
    c = paired(
        stages,
        images=str(tmp_path / "small.png"),
        masks="files",
        soft=soft,
        grow=0,
        feather=0,
        method="inversion",
        strength=1.0,
        source_prompt="a {class_noun}",
        prompts=("a {class_noun}", "a {subject}"),
    )
    c.sampler.num_steps = 8
    folder = commands.here(edit, c, tmp_path / "run")
    np.testing.assert_array_equal(read(folder / "small_00_00.png"), pixels)
    assert (read(folder / "small_01_00.png") != pixels).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "prompt_to_prompt", "images": "a.png"}, "expected '' with edit.method"),
        ({"method": "prompt_to_prompt", "strength": 0.5}, "there is nothing to start from"),
        ({"soft": True}, "edit.soft = True: expected a mask"),
        ({"local_blend": "word"}, "expected edit.method = 'prompt_to_prompt'"),
        ({"local_blend": "difference", "method": "inversion"}, "write --config.edit.masks=diff"),
        ({"cross_steps": 1.5}, r"edit.cross_steps = 1.5: expected a number in \[0, 1\]"),
        ({"words": ("snow",)}, "expected pairs of a word and a factor"),
    ],
)
def test_settings_that_do_not_go_together(stages, tmp_path, changed, message):
    with pytest.raises(configs.ConfigError, match=message):
        edit(paired(stages, **changed), tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": ("two {class_noun}s",), "source_prompt": "an owl"}, "share no token"),
        ({"words": (("rain", 2.0),)}, "does not have 'rain'; it has a"),
        ({"local_blend": "word", "word": "fog"}, "does not have 'fog'; it has a"),
        ({"prompts": ("a {subject} " + "very " * 80,)}, "tokens long; 77 are read"),
    ],
)
def test_prompts_that_cannot_follow_their_source(stages, tmp_path, monkeypatch, changed, message):
    def never(*given, **how):
        raise AssertionError("a prompt was encoded")

    monkeypatch.setattr("dreambooth_jax.generate.encode", never)
    with pytest.raises(configs.ConfigError, match=message):
        edit(paired(stages, method="prompt_to_prompt", **changed), tmp_path)
