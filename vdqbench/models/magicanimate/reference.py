"""Reference attention: self attentions of the second half of a UNet see, besides their own tokens, those of a reference image.

What they see is the normalized input of the same attention in a second UNet, the appearance encoder, which looks at the reference image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

Reference = Mapping[str, Tensor]
"""Tokens [B, N, C] of the reference images of B videos, by the name of the transformer block that they are for."""


def readers(unet: Any) -> list[str]:
    """Names of the transformer blocks that see a reference: those of images in the middle block and in the up blocks, as they are run.

    The original pairs the blocks of both UNets after a stable sort by width. Both have the same blocks, so pairs have the same name.
    """
    block = re.compile(r"(mid_block|up_blocks\.\d+)\.attentions\.\d+\.transformer_blocks\.\d+")
    return sorted((name for name, _ in unet.named_modules() if block.fullmatch(name)), key=lambda name: name.startswith("up_blocks"))


class ReferenceAttention(AttnProcessor2_0):
    """Attention of diffusers, which is told a reference; without tokens for its block in it, it is diffusers' own.

    Videos come as rows, frame by frame. If there are twice as many as the reference has, the first half is the unconditional branch,
    which sees itself alone. Its keys and values of the reference are computed all the same, as in the original, so that each layer is
    called once with all rows.

    Args:
        block: name of the transformer block; empty for one that sees no reference.
        frames: of a video.
    """

    def __init__(self, block: str, frames: int) -> None:
        super().__init__()
        self.block, self.frames = block, frames

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: Reference | None = None,
    ) -> Tensor:
        """Attended tokens [R F, N, C], or as of diffusers without tokens for this block.

        Args:
            attn: the attention, with its projections.
            hidden_states: own tokens [R F, N, C]; R is B for the conditional branch alone, or 2 B, unconditional rows first.
            encoder_hidden_states, attention_mask, temb: as of diffusers; not looked at with tokens for this block.
            reference: of B videos; tokens [B, M, C] of this block are seen by each frame of theirs.
        """
        if not reference or self.block not in reference:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        seen = reference[self.block].repeat_interleave(self.frames, dim=0)
        branches, own = len(hidden_states) // len(seen), hidden_states.shape[1]
        both = torch.cat([hidden_states, seen.repeat(branches, 1, 1)], dim=1)
        query, key, value = (_heads(made, attn.heads) for made in (attn.to_q(hidden_states), attn.to_k(both), attn.to_v(both)))
        alone = (branches - 1) * len(seen)
        parts = [F.scaled_dot_product_attention(query[alone:], key[alone:], value[alone:])]
        if alone:
            parts.insert(0, F.scaled_dot_product_attention(query[:alone], key[:alone, :, :own], value[:alone, :, :own]))
        out = torch.cat(parts).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, heads, N, C] of [B, N, heads C]."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)
