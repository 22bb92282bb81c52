r"""The table of docs/gpu.md: programs of published architectures on NVIDIA GPUs, without one.

    python tools/gpu_tables.py build/gpu compile "sd15 LoRA"     # minutes of one core a row
    python tools/gpu_tables.py build/gpu table                   # Markdown of what is there

Rows whose name begins with one of the last words; all without any. Compiling a row is the main
command with --mode=precompile, in a process of its own; what is there is not compiled again.
"""

import tpu_tables
from tpu_tables import BLOCKS, DRAW, EIGHT, FLEET, HALF, INT8, LORA, SD, SDXL

CARDS = ("h100", "a100-40gb", "l4", "rtx4090", "rtx3090")
KINDS = {  # configuration, architecture, what differs; 2 rows
    "sd15 full": (SD, "sd15", ()),
    "sd15 full, 8-bit": (SD, "sd15", (EIGHT,)),
    "sd15 LoRA": (SD, "sd15", (LORA,)),
    "sd15 LoRA, bfloat16": (SD, "sd15", (LORA, HALF)),
    "sd15 LoRA, int8": (SD, "sd15", (LORA, INT8)),
    "sd15 LoRA, fleet of 8 x 2 rows, bfloat16": (SD, "sd15", (LORA, HALF, FLEET)),
    "sd15 drawing, 8 images": (SD, "sd15", (DRAW,)),
    "sdxl LoRA, bfloat16, remat blocks": (SDXL, "sdxl", (LORA, BLOCKS, HALF)),
    "sdxl LoRA, int8, remat blocks": (SDXL, "sdxl", (LORA, BLOCKS, INT8)),
    "sdxl full, 8-bit, remat blocks": (SDXL, "sdxl", (EIGHT, BLOCKS)),
}
ROWS: dict[str, tpu_tables.Row] = {
    f"{kind} on {card}": (config, architecture, card, changed)
    for kind, (config, architecture, changed) in KINDS.items()
    for card in CARDS
}
ROWS["sd15 full, fsdp 8, 16 rows on eight h100"] = (
    SD,
    "sd15",
    "h100:8",
    ("mesh.fsdp=8", "train.batch_size=16"),
)

# LoRA of rank 16 of transformers at 1024 pixels, one photo and one class image a step.
FLOWS = {
    "sd35_medium": "sd3.py:medium35",
    "sd35_large": "sd3.py:large35",
    "flux_dev": "flux.py:dev",
    "z_image": "z_image.py",
    "klein_4b": "flux2.py:klein_4b",
    "klein_9b": "flux2.py:klein_9b",
}
ROWS |= {
    f"{architecture} LoRA, {frozen} on {card}": (
        config,
        architecture,
        card,
        (f"adapt.frozen_dtype={frozen}",),
    )
    for architecture, config in FLOWS.items()
    for frozen in ("bfloat16", "int8")
    for card in ("h100", "rtx4090")
}

if __name__ == "__main__":
    tpu_tables.main(ROWS, __doc__)
