"""The Python interface: `load` a model and draw, `finetune` one on photos and get its run.

    import dreambooth_jax

    run = dreambooth_jax.finetune("photos/duck", "toy", config="sdxl")
    run.sample(["a {subject} on the moon"])[0].save("moon.png")

Settings have the names and meanings of docs/settings.md. Nothing here can be done that the command
line cannot do, and pictures are the same.
"""

import dataclasses
import functools
import os
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_jax import compile_cache, export, files, generate, sharding, untrusted
from dreambooth_jax import config as configs
from dreambooth_jax.config import ConfigDict, Plan, checks
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.modes import evaluate, sample
from dreambooth_jax.experiment.parts import asking, loading
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.run import run as run_whole
from dreambooth_jax.pipeline import SizeError, locate

Size = tuple[int, int]
Place = str | os.PathLike[str]

# The configuration whose sampler and precision suit a pipeline class.
CONFIG_OF = {
    "IFPipeline": "deepfloyd_if",
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "ZImagePipeline": "z_image",
    "Flux2KleinPipeline": "flux2",
}


class TextToImage:
    """A model that draws prompts; `load` and `Run.model` make it.

    plan: its settings. words: what it calls its subjects, () for a base model.
    """

    def __init__(
        self, plan: Plan, base: Model, tuned: Model, words: Sequence[Words], workdir: Workdir
    ):
        self.plan, self.words = plan, tuple(words)
        self._base, self._tuned, self._workdir = base, tuned, workdir
        self._samplers: dict[Size | None, dict[tuple[str, bool], generate.Sampler]] = {}

    def sample(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        size: Size | None = None,
    ) -> list[Image.Image]:
        """Draws every prompt once for each seed; returns the pictures, prompt by prompt.

        prompts: `{subject}` in one stands for the identifier and class noun of the (first) subject.
        seeds: of the initial noise; the same prompt, seed and settings give the same picture.
        size: height and width in pixels; None is the model's own. A cascade has only its own.

        Raises:
          TypeError: prompts that are no texts, seeds or sides that are no whole numbers.
          ValueError: no prompts, braces without a subject or with another name in them, a seed that
            is out of range, a size that the model cannot draw.
        """
        lines, numbers = asking.prompts(prompts), asking.seeds(seeds)
        size = asking.size(size)
        filled = [self._filled(line) for line in lines]
        painter = self._painter(filled, size)
        rows = [(line, seed) for line in filled for seed in numbers]
        drawn = painter.draw(
            self._tuned.weights,
            [line for line, _ in rows],
            [seed for _, seed in rows],
            batch_size=self._batch_size(len(rows), painter.rows),
            label="pictures",
        )
        return [Image.fromarray(picture) for picture in drawn[-1]]

    def _painter(self, prompts: Sequence[str], size: Size | None) -> Painter:
        """The samplers of this size, compiled once, with these prompts encoded."""
        if size is not None and len(self._base.kinds) > 1:
            raise ValueError(f"size = {size}: a cascade draws at its own size; leave size out")
        try:
            self._base.stages["base"].at(size)
        except SizeError as error:
            raise ValueError(f"size = {size}: {error.reason}. Write size={error.near}.") from error
        # They are filled already; what is left in braces is meant.
        meant = tuple(each.replace("{", "{{").replace("}", "}}") for each in prompts)
        sampled = dataclasses.replace(self.plan.sample, prompts=meant)
        plan = dataclasses.replace(self.plan, sample=sampled)
        kept = self._samplers.setdefault(size, {})
        painter = Painter(plan, self._base, self.words, self._workdir, prompts, samplers=kept)
        for kind, settings in [*painter.settings.items()] if size is not None else []:
            painter.settings[kind] = dataclasses.replace(settings, size=size)
        return painter

    def _filled(self, prompt: str) -> str:
        """The prompt with the first subject's words in the place of names in braces."""
        if asking.is_template(prompt) and not self.words:
            raise ValueError(
                f"{asking.shown(prompt)}: this model knows no subject; write the prompt in full"
            )
        return prompt.format(**self.words[0].in_braces if self.words else {})

    def _batch_size(self, count: int, most: int) -> int:
        """Rows of a sampler call: a power of two, so that few programs are compiled."""
        return min(most, sharding.whole_rows(1 << (count - 1).bit_length(), self._base.mesh))


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run in its folder; `finetune` makes it, `Run(folder)` opens one.

    folder: the workdir.
    """

    folder: Path

    def __post_init__(self) -> None:
        """Raises ConfigError where no run is in the folder."""
        object.__setattr__(self, "folder", files.at(asking.place("folder", self.folder)))
        self._config()

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.folder / "report.html"

    @functools.cached_property
    def model(self) -> TextToImage:
        """The fine-tuned model, of the newest checkpoints."""
        return load(self.folder)

    def sample(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        size: Size | None = None,
    ) -> list[Image.Image]:
        """Draws prompts with the fine-tuned model; see `TextToImage.sample`."""
        # Told before the model is loaded.
        prompts, seeds, size = asking.prompts(prompts), asking.seeds(seeds), asking.size(size)
        return self.model.sample(prompts, seeds=seeds, size=size)

    def scores(self) -> dict[str, Any]:
        """Returns the content of `scores.json`; where there is none, the run is scored first.

        Raises:
          ValueError: no encoder is installed.
        """
        file = self.folder / "scores.json"
        if not file.is_file():
            evaluate.evaluate(self._config(), self.folder)
        return untrusted.json_object(file)

    def export(self, settings: Mapping[str, Any] | None = None) -> Path:
        """Exports the newest checkpoints again; returns the folder that diffusers opens.

        settings: for example `{"export.dtype": "bfloat16", "restore.base": 400}`.
        """
        config = self._config()
        _set(config, asking.settings(settings))
        return sample.export(config, self.folder)

    def _config(self) -> ConfigDict:
        return configs.of_run(str(self.folder))


def load(
    name_or_folder: Place = "embedded",
    *,
    config: str = "",
    settings: Mapping[str, Any] | None = None,
) -> TextToImage:
    """Loads a model to draw with.

    name_or_folder: "embedded", the workdir of a run, an export of one, a diffusers folder, `gs://…`
      or a hub id `owner/name[@revision]`.
    config: name or file of the configuration whose sampler and precision are taken; "" is that of
      the run, or one that suits the model's class.
    settings: others, by key: `{"sampler.num_steps": 20}`.

    Raises:
      ConfigError, CheckpointError, FileNotFoundError, ValueError: what was found and expected.
      TypeError: an argument of another kind.
    """
    name = asking.place("name_or_folder", name_or_folder)
    asking.text("config", config)
    chosen = _config_for(name, config)
    _set(chosen, asking.settings(settings))
    compile_cache.use(chosen.compile.cache_dir)
    plan = configs.resolve(chosen)
    workdir = Workdir.of_run(files.at(name), plan)
    if name != "embedded" and _is_run(workdir.root):
        base, words = sample.reopened(plan, workdir)
        tuned, _ = sample.restored(plan, base, workdir)
        return TextToImage(plan, base, tuned, words, workdir)
    base = loading.load(plan, loading.open_stages(plan))
    told = export.words_in(base.stages["base"].folder)
    return TextToImage(plan, base, base, [Words.of(**each) for each in told], workdir)


def finetune(
    photos: Place,
    class_noun: str,
    *,
    config: str = "sdxl",
    workdir: Place = "",
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Fine-tunes a model on photos of a subject, or resumes the run in `workdir`.

    photos: a folder of 3-5 photos, or "embedded".
    class_noun: what the subject is, one noun without article: "toy".
    config: name of a configuration, with a variant after a colon, or a file.
    workdir: folder of the run; "" is `runs/<configuration>-<photos>`.
    settings: others, by key: `{"train.num_steps": 400, "subject.identifier": "zib"}`.

    Raises:
      ConfigError, AuditError, CheckpointError, ValueError, OSError: what was found and expected.
      TypeError: an argument of another kind.
      Interrupted: a signal came, and everything is saved; the same call resumes.
    """
    images = asking.place("photos", photos)
    asking.text("class_noun", class_noun)
    workdir = asking.place("workdir", workdir)
    chosen = _read(asking.text("config", config))
    own = {"subject.images": images, "subject.class_noun": class_noun}
    _set(chosen, own | dict(asking.settings(settings)))
    compile_cache.use(chosen.compile.cache_dir)
    subject = class_noun if images == "embedded" else Path(images).name
    stem = Path(config.partition(":")[0]).stem
    folder = files.at(workdir or Path("runs") / f"{stem}-{subject}".replace(" ", "_"))
    run_whole(chosen, folder)
    return Run(folder)


def _set(config: ConfigDict, settings: Mapping[str, Any]) -> None:
    """Changes settings by key; ConfigError where one does not exist or its value cannot be."""
    checks.raise_all(checks.check(configs.flatten(config) | dict(settings)))
    config.update_from_flattened_dict(dict(settings))


def _read(config: str) -> ConfigDict:
    """The settings of a configuration by name or file, with a variant after a colon."""
    path, _, variant = configs.library.located(config).partition(":")
    if not Path(path).is_file():
        known = configs.library.files()
        raise configs.ConfigError(
            f"config = {config!r}: no such file or configuration. {configs.suggest(path, known)} "
            f"There are {', '.join(known)}."
        )
    return runpy.run_path(path)["get_config"](variant)


def _config_for(name: str, config: str) -> ConfigDict:
    """The settings with which a model of this name is drawn from."""
    if name == "embedded":
        return _read(config or "imagen_like")
    place = files.at(name)
    if _is_run(place):
        return configs.of_run(name)
    several = (place / "base" / export.INDEX).is_file()
    base = str(place / "base") if several else name
    if config:
        chosen = _read(config)
    elif place.name == "export" and _is_run(place.parent):
        chosen = configs.of_run(str(place.parent))
        chosen.base_settings = chosen.vae_model = chosen.variant = ""  # an export holds it all
    else:
        folder = locate(base, kind="base", weights=False)
        found = untrusted.json_object(folder / export.INDEX).get("_class_name")
        known = isinstance(found, str) and found in CONFIG_OF
        chosen = _read(CONFIG_OF[str(found)]) if known else configs.base_config()
    chosen.base_model = base
    chosen.upscaler_model = str(place / "upscaler") if several else ""
    chosen.stages = ("base", "upscaler") if several else ("base",)
    return chosen


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file()
