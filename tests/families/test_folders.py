"""Model folders of others: parts that do not belong together, values that nothing can honour."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dreambooth_jax import families


@pytest.fixture
def copied(tiny_cascade: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cascade["base"], tmp_path / "model"))


def write(file: Path, content: Any) -> None:
    file.write_text(content if isinstance(content, str) else json.dumps(content))


VALUES: tuple[tuple[str, str, Any], ...] = (
    ("unet/config.json", "layers_per_block", 10**9),
    ("unet/config.json", "layers_per_block", -1),
    ("unet/config.json", "layers_per_block", "two"),
    ("unet/config.json", "block_out_channels", "abc"),
    ("unet/config.json", "block_out_channels", [10**12]),
    ("unet/config.json", "block_out_channels", None),
    ("unet/config.json", "in_channels", "3"),
    ("unet/config.json", "in_channels", None),
    ("unet/config.json", "sample_size", 10**9),
    ("unet/config.json", "sample_size", -32),
    ("unet/config.json", "sample_size", 0),
    ("unet/config.json", "sample_size", 10**5),
    ("unet/config.json", "sample_size", [8, True]),
    ("unet/config.json", "norm_num_groups", 0),
    ("unet/config.json", "attention_head_dim", 0),
    ("unet/config.json", "cross_attention_dim", {}),
    ("text_encoder/config.json", "num_layers", 10**9),
    ("text_encoder/config.json", "num_layers", None),
    ("text_encoder/config.json", "d_model", "x"),
    ("text_encoder/config.json", "num_heads", [1]),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**10),
    ("scheduler/scheduler_config.json", "num_train_timesteps", "x"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", -1),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**6),
    ("scheduler/scheduler_config.json", "beta_end", "x"),
    ("scheduler/scheduler_config.json", "beta_schedule", ["linear"]),
    ("model_index.json", "_class_name", []),
    ("model_index.json", "_class_name", ["file", "Class"]),
    ("model_index.json", "_class_name", {"a": 1}),
)


@pytest.mark.parametrize(("name", "key", "value"), VALUES)
def test_a_value_of_any_kind_is_one_message_that_names_the_model(
    name: str, key: str, value: Any, copied: Path
) -> None:
    """Nothing but ValueError and OSError may come out: `main` prints these without a traceback."""
    file = copied / name
    write(file, {**json.loads(file.read_text()), key: value})
    with pytest.raises((ValueError, OSError)) as error:
        families.open_stage(str(copied), kind="base")
    assert str(copied) in str(error.value)
    assert key in str(error.value) or key == "_class_name"


@pytest.mark.parametrize("content", ["[]", "null", "3", "[" * 100_000, "{}"])
@pytest.mark.parametrize(
    "name", ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
)
def test_json_of_any_shape_is_one_message(name: str, content: str, copied: Path) -> None:
    write(copied / name, content)
    if content == "{}" and name.startswith("scheduler"):
        families.open_stage(str(copied), kind="base")  # all keys have a default there
        return
    with pytest.raises((ValueError, OSError)) as error:
        families.open_stage(str(copied), kind="base")
    assert str(copied) in str(error.value)


def test_a_tokenizer_that_gives_ids_beyond_the_table_is_refused(copied: Path) -> None:
    """JAX takes the last row for an index outside of it, without a word."""
    file = copied / "text_encoder" / "config.json"
    write(file, {**json.loads(file.read_text()), "vocab_size": 100})
    with pytest.raises(ValueError, match=r"table has 100 rows, .* ids up to \d+") as error:
        families.open_stage(str(copied), kind="base")
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("pipeline_class", "instead"),
    [
        ("FluxKontextPipeline", "black-forest-labs/FLUX.1-dev"),
        ("FluxFillPipeline", "black-forest-labs/FLUX.1-dev"),
        ("FluxControlPipeline", "black-forest-labs/FLUX.1-dev"),  # Canny and Depth
        ("Flux2Pipeline", "black-forest-labs/FLUX.2-klein-base-4B"),
        ("ZImageOmniPipeline", "Tongyi-MAI/Z-Image"),
        ("ChromaPipeline", None),
    ],
)
def test_a_pipeline_that_reads_other_inputs_is_refused_by_name(
    pipeline_class: str, instead: str | None, tmp_path: Path
) -> None:
    write(tmp_path / "model_index.json", {"_class_name": pipeline_class})
    with pytest.raises(ValueError, match=f"{pipeline_class!r} is not supported") as error:
        families.open_stage(str(tmp_path), kind="base")
    assert instead is None or f"--config.base_model={instead}." in str(error.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("models/x.safetensors", "no file 'models/x.safetensors'"),
        ("x.safetensors", "no file 'x.safetensors'"),
        ("b/model.ckpt", r"pickle.*from_single_file\('b/model.ckpt'\).*save_pretrained"),
    ],
)
def test_a_single_file_is_no_hub_id_and_what_to_write_is_told(name: str, told: str) -> None:
    with pytest.raises(FileNotFoundError, match=told):
        families.open_stage(name, kind="base")
