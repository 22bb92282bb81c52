"""Tokenizer from prompts to token ids, shared by training, class images and sampling."""

import copy
import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dreambooth_jax import untrusted

# T5 reads longer texts, but DeepFloyd IF was trained with 77 tokens, and CLIP has 77 positions.
MAX_LENGTH = 77

# Any one of these sets of files holds a vocabulary; tokenizer_config.json names the class.
_VOCABULARIES = (("tokenizer.json",), ("spiece.model",), ("vocab.json", "merges.txt"))

# Classes of transformers by which tokenizers are read.
TOKENIZERS = ("T5Tokenizer", "CLIPTokenizer", "Qwen2Tokenizer")
# What they read, and the largest of it: 64 MB hold ten times the words of any of these models.
_READ = frozenset(
    {name for names in _VOCABULARIES for name in names}
    | {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
)
_LARGEST = 64 * untrusted.MB

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


@dataclasses.dataclass(frozen=True)
class Form:
    """Spelling of prompts in a family of models.

    Args:
      cased: prompts stay as they are written, instead of `normalize`.
      before, after: text around each prompt. A prompt that leaves no room for it is an error.
      multiple: prompts encoded together are padded to the next multiple of it after the longest,
        at most to the tokenizer's `max_length`; None: all the way.
    """

    cased: bool = False
    before: str = ""
    after: str = ""
    multiple: int | None = None

    def text(self, prompt: str) -> str:
        """Returns the prompt as it stands between `before` and `after`."""
        return prompt if self.cased else normalize(prompt)

    def framed(self, text: str) -> str:
        """Returns the text with what stands around it."""
        return f"{self.before}{text}{self.after}"


LOWER = Form()
CASED = Form(cased=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of `transformers` that fills every prompt up to `max_length` ids."""

    hf: Any
    max_length: int = MAX_LENGTH
    form: Form = LOWER
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
        expected = (*self.ids("a"), *new_ids, *self.ids(" dog"))
        if made != count or extended.ids(f"a {word} dog") != expected:
            raise ValueError(
                f"{word!r} cannot be a new token of this tokenizer: found "
                f"{extended.pieces(f'a {word} dog')} for 'a {word} dog'. Write another "
                "subject.identifier, such as '<zib>'."
            )
        return extended

    @functools.cached_property
    def _capitals(self) -> re.Pattern[str] | None:
        """Tokens added to the vocabulary whose spelling `normalize` would change, if any."""
        special = set(self.hf.all_special_tokens)
        added = [x for x in self.hf.get_added_vocab() if x not in special and x != normalize(x)]
        longest = sorted(added, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest))})") if added else None

    def formed(self, text: str) -> str:
        """Returns `text` in its form; added tokens, such as "<Cat>", stay as they are spelled."""
        if self.form.cased or self._capitals is None:
            return self.form.text(text)
        parts = self._capitals.split(text)  # every second one is such a token
        return "".join(x if k % 2 else x.lower() for k, x in enumerate(parts)).strip()

    def spelled(self, text: str) -> str:
        """Returns `text` in its form, with all new tokens of each word where it stands."""
        text = self.formed(text)
        for word, ids in self.words.items():
            names = [word, *(f"{word}_{i}" for i in range(1, len(ids)))]
            text = re.sub(rf"{re.escape(word)}(?!_\d)", " ".join(names), text)
        return text

    def check(self, prompt: str, *, keep: str | Sequence[str] = ()) -> None:
        """Raises ValueError for a prompt that `encode` refuses."""
        self._fitted(self._named(self.spelled(prompt), keep), keep)

    def _named(self, text: str, keep: str | Sequence[str]) -> str:
        """The text with each word of `keep` in its own spelling, where it stands in another case.

        "a Zib bird" is "a zib bird", as it is where all of a prompt is lower-cased.
        """
        for word in _several(keep) if self.form.cased else ():
            parts = _word(word, re.IGNORECASE).split(text)
            text = word.join(parts)
        return text

    def _fitted(self, text: str, keep: str | Sequence[str]) -> int:
        """The length of a text in tokens; raises ValueError where it may not be cut."""
        length = self.length(text)
        if length <= self.max_length:
            return length
        if self.form.after:
            raise ValueError(
                f"the prompt {text!r} is {length} tokens long, those around it included; "
                f"{self.max_length} are read. Shorten the prompt."
            )
        for word in _several(keep):
            found = _word(self.formed(word)).search(text)
            needed = self.length(text[: found.end()]) if found else 0
            if needed > self.max_length:
                raise ValueError(
                    f"the prompt {text!r} is {length} tokens long; {self.max_length} are kept, "
                    f"and the identifier {word!r} ends only at token {needed}, end mark "
                    f"included. Move {word!r} nearer to the beginning or shorten the prompt."
                )
        return length

    def encode(
        self, prompts: Sequence[str], *, keep: str | Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Token ids and attention mask of P prompts, int32 [P, L] each, with end mark and padding.

        The words `keep` (the identifier, or several) are read as they are spelled there, in
        whatever case they stand. Longer prompts are cut, with a warning in the log. Raises
        ValueError when such a word stands in a prompt and the cut takes it away, or when the cut
        would take away what the form has after the prompt.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts is the text {prompts!r}; write a list: [{prompts!r}]")
        texts = [self._named(self.spelled(prompt), keep) for prompt in prompts]
        for text in texts:
            if (length := self._fitted(text, keep)) > self.max_length:
                logging.warning(
                    "prompt cut from %d to %d tokens: %r", length, self.max_length, text
                )
        shape = (len(texts), self.max_length)
        if not texts:
            return {"ids": np.zeros(shape, np.int32), "mask": np.zeros(shape, np.int32)}
        encoded = self.hf(
            [self.form.framed(text) for text in texts],
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
        )
        ids = np.asarray(encoded["input_ids"], np.int32).reshape(shape)
        mask = np.asarray(encoded["attention_mask"], np.int32).reshape(shape)
        if self.form.multiple is not None:
            kept = -(-int(mask.sum(-1).max()) // self.form.multiple) * self.form.multiple
            ids, mask = ids[:, :kept], mask[:, :kept]
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
        """The ids of the text alone, nothing added and nothing cut."""
        return tuple(
            self.hf(self.spelled(text), add_special_tokens=False, verbose=False)["input_ids"]
        )

    def pieces(self, text: str) -> tuple[str, ...]:
        """The pieces behind `ids(text)`, word marks included: ("▁dog", "s")."""
        return tuple(self.hf.convert_ids_to_tokens(list(self.ids(text))))

    def piece(self, token_id: int) -> str:
        """The vocabulary's entry, word mark included."""
        return self.hf.convert_ids_to_tokens(token_id)

    def is_word_start(self, token_id: int) -> bool:
        """Returns True for a piece that begins a word: "▁…" (T5), "Ġ…" (Qwen), "…</w>" (CLIP)."""
        piece = self.piece(token_id)
        return piece.startswith(("▁", "Ġ")) or piece.endswith("</w>")

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids spell, without special ids and outer white space."""
        return self.hf.decode(list(ids), skip_special_tokens=True).strip()

    def length(self, text: str) -> int:
        """The number of tokens of a text in its frame, marks included, before anything is cut."""
        framed = self.form.framed(text)
        return len(self.hf(framed, add_special_tokens=True, verbose=False)["input_ids"])


def load(
    folder: str | os.PathLike[str], *, max_length: int = MAX_LENGTH, form: Form = LOWER
) -> Tokenizer:
    """The tokenizer in a local folder, such as `base/tokenizer` of a diffusers-format model.

    Raises FileNotFoundError when the folder or one of its files is missing, FileError when
    `transformers` cannot read it, ValueError when it has no padding id.
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
    for name in names & _READ:
        untrusted.regular(folder / name, limit=_LARGEST)
    kind = _class_named_in(folder)
    whole = f"a tokenizer ({_wanted()}, all of one tokenizer)"
    with untrusted.reading(folder, whole):
        # The folder's own code is never run, and no question is asked on the terminal.
        hf = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if hf.pad_token_id is None:
        raise ValueError(
            f"the tokenizer in {folder} has no padding token; "
            'add a line such as "pad_token": "<pad>" to its tokenizer_config.json'
        )
    hf.padding_side = "right"
    return Tokenizer(hf, max_length, form)


def _class_named_in(folder: Path) -> Any:
    """The class of a folder's tokenizer; `transformers` takes seconds to import, so only here.

    By name, never by `AutoTokenizer`: that imports the whole of PyTorch where it is installed, and
    where the files name code of their own, it asks its user whether to run it.

    Raises:
      FileError: the files name another class than those of the supported models.
    """
    file = folder / "tokenizer_config.json"
    named = untrusted.json_object(file, limit=_LARGEST).get("tokenizer_class")
    plain = named.removesuffix("Fast") if isinstance(named, str) else named
    if plain is None:  # older files leave it out: only T5 has a sentencepiece model
        plain = "CLIPTokenizer" if (folder / "merges.txt").is_file() else "T5Tokenizer"
    if plain not in TOKENIZERS:
        raise untrusted.FileError(
            f"{file}: tokenizer_class = {named!r} is not supported; expected "
            f"{' or '.join(TOKENIZERS)}. Code that comes with a model is never run."
        )
    # That there is no PyTorch for its models is no news to anybody here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return getattr(transformers, plain)


def survives_cleaning(prompt: str, identifier: str) -> bool:
    """Returns True if `identifier` is still in `prompt` after DeepFloyd IF's `clean_caption`.

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


def _several(words: str | Sequence[str]) -> Sequence[str]:
    return (words,) if isinstance(words, str) else words


def _word(word: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", flags)


def _wanted() -> str:
    sets = " or ".join(" and ".join(names) for names in _VOCABULARIES)
    return f"tokenizer_config.json and ({sets})"
