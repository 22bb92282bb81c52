"""How far the judges at full size are from PyTorch, with random weights in published folders.

    python bench/judges.py                             # DINO ViT-S/16, CLIP ViT-B/32: 3 GB
    python bench/judges.py --models dino_vits16 clip_vitl14

Photos of random pixels go through the judges' own preparation and one batch of two; transformers
writes the folder and is the judge of judges. Needs the extra `parity`. Ends with status 1 where a
feature differs by more than 1e-4 of the largest.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))
import latents
import published as sizes

from dreambooth_jax.evaluate import published

LIMIT = 1e-4
PROMPTS = ["a dog in the snow", "a red bird"]
CONFIGS = {
    "dino_vits16": sizes.VIT_S16,
    "clip_vitb32": sizes.CLIP_B32,
    "clip_vitl14": sizes.CLIP_L14,
}


def make(name: str, folder: Path) -> tuple[Any, Any, Any]:
    """A random model in `folder`, its tokenizer, its image processor."""
    torch.manual_seed(0)
    if name.startswith("dino"):
        config = transformers.ViTConfig(**CONFIGS[name])
        model = transformers.ViTModel(config, add_pooling_layer=False).eval()
        statistics = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
        processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 256}, **statistics)
        words = None
    else:
        words = latents.write_tokenizer(folder / "words")
        ids = {key: value for key, value in latents.CLIP.items() if key.endswith("_id")}
        whole = CONFIGS[name] | {"text_config": CONFIGS[name]["text_config"] | ids}
        model = transformers.CLIPModel(transformers.CLIPConfig(**whole)).eval()
        processor = transformers.CLIPImageProcessorPil()
        processor.save_pretrained(folder)
        words.save_pretrained(folder)
    model.save_pretrained(folder)
    return model, words, processor


def rows(name: str, folder: Path) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
    """What is compared: ours, theirs, seconds of ours with compilation."""
    model, words, processor = make(name, folder)
    photos = list(np.random.default_rng(0).integers(0, 256, (2, 300, 400, 3), np.uint8))
    pixels = processor(images=photos, return_tensors="pt")["pixel_values"]
    start = time.perf_counter()
    found = []
    with torch.no_grad():
        if name.startswith("dino"):
            ours = published.Dino(folder, batch_size=2).images(photos)
            theirs = model(pixel_values=pixels).last_hidden_state[:, 0].numpy()
            return [("pictures", ours, theirs, time.perf_counter() - start)]
        judge = published.Clip(folder, batch_size=2)
        tokens = words(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
        both = model(pixel_values=pixels, input_ids=tokens["input_ids"])
        for part, ours, theirs in (
            ("pictures", judge.images(photos), both.image_embeds),
            ("prompts", judge.texts(PROMPTS), both.text_embeds),
        ):
            unit = ours / np.linalg.norm(ours, axis=-1, keepdims=True)
            found.append((part, unit, theirs.numpy(), time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ["dino_vits16", "clip_vitb32"]
    parser.add_argument("--models", nargs="*", choices=CONFIGS, default=default)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    print(f"{'judge':<16}{'part':<12}{'absolute':>12}{'relative':>12}{'limit':>10}{'seconds':>10}")
    fits = True
    for name in args.models:
        with tempfile.TemporaryDirectory() as root:
            for part, ours, theirs, seconds in rows(name, Path(root)):
                error = float(np.abs(ours - theirs).max())
                relative = error / float(np.abs(theirs).max())
                fits &= relative <= LIMIT
                print(
                    f"{name:<16}{part:<12}{error:>12.2e}{relative:>12.2e}{LIMIT:>10.0e}"
                    f"{seconds:>10.1f}"
                )
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    main()
