"""Settings of networks that no network can have: each named in the message, and never a traceback.

All eleven networks whose `config.json` is read, each key, and values of every wrong kind.
"""

import dataclasses
import math
import typing
from typing import Any

import pytest

from dreambooth_jax import untrusted
from dreambooth_jax.models import clip, clip_pair, flux, flux2, mmdit, qwen3, t5, unet, vae, vit
from dreambooth_jax.models import z_image as z

STACK = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
UNET = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [8, 8], "cross_attention_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "norm_num_groups": 4,
}  # fmt: skip
T5 = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
FLUX2 = {
    "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "joint_attention_dim": 12,
    "in_channels": 16, "attention_head_dim": 8, "axes_dims_rope": [2, 2, 2, 2],
}  # fmt: skip
MMDIT = {
    "num_layers": 1, "num_attention_heads": 2, "pos_embed_max_size": 8, "attention_head_dim": 4,
    "caption_projection_dim": 8,
}  # fmt: skip
QWEN3 = STACK | {"vocab_size": 9, "num_key_value_heads": 1, "head_dim": 4, "rope_theta": 1e6}
Z_IMAGE = {
    "in_channels": 4, "dim": 16, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 2, "cap_feat_dim": 8, "axes_dims": [2, 2, 4], "axes_lens": [64, 8, 8],
}  # fmt: skip
FLUX = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "unet": (unet.UNetConfig, UNET),
    "vae": (vae.VaeConfig, {"block_out_channels": [8, 8], "norm_num_groups": 4}),
    "t5": (t5.T5Config, T5),
    "clip": (clip.ClipConfig, STACK | {"vocab_size": 9}),
    "clip_pair": (clip_pair.VisionConfig, STACK | {"image_size": 8, "patch_size": 4}),
    "vit": (vit.VitConfig, STACK | {"image_size": 8, "patch_size": 4}),
    "qwen3": (qwen3.Qwen3Config, QWEN3),
    "flux": (flux.FluxConfig, FLUX),
    "flux2": (flux2.Flux2Config, FLUX2),
    "mmdit": (mmdit.MMDiTConfig, MMDIT),
    "z_image": (z.ZImageConfig, Z_IMAGE),
}
# Fields that no file sets.
OURS = {"clip": {"projects", "skip"}}
OF_OTHER_KINDS: dict[Any, list[Any]] = {
    int: [-1, -(10**6), 1.5, True, "8", "", [8], {}, {"a": 1}, [], math.nan],
    float: [-1.0, math.nan, math.inf, "1", True, [1.0], {}],
    bool: [0, 1, "true", [True], {}],
    str: [3, ["text"], {}, True],
    tuple: ["abc", [-1], ["x"], [None], [[8]], {}, {"a": 1}, True, "", [1.5], [math.nan]],
}


def keys() -> list[tuple[str, str]]:
    """Each field of each network."""
    return [
        (name, field.name)
        for name, (cls, _) in NETWORKS.items()
        for field in dataclasses.fields(cls)
        if field.name not in OURS.get(name, ())
    ]


@pytest.mark.parametrize(("name", "key"), keys())
def test_a_value_of_another_kind_is_told_with_its_key(name: str, key: str) -> None:
    cls, sound = NETWORKS[name]
    cls.from_dict(sound)  # may be: what is told below is told of the changed key
    hint = typing.get_type_hints(cls)[key]
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    kind = typing.get_origin(hint) if typing.get_origin(hint) is tuple else (parts or [hint])[0]
    for value in OF_OTHER_KINDS[kind]:
        with pytest.raises(ValueError, match=rf"{key} (=|has|is) ") as error:
            cls.from_dict({**sound, key: value})
        assert any(word in str(error.value) for word in ("expected", "supported", "missing"))
        assert len(str(error.value)) < 2000


@pytest.mark.parametrize("name", NETWORKS)
def test_no_number_makes_a_network_that_takes_all_memory(name: str) -> None:
    cls, sound = NETWORKS[name]
    for key in {field.name for field in dataclasses.fields(cls)} & sound.keys():
        for number in (10**9, 10**400):
            value = [number] if isinstance(sound[key], list) else number
            with pytest.raises(untrusted.FileError, match=key):
                untrusted.bounded({**sound, key: value}, "config.json")


@pytest.mark.parametrize("name", NETWORKS)
def test_zero_is_no_size(name: str) -> None:
    cls, sound = NETWORKS[name]
    hints = typing.get_type_hints(cls)
    sizes = [
        key
        for key in {field.name for field in dataclasses.fields(cls)} - OURS.get(name, set())
        if int in (hints[key], *typing.get_args(hints[key]))
        and not any(part in key for part in ("layers", "token_id", "axes_dims"))
    ]
    assert sizes
    for key in sizes:
        value = [0, 0] if typing.get_origin(hints[key]) is tuple else 0
        with pytest.raises(ValueError, match=f"{key} = "):
            cls.from_dict({**sound, key: value})
