"""Rows of a stage's steps where photos are trained in shapes of their own; no network is needed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax import sharding, train
from dreambooth_jax.data import class_images as made_images
from dreambooth_jax.data.prior import Prior
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import class_images, photo_shapes, subjects
from dreambooth_jax.experiment.results import galleries
from dreambooth_jax.experiment.training import rows
from dreambooth_jax.pipeline.frame import Frame

TALL, SQUARE, WIDE = (20, 12), (16, 16), (12, 20)  # multiples of 4, of at most 256 pixels
PHOTOS = {"a": (40, 40), "b": (60, 36), "c": (50, 52), "d": (80, 30), "e": (40, 44)}
SHAPES = {"a": SQUARE, "b": TALL, "c": SQUARE, "d": TALL, "e": SQUARE}


class Text:
    """The row of a prompt is its length."""

    def rows(self, prompts: Any) -> np.ndarray:
        return np.array([len(prompt) for prompt in prompts], np.int32)


TEXT: Any = Text()


def stage(multiple: int = 4, size: tuple[int, int] = SQUARE) -> Any:
    return SimpleNamespace(
        size=size,
        folder="toy",
        frame=Frame(size, multiple=multiple),
        codec=SimpleNamespace(is_latent=False, factor=1),
        denoiser=SimpleNamespace(sized=True),
        tokenizers={},
    )


MODEL: Any = SimpleNamespace(stages={"base": stage()})


def plan_of(**changed: Any) -> configs.Plan:
    given = {"data__buckets": 3, "upscaler_model": "", "stages": ("base",)} | changed
    settings = {key.replace("__", "."): value for key, value in given.items()}
    return configs.changed(configs.resolve(configs.base_config()), settings)


def write(folder: Path, photos: dict[str, tuple[int, int]], first: int, *, masks: bool) -> None:
    """Photos of one brightness each, in the order of their names, but for a corner."""
    folder.mkdir()
    for k, (name, (height, width)) in enumerate(photos.items()):
        pixels = np.full((height, width, 3), first + k, np.uint8)
        pixels[0, 0] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")
        if masks:
            mask = np.zeros((height, width), np.uint8)
            mask[: height // 2] = 255
            Image.fromarray(mask).save(folder / f"{name}.mask.png")


WORDS = [Words.of(identifier=w, class_noun=n) for w, n in (("zib", "bird"), ("kep", "dog"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write(root / "bird", PHOTOS, 10, masks=True)
    write(root / "dog", {"x": (40, 40), "y": (36, 60)}, 30, masks=True)
    return root


def settings(folder: Path, *, others: bool = False, **changed: Any) -> configs.Plan:
    given = {"subject__images": str(folder / "bird"), "subject__identifier": "zib"} | changed
    if others:
        given["subject__others"] = ((str(folder / "dog"), "dog", "kep"),)
    return plan_of(**given)


def read(plan: configs.Plan) -> tuple[subjects.Folders, Any]:
    folders = subjects.audit(plan, MODEL.stages)
    return folders, subjects.read(plan, MODEL, folders, WORDS[: len(folders.photos)])


def drawn(plan: configs.Plan, folders: subjects.Folders, number: int = 6) -> list[Any]:
    """Class images as if drawn: brightness 100 and more of the birds, 200 and more of the dogs."""
    made = []
    for each, (noun, weights) in zip(
        WORDS, photo_shapes.by_noun(plan, folders.photos).items(), strict=False
    ):
        counts = class_images.shapes.parts(number, [*weights.values()])
        first = {"bird": 100, "dog": 200}[noun]
        parts = [
            Prior(np.full((n, *size, 3), first + k, np.uint8), None, 0)
            for k, (size, n) in enumerate(zip(weights, counts, strict=True))
        ]
        made.append(made_images.drawn(parts, each))
    return made


def brightness(batch: Any) -> list[int]:
    middle = batch["mean"][:, batch["mean"].shape[1] // 2, batch["mean"].shape[2] // 2, 0]
    return np.rint((middle + 1) * 127.5).astype(int).tolist()


def test_each_photo_is_audited_and_cut_at_its_shape_and_the_report_says_what_is_cut(folder):
    (report,) = subjects.audit(settings(folder), MODEL.stages).photos
    assert {photo.path.stem: photo.shape for photo in report.kept} == SHAPES
    lines = {line.split()[1]: line for line in str(report).splitlines()[1:]}
    assert "(for 12×20, 16×16, 20×12 pixels)" in str(report).splitlines()[0]
    assert "36×60, cut to 12×20: 100% of it" in lines["b.png"]
    # 30 × 80 to 12 × 20: of 80 rows 50 are seen.
    assert "30×80, cut to 12×20: 62% of it" in lines["d.png"]
    _, (subject,) = read(settings(folder))
    assert {size: len(x) for size, x in subject.pixels.items()} == {SQUARE: 3, TALL: 2}
    assert [p.shape[:2] for p in subject.shown(subject.pixels)] == [*SHAPES.values()]
    photos = galleries.of_photos(subject, alone=True)[0]
    assert photos.labels[3] == "d.png, 12×20, 62% of it"
    assert "16×16, 12×20 pixels" in photos.caption


def test_all_rows_of_a_step_have_one_shape_and_photos_are_seen_equally_often(folder):
    plan = settings(folder, train__batch_size=4, subject__masks="files")
    folders, cast = read(plan)
    classes = drawn(plan, folders)
    # 2 of 5 photos are tall: 2.4 and 3.6 of 6 class images.
    assert {size: len(x) for size, x in classes[0].pixels.items()} == {TALL: 2, SQUARE: 4}
    source, fixed = rows.batches(plan.stages["base"], MODEL, cast, classes, text=TEXT)
    seen: dict[int, int] = {}
    for step in range(5 * 6):
        batch = source.batch(step)
        size = batch["mean"].shape[1:3]
        found = brightness(batch)
        assert batch["is_prior"].tolist() == [False, False, True, True]
        for row in found[:2]:
            assert [*SHAPES.values()][row - 10] == size
            seen[row] = seen.get(row, 0) + 1
        assert set(found[2:]) == {100 if size == TALL else 101}
        # The mask is the upper half.
        weights = batch["pixel_weights"]
        assert weights.shape == (4, *size, 1)
        assert (weights[2:] == 1).all()
        assert weights[0, 0, 0, 0] == 1 and weights[0, -1, 0, 0] == np.float32(0.1)
        for told in batch["sizes"][2:]:
            assert told.tolist() == [*size, 0, 0, *size]
    assert seen == dict.fromkeys(range(10, 15), 12)
    # The held-out loss sees every photo once, beside class rows of its shape.
    rows_seen = [row for batch in fixed for row in brightness(batch)]
    assert sorted(row for row in rows_seen if row < 100) == [*range(10, 15)]
    assert len(fixed) == 2 and {row for row in rows_seen if row >= 100} == {100, 101}


@pytest.mark.parametrize(("crop", "top"), [((), 15), ((0.0, 0.5), 0), ((1.0, 0.5), 30)])
def test_sdxl_is_told_where_each_photo_was_cut_and_the_crop_is_placed(crop, top, folder):
    """d.png, 80 × 30, at 20 × 12: scaled by 0.4 it is 32 × 12, of which 20 rows are seen."""
    plan = settings(folder, subject__crop=crop, prior_loss_weight=0.0)
    _, cast = read(plan)
    source, _ = rows.batches(plan.stages["base"], MODEL, cast, [], text=TEXT)
    told = {}
    for step in range(20):
        batch = source.batch(step)
        told |= dict(zip(brightness(batch), batch["sizes"].tolist(), strict=True))
    assert told[13] == [80, 30, round(top * 0.4), 0, 20, 12]
    assert told[11] == [60, 36, 0, 0, 20, 12]
    assert told[12] == [50, 52, 0, 0, 16, 16]


def test_square_photos_are_the_same_rows_with_and_without_shapes(tmp_path):
    write(tmp_path / "bird", dict.fromkeys("abcd", (40, 40)), 10, masks=False)
    pictures = Prior(np.full((5, *SQUARE, 3), 100, np.uint8), None, 0)
    found = []
    for buckets in (0, 5):
        plan = settings(tmp_path, data__buckets=buckets, subject__crops=2, subject__flip=True)
        _, cast = read(plan)
        classes = [made_images.drawn([pictures], WORDS[0])]
        found.append(rows.batches(plan.stages["base"], MODEL, cast, classes, text=TEXT)[0])
    for step in range(12):
        one, other = (source.batch(step) for source in found)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_subjects_have_equal_turns_and_their_own_class_rows(folder):
    plan = settings(folder, others=True, train__batch_size=8)
    folders, cast = read(plan)
    classes = drawn(plan, folders)
    source, _ = rows.batches(plan.stages["base"], MODEL, cast, classes, text=TEXT)
    total = sum(source.steps.counts)
    turns = {"bird": 0, "dog": 0}
    of_photo: dict[int, int] = {}
    for step in range(total * 6):
        batch = source.batch(step)
        found = brightness(batch)
        nouns = ["bird" if row < 20 else "dog" for row in found[:4]]
        assert [["bird", "dog"][row >= 200] for row in found[4:]] == nouns
        for noun, row in zip(nouns, found, strict=False):
            turns[noun] += 1
            of_photo[row] = of_photo.get(row, 0) + 1
    assert turns["bird"] == turns["dog"]
    assert len({of_photo[row] for row in range(10, 15)}) == len({of_photo[30], of_photo[31]}) == 1


def test_what_is_held_out_is_looked_at_in_its_shape_and_never_trained_on(folder):
    """The last two by name are d, tall, and e, square; held out with the one tall that is left."""
    plan = settings(folder, subject__held_out=2, prior_loss_weight=0.0)
    _, cast = read(plan)
    source, fixed = rows.batches(plan.stages["base"], MODEL, cast, [], text=TEXT)
    seen = {row for step in range(30) for row in brightness(source.batch(step))}
    assert seen == {10, 11, 12}
    assert sorted(row for batch in fixed for row in brightness(batch)) == [13, 14]
    # A shape that only photos held out have is looked at, and no step has it.
    plan = settings(folder, subject__held_out=4, prior__kind="prediction")
    _, cast = read(plan)
    source, fixed = rows.batches(plan.stages["base"], MODEL, cast, [], text=TEXT)
    assert {source.batch(step)["mean"].shape[1:3] for step in range(9)} == {SQUARE}
    assert sum(not row for batch in fixed for row in batch["is_prior"]) == 4


def test_class_images_of_a_folder_are_cut_at_every_shape_of_their_subject(folder, tmp_path):
    write(tmp_path / "own", {"p": (40, 40), "q": (40, 50), "r": (50, 40)}, 100, masks=False)
    plan = settings(folder, prior__images=str(tmp_path / "own"))
    folders, cast = read(plan)
    own = class_images.own(plan, folders, WORDS[:1])
    assert {size: len(x) for size, x in own[0].pixels.items()} == {TALL: 3, SQUARE: 3}
    source, _ = rows.batches(plan.stages["base"], MODEL, cast, own, text=TEXT)
    for step in range(15):
        batch = source.batch(step)
        found = brightness(batch)
        size = batch["mean"].shape[1:3]
        assert all(row >= 100 for row in found[2:])
        # q.png, 40 × 50, at 20 × 12: 25 columns, of which 12 are seen; at 16 × 16: 20.
        left = {TALL: 6, SQUARE: 2}[size]
        for row, told in zip(found, batch["sizes"].tolist(), strict=True):
            if row == 101:
                assert told == [40, 50, 0, left, *size]


def test_eight_devices_get_the_rows_of_one(folder):
    plan = settings(folder, train__batch_size=8)
    folders, cast = read(plan)
    source, _ = rows.batches(plan.stages["base"], MODEL, cast, drawn(plan, folders), text=TEXT)
    run: Any = SimpleNamespace(mesh=sharding.make_mesh(data=8, devices=jax.devices()))
    sizes = set()
    for step in range(10):
        batch = source.batch(step)
        placed = train.Compiled.put_batch(run, batch)
        sizes.add(placed["mean"].shape)
        for name, x in placed.items():
            assert len(x.sharding.device_set) == 8
            np.testing.assert_array_equal(np.asarray(x), batch[name])
    assert len(sizes) == 2


def test_shapes_are_multiples_that_the_model_can_make(folder):
    plan = plan_of(data__buckets=5)
    # UNets of three halvings and an autoencoder of 8 make multiples of 64.
    for side, multiple in ((512, 64), (1024, 32), (1024, 16), (768, 64)):
        found = photo_shapes.chosen(plan, stage(multiple, (side, side)))
        assert len(found) == 5
        assert all(x % 64 == 0 for size in found for x in size)
        assert all(0.85 * side**2 < height * width <= side**2 for height, width in found)
    assert photo_shapes.chosen(plan_of(data__buckets=0), stage()) == ()
    with pytest.raises(ValueError, match=r"data.buckets = 5: toy .*multiples of 16 .*buckets=0"):
        photo_shapes.chosen(plan, stage(16))


def test_sdxl_is_told_where_a_mirrored_crop_was_cut_also_of_a_photo_that_is_zoomed(tmp_path):
    """Of a photo of 40 × 100 scaled by 0.4 · zoom 16 columns are seen: the rest is at two sides."""
    (tmp_path / "photos").mkdir()
    columns = np.tile(np.arange(0, 200, 2, dtype=np.uint8)[:, None], (40, 1, 3))
    Image.fromarray(columns).save(tmp_path / "photos" / "a.png")
    changed = {"subject__images": str(tmp_path / "photos"), "subject__crops": 6}
    changed |= {"data__buckets": 0, "prior_loss_weight": 0.0, "train__batch_size": 12}
    plan = plan_of(subject__flip=True, **changed)
    _, (subject,) = read(plan)
    source, _ = rows.batches(plan.stages["base"], MODEL, [subject], [], text=TEXT)
    batch = source.batch(0)
    mirrored = (batch["mean"][:, 8, 0, 0] > batch["mean"][:, 8, -1, 0]).tolist()
    assert mirrored.count(True) == 6
    pairs = zip(subject.pixels[SQUARE], subject.windows, strict=True)
    zooms = {pixels.tobytes(): window.zoom for pixels, window in pairs}
    left = {}
    for mean, other, told in zip(batch["mean"], mirrored, batch["sizes"], strict=True):
        pixels = np.rint((mean + 1) * 127.5).astype(np.uint8)
        zoom = zooms[(pixels[:, ::-1] if other else pixels).tobytes()]
        assert told[[0, 1, 4, 5]].tolist() == [40, 100, 16, 16]
        left.setdefault(zoom, {})[other] = told[3]
    assert len(left) == 6 and max(left) > 1.05
    for zoom, of in left.items():
        assert of[False] + 16 + of[True] == pytest.approx(100 * 0.4 * zoom, abs=1)
