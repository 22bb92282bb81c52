import itertools
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import BIAS, CONFIG, KERNEL, bits, files, like, make_state, reader, saved

from dreambooth_jax.checkpoint import CheckpointError, Checkpoints, check_space, estimate_bytes

# ---- Round trips


@pytest.mark.parametrize(("on", "onto"), [(1, 8), (8, 8), (8, 2), (2, 1)])
def test_round_trip_bit_for_bit_onto_other_devices(tmp_path: Path, on: int, onto: int) -> None:
    before = make_state(7, devices=on)
    with reader(tmp_path) as checkpoints:
        checkpoints.save(7, before)
    target = like(make_state(0, devices=onto))
    restored = reader(tmp_path).restore(target)
    assert restored is not None
    state, step = restored
    assert step == 7
    assert bits(state) == bits(before)
    assert jax.tree.structure(state) == jax.tree.structure(before)  # EmptyState, tuples, None
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == wanted.sharding
        assert len(leaf.sharding.device_set) == onto


def test_none_and_keys_and_missing_shardings(tmp_path: Path) -> None:
    state = {"state": make_state(1, ema=False), "key": jax.random.key(3)}
    with reader(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    restored = reader(tmp_path).restore(target)
    assert restored is not None
    assert restored[0]["state"].ema is None
    assert bits(restored[0]["state"]) == bits(state["state"])
    assert jax.random.uniform(restored[0]["key"]) == jax.random.uniform(state["key"])
    assert restored[0]["state"].step.devices() == {jax.local_devices()[0]}


def test_a_part_can_be_restored(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    whole = make_state(3)
    part = {"trainable": {KERNEL: whole.trainable[KERNEL]}}
    restored = reader(tmp_path).restore(like(part), partial=True)
    assert restored is not None
    assert bits(restored[0]) == bits(part)
    with pytest.raises(ValueError, match=r"left over"):
        reader(tmp_path).restore(like(part))


def test_the_step_after_a_save_may_overwrite_the_buffers(tmp_path: Path) -> None:
    update = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    state = make_state(1)
    before = bits(state)
    target = like(state)
    with reader(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(5):
            state = update(state)
        jax.block_until_ready(state)
    restored = reader(tmp_path).restore(target)
    assert restored is not None
    assert bits(restored[0]) == before


def test_nothing_there_is_not_an_error_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    checkpoints = reader(folder)
    assert checkpoints.restore(like(make_state(0))) is None
    assert checkpoints.steps() == []
    checkpoints.wait()
    checkpoints.close()
    assert not folder.exists()


def test_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 0, 5, 10, 15, max_to_keep=2)
    assert reader(tmp_path).steps() == [10, 15]
    with pytest.raises(ValueError, match="max_to_keep"):
        reader(tmp_path, max_to_keep=0)


# ---- A run that is stopped and started


def run(folder: Path, *, num_steps: int, stop_after: int | None = None) -> tuple[bytes, list[int]]:
    """A training loop in miniature: its last weights and the steps it took."""
    state = {"w": jnp.arange(8.0), "step": jnp.int32(0)}
    taken = []
    with reader(folder) as checkpoints:
        restored = checkpoints.restore(like(state))
        state, step = restored or (state, 0)
        while step < num_steps and len(taken) != stop_after:
            state = {"w": jnp.sin(state["w"] * 1.7 + step), "step": state["step"] + 1}
            step += 1
            taken.append(step)
            if step % 4 == 0:
                checkpoints.save(step, state)
        checkpoints.save(step, state)
    return np.asarray(state["w"]).tobytes(), taken


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "a", num_steps=10)
    assert run(tmp_path / "b", num_steps=10, stop_after=3)[1] == [1, 2, 3]
    assert run(tmp_path / "b", num_steps=10, stop_after=5)[1] == [4, 5, 6, 7, 8]
    weights, taken = run(tmp_path / "b", num_steps=10)
    assert taken == [9, 10]
    assert weights == whole
    again, taken = run(tmp_path / "b", num_steps=10)  # finished: nothing to do, nothing changed
    assert taken == []
    assert again == whole


# ---- What does not fit


def test_a_step_that_is_there(tmp_path: Path) -> None:
    saved(tmp_path, 4, 5)
    stamps = {file: file.stat().st_mtime_ns for file in files(tmp_path)}
    with reader(tmp_path) as checkpoints:
        checkpoints.save(5, make_state(5))  # the same values: left alone
    assert stamps == {file: file.stat().st_mtime_ns for file in files(tmp_path)}
    with reader(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"step 5 is already in .* with other values"):
            checkpoints.save(5, make_state(6))
        with pytest.raises(CheckpointError, match=r"already holds step 5, later than 3"):
            checkpoints.save(3, make_state(3))
    assert stamps == {file: file.stat().st_mtime_ns for file in files(tmp_path)}


def test_other_settings_are_refused_with_a_table(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    other = {"train": {"lr": 0.002, "num_steps": 20, "sizes": [1, 2], "seed": None}}
    with pytest.raises(CheckpointError) as error:
        reader(tmp_path, other).restore(like(make_state(0)))
    rows = [re.split(r"\s+→ |\s{2,}", line.strip()) for line in str(error.value).splitlines()[1:-1]]
    assert rows == [
        ["key", "saved", "now"],
        ["log.every", "5", "(absent)"],
        ["train.lr", "0.001", "0.002"],
        ["train.num_steps", "10", "20"],
        ["train.seed", "(absent)", "null"],
    ]
    assert "another workdir" in str(error.value)


@pytest.mark.parametrize(
    "keys", [("train.num_steps", "log"), ("train.*", "log.every"), ("train.num_*", "log.*")]
)
def test_settings_that_may_differ(tmp_path: Path, keys: tuple[str, ...]) -> None:
    saved(tmp_path, 1)
    other = {"train": CONFIG["train"] | {"num_steps": 20}, "log": {"every": 1, "images": True}}
    if keys[1] == "log.every":
        del other["log"]["images"]
    restored = reader(tmp_path, other, may_differ=keys).restore(like(make_state(0)))
    assert restored is not None
    with pytest.raises(CheckpointError, match=r"train\.num_steps"):
        reader(tmp_path, other, may_differ=("train.num", "*.every")).restore(like(make_state(0)))


def test_settings_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"config\.train\.dtype"):
        reader(tmp_path, {"train": {"dtype": jnp.float32}})


def test_leaves_that_do_not_fit_are_named(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    state = make_state(0)
    state.ema = None
    state.trainable["new"] = state.trainable[BIAS]
    with pytest.raises(ValueError, match=r"(?s)missing.*trainable/new.*left over.*ema/embedding"):
        reader(tmp_path).restore(like(state))
    state = make_state(0)
    state.trainable[BIAS] = state.trainable[BIAS].astype(jnp.float32)
    with pytest.raises(
        ValueError, match=rf"trainable/{BIAS}: float32\[8192\], saved bfloat16\[8192\]"
    ):
        reader(tmp_path).restore(like(state))
    state = make_state(0)
    state.trainable["embedding"] = state.trainable["embedding"].T
    with pytest.raises(ValueError, match=r"embedding: float32\[3, 8\], saved float32\[8, 3\]"):
        reader(tmp_path).restore(like(state))


def test_only_arrays_are_saved(tmp_path: Path) -> None:
    checkpoints = reader(tmp_path)
    with pytest.raises(TypeError, match=r"'step' of the state is int.*jnp\.asarray"):
        checkpoints.save(1, {"step": 1})
    with pytest.raises(ValueError, match=r"'a/b'"):
        checkpoints.save(1, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})


def test_a_setting_that_is_newer_than_a_checkpoint_had_its_default(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, config={"config": {"a.b": 1}}) as old:
        old.save(1, {"x": jnp.ones(2)})
    defaults = {"config": {"a.b": 0, "a.new": "off"}}
    for value in ("off", "on"):
        config = {"config": {"a.b": 1, "a.new": value}}
        with Checkpoints(tmp_path, config=config, defaults=defaults) as now:
            if value == "off":
                assert now.restore({"x": jnp.zeros(2)}) is not None
            else:
                with pytest.raises(CheckpointError, match=r'a\.new +"off" +→ "on"'):
                    now.restore({"x": jnp.zeros(2)})


# ---- Space and errors while writing


def test_the_estimate_covers_what_lies_on_disk(tmp_path: Path) -> None:
    state = {str(n): jax.random.bits(jax.random.key(n), (100, 1000)) for n in range(20)}
    with reader(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    on_disk = sum(file.stat().st_blocks * 512 for file in files(tmp_path / "1"))
    assert on_disk >= 20 * 400_000  # random bits do not compress
    assert on_disk <= estimate_bytes(like(state)) <= 1.3 * on_disk


def test_space_is_checked_ahead(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "yet", 1)
    check_space("gs://bucket/run", 10**18)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(CheckpointError) as error:
        check_space(tmp_path / "not" / "yet", free + 10**15, what="2 stages × 3 checkpoints")
    assert "2 stages × 3 checkpoints need 1e+06 GB" in str(error.value)
    assert str(tmp_path / "not" / "yet") in str(error.value)


@pytest.fixture
def short_files() -> Iterator[Callable[[], None]]:
    """A call that ends every file at 1 MB, as a full disk would; undone by a second call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = itertools.cycle([1_000_000, soft])
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (next(sizes), hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_is_told_at_the_next_call(
    tmp_path: Path, short_files: Callable[[], None]
) -> None:
    big = {"w": jax.random.bits(jax.random.key(0), (1000, 1000))}
    checkpoints = reader(tmp_path)
    checkpoints.save(1, big)
    checkpoints.wait()
    short_files()

    def two_saves() -> None:
        for step in (2, 3):
            checkpoints.save(step, {"w": big["w"] + step})

    with pytest.raises(CheckpointError) as error:
        two_saves()
    short_files()
    text = str(error.value)
    assert f"saving step 2 in {tmp_path} failed" in text
    assert "File too large" in text
    assert "Free there: " in text
    assert "The checkpoint needs 5.05 MB" in text
    assert checkpoints.steps() == [1]
    checkpoints.save(3, {"w": big["w"] + 3})  # room again
    checkpoints.close()
    assert reader(tmp_path).steps() == [1, 3]
    restored = reader(tmp_path).restore(like(big))
    assert restored is not None
    assert np.array_equal(restored[0]["w"], big["w"] + 3)


def test_a_failed_write_does_not_hide_the_error_that_ended_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, short_files: Callable[[], None]
) -> None:
    def ends_badly() -> None:
        with reader(tmp_path) as checkpoints:
            short_files()
            checkpoints.save(2, {"w": jax.random.bits(jax.random.key(0), (1000, 1000))})
            raise KeyError("the cause")

    with pytest.raises(KeyError, match="the cause"):
        ends_badly()
    assert f"saving step 2 in {tmp_path} failed" in caplog.text
