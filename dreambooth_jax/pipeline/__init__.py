"""The parts of one base model, put together: a stage of four parts, its folder, the hub.

No weights are held here. `families` builds a stage from a folder.
"""

from dreambooth_jax.pipeline.family import Family, SingleFile
from dreambooth_jax.pipeline.folder import (
    ModelFolder,
    read_leaf,
    read_weights,
)
from dreambooth_jax.pipeline.frame import Frame, Resolution, Size, SizeError
from dreambooth_jax.pipeline.hub import cache_folder, locate
from dreambooth_jax.pipeline.parts import TOKENS, Codec, Conditioner, Denoiser, Encoder
from dreambooth_jax.pipeline.stage import Stage

__all__ = [
    "TOKENS",
    "Codec",
    "Conditioner",
    "Denoiser",
    "Encoder",
    "Family",
    "Frame",
    "ModelFolder",
    "Resolution",
    "SingleFile",
    "Size",
    "SizeError",
    "Stage",
    "cache_folder",
    "locate",
    "read_leaf",
    "read_weights",
]
