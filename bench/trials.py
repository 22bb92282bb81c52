"""Trials on the embedded base: runs of the main program on subjects that the base never saw.

Not a command: what `methods.py` and `study.py` have in common. A trial is a run of the main program
in a folder of its own, base stage alone (32²). A trial that is finished is not run again, one that
was stopped goes on.
"""

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # scripts, not a package

from composites import subject_photos
from nouns import HELD_OUT, PLACES

from dreambooth_jax import compile_cache
from dreambooth_jax.data import images
from dreambooth_jax.experiment.modes.table import MODES

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "imagen_like.py"
CLASS_TEMPLATES = ("{class_prompt}", "{class_prompt} in the desert", "{class_prompt} at night")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One finished run: its folder, its settings, and the pictures it drew."""

    folder: Path
    config: ConfigDict

    def pictures(self, label: str) -> dict[str, np.ndarray]:
        """uint8 `[N,H,W,3]` by prompt, of the grid `label`: "before" or "after"."""
        found: dict[str, list[np.ndarray]] = {}
        for file in sorted((self.folder / "samples" / label).glob("*.png")):
            with Image.open(file) as image:
                prompt = json.loads(image.info["dreambooth_jax"])["prompt"]
                found.setdefault(prompt, []).append(np.asarray(image.convert("RGB")))
        return {prompt: np.stack(pictures) for prompt, pictures in found.items()}

    @property
    def identifier(self) -> str:
        """The subject's word."""
        about = json.loads((self.folder / "export" / "dreambooth.json").read_text())
        return about["identifier"].split()[0]

    def photos(self, folder: Path | None = None) -> np.ndarray:
        """The photos, or those of another folder, at the pictures' size, uint8 `[N,H,W,3]`."""
        files = sorted((folder or Path(self.config.subject.images)).glob("*.png"))
        size = next(iter(self.pictures("after").values())).shape[1:3]
        return np.stack([images.cover(images.read(file), size) for file in files])

    @property
    def seconds(self) -> float:
        """What the training took, over all starts."""
        return json.loads((self.folder / "timings.json").read_text())["training base"]

    @property
    def nbytes(self) -> int:
        """What has to be kept of the result beside the base model: the smallest files with it."""
        export, way = self.folder / "export", self.config.adapt
        ways = (way.name, way.then if way.name == "pivotal" else "")
        names = {
            "full": ["unet/diffusion_pytorch_model.safetensors"],
            "lora": ["lora/pytorch_lora_weights.safetensors"],
            "textual_inversion": ["learned_embeds.safetensors"],
            "pivotal": ["learned_embeds.safetensors"],
        }
        return sum((export / file).stat().st_size for name in ways for file in names.get(name, []))


def photos(cache: Path, name: str) -> Path:
    """The folder with the five photos of a held-out subject, rendered once."""
    folder = cache / "subjects" / name
    source, _ = HELD_OUT[name]
    if not (folder / "5.png").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for number, photo in enumerate(subject_photos(cache, source=source).values(), 1):
            Image.fromarray(photo).save(folder / f"{number}.png")
    return folder


def settings(cache: Path, subject: str, /, config: Path = CONFIG, **changed: Any) -> ConfigDict:
    """A file of configs/ for the base stage alone; in `changed` a dot is written `__`.

    The grid has every place with the subject in it, and the class alone. Class images are shared by
    all trials of a class.
    """
    c = runpy.run_path(str(config))["get_config"]()
    _, noun = HELD_OUT[subject]
    usual: dict[str, Any] = {
        "upscaler_model": "",
        "stages": ("base",),
        "subject.images": str(photos(cache, subject)),
        "subject.class_noun": noun,
        "prior.folder": str(cache / "class_images" / noun),
        "train.sample_every": 0,
        "train.held_out_every": 0,
        "train.keep_weights_every": 0,
        "evaluate.at_end": False,
        "sample.prompts": (
            "a {subject}",
            *(f"a {{subject}} {place}" for place in PLACES),
            *CLASS_TEMPLATES,
        ),
    }
    given = {key.replace("__", "."): value for key, value in changed.items()}
    c.update_from_flattened_dict(usual | given)
    return c


def run(config: ConfigDict, folder: Path) -> Trial:
    """Runs the trial, or takes it as it is when it is finished."""
    compile_cache.use("")
    MODES["train"].function(config, folder)
    jax.clear_caches()  # each trial has programs of its own, of 50 to 90 MiB
    return Trial(folder, config)
