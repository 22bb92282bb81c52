"""The benchmark of Ruiz et al. 2022, section 4: 30 subjects, 25 prompts for each, and their photos.

Names, classes and prompts are those of the published data set, github.com/google/dreambooth (CC BY
4.0); its photos are read from a local copy and never carried along.
"""

import dataclasses
import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from dreambooth_jax import files
from dreambooth_jax.data.audit import Audit, AuditError, audit
from dreambooth_jax.data.images import Size
from dreambooth_jax.data.prompts import PROMPT_SETS

CITATION = "Ruiz et al. 2022, DreamBooth, arXiv:2208.12242"
HOMEPAGE = "https://github.com/google/dreambooth"

# class noun → its subjects, each with the number of its published photos
_OBJECTS = {
    "backpack": {"backpack": 6, "backpack_dog": 5},
    "boot": {"fancy_boot": 6},
    "bowl": {"berry_bowl": 6},
    "can": {"can": 6},
    "candle": {"candle": 5},
    "cartoon": {"red_cartoon": 4},
    "clock": {"clock": 6},
    "glasses": {"pink_sunglasses": 6},
    "sneaker": {"colorful_sneaker": 5, "shiny_sneaker": 6},
    "stuffed animal": {"bear_plushie": 5, "grey_sloth_plushie": 5, "wolf_plushie": 5},
    "teapot": {"teapot": 5},
    "toy": {"duck_toy": 4, "monster_toy": 5, "poop_emoji": 5, "rc_car": 5, "robot_toy": 5},
    "vase": {"vase": 6},
}
_LIVE = {
    "cat": {"cat": 5, "cat2": 5},
    "dog": {"dog": 5, "dog2": 6, "dog3": 6, "dog5": 5, "dog6": 5, "dog7": 5, "dog8": 5},
}


@dataclasses.dataclass(frozen=True)
class Member:
    """A subject of the benchmark: `live` says which of the two lists of prompts is its own."""

    name: str
    class_noun: str
    live: bool
    num_photos: int

    @property
    def prompt_set(self) -> str:
        """The name of its 25 prompts in `PROMPT_SETS`."""
        return "benchmark_live" if self.live else "benchmark_object"

    @property
    def prompts(self) -> tuple[str, ...]:
        """Its 25 prompts, with `{subject}` for identifier and class noun."""
        return PROMPT_SETS[self.prompt_set]


MEMBERS: dict[str, Member] = {
    name: Member(name, class_noun, live, num_photos)
    for name, class_noun, live, num_photos in sorted(
        (name, class_noun, classes is _LIVE, num_photos)
        for classes in (_OBJECTS, _LIVE)
        for class_noun, members in classes.items()
        for name, num_photos in members.items()
    )
}
CLASSES: tuple[str, ...] = tuple(sorted({*_OBJECTS, *_LIVE}))


@dataclasses.dataclass(frozen=True)
class Checkout:
    """A local copy of the data set: which subjects have a folder with files in it, and which not.

    unknown: folders that are no subject of the benchmark.
    """

    folder: Path
    present: tuple[Member, ...]
    missing: tuple[Member, ...]
    unknown: tuple[str, ...] = ()

    def photos_of(self, name: str) -> Path:
        """The folder of a subject that is present."""
        return self.folder / name

    def audits(self, *, size: int | Size, strict: bool = False) -> Iterator[tuple[Member, Audit]]:
        """Every subject that is present with the audit of its photos (`data/audit.py`).

        Raises:
          AuditError: a subject has no photo that can be used at `size`, or `strict` and one cannot.
        """
        for member in self.present:
            yield member, audit(self.photos_of(member.name), size=size, strict=strict)

    def __str__(self) -> str:
        """Lists which of the 30 subjects are there, in a few lines."""
        lines = [f"{len(self.present)} of the {len(MEMBERS)} subjects are in {self.folder}"]
        for what, names in (
            ("not there", [member.name for member in self.missing]),
            ("no subject of the benchmark, left out", list(self.unknown)),
        ):
            if names:
                lines.append(f"  {what}: {', '.join(names)}")
        return "\n".join(lines)


def locate(folder: str | os.PathLike[str]) -> Checkout:
    """Finds the benchmark in `folder`: the checkout itself or the `dataset/` in it.

    Raises:
      AuditError: it is no folder, or has none of the 30 subjects.
    """
    root = files.local(folder)
    if not root.is_dir():
        raise AuditError(
            f"No folder {root}. Expected a copy of the DreamBooth data set: write "
            f"git clone {HOMEPAGE}, and give its folder."
        )
    places = [root / "dataset", root]
    place = next((p for p in places if p.is_dir() and any(_has(p, m) for m in MEMBERS)), None)
    folders = sorted(path.name for path in (place or root).iterdir() if path.is_dir())
    if place is None:
        found = ", ".join(folders[:8]) or "no folders"
        parent = " Did you mean its parent?" if root.name in MEMBERS else ""
        raise AuditError(
            f"{root} has none of the benchmark's {len(MEMBERS)} subjects. Found {found}; expected "
            f"dataset/backpack_dog/00.jpg and so on, as in {HOMEPAGE}.{parent}"
        )
    present = tuple(member for member in MEMBERS.values() if _has(place, member.name))
    missing = tuple(member for member in MEMBERS.values() if member not in present)
    unknown = tuple(n for n in folders if n not in MEMBERS and not n.startswith("."))
    return Checkout(place, present, missing, unknown)


def chosen(checkout: Checkout, names: tuple[str, ...]) -> tuple[Member, ...]:
    """The subjects that `names` asks for, in their order; all that are present for ().

    Raises:
      ValueError: a name is no subject of the benchmark, or the checkout lacks it.
    """
    known = {member.name: member for member in checkout.present}
    wrong = []
    for name in names:
        if name not in MEMBERS:
            near = difflib.get_close_matches(name, MEMBERS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            wrong.append(f"{name!r} is no subject of the benchmark.{hint}")
        elif name not in known:
            wrong.append(f"{name!r} is not in {checkout.folder}.")
    if wrong:
        raise ValueError(f"{' '.join(wrong)} There are: {', '.join(known)}.")
    return tuple(known[name] for name in dict.fromkeys(names)) or checkout.present


def _has(place: Path, name: str) -> bool:
    return (place / name).is_dir() and any((place / name).iterdir())
