"""The subjects of a run: photo folders, identifiers, images."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from dreambooth_jax import adapt, export, files, hosts, sharding, untrusted
from dreambooth_jax import config as configs
from dreambooth_jax.config import Plan
from dreambooth_jax.data import annotations
from dreambooth_jax.data import audit as photo_audit
from dreambooth_jax.data import images as image_files
from dreambooth_jax.data import subject as subjects
from dreambooth_jax.data.annotations import Wanted
from dreambooth_jax.data.audit import Audit, AuditError
from dreambooth_jax.data.images import Size
from dreambooth_jax.data.photos import Cuts
from dreambooth_jax.data.subject import Subject, Words
from dreambooth_jax.experiment.parts import photo_shapes
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.text import identifier

_LISTED = f"{annotations.LIST}, "  # before the name of a photo whose caption is a line there
DEFAULT_NOUN = configs.base_config().subject.class_noun


@dataclasses.dataclass(frozen=True)
class Folders:
    """The audited folders of a run.

    Each subject's photos, and the user's own class images by class noun, where there are any.
    `cuts` has the rows of each folder, at the sizes of the stages.
    """

    photos: tuple[Audit, ...]
    class_images: Mapping[str, Audit]
    cuts: Mapping[Path, Cuts] = dataclasses.field(default_factory=dict)


def photo_folder(images: str) -> Path:
    """A subject's folder; "embedded" is the one that the package carries.

    Of one in a bucket it is a copy.
    """
    if images == "embedded":
        return Path(str(resources.files("dreambooth_jax") / "assets" / "subject"))
    return files.here(files.at(images))


def class_folders(plan: Plan, root: Path) -> dict[str, Path]:
    """Returns the folders of class images by class noun: the first in `root`, others below it."""
    first, *others = configs.class_shares(plan)
    return {first: root} | {noun: root / noun.replace(" ", "_") for noun in others}


def audit(plan: Plan, stages: Mapping[str, Stage]) -> Folders:
    """Audits every file of the run's folders, captions and masks included, and logs the result.

    Each photo is decoded once, here: its rows at the sizes of the stages are cut meanwhile.

    Raises:
      AuditError: in one report for all folders, that no photo can be used, that a caption or mask
        is not as it must be, or that `subject.strict` is set and a file cannot be used.
      Disagreement: not all hosts have the same files.
    """
    sizes = [stage.size for stage in stages.values()]
    cut_to = photo_shapes.chosen(plan, stages["base"])
    looks = _Looks({"size": max(sizes), "strict": plan.subject.strict})
    found: list[Audit] = []
    for images, noun, word in configs.subjects(plan):
        if adapt.makes_words(plan.adapt) and word != "auto":
            word = f"<{word.strip('<>')}>"  # what the text encoder knows is the new token
        crop = plan.subject.crop
        wanted = Wanted(plan.subject.captions, plan.subject.masks, word, crop=crop)
        how: dict[str, Any] = {"crops": plan.subject.crops, "seed": plan.seed, "crop": crop}
        cuts = Cuts(None if cut_to else sizes, **how)
        folder = photo_folder(images)
        report = looks.at(f"Photos of the subject, {noun}", folder, wanted, cuts, several=cut_to)
        found += [report] if report else []
    refused = looks.refused
    own: dict[str, Audit] = {}
    if plan.prior.images:
        wanted = Wanted("optional", word=plan.subject.identifier, of_subject=False)
        by_noun = {} if refused else photo_shapes.by_noun(plan, found)
        folders = class_folders(plan, files.at(plan.prior.images))
        for noun, place in folders.items():
            cuts = Cuts([*by_noun.get(noun, ())] or sizes, max_photos=plan.prior.num_images)
            report = looks.at(f"Class images of {noun!r}", files.here(place), wanted, cuts)
            own |= {noun: report} if report else {}
    if not refused:
        refused = _shared(found, own)
    if refused:
        raise AuditError("\n".join(refused))
    if plan.subject.images != "embedded" and plan.subject.class_noun == DEFAULT_NOUN:
        logging.warning(
            "subject.class_noun is %r, as it is left: if these photos show something else, write "
            "--config.subject.class_noun=NOUN.",
            DEFAULT_NOUN,
        )
    _agree([*(("photos", each) for each in found), *own.items()])
    return Folders(tuple(found), own, looks.cuts)


class _Looks:
    """The audits of several folders: cuts by folder, and the reports of those refused."""

    def __init__(self, how: Mapping[str, Any]) -> None:
        self.cuts: dict[Path, Cuts] = {}
        self.refused: list[str] = []
        self._how = how

    def at(
        self,
        what: str,
        folder: Path,
        wanted: Wanted,
        cuts: Cuts,
        *,
        several: Sequence[Size] = (),
    ) -> Audit | None:
        """Audits a folder, cuts its photos, and logs the result; None if it is refused."""
        how: dict[str, Any] = {**self._how, "several": several, "take": cuts.add}
        try:
            report = photo_audit.audit(folder, wanted=wanted, **how)
        except AuditError as error:
            self.refused.append(f"{what}: {error}")
            return None
        logging.info("%s:\n%s", what, report)
        for warning in report.warnings:
            logging.warning("%s: %s", what, warning)
        self.cuts[report.folder] = cuts
        return report


def _agree(everything: Sequence[tuple[str, Audit]]) -> None:
    """Checks that all hosts have the same files."""
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


def _shared(photos: Sequence[Audit], class_images: Mapping[str, Audit]) -> list[str]:
    """A line for each folder with pictures of another's: a subject's are no class images.

    By their pixels; a class that shows the subject would teach that all of the class look so.
    """
    lines = []
    folders = [*(("subject", each) for each in photos), *class_images.items()]
    for k, (_, first) in enumerate(folders[: len(photos)]):
        known = {photo.sha256: photo.path for photo in first.kept}
        for noun, second in folders[k + 1 :]:
            same = [photo.path for photo in second.kept if photo.sha256 in known]
            if not same:
                continue
            one = f"{known[next(p.sha256 for p in second.kept if p.path == same[0])]}"
            role = "of another subject" if noun == "subject" else f"among the class images {noun!r}"
            lines.append(
                f"{len(same)} photos of a subject are {role} as well, the first of them {same[0]} "
                f"({one}). Remove them from one of the two folders."
            )
    return lines


def sources(folders: Folders) -> dict[str, str]:
    """The SHA-256 of the files that a run is about, by folder and name; "" of those that it is not.

    Photos and class images, with their captions and masks. Of a list of captions its lines are
    told one by one, each after the list's name.
    """
    named = [(f"photos {k}", report) for k, report in enumerate(folders.photos, 1)]
    named += [*folders.class_images.items()]
    found = {}
    for what, report in named:
        kept = {photo.path.stem for photo in report.kept}
        for path in sorted(report.folder.iterdir()):
            owner = annotations.owner(path.name)
            used = path.stem in kept if owner is None else owner in kept
            found[f"{what}/{path.name}"] = _digest(path) if used and path.is_file() else ""
        for photo in report.kept:
            if photo.caption is not None and annotations.caption_file(photo.path) is None:
                found[f"{what}/{_LISTED}{photo.path.name}"] = _digest_listed(photo.path)
    return found


def check_unchanged(plan: Plan, workdir: Workdir) -> None:
    """A finished run must be about the files that lie there now; absent folders are not compared.

    Raises:
      ConfigError: a photo, caption, mask or class image is another one, is new, or is gone.
    """
    known = workdir.sources()
    if not known:
        return
    places = {
        f"photos {k}": photo_folder(images)
        for k, (images, *_) in enumerate(configs.subjects(plan), 1)
    }
    if plan.prior.images:
        places |= class_folders(plan, files.at(plan.prior.images))
    different = []
    for what, folder in places.items():
        told = {n.partition("/")[2]: v for n, v in known.items() if n.startswith(f"{what}/")}
        lines = {n: v for n, v in told.items() if n.startswith(_LISTED)}
        before = {n: v for n, v in told.items() if n not in lines}
        if files.is_remote(folder) or not folder.is_dir() or not told:
            continue
        names = {path.name for path in folder.iterdir() if path.is_file()}
        pictures = {name for name in names if Path(name).suffix.lower() in image_files.SUFFIXES}
        changed = [name for name, digest in before.items() if digest and name not in names]
        changed += [n for n in names if before.get(n) and before[n] != _digest(folder / n)]
        changed += [
            n for n, v in lines.items() if v != _digest_listed(folder / n.removeprefix(_LISTED))
        ]
        changed += [name for name in pictures if name not in before]
        different += [os.fspath(folder / name) for name in sorted(changed)]
    if different:
        raise configs.ConfigError(
            f"the run in {workdir.root} is finished, and its photos are others now: "
            f"{', '.join(different[:10])}. Write another --workdir to train on these."
        )


def _digest(file: Path) -> str:
    return hashlib.sha256(untrusted.regular(file).read_bytes()).hexdigest()


def _digest_listed(photo: Path) -> str:
    """The digest of a photo's line in the list of captions; "" where there is none."""
    try:
        line = annotations.listed(photo)
    except (OSError, untrusted.FileError):
        line = None
    return "" if line is None else hashlib.sha256(line.encode()).hexdigest()


def words(
    plan: Plan, model: Model, workdir: Workdir, *, as_exported: bool = False
) -> tuple[Words, ...]:
    """Each subject's own word, chosen where the settings say "auto", and the prompts with it.

    What a run has chosen stays so: its folder tells, though a later version may choose otherwise.

    as_exported: where all are "auto", a base model that is an export of ours says what it calls
    its subjects. Else its words are taken: new subjects get others.
    """
    base = model.stages["base"]
    asked = configs.subjects(plan)
    inverted = adapt.makes_words(plan.adapt)
    told_or_auto = [[noun, word] for _, noun, word in asked]
    chosen_by = [told_or_auto, plan.seed, inverted, model.fingerprints["base"]]
    if told := workdir.words(chosen_by):
        return tuple(Words.of(**each) for each in told)
    automatic = all(word == "auto" for _, _, word in asked)
    exported = export.words_in(base.folder)
    if as_exported and automatic and exported:
        return tuple(Words.of(**each) for each in exported)
    of_others = [each["identifier"] for each in exported]
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
            seed=plan.seed,
            embeddings=np.asarray(
                sharding.fetch(model.weights["base"][base.token_table]), np.float32
            ),
            taken=[other.strip("<>") for other in (*of_others, *chosen.values())],
            cleaned=base.family.cleans,
        )
        chosen[k] = f"<{word}>" if inverted else word
    found = [{"identifier": chosen[k], "class_noun": noun} for k, (_, noun, _) in enumerate(asked)]
    workdir.keep_words(chosen_by, found)
    return tuple(Words.of(**each) for each in found)


def check_words(plan: Plan, stages: Mapping[str, Stage]) -> None:
    """Checks the identifiers that the settings give, before weights are read.

    Raises:
      ValueError: the tokenizer has no pieces for one, or its family's pipelines would delete it.
    """
    base = stages["base"]
    for _, noun, word in configs.subjects(plan):
        if word != identifier.AUTO and not (adapt.makes_words(plan.adapt) and word.startswith("<")):
            identifier.check(base.tokenizer, word, noun, cleaned=base.family.cleans)


def with_new_words(plan: Plan, model: Model, words: Sequence[Words]) -> Model:
    """The model whose text encoders have rows for the identifiers, where these are trained.

    They start as the embedding of `adapt.initial_word`, or of the subject's class noun: the mean
    of its tokens.

    Raises:
      ValueError: the tokenizer cannot take an identifier as new tokens.
    """
    if not adapt.makes_words(plan.adapt):
        return model
    stages, weights = {}, {}
    for kind, stage in model.stages.items():
        extended = stage
        for each in words:
            extended = extended.with_word(each.identifier, count=plan.adapt.num_vectors)
        stages[kind] = extended
        weights[kind] = dict(model.weights[kind])
        for path in extended.new_rows:
            old = weights[kind][path]
            table = np.zeros(extended.abstract[path].shape, np.float32)
            table[: len(old)] = sharding.fetch(old)
            tokenizer = extended.tokenizers[path.partition("/")[0]]
            for each in words:
                initial = tokenizer.ids(plan.adapt.initial_word or each.class_noun)
                table[list(tokenizer.words[each.identifier])] = table[list(initial)].mean(0)
            whole = sharding.replicated(model.mesh)
            on_mesh = isinstance(old, jax.Array)
            weights[kind][path] = sharding.put(table, whole) if on_mesh else table
    return dataclasses.replace(model, stages=stages, weights=weights)


def read(
    plan: Plan, model: Model, folders: Folders, chosen: Sequence[Words]
) -> tuple[Subject, ...]:
    """Each subject's pictures at the size of every stage, with its prompts and masks."""
    found = []
    for report, each in zip(folders.photos, chosen, strict=True):
        found.append(subjects.of_audit(report, folders.cuts[report.folder], each))
        logging.info("The subject is %r, its class %r.", each.instance_prompt, each.class_prompt)
    _check_captions(model, found)
    return tuple(found)


def _check_captions(model: Model, found: Sequence[Subject]) -> None:
    """Checks that no caption is so long that its subject's word would be cut off.

    Raises:
      AuditError: all of them, each with its photo.
    """
    lines = []
    for subject in found:
        for photo in subject.audit.kept:
            if photo.caption is None:
                continue
            for tokenizer in {t for s in model.stages.values() for t in s.tokenizers.values()}:
                try:
                    tokenizer.check(subject.prompts[photo.path.name], keep=subject.identifier)
                except ValueError as error:
                    lines.append(f"The caption of {photo.path}: {error}")
    if lines:
        raise AuditError("\n".join(dict.fromkeys(lines)))


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
