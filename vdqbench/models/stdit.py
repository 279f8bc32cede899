"""STDiT of Open-Sora v1.0: a DiT with spatial, temporal and cross attention, compatible with its checkpoints.

Re-implementation from the published architecture; names and shapes of the state dict are the original's. Three of its
traits matter to quantization: the temporal attention and the cross-attention query read the raw residual stream (no
norm, no modulation), and the keys and values of the cross attention do not depend on time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class STDiT(nn.Module):
    """Spatio-temporal DiT with adaLN-single.

    Args:
        input_size: latent frames, height and width (T, H, W).
        in_channels: latent channels; the output has as many, twice as many with `pred_sigma`.
        hidden_size: width of the residual stream, divisible by 4 and by `num_heads`.
        depth: number of blocks.
        num_heads: heads of every attention.
        mlp_ratio: width of the feed-forward layer relative to `hidden_size`.
        patch_size: latent frames, rows and columns of one token; one frame at most.
        caption_channels: width of the text embeddings.
        model_max_length: number of text tokens, padding included.
        class_dropout_prob: probability with which a caption is replaced by the null caption in training.
        pred_sigma: whether the variance is predicted beside the noise.
        space_scale: spatial positions are divided by it (0.5 at 256x256, 1 at 512x512).
        time_scale: frame positions are divided by it (1 for 16 frames, 2/3 for 64).
    """

    pos_embed: Tensor
    pos_embed_temporal: Tensor

    def __init__(
        self,
        input_size: tuple[int, int, int] = (16, 64, 64),
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        caption_channels: int = 4096,
        model_max_length: int = 120,
        class_dropout_prob: float = 0.1,
        pred_sigma: bool = True,
        space_scale: float = 1.0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if patch_size[0] != 1:
            raise ValueError(f"patch_size[0] must be 1 (one frame a token), got {patch_size[0]}")
        self.input_size, self.patch_size = tuple(input_size), tuple(patch_size)
        self.in_channels, self.out_channels = in_channels, in_channels * (2 if pred_sigma else 1)
        self.hidden_size = hidden_size
        frames, rows, columns = (n // p for n, p in zip(input_size, patch_size, strict=True))
        self.grid = (frames, rows, columns)

        self.register_buffer("pos_embed", _spatial_positions(hidden_size, rows, columns, space_scale))
        self.register_buffer("pos_embed_temporal", _temporal_positions(hidden_size, frames, time_scale))
        self.x_embedder = PatchEmbed(in_channels, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block: Any = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, model_max_length, class_dropout_prob)
        self.blocks: Any = nn.ModuleList(STDiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, math.prod(patch_size) * self.out_channels)
        self.initialize_weights()

    @property
    def dtype(self) -> torch.dtype:
        return self.x_embedder.proj.weight.dtype

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predict the noise (and the variance, with `pred_sigma`).

        Args:
            x: noisy latents [B, C, T, H, W].
            timestep: [B], in units of the 1000-step training process; kept in its own dtype until embedded.
            y: text embeddings [B, 1, L, caption_channels].
            mask: [B, L], non-zero where a token counts; None counts all. Masked tokens take no part at all: they are
                removed before the first block, as in the original.

        Returns:
            float32 [B, out_channels, T, H, W].
        """
        batch = x.shape[0]
        frames, rows, columns = self.grid
        x = self.x_embedder(x.to(self.dtype)) + self.pos_embed.to(self.dtype).repeat(1, frames, 1)
        t = self.t_embedder(timestep)
        modulation = self.t_block(t).unflatten(1, (6, self.hidden_size))
        text = CompactText.of(self.y_embedder(y.to(self.dtype)).squeeze(1), mask)
        positions = self.pos_embed_temporal.to(self.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x, text, modulation, frames, positions if index == 0 else None)
        x = self.final_layer(x, t)
        patch_rows, patch_columns = self.patch_size[1:]
        x = x.reshape(batch, frames, rows, columns, patch_rows, patch_columns, self.out_channels)
        x = x.permute(0, 6, 1, 2, 4, 3, 5)
        return x.reshape(batch, self.out_channels, frames, rows * patch_rows, columns * patch_columns).float()

    def split_qkv(self) -> STDiT:
        """Replace the fused `qkv` of both self attentions by three linears `q`, `k`, `v`: the layers that PTQ quantizes."""
        for block in self.blocks:
            block.attn.split_qkv()
            block.attn_temp.split_qkv()
        return self

    def initialize_weights(self) -> None:
        """DiT's initialisation: every block starts as a function of its spatial attention and feed-forward layer alone."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.hidden_size, -1))
        layer: nn.Linear
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.t_block[1]):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.y_embedder.y_proj.fc1, self.y_embedder.y_proj.fc2):
            nn.init.normal_(layer.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.attn_temp.proj.weight)
            nn.init.zeros_(block.cross_attn.proj.weight)
        nn.init.zeros_(self.final_layer.linear.weight)


class STDiTBlock(nn.Module):
    """Spatial attention, temporal attention, cross attention, feed-forward: in this order."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(hidden_size, num_heads)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), hidden_size)
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden_size) / hidden_size**0.5)
        self.attn_temp = Attention(hidden_size, num_heads)

    def forward(self, x: Tensor, text: CompactText, modulation: Tensor, frames: int, positions: Tensor | None) -> Tensor:
        """x: [B, T*S, C]; modulation: [B, 6, C]; positions: [1, T, C] for the first block, else None."""
        batch, tokens, width = x.shape
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + modulation).chunk(6, dim=1)

        spatial = modulate(self.norm1(x), shift_msa, scale_msa).reshape(batch * frames, -1, width)
        x = x + gate_msa * self.attn(spatial).reshape(batch, tokens, width)

        temporal = x.reshape(batch, frames, -1, width).transpose(1, 2).reshape(-1, frames, width)
        if positions is not None:
            temporal = temporal + positions
        temporal = self.attn_temp(temporal).reshape(batch, -1, frames, width).transpose(1, 2).reshape(batch, tokens, width)
        x = x + gate_msa * temporal

        x = x + self.cross_attn(x, text)
        return x + gate_mlp * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class CompactText:
    """Text tokens without padding, [1, sum of lengths, C], and how to lay them out per sample again."""

    def __init__(self, tokens: Tensor, keep: Tensor | None, bias: Tensor | None, batch: int) -> None:
        self.tokens, self.keep, self.bias, self.batch = tokens, keep, bias, batch

    @classmethod
    def of(cls, y: Tensor, mask: Tensor | None) -> CompactText:
        """y: [B, L, C]; mask: [B, L] or None."""
        if mask is None:
            return cls(y.reshape(1, -1, y.shape[-1]), None, None, len(y))
        keep = mask.bool().expand(len(y), -1)
        lengths = keep.sum(dim=1, keepdim=True)
        if not torch.equal(keep, torch.arange(keep.shape[1], device=keep.device) < lengths):
            raise ValueError("mask must keep the first tokens of each caption (captions are padded on the right)")
        keep = keep[:, : int(lengths.max())]
        bias = torch.zeros(keep.shape, dtype=y.dtype, device=y.device).masked_fill(~keep, -math.inf)[:, None, None]
        return cls(y[:, : keep.shape[1]][keep][None], keep, bias, len(y))

    def per_sample(self, tokens: Tensor) -> Tensor:
        """[1, sum of lengths, C] to [B, longest, C], zero where a caption is shorter."""
        if self.keep is None:
            return tokens.reshape(self.batch, -1, tokens.shape[-1])
        padded = tokens.new_zeros(*self.keep.shape, tokens.shape[-1])
        padded[self.keep] = tokens[0]
        return padded


class Attention(nn.Module):
    """Multi-head self attention over the middle dimension of [N, S, C]; `qkv` is one linear, or three after `split_qkv`."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1) if "qkv" in self._modules else (self.q(x), self.k(x), self.v(x))
        return self.proj(attention(q, k, v, self.num_heads))

    def split_qkv(self) -> None:
        """Rows of `qkv` are q, k and v in this order, each head-major."""
        fused = self.qkv
        for name, weight, bias in zip("qkv", fused.weight.chunk(3), fused.bias.chunk(3), strict=True):
            part = nn.Linear(fused.in_features, len(bias), device="meta")
            part.weight, part.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
            setattr(self, name, part)
        del self.qkv


class CrossAttention(nn.Module):
    """Queries from the video, keys and values from the text tokens of the same sample."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: CompactText) -> Tensor:
        k, v = text.per_sample(self.kv_linear(text.tokens)).chunk(2, dim=-1)
        return self.proj(attention(self.q_linear(x), k, v, self.num_heads, text.bias))


class Mlp(nn.Module):
    """fc1, tanh-approximated GELU, fc2."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class PatchEmbed(nn.Module):
    """[B, C, T, H, W] to tokens [B, T*H'*W', hidden], ordered (t, h, w)."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """256 sinusoids (cosines first) of the timestep in float32, then two linears."""

    def __init__(self, hidden_size: int, frequencies: int = 256) -> None:
        super().__init__()
        self.mlp: Any = nn.Sequential(nn.Linear(frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.frequencies = frequencies

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2
        frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angle = t.float()[:, None] * frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.mlp[0].weight.dtype))


class CaptionEmbedder(nn.Module):
    """Projects text embeddings; in training whole captions are dropped in favour of the null caption `y_embedding`."""

    y_embedding: Tensor

    def __init__(self, in_channels: int, hidden_size: int, length: int, dropout: float) -> None:
        super().__init__()
        self.y_proj = Mlp(in_channels, hidden_size, hidden_size)
        self.register_buffer("y_embedding", torch.randn(length, in_channels) / in_channels**0.5)
        self.dropout = dropout

    def forward(self, y: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            drop = torch.rand(len(y), device=y.device) < self.dropout
            y = torch.where(drop[:, None, None, None], self.y_embedding.to(y.dtype), y)
        return self.y_proj(y)


class FinalLayer(nn.Module):
    """Modulated norm and the linear that gives one patch a token, channel fastest."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, out_features)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / hidden_size**0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, with shift and scale [B, 1, C]."""
    return torch.addcmul(shift, x, 1 + scale)


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of [N, S, C] queries over [N, L, C] keys; bias is added to the logits [N, heads, S, L].

    Short sequences (frames of a video, patches of a mini) go through two plain matrix products: many times faster
    there than the fused kernel, which is meant for long ones.
    """
    q, k, v = (u.unflatten(-1, (num_heads, -1)).transpose(1, 2) for u in (q, k, v))
    if k.shape[2] > 64:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    else:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        out = logits.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
    return out.transpose(1, 2).flatten(2)


def _sinusoids(width: int, positions: np.ndarray) -> np.ndarray:
    """[N, width]: sines of all frequencies, then cosines, in float64."""
    frequency = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    angle = positions.reshape(-1, 1) * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _spatial_positions(width: int, rows: int, columns: int, scale: float) -> Tensor:
    """[1, rows*columns, width]; the first half encodes the column, the second half the row."""
    row, column = np.meshgrid(np.arange(rows) / scale, np.arange(columns) / scale, indexing="ij")
    table = np.concatenate([_sinusoids(width // 2, column), _sinusoids(width // 2, row)], axis=1)
    return torch.from_numpy(table).float()[None]


def _temporal_positions(width: int, frames: int, scale: float) -> Tensor:
    """[1, frames, width]."""
    return torch.from_numpy(_sinusoids(width, np.arange(frames) / scale)).float()[None]
