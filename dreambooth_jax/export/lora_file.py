"""LoRA as files that others open: the keys of PEFT, which diffusers reads, and those of kohya.

diffusers: `pipe.load_lora_weights(folder)`. A1111 and ComfyUI: `lora_kohya.safetensors`. Of DoRA,
diffusers (0.42) reads the UNet's lengths in PEFT's file alone, ComfyUI all in kohya's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import files, weights
from dreambooth_jax.adapt import lora
from dreambooth_jax.export import single_file
from dreambooth_jax.pipeline import Stage

PEFT, KOHYA = "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"
_KOHYA_STARTS = {"unet": "lora_unet", "text_encoder": "lora_te"}
_KOHYA_STARTS_XL = {
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}


def write(
    stage: Stage,
    trained: Mapping[str, Any],
    folder: Path,
    *,
    alpha: float,
    dtype: str,
    about: Mapping[str, Any],
) -> list[Path]:
    """Writes both files, each read back and compared; returns their paths.

    Args:
      trained: flat, the factors of `adapt.lora`.

    Raises:
      ValueError: a value does not fit `dtype`.
    """
    metadata = {name: str(value) for name, value in about.items()}
    made = []
    for name, tensors in (
        (PEFT, peft(trained, alpha=alpha, dtype=dtype)),
        (KOHYA, kohya(stage, trained, alpha=alpha, dtype=dtype)),
    ):
        file = folder / name
        with files.written(file) as part:
            weights.save(part, tensors, metadata={"dreambooth_jax": json.dumps(metadata)})
            weights.verify(part, tensors)
        made.append(file)
    return made


def _pairs(
    trained: Mapping[str, Any], path: str, *, dtype: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Down `[r,in(,h,w)]` and up `[out,r(,1,1)]` in the order of PyTorch, and DoRA's lengths."""
    down, up = (np.asarray(trained[f"{path}/{name}"]) for name in (lora.DOWN, lora.UP))
    down = weights.turned("/kernel", down, to_file=True)
    up = up.T if down.ndim == 2 else up.T[:, :, None, None]
    length = trained.get(f"{path}/{lora.LENGTH}")
    cast = [weights.cast(x, dtype, name=path) for x in (down, up)]
    if length is None:
        return cast[0], cast[1], None
    return cast[0], cast[1], weights.cast(np.asarray(length), dtype, name=path)


def peft(trained: Mapping[str, Any], *, alpha: float, dtype: str) -> dict[str, np.ndarray]:
    """Tensors under PEFT's keys; α / r is in the second factor, so that no reader can miss it."""
    tensors = {}
    for path in lora.adapted(dict(trained)):
        scaled = dict(trained)
        up = np.asarray(trained[f"{path}/{lora.UP}"])
        scaled[f"{path}/{lora.UP}"] = up * np.float32(alpha / len(up))
        down, up, length = _pairs(scaled, path, dtype=dtype)
        key = weights.key_of(path).removesuffix(".weight")
        tensors[f"{key}.lora_A.weight"] = down
        tensors[f"{key}.lora_B.weight"] = up
        if length is not None:
            tensors[f"{key}.lora_magnitude_vector"] = length
    return tensors


def kohya(
    stage: Stage, trained: Mapping[str, Any], *, alpha: float, dtype: str
) -> dict[str, np.ndarray]:
    """Tensors under kohya's keys: paths joined by `_`; SDXL's UNet in the original numbering."""
    tensors = {}
    starts = _KOHYA_STARTS_XL if stage.family.sized else _KOHYA_STARTS
    rename = single_file.unet_name(
        weights.key_of(path.removeprefix("unet/"))
        for path in stage.abstract
        if path.startswith("unet/")
    )
    for path in lora.adapted(dict(trained)):
        part, _, rest = path.partition("/")
        key = weights.key_of(rest).removesuffix(".weight")
        if part == "unet" and stage.family.sized:
            key = rename(f"{key}.weight").removesuffix(".weight")
        name = f"{starts[part]}_{key.replace('.', '_')}"
        down, up, length = _pairs(trained, path, dtype=dtype)
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = weights.cast(np.array(alpha, np.float32), dtype, name=path)
        if length is not None:
            shape = (-1,) + (1,) * (down.ndim - 1)
            tensors[f"{name}.dora_scale"] = length.reshape(shape)
    return tensors
