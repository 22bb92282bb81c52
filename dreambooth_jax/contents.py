"""Files of an export by their names: what is handed on to others is said here, all else is left.

An export is a model folder, or one for each stage of a cascade. Beside what it wrote, a person may
keep there whatever they like: notes, a `.env`, a `.git`. None of it is sent to a hub or put into an
archive, and no link leads out of the folder.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax import files, untrusted

INDEX = "model_index.json"
WORDS = "dreambooth.json"  # what the subjects are called, beside model_index.json
_NAMES = ("identifier", "class_noun")
CARD = "README.md"
STAGES = ("base", "upscaler")
LORA = "lora"  # folder of a stage's LoRA files
LORA_FILES = ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors")
KNOWN = {  # of a component: settings, vocabularies
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "scheduler_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
}
LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)[\w.-]*", re.IGNORECASE)
PLAIN_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_EMBEDDINGS = re.compile(r"learned_embeds(-.+)?(_\d+)?\.safetensors")
_SHOWN = 8  # names in a message


@dataclasses.dataclass(frozen=True)
class Contents:
    """Files of an export.

    files: what is handed on, by path in the folder. left: names of what is not, of folders with a
    slash. leading_out: names of links in the place of such files, to what is not handed on.
    """

    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    left: Sequence[str] = ()
    leading_out: Sequence[str] = ()

    @property
    def told(self) -> str:
        """A sentence about what is left behind, "" where nothing is."""
        if not self.left:
            return ""
        return f"Left behind, as no export writes it: {in_words(self.left)}."

    @property
    def refused(self) -> str:
        """A sentence about links that lead out, "" where there are none."""
        if not self.leading_out:
            return ""
        return (
            f"{in_words(self.leading_out)}: a link to what is not of the export; expected the file "
            "itself. Put it there, or remove the link."
        )


def in_words(names: Sequence[str]) -> str:
    """The first names, and how many more there are; none of them breaks the line."""
    shown = ", ".join(
        ascii(each)[1:-1] if not each.isprintable() else each for each in names[:_SHOWN]
    )
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def of(folder: Path) -> Contents:
    """The files of an export in `folder`; none where there is no `model_index.json`.

    Raises:
      FileError: model_index.json or dreambooth.json is damaged.
    """
    places = dict(_places(folder))
    found: dict[str, Path] = {}
    left: list[str] = []
    leading_out: list[str] = []
    for place, wanted in places.items():
        here = folder / place
        if not here.is_dir() or place.startswith(tuple(leading_out)):
            continue
        if not is_inside(here, folder):
            leading_out.append(f"{place}/")
            continue
        for path in sorted(here.iterdir(), key=lambda each: each.name):
            name = f"{place}/{path.name}" if place else path.name
            if path.is_dir():
                left += [] if name in places else [f"{name}/"]
            elif wanted(path.name) and path.is_file():
                found[name] = path
            else:
                left.append(name)
    root = folder if files.is_remote(folder) else folder.resolve()
    known = {root / name for name in found}
    for name, path in list(found.items()):
        if not files.is_remote(path) and path.resolve() not in known:
            leading_out.append(name)
            del found[name]
    return Contents(found, left, leading_out)


def _places(folder: Path) -> Iterator[tuple[str, Callable[[str], bool]]]:
    """The folders of an export by their path in it, each with the test of a file's name there."""
    stages = [""] if (folder / INDEX).is_file() else STAGES
    stages = [name for name in stages if (folder / name / INDEX).is_file()]
    if stages and stages != [""]:
        yield "", _is_about
    for stage in stages:
        start = f"{stage}/" if stage else ""
        own = folder / stage
        yield stage, functools.partial(_is_of_stage, _beside(own))
        for part in components(own):
            yield f"{start}{part}", is_of_component
        yield f"{start}{LORA}", lambda name: name == CARD or name in LORA_FILES


def components(folder: Path) -> list[str]:
    """The components that a folder's `model_index.json` names; no name of another kind."""
    names = sorted(untrusted.json_object(folder / INDEX))
    return [each for each in names if each.isidentifier() and not each.startswith("_")]


def is_of_component(name: str) -> bool:
    """Returns True for the name of a component's settings, vocabulary or plain weights."""
    return name in KNOWN or PLAIN_WEIGHTS.fullmatch(name) is not None


def _is_about(name: str) -> bool:
    return name == CARD or LICENCE.fullmatch(name) is not None


def _is_of_stage(names: Container[str], name: str) -> bool:
    return _is_about(name) or name in names or _EMBEDDINGS.fullmatch(name) is not None


def _beside(folder: Path) -> set[str]:
    """Names beside a stage's components: its records, and the files called after its subjects."""
    file = folder / WORDS
    with untrusted.values(file):
        pairs = [(str(each["identifier"]), str(each["class_noun"])) for each in words_in(folder)]
    first = [(word.partition(" ")[0], noun) for word, noun in pairs]  # of a word in several tokens
    names = {INDEX, WORDS, *(word_file(word) for word, _ in first)}
    return names | ({single_file(pairs), single_file(first)} if pairs else set())


def word_file(word: str) -> str:
    """The name of the file with the embeddings of a new word for both encoders of SDXL."""
    return f"{word.strip('<>')}.safetensors"


def single_file(words: Sequence[tuple[str, str]]) -> str:
    """The name of the file with the whole model, after identifiers and class nouns."""
    called = "_".join(f"{word}_{noun}" for word, noun in words)
    return f"{called}.safetensors".replace(" ", "_")


def words_in(folder: Path) -> list[dict[str, Any]]:
    """Returns the names of an exported folder's subjects (`identifier`, `class_noun`), if any.

    Raises:
      FileError: the file is damaged, or of another shape.
    """
    file = folder / WORDS
    if not file.is_file():
        return []
    first = untrusted.json_object(file)
    others = first.get("others", [])
    each = [first, *(others if isinstance(others, list) else [others])]
    if not all(isinstance(one, dict) and all(map(_is_name, map(one.get, _NAMES))) for one in each):
        raise untrusted.FileError(
            f"{file} does not tell what the subjects are called; expected identifier and "
            f"class_noun of each, in text. {untrusted.AGAIN}"
        )
    return [{name: one[name] for name in _NAMES} for one in each]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value == " ".join(value.split())


def is_inside(path: Path, folder: Path) -> bool:
    """Returns True unless a link leads out of the folder."""
    return files.is_remote(path) or path.resolve().is_relative_to(folder.resolve())
