"""What a run hands over: a diffusers folder per stage, and one file where a family has one."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dreambooth_jax import adapt, export, files, hosts, sharding, train, tree
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment import summary
from dreambooth_jax.experiment.model import Model, as_tuned
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.signals import GracefulStop


def _in_full(config: ConfigDict, words: Words) -> str:
    """The identifier as the export's own tokenizer reads it: every new token of it."""
    if not adapt.makes_words(config.adapt):
        return words.identifier
    more = (f"{words.identifier}_{i}" for i in range(1, config.adapt.num_vectors))
    return " ".join([words.identifier, *more])


def check(config: ConfigDict, model: Model) -> None:
    """The export that is asked for must be one that the model has.

    Raises:
      ValueError: there is no single-file layout for it.
    """
    if config.export.single_file and export.single_file.layout(model.stages["base"]) is None:
        raise ValueError(
            "export.single_file = True: only Stable Diffusion 1, 2 and XL have such a file. Write "
            "--config.export.single_file=False."
        )


def deliver(
    config: ConfigDict,
    model: Model,
    words: Sequence[Words],
    workdir: Workdir,
    stop: GracefulStop,
    *,
    steps: Mapping[str, int],
) -> Path:
    """Writes the export and returns its folder.

    steps: of each fine-tuned stage, how many.

    Raises:
      Interrupted: a signal came; what is written so far is whole.
      ValueError: see `export.diffusers_folder`.
    """
    check(config, model)
    several = len(model.kinds) > 1
    of_adapter = adapt.makes_factors(config.adapt) or adapt.makes_words(config.adapt)
    for folder in [workdir.export / kind for kind in model.kinds] if several else [workdir.export]:
        export.check_place(folder)
    with contextlib.ExitStack() as stack:
        if writes := jax.process_index() == 0:
            place = stack.enter_context(files.filled(workdir.export, last=export.INDEX))
        for kind in model.kinds:
            train.leave_if_asked(stop, "the training is finished and saved")
            # What lies on several hosts all of them have to fetch.
            host = {path: sharding.fetch(leaf) for path, leaf in model.weights[kind].items()}
            own = model.trained.get(kind, {}) if of_adapter else {}
            trained = {path: sharding.fetch(leaf) for path, leaf in own.items()}
            if writes:
                folder = place / kind if several else place
                _write(config, model, words, folder, kind, host, trained, step=steps.get(kind))
    hosts.meet("the export is written")  # nobody leaves before all files are there
    return workdir.export


def _write(
    config: ConfigDict,
    model: Model,
    words: Sequence[Words],
    folder: Path,
    kind: str,
    host: tree.Flat,
    trained: tree.Flat,
    *,
    step: int | None,
) -> None:
    """One stage: its folder, and in it the files of its adapter, and one for all of it."""
    stage, dtype = model.stages[kind], config.export.dtype
    about = summary.model_card(config, words, kind, step or 0)
    export.diffusers_folder(
        stage,
        host,
        folder,
        dtype=dtype,
        about=about,
        words=[
            {"identifier": _in_full(config, each), "class_noun": each.class_noun} for each in words
        ],
        schedule=(stage if step is None else as_tuned(config, stage)).schedule,
    )
    if adapt.makes_factors(config.adapt) and trained:
        alpha = adapt.alpha_of(config.adapt)
        export.lora_file.write(
            stage, trained, folder / "lora", alpha=alpha, dtype=dtype, about=about
        )
    if adapt.makes_words(config.adapt) and trained:
        rows = tree.split(trained, adapt.textual_inversion.is_row)[0]
        called = [each.identifier for each in words]
        export.embeddings_file.write(rows, folder, words=called, dtype=dtype)
    if config.export.single_file:
        called_so = "_".join(f"{each.identifier}_{each.class_noun}" for each in words)
        file = folder / f"{called_so}.safetensors".replace(" ", "_")
        export.single_file.write(stage, host, file, dtype=dtype, about=about)
