"""The export of a run on a model hub: what is sent, and the card with the run's pictures."""

import shlex
from pathlib import Path

import jax
from absl import logging

from dreambooth_jax import export, files, untrusted
from dreambooth_jax.config import Plan
from dreambooth_jax.experiment.parts.grids import read_picture
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.export import card, upload

_MOST = 8  # pictures in the gallery
_LORA = "lora"  # folder of an export's LoRA files


def check(plan: Plan) -> None:
    """Asks the hub now, so that a name or token that will not do is told before the training.

    Raises:
      UploadError: see `upload.check`.
    """
    if plan.export.push_to_hub and jax.process_index() == 0:
        upload.check(plan.export.push_to_hub, private=plan.export.private)


def after_run(plan: Plan, workdir: Workdir) -> None:
    """Sends the run's export where the settings ask for it; a refusal is a warning, not the end."""
    if not plan.export.push_to_hub or jax.process_index() != 0:
        return
    try:
        push(plan, workdir)
    except upload.UploadError as error:
        again = shlex.quote(f"--config=configs/of_run.py:{workdir.root}")
        logging.warning(
            "%s The export is in %s. Send it later with "
            "python -m dreambooth_jax.main --mode=push %s",
            *(error, workdir.export, again),
        )


def push(plan: Plan, workdir: Workdir) -> str:
    """Sends the export, or its LoRA files alone, with a card and pictures; returns the address.

    Raises:
      UploadError: there is no export or no LoRA in it, or the hub refuses it.
    """
    repository, private = plan.export.push_to_hub, plan.export.private
    folder = files.here(workdir.export) if workdir.export.is_dir() else workdir.export
    sent = contents(folder, part=plan.export.push_part)
    pictures = _pictures(workdir)
    names = {f"images/{k:02d}.png": file for k, (_, file) in enumerate(pictures)}
    shown = [(prompt, name) for (prompt, _), name in zip(pictures, names, strict=True)]
    page = card.with_pictures(_card(sent), shown)
    everything: dict[str, Path | bytes] = {**sent, **names, "README.md": page.encode()}
    logging.info("Sending %d files to %s …", len(everything), repository)
    address = upload.push(everything, repository, private=private)
    logging.info("Sent: %s (%s)", address, "private" if private else "public")
    return address


def contents(folder: Path, *, part: str) -> dict[str, Path]:
    """Returns the files to send by their path in the repository.

    part: "model" is the whole folder, "lora" the LoRA files, "auto" these where there are some.
    """
    found = folder.rglob(f"{_LORA}/*.safetensors")
    places = sorted({file.parent for file in found if len(file.relative_to(folder).parts) < 4})
    if part == "lora" and not places:
        raise upload.UploadError(
            f"{folder}: no LoRA files to send. Write --config.export.push_part=model."
        )
    if places and part != "model":
        own = {place: f"{place.parent.name}/" if len(places) > 1 else "" for place in places}
        each_of = [(place, file) for place in places for file in sorted(place.iterdir())]
        return {f"{own[place]}{file.name}": file for place, file in each_of if file.is_file()}
    whole = {
        each.relative_to(folder).as_posix(): each
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }
    if not any(Path(name).name == export.INDEX for name in whole):
        raise upload.UploadError(
            f"{folder}: no export to send. Give the --workdir of a run that has one; "
            "--mode=export makes it."
        )
    return whole


def _card(sent: dict[str, Path]) -> str:
    """The card above all files: that of the folder, or one over the folders of a cascade."""
    if "README.md" in sent:
        return untrusted.text(sent["README.md"])
    folders = sorted({name.partition("/")[0] for name in sent if name.endswith("/README.md")})
    return card.of_cascade(untrusted.text(sent[f"{folders[0]}/README.md"]), folders)


def _pictures(workdir: Workdir) -> list[tuple[str, Path]]:
    """The first picture of each prompt after training, with the prompt."""
    found = []
    for file in sorted((workdir.samples / "after").glob("*_00.png"))[:_MOST]:
        try:
            found.append((str(read_picture(file)[1].get("prompt", "")), file))
        except untrusted.FileError as error:
            logging.warning("%s", error)
    return found
