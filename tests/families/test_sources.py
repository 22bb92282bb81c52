"""A model in one file, and another autoencoder, against the folder that PyTorch wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreambooth_jax import families, pipeline, untrusted
from dreambooth_jax.export import single_file
from dreambooth_jax.families import original_keys, single_files, sources

pytest.importorskip("torch", reason="its pipelines are read: install the extra `parity`")
pytest.importorskip("diffusers", reason="its pipelines are read: extra `parity`")
import flows
import latents

VARIANTS = ("sd1", "sd2", "sdxl", "sd3", "flux dev")


def saved(file: Path, tensors: dict[str, np.ndarray], **metadata: str) -> Path:
    save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, file, metadata or None)
    return file


class Made:
    """Folders of PyTorch's pipelines by variant, and the single file of each."""

    def __init__(self, root: Path):
        self.root, self._known = root, {}

    def __call__(self, variant: str) -> tuple[Path, Path, dict[str, Any]]:
        if variant not in self._known:
            kind = flows if variant.startswith(("sd3", "flux")) else latents
            folder = kind.make(self.root / variant, variant)
            stage = families.open_stage(str(folder), kind="base")
            flat = pipeline.read_weights(stage)
            file = self.root / f"{variant}.safetensors"
            single_file.write(stage, flat, file, dtype="float32", about={})
            self._known[variant] = folder, file, flat
        return self._known[variant]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("sources"))


def opened(file: Path, folder: Path, cache: Path, **more: Any) -> Any:
    """The stage of a single file, with the settings of a folder."""
    return families.open_stage(
        str(file),
        kind="base",
        changes=families.Changes(settings=str(folder)),
        cache_dir=str(cache),
        **more,
    )


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert np.array_equal(found[path], value), path


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_of_a_single_file_is_that_of_the_folder(variant, made, tmp_path):
    """The file's layout is checked against diffusers' reader in tests/export/test_single_file.py.

    What it lacks, FLUX.1's text encoders and autoencoder, comes from the settings' folder.
    """
    folder, file, expected = made(variant)
    stage = opened(file, folder, tmp_path)
    assert stage.folder.is_relative_to(tmp_path)
    assert_same(pipeline.read_weights(stage), expected)
    before = families.open_stage(str(folder), kind="base")
    assert stage.path.prediction_type == before.path.prediction_type
    prompts = ["a zib owl"]
    for name, value in before.tokens(prompts).items():
        assert np.array_equal(stage.tokens(prompts)[name], value)
    kept = {path: path.stat().st_mtime_ns for path in stage.folder.rglob("*.safetensors")}
    assert opened(file, folder, tmp_path).folder == stage.folder
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_files_of_other_programs(made, tmp_path, monkeypatch):
    """Averaged weights and tables beside, prefixes left out, 8 bits, several parts of 1 kB."""
    folder, file, expected = made("sd1")
    tensors = load_file(file)
    tensors["model_ema.decay"] = np.zeros(1, np.float32)
    tensors["alphas_cumprod"] = np.zeros(1000, np.float32)
    bare = {key.replace(".text_model.", "."): value for key, value in tensors.items()}
    other = saved(tmp_path / "other.safetensors", bare)
    monkeypatch.setattr(single_files, "_SHARD", 1024)
    stage = opened(other, folder, tmp_path)
    assert len(list((stage.folder / "unet").glob("*.safetensors"))) > 3
    assert_same(pipeline.read_weights(stage), expected)
    # safetensors' numpy writer has no 8-bit type: the header is written by hand.
    eight = {key: x.astype(ml_dtypes.float8_e4m3fn) for key, x in load_file(file).items()}
    header, place = {}, 0
    for key, x in eight.items():
        header[key] = {
            "dtype": "F8_E4M3",
            "shape": [*x.shape],
            "data_offsets": [place, place + x.nbytes],
        }
        place += x.nbytes
    text = json.dumps(header).encode()
    body = b"".join(x.tobytes() for x in eight.values())
    (tmp_path / "eight.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    found = pipeline.read_weights(opened(tmp_path / "eight.safetensors", folder, tmp_path))
    for path, value in expected.items():
        rounded = value.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        assert np.array_equal(found[path], rounded), path


def test_flux_s_keys_with_the_prefix_of_other_programs(made, tmp_path):
    folder, file, expected = made("flux dev")
    named = {f"model.diffusion_model.{key}": x for key, x in load_file(file).items()}
    assert_same(
        pipeline.read_weights(opened(saved(tmp_path / "x.safetensors", named), folder, tmp_path)),
        expected,
    )


def test_tensors_that_nothing_reads_are_told_without_a_prefix_as_well(made, tmp_path):
    """A scale left out would make a weight hundreds of times too large, without a word."""
    folder, file, _ = made("flux dev")
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("img_attn.qkv.weight"))
    number = np.ones((), np.float32)
    for name, words in (
        ("double_blocks.0.more.weight", "1 tensors are not known, such as double_blocks.0.more"),
        (f"{key.removesuffix('weight')}scale_weight", "1 scales of weights of 8 bits.*in 16 bits"),
        (f"model.diffusion_model.{key}.weight_scale", "1 scales of weights of 8 bits"),
        ("text_encoders.t5xxl.transformer.x.scale_weight", "1 scales of weights of 8 bits"),
        ("scaled_fp8", "such as scaled_fp8"),
    ):
        bad = saved(tmp_path / "x.safetensors", tensors | {name: number})
        with pytest.raises(untrusted.FileError, match=words):
            opened(bad, folder, tmp_path)


def test_a_file_tells_what_its_network_predicts(made, tmp_path, caplog):
    """SDXL's marks and modelspec's line overrule the settings, which are another model's."""
    folder, file, _ = made("sdxl")
    tensors, empty = load_file(file), np.zeros((0,), np.float32)
    marked = saved(tmp_path / "v.safetensors", tensors | {"v_pred": empty, "ztsnr": empty})
    stage = opened(marked, folder, tmp_path)
    assert stage.path.prediction_type == "v_prediction"
    assert stage.path.alphas_cumprod[-1] == 0
    folder, file, _ = made("sd2")  # its settings say v
    assert "stable-diffusion-2-1-base" not in caplog.text
    silent = saved(tmp_path / "s.safetensors", load_file(file))
    assert opened(silent, folder, tmp_path).path.prediction_type == "v_prediction"
    assert "base_settings=stabilityai/stable-diffusion-2-1-base" in caplog.text
    said = saved(
        tmp_path / "e.safetensors", load_file(file), **{"modelspec.prediction_type": "epsilon"}
    )
    assert opened(said, folder, tmp_path).path.prediction_type == "epsilon"


def test_what_does_not_fit_is_one_message_that_names_the_file(made, tmp_path):
    folder, file, _ = made("sd1")
    tensors, unet = load_file(file), "model.diffusion_model."
    first = f"{unet}input_blocks.0.0.weight"
    lost = {key: x for key, x in tensors.items() if key != f"{unet}out.2.weight"}
    wide = tensors | {first: np.zeros((32, 9, 3, 3), np.float32)}
    wrong = {
        "lost": (lost, r"1 tensors of unet are missing, such as conv_out\.weight"),
        "more": (tensors | {f"{unet}motion.weight": tensors[first]}, "1 tensors are not known"),
        "wide": (wide, r"conv_in\.weight: found \(32, 9, 3, 3\), expected \(32, 4, 3, 3\)"),
        "lora": ({"lora_unet_x.lora_down.weight": tensors[first]}, "no base model"),
        "refiner": ({sources._REFINER: tensors[first]}, "refiner"),
    }
    for name, (content, words) in wrong.items():
        bad = saved(tmp_path / f"{name}.safetensors", content)
        settings = "" if name in ("lora", "refiner") else str(folder)
        with pytest.raises(untrusted.FileError, match=words) as error:
            families.open_stage(
                str(bad),
                kind="base",
                changes=families.Changes(settings=settings),
                cache_dir=str(tmp_path / "cache"),
            )
        assert str(bad) in str(error.value)
    assert not any((tmp_path / "cache" / "single_files").glob("*/"))
    with pytest.raises(ValueError, match=r"base_settings = .*expected none"):
        families.open_stage(
            str(folder), kind="base", changes=families.Changes(settings=str(folder))
        )


def test_settings_that_are_not_at_hand_are_told_with_the_remedy(made, tmp_path):
    file = made("sdxl")[1]
    with pytest.raises(FileNotFoundError, match=r"stable-diffusion-xl-base-1\.0") as error:
        families.open_stage(str(file), kind="base", cache_dir=str(tmp_path), offline=True)
    assert "--config.base_settings=FOLDER" in str(error.value)


@pytest.mark.parametrize(
    ("variant", "model"),
    [
        ("sd1", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("sd2", "stabilityai/stable-diffusion-2-1"),
        ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("sd3", "stabilityai/stable-diffusion-3.5-medium"),  # has the second attention
        ("flux dev", "black-forest-labs/FLUX.1-dev"),
    ],
)
def test_the_published_model_of_a_file_is_known_by_its_tensors(variant, model, made):
    file = made(variant)[1]
    assert sources.settings_of(file, load_file(file)) == model


def another_vae(folder: Path, **changed: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """An autoencoder's folder with other numbers, and its tensors."""
    place = folder / "diffusion_pytorch_model.safetensors"
    tensors = {key: x + np.float32(0.5) for key, x in load_file(place).items()}
    place.unlink()
    saved(place, tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    return folder, tensors


def test_another_autoencoder_from_a_folder_a_model_or_a_file(made, tmp_path):
    folder, _, expected = made("sd1")
    vae, tensors = another_vae(Path(shutil.copytree(folder / "vae", tmp_path / "model" / "vae")))
    file = saved(tmp_path / "vae.safetensors", original_keys.vae(tensors))
    wanted = {
        path: x + np.float32(0.5) if path.startswith("vae/") else x for path, x in expected.items()
    }
    for given in (vae, tmp_path / "model", file):
        stage = families.open_stage(
            str(folder),
            kind="base",
            changes=families.Changes(vae=str(given)),
            cache_dir=str(tmp_path / "cache"),
        )
        assert_same(pipeline.read_weights(stage), wanted)
    assert_same(pipeline.read_weights(families.open_stage(str(folder), kind="base")), expected)


def test_an_autoencoder_of_other_latents_is_refused(made, tmp_path, tiny_cascade):
    folder = made("sd1")[0]
    vae = Path(shutil.copytree(folder / "vae", tmp_path / "vae"))
    another_vae(vae, scaling_factor=0.13025)
    how = {"kind": "base", "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(untrusted.FileError, match=r"scaling_factor: 0\.13025, but 0\.18215"):
        families.open_stage(str(folder), changes=families.Changes(vae=str(vae)), **how)
    with pytest.raises(ValueError, match="without an autoencoder"):
        families.open_stage(
            str(tiny_cascade["base"]), changes=families.Changes(vae=str(vae)), **how
        )
    with pytest.raises(FileNotFoundError, match="vae_model = 'nowhere'"):
        families.open_stage(str(folder), changes=families.Changes(vae="nowhere"), **how)
    lora = saved(tmp_path / "lora.safetensors", {"x": np.zeros(1, np.float32)})
    with pytest.raises(untrusted.FileError, match="are not in the file, such as"):
        families.open_stage(str(folder), changes=families.Changes(vae=str(lora)), **how)
