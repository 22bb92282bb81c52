"""What the embedded base knows: nouns with their cut-outs, places, colours, and the captions."""

from __future__ import annotations

import dataclasses

# noun -> cut-outs: "f:" Fluent 3D, "n:" Noto, then the code points. `_both` is the usual case.


def _both(*points: str) -> list[str]:
    return [f"{look}:{point}" for point in points for look in "fn"]


NOUNS: dict[str, list[str]] = {
    "bird": [
        *_both("1f426", "1f985", "1f426-200d-2b1b", "1fabf"),
        *("f:1f54a", "n:1f424", "f:1f9a4"),
    ],
    "owl": _both("1f989"),
    "duck": _both("1f986"),
    "penguin": _both("1f427"),
    "flamingo": _both("1f9a9"),
    "fox": _both("1f98a"),
    "dog": _both("1f436"),
    "cat": _both("1f431"),
    "lion": _both("1f981"),
    "tiger": _both("1f405"),
    "pig": _both("1f437"),
    "monkey": _both("1f435"),
    "panda": _both("1f43c"),
    "koala": _both("1f428"),
    "elephant": _both("1f418"),
    "cow": _both("1f404"),
    "rabbit": _both("1f430"),
    "frog": _both("1f438"),
    "turtle": _both("1f422"),
    "whale": _both("1f433"),
    "octopus": _both("1f419"),
    "crab": _both("1f980"),
    "butterfly": _both("1f98b"),
    "ladybug": _both("1f41e"),
    "apple": _both("1f34e"),
    "banana": _both("1f34c"),
    "watermelon": _both("1f349"),
    "grapes": _both("1f347"),
    "strawberry": _both("1f353"),
    "pineapple": _both("1f34d"),
    "carrot": _both("1f955"),
    "broccoli": _both("1f966"),
    "mushroom": _both("1f344"),
    "pumpkin": _both("1f383"),
    "hamburger": _both("1f354"),
    "donut": _both("1f369"),
    "cupcake": _both("1f9c1"),
    "car": ["f:1f697", "n:1f697", "n:1f699"],
    "tractor": _both("1f69c"),
    "train": _both("1f682"),
    "airplane": _both("2708"),
    "rocket": _both("1f680"),
    "house": _both("1f3e0"),
    "tree": _both("1f333"),
    "cactus": _both("1f335"),
    "sunflower": _both("1f33b"),
    "snowman": _both("2603"),
    "balloon": _both("1f388"),
    "teapot": _both("1fad6"),
    "umbrella": _both("2602"),
    "guitar": _both("1f3b8"),
    "robot": _both("1f916"),
    "star": _both("2b50"),
    "heart": _both("2764"),
    "dress": _both("1f457"),
    "basketball": _both("1f3c0"),
}
PLURAL = {"grapes"}
WEIGHT = {"bird": 3.0}  # the class of the default subject: many looks, so it is shown more often
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

RECOLOURED = ("car", "balloon", "teapot", "umbrella", "dress", "heart", "star", "guitar")
COLOURS = {
    "red": (214, 38, 40),
    "orange": (243, 132, 28),
    "yellow": (245, 208, 44),
    "green": (58, 164, 66),
    "blue": (42, 98, 214),
    "purple": (128, 58, 186),
    "pink": (240, 120, 178),
}
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
    "in the studio": Panorama("studio", 0.5, yaw=(195.0, 300.0), pitch=(-2.0, 8.0)),
    "in the mall": Panorama("esplanade", 1.0, pitch=(-4.0, 12.0)),
    "in the workshop": Panorama("workshop", 1.0),
    "on the bridge": Panorama("bridge", 1.0, pitch=(-8.0, 6.0)),
}
SUBJECT_PLACES = ("in the forest", "in the city", "in the park", "in the workshop", "by the sea")
UNSEEN_PLACES = ("at night", "at sunset", "in the desert", "in the sky")  # never for the subject


def article(words: str) -> str:
    """Return `words` with "a" or "an" before it, by its first letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def noun_phrase(noun: str, colour: str = "") -> str:
    """Return "a fox", "an orange car"; nouns in `PLURAL` take no article."""
    words = f"{colour} {noun}".strip()
    return words if noun in PLURAL else article(words)


def place_phrases() -> list[str]:
    """Return every place phrase: the panoramas', then the plain backgrounds'."""
    return [*PLACES, *(f"on {article(name)} background" for name in BACKGROUNDS)]


def all_captions() -> list[str]:
    """Return every caption that `Composites.render` can give, sorted."""
    captions = set()
    for noun in NOUNS:
        for colour in ("", *(COLOURS if noun in RECOLOURED else ())):
            phrase = noun_phrase(noun, colour)
            for place in ("", *place_phrases()):
                captions.add(f"{phrase} {place}".strip())
                captions.add(f"a photo of {phrase} {place}".strip())
    return sorted(captions)
