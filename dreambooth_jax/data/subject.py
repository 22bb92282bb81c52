"""The subject: its photos at the sizes of the stages, and the two prompts that name it."""

import dataclasses
import os
from collections.abc import Sequence

from dreambooth_jax.data.annotations import NOTHING, Wanted
from dreambooth_jax.data.audit import Audit, audit
from dreambooth_jax.data.colour import RGB, WHITE
from dreambooth_jax.data.images import Size, sides
from dreambooth_jax.data.photos import Cuts, Photos

# Written with a vowel, spoken with a consonant; and the other way round.
_SPOKEN_CONSONANT = (
    "eu", "ewe", "once", "one", "ufo", "uk", "uni", "usa", "usb", "use", "usu", "uten", "uv",
)  # fmt: skip
_SPOKEN_VOWEL = ("heir", "honest", "honor", "honour", "hour")
_UN_PREFIX = ("unid", "unim", "unin")  # unidentified, unimpressed, uninvited: "un" + a vowel


@dataclasses.dataclass(frozen=True)
class Words:
    """Identifier and class noun of a subject, and the two prompts that name it and its class."""

    identifier: str
    class_noun: str
    instance_prompt: str
    class_prompt: str

    @classmethod
    def of(cls, *, identifier: str, class_noun: str) -> "Words":
        """The words with the prompts that follow from them (`prompts`)."""
        return cls(identifier, class_noun, *prompts(identifier=identifier, class_noun=class_noun))

    @property
    def in_braces(self) -> dict[str, str]:
        """Values of the names in braces in captions and in templates of prompts."""
        return {
            "subject": f"{self.identifier} {self.class_noun}",
            "identifier": self.identifier,
            "class_noun": self.class_noun,
            "instance_prompt": self.instance_prompt,
            "class_prompt": self.class_prompt,
        }


@dataclasses.dataclass(frozen=True)
class Subject(Photos, Words):
    """A subject's photos, and what it is called."""


def read(
    folder: str | os.PathLike[str],
    *,
    class_noun: str,
    identifier: str,
    sizes: Sequence[int | Size],
    crops: int = 1,
    seed: int = 0,
    strict: bool = False,
    max_photos: int | None = None,
    background: RGB = WHITE,
    wanted: Wanted = NOTHING,
) -> Subject:
    """The photos of `folder` cut at each of `sizes` from the original, and the prompts for them.

    AuditError as `audit`; ValueError for words or numbers that make no sense.
    """
    words = Words.of(identifier=identifier, class_noun=class_noun)
    if not sizes:
        raise ValueError(f"sizes is {sizes!r}; expected one or more sides in pixels, such as [64]")
    cuts = Cuts(sizes, crops=crops, seed=seed, crop=wanted.crop, max_photos=max_photos)
    report = audit(
        folder,
        size=max(map(sides, sizes)),
        strict=strict,
        background=background,
        wanted=wanted,
        take=cuts.add,
    )
    return of_audit(report, cuts, words)


def of_audit(report: Audit, cuts: Cuts, words: Words) -> Subject:
    """The subject of photos that are already audited, and were cut in this."""
    found = cuts.photos(report, prompt=words.instance_prompt, words=words.in_braces)
    return Subject(**vars(words), **vars(found))


def prompts(*, identifier: str, class_noun: str) -> tuple[str, str]:
    """Instance and class prompt, such as ("a zib owl", "an owl") (Ruiz et al. 2022, §3.2)."""
    for name, words in (("identifier", identifier), ("class_noun", class_noun)):
        if not words or words != " ".join(words.split()):
            raise ValueError(
                f"{name} is {words!r}; expected words with single spaces between them, such as "
                + ("'zib'" if name == "identifier" else "'dog' or 'stuffed animal'")
            )
        if any(mark in words for mark in "/\\") or not words.isprintable() or words.startswith("."):
            raise ValueError(
                f"{name} is {words!r}, which cannot be part of a file's name; write it without "
                "slashes, control characters and a dot in front"
            )
        first, _, rest = words.partition(" ")
        if rest and first.lower() in ("a", "an", "the"):
            raise ValueError(
                f"{name} is {words!r}; the prompts add the article themselves: write {rest!r}"
            )
    instance = f"{identifier} {class_noun}"
    return f"{article(instance)} {instance}", f"{article(class_noun)} {class_noun}"


def article(phrase: str) -> str:
    """The indefinite article before `phrase`, "a" or "an", by how English speaks its first word."""
    word = phrase.lower()
    if word.startswith(_SPOKEN_VOWEL):
        return "an"
    if word.startswith(_SPOKEN_CONSONANT) and not word.startswith(_UN_PREFIX):
        return "a"
    return "an" if word[:1] in set("aeiou") else "a"
