"""What a run hands over: a diffusers folder per stage, and one file where a family has one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dreambooth_jax import adapt, export, sharding, train, tree
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
    for kind in model.kinds:
        train.leave_if_asked(stop, "the training is finished and saved")
        host = {path: sharding.fetch(leaf) for path, leaf in model.weights[kind].items()}
        if jax.process_index() == 0:
            about = summary.model_card(config, words, kind, steps.get(kind, 0))
            stage = model.stages[kind]
            folder = export.diffusers_folder(
                stage,
                host,
                workdir.export / kind if len(model.kinds) > 1 else workdir.export,
                dtype=config.export.dtype,
                about=about,
                words=[
                    {"identifier": _in_full(config, each), "class_noun": each.class_noun}
                    for each in words
                ],
                schedule=(as_tuned(config, stage) if kind in steps else stage).schedule,
            )
            if adapt.makes_factors(config.adapt) and kind in model.trained:
                trained = {p: sharding.fetch(x) for p, x in model.trained[kind].items()}
                export.lora_file.write(
                    model.stages[kind],
                    trained,
                    folder / "lora",
                    alpha=adapt.alpha_of(config.adapt),
                    dtype=config.export.dtype,
                    about=about,
                )
            if adapt.makes_words(config.adapt) and kind in model.trained:
                new = tree.split(model.trained[kind], adapt.textual_inversion.is_row)[0]
                rows = {p: sharding.fetch(x) for p, x in new.items()}
                export.embeddings_file.write(
                    rows,
                    folder,
                    words=[each.identifier for each in words],
                    dtype=config.export.dtype,
                )
            if config.export.single_file:
                called = "_".join(f"{each.identifier}_{each.class_noun}" for each in words)
                name = f"{called}.safetensors".replace(" ", "_")
                export.single_file.write(
                    model.stages[kind], host, folder / name, dtype=config.export.dtype, about=about
                )
    if jax.process_count() > 1:  # nobody leaves before all files are there
        multihost_utils.sync_global_devices("the export is written")
    return workdir.export
