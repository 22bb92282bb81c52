"""The exported folder: its base's layout, the weights that were given, whole or not at all."""

import json
from pathlib import Path

import cascades
import numpy as np
import pytest
from safetensors.numpy import load_file

from dreambooth_jax import __version__, export, families, pipeline, weights

ABOUT = {"base model": "tiny", "instance prompt": "a zib bird", "seed": 0}
STEMS = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
FILES = {part: f"{part}/{stem}.safetensors" for part, stem in STEMS.items()}


@pytest.fixture(scope="module")
def stages(tiny_cascade):
    return {k: families.open_stage(str(folder), kind=k) for k, folder in tiny_cascade.items()}


@pytest.fixture(scope="module")
def trained(stages):
    """Weights that are not the base's."""
    return {k: cascades.random_weights(stage.abstract, seed=9) for k, stage in stages.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def without_weights(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if ".safetensors" not in name}


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["base", "upscaler"])
def test_the_folder_read_back_is_what_was_given(kind, stages, trained, tiny_cascade, tmp_path):
    target = tmp_path / "deep" / kind
    made = export.diffusers_folder(
        stages[kind], trained[kind], target, dtype="float32", about=ABOUT
    )
    assert made == target
    again = families.open_stage(str(target), kind=kind)
    flat = pipeline.read_weights(again)
    assert flat.keys() == trained[kind].keys()
    assert all(np.array_equal(flat[path], trained[kind][path]) for path in flat)
    for name in FILES.values():
        base, ours = load_file(str(tiny_cascade[kind] / name)), load_file(str(target / name))
        assert ours.keys() == base.keys()
        assert {k: x.shape for k, x in ours.items()} == {k: x.shape for k, x in base.items()}
    assert [p.name for p in target.parent.iterdir()] == [kind]


def test_all_other_files_are_the_base_s(stages, trained, tiny_cascade, tmp_path):
    made = export.diffusers_folder(
        stages["upscaler"], trained["upscaler"], tmp_path / "x", dtype="float32", about=ABOUT
    )
    base, ours = without_weights(tiny_cascade["upscaler"]), without_weights(made)
    assert ours.keys() - base.keys() == {"README.md"} and base.keys() <= ours.keys()
    changed = {name for name in base if ours[name] != base[name]}
    assert changed == {"scheduler/scheduler_config.json", "text_encoder/config.json"}
    # Not float16, the file's: PyTorch would open the text encoder in it and the UNet in float32.
    assert json.loads(ours["text_encoder/config.json"]) == cascades.TEXT | {"dtype": "float32"}


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_fewer_bits_round_each_number(dtype, bits, stages, trained, tmp_path):
    made = export.diffusers_folder(
        stages["base"], trained["base"], tmp_path / "x", dtype=dtype, about=ABOUT
    )
    for name in FILES.values():
        assert {x.dtype for x in load_file(str(made / name)).values()} == {np.dtype(dtype)}
    flat = pipeline.read_weights(families.open_stage(str(made), kind="base"))
    errors = [
        (np.abs(flat[path] - x) / np.maximum(np.abs(x), 1e-4)).max()
        for path, x in trained["base"].items()
    ]
    # Half a unit in the last place; below 2⁻¹⁴ float16 has fewer digits, hence 1e-4 above.
    assert 2.0 ** -(bits + 2) < max(errors) <= 2.0**-bits


def test_a_learned_variance_is_fixed_and_the_card_says_so(stages, trained, tmp_path):
    made = export.diffusers_folder(
        stages["base"], trained["base"], tmp_path / "x", dtype="float32", about=ABOUT
    )
    scheduler = json.loads((made / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == cascades.SCHEDULER | {"variance_type": "fixed_small"}
    assert "`variance_type` is `fixed_small`" in text_of(made)
    # The same from a stage that already samples so.
    same = export.diffusers_folder(
        stages["base"].fine_tuned(), trained["base"], tmp_path / "z", dtype="float32", about=ABOUT
    )
    assert without_weights(same) == without_weights(made)
    # Sampling in the run and from the export agree about it.
    found = families.open_stage(str(made), kind="base").path
    ours = stages["base"].fine_tuned().path
    assert found.variance_type == ours.variance_type == "fixed_small"
    # A second export of the export has nothing to change.
    again = families.open_stage(str(made), kind="base")
    twice = export.diffusers_folder(
        again, trained["base"], tmp_path / "y", dtype="float32", about=ABOUT
    )
    assert without_weights(twice)["scheduler/scheduler_config.json"].decode() == (
        (made / "scheduler" / "scheduler_config.json").read_text()
    )
    assert "variance_type" not in text_of(twice)


def test_a_stage_that_was_not_trained_keeps_its_learned_variance(
    stages, trained, tiny_cascade, tmp_path
):
    made = export.diffusers_folder(
        stages["base"],
        trained["base"],
        tmp_path / "x",
        dtype="float32",
        about=ABOUT,
        path=stages["base"].fine_tuned(learned_variance="trained").path,
    )
    name = "scheduler/scheduler_config.json"
    assert without_weights(made)[name] == without_weights(tiny_cascade["base"])[name]
    assert "variance_type" not in text_of(made)


def test_the_model_card_tells_what_it_is_and_how_to_open_it(stages, trained, tmp_path):
    about = ABOUT | {"fine-tuned": "7 steps of 4 rows"}
    for kind, name in (("base", "IFPipeline"), ("upscaler", "IFSuperResolutionPipeline")):
        made = export.diffusers_folder(
            stages[kind], trained[kind], tmp_path / kind, dtype="float16", about=about
        )
        _, front, body = text_of(made).split("---\n")
        assert "library_name: diffusers" in front and "dreambooth" in front
        assert body.startswith("\n# DreamBooth: a zib bird\n")
        assert f"`diffusers.{name}.from_pretrained`" in body and __version__ in body
        for key, value in about.items():
            assert f"\n- {key}: {value}\n" in body


def test_weights_of_the_base_do_not_travel_along_but_other_components_do(trained, tmp_path):
    folder = cascades.make(tmp_path / "base", "base")
    stale = [
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "text_encoder/pytorch_model.bin.index.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "whole_model.ckpt",
        ".cache/x.json",
    ]
    kept = ["safety_checker/model.safetensors", "safety_checker/config.json", "LICENSE.md"]
    for name in stale + kept:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    stage = families.open_stage(str(folder), kind="base")
    made = export.diffusers_folder(
        stage, trained["base"], tmp_path / "x", dtype="float32", about=ABOUT
    )
    found = contents(made)
    assert not found.keys() & set(stale)
    assert {found[name].decode() for name in kept} == set(kept)


def test_missing_weights_are_listed_and_nothing_is_written(stages, trained, tmp_path):
    few = {path: x for path, x in trained["base"].items() if path != "unet/conv_in/bias"}
    with pytest.raises(ValueError, match="unet/conv_in/bias"):
        export.diffusers_folder(stages["base"], few, tmp_path / "x", dtype="float32", about=ABOUT)
    assert list(tmp_path.iterdir()) == []


def broken_disk(monkeypatch):
    """What is read back differs from what was written in one bit."""
    read = pipeline.read_weights

    def flipped(stage, **kwargs):
        flat = read(stage, **kwargs)
        bias = flat["unet/conv_in/bias"].copy()
        bias[0] = np.nextafter(bias[0], 2)
        return flat | {"unet/conv_in/bias": bias}

    monkeypatch.setattr(pipeline, "read_weights", flipped)


def interrupted(monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "write", stop)


@pytest.mark.parametrize(
    ("accident", "error", "said"),
    [
        (broken_disk, ValueError, "unet/conv_in/bias read back differs"),
        (interrupted, KeyboardInterrupt, None),
        (None, ValueError, "conv_in/bias does not fit float16"),
    ],
)
def test_an_accident_leaves_the_export_of_before_as_it_was(
    accident, error, said, stages, trained, tmp_path, monkeypatch
):
    target = tmp_path / "x"
    export.diffusers_folder(stages["base"], trained["base"], target, dtype="float32", about=ABOUT)
    before = contents(target)
    new = dict(trained["base"])
    if accident is None:
        new["unet/conv_in/bias"] = np.full_like(new["unet/conv_in/bias"], 1e6)
    else:
        accident(monkeypatch)
    with pytest.raises(error, match=said):
        export.diffusers_folder(stages["base"], new, target, dtype="float16", about={"a": 1})
    assert contents(target) == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]  # no half-written folder beside it


def test_a_new_export_replaces_the_old_one_whole(stages, trained, tmp_path):
    target = tmp_path / "x"
    export.diffusers_folder(stages["base"], trained["base"], target, dtype="float32", about=ABOUT)
    (target / "leftover.txt").write_text("of the old one")
    other = cascades.random_weights(stages["base"].abstract, seed=3)
    export.diffusers_folder(stages["base"], other, target, dtype="float32", about=ABOUT)
    flat = pipeline.read_weights(families.open_stage(str(target), kind="base"))
    assert np.array_equal(flat["unet/conv_in/bias"], other["unet/conv_in/bias"])
    assert not (target / "leftover.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_folder_of_something_else_is_not_replaced(stages, trained, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").write_text("dear")
    with pytest.raises(ValueError, match="holds something else"):
        export.diffusers_folder(
            stages["base"], trained["base"], tmp_path / "photos", dtype="float32", about=ABOUT
        )
    assert contents(tmp_path) == {"photos/dog.jpg": b"dear"}
    (tmp_path / "empty").mkdir()
    export.diffusers_folder(
        stages["base"], trained["base"], tmp_path / "empty", dtype="float32", about=ABOUT
    )
