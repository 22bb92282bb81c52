"""One stage of a base model: its networks, bound to weights where they are called."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import tree
from dreambooth_jax.diffusion import process
from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.models import layers
from dreambooth_jax.pipeline.families import Family, PooledText
from dreambooth_jax.text.tokenizer import Tokenizer

Array = jax.Array

# Folder of a component -> stem of its weight file.
COMPONENTS = {
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
}
_LARGE = 512  # pixels along a side, from which on a VAE decodes pictures one by one
# What prompts are to text encoders, int32 `[P,L]` each; those of the second one end in 2.
TOKENS = ("ids", "mask", "ids_2", "mask_2")


def _table_of(network: layers.Network) -> str:
    """The path of a text encoder's table of token embeddings."""
    ends = ("shared/embedding", "token_embedding/embedding")
    return next(path for path in network.abstract if path.endswith(ends))


@dataclasses.dataclass(frozen=True)
class Latents:
    """How a VAE's latents enter the diffusion: `factor` pixels a side each, times `scaling`."""

    factor: int
    scaling: float


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One stage; its weights are flat, under `unet/`, `text_encoder/` and so on."""

    kind: str  # "base" or "upscaler"
    folder: Path
    variant: str | None  # of its weight files: "fp16", or None for the plain ones
    family: Family
    networks: Mapping[str, layers.Network]  # by component
    tokenizers: Mapping[str, Tokenizer]  # by the text encoder's component
    schedule: schedules.Schedule
    noising: schedules.Schedule | None  # of the low-res image that an upscaler sees
    size: int  # pixels along a side of what it makes
    channels: int  # of the sample: colours, or a latent's
    latents: Latents | None = None  # None: the sample is the picture itself
    zeros_for_empty: bool = False  # the empty prompt's embeddings are zeros (SDXL)

    @property
    def unet(self) -> layers.Network:
        """The network that is fine-tuned."""
        return self.networks["unet"]

    @property
    def text_encoder(self) -> layers.Network:
        """The first text encoder."""
        return self.networks["text_encoder"]

    @property
    def tokenizer(self) -> Tokenizer:
        """The first text encoder's tokenizer."""
        return self.tokenizers["text_encoder"]

    @property
    def components(self) -> dict[str, str]:
        """Folder of each component -> stem of its weight file."""
        return {part: COMPONENTS[part] for part in self.networks}

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
        return f"text_encoder/{_table_of(self.text_encoder)}"

    def with_word(self, word: str, *, count: int) -> "Stage":
        """The same stage, to whose text encoders `word` is `count` new tokens.

        Their tables of token embeddings have rows for them; see `new_rows`.
        """
        tokenizers, networks = {}, dict(self.networks)
        for part, tokenizer in self.tokenizers.items():
            tokenizers[part] = tokenizer.with_word(word, count=count)
            table = _table_of(networks[part])
            old = networks[part].abstract[table]
            rows = max(old.shape[0], *(i + 1 for i in tokenizers[part].new_ids))
            leaf = jax.ShapeDtypeStruct((rows, old.shape[1]), old.dtype)
            abstract = {**networks[part].abstract, table: leaf}
            networks[part] = dataclasses.replace(networks[part], abstract=abstract)
        return dataclasses.replace(self, tokenizers=tokenizers, networks=networks)

    @property
    def new_rows(self) -> dict[str, tuple[int, ...]]:
        """Path of each table of token embeddings -> ids of the new tokens of `with_word`."""
        return {
            f"{part}/{_table_of(self.networks[part])}": tokenizer.new_ids
            for part, tokenizer in self.tokenizers.items()
            if tokenizer.new_ids
        }

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of x0."""
        side = self.size // (self.latents.factor if self.latents else 1)
        return side, side, self.channels

    @property
    def whole(self) -> np.ndarray:
        """What SDXL is told about a picture that is all that there is, float32 `[6]`.

        Height and width of the original, rows and columns cropped off at its top and left, height
        and width of the picture (Podell et al. 2023, section 2.2).
        """
        return np.array([self.size, self.size, 0, 0, self.size, self.size], np.float32)

    @property
    def learns_variance(self) -> bool:
        """Whether the network also says the variance of its sampling steps, of pixels."""
        said = self.unet.abstract["conv_out/kernel"].shape[-1]
        return self.latents is None and said == 2 * self.channels

    def fine_tuned(
        self, *, learned_variance: str = "fixed", zero_terminal_snr: bool = False
    ) -> "Stage":
        """The same stage as its network is trained further, and samples from then on.

        learned_variance: "fixed": the loss leaves it alone while the layers below it change, so a
        fixed one takes its place, as in diffusers' recipe for DeepFloyd IF; "trained": it learns.

        Raises:
          ValueError: the network says no variance that could be trained, or epsilon with
            `zero_terminal_snr`.
        """
        schedule = self.schedule.zero_terminal_snr() if zero_terminal_snr else self.schedule
        if learned_variance == "trained":
            if not self.learns_variance:
                raise ValueError(
                    f"loss.learned_variance = 'trained': the {self.kind} stage {self.folder} has "
                    "no output for a variance, twice as many channels as its pictures. Write "
                    "--config.loss.learned_variance=fixed."
                )
            schedule = dataclasses.replace(schedule, variance_type="learned_range")
        elif schedule.variance_type == "learned_range":
            schedule = dataclasses.replace(schedule, variance_type="fixed_small")
        return self if schedule is self.schedule else dataclasses.replace(self, schedule=schedule)

    def _bind(self, params: Mapping[str, Array], part: str) -> Any:
        return self.networks[part].bind(tree.prefixed(params, part))

    def tokens(
        self, prompts: Sequence[str], *, keep: str | Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """The prompts for every text encoder, by the names in `TOKENS`; see `Tokenizer.encode`."""
        named: dict[str, np.ndarray] = {}
        for part, tokenizer in self.tokenizers.items():
            end = part.removeprefix("text_encoder")
            encoded = tokenizer.encode(prompts, keep=keep)
            named |= {f"{name}{end}": value for name, value in encoded.items()}
        return named

    def encode_text(
        self, params: Mapping[str, Array], tokens: Mapping[str, Array], *, dtype: Any
    ) -> Any:
        """Tokens of P prompts -> embeddings in `dtype`: states `[P,L,D]`, or a `PooledText`."""
        bound = {part: self._bind(params, part) for part in self.tokenizers}
        return self.family.encode(bound, tokens, dtype)

    def unguided(self, table: Any) -> Any:
        """The embeddings `[1,…]` that guidance leads away from; row 0 of the table is empty."""
        empty = jax.tree.map(lambda x: x[:1], table)
        return jax.tree.map(jnp.zeros_like, empty) if self.zeros_for_empty else empty

    def encode_images(self, params: Mapping[str, Array], pixels: Array) -> tuple[Array, Array]:
        """Pictures `[B,H,W,3]` in [-1, 1] -> mean and standard deviation of x0, float32."""
        assert self.latents is not None
        mean, std = self._bind(params, "vae").encode(pixels.astype(jnp.float32))
        return self.latents.scaling * mean, self.latents.scaling * std

    def decode(self, params: Mapping[str, Array], x0: Array, *, shards: int = 1) -> Array:
        """x0 -> pictures `[B,H,W,3]`, float32: a VAE's range breaks half precision.

        Large pictures are decoded one after the other on each of the `shards` devices that share
        the rows: at 1024 pixels the activations of one take about 3 GB.
        """
        if self.latents is None:
            return x0
        coder, x0 = self._bind(params, "vae"), x0.astype(jnp.float32) / self.latents.scaling
        if self.size < _LARGE or len(x0) <= shards:
            return coder.decode(x0)
        # Device d has rows d·n … d·n + n - 1: turn k decodes one of each.
        turns = x0.reshape(shards, -1, *x0.shape[1:]).swapaxes(0, 1)
        pictures = jax.lax.map(coder.decode, turns).swapaxes(0, 1)
        return pictures.reshape(-1, *pictures.shape[2:])

    def condition(self, low_res: Array, noise: Array, noise_level: Array) -> Array:
        """The low-res image as the upscaler sees it: `[B,H,W,C]`, with noise of its level `[B]`."""
        assert self.noising is not None
        enlarged = process.upsample_bilinear(low_res, self.size)
        return process.add_noise(self.noising, enlarged, noise, noise_level)

    def predict(
        self,
        params: Mapping[str, Array],
        xt: Array,
        t: Array,
        text: Any,
        *,
        condition: Array | None = None,
        noise_level: Array | None = None,
        sizes: Array | None = None,
        remat: str = "none",
    ) -> Array:
        """The network's output `[B,H,W,C or 2C]`, float32; computes in the dtype of `text`.

        xt `[B,H,W,C]`, t int `[B]`, text `[B,L,D]` or a `PooledText`; an upscaler needs what the
        method `condition` gives, and its `noise_level`. sizes `[B,6]`, for SDXL: see `whole`.
        """
        x = xt if condition is None else jnp.concatenate([xt, condition], -1)
        extra: dict[str, Any] = {}
        if isinstance(text, PooledText):
            given = self.whole if sizes is None else sizes
            time_ids = jnp.broadcast_to(jnp.asarray(given, jnp.float32), (x.shape[0], 6))
            text, extra = text.states, {"pooled": text.pooled, "time_ids": time_ids}
        x = x.astype(text.dtype)
        output = self._bind(params, "unet")(
            x, t, text, noise_level=noise_level, remat=remat, **extra
        )
        return output.astype(jnp.float32)
