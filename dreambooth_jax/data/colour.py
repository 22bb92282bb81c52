"""Any Pillow mode to 8-bit sRGB: colour profiles, CMYK, 16 bits, palettes, transparency."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

RGB = tuple[int, int, int]
WHITE: RGB = (255, 255, 255)

# The Pillow mode whose pixels a profile of this ICC colour space describes.
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# A profile that moves no colour further than this (levels of 255) is sRGB in all but name.
_SRGB_TOLERANCE = 2
_STRIP = 256  # rows at a time
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


class Note(NamedTuple):
    """One thing about a photo that is not plain 8-bit sRGB: what was found, what was done."""

    found: str
    done: str

    def __str__(self) -> str:
        return f"{self.found}: {self.done}"


class ImageError(ValueError):
    """A file that cannot serve as a photo: the problem, and what its owner can do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem = problem
        self.remedy = remedy


def to_rgb(
    image: Image.Image, *, background: RGB = WHITE
) -> tuple[np.ndarray, np.ndarray | None, list[Note]]:
    """A loaded Pillow image as sRGB uint8 [H, W, 3], transparent parts composited on `background`.

    With it come its alpha uint8 [H, W], None where it has none, and notes on all that was not plain
    8-bit RGB; ImageError for pixels without an agreed white.
    """
    notes: list[Note] = []
    profile = image.info.get("icc_profile")
    if image.mode in _SIXTEEN_BIT_MODES or image.mode in ("I", "F"):
        image, alpha = _from_deep_grey(image)
        notes.append(Note("16-bit grey", "scaled to 8 bits"))
    else:
        image, alpha = _split_alpha(image)
    if image.mode in ("1", "L"):
        image = image.convert("L")
        if not notes:
            notes.append(Note("grey", "copied to red, green and blue"))
    image, note = _to_srgb(image, profile)
    if note:
        notes.append(note)
    pixels = np.array(image, dtype=np.uint8)
    if alpha is not None and alpha.min() < 255:
        name = "white" if tuple(background) == WHITE else f"colour {tuple(background)}"
        notes.append(Note("transparent", f"composited on {name}"))
        pixels = composite(pixels, alpha, background=background)
    return pixels, alpha, notes


def composite(pixels: np.ndarray, alpha: np.ndarray, *, background: RGB) -> np.ndarray:
    """uint8 [H, W, 3] over one colour: round((α·c + (255 − α)·b) / 255), α uint8 [H, W]."""
    behind = np.asarray(background, np.uint16)
    made = np.empty_like(pixels)
    for start in range(0, len(pixels), _STRIP):  # a large photo takes no multiple of itself
        rows = slice(start, start + _STRIP)
        opacity = alpha[rows, :, None].astype(np.uint16)
        # At most 255² + 127, which 16 bits hold: the weights sum to 255.
        made[rows] = (opacity * pixels[rows] + (255 - opacity) * behind + 127) // 255
    return made


def _split_alpha(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    """The image in mode L, RGB or CMYK, and its alpha [H, W] where it has one."""
    alpha = None
    if image.has_transparency_data:
        transparent = image.convert("RGBA")  # understands LA, PA, P and tRNS entries alike
        alpha = np.asarray(transparent.getchannel("A"))
        # Keep grey grey: its profile, if any, describes one channel.
        grey = image.mode in ("1", "L", "LA", "La")
        image = transparent.getchannel("R") if grey else transparent.convert("RGB")
    if image.mode not in ("1", "L", "RGB", "CMYK"):
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise ImageError(
                f"pixels of mode {image.mode!r}", "save it as an RGB JPEG or PNG"
            ) from error
    return image, alpha


def _from_deep_grey(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    """16-bit grey as mode L: v/257, so that 65535 is 255 (Pillow's conversion saturates)."""
    # PGM, and PNG in older Pillow, bring 16 bits in mode I; elsewhere I and F have no fixed white.
    if image.mode not in _SIXTEEN_BIT_MODES and not (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):
        raise ImageError(
            f"32-bit pixels (mode {image.mode!r}), which have no agreed white",
            "save it with 8 or 16 bits a channel",
        )
    values = np.asarray(image).astype(np.int32)  # 16 bits, and room for the rounding
    clear = image.info.get("transparency")  # PNG may name one value as transparent
    alpha = None if clear is None else np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)), alpha


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, Note | None]:
    """Mode L, RGB or CMYK to sRGB: through the embedded ICC profile where it fits, else plainly."""
    plain = image.convert("RGB")
    without = Note("CMYK without a colour profile", "converted by the plain formula; check it")
    if not profile:
        return plain, without if image.mode == "CMYK" else None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if _PROFILE_MODES.get(space) != image.mode:
            return plain, Note(f"colour profile for {space}, pixels in {image.mode}", "ignored it")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,  # as browsers and photo programs do
        )
        if image.mode == "RGB" and _is_identity(transform):
            return plain, None
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ImportError) as error:  # ImportError: built without lcms
        return plain, Note(f"unusable colour profile ({error})", "ignored it; check the colours")
    assert converted is not None  # None is for in-place transforms only
    # Phones write Display P3 into every photo: worth a note, no cause for alarm.
    return converted, Note(f"{space} colour profile", "converted to sRGB")


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Returns True if a transform leaves a 9×9×9 lattice of RGB colours unchanged."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    moved = ImageCms.applyTransform(Image.fromarray(lattice), transform)
    distance = np.abs(np.asarray(moved).astype(int) - lattice)
    return bool(distance.max() <= _SRGB_TOLERANCE)
