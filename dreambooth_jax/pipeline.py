"""The parts of one base model, put together: networks, tokenizer and schedules of a stage.

It holds no weights. A stage is a folder in the diffusers layout: `IFPipeline` for the base,
`IFSuperResolutionPipeline` for the upscaler.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import tree, weights
from dreambooth_jax.diffusion import process
from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.models import layers, t5, unet
from dreambooth_jax.text import tokenizer as tokenizers

Array = jax.Array

PIPELINES = {"IFPipeline": "base", "IFSuperResolutionPipeline": "upscaler"}
# Folder of a component -> stem of its weight file.
COMPONENTS = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a cascade; its weights are flat, under `unet/` and `text_encoder/`."""

    kind: str  # "base" or "upscaler"
    folder: Path
    unet: layers.Network
    text_encoder: layers.Network
    tokenizer: tokenizers.Tokenizer
    schedule: schedules.Schedule
    noising: schedules.Schedule | None  # of the low-res image that an upscaler sees
    size: int  # pixels along a side of what it makes
    channels: int

    @property
    def abstract(self) -> tree.Flat:
        """Every leaf by path, as shape and dtype."""
        text_encoder = tree.with_prefix(self.text_encoder.abstract, "text_encoder")
        return {**tree.with_prefix(self.unet.abstract, "unet"), **text_encoder}

    def fine_tuned(self) -> "Stage":
        """The same stage as it samples once its network was trained further.

        The loss leaves a learned variance alone while the layers below it change, so a fixed one
        takes its place, as in diffusers' recipe for DeepFloyd IF.
        """
        if self.schedule.variance_type != "learned_range":
            return self
        fixed = dataclasses.replace(self.schedule, variance_type="fixed_small")
        return dataclasses.replace(self, schedule=fixed)

    def encode_text(
        self, params: Mapping[str, Array], ids: Array, mask: Array, *, dtype: Any
    ) -> Array:
        """Token ids and mask, int `[P,L]` -> text states `[P,L,D]` in `dtype`."""
        return self.text_encoder.bind(tree.prefixed(params, "text_encoder"))(ids, mask, dtype=dtype)

    def condition(self, low_res: Array, noise: Array, noise_level: Array) -> Array:
        """The low-res image as the upscaler sees it: `[B,H,W,C]`, with noise of its level `[B]`."""
        assert self.noising is not None
        enlarged = process.upsample_bilinear(low_res, self.size)
        return process.add_noise(self.noising, enlarged, noise, noise_level)

    def predict(
        self,
        params: Mapping[str, Array],
        xt: Array,
        t: Array,
        text: Array,
        *,
        condition: Array | None = None,
        noise_level: Array | None = None,
        remat: bool = False,
    ) -> Array:
        """The network's output `[B,H,W,C or 2C]`, float32; computes in the dtype of `text`.

        xt `[B,H,W,C]`, t int `[B]`, text `[B,L,D]`; an upscaler needs what the method `condition`
        gives, and its `noise_level`.
        """
        x = xt if condition is None else jnp.concatenate([xt, condition], -1)
        network = self.unet.bind(tree.prefixed(params, "unet"))
        output = network(x.astype(text.dtype), t, text, noise_level=noise_level, remat=remat)
        return output.astype(jnp.float32)


def locate(name: str, *, kind: str) -> Path:
    """The folder of a model: `"embedded"`, a folder, or the id of a hub repository.

    A hub repository is downloaded once.

    Raises:
      FileNotFoundError: no such folder, and the hub has or gives none of that name.
    """
    if name == "embedded":
        return Path(str(resources.files("dreambooth_jax") / "assets" / kind))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"no model folder {name!r}. Write 'embedded', a folder with model_index.json, or a hub "
            "id 'owner/name'."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    patterns = ["*.json", "*/*.json", "*/*.safetensors", "tokenizer/*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"no folder {name!r}, and the model hub gave none either: {reason} "
            "For a gated model, accept its licence on its page and log in with `hf auth login`."
        ) from error


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: this is not a whole model folder in the diffusers layout."
        )
    try:
        return json.loads(file.read_text())
    except ValueError as error:  # JSONDecodeError, or bytes that are no text
        raise ValueError(f"{file} is not JSON: {error}. Copy or download it again.") from error


def open_stage(name: str, *, kind: str) -> Stage:
    """Reads everything but the weights of the stage called `name` (see `locate`).

    Raises:
      FileNotFoundError, ValueError: what is missing, or which value of which file is not supported.
    """
    folder = locate(name, kind=kind)
    found = _json(folder / "model_index.json").get("_class_name")
    if found not in PIPELINES:
        raise ValueError(
            f"{folder}: pipeline {found!r} is not supported; supported: {', '.join(PIPELINES)}."
        )
    if PIPELINES[found] != kind:
        key = "base_model" if kind == "base" else "upscaler_model"
        raise ValueError(
            f"{key} = {name!r} is an {found}, which is the {PIPELINES[found]!r} stage, "
            f"not {kind!r}."
        )
    unet_config = _json(folder / "unet" / "config.json")
    text_config = _json(folder / "text_encoder" / "config.json")
    noising = (
        _json(folder / "image_noising_scheduler" / "scheduler_config.json")
        if kind == "upscaler"
        else None
    )
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    try:
        network = unet.build(unet_config)
        size = unet_config.get("sample_size")
        if not isinstance(size, int):
            raise ValueError(
                f"unet/config.json: sample_size = {size!r}; expected the pixels along a side."
            )
        return Stage(
            kind=kind,
            folder=folder,
            unet=network,
            text_encoder=t5.build(text_config),
            tokenizer=tokenizers.load(folder / "tokenizer"),
            schedule=schedules.from_config(scheduler),
            noising=None if noising is None else schedules.from_config(noising),
            size=size,
            channels=int(unet_config["in_channels"]) // (2 if kind == "upscaler" else 1),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_weights(
    stage: Stage,
    *,
    put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
    variant: str | None = None,
) -> tree.Flat:
    """All float32 parameters of a stage; `put` places each leaf as soon as it is read."""

    def under(part: str) -> Callable[[str, np.ndarray], Any]:
        return lambda path, array: put(f"{part}/{path}", array)

    flat: tree.Flat = {}
    for part, network in (("unet", stage.unet), ("text_encoder", stage.text_encoder)):
        leaves = weights.read(
            stage.folder / part, network.abstract, variant=variant, put=under(part)
        )
        flat |= tree.with_prefix(leaves, part)
    return flat
