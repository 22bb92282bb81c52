"""The toy stage with the paths of networks: all ways to adapt find what they look for in it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import toy_stage
from toy_stage import CHANNELS, WIDTH, Toy

from dreambooth_jax import kernels

NEW = 8  # the id of the new token
TABLE = "text_encoder/shared/embedding"
KERNELS = ("unet/pixel/kernel", "unet/text/kernel", "unet/time/kernel", "text_encoder/q/kernel")


@dataclasses.dataclass(frozen=True, eq=False)
class Small(Toy):
    """The toy, with kernels below `unet/` and `text_encoder/`."""

    denoiser = SimpleNamespace(component="unet", tables="(?!)")
    conditioner = SimpleNamespace(trainable_pattern="text_encoder/.*")
    family = SimpleNamespace(lora_targets=".*/kernel", sharding_rules=toy_stage.SHARDING_RULES)

    def is_text(self, path):
        return path.startswith("text_encoder/")

    def is_denoiser(self, path):
        return path.startswith("unet/")

    def encode_text(self, params, tokens, *, dtype):
        params = kernels.all_fused(params)
        words = params[TABLE][tokens["ids"]] @ params["text_encoder/q/kernel"]
        return (words * tokens["mask"][..., None]).astype(dtype)

    def predict(self, params, xt, t, text, **extra):
        inner = {
            f"unet/{name}": kernels.fused(params[f"unet/{name}/kernel"])
            for name in ("pixel", "text", "time")
        }
        return super().predict(inner, xt, t, text, **extra)


def weights() -> dict[str, np.ndarray]:
    """Random values of all its leaves."""
    rng = np.random.default_rng(1)
    outs = 2 * CHANNELS
    shapes = dict(
        zip(KERNELS, [(CHANNELS, outs), (WIDTH, outs), (1, outs), (WIDTH, WIDTH)], strict=True)
    )
    shapes[TABLE] = (NEW + 1, WIDTH)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
