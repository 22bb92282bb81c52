"""Textual inversion as files that others open: the new tokens' embeddings.

diffusers: `pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")`, of SDXL
with one file per text encoder (`learned_embeds_2.safetensors`) and its `text_encoder`, `tokenizer`.
A file of that kind holds one word: those of more subjects are in `learned_embeds-WORD.safetensors`.
A1111 and ComfyUI: of SDXL `WORD.safetensors`, with the rows of both encoders as `clip_l`, `clip_g`;
of others the first file. There its name is what stands for the subject in prompts.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import contents, weights

_BOTH = ("clip_l", "clip_g")  # CLIP ViT-L and OpenCLIP ViT-bigG


def write(rows: Mapping[str, Any], folder: Path, *, words: Sequence[str], dtype: str) -> list[Path]:
    """Writes one file per text encoder and word, read back and compared; returns their paths.

    Args:
      rows: `{"text_encoder/…/new_rows": [n,D], …}`, as many for each word, in their order.
      words: the tokens that stand for them in prompts.

    Raises:
      ValueError: a value does not fit `dtype`.
    """
    made = []
    tables = {}
    for path, leaf in rows.items():
        (end,) = re.findall(r"(?:_\d+)?$", path.partition("/")[0])[:1]  # of the second one "_2"
        table = weights.cast(np.asarray(leaf), dtype, name=path)
        tables[path.partition("/")[0]] = table
        for k, (word, own) in enumerate(zip(words, np.split(table, len(words)), strict=True)):
            name = f"-{word.strip('<>')}" if k else ""
            file = folder / f"learned_embeds{name}{end}.safetensors"
            weights.save(file, {word: own})
            weights.verify(file, {word: own})
            made.append(file)
    return [*made, *_of_two(tables, folder, words=words)]


def _of_two(tables: Mapping[str, np.ndarray], folder: Path, *, words: Sequence[str]) -> list[Path]:
    """One file per word with the rows of SDXL's two encoders, under the names of other programs."""
    if len(tables) != len(_BOTH):
        return []
    made = []
    split = [np.split(tables[part], len(words)) for part in sorted(tables)]
    parts = dict(zip(_BOTH, split, strict=True))
    for k, word in enumerate(words):
        file = folder / contents.word_file(word)
        own = {name: rows[k] for name, rows in parts.items()}
        weights.save(file, own)
        weights.verify(file, own)
        made.append(file)
    return made
