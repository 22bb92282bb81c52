"""Textual inversion as files that others open: the new tokens' embeddings.

diffusers: `pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")`, of SDXL
with one file per text encoder (`learned_embeds_2.safetensors`) and its `text_encoder`, `tokenizer`.
A file of that kind holds one word: those of more subjects are in `learned_embeds-WORD.safetensors`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import weights


def write(rows: Mapping[str, Any], folder: Path, *, words: Sequence[str], dtype: str) -> list[Path]:
    """Writes one file per text encoder and word, read back and compared; returns their paths.

    Args:
      rows: `{"text_encoder/…/new_rows": [n,D], …}`, as many for each word, in their order.
      words: the tokens that stand for them in prompts.

    Raises:
      ValueError: a value does not fit `dtype`.
    """
    made = []
    for path, leaf in rows.items():
        end = path.partition("/")[0].removeprefix("text_encoder")
        table = weights.cast(np.asarray(leaf), dtype, name=path)
        for k, (word, own) in enumerate(zip(words, np.split(table, len(words)), strict=True)):
            name = f"-{word.strip('<>')}" if k else ""
            file = folder / f"learned_embeds{name}{end}.safetensors"
            weights.save(file, {word: own})
            weights.verify(file, {word: own})
            made.append(file)
    return made
