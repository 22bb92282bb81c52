"""Files of an export by their names: which are handed on, which stay."""

import json
import os
from pathlib import Path

import pytest

from dreambooth_jax import contents, untrusted

INDEX = {
    "_class_name": "X", "unet": ["diffusers", "Y"], "tokenizer": ["transformers", "Z"],
    ".git": ["diffusers", "Y"], "..": ["diffusers", "Y"], "../other": ["diffusers", "Y"],
}  # fmt: skip
WRITTEN = (
    "README.md", "model_index.json", "dreambooth.json", "LICENSE.md", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json", "tokenizer/vocab.json",
    "tokenizer/merges.txt", "lora/README.md", "lora/pytorch_lora_weights.safetensors",
    "lora/lora_kohya.safetensors", "learned_embeds.safetensors", "learned_embeds_2.safetensors",
    "learned_embeds-cup.safetensors", "zib.safetensors", "zib_red_bird.safetensors",
)  # fmt: skip
FOREIGN = (
    ".env", ".gitignore", ".DS_Store", "notes.txt", "photo.png", "other.safetensors", "model.ckpt",
    "unet/.env", "unet/config.json.orig", "unet/weights.safetensors", "unet/handler.py",
    "tokenizer/notes.md", "lora/other.safetensors", "lora/.env",
)  # fmt: skip
FOLDERS = (".git", "photos", "unet/deep", "lora/old", "vae")  # the last is not in the index


def write(place: Path, name: str) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("{}")


def made(place: Path) -> Path:
    for name in WRITTEN:
        write(place, name)
    (place / "model_index.json").write_text(json.dumps(INDEX))
    words = {"identifier": "<zib> <zib>_1", "class_noun": "red bird"}
    (place / "dreambooth.json").write_text(json.dumps(words | {"identifier": "zib zib_1"}))
    return place


def test_what_an_export_writes_is_handed_on_and_nothing_else(tmp_path: Path) -> None:
    place = made(tmp_path / "export")
    for name in (*FOREIGN, *(f"{folder}/config.json" for folder in FOLDERS)):
        write(place, name)
    write(tmp_path / "other", "config.json")
    found = contents.of(place)
    assert found.files == {name: place / name for name in WRITTEN}
    assert {*found.left} == {*FOREIGN, *(f"{folder}/" for folder in FOLDERS)}
    assert found.refused == "" and ".env" in found.told and "\n" not in found.told


def test_the_folders_of_a_cascade_have_names(tmp_path: Path) -> None:
    place = tmp_path / "export"
    for stage in ("base", "upscaler", "mine"):
        made(place / stage)
    write(place, "README.md")
    write(place, "model.safetensors")
    found = contents.of(place)
    both = {f"{stage}/{name}" for stage in ("base", "upscaler") for name in WRITTEN}
    assert found.files.keys() == both | {"README.md"}
    assert {*found.left} == {"mine/", "model.safetensors"}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("to", ["outside", "a file that stays", "nothing", "itself", "a pipe"])
def test_a_link_in_the_place_of_a_file_hands_on_nothing(name: str, to: str, tmp_path: Path) -> None:
    place = made(tmp_path / "export")
    if name in ("model_index.json", "dreambooth.json") and to != "outside":
        return  # read before, as what they are
    targets = {"outside": tmp_path / "secret", "a file that stays": place / ".env"}
    target = targets.get(to, place / name if to == "itself" else tmp_path / to)
    for each in targets.values():
        each.write_text((place / name).read_text())
    (place / name).unlink()
    if to == "a pipe":
        os.mkfifo(place / name)
    else:
        (place / name).symlink_to(target)
    found = contents.of(place)
    assert name not in found.files
    assert name in (found.leading_out if to in targets else found.left)
    assert name in (found.refused if to in targets else found.told)


def test_a_link_to_a_file_of_the_export_is_one_of_its_files(tmp_path: Path) -> None:
    place = made(tmp_path / "export")
    (place / "zib.safetensors").unlink()
    (place / "zib.safetensors").symlink_to("learned_embeds.safetensors")
    assert contents.of(place).files.keys() == {*WRITTEN}


def test_a_folder_that_is_a_link_out_is_not_looked_into(tmp_path: Path) -> None:
    place = made(tmp_path / "export")
    (place / "unet").rename(tmp_path / "elsewhere")
    (place / "unet").symlink_to(tmp_path / "elsewhere")
    found = contents.of(place)
    assert found.leading_out == ["unet/"] and not any("unet/" in name for name in found.files)


@pytest.mark.parametrize("name", ["model_index.json", "dreambooth.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", '{"others": 3}', '{"identifier": "a"}'])
def test_a_damaged_record_is_named(name: str, text: str, tmp_path: Path) -> None:
    place = made(tmp_path)
    (place / name).write_text(text)
    if name == "model_index.json" and text.endswith("}"):
        assert "unet/" in contents.of(place).left
        return
    with pytest.raises(untrusted.FileError, match=name):
        contents.of(place)


def test_a_message_is_one_line_of_a_few_names() -> None:
    assert contents.in_words(["a", "b\nc"]) == r"a, b\nc"
    many = contents.in_words([str(number) for number in range(100)])
    assert many.endswith(" and 92 more") and len(many) < 100
    assert contents.Contents().told == contents.Contents().refused == ""


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "null", "3", "{", "[" * 100_000, "{}", '{"identifier": "zib"}'),
        *('{"identifier": "zib", "class_noun": 3}', '{"identifier": [], "class_noun": "dog"}'),
        *(
            '{"identifier": "", "class_noun": "dog"}',
            '{"identifier": "a\\nb", "class_noun": "dog"}',
        ),
        *('{"identifier": "zib", "class_noun": "dog", "others": 3}',),
        *('{"identifier": "zib", "class_noun": "dog", "others": ["x"]}',),
        *('{"identifier": "zib", "class_noun": "dog", "others": [{}]}',),
    ],
    ids=lambda text: text[:60],
)
def test_a_record_of_names_of_another_shape_is_told_by_file(content: str, tmp_path: Path) -> None:
    (tmp_path / contents.WORDS).write_text(content)
    with pytest.raises(untrusted.FileError, match=contents.WORDS):
        contents.words_in(tmp_path)


def test_the_names_of_subjects_are_read_without_what_else_stands_there(tmp_path: Path) -> None:
    one, two = {"identifier": "zib", "class_noun": "dog"}, {"identifier": "k", "class_noun": "a b"}
    file = tmp_path / contents.WORDS
    file.write_text(json.dumps({**one, "others": [{**two, "more": 1}], "later": 2}))
    assert contents.words_in(tmp_path) == [one, two]
