"""DINO and CLIP against transformers, from the folders that it writes; what they are shown."""

import json
import os
import subprocess
import sys

import local_hub
import numpy as np
import pytest
from published import CLIP_B32, CLIP_L14, VIT_S16

from dreambooth_jax import sharding, tree
from dreambooth_jax.evaluate import encoders, preparation, published
from dreambooth_jax.models import clip_pair, vit

SMALL = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
SIZE = 28  # pixels of the small networks, 2 × 2 patches


@pytest.mark.parametrize(
    ("build", "config", "count"),
    [
        (vit.build, VIT_S16, 21_665_664),  # Caron et al. 2021, table 1: 21 M
        (clip_pair.build, CLIP_B32, 151_277_313),  # `open_clip` and transformers print it
        (clip_pair.build, CLIP_L14, 427_616_513),
    ],
)
def test_they_have_the_published_number_of_parameters(build, config, count):
    assert tree.count(build(config).abstract) == count


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small random models with everything that lies in a published folder."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch: extra `parity`")
    import latents
    import transformers

    root = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    of_vit = transformers.ViTConfig(**SMALL, image_size=SIZE, patch_size=14)
    dino = transformers.ViTModel(of_vit)  # with a pooler, which has no part in the features
    text = SMALL | {key: latents.CLIP[key] for key in latents.CLIP if key.endswith("_id")}
    both = transformers.CLIPConfig(
        text_config=text | {"vocab_size": 514, "hidden_size": 18},
        vision_config=SMALL | {"image_size": SIZE, "patch_size": 14},
        projection_dim=10,
    )
    clip = transformers.CLIPModel(both)
    for name, model in (("dino", dino), ("clip", clip)):
        with torch.no_grad():
            for parameter in model.parameters():  # nothing zero, nothing one
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.eval().save_pretrained(root / name)
    words = latents.write_tokenizer(root / "words")
    words.save_pretrained(root / "clip")
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE)
    processor.save_pretrained(root / "clip")
    return root, dino, clip, words, processor


def photos(rng):
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 31), (28, 61), (90, 90))]


def channels_last(x):
    return np.moveaxis(np.asarray(x), -3, -1)


def test_dino_equals_transformers(folders, rng):
    import torch

    root, model, *_ = folders
    judge = published.Dino(root / "dino", batch_size=2)
    pictures = photos(rng)
    found = judge.images(pictures)  # 3 pictures in batches of 2
    seen = torch.from_numpy(preparation.dino(SIZE)(pictures)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(pixel_values=seen).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # The same where eight devices share the pictures.
    shared = published.Dino(
        root / "dino", batch_size=2, mesh=sharding.make_mesh(data=4, fsdp=2)
    ).images(pictures)
    np.testing.assert_allclose(shared, found, atol=1e-5)


def test_clip_equals_transformers(folders, rng):
    """With its own image processor and tokenizer, so from photos and words on."""
    import torch

    root, _, model, words, processor = folders
    judge = published.Clip(root / "clip", batch_size=2)
    pictures, prompts = photos(rng), ["a red bird", "A bird", "birds of a feather"]
    inputs = processor(images=pictures, return_tensors="pt")
    tokens = words(prompts, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        both = model(**inputs, input_ids=tokens["input_ids"])
    for found, expected in (
        (judge.images(pictures), both.image_embeds),
        (judge.texts(prompts), both.text_embeds),
    ):
        unit = found / np.linalg.norm(found, axis=-1, keepdims=True)
        np.testing.assert_allclose(unit, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("size", [(300, 211), (224, 640), (90, 90), (513, 512)])
def test_pictures_are_prepared_as_the_image_processor_does(size, rng, tmp_path):
    transformers = pytest.importorskip("transformers")
    picture = rng.integers(0, 256, (*size, 3), np.uint8)

    def theirs(**settings):
        processor = transformers.CLIPImageProcessorPil(**settings)
        return channels_last(processor(images=picture, return_tensors="np")["pixel_values"])

    clip = preparation.of_processor(tmp_path, size=224)
    np.testing.assert_allclose(clip([picture]), theirs(), atol=1e-6)
    # DINO's is the same with other numbers, where the middle is between no two pixels.
    statistics = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
    dino = theirs(size={"shortest_edge": 256}, crop_size=224, **statistics)
    found = preparation.dino(224)([picture])
    spare = int(256 * max(size) / min(size)) - 224
    shift = round(spare / 2) - spare // 2  # by one pixel, or not at all
    along = 1 if size[0] > size[1] else 2
    ours, other = (np.moveaxis(x, along, 0) for x in (found, dino))
    kept = 224 - shift
    np.testing.assert_allclose(ours[:kept], other[shift:], atol=1e-6)


def test_the_middle_of_odd_pictures_is_torchvisions():
    """`torchvision.transforms.functional.center_crop`: int(round((side - crop) / 2.0))."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2).repeat(4, 0)
    for crop, first in ((1, 2), (2, 1), (3, 0), (4, 0)):  # 1.5 → 2, 1, 0.5 → 0, 0
        cut = preparation.Preparation(4, crop, (0.0,) * 3, (1 / 255,) * 3)
        assert np.rint(cut([ramp[:, :4]]))[0, 0, 0, 0] == first


def test_a_processor_that_does_something_else_is_refused(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    old = {"size": 224, "crop_size": 224, "resample": 3, "do_resize": True}
    file.write_text(json.dumps(old))
    assert preparation.of_processor(tmp_path, size=224).crop == 224
    for changed, words in (
        ({"resample": 2}, "resample = 2"),
        ({"do_center_crop": False}, "do_center_crop = False"),
        ({"crop_size": 112}, "crop_size = 112"),
        ({"size": {"height": 224, "width": 300}}, "size = "),
    ):
        file.write_text(json.dumps(old | changed))
        with pytest.raises(ValueError, match=words):
            preparation.of_processor(tmp_path, size=224)


def source(given, **changed):
    defaults = {"cache_dir": None, "offline": True, "batch_size": 2, "mesh": None}
    return encoders.Source(given=str(given), **defaults | changed)


def test_folders_that_are_none_are_told_all_at_once(tmp_path):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "empty").mkdir()
    sources = {
        "dino_vits16": source(tmp_path / "pickled"),
        "clip_vitb32": source(tmp_path / "empty"),
        "clip_vitl14": source("owner/model", cache_dir=str(tmp_path / "cache")),
    }
    with pytest.raises(encoders.EncoderError) as error:
        encoders.check(list(sources), sources)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "dino_vits16: no safetensors" in lines[1] and "is a pickle" in lines[1]
    assert "clip_vitb32: " in lines[2] and "has no config.json" in lines[2]
    assert "clip_vitl14: no folder 'owner/model'" in lines[3] and "hf download" in lines[3]
    assert encoders.at_hand(sources) == []


def test_slow_judges_are_taken_only_by_name(folders):
    root, *_ = folders
    there = {"clip_vitb32": source(root / "clip"), "clip_vitl14": source(root / "clip")}
    encoders.check(list(there), there)
    assert encoders.at_hand(there) == ["clip_vitb32"]


def test_a_config_of_something_else_is_refused(folders):
    root, *_ = folders
    with pytest.raises(ValueError, match="text_config or vision_config is missing"):
        published.Clip(root / "dino", batch_size=2)
    with pytest.raises(ValueError, match="model_type = 'clip'"):
        published.Dino(root / "clip", batch_size=2)


def test_a_judge_that_nobody_named_is_left_out_when_it_cannot_be_opened(folders, caplog):
    root, *_ = folders
    sources = {"clip_vitb32": source(root / "dino"), "dino_vits16": source(root / "dino")}
    with caplog.at_level("WARNING", logger="absl"):
        found = encoders.open_all(list(sources), sources, strict=False)
    assert [judge.name for judge in found] == ["dino_vits16"]
    assert "clip_vitb32 is left out: " in caplog.text
    with pytest.raises(ValueError, match="text_config or vision_config is missing"):
        encoders.open_all(list(sources), sources)


PROGRAM = """
import sys
from dreambooth_jax.evaluate import encoders

source = encoders.Source("owner/model", sys.argv[1], sys.argv[2] == "offline", 2, None)
sources = {"dino_vits16": source}
print(encoders.at_hand(sources))
encoders.check(["dino_vits16"], sources)
print(encoders.at_hand(sources))
"""


def test_it_is_downloaded_once_without_what_nobody_needs(folders, tmp_path):
    root, *_ = folders
    (root / "dino" / "pytorch_model.bin").write_bytes(b"pickle")
    with local_hub.serving(root / "dino") as (address, asked):
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        environment |= {"HF_HUB_DISABLE_XET": "1", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "cache"), ""],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.stdout.split("\n")[:2] == ["[]", "['dino_vits16']"], done.stderr
    assert set(asked) == {"config.json", "model.safetensors"}
