"""What a run hands over, each file read back and compared before it takes its place.

A diffusers folder per stage (`folder`), one file for A1111 and ComfyUI (`single_file`), LoRA files
under the keys of PEFT and kohya (`lora_file`).
"""

from dreambooth_jax.export import embeddings_file, lora_file, single_file
from dreambooth_jax.export.folder import (
    INDEX,
    check_place,
    diffusers_folder,
    estimate_bytes,
    words_in,
)

__all__ = [
    "INDEX",
    "check_place",
    "diffusers_folder",
    "embeddings_file",
    "estimate_bytes",
    "lora_file",
    "single_file",
    "words_in",
]
