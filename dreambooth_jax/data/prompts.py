"""Prompt sets by name: the applications of Ruiz et al. 2022, section 4.4, and its benchmark's.

The templates of applications are the paper's where it gives one; what stands in their brackets is
chosen here, but for examples that it names (Michelangelo, a transparent teapot, the Eiffel Tower, a
police outfit). The 25 prompts for objects and the 25 for live subjects are those of the published
data set (github.com/google/dreambooth, CC BY 4.0), word for word.
`{subject}` becomes "zib bird"; `{identifier}` and `{class_noun}` are its parts.
"""

import re
from collections.abc import Iterable

from dreambooth_jax.data.subject import Words, article

_PLACES = (  # of every subject
    "a {subject} in the jungle",
    "a {subject} in the snow",
    "a {subject} on the beach",
    "a {subject} on a cobblestone street",
    "a {subject} on top of pink fabric",
    "a {subject} on top of a wooden floor",
    "a {subject} with a city in the background",
    "a {subject} with a mountain in the background",
    "a {subject} with a blue house in the background",
    "a {subject} on top of a purple rug in a forest",
)
_PLACES_OF_OBJECTS = (
    "a {subject} with a wheat field in the background",
    "a {subject} with a tree and autumn leaves in the background",
    "a {subject} with the Eiffel Tower in the background",
    "a {subject} floating on top of water",
    "a {subject} floating in an ocean of milk",
    "a {subject} on top of green grass with sunflowers around it",
    "a {subject} on top of a mirror",
    "a {subject} on top of the sidewalk in a crowded street",
    "a {subject} on top of a dirt road",
    "a {subject} on top of a white rug",
)
_OUTFITS = (
    "a {subject} wearing a red hat",
    "a {subject} wearing a santa hat",
    "a {subject} wearing a rainbow scarf",
    "a {subject} wearing a black top hat and a monocle",
    "a {subject} in a chef outfit",
    "a {subject} in a firefighter outfit",
    "a {subject} in a police outfit",
    "a {subject} wearing pink glasses",
    "a {subject} wearing a yellow shirt",
    "a {subject} in a purple wizard outfit",
)
_PROPERTIES = tuple(
    f"a {word} {{subject}}" for word in ("red", "purple", "shiny", "wet", "cube shaped")
)

PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "recontextualization": (
        "a {subject} in the jungle",
        "a {subject} in the snow",
        "a {subject} on the beach",
        "a {subject} with the Eiffel Tower in the background",
        "a {subject} on a cobblestone street",
        "a {subject} at night",
    ),
    "art": (
        "a painting of a {subject} in the style of Vincent van Gogh",
        "a painting of a {subject} in the style of Johannes Vermeer",
        "a painting of a {subject} in the style of Leonardo da Vinci",
        "a painting of a {subject} in the style of Pierre-Auguste Renoir",
        "a statue of a {subject} in the style of Michelangelo",
        "a drawing of a {subject} in the style of Katsushika Hokusai",
    ),
    "views": (
        "a {subject} seen from the front",
        "a {subject} seen from the side",
        "a {subject} seen from the back",
        "a {subject} seen from above",
        "a {subject} seen from below",
    ),
    "colour": tuple(
        f"a {colour} {{subject}}" for colour in ("red", "green", "blue", "purple", "yellow")
    ),
    "material": (
        "a transparent {subject}",
        "a {subject} made out of stone",
        "a {subject} made out of wood",
        "a {subject} made out of gold",
    ),
    "species": tuple(
        f"a cross of a {{subject}} and a {other}"
        for other in ("bear", "panda", "koala", "lion", "hippo")
    ),
    "accessories": (
        "a {subject} wearing a police outfit",
        "a {subject} wearing a chef outfit",
        "a {subject} wearing a witch outfit",
        "a {subject} wearing a red hat",
        "a {subject} wearing a rainbow scarf",
        "a {subject} wearing sunglasses",
    ),
    "expressions": tuple(
        f"{expression} {{subject}}"
        for expression in ("a happy", "a sad", "a sleeping", "an angry", "a surprised")
    ),
    "comic": (
        "a {identifier} cartoon {class_noun}",
        'a {identifier} cartoon {class_noun} grabbing a fork and a knife saying "time to eat"',
        "a comic book page about a {identifier} cartoon {class_noun}",
    ),
    "benchmark_object": _PLACES + _PLACES_OF_OBJECTS + _PROPERTIES,
    "benchmark_live": _PLACES + _OUTFITS + _PROPERTIES,
}


def expanded(prompts: Iterable[str]) -> tuple[str, ...]:
    """The prompts, with every name of a set replaced by what is in it."""
    return tuple(line for prompt in prompts for line in PROMPT_SETS.get(prompt, (prompt,)))


def mentions(prompt: str, word: str) -> bool:
    """Returns True if a word, such as the identifier, is in the prompt, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) is not None


def is_of_class(prompt: str, words: Iterable[Words]) -> bool:
    """Returns True if the prompt names none of these subjects, only their class."""
    return not any(mentions(prompt, each.identifier) for each in words)


def without_word(prompt: str, word: str | None) -> str:
    """The prompt without a word, and the article before it right again: "a zib owl" → "an owl"."""
    if word is None:
        return prompt
    before = rf"(?:\b(?P<article>an?)\s+)?(?<!\w){re.escape(word)}(?!\w)\s*(?P<next>\S*)"

    def left(found: re.Match[str]) -> str:
        following = found["next"]
        if found["article"] is None or not following:
            return following
        return f"{article(following)} {following}"

    plain = re.sub(before, left, prompt, flags=re.IGNORECASE)
    return " ".join(plain.split())
