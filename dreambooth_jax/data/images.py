"""Photos as the program sees them: upright 8-bit sRGB, cut without stretching."""

import contextlib
import difflib
import importlib
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, features

from dreambooth_jax import untrusted
from dreambooth_jax.data.colour import RGB, WHITE, ImageError, Note, to_rgb

Size = tuple[int, int]  # height and width in pixels
# Pixels along a side of pictures that are drawn or trained on. The largest that a published model
# here is made for is 2048; an activation of twice this takes all memory of one device.
LARGEST = 8192

# What cameras, phones and screens write. Pillow knows more, but some of those start other programs
# (EPS) or take any text for a picture.
_FORMATS = (
    "AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP",
)  # fmt: skip

SUFFIXES = (  # of such files, in lower case
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".pgm",
    ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip

# How a picture stored with this EXIF orientation becomes upright (Exif 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# TIFF inside, so Pillow may open them, and finds a thumbnail of 160 pixels.
_RAW_SUFFIXES = (
    ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw",
)  # fmt: skip
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF"}


class Decoded(NamedTuple):
    """A picture as it is used: upright sRGB uint8 [H, W, 3], and what the file had besides.

    notes: on each correction that was made. alpha: upright uint8 [H, W], None where it has none.
    """

    pixels: np.ndarray
    notes: tuple[Note, ...]
    alpha: np.ndarray | None


def read(path: str | os.PathLike[str], *, background: RGB = WHITE) -> np.ndarray:
    """A photo as upright sRGB uint8 [H, W, 3]; ImageError says why a file is none.

    All 8 EXIF orientations are turned, transparency is composited on `background`, 16-bit grey is
    scaled, colour profiles are converted, and of animations and MPO files the first picture counts.
    """
    return decode(path, background=background).pixels


def decode(path: str | os.PathLike[str], *, background: RGB = WHITE) -> Decoded:
    """Decodes as `read` does, with notes on the corrections and the picture's transparency."""
    path = pathlib.Path(path)
    if path.suffix.lower() in _RAW_SUFFIXES:
        raise ImageError(f"camera raw file ({path.suffix})", "export it as JPEG or PNG")
    try:
        untrusted.regular(path)  # a pipe or a device never ends
    except untrusted.FileError:
        raise ImageError("not a regular file", "put the picture itself there") from None
    with path.open("rb") as file, _strict_pillow():
        try:
            with _open(file) as image:
                return _decode(image, background)
        except (ImageError, MemoryError):
            raise
        # Broken files make Pillow raise nearly anything: OSError, SyntaxError, struct.error,
        # zlib.error, EOFError, TypeError, …; for the owner of the file it is all one thing.
        except Exception as error:
            raise _explain(error) from error


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """Pillow's lazy image, or ImageError by what the first bytes say."""
    head = file.read(32)
    file.seek(0)
    if _brand(head) in _HEIC_BRANDS:
        _register_heif()
    Image.init()
    try:
        return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
    except Image.UnidentifiedImageError as error:
        raise _unknown(head) from error


def _brand(head: bytes) -> bytes:
    """Returns the brand of an ISO base media file (HEIC, AVIF, MP4); b"" for another file."""
    return head[8:12] if head[4:8] == b"ftyp" else b""


def _register_heif() -> bool:
    """Teach Pillow HEIC, which iPhones write; False where the package for it is not installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:  # an extra; a HEIC file then says which
        return False
    return True


def _unknown(head: bytes) -> ImageError:
    """Describes a file that Pillow does not know, by its first bytes."""
    if not head:
        return ImageError("empty file (0 bytes)", "copy it again")
    kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if _brand(head) in _HEIC_BRANDS:
        kind = "HEIC"
        if not _register_heif():
            return ImageError(
                "not readable: HEIC, which Pillow alone does not open",
                "run `pip install pillow-heif`, or export it as JPEG",
            )
    if _brand(head) in _AVIF_BRANDS:
        kind = "AVIF"
        if not features.check("avif"):
            return ImageError(
                "not readable: AVIF, which this Pillow does not open",
                "run `pip install --upgrade pillow` (11.3 or newer), or export it as JPEG",
            )
    if kind:
        problem = f"damaged: it starts like {kind}, but its header is cut off or broken"
        return ImageError(problem, "copy it again")
    return ImageError("not an image", "move it out of the folder, or save it as JPEG")


def _decode(image: ImageFile.ImageFile, background: RGB) -> Decoded:
    """An opened image: its first picture, upright, sRGB."""
    notes = []
    if getattr(image, "is_animated", False):
        notes.append(Note(f"several pictures in one {image.format} file", "took the first"))
    deep = image.format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in image.tile)
    # Pillow turns TIFF upright while loading and forgets the tag; other formats keep both.
    found = _orientation(image) if image.format == "TIFF" else 1
    image.load()
    left = _orientation(image)
    if left is None:
        notes.append(Note("EXIF data unreadable", "took it as upright; check that it is"))
    orientation = left if left in _UPRIGHT else found
    if orientation in _UPRIGHT:
        notes.append(Note(f"stored with EXIF orientation {orientation}", "turned upright"))
    pixels, alpha, colour_notes = to_rgb(image, background=background)
    if deep and not any(note.found.startswith("16-bit") for note in colour_notes):
        notes.append(Note("16-bit colour", "read with 8 bits"))
    if left is not None and left in _UPRIGHT:
        turn = _UPRIGHT[left]
        pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
        alpha = None if alpha is None else np.asarray(Image.fromarray(alpha).transpose(turn))
    return Decoded(np.ascontiguousarray(pixels), (*notes, *colour_notes), alpha)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation tag, 1 where there is none, None where the EXIF data cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow parses EXIF late and raises nearly anything when it is broken
        return None


def _explain(error: Exception) -> ImageError:
    """Translates an exception from Pillow into a fault of the file and its remedy."""
    text = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        size = text.split(",")[0]  # "Image size (N pixels) exceeds limit of M pixels"
        return ImageError(f"too large ({size})", "save a smaller copy")
    if "truncated" in text.lower():
        # "image file is truncated (69 bytes not processed)"; other formats word it otherwise
        plain = text.removeprefix("image file is ")
        return ImageError(
            plain if plain.startswith("truncated") else f"truncated ({text})", "copy it again"
        )
    return ImageError(f"damaged ({text})", "copy it again")


@contextlib.contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow without guesses: truncated files and decompression bombs are errors, even where other
    code has set LOAD_TRUNCATED_IMAGES for the process; chatter about odd metadata is silent.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def sides(size: int | Size) -> Size:
    """Height and width of `size`, a side of a square or both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def told(size: int | Size) -> str:
    """Width × height in pixels, as people write it: "64×96"."""
    height, width = sides(size)
    return f"{width}×{height}"


def thumbnail(size: int | Size, longest: int) -> Size:
    """Height and width of a picture shaped like `size` whose longer side has `longest` pixels."""
    height, width = sides(size)
    most = max(height, width)
    return max(round(height * longest / most), 1), max(round(width * longest / most), 1)


def cover(
    image: np.ndarray,
    size: int | Size,
    *,
    crop: Literal["center"] | tuple[float, float] = "center",
    zoom: float = 1.0,
) -> np.ndarray:
    """The largest window of uint8 [H, W, 3] shaped like `size` (a side, or (h, w)), scaled to it.

    Both directions are scaled alike, so nothing is ever stretched. `crop` is (fy, fx) in [0, 1]:
    (0, 0) is the top left window, (1, 1) the bottom right one; `zoom` ≥ 1 makes it smaller.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"cover() got {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3]; "
            "use read() or to_uint8() first"
        )
    height, width = sides(size)
    box, scale = window(image.shape[0], image.shape[1], height, width, crop=crop, zoom=zoom)
    # Pillow widens its filter when it shrinks, which is what keeps fine patterns from aliasing.
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(image).resize((width, height), method, box=box))


def cover_mask(
    mask: np.ndarray,
    size: int | Size,
    *,
    crop: Literal["center"] | tuple[float, float] = "center",
    zoom: float = 1.0,
) -> np.ndarray:
    """Crops a mask uint8 [H, W] as `cover` crops its photo: float32 of that size, in [0, 1].

    Each value is the mean over the area that its pixel covers, parts of pixels counted as such.
    """
    height, width = sides(size)
    box, _ = window(mask.shape[0], mask.shape[1], height, width, crop=crop, zoom=zoom)
    left, top, right, bottom = box
    found = mask.astype(np.float64) / 255
    for axis, (low, high, side) in enumerate(((top, bottom, height), (left, right, width))):
        sums = np.concatenate([np.zeros_like(found.take([0], axis)), found.cumsum(axis)], axis)
        # The integral up to any place between two pixels' borders is linear in it.
        edges = np.linspace(low, high, side + 1)
        before = np.minimum(edges.astype(int), mask.shape[axis] - 1)
        part = np.expand_dims(edges - before, 1 - axis)
        upto = sums.take(before, axis) * (1 - part) + sums.take(before + 1, axis) * part
        found = np.diff(upto, axis=axis) * side / (high - low)
    return np.clip(found, 0, 1).astype(np.float32)


def window(
    rows: int,
    columns: int,
    height: int,
    width: int,
    *,
    crop: str | tuple[float, float] = "center",
    zoom: float = 1.0,
) -> tuple[tuple[float, float, float, float], float]:
    """(left, top, right, bottom) of what is shown of a picture of these rows and columns, scale."""
    if min(height, width) < 1:
        raise ValueError(f"size is {height}×{width}; expected at least 1 pixel each way")
    if zoom < 1:
        raise ValueError(f"zoom is {zoom}; expected 1 (the whole photo) or more")
    fy, fx = _position(crop)
    scale = zoom * max(height / rows, width / columns)
    window_height, window_width = min(height / scale, rows), min(width / scale, columns)
    top, left = fy * (rows - window_height), fx * (columns - window_width)
    box = (left, top, min(left + window_width, columns), min(top + window_height, rows))
    return box, scale


def _position(crop: str | tuple[float, float]) -> tuple[float, float]:
    if isinstance(crop, str):
        if crop != "center":
            near = difflib.get_close_matches(crop, ["center"], cutoff=0.5)
            hint = " Did you mean 'center'?" if near else ""
            raise ValueError(f"crop is {crop!r}; expected 'center' or (fy, fx) in [0, 1].{hint}")
        return 0.5, 0.5
    fy, fx = crop
    if not (0 <= fy <= 1 and 0 <= fx <= 1):
        raise ValueError(f"crop is {crop!r}; expected 'center' or (fy, fx) in [0, 1]")
    return fy, fx


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 0…255 to float32 [-1, 1], any shape: x/127.5 − 1."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(
            f"to_float() got {images.dtype}; expected uint8 0…255: is it a float image already?"
        )
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float [-1, 1] to uint8 0…255, any shape, rounded, clipped; ValueError if it holds a NaN."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        raise ValueError("to_uint8() got uint8; expected float in [-1, 1]: is it done already?")
    values = images.astype(np.float32)
    bad = int(np.isnan(values).sum())
    if bad:
        raise ValueError(
            f"{bad} of {values.size} values are NaN; a black picture would hide that. "
            "Compute the last stage in float32, or look for the first NaN upstream"
        )
    levels = np.clip(values, -1, 1) * np.float32(127.5) + np.float32(127.5)
    return np.rint(levels).astype(np.uint8)
