"""The export of a run: a diffusers folder per stage, files of adapters, one file for all."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreambooth_jax import adapt, contents, export, files, hosts, sharding, train, tree, turns
from dreambooth_jax.adapt import frozen
from dreambooth_jax.config import Plan
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import holding
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.model import Model, as_tuned
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import report as summary
from dreambooth_jax.experiment.training.program import adapter_of
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.signals import GracefulStop


def _in_full(plan: Plan, words: Words) -> str:
    """The identifier as the export's own tokenizer reads it: every new token of it."""
    if not adapt.makes_words(plan.adapt):
        return words.identifier
    more = (f"{words.identifier}_{i}" for i in range(1, plan.adapt.num_vectors))
    return " ".join([words.identifier, *more])


def check(plan: Plan, stages: Mapping[str, Stage], workdir: Workdir) -> None:
    """The export that is asked for must be one that the model has, with a place for it.

    Its smaller files are counted as they will be copied, so that one that is missing is told now.

    Raises:
      ValueError: there is no single-file layout for it, or something else lies where it goes.
      OSError: a file of the base model that it hands on cannot be read.
    """
    several = len(stages) > 1
    for kind, stage in stages.items():
        export.check_place(workdir.export / kind if several else workdir.export)
        export.estimate_bytes(stage, dtype=plan.export.dtype)
    if plan.export.single_file and export.single_file.layout(stages["base"]) is None:
        name = stages["base"].family.name
        raise ValueError(
            f"export.single_file = True: {name} has no layout in one file here. Write "
            "--config.export.single_file=False."
        )


def deliver(
    plan: Plan,
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
    check(plan, model.stages, workdir)
    several = len(model.kinds) > 1
    of_adapter = adapt.makes_factors(plan.adapt) or adapt.makes_words(plan.adapt)
    reads_again = adapt.makes_words(plan.adapt) and frozen.rounds(plan.adapt.frozen_dtype)
    stages = setup.open_stages(plan) if reads_again else model.stages  # without the new words
    with contextlib.ExitStack() as stack:
        if writes := turns.is_first():
            place = stack.enter_context(files.filled(workdir.export, last=export.INDEX))
        for kind in model.kinds:
            train.leave_if_asked(stop, "the training is finished and saved")
            # What lies on several hosts all of them have to fetch.
            trained_here = model.trained.get(kind, {})
            adapter = adapter_of(plan, model.stages[kind])
            whole = holding.exact(plan, stages[kind], model.weights[kind], adapter, trained_here)
            host = {path: sharding.fetch(leaf) for path, leaf in whole.items()}
            own = trained_here if of_adapter else {}
            trained = {path: sharding.fetch(leaf) for path, leaf in own.items()}
            if writes:
                folder = place / kind if several else place
                _write(plan, model, words, folder, kind, host, trained, step=steps.get(kind))
    hosts.meet("the export is written")  # every process waits until all files exist
    return workdir.export


def _write(
    plan: Plan,
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
    stage, dtype = model.stages[kind], plan.export.dtype
    about = summary.model_card(plan.stages[kind], words, step or 0)
    export.diffusers_folder(
        stage,
        host,
        folder,
        dtype=dtype,
        about=about,
        words=[
            {"identifier": _in_full(plan, each), "class_noun": each.class_noun} for each in words
        ],
        path=(stage if step is None else as_tuned(plan, stage)).path,
    )
    if adapt.makes_factors(plan.adapt) and trained:
        alpha = adapt.alpha_of(plan.adapt)
        export.lora_file.write(
            stage, trained, folder / contents.LORA, alpha=alpha, dtype=dtype, about=about
        )
        export.write_card(stage, folder / contents.LORA, about=about, lora=True)
    if adapt.makes_words(plan.adapt) and trained:
        rows = tree.split(trained, adapt.textual_inversion.is_row)[0]
        tokens = [each.identifier for each in words]
        export.embeddings_file.write(rows, folder, words=tokens, dtype=dtype)
    if plan.export.single_file:
        called = [(each.identifier, each.class_noun) for each in words]
        file = folder / contents.single_file(called)
        export.single_file.write(stage, host, file, dtype=dtype, about=about)
