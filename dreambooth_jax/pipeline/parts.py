"""Three parts of a stage: the network that is fine-tuned, the codec of its samples, the texts.

The fourth part, how noise is added, is `diffusion`'s. None of them holds weights: they are bound to
a flat dictionary of parameters where they are called.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import tree
from dreambooth_jax.models import layers
from dreambooth_jax.text.tokenizer import Tokenizer

Array = jax.Array
Params = Mapping[str, Array]

_LARGE = 512  # pixels along a side, from which on a codec decodes pictures one by one
# Names of prompts' tokens, int32 `[P,L]` each: ids and mask of every text encoder, by its suffix.
TOKENS = tuple(f"{name}{suffix}" for suffix in ("", "_2", "_3") for name in ("ids", "mask"))


@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """The network that is fine-tuned.

    Args:
      component: folder of its files, and the first part of its leaves' paths.
      call: `(module, xt, t, cond, *, remat, **rows) -> output`; `cond` is the family's own pytree.
      channels: of a sample: colours, or those of a latent.
      learns_variance: the output has twice the channels: a variance of the sampling steps as well.
      sized: it is conditioned on the photo's size and crop, rows `sizes` `[B,6]`.
      attends: `call` takes `attend`, in the place of the network's attention (`models.words`).
      tables: regex of leaves that are no parameters and are never trained, such as positions.
    """

    component: str
    network: layers.Network
    call: Callable[..., Array]
    channels: int
    learns_variance: bool = False
    sized: bool = False
    attends: bool = False
    tables: str = "(?!)"

    def predict(
        self, params: Params, xt: Array, t: Array, cond: Any, *, remat: str = "none", **rows: Any
    ) -> Array:
        """Returns the network's output `[B,H,W,C or 2C]`, float32, for `xt` `[B,H,W,C]`, t `[B]`.

        rows: arrays of the batch that only some families have, such as `sizes`, and `attend`.
        """
        module = self.network.bind(tree.prefixed(params, self.component))
        return self.call(module, xt, t, cond, remat=remat, **rows).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """Pixels to samples and back: the identity, or a variational autoencoder.

    Args:
      component, network: of the autoencoder; None where a sample is the picture itself.
      factor: pixels along a side of one position of a sample.
      scaling, shift: a sample is `(latent - shift) * scaling`.
    """

    component: str | None = None
    network: layers.Network | None = None
    factor: int = 1
    scaling: float = 1.0
    shift: float = 0.0

    @property
    def is_latent(self) -> bool:
        """True where samples are latents of an autoencoder."""
        return self.network is not None

    def _bound(self, params: Params) -> Any:
        assert self.network is not None and self.component is not None
        return self.network.bind(tree.prefixed(params, self.component))

    def encode(self, params: Params, pixels: Array) -> tuple[Array, Array]:
        """Returns mean and deviation of x0, float32, of pictures `[B,H,W,3]` in [-1, 1]."""
        mean, std = self._bound(params).encode(pixels.astype(jnp.float32))
        mean = mean - self.shift if self.shift else mean
        return self.scaling * mean, self.scaling * std

    def decode(self, params: Params, x0: Array, *, shards: int = 1) -> Array:
        """Returns pictures `[B,H,W,3]` of x0, float32: its range is too wide for half precision.

        Large pictures are decoded one after the other on each of the `shards` devices that share
        the rows: at 1024 pixels the activations of one take about 3 GB.
        """
        if not self.is_latent:
            return x0
        coder, x0 = self._bound(params), x0.astype(jnp.float32) / self.scaling
        x0 = x0 + self.shift if self.shift else x0
        if max(x0.shape[1:3]) * self.factor < _LARGE or len(x0) <= shards:
            return coder.decode(x0)
        # Device d has rows d·n … d·n + n - 1: turn k decodes one of each.
        turns = x0.reshape(shards, -1, *x0.shape[1:]).swapaxes(0, 1)
        pictures = jax.lax.map(coder.decode, turns).swapaxes(0, 1)
        return pictures.reshape(-1, *pictures.shape[2:])


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """One text encoder with its tokenizer.

    Args:
      tokenizer_folder: the tokenizer's component in the model folder.
      suffix: end of the names of its tokens in a batch: "", "_2" or "_3" (`TOKENS`).
      unread: regex of keys of its weight file that the network does not have, such as layers above
        those whose states are read. An export then copies the file.
    """

    network: layers.Network
    tokenizer: Tokenizer
    tokenizer_folder: str
    suffix: str = ""
    unread: str = ""

    @property
    def table(self) -> str:
        """The path of its table of token embeddings `[vocabulary, D]`, within the component."""
        ends = ("shared/embedding", "token_embedding/embedding", "embed_tokens/embedding")
        return next(path for path in self.network.abstract if path.endswith(ends))

    def with_word(self, word: str, *, count: int) -> "Encoder":
        """Returns the encoder to which `word` is `count` new tokens, with rows for them.

        Raises:
          ValueError: it is of a kind that an export copies, which has no place for new rows.
        """
        if self.unread:
            raise ValueError(
                "new tokens, which adapt.name = textual_inversion and pivotal train, cannot be "
                "made here: this model's text encoder is a language model of which a part is read, "
                "and is not trained. Write --config.adapt.name=lora."
            )
        tokenizer = self.tokenizer.with_word(word, count=count)
        old = self.network.abstract[self.table]
        rows = max(old.shape[0], *(i + 1 for i in tokenizer.new_ids))
        leaf = jax.ShapeDtypeStruct((rows, old.shape[1]), old.dtype)
        abstract = {**self.network.abstract, self.table: leaf}
        network = dataclasses.replace(self.network, abstract=abstract)
        return dataclasses.replace(self, network=network, tokenizer=tokenizer)


@dataclasses.dataclass(frozen=True, eq=False)
class Conditioner:
    """Prompts to what the denoiser is conditioned on.

    Args:
      encoders: by component, the first one first.
      join: `(bound encoders by component, tokens, dtype) -> cond`, a pytree `[P,…]` of arrays that
        only the family looks into.
      trainable: components whose encoder may be fine-tuned.
      zeros_for_empty: the embeddings of the empty prompt are zeros (SDXL).
    """

    encoders: Mapping[str, Encoder]
    join: Callable[[Mapping[str, Any], Mapping[str, Array], Any], Any]
    trainable: tuple[str, ...]
    zeros_for_empty: bool = False

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Beginnings of the paths of all text encoders' leaves."""
        return tuple(f"{component}/" for component in self.encoders)

    @property
    def trainable_pattern(self) -> str:
        """Regex of the paths of leaves that fine-tuning of the text encoders may change."""
        return f"({'|'.join(self.trainable)})/.*" if self.trainable else "(?!)"

    def tokens(
        self, prompts: Sequence[str], *, keep: str | Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Returns the prompts' tokens by the names in `TOKENS`; see `Tokenizer.encode`."""
        named: dict[str, np.ndarray] = {}
        for encoder in self.encoders.values():
            encoded = encoder.tokenizer.encode(prompts, keep=keep)
            named |= {f"{name}{encoder.suffix}": value for name, value in encoded.items()}
        return named

    def abstract_tokens(self, prompts: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of the tokens of so many prompts."""
        named: dict[str, jax.ShapeDtypeStruct] = {}
        for encoder in self.encoders.values():
            leaf = jax.ShapeDtypeStruct((prompts, encoder.tokenizer.max_length), jnp.int32)
            named |= {f"{name}{encoder.suffix}": leaf for name in TOKENS[:2]}
        return named

    def encode(self, params: Params, tokens: Mapping[str, Array], *, dtype: Any) -> Any:
        """Returns the embeddings of P prompts in `dtype`, every leaf `[P,…]`."""
        bound = {
            component: encoder.network.bind(tree.prefixed(params, component))
            for component, encoder in self.encoders.items()
        }
        return self.join(bound, tokens, dtype)

    def empty(self, table: Any) -> Any:
        """Returns the embeddings `[1,…]` of the empty prompt, row 0 of `table`, for guidance."""
        first = jax.tree.map(lambda x: x[:1], table)
        return jax.tree.map(jnp.zeros_like, first) if self.zeros_for_empty else first

    def with_word(self, word: str, *, count: int) -> "Conditioner":
        """Returns the conditioner to whose text encoders `word` is `count` new tokens."""
        encoders = {
            component: encoder.with_word(word, count=count)
            for component, encoder in self.encoders.items()
        }
        return dataclasses.replace(self, encoders=encoders)

    @property
    def new_rows(self) -> dict[str, tuple[int, ...]]:
        """Path of each table of token embeddings -> ids of the new tokens of `with_word`."""
        return {
            f"{component}/{encoder.table}": encoder.tokenizer.new_ids
            for component, encoder in self.encoders.items()
            if encoder.tokenizer.new_ids
        }
