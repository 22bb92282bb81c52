"""Attention of diffusers' UNets by maps that are made, changed and looked at.

Only tests with PyTorch import this.
"""

from typing import Any

import numpy as np
import torch

from dreambooth_jax.models.words import Swap


class Maps:
    """Attention of diffusers' modules by maps; those of row 2 follow those of row 0."""

    def __init__(self, swap: Swap):
        self.words = torch.from_numpy(np.asarray(swap.words[0]))
        self.own = torch.from_numpy(np.asarray(swap.own[0]))
        self.shared = bool(swap.shared[0])

    def changed(self, maps: Any, text: int) -> Any:
        source, edit = maps[0], maps[2]
        made = source if self.shared else edit
        if text:
            columns = source[..., :text] @ self.words + edit[..., :text] * self.own
            made = torch.cat([columns, made[..., text:]], -1)
        return torch.stack([maps[0], maps[1], made, maps[3]])

    def answer(self, attn: Any, q: Any, k: Any, v: Any, text: int) -> Any:
        def by_head(x: Any) -> Any:
            return x.reshape(len(x), -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        q, k, v = map(by_head, (q, k, v))
        maps = torch.softmax(q @ k.transpose(-1, -2) * attn.scale, -1)
        found = self.changed(maps, text) @ v
        return attn.to_out[0](found.transpose(1, 2).flatten(2))

    def __call__(
        self, attn: Any, hidden: Any, encoder_hidden_states: Any = None, **how: Any
    ) -> Any:
        if attn.add_k_proj is not None:
            return self.hybrid(attn, hidden, encoder_hidden_states)
        others = hidden if encoder_hidden_states is None else encoder_hidden_states
        text = 0 if encoder_hidden_states is None else others.shape[1]
        return self.answer(attn, attn.to_q(hidden), attn.to_k(others), attn.to_v(others), text)

    def hybrid(self, attn: Any, picture: Any, text: Any) -> Any:
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        hidden = attn.group_norm(picture.flatten(2)).transpose(1, 2)
        k, v = attn.add_k_proj(text), attn.add_v_proj(text)
        k = torch.cat([k, attn.to_k(hidden)], 1)
        v = torch.cat([v, attn.to_v(hidden)], 1)
        made = self.answer(attn, attn.to_q(hidden), k, v, text.shape[1])
        return picture + made.transpose(1, 2).reshape(picture.shape)


class Heat(Maps):
    """Maps as they are; keeps the attention that positions pay to some tokens, `[B,L]` a layer."""

    def __init__(self, columns: np.ndarray):
        """columns: `[B,T]`, 1 for the tokens."""
        self.columns, self.kept = torch.from_numpy(columns), []

    def changed(self, maps: Any, text: int) -> Any:
        if text:
            self.kept.append(torch.einsum("bhlt,bt->bl", maps[..., :text], self.columns))
            self.kept[-1] /= maps.shape[1]
        return maps
