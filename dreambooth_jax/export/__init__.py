"""Export of a run; each file is read back and compared before it takes its place.

A diffusers folder per stage (`folder`), one file for A1111 and ComfyUI (`single_file`), LoRA files
under the keys of PEFT and kohya (`lora_file`), a model card (`card`), and all of it on a model hub
(`upload`).
"""

from dreambooth_jax.contents import words_in
from dreambooth_jax.export import embeddings_file, lora_file, lora_reading, single_file
from dreambooth_jax.export.folder import (
    INDEX,
    check_place,
    diffusers_folder,
    estimate_bytes,
    write_card,
)

__all__ = [
    "INDEX",
    "check_place",
    "diffusers_folder",
    "embeddings_file",
    "estimate_bytes",
    "lora_file",
    "lora_reading",
    "single_file",
    "words_in",
    "write_card",
]
