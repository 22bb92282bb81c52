"""What photos look like: of one colour where they are cut, or one picture saved twice."""

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data.audit import audit


def scene(seed: int, side: int = 96) -> np.ndarray:
    """A smooth picture with some detail."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def saved(folder, **pictures: np.ndarray):
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("save", ["jpeg", "small", "large", "brighter by one"])
def test_a_copy_of_a_photo_is_kept_and_warned_of(save, tmp_path):
    pixels = scene(0)
    saved(tmp_path, a=pixels, b=scene(1), c=scene(2))
    image = Image.fromarray(pixels)
    if save == "jpeg":
        image.save(tmp_path / "copy.jpg", quality=60)
    elif save == "brighter by one":
        Image.fromarray(np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8)).save(
            tmp_path / "copy.png"
        )
    else:
        side = {"small": 48, "large": 150}[save]
        image.resize((side, side), Image.Resampling.LANCZOS).save(tmp_path / "copy.png")
    found = audit(tmp_path, size=32)
    assert len(found.kept) == 4
    (photo,) = [photo for photo in found.kept if photo.path.stem == "copy"]
    assert "looks like a.png" in " ".join(map(str, photo.notes))
    (warning,) = found.warnings
    assert "1 photo in" in warning and photo.path.name in warning and "count twice" in warning


def test_photos_of_one_subject_are_no_copies(tmp_path):
    """Turned, cut, moved by a few pixels: each shows something of its own."""
    pixels = scene(0, 128)
    cut, moved = pixels[16:112, 16:112], np.roll(pixels, 3, 1)
    turned = {"b": pixels[:, ::-1], "c": pixels[::-1]}
    found = audit(saved(tmp_path, a=pixels, d=cut, e=moved, **turned), size=32)
    assert found.warnings == []
    assert not any("looks like" in str(note) for photo in found.kept for note in photo.notes)


def test_photos_that_show_nothing_are_warned_of_once(tmp_path):
    """Nothing in what is trained on: a picture of one colour, and a crop beside the subject."""
    tall = np.full((288, 96, 3), 200, np.uint8)
    tall[:80] = scene(0, 96)[:80]
    Image.fromarray(tall).save(tmp_path / "tall.jpg", quality=85)  # its noise reaches further
    found = audit(saved(tmp_path, black=np.zeros((96, 96, 3), np.uint8), a=scene(1)), size=32)
    (warning,) = found.warnings
    assert "2 photos of 3" in warning
    assert "black.png, tall.jpg" in warning and "--config.subject.crop" in warning


def test_the_rim_of_a_crop_does_not_hide_that_it_is_empty(tmp_path):
    """The filter of a smaller copy takes in a little of what lies beside the crop."""
    tall = np.full((288, 96, 3), 200, np.uint8)
    tall[:96], tall[192:] = 0, 0
    found = audit(saved(tmp_path, a=tall, b=scene(1), c=scene(2)), size=32)
    assert "the square in the middle is of one colour" in str(found)
