"""LoRA files as the start of a training: the change is that of the file, whoever wrote it.

The files are those of `export.lora_file`, which PyTorch diffusers reads in test_lora_files.py.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreambooth_jax import export, families, kernels, pipeline, untrusted
from dreambooth_jax.adapt import lora
from dreambooth_jax.export import lora_start
from dreambooth_jax.families.unet import LORA_TARGETS

pytest.importorskip("torch", reason="its pipelines are read: install the extra `parity`")
pytest.importorskip("diffusers", reason="its pipelines are read: extra `parity`")
import latents

RULES = (("vae/.*", False), (".*", True))
CONVOLUTIONS = r"unet/.*(to_\w|proj_in|conv1|conv_shortcut)/kernel"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Stage and weights by variant."""
    root, found = tmp_path_factory.mktemp("start"), {}
    for variant in ("sd1", "sdxl"):
        stage = families.open_stage(str(latents.make(root / variant, variant)), kind="base")
        found[variant] = stage, pipeline.read_weights(stage)
    return found


def factors(flat, rank, *, dora=False, targets=LORA_TARGETS):
    return lora.init(flat, RULES, rank=rank, targets=targets, dora=dora, seed=0)[0]


def trained(flat, rank, **how):
    rng = np.random.default_rng(1)
    return {
        path: (x + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
        for path, x in factors(flat, rank, **how).items()
    }


def fused(flat, changed, alpha):
    return kernels.all_fused(lora.combine(flat, changed, alpha=alpha))


@pytest.mark.parametrize(
    ("variant", "dora", "targets", "rank"),
    [
        ("sd1", False, CONVOLUTIONS, 3),
        ("sd1", True, CONVOLUTIONS, 3),
        ("sdxl", False, LORA_TARGETS, 5),  # more than the file's
        ("sdxl", True, LORA_TARGETS, 3),
    ],
)
def test_the_change_at_the_start_is_that_of_the_file(
    variant, dora, targets, rank, models, tmp_path
):
    stage, flat = models[variant]
    before = trained(flat, 3, dora=dora, targets=targets)
    expected = fused(flat, before, alpha=1.5)
    files = export.lora_file.write(stage, before, tmp_path, alpha=1.5, dtype="float32", about={})
    fresh = factors(flat, rank, dora=dora, targets=targets)
    for given in (tmp_path, *files):
        begun = lora_start.begun(stage, str(given), fresh, alpha=4.0)
        found = fused(flat, begun, alpha=4.0)
        assert begun.keys() == fresh.keys()
        for path, value in expected.items():
            largest = np.abs(value - flat[path]).max()
            assert np.abs(found[path] - value).max() <= 1e-5 * max(largest, 1e-3), path
    # A larger rank has directions left to learn: both factors zero would have no gradient.
    if rank > 3:
        path = next(iter(lora.adapted(begun)))
        assert np.abs(np.asarray(begun[f"{path}/{lora.DOWN}"])[..., 3:]).min() > 0


def test_scales_of_other_programs_are_read(models, tmp_path):
    """α in PEFT's settings, as diffusers writes them, and under diffusers' older keys."""
    stage, flat = models["sd1"]
    only = r"unet/mid_block/.*to_q/kernel"
    before = trained(flat, 3, targets=only)
    tensors = export.lora_file.peft(before, alpha=3.0, dtype="float32")  # α / r = 1
    about = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "unet.r": 3})}
    save_file(tensors, tmp_path / "peft.safetensors", about)
    older = {
        key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): x
        for key, x in tensors.items()
    }
    save_file(older, tmp_path / "older.safetensors")
    for name, scale in (("peft", 2.0), ("older", 1.0)):
        begun = lora_start.begun(
            stage, str(tmp_path / f"{name}.safetensors"), factors(flat, 3, targets=only), alpha=3.0
        )
        for path in lora.adapted(begun):
            expected = scale * before[f"{path}/{lora.DOWN}"] @ before[f"{path}/{lora.UP}"]
            found = begun[f"{path}/{lora.DOWN}"] @ begun[f"{path}/{lora.UP}"]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_file_that_does_not_fit_is_one_message_with_the_remedy(models, tmp_path):
    stage, flat = models["sd1"]
    before = trained(flat, 3)
    file = export.lora_file.write(stage, before, tmp_path, alpha=3, dtype="float32", about={})[0]
    whole = load_file(file)
    unet_only = factors(flat, 3, targets=rf"unet/{LORA_TARGETS}")

    def refused(fresh, words):
        with pytest.raises(untrusted.FileError, match=words) as error:
            lora_start.begun(stage, str(file), fresh, alpha=3.0)
        assert str(file) in str(error.value)

    refused(factors(flat, 2), "rank is 3, .*adapt.rank=3")
    refused(unet_only, "belong to no kernel .*text_encoder=True")
    refused(factors(flat, 3, dora=True), "no DoRA. Write --config.adapt.dora=False")
    key = next(key for key in whole if key.endswith("lora_A.weight"))
    for changed, words in (
        (np.zeros((3, 999), np.float32), "of another base model"),
        (np.full_like(whole[key], np.nan), "not finite"),
    ):
        save_file(whole | {key: changed}, file)
        refused(factors(flat, 3), words)
    for content in (b"", b"x" * 100):
        file.write_bytes(content)
        refused(factors(flat, 3), "cannot be read as a whole safetensors file")
    for given in ("nowhere.safetensors", str(tmp_path / "empty"), __file__):
        with pytest.raises(FileNotFoundError, match=r"adapt\.lora_file = "):
            lora_start.begun(stage, given, unet_only, alpha=3.0)
