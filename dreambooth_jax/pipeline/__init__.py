"""The parts of one base model, put together: networks, tokenizers and schedules of a stage.

No weights are held here. A stage is a folder in the diffusers layout, of one of `FAMILIES`.
"""

from dreambooth_jax.pipeline.families import FAMILIES, Family
from dreambooth_jax.pipeline.folder import open_stage, read_leaf, read_weights
from dreambooth_jax.pipeline.hub import locate
from dreambooth_jax.pipeline.stage import COMPONENTS, TOKENS, Latents, PooledText, Stage

__all__ = [
    "COMPONENTS",
    "FAMILIES",
    "TOKENS",
    "Family",
    "Latents",
    "PooledText",
    "Stage",
    "locate",
    "open_stage",
    "read_leaf",
    "read_weights",
]
