"""Textual inversion as files that others open: the new tokens' embeddings.

diffusers: `pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")`, of SDXL
with one file per text encoder (`learned_embeds_2.safetensors`) and its `text_encoder`, `tokenizer`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import weights


def write(rows: Mapping[str, Any], folder: Path, *, word: str, dtype: str) -> list[Path]:
    """Writes one file per text encoder, read back and compared; returns their paths.

    Args:
      rows: `{"text_encoder/…/new_rows": [n,D], …}`.
      word: the token that stands for all n in prompts.

    Raises:
      ValueError: a value does not fit `dtype`.
    """
    made = []
    for path, leaf in rows.items():
        end = path.partition("/")[0].removeprefix("text_encoder")
        tensors = {word: weights.cast(np.asarray(leaf), dtype, name=path)}
        file = folder / f"learned_embeds{end}.safetensors"
        weights.save(file, tensors)
        weights.verify(file, tensors)
        made.append(file)
    return made
