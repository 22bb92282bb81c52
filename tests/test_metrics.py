"""Tests of the writers: what stands on disk is read by the standard library, or by hand."""

import builtins
import importlib.util
import inspect
import json
import math
import runpy
import struct
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import metrics

METHODS = ["write_scalars", "write_images", "write_texts", "write_hparams", "flush", "close"]
WRITERS = [
    metrics.JsonlWriter,
    metrics.TensorBoardWriter,
    metrics.MultiWriter,
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def lines(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [
        json.loads(line, parse_constant=refuse) for line in path.read_text("utf-8").splitlines()
    ]


def test_a_line_holds_step_numbers_and_time(path):
    before = time.time()
    writer = metrics.JsonlWriter(path)
    assert metrics.read(path) == []
    scalars = {"loss": jnp.float32(0.25), "count": 3, "rate": np.array([0.5]), "ok": True}
    writer.write_scalars(jnp.int32(7), scalars)
    (line,) = lines(path)  # readable before anything is closed
    assert before - 0.001 <= line.pop("time") <= time.time() + 0.001
    assert line == {"step": 7, "loss": 0.25, "count": 3.0, "rate": 0.5, "ok": 1.0}
    assert [type(value) for value in line.values()] == [int, float, float, float, float]
    assert metrics.read(path)[0].items() >= line.items()


def test_what_is_no_number_becomes_null(path):
    metrics.JsonlWriter(path).write_scalars(
        1, {"a": math.nan, "b": math.inf, "c": jnp.float32(-jnp.inf), "d": 1e300}
    )
    (line,) = lines(path)
    assert {name: line[name] for name in "abcd"} == {"a": None, "b": None, "c": None, "d": 1e300}
    assert metrics.read(path)[0]["a"] is None


def test_pictures_leave_no_line(path):
    writer = metrics.JsonlWriter(path)
    writer.write_scalars(1, {"loss": 1})
    writer.write_images(1, {"samples": np.zeros((1, 2, 2, 3), np.uint8)})
    writer.flush()
    writer.close()
    assert len(lines(path)) == 1


def test_a_resumed_run_overrides_the_steps_it_repeats(path):
    first = metrics.JsonlWriter(path)
    for step in (10, 20, 30):
        first.write_scalars(step, {"loss": step / 100, "norm": 1})
    first.write_scalars(20, {"score": 0.75})  # a second call for a step adds to it
    first.close()
    second = metrics.JsonlWriter(path)
    for step in (20, 30, 40):
        second.write_scalars(step, {"loss": step})
    assert len(lines(path)) == 7
    found = [{k: v for k, v in record.items() if k != "time"} for record in metrics.read(path)]
    assert found == [
        {"step": 10, "loss": 0.1, "norm": 1.0},
        {"step": 20, "loss": 20.0, "norm": 1.0, "score": 0.75},
        {"step": 30, "loss": 30.0, "norm": 1.0},
        {"step": 40, "loss": 40.0},
    ]


@pytest.mark.parametrize("length", range(1, 21))
def test_a_line_cut_by_a_kill_is_ignored_and_mended(path, length):
    whole = b'{"step": 1, "loss": 2.0}\n'
    torn = b'{"step": 2, "loss":'
    path.parent.mkdir()
    path.write_bytes(whole + (torn + b"\xce")[:length])  # 20: inside a letter of two bytes
    assert metrics.read(path) == [{"step": 1, "loss": 2.0}]
    metrics.JsonlWriter(path).write_scalars(3, {"loss": 4})
    assert [line["step"] for line in lines(path)] == [1, 3]


def test_a_last_line_that_only_lacks_its_end_is_kept(path):
    path.parent.mkdir()
    path.write_bytes(b'{"step": 1, "loss": 2.0}')
    assert metrics.read(path) == [{"step": 1, "loss": 2.0}]
    metrics.JsonlWriter(path).write_scalars(3, {"loss": 4})
    assert [line["step"] for line in lines(path)] == [1, 3]


BAD_LINES = (
    "{'step': 1}",
    '{"loss": 1}',
    "[1]",
    '{"step": "1"}',
    '{"step": -1}',
    '{"step": 1' + "0" * 400 + "}",
    "[" * 100_000,
    "\x00\x01",
)


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_in_the_middle_is_left_out_with_a_warning(path, bad, caplog):
    """A log of numbers is no reason to end a run after all its training."""
    path.parent.mkdir()
    path.write_text(f'{{"step": 1, "loss": 2}}\n{bad}\n{{"step": 2}}\n')
    with caplog.at_level("WARNING"):
        assert metrics.read(path) == [{"step": 1, "loss": 2}, {"step": 2}]
    (line,) = caplog.messages
    assert "metrics.jsonl, line 2: found" in line and len(line) < 400


@pytest.mark.parametrize("value", ['"abc"', "[1]", "{}", "true", "1" + "0" * 400])
def test_a_value_that_is_no_number_is_left_out_with_a_warning(path, value, caplog):
    path.parent.mkdir()
    path.write_text(f'{{"step": 1, "loss": {value}, "lr": 0.5}}\n')
    with caplog.at_level("WARNING"):
        assert metrics.read(path) == [{"step": 1, "lr": 0.5}]
    assert "line 1: found" in caplog.text and "expected a number or null" in caplog.text


@pytest.mark.parametrize("name", ["step", "time"])
def test_the_writers_own_names_are_refused(path, name):
    with pytest.raises(ValueError, match=f"called '{name}'.*rename"):
        metrics.JsonlWriter(path).write_scalars(1, {name: 1.0})


def test_an_array_is_no_scalar(path):
    with pytest.raises(ValueError, match=r"'loss' has shape \[3\].*write its mean"):
        metrics.JsonlWriter(path).write_scalars(1, {"loss": np.ones(3)})


@pytest.fixture(scope="module")
def clu_interface():
    """clu's MetricWriter, from its one file: its package wants TensorFlow."""
    package = importlib.util.find_spec("clu")
    if package is None:
        pytest.skip("compares with clu")
    path = Path(package.submodule_search_locations[0], "metric_writers", "interface.py")
    return runpy.run_path(str(path))["MetricWriter"]


@pytest.mark.parametrize("writer", [metrics.Writer, *WRITERS])
def test_names_and_arguments_are_those_of_clu(writer, clu_interface):
    for name in METHODS:
        wanted = inspect.signature(getattr(clu_interface, name)).parameters
        assert list(inspect.signature(getattr(writer, name)).parameters) == list(wanted)


class Recorder:
    """Notes every call; `fails` on close."""

    def __init__(self, *, fails: bool = False):
        self.calls, self.fails = [], fails

    def __getattr__(self, name):
        def note(*args):
            self.calls.append((name, *args))
            if self.fails and name == "close":
                raise OSError("disk full")

        return note


def test_several_writers_hear_the_same():
    one, two = Recorder(), Recorder()
    writer = metrics.MultiWriter([one, two])
    writer.write_scalars(1, {"a": 1})
    writer.write_images(2, {"b": 2})
    writer.flush()
    writer.close()
    assert one.calls == two.calls
    assert one.calls == [
        ("write_scalars", 1, {"a": 1}),
        ("write_images", 2, {"b": 2}),
        ("flush",),
        ("close",),
    ]


@pytest.mark.parametrize("broken", [0, 1])
def test_one_writer_that_cannot_close_keeps_none_open(broken):
    writers = [Recorder(fails=i == broken) for i in range(2)]
    with pytest.raises(OSError, match="disk full"):
        metrics.MultiWriter(writers).close()
    assert [writer.calls for writer in writers] == [[("close",)], [("close",)]]


def events(folder):
    """Events of all files in a folder; a record is length, checksum, event, checksum (TFRecord)."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.rglob("events.out.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_tensorboard_files_hold_numbers_and_pictures(tmp_path):
    pytest.importorskip("tensorboardX", reason="writes the event files")
    writer = metrics.TensorBoardWriter(tmp_path)
    writer.write_scalars(5, {"loss": jnp.float32(0.25), "bad": math.nan})
    writer.write_images(5, {"many": np.zeros((2, 4, 6, 3), np.uint8)})
    writer.write_images(5, {"one": np.full((4, 6, 3), 200, np.uint8)})
    writer.flush()
    writer.close()
    writer.close()
    values = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
    assert values["loss"][0] == 5
    assert values["loss"][1].simple_value == 0.25
    assert math.isnan(values["bad"][1].simple_value)
    assert (values["one"][1].image.height, values["one"][1].image.width) == (4, 6)
    assert values["many"][1].image.height * values["many"][1].image.width >= 2 * 4 * 6


def test_tensorboard_wants_bytes(tmp_path):
    pytest.importorskip("tensorboardX", reason="writes the event files")
    writer = metrics.TensorBoardWriter(tmp_path)
    with pytest.raises(ValueError, match=r"'x' are float32 \[1, 2, 2, 3\]; expected uint8"):
        writer.write_images(1, {"x": np.zeros((1, 2, 2, 3), np.float32)})
    writer.close()


def test_without_tensorboardx_the_message_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "tensorboardX":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"dreambooth_jax\[tensorboard\]"):
        metrics.TensorBoardWriter(tmp_path)


def test_tensorboard_has_texts_and_settings(tmp_path):
    pytest.importorskip("tensorboardX", reason="writes the event files")
    writer = metrics.TensorBoardWriter(tmp_path)
    writer.write_texts(3, {"prompts": "a zib bird"})
    writer.write_hparams({"optim.learning_rate": 0.5, "stages": ("base",), "resolution": None})
    writer.close()
    values = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
    (text,) = (found for tag, found in values.items() if tag.startswith("prompts"))
    assert text[0] == 3 and text[1].tensor.string_val[0] == b"a zib bird"
    told = b"".join(e.SerializeToString() for e in events(tmp_path))
    assert b"optim.learning_rate" in told and b"('base',)" in told
