"""Latent models' folders with odd parts: opened as diffusers opens them, or refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreambooth_jax import families, pipeline, untrusted

pytest.importorskip("torch", reason="its pipelines are read: install the extra `parity`")
pytest.importorskip("diffusers", reason="its pipelines are read: extra `parity`")
import latents


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {variant: latents.make(root / variant, variant) for variant in ("sd1", "sdxl")}


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in made.items()}


def change(file: Path, **values: Any) -> None:
    """Other values in a JSON file; None removes the key."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: x for key, x in content.items() if x is not None}))


def add(file: Path, **tensors: np.ndarray) -> None:
    content = load_file(file) | {key.replace("__", "."): x for key, x in tensors.items()}
    file.unlink()
    save_file(content, file)


def test_parts_that_others_have_beside_are_left_out(
    copied: dict[str, Path], made: dict[str, Path]
) -> None:
    """Half of a CLIP that sees pictures, projections that nothing reads, marks of a UNet."""
    folder, one = copied["sd1"], np.zeros(1, np.float32)
    add(folder / "unet" / "diffusion_pytorch_model.safetensors", v_pred=one, ztsnr=one)
    add(
        folder / "text_encoder" / "model.safetensors",
        logit_scale=one,
        text_projection__weight=np.zeros((32, 32), np.float32),
        visual_projection__weight=np.zeros((32, 32), np.float32),
        vision_model__encoder__layers__0__mlp__fc1__weight=np.zeros((8, 8), np.float32),
    )
    change(folder / "text_encoder" / "config.json", architectures=["CLIPModel"])
    expected = pipeline.read_weights(families.open_stage(str(made["sd1"]), kind="base"))
    found = pipeline.read_weights(families.open_stage(str(folder), kind="base"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], x) for path, x in expected.items())
    add(folder / "unet" / "diffusion_pytorch_model.safetensors", motion=one)
    with pytest.raises(ValueError, match="motion"):
        pipeline.read_weights(families.open_stage(str(folder), kind="base"))


def test_a_variant_of_some_components_only(copied: dict[str, Path], made: dict[str, Path]) -> None:
    """Each direction: the UNet has no plain file, the others have none of the variant."""
    place = copied["sd1"] / "unet" / "diffusion_pytorch_model.safetensors"
    place.rename(place.with_name("diffusion_pytorch_model.fp16.safetensors"))
    expected = pipeline.read_weights(families.open_stage(str(made["sd1"]), kind="base"))
    stage = families.open_stage(str(copied["sd1"]), kind="base", variant="fp16")
    found = pipeline.read_weights(stage)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], x) for path, x in expected.items())
    with pytest.raises(FileNotFoundError, match=r"Write --config\.variant=fp16"):
        pipeline.read_weights(families.open_stage(str(copied["sd1"]), kind="base"))


def test_the_class_of_an_encoder_is_that_of_the_index(copied: dict[str, Path]) -> None:
    """SDXL's second encoder has a projection, whatever its own settings leave out."""
    folder = copied["sdxl"]
    change(folder / "text_encoder_2" / "config.json", architectures=None)
    stage = families.open_stage(str(folder), kind="base")
    weights = pipeline.read_weights(stage)
    assert "text_encoder_2/text_projection/kernel" in weights
    change(folder / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])
    with pytest.raises(untrusted.FileError, match="text_encoder_2: SDXL needs a CLIP with a proj"):
        families.open_stage(str(folder), kind="base")


@pytest.mark.parametrize(("variant", "channels"), [("sd1", 9), ("sdxl", 9), ("sd1", 8)])
def test_a_unet_of_other_channels_than_the_latents_is_named(
    variant: str, channels: int, copied: dict[str, Path]
) -> None:
    file = copied[variant] / "unet" / "config.json"
    change(file, in_channels=channels)
    with pytest.raises(untrusted.FileError, match=f"in_channels = {channels}, but the VAE's .* 4"):
        families.open_stage(str(copied[variant]), kind="base")


def test_an_xl_folder_without_the_key_has_zeros_for_no_prompt(copied: dict[str, Path]) -> None:
    """diffusers' own default, and what every published XL says."""
    for value, zeros in ((None, True), (False, False), (True, True)):
        change(copied["sdxl"] / "model_index.json", force_zeros_for_empty_prompt=value)
        stage = families.open_stage(str(copied["sdxl"]), kind="base")
        assert stage.conditioner.zeros_for_empty is zeros


def test_prompts_with_new_tokens_end_at_the_end_mark(copied: dict[str, Path]) -> None:
    """A CLIP with the old end mark pools at the largest id, which a new token would have."""
    for name in ("text_encoder", "text_encoder_2"):
        change(copied["sdxl"] / name / "config.json", eos_token_id=2)
    plain = families.open_stage(str(copied["sdxl"]), kind="base")
    weights = pipeline.read_weights(plain)
    stage = plain.with_word("<zib>", count=1)
    for path in stage.new_rows:
        table = np.zeros(stage.abstract[path].shape, np.float32)
        table[: len(weights[path])] = weights[path]
        weights[path] = table
    prompts = ["a <zib> dog", "a <zib> dog in the forest at night"]
    pooled = stage.encode_text(weights, stage.tokens(prompts), dtype=jnp.float32).pooled
    assert np.abs(pooled[0] - pooled[1]).max() > 0.01


def test_an_added_token_with_capitals_stays_as_it_is_spelled(copied: dict[str, Path]) -> None:
    """Prompts are made lower case, and "<Cat>" of another's inversion is one token all the same."""
    import transformers

    place = copied["sd1"] / "tokenizer"
    theirs = transformers.CLIPTokenizer.from_pretrained(place)
    theirs.add_tokens([transformers.AddedToken("<Cat>", normalized=False)])
    theirs.save_pretrained(place)
    change(copied["sd1"] / "text_encoder" / "config.json", vocab_size=515)
    tokenizer = families.open_stage(str(copied["sd1"]), kind="base").tokenizer
    prompt = "A photo of a <Cat> DOG"
    expected = theirs(prompt, padding="max_length", max_length=77)["input_ids"]
    assert 514 in expected
    assert tokenizer.encode([prompt])["ids"][0].tolist() == expected
    extended = tokenizer.with_word("<Zib>", count=1)
    assert extended.new_ids[0] in extended.ids("a <Zib> dog")
    assert extended.new_ids[0] not in extended.ids("a <zib> dog")
