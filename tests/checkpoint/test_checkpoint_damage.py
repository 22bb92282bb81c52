import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_states import BIAS, KERNEL, bits, files, like, make_state, reader, saved

from dreambooth_jax.checkpoint import CheckpointError


def flip(file: Path, position: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(bytes(data))


def locate(step_folder: Path, content: bytes) -> tuple[Path, int]:
    """The one file and place where these bytes lie."""
    found = [
        (file, at) for file in files(step_folder) if (at := file.read_bytes().find(content)) >= 0
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("name", [KERNEL, BIAS])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.99])
def test_a_flipped_byte_is_refused_by_the_name_of_its_leaf(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, part: float
) -> None:
    saved(tmp_path, 1, 2)
    shards = make_state(2).trainable[name].addressable_shards
    chunk = np.asarray(shards[int(part * len(shards))].data).tobytes()
    file, at = locate(tmp_path / "2", chunk)
    flip(file, at + int(part * len(chunk)), bit=3)
    restored = reader(tmp_path).restore(like(make_state(0)))
    assert restored is not None
    assert restored[1] == 1
    assert bits(restored[0]) == bits(make_state(1))
    assert (
        f"REFUSED checkpoint {tmp_path / '2'}: leaf 'trainable/{name}' has checksum" in caplog.text
    )


def test_no_flipped_or_missing_byte_anywhere_gives_wrong_values(tmp_path: Path) -> None:
    good = saved(tmp_path / "good", 1, 2)
    rng = random.Random(0)
    expected = {step: bits(make_state(step)) for step in (1, 2)}
    target = like(make_state(0))
    refused = 0
    for file in files(good / "2"):
        if file.name == "commit_success.txt":  # not read on a local disk
            continue
        size = file.stat().st_size
        for what in ("flip", "flip", "cut", "gone"):
            bad = tmp_path / "bad"
            shutil.copytree(good, bad)
            victim = bad / file.relative_to(good)
            if what == "flip":
                flip(victim, rng.randrange(size), bit=rng.randrange(8))
            elif what == "cut":
                os.truncate(victim, size // 2)
            else:
                victim.unlink()
            restored = reader(bad).restore(target)
            assert restored is not None, (victim, what)
            assert bits(restored[0]) == expected[restored[1]], (victim, what)
            refused += restored[1] == 1
            shutil.rmtree(bad)
    assert refused > 12  # most of the files matter


def test_a_cut_data_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1, 2)
    data = max(files(tmp_path / "2"), key=lambda file: file.stat().st_size)
    os.truncate(data, 100)
    restored = reader(tmp_path).restore(like(make_state(0)))
    assert restored is not None
    assert restored[1] == 1
    named = re.search(r"REFUSED checkpoint .*/2: leaf '(.*?)' can't be read: ", caplog.text)
    assert named
    whole = jax.tree_util.tree_leaves_with_path(make_state(0))
    assert named[1] in {jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in whole}


def test_a_damaged_index_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1, 2)
    flip(tmp_path / "2" / "state" / "manifest.ocdbt", 50)
    restored = reader(tmp_path).restore(like(make_state(0)))
    assert restored is not None
    assert restored[1] == 1
    assert str(tmp_path / "2" / "state" / "manifest.ocdbt") in caplog.text


def test_a_changed_manifest_is_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2)
    file = tmp_path / "2" / "manifest" / "metadata"
    file.write_text(file.read_text().replace("0.001", "0.002"))  # a setting, not a leaf
    restored = reader(tmp_path).restore(like(make_state(0)))
    assert restored is not None
    assert restored[1] == 1
    assert str(file) in caplog.text
    shutil.copytree(tmp_path / "1", tmp_path / "4")  # a folder under another name
    restored = reader(tmp_path).restore(like(make_state(0)))
    assert restored is not None
    assert restored[1] == 1


def test_what_is_not_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "7").mkdir()
    (tmp_path / "8.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "8.orbax-checkpoint-tmp" / "state").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "007").mkdir()
    (tmp_path / "9").write_text("a file")
    with reader(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        restored = checkpoints.restore(like(make_state(0)))
        assert restored is not None
        assert restored[1] == 2
        checkpoints.save(3, make_state(3))
        checkpoints.save(7, make_state(7))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"3", "7", "7.corrupt", "notes", "007", "9"}
    restored = reader(tmp_path).restore(like(make_state(0)))
    assert restored is not None
    assert bits(restored[0]) == bits(make_state(7))


def test_what_an_interrupted_deletion_left_goes(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, max_to_keep=3)
    (tmp_path / "1" / "manifest" / "metadata").unlink()
    with reader(tmp_path, max_to_keep=3) as checkpoints:
        assert checkpoints.steps() == [2]
        checkpoints.save(3, make_state(3))
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}


def test_no_intact_checkpoint_is_an_error_with_all_reasons(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "1" / "manifest" / "metadata").unlink()
    data = max(files(tmp_path / "2"), key=lambda file: file.stat().st_size)
    data.write_bytes(bytes(byte ^ 1 for byte in data.read_bytes()))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError) as error:
        reader(tmp_path).restore(like(make_state(0)))
    text = str(error.value)
    assert re.search(r"\n  2: .*leaf '", text)
    assert re.search(r"\n  1: there is no .*1/manifest/metadata", text)
    assert "another workdir" in text
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_refused_step_can_be_saved_again(tmp_path: Path) -> None:
    for _ in range(2):  # the second time, 2.corrupt is there already
        shutil.rmtree(tmp_path / "2", ignore_errors=True)
        saved(tmp_path, *([] if (tmp_path / "1").exists() else [1]), 2)
        data = max(files(tmp_path / "2"), key=lambda file: file.stat().st_size)
        os.truncate(data, 10)
        with reader(tmp_path) as checkpoints:
            restored = checkpoints.restore(like(make_state(0)))
            assert restored is not None
            assert restored[1] == 1
            assert checkpoints.steps() == [1]
            assert (tmp_path / "2").exists()  # restoring alone changes nothing
            checkpoints.save(2, make_state(2))
        assert (tmp_path / "2.corrupt").exists()
        restored = reader(tmp_path).restore(like(make_state(0)))
        assert restored is not None
        assert bits(restored[0]) == bits(make_state(2))
        assert reader(tmp_path).steps() == [1, 2]


def test_a_refused_step_that_is_saved_again_counts(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for file in (tmp_path / "2" / "state" / "d").iterdir():
        file.write_bytes(b"")
    with reader(tmp_path) as checkpoints:
        restored = checkpoints.restore(like(make_state(0)))
        assert restored is not None and restored[1] == 1
        checkpoints.save(2, make_state(2))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        checkpoints.close()
        checkpoints.save(3, make_state(3))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]


DENIED = """
import os, pathlib, sys, jax, jax.numpy as jnp
from dreambooth_jax.checkpoint import Checkpoints
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
state = lambda k: {"a": jnp.full((5,), k, jnp.float32)}
with Checkpoints(folder, config={}) as c:
    c.save(1, state(1))
    c.save(2, state(2))
os.chmod(folder / "2" / name, 0)
if not os.getuid():
    os.setuid(65534)
try:
    with Checkpoints(folder, config={}) as c:
        print(c.restore(jax.eval_shape(lambda: state(1)))[1])
except PermissionError as error:
    print("PermissionError", error)
"""


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that another user can enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "manifest/metadata", "state/_METADATA"])
def test_a_file_that_may_not_be_read_is_not_damaged(name: str, open_to_all: Path) -> None:
    """The step stays, whichever file it is, and the message names the file."""
    folder = open_to_all / "c"
    done = subprocess.run(
        [sys.executable, "-c", DENIED, str(folder), name],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "PermissionError" in done.stdout, done.stdout + done.stderr[-2000:]
    assert str(folder / "2" / Path(name).parent) in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


BLOCKED = """
import pathlib, sys, jax, jax.numpy as jnp
from dreambooth_jax import main
from dreambooth_jax.checkpoint import CheckpointError, Checkpoints
folder = pathlib.Path(sys.argv[1])
(folder / "c").mkdir(parents=True)
state = {"a": jnp.zeros((5,), jnp.float32)}
try:
    with Checkpoints(folder / "c", config={}) as c:
        c.save(1, state)
        c.wait()
        (folder / "c").rename(folder / "gone")
        (folder / "c").touch()
        c.save(2, state)
        c.wait()
except CheckpointError as error:
    print(error, flush=True)
    main.leave(1)
"""


def test_a_failed_save_tells_its_cause_and_nobody_waits_for_its_threads(tmp_path: Path) -> None:
    """Orbax's threads wait 300 seconds for a folder that nobody will make."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1 and time.monotonic() - began < 100
    assert re.search(r"saving step 2 in .*/c failed: \w+: \w.*/run/c", done.stdout), done.stdout
