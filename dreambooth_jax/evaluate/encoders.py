"""The judges by name: where their weights are, and what they make of pictures.

A judge either turns pictures (and prompts) into features that are compared by cosine, or gives the
distance of two pictures. Each has its own name in every table: numbers of different judges are
never mixed, nor put beside published ones of another.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from dreambooth_jax.evaluate import encoder, perceptual, published

Images = Sequence[np.ndarray]  # uint8 [H,W,3], of any sizes


class EncoderError(ValueError):
    """Weights of evaluation encoders are not installed; the text names the remedy of each."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of N pictures `[N,D]`, and of prompts where the judge reads them.

    Both are called with a label for the progress bar.
    """

    name: str
    images: Callable[[Images, str], np.ndarray]
    texts: Callable[[Sequence[str], str], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Distance:
    """Distances `[K]` of K pairs of pictures, 0 for equal ones; called with a label as well."""

    name: str
    pairs: Callable[[Images, Images, str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """The place of an encoder's weights, and the batch and mesh that it runs with."""

    given: str  # a file, a folder or a hub id; "" is the installed package's
    cache_dir: str | None
    offline: bool
    batch_size: int
    mesh: Mesh | None


def _efficientnet(name: str, source: Source) -> Features:
    run = encoder.Encoder(source.given or None, batch_size=source.batch_size, mesh=source.mesh)
    return Features(name, lambda pictures, label: run(pictures, label=label)[0])


def _lpips(name: str, source: Source) -> Distance:
    net = name.removeprefix("lpips_")
    run = perceptual.Lpips(net, source.given, batch_size=source.batch_size, mesh=source.mesh)
    return Distance(name, lambda first, second, label: run(first, second, label=label))


def _folder(source: Source) -> Path:
    return published.locate(source.given, cache_dir=source.cache_dir, offline=source.offline)


def _dino(name: str, source: Source) -> Features:
    run = published.Dino(_folder(source), batch_size=source.batch_size, mesh=source.mesh)
    return Features(name, lambda pictures, label: run.images(pictures, label=label))


def _clip(name: str, source: Source) -> Features:
    run = published.Clip(_folder(source), batch_size=source.batch_size, mesh=source.mesh)
    return Features(
        name,
        lambda pictures, label: run.images(pictures, label=label),
        lambda prompts, label: run.texts(prompts, label=label),
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    """A judge that can be asked for: its title in tables, how it is found and how it is opened.

    find: raises ModuleNotFoundError, FileNotFoundError or ValueError where weights are missing.
    by_name_only: too slow to be taken because it happens to be there.
    """

    title: str
    find: Callable[[Source], Any]
    open: Callable[[str, Source], Features | Distance]
    by_name_only: bool = False


KINDS: dict[str, Kind] = {
    "dino_vits16": Kind("DINO (ViT-S/16)", _folder, _dino),
    "clip_vitb32": Kind("CLIP (ViT-B/32)", _folder, _clip),
    "clip_vitl14": Kind("CLIP (ViT-L/14)", _folder, _clip, by_name_only=True),
    "efficientnet_lite0": Kind(
        "EfficientNet-Lite0",
        lambda source: source.given or encoder.weight_file(),
        _efficientnet,
    ),
    "lpips_alex": Kind(
        "LPIPS (AlexNet)", lambda source: perceptual.weight_file("alex", source.given), _lpips
    ),
    "lpips_vgg": Kind(
        "LPIPS (VGG16)",
        lambda source: perceptual.weight_file("vgg", source.given),
        _lpips,
        by_name_only=True,
    ),
}


def at_hand(sources: Mapping[str, Source]) -> list[str]:
    """Encoders whose weights are installed on this machine; slow ones are excluded."""
    found = []
    for name, source in sources.items():
        if KINDS[name].by_name_only:
            continue
        try:
            KINDS[name].find(dataclasses.replace(source, offline=True))
        except (ModuleNotFoundError, FileNotFoundError, ValueError):  # no weights here
            continue
        found.append(name)
    return found


def check(names: Sequence[str], sources: Mapping[str, Source]) -> None:
    """All of these judges' weights must be there, or come from the model hub now.

    Raises:
      EncoderError: one message for all that are missing, with what to install or to give.
    """
    problems = []
    for name in names:
        try:
            KINDS[name].find(sources[name])
        except (ModuleNotFoundError, FileNotFoundError, ValueError) as error:
            problems.append(f"\n  {name}: {error}")
    if problems:
        raise EncoderError("encoders of evaluate.encoders are missing:" + "".join(problems))


def open_all(
    names: Sequence[str], sources: Mapping[str, Source], *, strict: bool = True
) -> list[Features | Distance]:
    """These judges, ready to be called.

    strict: False skips encoders that cannot be opened, with a warning: for a default list.

    Raises:
      EncoderError: as `check`.
      ValueError, OSError: a file is there, but is not what the name says.
    """
    if strict:
        check(names, sources)
    found = []
    for name in names:
        try:
            found.append(KINDS[name].open(name, sources[name]))
        except (ImportError, OSError, ValueError) as error:
            if strict:
                raise
            logging.warning("%s is left out: %s", name, error)
    return found
