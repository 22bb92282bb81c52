"""The dtype in which weights that are not trained are held: `adapt.frozen_dtype`.

Kernels and tables of embeddings are nearly all of a network's bytes; they stay in their file's
dtype, or are rounded leaf by leaf while they are read. Everything else is float32. Layers cast what
they multiply to the dtype of their input, so that a network computes in `config.dtype` as before.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dreambooth_jax import kernels

# "file": as the file has it; "int8": kernels in 8 bits with a scale per output channel.
DTYPES = ("file", "bfloat16", "float32", "int8")
# Not in 8 bits, unless a family says otherwise: inputs and outputs of a network, and its embeddings
# of time and size.
KEPT = (
    r".*/(conv_in|conv_out|time_embedding|time_embed|time_text_embed|class_embedding|"
    r"add_embedding|x_embedder|context_embedder|proj_out|norm_out|encoder_hid_proj)(/.*)?/kernel"
)


def dtype_of(path: str, shape: tuple[int, ...], own: Any, frozen_dtype: str, *, kept: str) -> Any:
    """The dtype of a frozen leaf that its file has as `own`; int8 stands for `kernels.Int8`.

    Args:
      kept: regex of the paths that "int8" leaves in their file's dtype.
    """
    own = np.dtype(own)
    large = path.endswith(("/kernel", "/embedding"))
    if frozen_dtype == "float32" or not large or own == np.float64:
        return np.dtype(np.float32)
    if frozen_dtype == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    if frozen_dtype == "file":
        return own
    small = path.endswith("/kernel") and len(shape) in (2, 4) and not re.fullmatch(kept, path)
    return np.dtype(np.int8) if small else own


def held(path: str, array: np.ndarray, frozen_dtype: str, *, kept: str = KEPT) -> Any:
    """A leaf in the dtype of `dtype_of`, on the host: an array or `kernels.Int8`."""
    dtype = dtype_of(path, array.shape, array.dtype, frozen_dtype, kept=kept)
    if dtype == np.int8:
        return kernels.rounded_to_int8(array)
    return array.astype(dtype, copy=False)


def abstract(path: str, leaf: Any, own: Any, frozen_dtype: str, *, kept: str = KEPT) -> Any:
    """Shape and dtype of `held`, for a leaf that its file has in the dtype `own`."""
    dtype = dtype_of(path, tuple(leaf.shape), own, frozen_dtype, kept=kept)
    if dtype == np.int8:
        return kernels.abstract_int8(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))


def rounds(frozen_dtype: str) -> bool:
    """Returns True where the dtype is not that of the file or finer: a fused export reads again."""
    return frozen_dtype in ("bfloat16", "int8")
