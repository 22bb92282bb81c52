"""Flow families: killed and resumed, on eight devices, and in two processes, a run is the same."""

import math
import signal

import commands
import numpy as np
import pytest

pytest.importorskip("torch", reason="makes pipelines with PyTorch: install the extra `parity`")
pytest.importorskip("diffusers", reason="makes pipelines with diffusers: extra `parity`")
import flows
import qwen_pipelines

pytestmark = pytest.mark.long

SHORT = {name: value for name, value in flows.SHORT.items() if value is not None} | {
    "prior__num_images": 8,
    "prior__batch_size": 8,
    "train__batch_size": 8,
    "train__checkpoint_every": 1,
    "sample__prompts": ("a {subject}",),
}
FAMILIES = ("sd3", "flux dev", "z_image", "klein")
# A Qwen3 of four layers stands for one of 36.
FIRST = f"from dreambooth_jax.families import flux2; flux2.READ = {qwen_pipelines.READ}"


def assert_near(folder, reference, model):
    """Losses within 1e-4 of the other run's; weights within 1e-3 of what training changed."""
    lines = {line["step"]: line for line in commands.lines(reference, "base")}
    assert lines
    for line in commands.lines(folder, "base"):
        assert math.isclose(line["base/loss"], lines[line["step"]]["base/loss"], rel_tol=1e-4)
    before = commands.weights(model)
    a, b = (commands.weights(root / "export") for root in (folder, reference))
    shared = before.keys() & b.keys()  # the LoRA's own files are new
    before, a, b = ({name: x[name] for name in shared} for x in (before, a, b))
    changed = commands.different(before, b)
    assert changed
    assert changed == commands.different(before, a)
    off, moved = (
        math.sqrt(sum(np.square(np.float64(x[name]) - b[name]).sum() for name in changed))
        for x in (a, before)
    )
    print(f"{off / moved:.1e} of the change")
    assert off < 1e-3 * moved


@pytest.mark.parametrize("family", FAMILIES)
def test_kill_9_eight_devices_and_two_processes(family, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth_jax.families.flux2.READ", qwen_pipelines.READ)
    maker = qwen_pipelines if family in qwen_pipelines.CLASSES else flows
    model = maker.make(tmp_path / "model", family)
    stages = {"base": model, "upscaler": ""}

    def flags(folder, **changed):
        return commands.flags(stages, folder, **SHORT | changed)

    alone, killed = tmp_path / "alone", tmp_path / "killed"
    commands.run(flags(alone), first=FIRST)
    # Killed while it writes its second checkpoint, it ends with the same files bit for bit.
    part = rf"^open {killed}/checkpoints/base/\S*\b2\b\S* \S*[wax+]"
    commands.run(
        flags(killed), expect=-signal.SIGKILL, signalled=(signal.SIGKILL, part, 1), first=FIRST
    )
    commands.run(flags(killed), first=FIRST)
    exports = (commands.weights(folder / "export") for folder in (alone, killed))
    assert not commands.different(*exports)

    eight = tmp_path / "eight"
    commands.run_here(commands.config(stages, **SHORT | commands.MESH), eight)
    assert_near(eight, alone, model)

    two = tmp_path / "two"
    codes, outputs, _ = commands.together(flags(two, **commands.MESH), first=FIRST)
    assert codes == [0, 0], "\n".join(output[-3000:] for output in outputs)
    assert_near(two, eight, model)
    assert_near(two, alone, model)
