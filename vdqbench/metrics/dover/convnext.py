"""The aesthetic branch of DOVER: ConvNeXt-T (arXiv 2201.03545) inflated to space and time.

The depthwise filters of a stage's blocks see 1, 3, 1, 1, 3, 1, ... frames. Names and shapes of the parameters are those of the
released checkpoint.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS, WIDTHS = (3, 3, 9, 3), (96, 192, 384, 768)
FRAMES = (1, 3, 1)
EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, T, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Depthwise convolution, then an MLP on each position, scaled by channel and added."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(width, width, (frames, 7, 7), padding=(frames // 2, 3, 3), groups=width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).movedim(1, -1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.movedim(-1, 1)


class ConvNeXt3D(nn.Module):
    """Features [B, 768, T/2, H/32, W/32] of normalised frames [B, 3, T, H, W]; what does not divide is left out."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv3d(3, WIDTHS[0], (2, 4, 4), (2, 4, 4)), ChannelNorm(WIDTHS[0], eps=EPS))
        halvings = [
            nn.Sequential(ChannelNorm(narrow, eps=EPS), nn.Conv3d(narrow, wide, (1, 2, 2), (1, 2, 2))) for narrow, wide in pairwise(WIDTHS)
        ]
        self.downsample_layers = nn.ModuleList([stem, *halvings])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, FRAMES[i % len(FRAMES)]) for i in range(depth)))
            for depth, width in zip(DEPTHS, WIDTHS, strict=True)
        )
        self.norm = nn.LayerNorm(WIDTHS[-1], eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)
