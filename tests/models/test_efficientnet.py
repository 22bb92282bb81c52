"""The encoder that judges pictures: against the PyTorch package its weights were made for."""

import importlib.util
import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import tree
from dreambooth_jax.data import images
from dreambooth_jax.evaluate import encoder, torch_file
from dreambooth_jax.models import efficientnet

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(encoder.PACKAGE) is None,
    reason="the encoder's weights are in the extra `eval`",
)


@pytest.fixture(scope="module")
def judge():
    return encoder.Encoder(batch_size=2)


def test_it_has_the_published_number_of_parameters():
    flat = efficientnet.build().abstract
    learned = {path: leaf for path, leaf in flat.items() if "running_" not in path}
    assert round(tree.count(learned) / 1e6, 1) == 4.7  # README of TensorFlow's efficientnet/lite


@pytest.mark.parametrize(("width", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_convolution_equals_a_grouped_one(rng, width, stride):
    x = rng.normal(size=(2, 7, 8, 6)).astype(np.float32)
    kernel = rng.normal(size=(width, width, 1, 6)).astype(np.float32)
    layer = efficientnet.DepthwiseConv(6, width=width, stride=stride)
    layer.kernel.set_value(jnp.asarray(kernel))
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(jax.jit(layer.__call__)(x), expected, atol=1e-5)


@needs_weights
def test_features_and_logits_equal_the_pytorch_package(judge, rng):
    torch = pytest.importorskip("torch", reason="compares with PyTorch: extra `parity`")
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="compares with `pip install efficientnet-lite-pytorch`"
    )
    model = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(encoder.weight_file())
    ).eval()
    pictures = rng.integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    pictures[2] = pictures[2] // 64 * 16  # another brightness and contrast
    features, logits = judge(pictures)  # 3 pictures in batches of 2
    x = torch.from_numpy((pictures.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(x).numpy(), atol=1e-4)
        pooled = model.extract_features(x).mean((2, 3)).numpy()
    np.testing.assert_allclose(features, pooled, atol=1e-4)


@needs_weights
def test_it_names_photos_as_imagenet_does(judge, shared_data):
    """414 backpack, 850 teddy, 265-267 poodles: the numbering of ImageNet-1k."""
    names = ["backpack_dog/00.jpg", "backpack_dog/01.jpg", "wolf_plushie/00.jpg", "dog3/00.jpg"]
    photos = [images.read(shared_data / "dreambooth" / "dataset" / name) for name in names]
    _, logits = judge(np.stack([images.cover(photo, 224) for photo in photos]))
    *things, dog = logits.argmax(-1)
    assert things == [414, 414, 850]
    assert dog in (265, 266, 267)


def test_small_pictures_fill_the_frame_and_black_is_minus_127_of_128():
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[:, :, 32:] = 255
    seen = encoder.prepare(picture)
    assert seen.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(seen[0, :, 0], -127 / 128)
    np.testing.assert_allclose(seen[0, :, -1], 1.0)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dreambooth_jax\[eval\]'"):
        encoder.weight_file()


def test_a_file_of_another_network_is_refused_with_both_lists(monkeypatch):
    monkeypatch.setattr(torch_file, "read", lambda path: {"classifier.weight": np.zeros(3)})
    with pytest.raises(ValueError, match=r"(?s)missing.*_bn1\.running_mean.*left over.*classifier"):
        encoder.read_weights("some.pth")


def test_old_pytorch_files_are_read_as_pytorch_wrote_them(tmp_path, rng):
    torch = pytest.importorskip("torch", reason="writes the file: extra `parity`")
    long = torch.from_numpy(rng.normal(size=60).astype(np.float32))
    tensors = {
        "kernel": torch.from_numpy(rng.normal(size=(4, 3, 2, 2)).astype(np.float32)),
        "transposed": long.view(6, 10).T,
        "part": long[7:19].view(3, 4),  # the same storage, from its middle
        "half": long.half(),
        "double": long.double(),
        "count": torch.tensor(12345678901),
        "ints": torch.arange(5, dtype=torch.int32),
        "empty": torch.zeros(0, 3),
    }
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    read = torch_file.read(tmp_path / "old.pth")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())
        assert read[name].dtype == tensor.numpy().dtype

    whole = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "short.pth").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"short\.pth is damaged: found .* bytes of storage"):
        torch_file.read(tmp_path / "short.pth")
    torch.save(tensors, tmp_path / "new.pth")
    with pytest.raises(ValueError, match=r"no weight file of the layout before PyTorch 1\.6"):
        torch_file.read(tmp_path / "new.pth")


class Evil:
    """Unpickled by Python's own reader, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def old_file(*pickles):
    """The bytes of a weight file with these objects after the three that open it."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, protocol=2) for part in (*head, *pickles))


def test_nothing_in_a_file_is_run(tmp_path):
    (tmp_path / "evil.pth").write_bytes(old_file({"weight": Evil(tmp_path / "written")}, []))
    with pytest.raises(ValueError, match=rf"wants {open.__module__}\.open.*It was not read"):
        torch_file.read(tmp_path / "evil.pth")
    assert not (tmp_path / "written").exists()


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path):
    """The strides come from the file: unchecked they would read any memory."""

    def file(offset, stride):
        body = (  # one tensor of 2 numbers, written opcode by opcode
            b"\x80\x02}U\x01w"  # an empty dictionary, the key "w"
            b"ctorch._utils\n_rebuild_tensor_v2\n"
            b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04NtQ"
            + (b"J" + struct.pack("<i", offset) + b"K\x02\x85J" + struct.pack("<i", stride))
            + b"\x85\x89}tRs."
        )
        numbers = struct.pack("<q4f", 4, 1, 2, 3, 4)
        return old_file() + body + pickle.dumps(["0"], protocol=2) + numbers

    path = tmp_path / "strides.pth"
    path.write_bytes(file(1, 2))
    np.testing.assert_array_equal(torch_file.read(path)["w"], [2, 4])
    for offset, stride in [(1, 3), (-1, 1), (3, -1)]:
        path.write_bytes(file(offset, stride))
        with pytest.raises(ValueError, match="reaches outside of its 4 numbers"):
            torch_file.read(path)


DAMAGED = (
    b"",
    b"\x80\x02.",
    b"cos\nsystem\n.",
    b"\x80\x02}q\x00" + b"r\xff\xff\xff\x7f.",
    pickle.dumps([0x1950A86A20F9469CFC6C], protocol=2),
    old_file(),
    old_file({"w": 3}, []),
    old_file({}, ["0"]),
    old_file([], 3),
)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_one_message_that_names_it(content, tmp_path):
    """pickle raises whatever its bytes provoke: EOFError, KeyError, AttributeError, …"""
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth"):
        torch_file.read(tmp_path / "x.pth")


def test_a_tensor_of_more_numbers_than_its_file_is_refused(tmp_path):
    """A stride of 0 would make terabytes of four numbers."""
    body = (
        b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n"
        b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04NtQ"
        b"K\x00J\x00\xe1\xf5\x05\x85K\x00\x85\x89}tRs."
    )
    numbers = struct.pack("<q4f", 4, 1, 2, 3, 4)
    (tmp_path / "x.pth").write_bytes(old_file() + body + pickle.dumps(["0"], protocol=2) + numbers)
    with pytest.raises(ValueError, match=r"has more than 4 numbers"):
        torch_file.read(tmp_path / "x.pth")
