"""LoRA files of other runs and of others, added to a model with a strength each."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dreambooth_jax import files, hosts, sharding
from dreambooth_jax.adapt import lora
from dreambooth_jax.config import ConfigError, Plan
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.export import lora_file, lora_reading
from dreambooth_jax.pipeline import Stage


@dataclasses.dataclass(frozen=True)
class Added:
    """The changes that the files of `sample.loras` make: by stage, those of every file in order.

    label: their names and strengths, for the names of folders.
    """

    changes: Mapping[str, Sequence[lora.Changes]]
    label: str

    def changes_text(self, stages: Mapping[str, Stage]) -> bool:
        """Returns True where a text encoder changes, so that prompts are encoded anew."""
        return any(
            stages[kind].is_text(path)
            for kind, each in self.changes.items()
            for change in each
            for path in change
        )

    def to(self, model: Model) -> Model:
        """The model with all of these changes beside its kernels.

        Raises:
          ValueError: see `lora.changed`.
        """
        whole = sharding.replicated(model.mesh)
        weights = dict(model.weights)
        for kind, each in self.changes.items():
            for change in each:
                placed = {
                    path: (sharding.put(down, whole), sharding.put(up, whole))
                    for path, (down, up) in change.items()
                }
                weights[kind] = lora.changed(dict(weights[kind]), placed)
        return dataclasses.replace(model, weights=weights)


def read(plan: Plan, stages: Mapping[str, Stage]) -> Added:
    """Reads the files of `sample.loras` and checks them against the stages; nothing is compiled.

    Raises:
      ConfigError: a place is neither a file nor the folder of a run with exported LoRA.
      FileError, OSError: see `lora_reading.read`.
      Disagreement: not all hosts have the same files.
    """
    changes: dict[str, list[lora.Changes]] = {kind: [] for kind in stages}
    names, sums = [], {}
    for place, strength in plan.sample.loras:
        for kind, file in _files(place, tuple(stages)).items():
            found = lora_reading.read(files.here(file.parent) / file.name, stages[kind])
            scaled = {path: (down, np.float32(strength) * up) for path, (down, up) in found.items()}
            changes[kind].append(scaled)
            sums[f"{kind} {place}"] = _digest(found)
        stem = re.sub(r"[^\w.-]+", "-", Path(place).name.removesuffix(".safetensors")).strip("-")
        names.append(f"{stem}@{strength:g}")
    hosts.agree("the LoRA files", sums, remedy="Give every host the same files.")
    of = hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()[:6]
    label = f"+{'+'.join(names)[:80]}-{of}" if names else ""
    return Added(changes, label)


def _files(place: str, kinds: tuple[str, ...]) -> dict[str, Path]:
    """The file of each stage: of the base alone, or those that the run in a folder exported."""
    at = files.at(place)
    if at.is_file():
        return {kinds[0]: at}
    for start in (at / "export", at):
        own = {kind: start / kind / "lora" / lora_file.PEFT for kind in kinds}
        found = {kind: file for kind, file in own.items() if file.is_file()}
        single = start / "lora" / lora_file.PEFT
        if found or single.is_file():
            return found or {kinds[0]: single}
    if not at.exists():
        raise FileNotFoundError(f"sample.loras: {place} is missing.")
    raise ConfigError(
        f"sample.loras: {place} has no export/lora/{lora_file.PEFT}; expected a LoRA file, or the "
        "folder of a run that trained one (--config.adapt.name=lora) and exported it. Run it with "
        "--mode=export first."
    )


def _digest(changes: lora.Changes) -> str:
    made = hashlib.sha256()
    for path, factors in sorted(changes.items()):
        made.update(path.encode())
        for factor in factors:
            made.update(np.ascontiguousarray(factor).tobytes())
    return made.hexdigest()
