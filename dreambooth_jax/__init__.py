"""DreamBooth (Ruiz et al. 2022) in JAX: teaches a text-to-image model a subject from 3-5 photos.

    import dreambooth_jax

    dreambooth_jax.load("embedded").sample(["a bird"])
    run = dreambooth_jax.finetune("photos/duck", "toy", config="sdxl")

The names below are the public interface; `dreambooth_jax.api` describes them. They are imported
when they are used: importing the package is quick, and starts no device.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "TextToImage", "finetune", "load"]

if TYPE_CHECKING:
    from dreambooth_jax.api import Run, TextToImage, finetune, load


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'dreambooth_jax' has no attribute {name!r}")
    from dreambooth_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*globals(), *__all__])
