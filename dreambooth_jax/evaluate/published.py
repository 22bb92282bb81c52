"""DINO and CLIP from their published folders, or from the model hub, in the transformers layout."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dreambooth_jax import pipeline, untrusted, weights
from dreambooth_jax.evaluate import preparation
from dreambooth_jax.evaluate.batched import Batched
from dreambooth_jax.models import clip_pair, vit
from dreambooth_jax.models.layers import Network
from dreambooth_jax.text import tokenizer as tokenizers

_POOLER = r"pooler\..*"  # of some files; the features are the class token itself


def locate(name: str, *, cache_dir: str | None, offline: bool) -> Path:
    """The folder of an encoder, `config.json` in it; `pipeline.locate` explains the arguments."""
    folder = pipeline.locate(name, kind="encoder", cache_dir=cache_dir, offline=offline)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: expected the folder of an encoder in the layout of "
            "transformers, with model.safetensors and preprocessor_config.json."
        )
    weights.files_of(folder)  # a cache may hold the rest of it without them
    return folder


def _opened(
    folder: Path, build: Callable[[Mapping[str, Any]], Network], *, ignore: str = ""
) -> tuple[dict[str, Any], Network, dict[str, Any]]:
    """The settings, the network and the weights of a folder.

    Raises:
      FileNotFoundError, ValueError: what is missing, or does not fit.
    """
    file = folder / "config.json"
    config = untrusted.bounded(untrusted.json_object(file), file)
    with untrusted.values(file):
        network = build(config)
    return config, network, weights.read(folder, network.abstract, ignore=ignore)


class Dino:
    """Features of pictures: the class token of DINO's vision transformer (Caron et al. 2021)."""

    def __init__(self, folder: Path, *, batch_size: int, mesh: Mesh | None = None):
        config, network, params = _opened(folder, vit.build, ignore=_POOLER)
        size = vit.VitConfig.from_dict(config).image_size
        self._prepare = preparation.dino(size)
        self._call = Batched(
            lambda flat, x: network.bind(flat)(x), params, batch_size=batch_size, mesh=mesh
        )

    def images(self, pictures: Sequence[np.ndarray], *, label: str | None = None) -> np.ndarray:
        """N uint8 pictures `[H,W,3]` to features float32 `[N,D]`."""
        return self._call(
            len(pictures), lambda index: (self._prepare([pictures[i] for i in index]),), label=label
        )


class Clip:
    """Vectors of pictures and of prompts in one space (Radford et al. 2021)."""

    def __init__(self, folder: Path, *, batch_size: int, mesh: Mesh | None = None):
        config, network, params = _opened(folder, clip_pair.build)
        vision = clip_pair.VisionConfig.from_dict(config["vision_config"])
        self._prepare = preparation.of_processor(folder, size=vision.image_size)
        positions = network.abstract["text_model/embeddings/position_embedding/embedding"]
        self._tokenizer = tokenizers.load(folder, max_length=positions.shape[0])
        self._images = Batched(
            lambda flat, x: network.bind(flat).images(x), params, batch_size=batch_size, mesh=mesh
        )
        self._texts = self._images.also(lambda flat, ids: network.bind(flat).texts(ids))

    def images(self, pictures: Sequence[np.ndarray], *, label: str | None = None) -> np.ndarray:
        """N uint8 pictures `[H,W,3]` to vectors float32 `[N,D]`."""
        return self._images(
            len(pictures), lambda index: (self._prepare([pictures[i] for i in index]),), label=label
        )

    def texts(self, prompts: Sequence[str], *, label: str | None = None) -> np.ndarray:
        """P prompts to vectors float32 `[P,D]`."""
        ids = self._tokenizer.encode(prompts)["ids"]
        return self._texts(len(ids), lambda index: (ids[index],), label=label, unit="prompt")
