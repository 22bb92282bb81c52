"""The export of a run on a model hub: what is sent, and the card with the run's pictures."""

import shlex
from pathlib import Path

from absl import logging

from dreambooth_jax import contents, files, turns, untrusted
from dreambooth_jax.config import Plan
from dreambooth_jax.experiment.parts.grids import read_picture
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.export import card, upload

_MOST = 8  # pictures in the gallery


def check(plan: Plan) -> None:
    """Asks the hub now, so that a name or token that will not do is told before the training.

    Raises:
      UploadError: see `upload.check`.
    """
    if not plan.export.push_to_hub or not turns.is_first():
        return
    try:
        upload.check(plan.export.push_to_hub, private=plan.export.private)
    except upload.UploadError as error:
        raise upload.UploadError(
            f"{error} Nothing is drawn or trained yet: correct that, or leave the setting out and "
            "send the export later with `dreambooth-jax push`."
        ) from error


def after_run(plan: Plan, workdir: Workdir) -> upload.UploadError | None:
    """Sends the run's export where the settings ask for it.

    A run goes on without: what went wrong is returned, to be told when all is done.
    """
    if not plan.export.push_to_hub or not turns.is_first():
        return None
    try:
        push(plan, workdir)
    except upload.UploadError as error:
        return error
    except (OSError, ValueError) as error:  # a file of the export or a picture cannot be read
        return later(plan, workdir, error)
    return None


def later(plan: Plan, workdir: Workdir, error: Exception) -> upload.UploadError:
    """The same error with where the export lies, and the command that sends it."""
    found = plan.export
    words = ["dreambooth-jax", "push", f"--config=of_run:{workdir.root}"]
    words += [f"--config.export.push_to_hub={found.push_to_hub}"]
    words += [] if found.private else ["--config.export.private=False"]
    words += [] if found.push_part == "auto" else [f"--config.export.push_part={found.push_part}"]
    return upload.UploadError(
        f"{str(error).strip()} The export was not sent. It lies in {workdir.export}; this command "
        f"sends it later: {shlex.join(words)}"
    )


def checked_push(plan: Plan, workdir: Workdir) -> str:
    """Asks the hub, and sends; see `upload.check` and `push`."""
    try:
        upload.check(plan.export.push_to_hub, private=plan.export.private)
    except upload.UploadError as error:
        raise later(plan, workdir, error) from error
    return push(plan, workdir)


def push(plan: Plan, workdir: Workdir) -> str:
    """Sends the export, or its LoRA files alone, with a card and pictures; returns the address.

    Raises:
      UploadError: there is no export or no LoRA in it, or the hub refuses it.
    """
    repository, private = plan.export.push_to_hub, plan.export.private
    sent = to_send(workdir.export, part=plan.export.push_part)
    pictures = _pictures(workdir)
    names = {f"images/{k:02d}.png": file for k, (_, file) in enumerate(pictures)}
    shown = [(prompt, name) for (prompt, _), name in zip(pictures, names, strict=True)]
    page = card.with_pictures(_card(sent), shown)
    with files.copied({**sent, **names}) as here:
        everything: dict[str, Path | bytes] = {**here, contents.CARD: page.encode()}
        logging.info("Sending %d files to %s …", len(everything), repository)
        try:
            address = upload.push(everything, repository, private=private)
        except upload.UploadError as error:
            raise later(plan, workdir, error) from error
    logging.info("Sent: %s (%s)", address, "private" if private else "public")
    return address


def to_send(folder: Path, *, part: str) -> dict[str, Path]:
    """Returns the files of an export to send by their path in the repository; tells what stays.

    part: "model" is the whole export, "lora" the LoRA files, "auto" these where there are some.

    Raises:
      UploadError: there are none, one is damaged, or a link leads to what is not of the export.
    """
    try:
        found = contents.of(folder)
    except untrusted.FileError as error:
        raise upload.UploadError(f"{error} Nothing is sent.") from error
    if found.refused:
        raise upload.UploadError(f"{folder}: {found.refused} Nothing is sent.")
    if found.told:
        logging.warning("%s: %s", folder, found.told)
    if not found.files:
        raise upload.UploadError(
            f"{folder}: no export to send. Give the --workdir of a run that has one; "
            "--mode=export makes it."
        )
    lora = {name: file for name, file in found.files.items() if file.parent.name == contents.LORA}
    lora = lora if any(file.name in contents.LORA_FILES for file in lora.values()) else {}
    if part == "lora" and not lora:
        raise upload.UploadError(
            f"{folder}: no LoRA files to send. Write --config.export.push_part=model."
        )
    if not lora or part == "model":
        return dict(found.files)
    several = len({file.parent for file in lora.values()}) > 1
    return {
        f"{file.parent.parent.name}/{file.name}" if several else file.name: file
        for file in lora.values()
    }


def _card(sent: dict[str, Path]) -> str:
    """The card above all files: that of the folder, or one over the folders of a cascade."""
    if contents.CARD in sent:
        return untrusted.text(sent[contents.CARD])
    folders = sorted(
        {name.partition("/")[0] for name in sent if name.endswith(f"/{contents.CARD}")}
    )
    if not folders:
        raise upload.UploadError(
            f"the export has no model card, {contents.CARD}. --mode=export makes it again."
        )
    return card.of_cascade(untrusted.text(sent[f"{folders[0]}/{contents.CARD}"]), folders)


def _pictures(workdir: Workdir) -> list[tuple[str, Path]]:
    """The first picture of each prompt after training, with the prompt."""
    found = []
    for file in sorted((workdir.samples / "after").glob("*_00.png"))[:_MOST]:
        if not contents.is_inside(file, workdir.root):
            logging.warning("%s is a link that leads out of the run; it is not sent.", file)
            continue
        try:
            found.append((str(read_picture(file)[1].get("prompt", "")), file))
        except untrusted.FileError as error:
            logging.warning("%s", error)
    return found
