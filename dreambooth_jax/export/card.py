"""The model card of an export: README.md with the metadata that a model hub reads."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax import __version__, untrusted

_LIMITS = """\
## Limits

It learned its subject from a few photos: proportions, writing and small details may be wrong, and
pictures of {nouns} in general may look more like it than before. Not for pictures of people who
have not agreed to them, not for passing pictures off as photographs, and not for what the licence
of the base model rules out.
"""
Pictures = Sequence[tuple[str, str]]  # prompt, file in the folder of the card


def text(
    about: Mapping[str, Any],
    *,
    pipeline: str,
    kind: str,
    folder: Path | None = None,
    told: Sequence[str] = (),
    lora: bool = False,
) -> str:
    """Returns the card of a stage's folder, or of the folder of its LoRA files.

    Args:
      about: its lines, name → value (base model, prompts, steps, …).
      pipeline: the class of diffusers that opens the base model.
      kind: "base" or "upscaler".
      folder: that of the base model, whose own card names the licence.
      told: sentences about particular files.
    """
    base, title = str(about.get("base model", "")), about.get("instance prompt", kind)
    kinds = ["lora", "template:sd-lora"] if lora else []
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+(@.*)?", base) and not base.startswith((".", "/", "~"))
    data: dict[str, Any] = {
        "base_model": base.partition("@")[0] if is_id else None,
        "tags": ["text-to-image", "dreambooth", *kinds, kind],
        "instance_prompt": about.get("instance prompt"),
        **(_licence(folder) if base != "embedded" else {"license": "apache-2.0"}),
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in about.items())
    lines += "".join(f"\n\n{sentence}" for sentence in told)
    nouns = str(about.get("class prompt", "subjects")).removeprefix("an ").removeprefix("a ")
    return (
        f"---\n{_front(data)}\n---\n\n# DreamBooth: {title}\n\n"
        f"Fine-tuned by dreambooth_jax {__version__} (Ruiz et al. 2022, arXiv:2208.12242). "
        f"{_opening(pipeline, lora=lora)}\n\n{lines}\n\n{_LIMITS.format(nouns=nouns)}"
    )


def _opening(pipeline: str, *, lora: bool) -> str:
    if lora:
        return (
            f"Open it with `load_lora_weights` of a `diffusers.{pipeline}` of the base model; "
            "`lora_kohya.safetensors` is for A1111 and ComfyUI."
        )
    return f"Open it with `diffusers.{pipeline}.from_pretrained`."


def with_pictures(card: str, pictures: Pictures) -> str:
    """Returns a card of `text` with a gallery of pictures, shown by the hub under their prompts."""
    if not pictures:
        return card
    _, front, body = card.split("---\n", 2)
    widget = [{"text": prompt, "output": {"url": file}} for prompt, file in pictures]
    more = _yaml({"widget": widget})
    title, rest = body.lstrip("\n").split("\n\n", 1)
    return f"---\n{front}{more}\n---\n\n{title}\n\n<Gallery />\n\n{rest}"


def of_cascade(card: str, folders: Sequence[str]) -> str:
    """Returns the card above the folders of a cascade, from that of its base stage."""
    listed = " and ".join(f"[`{name}/`]({name}/README.md)" for name in folders)
    opening = re.compile(r"Open it with `diffusers\.\w+\.from_pretrained`\.")
    return opening.sub(
        f"A cascade of two models, {listed}: download the whole and open each folder with "
        "`diffusers.DiffusionPipeline.from_pretrained`.",
        card,
        count=1,
    )


def _licence(folder: Path | None) -> dict[str, Any]:
    """The licence that the base model's own card names; {} where it has none."""
    file = None if folder is None else folder / "README.md"
    if file is None or not file.is_file():
        return {}
    try:
        front = re.match(r"---\s*\n(.*?)\n---\s*\n", untrusted.text(file), re.DOTALL)
    except untrusted.FileError:  # a card is a courtesy, whatever is in it
        return {}
    line = r"^(license(?:_name|_link)?): *[\"']?((?:https://)?[\w.+/-]+)[\"']? *$"
    return dict(re.findall(line, front[1] if front else "", re.MULTILINE))


def _front(data: Mapping[str, Any]) -> str:
    """The metadata of a card as YAML."""
    own = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    return _yaml({key: value for key, value in (own | dict(data)).items() if value})


def _yaml(data: Mapping[str, Any]) -> str:
    from huggingface_hub import CardData

    return CardData(**data).to_yaml(line_break="\n").strip()
