"""The pictures that a run was trained on, as its report shows them."""

from collections.abc import Sequence

import numpy as np

from dreambooth_jax import report
from dreambooth_jax.data import images
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.subject import Subject

_SHOWN_CLASS_IMAGES = 24


def of_photos(subject: Subject, *, alone: bool) -> list[report.Gallery]:
    """The photos of a subject with their prompts, and their masks."""
    of = "" if alone else f", {subject.identifier} {subject.class_noun}"
    shown = subject.shown(subject.pixels)
    captioned = any(photo.caption is not None for photo in subject.audit.kept)
    labels = [window.photo for window in subject.windows]
    sizes = ", ".join(map(images.told, subject.pixels))
    if subject.audit.shapes:
        cut = {photo.path.name: photo for photo in subject.audit.kept}
        labels = [
            f"{name}, {images.told(picture.shape[:2])}, {cut[name].shown / zoom**2:.0%} of it"
            for (name, _, _, zoom), picture in zip(subject.windows, shown, strict=True)
        ]
    else:
        sizes = images.told(max(subject.pixels))
    if captioned:
        labels = [
            f"{name}: {prompt}" for name, prompt in zip(labels, subject.row_prompts, strict=True)
        ]
    told = "Their captions are the prompts." if captioned else f"{subject.instance_prompt!r}."
    found = [
        report.Gallery(
            f"The photos{of}",
            f"As the model sees them: upright, resized to cover {sizes} pixels and cropped. {told}",
            images=shown,
            labels=labels,
            collapsed=True,
        )
    ]
    if subject.masks:
        # Off the subject in a colour that photos seldom have, so that dark ones show it as well.
        masks = zip(shown, subject.shown(subject.masks), strict=True)
        found.append(
            report.Gallery(
                f"The masks{of}",
                "Pixels outside the mask (tinted) have a lower loss weight (loss.outside_mask).",
                images=[_veiled(picture, mask[..., None]) for picture, mask in masks],
                labels=labels,
                collapsed=True,
            )
        )
    return found


def _veiled(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture `[H,W,3]`, tinted where its mask `[H,W,1]` is 0."""
    tinted = 0.35 * picture + 0.65 * np.array([255.0, 0.0, 255.0])
    return np.rint(mask * picture + (1 - mask) * tinted).astype(np.uint8)


def of_class_images(found: ClassImages, *, alone: bool) -> report.Gallery:
    """Some of the class images, with their captions where they have any."""
    count = min(_SHOWN_CLASS_IMAGES, len(found))
    if found.own is None:
        source = "drawn by the untouched model for prior preservation"
        redone = f"; {found.redone} were empty and were drawn again"
    else:
        source, redone = "from the folder prior.images, for prior preservation", ""
    captioned = set(found.row_prompts) != {found.class_prompt}
    return report.Gallery(
        "Class images" if alone else f"Class images, {found.class_noun}",
        f"{found.class_prompt!r}, {source}: {count} of {len(found)}{redone}.",
        images=_across(found.shown, count),
        labels=found.row_prompts[:count] if captioned else (),
        collapsed=True,
    )


def _across(pictures: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """So many of the pictures, evenly from first to last: of all shapes, which follow each other.

    Of one shape the first.
    """
    if len({picture.shape for picture in pictures}) == 1:
        return [*pictures[:count]]
    return [pictures[k * len(pictures) // count] for k in range(count)]
