"""Attention of an edited prompt that follows the attention of its source; heat of words.

Prompt-to-Prompt (Hertz et al. 2022) replaces attention maps. An answer is a map times values, and
linear in the values: a map of the source whose columns are moved, scaled or left out is ordinary
attention with the source's queries and keys and changed values. So no map is ever made here, and
attention keeps the form that suits the device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreambooth_jax.models import attention

Array = jax.Array

# (q, k, v, *, text) -> answer; q `[B,L,H,D]`, k and v `[B,S,H,D]`; the first `text` keys are those
# of the prompt's tokens.
Attend = Callable[..., Array]
# Positions above which a layer has no heat, and attention among positions is the edit's own: at 64²
# it holds the source's details.
_SMALL_QUERIES = 1024


class Swap(NamedTuple):
    """The part of the sources' attention that P edited prompts take over.

    words: float32 `[P,T,T]`, the weight of each source token's map in each token of the edit.
    own: float32 `[P,T]`, the weight of the edit's own map in each of its tokens.
    shared: bool `[P]`, attention among at most 32² positions is the source's as well.
    """

    words: Array
    own: Array
    shared: Array


def swap_at(rows: Mapping[str, Array], t: Array, levels: Sequence[float]) -> Swap:
    """The swap at a level t of the sampler, for the edits among the rows of pairs.

    Args:
      rows: `words` `[2P,T,T]` and `own` `[2P,T]`, as in `Swap`; `cross_steps` and `self_steps`,
        int32 `[2P]`, the number of steps from the first on in which each is on.
      levels: those of the steps, falling, and the clean end.
    """
    edits = {
        name: rows[name].reshape(-1, 2, *rows[name].shape[1:])[:, 1]
        for name in ("words", "own", "cross_steps", "self_steps")
    }
    table = jnp.asarray(levels, jnp.float32)
    on = (t > table[edits["cross_steps"]])[:, None]
    own = jnp.where(on, edits["own"], 1.0)
    words = jnp.where(on[..., None], edits["words"], 0.0)
    return Swap(words, own, t > table[edits["self_steps"]])


def plain(q: Array, k: Array, v: Array, *, text: int) -> Array:
    """Softmax attention as it is."""
    del text
    return attention.attention(q, k, v)


def swapped(swap: Swap, *, every: int) -> Attend:
    """Attention in which the edits' conditional rows follow their sources.

    Rows are (source, edit) of each of the P pairs; with `every` = 2 each is followed by its row
    without the prompt, which is left alone.

    `answer = attention(q_s, k_s, [words·v_text; shared·v_image]) + attention(q_t, k_t, [own·v_text;
    (1 - shared)·v_image])` with q and k of source s and edit t, values of the edit: where the
    prompt's keys stand before those of the image, they share one softmax, as in Imagen's networks.
    """

    def attend(q: Array, k: Array, v: Array, *, text: int) -> Array:
        pairs = len(swap.own)

        def by_pair(x: Array) -> Array:
            return x.reshape(pairs, 2 * every, *x.shape[1:])

        q, k, v = (by_pair(jnp.asarray(x)) for x in (q, k, v))
        shared = swap.shared[:, None, None, None] & (q.shape[2] <= _SMALL_QUERIES)
        if text == 0:
            q, k = (x.at[:, every].set(jnp.where(shared, x[:, 0], x[:, every])) for x in (q, k))
            return attention.attention(*(x.reshape(-1, *x.shape[2:]) for x in (q, k, v)))
        words, image = v[:, every, :text], v[:, every, text:]
        moved = jnp.einsum("pst,pthd->pshd", swap.words.astype(v.dtype), words)
        kept = swap.own.astype(v.dtype)[..., None, None] * words
        none = jnp.zeros_like(image)
        from_source = jnp.concatenate([moved, jnp.where(shared, image, none)], 1)
        from_edit = jnp.concatenate([kept, jnp.where(shared, none, image)], 1)
        # Apart, not as one more row of each pair: where devices share the rows of a pair, XLA makes
        # wrong numbers of that.
        of_source = attention.attention(q[:, 0], k[:, 0], from_source)
        v = v.at[:, every].set(from_edit)
        answer = attention.attention(*(x.reshape(-1, *x.shape[2:]) for x in (q, k, v)))
        answer = answer.reshape(pairs, 2 * every, *answer.shape[1:])
        answer = answer.at[:, every].add(of_source)
        return answer.reshape(-1, *answer.shape[2:])

    return attend


def recording(columns: Array, heats: list[Array]) -> Attend:
    """Plain attention that appends to `heats` the heat `[B,L]` of some tokens in each small layer.

    The heat of a position is the attention, a mean over heads, that it pays to the tokens that are
    1 in `columns` `[B,T]`; layers of more than 32² positions are left out.
    """

    def attend(q: Array, k: Array, v: Array, *, text: int) -> Array:
        if text and q.shape[1] <= _SMALL_QUERIES:
            marks = jnp.pad(columns[:, :text], ((0, 0), (0, k.shape[1] - text)))
            value = jnp.broadcast_to(marks[..., None, None], (*k.shape[:3], 1)).astype(jnp.float32)
            # Values of another width than the keys' are not for every form.
            whole = attention.FORMS["whole"]
            heats.append(whole(q, k, value, None, q.shape[-1] ** -0.5)[..., 0].mean(-1))
        return plain(q, k, v, text=text)

    return attend
