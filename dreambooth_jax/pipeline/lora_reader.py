"""LoRA files of others, read as factors of a stage's kernels: PEFT's keys, and kohya's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import untrusted, weights
from dreambooth_jax.adapt import lora
from dreambooth_jax.pipeline.family import Slot, Tensors
from dreambooth_jax.pipeline.stage import Stage
from dreambooth_jax.tree import Flat

_DOWN, _UP, _ALPHA = "down", "up", "alpha"
_END = re.compile(
    r"(?P<module>.+?)\.(?:(?P<down>lora_A|lora_down)|(?P<up>lora_B|lora_up)|(?P<alpha>alpha))"
    r"(?:\.default)?(?:\.weight)?"
)
_META = "lora_adapter_metadata"  # diffusers' JSON in the file's metadata, with PEFT's settings
_ORIGINAL = "diffusion_model."  # ComfyUI's and ai-toolkit's, before the keys that kohya's joins
_EXPECTED = (
    "Expected the factors of linear and convolution kernels, `transformer.<layer>.lora_A.weight` "
    "and `.lora_B.weight` (PEFT) or `lora_unet_<layer>.lora_down.weight` and `.lora_up.weight` "
    "(kohya)."
)


def read(stage: Stage, file: str | Path) -> Flat:
    """Returns factors of the denoiser's kernels by path, as `adapt.lora.beside` takes them.

    The scale α / r is in the second factor. Of a kernel that the file keeps in one with others,
    columns of the first factor that do not change it are left out.

    Raises:
      FileNotFoundError, FileError: the file is missing or no safetensors file.
      ValueError: it has keys that are no factors of this denoiser's kernels, or of other shapes.
    """
    file = Path(file)
    tensors, about = tensors_of(file)
    modules = _modules(tensors, file)
    component, named = stage.denoiser.component, stage.family.kohya(stage)
    found: Flat = {}
    used = set()
    for path, leaf in stage.denoiser.network.abstract.items():
        if not path.endswith("/kernel") or len(leaf.shape) not in (2, 4):
            continue
        whole = f"{component}/{path}"
        own = weights.key_of(whole).removesuffix(".weight")
        slot = Slot(own)
        if own not in modules:
            place = named(whole)
            slot = Slot(place) if isinstance(place, str) else place
        if slot.name in modules:
            used.add(slot.name)
            down, up = _factors(modules[slot.name], slot, f"{file}: {slot.name}", about)
            shape = (*down.shape[:-1], up.shape[-1])
            if shape != tuple(leaf.shape):
                raise ValueError(
                    f"{file}: {slot.name} has factors of a kernel {shape}, and {whole} is "
                    f"{tuple(leaf.shape)}: the file belongs to another model."
                )
            if down.shape[-1]:
                found |= {f"{whole}/{lora.DOWN}": down, f"{whole}/{lora.UP}": up}
    left = sorted(modules.keys() - used)
    if left or not used:
        told = f"{len(left)} of its layers ({', '.join(left[:3])} …)" if left else "nothing in it"
        raise ValueError(
            f"{file}: {told} belongs to the {component} of {stage.folder}. {_EXPECTED}"
        )
    return found


def tensors_of(file: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a file, float32, and PEFT's settings in its metadata.

    Raises:
      FileNotFoundError, FileError: the file is missing or no safetensors file.
    """
    tensors = weights.read_tensors(file)
    with weights.opened(file) as opened:
        text = (opened.metadata() or {}).get(_META, "{}")
    about = untrusted.parsed(text, file)
    floats = {key: x.astype(np.float32) for key, x in tensors.items()}
    return floats, about if isinstance(about, dict) else {}


def _modules(tensors: Mapping[str, np.ndarray], file: Path) -> dict[str, dict[str, np.ndarray]]:
    """Factors and α of each module, by kohya's name or PEFT's."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        parts = _END.fullmatch(key)
        if parts is None:
            raise ValueError(f"{file}: {key!r} is no factor of LoRA. {_EXPECTED}")
        name = parts["module"]
        if name.startswith(_ORIGINAL):
            name = f"lora_unet_{name.removeprefix(_ORIGINAL).replace('.', '_')}"
        kind = next(kind for kind in (_DOWN, _UP, _ALPHA) if parts[kind])
        modules.setdefault(name, {})[kind] = tensor
    return modules


def _factors(
    module: Mapping[str, np.ndarray], slot: Slot, what: str, about: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Down `[…,in,r]` and up `[r,out]` of one kernel, its scale in the latter.

    Raises:
      FileError: a factor is missing, or they do not fit each other.
    """
    down, up = module.get(_DOWN), module.get(_UP)
    fits = down is not None and up is not None and down.ndim in (2, 4) and up.ndim == down.ndim
    if down is None or up is None or not fits or len(up) % slot.parts:
        shapes = {kind: tensor.shape for kind, tensor in module.items()}
        raise untrusted.FileError(
            f"{what} has {shapes}; expected two factors, [r,in] and [out,r]. {untrusted.AGAIN}"
        )
    try:
        rank = rank_of("its factors", down, up)
        if _ALPHA in module:
            scale = scale_of("its alpha", module[_ALPHA], rank)
        else:
            scale = scale_told(about, slot.name, rank)
    except ValueError as error:
        raise untrusted.FileError(f"{what}: {error} {untrusted.AGAIN}") from error
    down, up = own_part(slot, down, up)
    down = weights.turned("/kernel", down, to_file=False)
    return np.ascontiguousarray(down), np.ascontiguousarray(np.float32(scale) * up.T)


def rank_of(what: str, down: np.ndarray, up: np.ndarray) -> int:
    """The rank of two factors of a file, down `[r,in(,h,w)]` and up `[out,r(,1,1)]`.

    Raises:
      ValueError: they are none; `what` names them.
    """
    rank = len(down) if down.ndim in (2, 4) else 0
    fits = up.ndim in (2, 4) and up.size == len(up) * rank and rank == up.shape[1]
    if not rank or not fits or not down.size or not up.size:
        raise ValueError(
            f"{what} have the shapes {down.shape} and {up.shape}; expected [r,in] and [out,r], of "
            "a rank r of 1 or more."
        )
    return rank


def scale_of(what: str, alpha: Any, rank: int) -> float:
    """The scale α / r of factors, for an α that a file or its metadata holds; `what` names it.

    Raises:
      ValueError: it is no single finite number above 0.
    """
    number = alpha.reshape(-1)[0] if isinstance(alpha, np.ndarray) and alpha.size == 1 else alpha
    plain = isinstance(number, int | float | np.number) and not isinstance(number, bool)
    if not plain or not 0 < abs(number) < np.inf or number < 0:
        shape = f"of shape {alpha.shape}" if isinstance(alpha, np.ndarray) else ""
        found = shape if shape and alpha.size != 1 else untrusted.in_short(repr(number))
        raise ValueError(f"{what} is {found}; expected one finite number above 0.")
    return float(number) / rank


def scale_told(about: Mapping[str, Any], name: str, rank: int) -> float:
    """The scale of factors by PEFT's settings in a file's metadata; 1 where there are none.

    It is α / r, or α / √r under rsLoRA (Kalajdzievski 2023). `alpha_pattern` has an α of its own
    for layers whose name ends with a key; after `^` a key is the whole name.

    Args:
      name: the kernel's in the file, its component first: `unet.down_blocks.0…to_q`.

    Raises:
      ValueError: a setting is of another kind, or a key of `alpha_pattern` is no plain name.
    """
    component, _, layer = name.partition(".")
    told = f"{component}.lora_alpha"
    what, alpha = f"{told} of its metadata", about.get(told, rank)
    patterns = about.get(f"{component}.alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise ValueError(f"{component}.alpha_pattern of its metadata is no object {{…}}.")
    for pattern, own in patterns.items():
        if not re.fullmatch(r"\^?[\w.]+", pattern):
            raise ValueError(
                f"{component}.alpha_pattern of its metadata has {untrusted.in_short(pattern)}; "
                "expected names of layers."
            )
        if layer == pattern.removeprefix("^") or layer.endswith(f".{pattern}"):
            what, alpha = f"α of {pattern} in its metadata", own
            break
    scale = scale_of(what, alpha, rank)
    return scale * rank**0.5 if about.get(f"{component}.use_rslora") is True else scale


def own_part(slot: Slot, down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors `[r,in(,h,w)]` and `[out,r]` of one kernel out of those of a file's kernel.

    Of a kernel that is one of several, columns that are zero for it are left out of its rank.
    """
    up = own_rows(slot, up.reshape(len(up), -1))
    used = np.any(up != 0, 0) if slot.parts > 1 else np.ones(len(down), bool)
    return down[used], up[:, used]


def own_rows(slot: Slot, x: np.ndarray) -> np.ndarray:
    """The outputs of one kernel among those, `[out,…]`, of a file's kernel."""
    size = len(x) // slot.parts
    own = x[slot.part * size : (slot.part + slot.span) * size]
    return np.roll(own, len(own) // 2, 0) if slot.swapped else own
