"""Small copies of the benchmark's folder, as its checkout looks. Not a test."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

MAKER = "Camera of a known owner"  # what must not travel on


def picture(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Smooth random colours, so that JPEG keeps them."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def exif(orientation: int) -> Image.Exif:
    """Camera, orientation and place, as a phone writes them."""
    data = Image.Exif()
    data[ExifTags.Base.Make] = MAKER
    data[ExifTags.Base.Orientation] = orientation
    data[ExifTags.IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (48.0, 51.0, 29.5),
        ExifTags.GPS.GPSLongitudeRef: "E",
        ExifTags.GPS.GPSLongitude: (2.0, 17.0, 40.2),
    }
    return data


def make(folder: Path, names: Iterable[str], *, photos: int = 3) -> Path:
    """A checkout with these subjects; photo 0 of each is an MPO file with a place, on its side."""
    (folder / ".git").mkdir(parents=True)
    for number, name in enumerate(names):
        place = folder / "dataset" / name
        place.mkdir(parents=True)
        for k in range(photos):
            first = picture(100 * number + k, size=(40, 32))
            if k == 0:
                first.save(
                    place / "00.jpg",
                    format="MPO",
                    save_all=True,
                    append_images=[picture(99)],
                    exif=exif(6),
                )
            else:
                first.save(place / f"{k:02d}.jpg", format="JPEG", quality=95)
    (folder / "dataset" / "prompts_and_classes.txt").write_text("Classes\n")
    return folder
