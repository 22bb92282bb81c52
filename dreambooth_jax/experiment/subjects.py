"""Who a run is about: the subjects' folders, their words, their pictures."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import adapt, export, files, hosts, sharding
from dreambooth_jax import config as configs
from dreambooth_jax.data import audit as photo_audit
from dreambooth_jax.data import subject as subjects
from dreambooth_jax.data.annotations import Wanted
from dreambooth_jax.data.audit import Audit, AuditError
from dreambooth_jax.data.subject import Subject, Words
from dreambooth_jax.experiment.model import Model
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.text import identifier


@dataclasses.dataclass(frozen=True)
class Folders:
    """What was found in the folders of a run.

    Each subject's photos, and the user's own class images by class noun, where there are any.
    """

    photos: tuple[Audit, ...]
    class_images: Mapping[str, Audit]


def photo_folder(images: str) -> Path:
    """A subject's folder; "embedded" is the one that the package carries.

    Of one in a bucket it is a copy.
    """
    if images == "embedded":
        return Path(str(resources.files("dreambooth_jax") / "assets" / "subject"))
    return files.here(files.at(images))


def class_folders(config: ConfigDict, root: Path) -> dict[str, Path]:
    """Where class images are by class noun: the first subject's in `root`, others' below it."""
    first, *others = configs.class_shares(config)
    return {first: root} | {noun: root / noun.replace(" ", "_") for noun in others}


def audit(config: ConfigDict, stages: Mapping[str, Stage]) -> Folders:
    """Looks at every file of the run's folders, captions and masks included, and logs it.

    Raises:
      AuditError: in one report for all folders, that no photo can be used, that a caption or mask
        is not as it must be, or that `subject.strict` is set and a file cannot be used.
      Disagreement: not all hosts have the same files.
    """
    how = {"size": max(stage.size for stage in stages.values()), "strict": config.subject.strict}
    found: list[Audit] = []
    refused: list[str] = []

    def look(what: str, folder: Path, wanted: Wanted) -> Audit | None:
        try:
            report = photo_audit.audit(folder, wanted=wanted, **how)
        except AuditError as error:
            refused.append(f"{what}: {error}")
            return None
        logging.info("%s:\n%s", what, report)
        return report

    for images, noun, word in configs.subjects(config):
        if adapt.makes_words(config.adapt) and word != "auto":
            word = f"<{word.strip('<>')}>"  # what the text encoder knows is the new token
        wanted = Wanted(config.subject.captions, config.subject.masks, word)
        report = look(f"Photos of the subject, {noun}", photo_folder(images), wanted)
        found += [report] if report else []
    own: dict[str, Audit] = {}
    if config.prior.images:
        wanted = Wanted("optional", word=config.subject.identifier, of_subject=False)
        folders = class_folders(config, files.at(config.prior.images))
        for noun, folder in folders.items():
            report = look(f"Class images of {noun!r}", files.here(folder), wanted)
            own |= {noun: report} if report else {}
    if refused:
        raise AuditError("\n".join(refused))
    everything = [*(("photos", each) for each in found), *own.items()]
    hosts.agree(
        "the pictures",
        {
            f"{k} {what}": {
                photo.path.name: [photo.sha256, photo.caption, photo.mask] for photo in report.kept
            }
            for k, (what, report) in enumerate(everything, 1)
        },
        remedy="Copy the same folder to every host, with its captions and masks.",
    )
    return Folders(tuple(found), own)


def words(
    config: ConfigDict, model: Model, workdir: Workdir, *, as_exported: bool = False
) -> tuple[Words, ...]:
    """Each subject's own word, chosen where the settings say "auto", and the prompts with it.

    What a run has chosen stays so: its folder tells, though a later version may choose otherwise.

    as_exported: where all are "auto", a base model that is an export of ours says what it calls
    its subjects.
    """
    base = model.stages["base"]
    asked = configs.subjects(config)
    inverted = adapt.makes_words(config.adapt)
    told_or_auto = [[noun, word] for _, noun, word in asked]
    chosen_by = [told_or_auto, config.seed, inverted, model.fingerprints["base"]]
    if told := workdir.words(chosen_by):
        return tuple(Words.of(**each) for each in told)
    automatic = all(word == "auto" for _, _, word in asked)
    if as_exported and automatic and (told := export.words_in(base.folder)):
        return tuple(Words.of(**each) for each in told)
    chosen: dict[int, str] = {}
    # Words that are given come first: what is chosen must be others.
    for k in sorted(range(len(asked)), key=lambda k: asked[k][2] == "auto"):
        _, noun, word = asked[k]
        if inverted and word.startswith("<"):  # no word of the vocabulary: nothing to check
            chosen[k] = word.lower()
            continue
        word = identifier.choose(
            base.tokenizer,
            word,
            class_noun=noun,
            seed=config.seed,
            embeddings=sharding.fetch(model.weights["base"][base.token_table]),
            taken=[other.strip("<>") for other in chosen.values()],
        )
        chosen[k] = f"<{word}>" if inverted else word
    found = [{"identifier": chosen[k], "class_noun": noun} for k, (_, noun, _) in enumerate(asked)]
    workdir.keep_words(chosen_by, found)
    return tuple(Words.of(**each) for each in found)


def with_new_words(config: ConfigDict, model: Model, words: Sequence[Words]) -> Model:
    """The model whose text encoders have rows for the identifiers, where these are trained.

    They start as the embedding of `adapt.initial_word`, or of the subject's class noun: the mean
    of its tokens.

    Raises:
      ValueError: the tokenizer cannot take an identifier as new tokens.
    """
    if not adapt.makes_words(config.adapt):
        return model
    stages, weights = {}, {}
    for kind, stage in model.stages.items():
        extended = stage
        for each in words:
            extended = extended.with_word(each.identifier, count=config.adapt.num_vectors)
        stages[kind] = extended
        weights[kind] = dict(model.weights[kind])
        for path in extended.new_rows:
            old = weights[kind][path]
            table = np.zeros(extended.abstract[path].shape, np.float32)
            table[: len(old)] = sharding.fetch(old)
            tokenizer = extended.tokenizers[path.partition("/")[0]]
            for each in words:
                initial = tokenizer.ids(config.adapt.initial_word or each.class_noun)
                table[list(tokenizer.words[each.identifier])] = table[list(initial)].mean(0)
            whole = sharding.replicated(model.mesh)
            on_mesh = isinstance(old, jax.Array)
            weights[kind][path] = sharding.put(table, whole) if on_mesh else table
    return dataclasses.replace(model, stages=stages, weights=weights)


def read(
    config: ConfigDict, model: Model, folders: Folders, chosen: Sequence[Words]
) -> tuple[Subject, ...]:
    """Each subject's pictures at the size of every stage, with its prompts and masks."""
    found = []
    for report, each in zip(folders.photos, chosen, strict=True):
        found.append(
            subjects.of_audit(
                report,
                each,
                sizes=[stage.size for stage in model.stages.values()],
                crops=config.subject.crops,
                seed=config.seed,
            )
        )
        logging.info("The subject is %r, its class %r.", each.instance_prompt, each.class_prompt)
    return tuple(found)


def prints(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Fingerprints of all that the subjects bring into the weights: photos, captions, masks."""
    photos, captions, masks = {}, {}, {}
    for k, subject in enumerate(subjects):
        for photo in subject.audit.kept:
            name = f"{k}/{photo.path.name}" if k else photo.path.name
            photos[name] = photo.sha256
            if photo.caption is not None:
                captions[name] = subject.prompts[photo.path.name]
            if photo.mask is not None:
                masks[name] = photo.mask
    beside = {"captions": captions, "masks": masks}
    return {"photos": photos} | {name: told for name, told in beside.items() if told}
