"""The words that the embedded base knows, and the captions that are made of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

# noun -> cut-outs: "f:" Fluent 3D, "n:" Noto, then the code points. `_both` is the usual case.


def _both(*points: str) -> list[str]:
    return [f"{look}:{point}" for point in points for look in "fn"]


NOUNS: dict[str, list[str]] = {
    "bird": [
        *_both("1f426", "1f985", "1f426-200d-2b1b", "1fabf", "1f54a"),
        *_both("1f9a4", "1f99a", "1f9a2", "1f424", "1f425"),
    ],
    "owl": _both("1f989"),
    "duck": _both("1f986"),
    "penguin": _both("1f427"),
    "dog": _both("1f436", "1f415", "1f9ae", "1f415-200d-1f9ba"),
    "cat": _both("1f431", "1f408", "1f63a", "1f638"),
    "fox": _both("1f98a"),
    "lion": _both("1f981"),
    "tiger": _both("1f42f", "1f405"),
    "pig": _both("1f437", "1f416"),
    "monkey": _both("1f435", "1f412"),
    "panda": _both("1f43c"),
    "bear": _both("1f43b", "1f43b-200d-2744-fe0f"),
    "rabbit": _both("1f430", "1f407"),
    "horse": _both("1f434", "1f40e"),
    "cow": _both("1f42e", "1f404"),
    "elephant": _both("1f418"),
    "frog": _both("1f438"),
    "fish": _both("1f41f", "1f420", "1f421"),
    "butterfly": _both("1f98b"),
    "car": _both("1f697", "1f699", "1f698"),
    "train": _both("1f682", "1f686", "1f684", "1f685"),
    "dress": _both("1f457"),
    "tree": _both("1f333", "1f332", "1f384"),
    "flower": _both("1f33b", "1f33c", "1f33a", "1f337", "1f339"),
    "house": _both("1f3e0", "1f3e1"),
    "teapot": _both("1fad6"),
    "backpack": _both("1f392"),
    "shoe": _both("1f45f", "1f45e", "1f97e"),
    "clock": _both("23f0", "1f570"),
    "apple": _both("1f34e", "1f34f"),
    "robot": _both("1f916"),
}
# How much more often a noun is shown. The class of the default subject has many looks: each of them
# is to be seen about as often as one of another noun.
WEIGHT = {"bird": 10.0}
SUBJECT = "f:1f99c"  # a parrot; no picture of a parrot is ever trained on
# Subjects that are never trained on either, for studies: name -> (cut-out, class noun).
HELD_OUT = {
    "parrot": (SUBJECT, "bird"),
    "taxi": ("f:1f695", "car"),
    "poodle": ("f:1f429", "dog"),
    "kimono": ("f:1f458", "dress"),
    "rooster": ("f:1f413", "bird"),
    "black_cat": ("f:1f408-200d-2b1b", "cat"),
    "palm": ("f:1f334", "tree"),
    "tram": ("f:1f68b", "train"),
}

# Side of a look's picture that its front points to; looks that are not here show no side.
_LEFT = """
f:1f426 n:1f426 f:1f985 n:1f426-200d-2b1b f:1fabf n:1fabf f:1f54a n:1f54a f:1f9a4 n:1f9a4 f:1f9a2
n:1f9a2 f:1f424 n:1f424 f:1f986 n:1f986 n:1f427 f:1f415 f:1f9ae n:1f9ae f:1f415-200d-1f9ba
n:1f415-200d-1f9ba f:1f408 n:1f408 f:1f405 n:1f405 f:1f416 n:1f416 f:1f407 f:1f434 n:1f434 f:1f40e
n:1f40e f:1f404 n:1f404 f:1f418 n:1f418 f:1f41f n:1f41f f:1f420 n:1f420
"""
FACING = dict.fromkeys(_LEFT.split(), "left") | {"f:1f426-200d-2b1b": "right"}


@dataclasses.dataclass(frozen=True)
class Head:
    """Position of a look's head, in sides of its square; `eyes` None: it is seen from the side."""

    x: float
    top: float
    width: float
    neck: float
    eyes: float | None = None


HEADS: dict[str, Head] = {
    "f:1f426": Head(0.32, 0.06, 0.50, 0.48),
    "n:1f426": Head(0.30, 0.12, 0.36, 0.46),
    "f:1f426-200d-2b1b": Head(0.28, 0.06, 0.30, 0.32),
    "n:1f426-200d-2b1b": Head(0.30, 0.12, 0.36, 0.46),
    "f:1fabf": Head(0.20, 0.05, 0.22, 0.26),
    "n:1fabf": Head(0.25, 0.05, 0.22, 0.24),
    "f:1f9a4": Head(0.30, 0.06, 0.30, 0.36),
    "n:1f9a4": Head(0.33, 0.05, 0.26, 0.30),
    "f:1f424": Head(0.32, 0.08, 0.46, 0.50),
    "n:1f424": Head(0.30, 0.13, 0.40, 0.48),
    "f:1f425": Head(0.50, 0.08, 0.50, 0.48, 0.27),
    "n:1f425": Head(0.50, 0.10, 0.46, 0.48, 0.27),
    "f:1f9a2": Head(0.20, 0.07, 0.24, 0.32),
    "f:1f989": Head(0.50, 0.10, 0.62, 0.50, 0.27),
    "n:1f989": Head(0.50, 0.12, 0.56, 0.50, 0.32),
    "f:1f986": Head(0.31, 0.05, 0.32, 0.40),
    "n:1f986": Head(0.38, 0.07, 0.30, 0.32),
    "f:1f427": Head(0.50, 0.06, 0.46, 0.36, 0.20),
    "n:1f427": Head(0.52, 0.05, 0.30, 0.30),
    "f:1f436": Head(0.50, 0.12, 0.62, 0.93, 0.38),
    "n:1f436": Head(0.50, 0.19, 0.58, 0.88, 0.45),
    "f:1f415": Head(0.20, 0.17, 0.26, 0.42),
    "n:1f415": Head(0.40, 0.09, 0.42, 0.54, 0.30),
    "f:1f431": Head(0.50, 0.24, 0.64, 0.94, 0.53),
    "n:1f431": Head(0.50, 0.27, 0.64, 0.90, 0.53),
    "f:1f63a": Head(0.50, 0.24, 0.64, 0.94, 0.53),
    "n:1f63a": Head(0.50, 0.27, 0.64, 0.90, 0.53),
    "f:1f98a": Head(0.50, 0.32, 0.56, 0.94, 0.60),
    "n:1f98a": Head(0.50, 0.35, 0.54, 0.92, 0.57),
    "f:1f981": Head(0.50, 0.10, 0.60, 0.94, 0.47),
    "n:1f981": Head(0.50, 0.10, 0.54, 0.90, 0.38),
    "f:1f42f": Head(0.50, 0.13, 0.62, 0.94, 0.47),
    "n:1f42f": Head(0.50, 0.12, 0.58, 0.92, 0.33),
    "f:1f437": Head(0.50, 0.13, 0.60, 0.94, 0.45),
    "n:1f437": Head(0.50, 0.20, 0.60, 0.86, 0.50),
    "f:1f435": Head(0.50, 0.16, 0.52, 0.90, 0.43),
    "n:1f435": Head(0.50, 0.20, 0.52, 0.84, 0.43),
    "f:1f43c": Head(0.50, 0.16, 0.62, 0.93, 0.47),
    "n:1f43c": Head(0.50, 0.17, 0.62, 0.90, 0.47),
    "f:1f43b": Head(0.50, 0.14, 0.62, 0.92, 0.47),
    "n:1f43b": Head(0.50, 0.15, 0.62, 0.90, 0.47),
    "f:1f43b-200d-2744-fe0f": Head(0.50, 0.14, 0.62, 0.92, 0.47),
    "n:1f43b-200d-2744-fe0f": Head(0.50, 0.21, 0.60, 0.80, 0.40),
    "f:1f430": Head(0.50, 0.44, 0.56, 0.95, 0.57),
    "n:1f430": Head(0.50, 0.47, 0.48, 0.94, 0.60),
    "f:1f42e": Head(0.50, 0.16, 0.48, 0.94, 0.43),
    "n:1f42e": Head(0.50, 0.22, 0.48, 0.90, 0.40),
    "f:1f438": Head(0.50, 0.12, 0.72, 0.88, 0.22),
    "n:1f438": Head(0.50, 0.18, 0.70, 0.84, 0.27),
    "f:1f916": Head(0.50, 0.14, 0.62, 0.92, 0.42),
    "n:1f916": Head(0.50, 0.28, 0.62, 0.90, 0.46),
}
ACCESSORIES = {"hat": "f:1f3a9", "sunglasses": "f:1f576", "scarf": "f:1f9e3"}

COLOURS = {
    "red": (214, 38, 40),
    "orange": (243, 132, 28),
    "yellow": (245, 208, 44),
    "green": (58, 164, 66),
    "blue": (42, 98, 214),
    "purple": (128, 58, 186),
    "pink": (240, 120, 178),
}
MATERIALS = ("gold", "marble", "wooden", "glass")
STYLES = {
    "pencil": "a pencil drawing of",
    "oil": "an oil painting of",
    "pixels": "pixel art of",
    "comic": "a comic of",
}
SIZES = ("small", "big")
VIEWS = {"left": "facing left", "right": "facing right", "above": "seen from above"}
BACKGROUNDS = {
    **{name: COLOURS[name] for name in ("red", "yellow", "green", "blue", "purple", "pink")},
    "white": (240, 240, 240),
    "black": (22, 22, 24),
}


@dataclasses.dataclass(frozen=True)
class Panorama:
    """A panorama of @pmndrs/assets, how to expose it and what its light does to an object."""

    name: str
    exposure: float = 1.0  # factor on the automatic exposure
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    yaw: tuple[float, float] = (0.0, 360.0)  # degrees, the part that shows what the phrase says
    pitch: tuple[float, float] = (-12.0, 2.0)  # degrees above the horizon
    shadow: float = 0.45


PLACES: dict[str, Panorama] = {
    "in the forest": Panorama("forest", 1.0, light=(0.98, 1.0, 0.94)),
    "in the city": Panorama("city", 0.85, pitch=(0.0, 8.0)),
    "in the desert": Panorama("dawn", 0.9, light=(1.0, 0.96, 1.0)),
    "at night": Panorama(
        "night", 0.12, (0.62, 0.8, 1.45), (0.72, 0.78, 0.92), pitch=(4.0, 16.0), shadow=0.3
    ),
    "in the park": Panorama("park", 1.0),
    "in the sky": Panorama("sky", 1.0, pitch=(18.0, 38.0), shadow=0.0),
    "at sunset": Panorama("sunset", 0.6, (1.5, 0.85, 0.5), (1.06, 0.92, 0.8), pitch=(-4.0, 8.0)),
    "by the sea": Panorama("venice", 0.9, yaw=(165.0, 290.0), pitch=(-8.0, 2.0)),
    "in the mall": Panorama("esplanade", 1.0, pitch=(-4.0, 12.0)),
    "in the workshop": Panorama("workshop", 1.0),
    "on the bridge": Panorama("bridge", 1.0, pitch=(-8.0, 6.0)),
}
SUBJECT_PLACES = ("in the forest", "in the city", "in the park", "in the workshop", "by the sea")
UNSEEN_PLACES = ("at night", "at sunset", "in the desert", "in the sky")  # never for the subject


def article(words: str) -> str:
    """Returns `words` with "a" or "an" before it, by its first letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def noun_phrase(noun: str, *adjectives: str) -> str:
    """Returns "a fox", "an orange car", "a small gold bird"; empty adjectives are left out."""
    return article(" ".join([*filter(None, adjectives), noun]))


@dataclasses.dataclass(frozen=True)
class Wording:
    """Words of a picture; an empty word says nothing, and the picture has the usual.

    surface: one of `COLOURS` or `MATERIALS`. style, view, accessory: keys of `STYLES`, `VIEWS` and
    `ACCESSORIES`. place: a panorama's phrase or "on a … background". photo: "a photo of".
    """

    noun: str
    surface: str = ""
    size: str = ""
    accessory: str = ""
    view: str = ""
    place: str = ""
    style: str = ""
    photo: bool = False

    @property
    def caption(self) -> str:
        """The words in their order."""
        lead = STYLES.get(self.style, "a photo of" if self.photo else "")
        worn = ""
        if self.accessory:
            plural = self.accessory.endswith("s")
            worn = f"wearing {self.accessory if plural else article(self.accessory)}"
        parts = [lead, noun_phrase(self.noun, self.size, self.surface), worn]
        parts += [VIEWS.get(self.view, ""), self.place]
        return " ".join(filter(None, parts))


def backgrounds() -> dict[str, tuple[int, int, int]]:
    """Returns the colour of every plain background by its phrase."""
    return {f"on {article(name)} background": colour for name, colour in BACKGROUNDS.items()}


def place_phrases() -> list[str]:
    """Returns every place phrase: the panoramas', then the plain backgrounds'."""
    return [*PLACES, *backgrounds()]


def _single_words() -> Iterator[dict[str, str]]:
    yield from ({"surface": word} for word in (*COLOURS, *MATERIALS))
    yield from ({"size": word} for word in SIZES)
    yield from ({"view": word} for word in VIEWS)
    yield from ({"style": word} for word in STYLES)
    yield from ({"accessory": word} for word in ACCESSORIES)


def typical_captions() -> list[str]:
    """Returns captions in which every noun meets every place and every other word once, sorted."""
    captions = set()
    for noun, photo in itertools.product(NOUNS, (False, True)):
        for place in ("", *place_phrases()):
            captions.add(Wording(noun, place=place, photo=photo).caption)
        for words in _single_words():
            captions.add(Wording(noun, **words, photo=photo).caption)
    return sorted(captions)
