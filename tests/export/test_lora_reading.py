"""LoRA files read: both layouts give the change that was written; what does not fit is told."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from dreambooth_jax import weights
from dreambooth_jax.export import lora_file, lora_reading, lora_start
from dreambooth_jax.families.unet import kohya
from dreambooth_jax.pipeline.family import Slot
from dreambooth_jax.untrusted import FileError

SHAPES = {
    "unet/down/0/to_q/kernel": (6, 8),
    "unet/down/0/to_k/kernel": (6, 8),
    "unet/conv/kernel": (3, 3, 5, 7),
    "unet/conv/bias": (7,),
    "text_encoder/text_model/layers/0/q_proj/kernel": (6, 6),
    "vae/conv/kernel": (3, 3, 4, 4),
}
NAMES = kohya({"unet": "lora_unet", "text_encoder": "lora_te"})


def stage(named=NAMES) -> SimpleNamespace:
    return SimpleNamespace(
        kind="base",
        folder="models/small",
        family=SimpleNamespace(kohya=named),
        abstract={k: jax.ShapeDtypeStruct(s, np.float32) for k, s in SHAPES.items()},
        is_denoiser=lambda path: path.startswith("unet/"),
        is_text=lambda path: path.startswith("text_encoder/"),
    )


@pytest.fixture
def trained(rng) -> dict[str, np.ndarray]:
    found = {}
    for path, shape in SHAPES.items():
        if path.endswith("/kernel") and not path.startswith("vae/"):
            rank = 2 if "conv" in path else 3
            found[f"{path}/lora_down"] = rng.normal(size=(*shape[:-1], rank)).astype(np.float32)
            found[f"{path}/lora_up"] = rng.normal(size=(rank, shape[-1])).astype(np.float32)
    return found


def changes_of(trained, alpha):
    """The change of each kernel, α/r·down·up."""
    found = {}
    for path in {key.rpartition("/")[0] for key in trained}:
        down, up = trained[f"{path}/lora_down"], trained[f"{path}/lora_up"]
        found[path] = alpha / len(up) * np.tensordot(down, up, 1)
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, (down, up) in found.items():
        np.testing.assert_allclose(np.tensordot(down, up, 1), expected[path], atol=1e-5)


@pytest.mark.parametrize("name", [lora_file.PEFT, lora_file.KOHYA])
def test_the_change_that_was_written_is_read(name, trained, tmp_path):
    lora_file.write(stage(), trained, tmp_path, alpha=1.5, dtype="float32", about={})
    assert_same(lora_reading.read(tmp_path / name, stage()), changes_of(trained, 1.5))


def test_kernels_that_a_file_keeps_in_one_are_taken_apart(trained, tmp_path):
    def named(stage):
        plain = NAMES(stage)
        together = {
            "unet/down/0/to_q/kernel": Slot("lora_unet_qk", 0, 2),
            "unet/down/0/to_k/kernel": Slot("lora_unet_qk", 1, 2),
            "text_encoder/text_model/layers/0/q_proj/kernel": Slot("lora_te_q", swapped=True),
        }
        return lambda path: together.get(path) or plain(path)

    lora_file.write(stage(named), trained, tmp_path, alpha=1.5, dtype="float32", about={})
    found = lora_reading.read(tmp_path / lora_file.KOHYA, stage(named))
    assert_same(found, changes_of(trained, 1.5))


def test_text_encoders_are_found_with_and_without_the_name_that_transformers_dropped(
    trained, tmp_path
):
    tensors = lora_file.peft(trained, alpha=3.0, dtype="float32")
    for name in ("old", "new"):
        renamed = {
            key.replace("text_encoder.text_model.", "text_encoder.") if name == "new" else key: x
            for key, x in tensors.items()
        }
        weights.save(tmp_path / f"{name}.safetensors", renamed)
        found = lora_reading.read(tmp_path / f"{name}.safetensors", stage())
        assert_same(found, changes_of(trained, 3.0))


def drop(tensors, part):
    return {key: x for key, x in tensors.items() if part not in key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "unet.up.to_q.lora_A.weight": np.ones((2, 6))}, "no layer of the base"),
        (lambda t: drop(t, "conv.lora_B"), r"unet\.conv\.lora_A\.weight: no layer"),
        (lambda t: {**t, "unet.conv.lora_magnitude_vector": np.ones(7)}, "is of DoRA"),
        (lambda t: {"unet.conv.hada_w1_a": np.ones((2, 2))}, "no layer of the base"),
        (lambda t: {**t, "unet.down.0.to_q.lora_A.weight": np.ones((3, 9))}, r"is \(6, 8\)"),
        (lambda t: {**t, "unet.down.0.to_q.lora_A.weight": np.full((3, 6), np.nan)}, "not finite"),
        (lambda t: {}, "no factors of LoRA"),
    ],
)
def test_what_does_not_fit_is_told(change, message, trained, tmp_path):
    tensors = change(lora_file.peft(trained, alpha=3.0, dtype="float32"))
    file = tmp_path / "other.safetensors"
    weights.save(file, {key: np.float32(x) for key, x in tensors.items()})
    with pytest.raises(FileError, match=message) as caught:
        lora_reading.read(file, stage())
    assert "other.safetensors" in str(caught.value)


KEY = "lora_unet_down_0_to_q"
HOSTILE = [  # factors and α of one kernel (6, 8), and what is told of them
    ((0, 6), (8, 0), None, "a rank r of 1 or more"),
    ((3, 0), (8, 3), None, "a rank r of 1 or more"),
    ((3, 6), (0, 3), None, "a rank r of 1 or more"),
    ((), (8, 3), None, "a rank r of 1 or more"),
    ((6,), (8,), None, "a rank r of 1 or more"),
    ((3, 6, 1), (8, 3, 1), None, "a rank r of 1 or more"),
    ((3, 6), (8, 2), None, "a rank r of 1 or more"),
    ((3, 6), (8, 3, 2, 2), None, "a rank r of 1 or more"),
    ((3, 6), (8, 3), -1.0, "above 0"),
    ((3, 6), (8, 3), 0.0, "above 0"),
    ((3, 6), (8, 3), np.zeros(0), "above 0"),
    ((3, 6), (8, 3), np.ones(2), "above 0"),
]


@pytest.mark.parametrize(("down", "up", "alpha", "message"), HOSTILE)
def test_factors_that_are_none_are_told_with_file_and_key(down, up, alpha, message, tmp_path):
    tensors = {"lora_down.weight": np.ones(down), "lora_up.weight": np.ones(up)}
    tensors |= {} if alpha is None else {"alpha": np.asarray(alpha)}
    file = tmp_path / "odd.safetensors"
    weights.save(file, {f"{KEY}.{end}": x.astype(np.float32) for end, x in tensors.items()})
    path = "unet/down/0/to_q/kernel"
    fresh = {
        f"{path}/lora_down": np.zeros((6, 3), np.float32),
        f"{path}/lora_up": np.zeros((3, 8), np.float32),
    }
    for read in (
        lambda: lora_reading.read(file, stage()),
        lambda: lora_start.begun(stage(), str(file), fresh, alpha=1.0),
    ):
        with pytest.raises(FileError, match=message) as caught:
            read()
        assert "odd.safetensors" in str(caught.value) and KEY in str(caught.value)


@pytest.mark.parametrize("alpha", ["6", -6, 0, True, None, [6], float("nan"), float("inf")])
def test_a_scale_in_the_metadata_that_is_none_is_told_by_name(alpha, trained, tmp_path):
    tensors = lora_file.peft(trained, alpha=3.0, dtype="float32")
    about = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})}
    save_file(tensors, tmp_path / "odd.safetensors", about)
    with pytest.raises(FileError, match=r"odd\.safetensors: unet\.lora_alpha of its metadata is"):
        lora_reading.read(tmp_path / "odd.safetensors", stage())


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "lora.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(FileError, match=r"lora\.safetensors"):
        lora_reading.read(tmp_path / "lora.safetensors", stage())
    with pytest.raises(FileNotFoundError):
        lora_reading.read(tmp_path / "none.safetensors", stage())
