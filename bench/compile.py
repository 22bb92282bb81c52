"""Seconds and peak memory of compiling each family's train step, for CPU, TPU v5e and H100.

    python bench/compile.py                                   # a few narrow blocks: minutes
    python bench/compile.py --size full --families "SD 1.5" --devices h100 v5e:1x1

A LoRA step of the family's configuration, from configuration files alone; on CPU in float32. Each
is compiled in a process of its own, without the cache of compiled programs. Printed are the seconds
by the clock, those of processors, which other programs on the computer do not lengthen, and the
most memory that the process held: before compiling, when all is imported and the network's shapes
are known, and in all. At `--size full` a row takes minutes (H100) to an hour (TPU) of one core.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DEVICES = ("cpu", "v5e:1x1", "h100")

_CLIP = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
_CLIP |= {"num_hidden_layers": 2, "projection_dim": 64}
_T5 = {"d_model": 128, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_QWEN3 = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 32}
_QWEN3 |= {"num_key_value_heads": 1}
_VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
_UNET = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 64,
}
_IF_UNET = _UNET | {
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "attention_head_dim": 16,
    "encoder_hid_dim": 128,
    "addition_embed_type_num_heads": 2,
}
_SDXL_UNET = _UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [2, 4],
    "transformer_layers_per_block": [1, 2],
    "cross_attention_dim": 128,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 112,
}
_MMDIT = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 128,
    "dual_attention_layers": [0],
}
_FLUX = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2}
_S3_DIT = {"dim": 256, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
_LATENT = {"vae": _VAE, "text_encoder": _CLIP}


class Family(NamedTuple):
    """A configuration, its published architecture, and what is smaller by folder of the model."""

    config: str
    architecture: str
    small: Mapping[str, Mapping[str, Any]]


FAMILIES = {
    "SD 1.5": Family("stable_diffusion.py:sd15", "sd15", {"unet": _UNET} | _LATENT),
    "SDXL": Family("sdxl.py", "sdxl", {"unet": _SDXL_UNET, "text_encoder_2": _CLIP} | _LATENT),
    "IF-I-XL": Family("deepfloyd_if.py", "if_xl", {"unet": _IF_UNET, "text_encoder": _T5}),
    "SD 3.5 medium": Family(
        "sd3.py:medium35",
        "sd35_medium",
        {"transformer": _MMDIT, "text_encoder_2": _CLIP, "text_encoder_3": _T5} | _LATENT,
    ),
    "FLUX.1-dev": Family(
        "flux.py:dev",
        "flux_dev",
        {
            "transformer": _FLUX | {"joint_attention_dim": 128, "pooled_projection_dim": 64},
            "text_encoder_2": _T5,
        }
        | _LATENT,
    ),
    "FLUX.2 klein 4B": Family(
        "flux2.py:klein_4b",
        "klein_4b",
        {
            "transformer": _FLUX | {"joint_attention_dim": 192},
            "vae": _VAE,
            "text_encoder": _QWEN3,
        },
    ),
    "Z-Image": Family(
        "z_image.py",
        "z_image",
        {"transformer": _S3_DIT | {"cap_feat_dim": 64}, "vae": _VAE, "text_encoder": _QWEN3},
    ),
}


def write(folder: Path, family: Family, size: str) -> None:
    """The configuration files of the family's architecture."""
    models = runpy.run_path(str(ROOT / "tools" / "architectures.py"))["MODELS"]
    for name, content in models[family.architecture].items():
        file, part = folder / name, name.partition("/")[0]
        smaller = family.small.get(part, {}) if size == "small" else {}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content | smaller))


def program(folder: Path, name: str, device: str, size: str) -> tuple[Any, list[Any]]:
    """The family's step by shape alone, as `PROGRAMS` of --mode=precompile; and its devices."""
    import jax

    from dreambooth_jax import config as configs
    from dreambooth_jax import precompile
    from dreambooth_jax.experiment.modes.precompile import PROGRAMS
    from dreambooth_jax.experiment.parts import loading

    family = FAMILIES[name]
    write(folder, family, size)
    file, _, variant = family.config.partition(":")
    c = runpy.run_path(str(ROOT / "configs" / file))["get_config"](variant)
    c.base_model, c.upscaler_model, c.stages = str(folder), "", ("base",)
    c.upscaler.num_steps = c.upscaler.batch_size = c.upscaler.learning_rate = None
    c.adapt.name, c.adapt.frozen_dtype = "lora", "bfloat16"
    if size == "small" and family.architecture != "if_xl":  # which makes 64 pixels and no other
        c.resolution = 256
    if device == "cpu":
        c.dtype = c.adapt.frozen_dtype = "float32"
    plan = configs.resolve(c)
    devices = jax.devices()[:1] if device == "cpu" else precompile.topology(device)
    stages = loading.open_stages(plan, shapes_only=True)
    return PROGRAMS["train"](plan, "base", stages, loading.make_mesh(plan, devices)), devices


def work(folder: Path, name: str, device: str, size: str) -> dict[str, float]:
    """What compiling took in this process."""
    from dreambooth_jax import precompile

    (label, step, args), devices = program(folder, name, device, size)
    before, begin = peak(), time.process_time()
    told = precompile.forecast(label, step, *args, devices=devices)
    used = time.process_time() - begin
    return {"clock": told.compile_seconds, "used": used, "before": before, "peak": peak()}


def peak() -> float:
    """The most MiB that this program held so far, as Linux tells it.

    `ru_maxrss` would begin with what the process that started this one held: `exec` keeps it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def measured(name: str, device: str, size: str) -> dict[str, float]:
    """The same of a process of its own."""
    own = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, __file__, "--worker", name, device, "--size", size]
    answer = subprocess.run(
        command, env=os.environ | own, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument("--devices", nargs="+", default=DEVICES, help="cpu, or precompile.topology")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(work(Path(folder), *args.worker, args.size)))
        return
    print("| | for | s | of processors, s | MiB before | MiB at most |\n" + "|---" * 6 + "|")
    for name in args.families:
        for device in args.devices:
            found = measured(name, device, args.size)
            cells = f"{found['clock']:.0f} | {found['used']:.0f}"
            memory = f"{found['before']:.0f} | {found['peak']:.0f}"
            print(f"| {name} | {device} | {cells} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
