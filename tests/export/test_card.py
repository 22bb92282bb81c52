"""Model cards: metadata as a hub reads it, the licence of the base, a gallery, limits."""

from pathlib import Path

import pytest

from dreambooth_jax.export import card

ABOUT = {
    "base model": "owner/base@v1",
    "instance prompt": "a zib: dog",  # a colon, which YAML has to quote
    "class prompt": "a dog",
    "fine-tuned": "400 steps of 4 rows",
}


def metadata(text: str) -> tuple[dict, str]:
    hub = pytest.importorskip("huggingface_hub")
    read = hub.ModelCard(text)
    return read.data.to_dict(), read.text


def test_metadata_says_what_it_is_and_what_it_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: own-licence\nlicense_link: [1]\n---\n# Base\n"
    )
    data, body = metadata(card.text(ABOUT, pipeline="P", kind="base", folder=tmp_path))
    assert data["base_model"] == "owner/base"
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "text-to-image"
    assert data["instance_prompt"] == "a zib: dog"
    assert {"dreambooth", "text-to-image", "base"} <= {*data["tags"]}
    assert (data["license"], data["license_name"]) == ("other", "own-licence")
    assert "license_link" not in data  # not a text
    assert "`diffusers.P.from_pretrained`" in body and "- fine-tuned: 400 steps of 4 rows" in body
    assert "## Limits" in body and "pictures of dog" in body


@pytest.mark.parametrize("model", ["embedded", "../owner/base", "gs://bucket/base", "/a/b"])
def test_a_base_that_is_on_no_hub_is_not_named_as_one(model: str) -> None:
    data, _ = metadata(card.text(ABOUT | {"base model": model}, pipeline="P", kind="base"))
    assert "base_model" not in data
    assert data.get("license") == ("apache-2.0" if model == "embedded" else None)


@pytest.mark.parametrize("content", ["no card", "---\n[\n---\n", "---\nlicense: {a: 3}\n---\n"])
def test_a_card_of_the_base_that_cannot_be_read_is_left_alone(content, tmp_path) -> None:
    (tmp_path / "README.md").write_text(content)
    data, _ = metadata(card.text(ABOUT, pipeline="P", kind="base", folder=tmp_path))
    assert "license" not in data


def test_a_lora_is_tagged_and_opened_as_one() -> None:
    data, body = metadata(card.text(ABOUT, pipeline="P", kind="base", lora=True))
    assert {"lora", "template:sd-lora"} <= {*data["tags"]}
    assert "`load_lora_weights`" in body and "from_pretrained" not in body


def test_pictures_become_a_gallery_with_their_prompts() -> None:
    text = card.text(ABOUT, pipeline="P", kind="base")
    assert card.with_pictures(text, []) == text
    shown = [('a "zib" dog: here', "images/00.png"), ("a dog", "images/01.png")]
    data, body = metadata(card.with_pictures(text, shown))
    found = [(each["text"], each["output"]["url"]) for each in data["widget"]]
    assert found == shown
    assert body.strip().startswith("# DreamBooth: a zib: dog\n\n<Gallery />\n\nFine-tuned by")
    assert data.keys() - {"widget"} == metadata(text)[0].keys()


def test_a_cascade_names_its_folders() -> None:
    text = card.of_cascade(card.text(ABOUT, pipeline="P", kind="base"), ["base", "upscaler"])
    assert "[`base/`](base/README.md) and [`upscaler/`](upscaler/README.md)" in text
    assert "diffusers.P" not in text
