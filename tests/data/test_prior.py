import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data import prior
from dreambooth_jax.data.prior import PriorError, make_or_reuse

MADE_BY = {"prompt": "a bird", "samplers": {"base": {"name": "ddpm", "num_steps": 100}}}


class Killed(BaseException):
    """What a test raises where a run would be killed."""


class Model:
    """Draws pictures of noise, each a function of its seed; `spoil` = {call: rows left empty}.

    With `low_size` there are two stages: a picture of that size, then the one made from it.
    """

    def __init__(self, spoil=None, *, low_size=None, size=8, killed_at=None, empty=0):
        self.calls: list[list[int]] = []
        self.spoil, self.killed_at, self.empty = spoil or {}, killed_at, empty
        self.low_size, self.size = low_size, size

    def __call__(self, seeds):
        call = len(self.calls)
        self.calls.append(list(seeds))
        if call == self.killed_at:
            raise Killed
        made = np.stack([self.picture(seed) for seed in seeds])
        for row in self.spoil.get(call, ()):
            made[row] = self.empty
        if self.low_size is None:
            return [made]
        factor = self.size // self.low_size
        return [made[:, ::factor, ::factor], made]

    def picture(self, seed):
        return np.random.default_rng(seed).integers(0, 256, (self.size, self.size, 3), np.uint8)


def make(folder, draw, *, num_images=6, block=4, seed=0, made_by=MADE_BY, **settings):
    return make_or_reuse(
        folder,
        num_images=num_images,
        block=block,
        made_by=made_by,
        seed=seed,
        draw=draw,
        **settings,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def made(tmp_path):
    """Six images in blocks of four: the folder, the images, the model's calls."""
    model = Model()
    return tmp_path / "prior", make(tmp_path / "prior", model), model.calls


def test_images_are_drawn_in_blocks_from_seeds_of_their_own_and_kept_without_loss(made):
    folder, found, calls = made
    assert [len(seeds) for seeds in calls] == [
        4,
        4,
    ]  # whole blocks, so that resuming changes nothing
    seeds = [seed for call in calls for seed in call]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**32 for seed in seeds)
    drawn = np.stack([Model().picture(seed) for seed in seeds])[:6]
    np.testing.assert_array_equal(found.images, drawn)
    assert (found.images.dtype, found.low_res, found.redone) == (np.uint8, None, 0)
    names = [f"{index:05d}.png" for index in range(6)]
    assert sorted(contents(folder)) == [*names, "manifest.json"]
    for name, picture in zip(names, drawn, strict=True):
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(np.asarray(image), picture)


def test_the_manifest_tells_how_each_image_was_made(made):
    folder, _, calls = made
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["made_by"] == MADE_BY | {"seed": 0, "block": 4}
    seeds = [seed for call in calls for seed in call]
    assert [entry["seed"] for entry in manifest["images"].values()] == seeds[:6]


def test_images_that_are_there_are_used_again(made):
    folder, first, _ = made
    before, idle = contents(folder), Model()
    again = make(folder, idle)
    np.testing.assert_array_equal(again.images, first.images)
    fewer = make(folder, idle, num_images=3)
    np.testing.assert_array_equal(fewer.images, first.images[:3])
    assert idle.calls == []
    assert contents(folder) == before


@pytest.mark.parametrize("more", [7, 8, 11])
def test_more_images_later_extend_the_set(made, tmp_path, more):
    folder, first, _ = made
    extended = make(folder, Model(), num_images=more)
    at_once = make(tmp_path / "other", Model(), num_images=more)
    np.testing.assert_array_equal(extended.images, at_once.images)
    np.testing.assert_array_equal(extended.images[:6], first.images)
    assert contents(folder) == contents(tmp_path / "other")


def test_a_run_killed_while_drawing_goes_on_to_the_same_images(made, tmp_path):
    whole, first, calls = made
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        make(folder, Model(killed_at=1))
    rest = Model()
    found = make(folder, rest)
    assert rest.calls == calls[1:]  # the first block was not drawn again
    np.testing.assert_array_equal(found.images, first.images)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("saves", range(7))
def test_a_run_killed_while_writing_goes_on_to_the_same_images(made, tmp_path, saves, monkeypatch):
    whole, first, _ = made
    folder, left, save = tmp_path / "killed", [saves], Image.Image.save

    def cut_short(image, file, **settings):
        save(image, file, **settings)
        if not left[0]:  # half a file, as after a loss of power
            Path(file).write_bytes(Path(file).read_bytes()[:50])
            raise Killed
        left[0] -= 1

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", cut_short)
        if saves < 6:
            with pytest.raises(Killed):
                make(folder, Model())
        else:
            make(folder, Model())
    np.testing.assert_array_equal(make(folder, Model()).images, first.images)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"made_by": MADE_BY | {"prompt": "a dog"}}, "prompt: then 'a bird', now 'a dog'"),
        ({"made_by": {"prompt": "a bird"}}, "samplers: then {'base': .*}, now None"),
        ({"made_by": MADE_BY | {"base": "f00d"}}, "base: then None, now 'f00d'"),
        ({"seed": 1}, "seed: then 0, now 1"),
    ],
)
def test_images_made_in_another_way_are_refused_by_name(made, changed, line):
    folder, _, _ = made
    before, idle = contents(folder), Model()
    with pytest.raises(PriorError, match=line) as info:
        make(folder, idle, **changed)
    assert str(info.value).count(": then ") == 1
    assert "prior.folder" in str(info.value)
    assert idle.calls == []
    assert contents(folder) == before


def test_other_blocks_go_on_with_what_is_there(made, tmp_path):
    _, pictures, _ = made
    for block in (2, 3, 8):
        folder, model = tmp_path / f"{block}", Model()
        make(folder, model, num_images=4)
        drawn = len(model.calls)
        found = make(folder, model, block=block)
        np.testing.assert_array_equal(found.images, pictures.images)
        assert len(model.calls) == drawn + 1  # the block with images 4 and 5
        idle = Model()
        np.testing.assert_array_equal(make(folder, idle, block=1).images, pictures.images)
        assert idle.calls == []


def test_tuples_of_the_settings_are_what_json_makes_of_them(made):
    folder, _, _ = made
    settings = MADE_BY | {"sizes": (8, 16)}
    make(folder.parent / "tuples", Model(), made_by=settings)
    idle = Model()
    make(folder.parent / "tuples", idle, made_by=settings)
    assert idle.calls == []


def test_a_folder_of_someone_else_is_refused_and_left_alone(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "holiday.png")
    before = contents(tmp_path)
    with pytest.raises(PriorError, match=r"'holiday\.png'.*prior\.folder"):
        make(tmp_path, Model())
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"made_by": {}}'])
def test_a_manifest_that_cannot_be_read_is_told(made, text):
    folder, _, _ = made
    (folder / "manifest.json").write_text(text)
    with pytest.raises(PriorError, match=r"manifest\.json cannot be read"):
        make(folder, Model())


# ---- Images that show nothing


@pytest.mark.parametrize("empty", [0, 128, 255, [200, 30, 90]])
def test_an_empty_image_is_drawn_again_from_another_seed_and_counted(tmp_path, empty):
    model = Model(spoil={0: [1, 2], 1: [2]}, empty=empty)
    found = make(tmp_path, model, num_images=4)
    assert found.redone == 2
    assert len(model.calls) == 3
    assert len({seed for call in model.calls for seed in call}) == 12  # never the same seed twice
    seeds = [model.calls[call][row] for row, call in enumerate((0, 1, 2, 0))]
    np.testing.assert_array_equal(found.images, [model.picture(seed) for seed in seeds])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["redone"] == 2
    assert [entry["seed"] for entry in manifest["images"].values()] == seeds
    again = make(tmp_path, Model(), num_images=4)
    np.testing.assert_array_equal(again.images, found.images)
    assert again.redone == 2


def test_an_image_that_the_base_stage_left_empty_is_drawn_again_too(tmp_path):
    class Broken(Model):
        def __call__(self, seeds):
            low, high = super().__call__(seeds)
            if len(self.calls) == 1:
                low[0] = 7
            return [low, high]

    assert make(tmp_path, Broken(low_size=4)).redone == 1


def test_the_last_attempt_counts(tmp_path):
    model = Model(spoil={call: [3] for call in range(prior.MAX_ATTEMPTS - 1)})
    found = make(tmp_path, model, num_images=4)
    assert len(model.calls) == prior.MAX_ATTEMPTS
    np.testing.assert_array_equal(found.images[3], model.picture(model.calls[-1][3]))


def test_a_model_that_only_makes_empty_images_is_told(tmp_path):
    model = Model(spoil={call: [0, 3] for call in range(1, 99)})
    with pytest.raises(
        PriorError, match=r"\[4, 7\] .*after 5 attempts.*sampler\.threshold"
    ) as info:
        make(tmp_path, model)
    assert "float32" in str(info.value)
    assert len(model.calls) == 1 + 5
    assert "00003.png" in contents(tmp_path)  # the good block is kept


# ---- Images that were changed


def test_whatever_byte_is_changed_the_images_are_the_same(tmp_path):
    model = Model(size=4)
    first = make(tmp_path, model, num_images=2, block=2)
    file = tmp_path / "00001.png"
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x55
        file.write_bytes(bytes(bad))
        found = make(tmp_path, model, num_images=2, block=2)
        np.testing.assert_array_equal(found.images, first.images)
    assert len(model.calls) > len(good) / 2  # the other bytes change no pixel: checksums, lengths


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "another"])
def test_a_file_that_is_not_what_was_written_is_made_again(made, damage, caplog):
    folder, first, calls = made
    file, before = folder / "00004.png", contents(folder)
    if damage == "missing":
        file.unlink()
    elif damage == "another":
        file.write_bytes((folder / "00001.png").read_bytes())
    else:
        file.write_bytes(file.read_bytes()[: 60 if damage == "cut" else 0])
    model = Model()
    found = make(folder, model)
    np.testing.assert_array_equal(found.images, first.images)
    assert model.calls == calls[1:]  # its block alone
    assert contents(folder) == before


# ---- Two stages, several processes


def test_low_res_images_are_the_pairs_of_the_images(tmp_path):
    first = make(tmp_path, Model(low_size=4))
    assert (first.low_res.shape, first.images.shape) == ((6, 4, 4, 3), (6, 8, 8, 3))
    np.testing.assert_array_equal(first.low_res, first.images[:, ::2, ::2])
    idle = Model(low_size=4)
    again = make(tmp_path, idle)
    assert idle.calls == []
    np.testing.assert_array_equal(again.low_res, first.low_res)
    np.testing.assert_array_equal(again.images, first.images)
    (tmp_path / "low_res" / "00005.png").unlink()
    repaired = make(tmp_path, Model(low_size=4))
    np.testing.assert_array_equal(repaired.low_res, first.low_res)
    assert (tmp_path / "low_res" / "00005.png").is_file()


def test_each_process_gets_all_images_and_writes_its_share(made, tmp_path):
    whole, first, _ = made
    waited, written = [], []
    for index in range(3):
        folder = tmp_path / f"process {index}"
        waits = []
        found = make(
            folder,
            Model(),
            share=(index, 3),
            wait=lambda folder=folder, waits=waits: waits.append(set(contents(folder))),
        )
        np.testing.assert_array_equal(found.images, first.images)
        waited.append(waits)
        written.append(contents(folder))
    parts = [{"00000.png", "00003.png", "00004.png"}, {"00001.png", "00005.png"}, {"00002.png"}]
    assert [set(part) - {"manifest.json"} for part in written] == parts
    assert "manifest.json" in written[0]  # the first process's alone
    assert contents(whole) == written[0] | written[1] | written[2]
    # They wait once, with the manifest of an empty folder, then after each block.
    assert waited[0][0] == {"manifest.json"}
    assert [len(waits) for waits in waited] == [3, 3, 3]
    assert waited[1] == [set(), {"00001.png"}, parts[1]]


# What is damaged is made again, or named.


@pytest.fixture
def kept(tmp_path):
    folder = tmp_path / "prior"
    images = make(folder, Model(low_size=4), num_images=3).images
    return folder, contents(folder), images


@pytest.mark.parametrize("name", ["00000.png", "low_res/00001.png"])
def test_a_picture_with_any_byte_flipped_or_cut_off_is_made_again(name, kept):
    """A flip in a chunk's name makes Pillow raise SyntaxError, another ValueError."""
    folder, before, images = kept
    whole = before[name]
    flips = [bytes([*whole[:i], whole[i] ^ 1 << i % 8, *whole[i + 1 :]]) for i in range(len(whole))]
    for content in [*flips, *(whole[:n] for n in range(0, len(whole), 9))]:
        (folder / name).write_bytes(content)
        again = make(folder, Model(low_size=4), num_images=3)
        np.testing.assert_array_equal(again.images, images)


def test_a_folder_in_place_of_a_picture_is_named(kept):
    folder, _, _ = kept
    (folder / "00000.png").unlink()
    (folder / "00000.png").mkdir()
    with pytest.raises(OSError, match=r"00000\.png"):
        make(folder, Model(low_size=4), num_images=3)


MANIFESTS = (
    "[]",
    "null",
    "[" * 100_000,
    "{",
    '{"images": {}}',
    '{"made_by": [], "images": {}}',
    '{"made_by": {}, "images": [1]}',
    '{"made_by": {}, "images": {"00000.png": {}}}',
    '{"made_by": {}, "images": {"00000.png": {"files": [], "attempt": 0}}}',
    '{"made_by": {}, "images": {"00000.png": {"files": {"../../x": "y"}, "attempt": 0}}}',
    '{"made_by": {}, "images": {"../x.png": {"files": {"../x.png": "y"}, "attempt": 0}}}',
    '{"made_by": {}, "images": {"00000.png": {"files": {"00000.png": "y"}, "attempt": "z"}}}',
)


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_manifest_of_any_other_shape_is_named_with_what_to_do(content, kept):
    folder, _, _ = kept
    (folder / prior.MANIFEST).write_text(content)
    with pytest.raises(PriorError, match=r"manifest\.json cannot be read .* Delete"):
        make(folder, Model(low_size=4), num_images=3)
