"""1 device, 8 devices, and 2 processes of 4 devices give the same numbers; one process writes.

When a process is killed the other ends as well, and the run goes on, also on fewer devices.
"""

import importlib.util
import json
import math
import re
import shutil
import signal
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import report
from dreambooth_jax.evaluate import perceptual

pytestmark = pytest.mark.long

Stages = dict[str, Path]
# What the output does not depend on: a softmax does not see what is added to all keys, nor a
# GroupNorm, here of one channel a group, what is added to all tokens. Their gradients are nothing
# but rounding, and Adam makes whole steps of them.
UNSEEN = ("add_embedding.pool.k_proj.bias", "encoder_hid_proj.bias")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stages, Path]:
    return commands.reference(tmp_path_factory)


@pytest.fixture(scope="module")
def eight_devices(
    one_device: tuple[Stages, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the same run on all devices of one process."""
    folder = tmp_path_factory.mktemp("eight") / "run"
    commands.run_here(commands.config(one_device[0], **commands.MESH), folder)
    return folder


def assert_same_losses(folder: Path, reference: Path) -> None:
    """Every loss within 1e-4 of the other run's, relative to it; of steps made twice as well."""
    for stage, steps in commands.STEPS.items():
        expected = {line["step"]: line for line in commands.lines(reference, stage)}
        lines = commands.lines(folder, stage)
        assert {line["step"] for line in lines} == {*range(1, steps + 1)}
        for a in lines:
            b = expected[a["step"]]
            names = [name for name in b if name.startswith(f"{stage}/loss")]
            assert len(names) == 3
            for name in names:
                assert math.isclose(a[name], b[name], rel_tol=1e-4), (name, a, b)


def assert_same_export(folder: Path, reference: Path, stages: Stages) -> None:
    """Both stages have the same files, and weights that differ by 1e-3 of what training changed."""
    for stage in stages:
        before = commands.weights(stages[stage])
        a, b = (commands.weights(root / "export" / stage) for root in (folder, reference))
        names = commands.different(before, b)
        assert names == commands.different(before, a)
        assert {name.split("/")[0] for name in names} == {"unet"}
        seen = [name for name in names if not name.endswith(UNSEEN)]
        assert len(seen) == len(names) - len(UNSEEN)
        off, moved = (
            math.sqrt(sum(np.square(x[name] - b[name]).sum() for name in seen)) for x in (a, before)
        )
        print(f"{stage}: {off / moved:.1e} of the change")
        assert off < 1e-3 * moved
    files, expected = (commands.contents(root / "export") for root in (folder, reference))
    assert files.keys() == expected.keys()


def assert_same_pictures(folder: Path, reference: Path) -> None:
    """Every picture within one level of 255: sums across processes are taken in another order."""
    names = sorted(path.relative_to(reference) for path in reference.rglob("*.png"))
    assert names
    for name in names:
        a, b = (np.asarray(Image.open(root / name), np.int16) for root in (folder, reference))
        assert np.abs(a - b).max() <= 1, name


def test_eight_devices(one_device: tuple[Stages, Path], eight_devices: Path) -> None:
    stages, reference = one_device
    assert_same_losses(eight_devices, reference)
    assert_same_export(eight_devices, reference, stages)


def test_two_processes(
    one_device: tuple[Stages, Path], eight_devices: Path, tmp_path: Path
) -> None:
    stages, reference = one_device
    folder = tmp_path / "run"
    # With scores in the end, where a judge is installed: both processes run it.
    judged = importlib.util.find_spec(perceptual.PACKAGE) is not None
    changed = {"evaluate__at_end": judged, "evaluate__batch_size": 8}
    changed |= {"evaluate__encoders": "lpips_alex", "train__sample_every": 0}
    flags = commands.flags(stages, folder, **commands.MESH, **changed)

    # Process 1 dies while it writes one of its pictures of the second block of class images. Only
    # the first block is in the manifest, and is not drawn again.
    more = {"prior__num_images": 12, "prior__folder": str(folder / "prior")}
    first = commands.flags(stages, tmp_path / "first", **commands.MESH, **changed, **more)
    codes, outputs, ended = commands.together(
        first, rf"^open {folder}/prior/00011\.tmp", host_timeout=8
    )
    assert codes[1] == -signal.SIGKILL, outputs[1][-3000:]
    assert codes[0] not in (0, None), outputs[0][-3000:]
    assert ended[0] - ended[1] < 120
    assert re.search("No sign of life from process 1 .* no checkpoint yet", outputs[0])
    drawn = json.loads((folder / "prior" / "manifest.json").read_text())["images"]
    assert len(drawn) == 8
    times = {name: (folder / "prior" / name).stat().st_mtime_ns for name in drawn}

    # It dies while it writes its part of the upscaler's second checkpoint, or the first time that
    # it writes anything but its share of pictures: that is for process 0 to do.
    others = rf"{folder}/(?!checkpoints|(prior|samples)/\S*\d\.tmp)"
    writes = rf"^(open {others}\S+ \S*[wax+]|os\.rename {others})"
    part = rf"^open {folder}/checkpoints/upscaler/\S*\b4\b\S* \S*[wax+]"
    codes, outputs, ended = commands.together(flags, f"{writes}|{part}", host_timeout=8)
    assert codes[1] == -signal.SIGKILL, outputs[1][-3000:]
    assert codes[0] not in (0, None), outputs[0][-3000:]
    assert ended[0] - ended[1] < 120
    assert re.search("No sign of life from process 1 .* base step 6, upscaler step 2", outputs[0])
    assert not report.is_final(folder / "report.html")
    fewer = tmp_path / "fewer"
    shutil.copytree(folder, fewer)

    already = len(commands.lines(folder, "upscaler"))
    codes, outputs, _ = commands.together(flags, writes)
    assert codes == [0, 0], "\n".join(output[-3000:] for output in outputs)
    # On from the last checkpoints.
    assert len(commands.lines(folder, "base")) == commands.STEPS["base"]
    assert commands.lines(folder, "upscaler")[already]["step"] == 3
    assert "Photos of the subject" in outputs[0]
    assert "Photos of the subject" not in outputs[1]  # one process tells
    assert (folder / "report.html").is_file()
    assert (folder / "scores.json").is_file() == judged
    assert_same_losses(folder, eight_devices)
    assert_same_export(folder, eight_devices, stages)
    assert times == {name: (folder / "prior" / name).stat().st_mtime_ns for name in drawn}
    for made in ("prior", "samples/before"):  # by the untouched model
        assert_same_pictures(folder / made, eight_devices / made)

    # What the two left when one died, on one device.
    commands.run(commands.flags(stages, fewer))
    assert_same_losses(fewer, reference)
    assert_same_export(fewer, reference, stages)
