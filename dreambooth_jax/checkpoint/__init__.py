"""Checkpoints of one stage: Orbax writes them in the background, a checksum per leaf guards them.

`<folder>/<step>/` holds two Orbax items, committed together by one rename: `state`, the arrays, and
`manifest`, a JSON file with the settings of the run and the shape, dtype and checksum of each leaf.
Orbax restores a flipped byte without a word (measured with 0.12.8), so each leaf is summed again
after it was read.
"""

from dreambooth_jax.checkpoint.manager import Checkpoints
from dreambooth_jax.checkpoint.reading import CheckpointError
from dreambooth_jax.checkpoint.space import check_space, estimate_bytes

__all__ = ["CheckpointError", "Checkpoints", "check_space", "estimate_bytes"]
