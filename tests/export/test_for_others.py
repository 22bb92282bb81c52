"""What other programs look for in exported files, and what an export hands on of its base."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dreambooth_jax.adapt import lora
from dreambooth_jax.export import embeddings_file, folder, lora_file, single_file


def factors(path: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"{path}/{lora.DOWN}": rng.normal(size=(*shape[:-1], 2)).astype(np.float32),
        f"{path}/{lora.UP}": rng.normal(size=(2, shape[-1])).astype(np.float32),
        f"{path}/{lora.LENGTH}": rng.normal(size=shape[-1:]).astype(np.float32),
    }


@pytest.mark.parametrize(
    ("path", "shape", "key", "as_written"),
    [
        ("unet/mid/to_q/kernel", (4, 6), "unet.mid.to_q.lora_magnitude_vector", (6,)),
        ("unet/conv1/kernel", (3, 3, 4, 6), "unet.conv1.lora_magnitude_vector", (1, 6, 1, 1)),
        (
            "text_encoder/layers/0/q_proj/kernel",
            (4, 6),
            "text_encoder.layers.0.q_proj.lora_magnitude_vector.weight",
            (6,),
        ),
    ],
)
def test_lengths_of_dora_under_the_keys_and_shapes_that_diffusers_reads(
    path: str, shape: tuple[int, ...], key: str, as_written: tuple[int, ...]
) -> None:
    """diffusers 0.42 with peft 0.21; what it draws with them is in `test_lora_files`."""
    made = factors(path, shape)
    found = lora_file.peft(made, alpha=2.0, dtype="float32")
    assert found[key].shape == as_written
    np.testing.assert_array_equal(found[key].ravel(), made[f"{path}/{lora.LENGTH}"])


def stage(*, prediction: str, last: float, parts: tuple[str, ...]) -> Any:
    path = SimpleNamespace(prediction_type=prediction, alphas_cumprod=np.array([0.9, last]))
    return SimpleNamespace(path=path, networks=dict.fromkeys(parts), new_rows={})


TWO = ("unet", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize(
    ("prediction", "last", "parts", "expected"),
    [
        ("v_prediction", 0.0, TWO, {"v_pred", "ztsnr"}),
        ("v_prediction", 0.01, TWO, {"v_pred"}),
        ("epsilon", 0.01, TWO, set()),
        ("v_prediction", 0.0, TWO[:2], set()),
    ],
)
def test_an_xl_file_says_what_its_network_predicts(
    prediction: str, last: float, parts: tuple[str, ...], expected: set[str]
) -> None:
    """ComfyUI's and A1111's published rule: an empty tensor of that name."""
    found = single_file.markers(stage(prediction=prediction, last=last, parts=parts))
    assert found.keys() == expected and all(x.size == 0 for x in found.values())


@pytest.mark.parametrize(
    ("rows", "new", "kept"),
    [(49410, (49408, 49409), 49408), (49408, (), 49408), (50000, (), 49408), (2000, (), 2000),
     (2002, (2000, 2001), 2000)],
)  # fmt: skip
def test_a_single_file_has_the_published_vocabulary(
    rows: int, new: tuple[int, ...], kept: int
) -> None:
    path = "text_encoder/text_model/embeddings/token_embedding/embedding"
    abstract = {path: jax.ShapeDtypeStruct((rows, 8), np.float32)}
    made: Any = SimpleNamespace(abstract=abstract, new_rows={path: new} if new else {})
    assert single_file.published_rows(made, path) == kept


def test_xl_embeddings_are_one_file_for_a1111_and_comfyui(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {
        "text_encoder/new_rows": rng.normal(size=(4, 8)).astype(np.float32),
        "text_encoder_2/new_rows": rng.normal(size=(4, 12)).astype(np.float32),
    }
    embeddings_file.write(rows, tmp_path, words=["<zib>", "<sma>"], dtype="float32")
    for k, word in enumerate(("zib", "sma")):
        found = load_file(tmp_path / f"{word}.safetensors")
        assert found.keys() == {"clip_l", "clip_g"}
        own = slice(2 * k, 2 * k + 2)
        np.testing.assert_array_equal(found["clip_l"], rows["text_encoder/new_rows"][own])
        np.testing.assert_array_equal(found["clip_g"], rows["text_encoder_2/new_rows"][own])
    one = {"text_encoder/new_rows": rows["text_encoder/new_rows"]}
    made = embeddings_file.write(one, tmp_path / "sd", words=["<zib>"], dtype="float32")
    assert [file.name for file in made] == ["learned_embeds.safetensors"]


KEPT = (
    "model_index.json", "LICENSE.md", "unet/config.json", "vae/config.json",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json", "safety_checker/model.safetensors",
    "safety_checker/config.json",
)  # fmt: skip
LEFT = (
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/model.onnx", "unet/model.onnx_data", "unet/openvino_model.xml", "unet/openvino_model.bin",
    "unet/tf_model.h5", "vae_decoder/model.onnx", "vae/diffusion_pytorch_model.fp16.safetensors",
    "safety_checker/model.pt", "safety_checker/pytorch_model.bin", "safety_checker/x.pkl",
    "tokenizer/evil.py", "tokenizer/extra.json", "evil.py", "picture.png", "whole.safetensors",
    "whole.ckpt", ".git/config", "notes/secret.json",
)  # fmt: skip


def test_an_export_hands_on_what_it_knows_and_nothing_else(tmp_path: Path) -> None:
    """Also from behind a component that is a link; not a file that only a link leads to."""
    base, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    for name in (*KEPT, *LEFT):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    parts = ("unet", "vae", "tokenizer", "scheduler", "safety_checker")
    index = {"_class_name": "X", **{part: ["diffusers", "Y"] for part in parts}}
    (base / "model_index.json").write_text(json.dumps(index))
    (base / "vae").rename(elsewhere)
    (base / "vae").symlink_to(elsewhere)
    (tmp_path / "secret").write_text("secret")
    (base / "scheduler" / "more.json").symlink_to(tmp_path / "secret")
    os.mkfifo(base / "unet" / "generation_config.json")
    made: Any = SimpleNamespace(
        folder=base, networks={"unet": None, "vae": None}, unread=lambda part: False
    )
    found = {path.relative_to(base).as_posix() for path in folder._rest(made)}
    assert found == set(KEPT)
