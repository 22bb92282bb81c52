"""Files of others: nothing outside of their folder, nothing that never ends, one message each."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_jax import untrusted
from dreambooth_jax.untrusted import FileError

OUTSIDE = (
    "../x", "a/../../x", "a/..", "..", ".", "", "/etc/x", "//x", "a//b", "a/", "./a", "a/./b",
    "a\\b", "..\\x", "C:/x", "C:x", "a\0b",
)  # fmt: skip


@pytest.mark.parametrize("name", [*OUTSIDE, None, 3, ["a"]])
def test_no_name_leads_out_of_its_folder(name, tmp_path):
    with pytest.raises(FileError, match=r"the list names .*nothing was read or written") as error:
        untrusted.below(tmp_path, name, of="the list")
    assert repr(name) in str(error.value)


@given(st.text(alphabet="./\\ab:", max_size=12))
def test_a_name_that_passes_is_below_in_the_eyes_of_the_system(name):
    folder = Path("there")
    try:
        path = untrusted.below(folder, name, of="the list")
    except FileError:
        return
    plain = os.path.normpath(path)
    assert plain == os.fspath(path) and plain.startswith(f"there{os.sep}")


def endless(folder: Path, kind: str) -> Path:
    file = folder / "x.json"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        (folder / "pipe").mkdir()
        os.mkfifo(folder / "pipe" / "p")
        file.symlink_to(folder / "pipe" / "p")
    return file


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a pipe"])
@pytest.mark.parametrize("read", [untrusted.regular, untrusted.text, untrusted.json_object])
def test_what_never_ends_is_not_opened(kind, read, tmp_path):
    file = endless(tmp_path, kind)
    with pytest.raises(FileError, match=r"expected a regular file"):
        read(file)


def test_what_is_too_large_is_not_read(tmp_path):
    file = tmp_path / "x.json"
    with file.open("wb") as opened:
        opened.truncate(2**40)  # a hole: it takes no room
    with pytest.raises(FileError, match=r"x\.json has 1\.05e\+06 MB; expected at most 64 MB"):
        untrusted.json_object(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read as JSON: Expecting property name"),
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe{}", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON: RecursionError"),
        (b"[1]", "holds a JSON list; expected an object"),
        (b"null", "holds a JSON null; expected an object"),
        (b"3", "holds a JSON int; expected an object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_json_of_any_other_shape_is_one_message_that_names_the_file(content, said, tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(FileError) as error:
        untrusted.json_object(file)
    assert str(file) in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_text_is_utf8_in_every_locale(tmp_path):
    """A program in an ASCII locale reads what another wrote."""
    file = tmp_path / "x.json"
    file.write_bytes(json.dumps({"noun": "Bär"}, ensure_ascii=False).encode())
    code = "import sys, pathlib; from dreambooth_jax import untrusted as u; "
    code += "p = pathlib.Path(sys.argv[1]); u.text(p); assert u.json_object(p)['noun'] == 'B\\xe4r'"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(file)], env=environment, check=True)


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("a\nb"),
        KeyError("k"),
        EOFError(),
        MemoryError(),
        SyntaxError("s"),
        OSError("image file is truncated"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    ],
)
def test_whatever_a_library_raises_becomes_one_line_with_the_file(raised):
    with pytest.raises(FileError) as error, untrusted.reading("some/file", "a picture"):
        raise raised
    text = str(error.value)
    assert text.startswith("some/file cannot be read as a picture: ") and "\n" not in text
    assert error.value.__cause__ is raised


def test_a_panic_of_a_rust_library_is_one_line_with_the_file(tmp_path: Path) -> None:
    """Its class derives from BaseException alone; an interrupt of the user passes."""
    tokenizers = pytest.importorskip("tokenizers")
    normalizer = {"type": "Precompiled", "precompiled_charsmap": [1]}
    content = {"version": "1.0", "normalizer": normalizer, "added_tokens": []}
    content["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    with pytest.raises(BaseException, match="Precompiled") as raised:
        tokenizers.Tokenizer.from_file(str(file))
    assert not isinstance(raised.value, Exception)
    refused = pytest.raises(FileError, match="cannot be read as a tokenizer")
    with refused, untrusted.reading(file, "a tokenizer"):
        tokenizers.Tokenizer.from_file(str(file))
    with pytest.raises(KeyboardInterrupt), untrusted.reading(file, "a tokenizer"):
        raise KeyboardInterrupt


def test_the_system_accuses_no_content():
    """A full disk or a missing right is no damage: the error keeps its kind and gets the name."""
    for number in (errno.EACCES, errno.ENOSPC, errno.EIO):
        told = pytest.raises(OSError, match="some/file")
        with told as error, untrusted.reading("some/file", "a picture"):
            raise OSError(number, os.strerror(number))
        assert error.value.errno == number


def test_a_library_that_cannot_write_is_an_error_of_the_system(tmp_path):
    told = r"model\.x cannot be written: I/O error.* MB are free"
    with pytest.raises(OSError, match=told), untrusted.writing(tmp_path / "model.x"):
        raise RuntimeError("I/O error: os error 28")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers_per_block": 10**9}, "layers_per_block = 1e+09; expected at most 1000"),
        ({"num_hidden_layers": 10_001}, "num_hidden_layers"),
        ({"block_out_channels": [32, 10**12]}, "block_out_channels = 1e+12"),
        ({"inner": {"width": -(10**9)}}, "inner.width"),
        ({"trained_betas": [0.1] * 20_000}, "20000 values"),
        ({"norm_eps": float("nan")}, "norm_eps = nan"),
        ({"size": 10**400}, "size = a number of hundreds of digits"),
    ],
)
def test_settings_that_would_take_all_memory_are_named(settings, said):
    with pytest.raises(FileError) as error:
        untrusted.bounded(settings, "unet/config.json")
    assert str(error.value).startswith("unet/config.json: ") and said in str(error.value)


def test_settings_of_published_models_are_within_the_limits():
    """T5-XXL, Stable Diffusion XL's UNet and CLIP ViT-bigG: the largest numbers of each."""
    for settings in (
        {"num_layers": 24, "d_ff": 10240, "vocab_size": 32128, "dropout_rate": 0.1},
        {"transformer_layers_per_block": [1, 2, 10], "projection_class_embeddings_input_dim": 2816},
        {"num_hidden_layers": 32, "hidden_size": 1280, "vocab_size": 49408, "bos_token_id": 49406},
    ):
        assert untrusted.bounded(settings, "x") is settings


@pytest.mark.parametrize("raised", [TypeError("t"), KeyError("heads"), ZeroDivisionError()])
def test_values_of_a_wrong_kind_name_their_file(raised):
    file = "unet/config.json"
    told = r"^unet/config\.json holds a value of a wrong kind"
    with pytest.raises(FileError, match=told), untrusted.values(file):
        raise raised
    told = r"(?s)^unet/config\.json: one\ntwo$"
    with pytest.raises(FileError, match=told), untrusted.values(file):
        raise ValueError("one\ntwo")
