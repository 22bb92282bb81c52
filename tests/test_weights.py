"""Weight files: every number at its place, both ways, and what is refused."""

import json
import os
import pickle
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreambooth_jax import families, pipeline, weights

# Path of ours, its shape, and the key and shape that PyTorch has for the same layer.
LEAVES = {
    "conv_in/kernel": ((3, 1, 2, 5), "conv_in.weight", (5, 2, 3, 1)),
    "conv_in/bias": ((5,), "conv_in.bias", (5,)),
    "mid/attentions/0/to_out/0/kernel": ((2, 4), "mid.attentions.0.to_out.0.weight", (4, 2)),
    "norm/scale": ((4,), "norm.weight", (4,)),
    "shared/embedding": ((7, 4), "shared.weight", (7, 4)),
    "pool/positional_embedding": ((1, 4), "pool.positional_embedding", (1, 4)),
}
ABSTRACT = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, (shape, *_) in LEAVES.items()}
STEM = "diffusion_pytorch_model"


@pytest.fixture
def tensors(rng) -> dict[str, np.ndarray]:
    """What a file of PyTorch holds."""
    return {key: rng.normal(size=shape).astype(np.float32) for _, key, shape in LEAVES.values()}


def save(folder, tensors, name=f"{STEM}.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file(tensors, str(folder / name), metadata={"format": "pt"})
    return folder / name


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_each_number_finds_its_place(tmp_path, tensors):
    save(tmp_path, tensors)
    flat = weights.read(tmp_path, ABSTRACT)
    assert list(flat) == list(ABSTRACT)
    conv, theirs = flat["conv_in/kernel"], tensors["conv_in.weight"]
    for y, x, i, o in np.ndindex(3, 1, 2, 5):
        assert conv[y, x, i, o] == theirs[o, i, y, x]
    x = np.array([[2.0, -3.0]], np.float32)
    linear = tensors["mid.attentions.0.to_out.0.weight"]
    expected = [[float(row @ x[0]) for row in linear]]  # y = W x
    np.testing.assert_allclose(x @ flat["mid/attentions/0/to_out/0/kernel"], expected, rtol=1e-6)
    for path in ("norm/scale", "conv_in/bias", "shared/embedding", "pool/positional_embedding"):
        assert same_bits(flat[path], tensors[LEAVES[path][1]])


def test_read_then_written_is_the_same_file_bit_for_bit(tmp_path, tensors):
    odd = [-0.0, 1e-45, np.finfo(np.float32).max, np.finfo(np.float32).tiny]
    tensors["norm.weight"] = np.array(odd, np.float32)
    save(tmp_path / "a", tensors)
    flat = weights.read(tmp_path / "a", ABSTRACT)
    file = weights.write(tmp_path / "b", flat, dtype="float32", stem=STEM)
    again = load_file(str(file))
    assert again.keys() == tensors.keys()
    assert all(same_bits(again[key], tensors[key]) for key in tensors)
    reread = weights.read(tmp_path / "b", ABSTRACT)
    assert all(same_bits(reread[path], flat[path]) for path in flat)


def test_a_whole_cascade_makes_the_round_trip(tiny_cascade, tmp_path):
    for kind, folder in tiny_cascade.items():
        stage = families.open_stage(str(folder), kind=kind)
        flat = pipeline.read_weights(stage)
        assert flat.keys() == stage.abstract.keys()
        for part, stem in stage.components.items():
            leaves = {p.removeprefix(part + "/"): x for p, x in flat.items() if p.startswith(part)}
            file = weights.write(tmp_path / kind / part, leaves, dtype="float32", stem=stem)
            before = load_file(str(folder / part / f"{stem}.safetensors"))
            after = load_file(str(file))
            assert before.keys() == after.keys()
            assert all(same_bits(before[key], after[key]) for key in before)


# 11 significant bits in float16, 8 in bfloat16; ties go to the even neighbour.
@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float16", {1 + 2**-11: 1, 1 + 3 * 2**-11: 1 + 2**-9, 65504: 65504, 2**-26: 0}),
        ("bfloat16", {1 + 2**-8: 1, 1 + 3 * 2**-8: 1 + 2**-6, 2**17: 2**17, 2**-26: 2**-26}),
        ("float32", {1 + 2**-23: 1 + 2**-23}),
    ],
)
def test_files_of_fewer_bits_hold_the_nearest_number(dtype, values, tmp_path):
    given = np.array(list(values), np.float32)
    expected = np.array(list(values.values()), np.float32)
    abstract = {"bias": jax.ShapeDtypeStruct(given.shape, np.float32)}
    file = weights.write(tmp_path, {"bias": given}, dtype=dtype, stem="model")
    assert load_file(str(file))["bias"].dtype == np.dtype(dtype)
    found = weights.read(tmp_path, abstract)["bias"]
    assert same_bits(found, expected)
    assert same_bits(weights.rounded(given, dtype), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_what_is_read_is_float32_whatever_the_file_holds(dtype, tmp_path, tensors):
    few = {key: value.astype(dtype) for key, value in tensors.items()}
    save(tmp_path, few)
    flat = weights.read(tmp_path, ABSTRACT)
    assert {leaf.dtype for leaf in flat.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(flat["norm/scale"], few["norm.weight"].astype(np.float32))


def shard(folder, tensors, *, variant=""):
    """Two files and an index, named as diffusers names them."""
    names = [f"{STEM}{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    keys = sorted(tensors)
    where = {key: names[i % 2] for i, key in enumerate(keys)}
    for name in names:
        save(folder, {key: tensors[key] for key in keys if where[key] == name}, name)
    index = folder / f"{STEM}.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return names


def test_shards_are_found_through_their_index(tmp_path, tensors):
    shard(tmp_path, tensors)
    save(tmp_path, {"stranger": np.zeros(1, np.float32)}, "lora.safetensors")  # in no index
    flat = weights.read(tmp_path, ABSTRACT)
    assert same_bits(flat["shared/embedding"], tensors["shared.weight"])
    assert flat.keys() == ABSTRACT.keys()


def test_an_absent_shard_is_named(tmp_path, tensors):
    names = shard(tmp_path, tensors)
    (tmp_path / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=names[1]) as error:
        weights.read(tmp_path, ABSTRACT)
    assert names[0] not in str(error.value)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_variant_is_read_only_when_asked_for(sharded, tmp_path, tensors):
    doubled = {key: (2 * value).astype(np.float16) for key, value in tensors.items()}
    save(tmp_path, tensors)
    if sharded:
        shard(tmp_path, doubled, variant=".fp16")
    else:
        save(tmp_path, doubled, f"{STEM}.fp16.safetensors")
    plain = weights.read(tmp_path, ABSTRACT)["norm/scale"]
    half = weights.read(tmp_path, ABSTRACT, variant="fp16")["norm/scale"]
    assert same_bits(plain, tensors["norm.weight"])
    np.testing.assert_allclose(half, 2 * plain, rtol=1e-3)


def test_an_absent_variant_says_what_there_is(tmp_path, tensors):
    save(tmp_path, tensors, "model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"There is: model\.fp16\.safetensors") as error:
        weights.read(tmp_path, ABSTRACT)
    assert "--config.variant=fp16" in str(error.value)
    (tmp_path / "model.fp16.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"Rename the file to read to diffusion_pytorch"):
        weights.read(tmp_path, ABSTRACT)
    with pytest.raises(FileNotFoundError, match="variant 'bf16'"):
        weights.read(tmp_path, ABSTRACT, variant="bf16")


def test_missing_and_left_over_keys_are_all_listed(tmp_path, tensors):
    del tensors["conv_in.bias"], tensors["norm.weight"]
    tensors |= {"time_proj.weight": np.zeros(2, np.float32), "ema.decay": np.zeros(1, np.float32)}
    save(tmp_path, tensors)
    with pytest.raises(ValueError, match="keys do not match") as error:
        weights.read(tmp_path, ABSTRACT)
    missing, left_over = str(error.value).split("left over")
    assert all(key in missing for key in ("conv_in.bias", "norm.weight", str(tmp_path)))
    assert all(key in left_over for key in ("time_proj.weight", "ema.decay"))
    assert "shared.weight" not in str(error.value)


def test_all_wrong_shapes_are_named_with_both_shapes(tmp_path, tensors):
    tensors["norm.weight"] = np.zeros(3, np.float32)
    tensors["conv_in.weight"] = np.zeros((5, 2, 3, 3), np.float32)
    save(tmp_path, tensors)
    with pytest.raises(ValueError, match="shapes differ") as error:
        weights.read(tmp_path, ABSTRACT)
    lines = str(error.value).splitlines()
    assert any("norm.weight" in line and "(3,)" in line and "(4,)" in line for line in lines)
    assert any("conv_in.weight" in line and "(3, 3, 2, 5)" in line for line in lines)
    assert len(lines) == 3


def test_the_embedding_that_t5_files_repeat_is_no_surplus(tmp_path, tensors):
    save(tmp_path, tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]})
    assert weights.read(tmp_path, ABSTRACT).keys() == ABSTRACT.keys()
    without = {path: leaf for path, leaf in ABSTRACT.items() if path != "shared/embedding"}
    del tensors["shared.weight"]
    save(tmp_path, tensors | {"encoder.embed_tokens.weight": np.zeros((7, 4), np.float32)})
    with pytest.raises(ValueError, match=r"encoder\.embed_tokens\.weight"):
        weights.read(tmp_path, without)


class Trap:
    """A pickle of it creates a file when it is opened."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "v1.ckpt"])
def test_a_pickle_is_refused_unopened_with_the_way_to_convert_it(name, tmp_path, tensors):
    marker = tmp_path / "opened"
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(FileNotFoundError, match="safe_serialization=True") as error:
        weights.read(folder, ABSTRACT)
    assert name in str(error.value)
    save(folder, tensors)  # beside safetensors it does not matter
    weights.read(folder, ABSTRACT)
    assert not marker.exists()
    with pickle.loads((folder / name).read_bytes()):  # the trap does work
        assert marker.exists()


def test_an_empty_folder_and_an_absent_one_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no safetensors weights in ") as error:
            weights.read(folder, ABSTRACT)
        assert str(folder) in str(error.value)


def test_a_file_cut_anywhere_is_named_as_such(tmp_path, tensors):
    file = save(tmp_path, tensors)
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read as a whole safetensors file") as error:
            weights.read(tmp_path, ABSTRACT)
        assert str(file) in str(error.value) and f"({length} bytes)" in str(error.value)


def test_the_stub_of_git_lfs_is_explained(tmp_path):
    stub = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    (tmp_path / "model.safetensors").write_text(stub)
    with pytest.raises(ValueError, match="git-lfs"):
        weights.read(tmp_path, ABSTRACT)


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (65504.0, "float16", True),
        (70000.0, "float16", False),
        (70000.0, "bfloat16", True),
        (3.4e38, "bfloat16", False),
        (np.nan, "float32", False),
        (-np.inf, "bfloat16", False),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(value, dtype, fits, tmp_path):
    good = {"a/bias": np.ones(2, np.float32), "b/bias": np.ones(2, np.float32)}
    file = weights.write(tmp_path, good, dtype=dtype, stem="model")
    before = file.read_bytes()
    bad = good | {"b/bias": np.array([1, value], np.float32)}
    if fits:
        weights.write(tmp_path, bad, dtype=dtype, stem="model")
        assert file.read_bytes() != before
        return
    with pytest.raises(ValueError, match=rf"b/bias does not fit {dtype}"):
        weights.write(tmp_path, bad, dtype=dtype, stem="model")
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match="does not fit"):
        weights.write(tmp_path / "new", bad, dtype=dtype, stem="model")
    assert not (tmp_path / "new").exists()


def test_each_leaf_is_placed_as_soon_as_it_is_read(tmp_path, tensors):
    save(tmp_path, tensors)
    placed = []
    flat = weights.read(
        tmp_path, ABSTRACT, put=lambda path, array: placed.append(path) or array.sum()
    )
    assert sorted(placed) == sorted(ABSTRACT)
    assert flat["norm/scale"] == tensors["norm.weight"].sum()


def test_others_may_read_a_file_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        file = weights.write(tmp_path, {"bias": np.ones(2, np.float32)}, dtype="float32", stem="m")
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640


# Files of others.


def patched(file: Path, change) -> None:
    """Writes a safetensors file anew with its header changed by `change(header, data) -> data`."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    data = change(header, whole[8 + length :])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def replaced(key: str, kind: str, raw: bytes):
    """One tensor of another dtype, its bytes at the end of the file's others."""

    def change(header: dict, data: bytes) -> bytes:
        made = b""
        entries = {name: about for name, about in header.items() if name != "__metadata__"}
        for name, about in entries.items():
            begin, end = about["data_offsets"]
            own = raw if name == key else data[begin:end]
            about["data_offsets"] = [len(made), len(made) + len(own)]
            about["dtype"] = kind if name == key else about["dtype"]
            made += own
        return made

    return change


@pytest.mark.parametrize("kind", ["I64", "I32", "U8", "BOOL", "C64"])
def test_what_is_no_floating_point_number_is_no_weight(kind, tmp_path, tensors):
    file = save(tmp_path, tensors)
    count = tensors["norm.weight"].size
    size = {"I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "C64": 8}[kind]
    patched(file, replaced("norm.weight", kind, bytes(count * size)))
    with pytest.raises(ValueError, match=rf"norm\.weight is of dtype {kind}; weights are") as error:
        weights.read(tmp_path, ABSTRACT)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")]
)
def test_floats_of_eight_bits_are_read(kind, dtype, tmp_path, tensors):
    file = save(tmp_path, tensors)
    values = tensors["norm.weight"].astype(np.dtype(dtype))
    patched(file, replaced("norm.weight", kind, values.tobytes()))
    found = weights.read(tmp_path, ABSTRACT)
    np.testing.assert_array_equal(found["norm/scale"], values.astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_names_tensor_and_file(bad, tmp_path, tensors):
    broken = tensors["conv_in.weight"].copy()
    broken.flat[3] = bad
    file = save(tmp_path, {**tensors, "conv_in.weight": broken})
    with pytest.raises(ValueError, match=r"1 of \d+ values of conv_in\.weight are not") as error:
        weights.read(tmp_path, ABSTRACT)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object"),
        ("{}", "weight_map"),
        ('{"weight_map": []}', "weight_map"),
        ('{"weight_map": {"a": 1}}', "names 1, which is no path"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "names '../other/model"),
        ('{"weight_map": {"a": "/other/model.safetensors"}}', "names '/other/model"),
    ],
)
def test_an_index_of_another_shape_or_that_points_outside(index, said, tmp_path, tensors):
    folder = tmp_path / "unet"
    folder.mkdir()
    (tmp_path / "other").mkdir()
    save(tmp_path / "other", tensors)
    file = folder / "diffusion_pytorch_model.safetensors.index.json"
    file.write_text(index)
    with pytest.raises(ValueError, match=r"index\.json") as error:
        weights.read(folder, ABSTRACT)
    assert said in str(error.value) and str(file) in str(error.value)


def test_a_pipe_in_place_of_weights_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is no regular file, .* put"):
        weights.read(tmp_path, ABSTRACT)


def test_whole_numbers_of_a_written_file_are_verified_as_well(tmp_path):
    """`position_ids` of a single file, which other programs expect, are int64."""
    tensors = {"position_ids": np.arange(77)[None], "a": np.ones(2, np.float16)}
    file = weights.save(tmp_path / "single.safetensors", tensors)
    weights.verify(file, tensors)
    with pytest.raises(ValueError, match="position_ids read back differs"):
        weights.verify(file, tensors | {"position_ids": np.arange(77)[None] + 1})
