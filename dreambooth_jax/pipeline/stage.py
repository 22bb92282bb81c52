"""One stage of a base model: four parts, bound to weights where they are called."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreambooth_jax import tree, untrusted
from dreambooth_jax.data import images
from dreambooth_jax.diffusion import process
from dreambooth_jax.diffusion.path import NoisePath
from dreambooth_jax.models import layers
from dreambooth_jax.pipeline.family import Family
from dreambooth_jax.pipeline.frame import Frame, Resolution, Size, SizeError
from dreambooth_jax.pipeline.parts import Codec, Conditioner, Denoiser
from dreambooth_jax.text.tokenizer import Tokenizer

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A denoiser, a codec, a conditioner and a noise path, and the folder they came from.

    Weights are flat; the first part of a path is the component: the folder of its file.
    """

    kind: str  # "base" or "upscaler"
    folder: Path
    variant: str | None  # of its weight files: "fp16", or None for the plain ones
    family: Family
    denoiser: Denoiser
    codec: Codec
    conditioner: Conditioner
    path: NoisePath
    frame: Frame  # the sizes of pictures that it can make
    noising: NoisePath | None = None  # of the low-res image that an upscaler sees
    distilled: str = ""  # to fewer steps: why fine-tuning harms it, and its base model
    asked: Size | None = None  # size of its pictures, instead of the model's own

    @property
    def size(self) -> Size:
        """Height and width in pixels of what it makes."""
        return self.frame.own if self.asked is None else self.asked

    def at(self, resolution: Resolution | None) -> "Stage":
        """Returns the stage that makes pictures of another size, or of the model's own.

        Raises:
          SizeError: the model cannot make that size.
          FileError: its own size is none that it can make.
        """
        try:
            size = self.frame.at(resolution)
        except SizeError as error:
            if resolution is None:  # then it is the folder's own number that cannot be
                raise untrusted.FileError(
                    f"{self.folder}: its own pictures (sample_size) have "
                    f"{images.told(self.frame.own)} pixels; {error.reason}. {untrusted.AGAIN}"
                ) from error
            raise
        asked = None if size == self.frame.own else size
        return self if asked == self.asked else dataclasses.replace(self, asked=asked)

    @property
    def networks(self) -> dict[str, layers.Network]:
        """Every network by its component: the denoiser, text encoders, the codec's."""
        found = {self.denoiser.component: self.denoiser.network}
        found |= {name: encoder.network for name, encoder in self.conditioner.encoders.items()}
        if self.codec.component is not None and self.codec.network is not None:
            found[self.codec.component] = self.codec.network
        return found

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """Every tokenizer by the component of its text encoder."""
        return {name: one.tokenizer for name, one in self.conditioner.encoders.items()}

    @property
    def tokenizer(self) -> Tokenizer:
        """The first text encoder's tokenizer."""
        return next(iter(self.tokenizers.values()))

    @property
    def components(self) -> dict[str, str]:
        """Folder of each component -> stem of its weight file."""
        encoders = self.conditioner.encoders
        return {
            name: "model" if name in encoders else "diffusion_pytorch_model"
            for name in self.networks
        }

    def unread(self, component: str) -> str:
        """Returns the regex of keys of a component's file that its network does not have."""
        encoder = self.conditioner.encoders.get(component)
        return "" if encoder is None else encoder.unread

    @property
    def drawing(self) -> tuple[str, ...]:
        """Beginnings of the paths of all leaves that a sampler needs."""
        codec = (f"{self.codec.component}/",) if self.codec.component is not None else ()
        return (f"{self.denoiser.component}/", *codec)

    def is_denoiser(self, path: str) -> bool:
        """Returns True for the path of one of the denoiser's leaves."""
        return path.startswith(f"{self.denoiser.component}/")

    def is_codec(self, path: str) -> bool:
        """Returns True for the path of one of the codec's leaves."""
        return self.codec.component is not None and path.startswith(f"{self.codec.component}/")

    def is_text(self, path: str) -> bool:
        """Returns True for the path of a text encoder's leaf."""
        return path.startswith(self.conditioner.prefixes)

    @property
    def abstract(self) -> tree.Flat:
        """Every leaf by path, as shape and dtype."""
        flat: tree.Flat = {}
        for part, network in self.networks.items():
            flat |= tree.with_prefix(network.abstract, part)
        return flat

    @property
    def heads(self) -> dict[str, int]:
        """The number of heads of each attention, by the path of its module."""
        flat: dict[str, int] = {}
        for part, network in self.networks.items():
            flat |= tree.with_prefix(network.heads, part)
        return flat

    @property
    def token_table(self) -> str:
        """The path of the first text encoder's table of token embeddings `[vocabulary, D]`."""
        component, encoder = next(iter(self.conditioner.encoders.items()))
        return f"{component}/{encoder.table}"

    def with_word(self, word: str, *, count: int) -> "Stage":
        """Returns the stage to whose text encoders `word` is `count` new tokens; see `new_rows`."""
        conditioner = self.conditioner.with_word(word, count=count)
        return dataclasses.replace(self, conditioner=conditioner)

    @property
    def new_rows(self) -> dict[str, tuple[int, ...]]:
        """Path of each table of token embeddings -> ids of the new tokens of `with_word`."""
        return self.conditioner.new_rows

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of x0."""
        height, width = self.size
        return height // self.codec.factor, width // self.codec.factor, self.denoiser.channels

    @property
    def channels(self) -> int:
        """Channels of x0."""
        return self.denoiser.channels

    def fine_tuned(
        self, *, learned_variance: str = "fixed", zero_terminal_snr: bool = False
    ) -> "Stage":
        """Returns the stage with the noise path of fine-tuning, and of sampling after it.

        learned_variance: "fixed": the loss does not train that output while the layers below it
        change, so a fixed variance takes its place, as in diffusers' recipe for DeepFloyd IF;
        "trained": the variational bound trains it.

        Raises:
          ValueError: the network has no variance output to train, or it predicts epsilon and
            `zero_terminal_snr` is asked for.
        """
        path = self.path.zero_terminal_snr() if zero_terminal_snr else self.path
        if learned_variance == "trained":
            if not self.denoiser.learns_variance:
                raise ValueError(
                    f"loss.learned_variance = 'trained': the {self.kind} stage {self.folder} has "
                    "no output for a variance, twice as many channels as its pictures. Write "
                    "--config.loss.learned_variance=fixed."
                )
            path = dataclasses.replace(path, variance_type="learned_range")
        elif path.variance_type == "learned_range":
            path = dataclasses.replace(path, variance_type="fixed_small")
        return self if path is self.path else dataclasses.replace(self, path=path)

    def tokens(
        self, prompts: Sequence[str], *, keep: str | Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Returns the prompts' tokens for every text encoder; see `Conditioner.tokens`."""
        return self.conditioner.tokens(prompts, keep=keep)

    def encode_text(
        self, params: Mapping[str, Array], tokens: Mapping[str, Array], *, dtype: Any
    ) -> Any:
        """Returns the embeddings of P prompts in `dtype`; see `Conditioner.encode`."""
        return self.conditioner.encode(params, tokens, dtype=dtype)

    def encode_images(self, params: Mapping[str, Array], pixels: Array) -> tuple[Array, Array]:
        """Returns mean and standard deviation of x0 of pictures; see `Codec.encode`."""
        return self.codec.encode(params, pixels)

    def decode(self, params: Mapping[str, Array], x0: Array, *, shards: int = 1) -> Array:
        """Returns the pictures of x0; see `Codec.decode`."""
        return self.codec.decode(params, x0, shards=shards)

    def condition(self, low_res: Array, noise: Array, noise_level: Array) -> Array:
        """Returns an upscaler's input `[B,H,W,C]`: the low-res image enlarged, with noise."""
        assert self.noising is not None
        enlarged = process.upsample_bilinear(low_res, self.size)
        return process.add_noise(self.noising, enlarged, noise, noise_level)

    def predict(
        self,
        params: Mapping[str, Array],
        xt: Array,
        t: Array,
        cond: Any,
        *,
        remat: str = "none",
        **rows: Any,
    ) -> Array:
        """Returns the network's output `[B,H,W,C or 2C]`; computes in the dtype of `cond`.

        t: `[B]`, the levels as `NoisePath.told` returns them.
        rows: what else a row has: `condition` (as the method of that name returns it) and
        `noise_level` of an upscaler, `sizes` of SDXL; see `Denoiser.predict`. `attend` takes the
        place of attention where `denoiser.attends`.
        """
        return self.denoiser.predict(params, xt, t, cond, remat=remat, **rows)
