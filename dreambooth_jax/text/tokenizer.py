"""From prompts to token ids: the one function that training, prior and sampling share."""

import copy
import dataclasses
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

# T5 reads longer texts, but DeepFloyd IF was trained with 77 tokens, and CLIP has 77 positions.
MAX_LENGTH = 77

# Any one of these sets of files holds a vocabulary; tokenizer_config.json names the class.
_VOCABULARIES = (("tokenizer.json",), ("spiece.model",), ("vocab.json", "merges.txt"))

# What DeepFloyd IF's caption cleaning deletes although it is made of letters: names of image
# formats, even as the beginning of a longer word, words of advertisements, and their company.
_FORMATS = ("png", "jpg", "jpeg", "bmp", "webp", "eps", "pdf", "apk")
_ADVERTISING = ("shipping", "download")
_DELETED = (
    r"<[^>]*>?",  # a tag, or what may be read as one
    r"\bclick\s(for|on)\s\w+",
    rf"(worldwide\s+)?(free\s+)?({'|'.join(_ADVERTISING)})(\sfree)?",
    rf"\S+\.({'|'.join(_FORMATS)}|mp4)",  # a file name
    rf"\b({'|'.join(_FORMATS)})(\simages?)?",
)


def normalize(text: str) -> str:
    """`text` in lower case, without white space at either end.

    DeepFloyd IF's pipelines do the same to every prompt before they tokenise it, so an exported
    model sees there what it was trained on. Their caption cleaning (`clean_caption`) is left
    out: it rewrites prompts. Identifiers must outlive it all the same, see `survives_cleaning`.
    """
    return text.lower().strip()


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of `transformers` (T5 or CLIP) that fills every prompt up to `max_length` ids."""

    hf: Any
    max_length: int = MAX_LENGTH
    # Words that are new tokens of their own (`with_word`), and these tokens.
    words: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def new_ids(self) -> tuple[int, ...]:
        """The new tokens of all words."""
        return tuple(i for ids in self.words.values() for i in ids)

    def with_word(self, word: str, *, count: int) -> "Tokenizer":
        """The same tokenizer, to which `word` is `count` new tokens: "<zib>", "<zib>_1", ….

        Raises ValueError when the vocabulary has one of them, or when they change what stands
        beside them.
        """
        from transformers import AddedToken

        names = [word, *(f"{word}_{i}" for i in range(1, count))]
        hf = copy.deepcopy(self.hf)
        # The space before the word is the word's own: "a" keeps its ids, " dog" its own as well.
        made = hf.add_tokens([AddedToken(name, lstrip=True, normalized=False) for name in names])
        new_ids = tuple(hf.convert_tokens_to_ids(names))
        extended = dataclasses.replace(self, hf=hf, words={**self.words, word: new_ids})
        expected = (*self.ids("a"), *new_ids, *self.ids("dog"))
        if made != count or extended.ids(f"a {word} dog") != expected:
            raise ValueError(
                f"{word!r} cannot be a new token of this tokenizer: found "
                f"{extended.pieces(f'a {word} dog')} for 'a {word} dog'. Write another "
                "subject.identifier, such as '<zib>'."
            )
        return extended

    def _spelled(self, text: str) -> str:
        """`text` normalized, with all new tokens of each word where it stands."""
        text = normalize(text)
        for word, ids in self.words.items():
            names = [word, *(f"{word}_{i}" for i in range(1, len(ids)))]
            text = re.sub(rf"{re.escape(word)}(?!_\d)", " ".join(names), text)
        return text

    def encode(
        self, prompts: Sequence[str], *, keep: str | Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Token ids and attention mask of P prompts, int32 [P, L] each, with end mark and padding.

        Longer prompts are cut, with a warning in the log. Raises ValueError when the word `keep`
        (the identifier, or several) stands in a prompt and the cut takes it away.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts is the text {prompts!r}; write a list: [{prompts!r}]")
        texts = [self._spelled(prompt) for prompt in prompts]
        for text in texts:
            length = self._length(text)
            if length <= self.max_length:
                continue
            for word in (keep,) if isinstance(keep, str) else keep:
                found = _word(word).search(text)
                needed = self._length(text[: found.end()]) if found else 0
                if needed > self.max_length:
                    raise ValueError(
                        f"the prompt {text!r} is {length} tokens long; {self.max_length} are kept, "
                        f"and the identifier {word!r} ends only at token {needed}, end mark "
                        f"included. Move {word!r} nearer to the beginning or shorten the prompt."
                    )
            logging.warning("prompt cut from %d to %d tokens: %r", length, self.max_length, text)
        shape = (len(texts), self.max_length)
        if not texts:
            return {"ids": np.zeros(shape, np.int32), "mask": np.zeros(shape, np.int32)}
        encoded = self.hf(
            texts,
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
        )
        ids = np.asarray(encoded["input_ids"], np.int32).reshape(shape)
        mask = np.asarray(encoded["attention_mask"], np.int32).reshape(shape)
        return {"ids": ids, "mask": mask}

    @property
    def vocab_size(self) -> int:
        """The number of ids, special and extra ones included: 32,100 for T5, 49,408 for CLIP."""
        return len(self.hf)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text: padding, end, unknown, sentinels."""
        return frozenset(self.hf.all_special_ids)

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids of the normalized text alone, nothing added and nothing cut."""
        return tuple(
            self.hf(self._spelled(text), add_special_tokens=False, verbose=False)["input_ids"]
        )

    def pieces(self, text: str) -> tuple[str, ...]:
        """The pieces behind `ids(text)`, word marks included: ("▁dog", "s")."""
        return tuple(self.hf.convert_ids_to_tokens(list(self.ids(text))))

    def piece(self, token_id: int) -> str:
        """The vocabulary's entry, word mark included."""
        return self.hf.convert_ids_to_tokens(token_id)

    def is_word_start(self, token_id: int) -> bool:
        """Whether the piece can begin a word: marked "▁" (T5), or a whole word "…</w>" (CLIP)."""
        piece = self.piece(token_id)
        return piece.startswith("▁") or piece.endswith("</w>")

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids spell, without special ids and outer white space."""
        return self.hf.decode(list(ids), skip_special_tokens=True).strip()

    def _length(self, text: str) -> int:
        return len(self.hf(text, add_special_tokens=True, verbose=False)["input_ids"])


def load(folder: str | os.PathLike[str], *, max_length: int = MAX_LENGTH) -> Tokenizer:
    """The tokenizer in a local folder, such as `base/tokenizer` of a diffusers-format model.

    Raises FileNotFoundError when the folder or one of its files is missing, ValueError when
    `transformers` cannot read it or it has no padding id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no tokenizer folder {folder}: expected a folder with {_wanted()}")
    names = {path.name for path in folder.iterdir()}
    if "tokenizer_config.json" not in names or not any(names.issuperset(v) for v in _VOCABULARIES):
        hint = f" Did you mean {folder / 'tokenizer'}?" if "tokenizer" in names else ""
        raise FileNotFoundError(
            f"tokenizer folder {folder} holds {', '.join(sorted(names)) or 'no files'}; "
            f"expected {_wanted()}.{hint}"
        )
    try:
        hf = _class_named_in(folder).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # it raises whatever its parsers raise
        raise ValueError(
            f"transformers cannot read the tokenizer in {folder}: {error}. Expected {_wanted()}, "
            "all of one tokenizer; copy the folder again."
        ) from error
    if hf.pad_token_id is None:
        raise ValueError(
            f"the tokenizer in {folder} has no padding token; "
            'add a line such as "pad_token": "<pad>" to its tokenizer_config.json'
        )
    return Tokenizer(hf, max_length)


def _class_named_in(folder: Path) -> Any:
    """The class of a folder's tokenizer; `transformers` takes seconds to import, so only here.

    Asked by name it stays at that. `AutoTokenizer` would give the same class, but it imports the
    whole of PyTorch first, where that is installed.
    """
    # That there is no PyTorch for its models is no news to anybody here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    named = json.loads((folder / "tokenizer_config.json").read_text()).get("tokenizer_class") or ""
    if named.removesuffix("Fast") in ("T5Tokenizer", "CLIPTokenizer"):
        return getattr(transformers, named.removesuffix("Fast"))
    return transformers.AutoTokenizer


def survives_cleaning(prompt: str, identifier: str) -> bool:
    """Whether `identifier` is sure to stand in `prompt` after DeepFloyd IF's `clean_caption`.

    Only words of lower-case letters do: cleaning deletes brackets, @names, #numbers, words of
    letters and digits, CJK characters, tags, names of image formats, "click on …" and more, and
    it is the default when others use an exported IF model.
    """
    letters = re.fullmatch(r"[^\W\d_]+", identifier) is not None
    if not letters or identifier != unicodedata.normalize("NFKC", identifier.lower()):
        return False
    if any("\u31c0" <= letter <= "\u9fff" for letter in identifier):
        return False
    if identifier.startswith(_FORMATS) or any(word in identifier for word in _ADVERTISING):
        return False
    text = re.sub("|".join(_DELETED), " ", prompt.lower())
    # As a word of its own: "zib", "(zib)," and "zib's", not "@zib", "zib.com" or "zib-1".
    alone = rf"(?<!\S)[\"'(]?{re.escape(identifier)}(?:'s)?[.,;:!?\"')]*(?!\S)"
    return re.search(alone, text) is not None


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(normalize(word))}(?!\w)")


def _wanted() -> str:
    sets = " or ".join(" and ".join(names) for names in _VOCABULARIES)
    return f"tokenizer_config.json and ({sets})"
