"""The technical branch of DOVER: a Swin-T over space and time with gated relative position biases (GRPB).

The frames are mosaics of fragments. Two tokens of a window that come from different fragments are not neighbours in the video, so
that their position bias is taken from a second table (FAST-VQA, arXiv 2207.02595, section 3.3). Names and shapes of the parameters
are those of the released checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]

PATCH: Triple = (2, 4, 4)
WINDOW: Triple = (8, 7, 7)
WIDTH, DEPTHS, HEADS = 96, (2, 2, 6, 2), (3, 6, 12, 24)
GATED = (True, True, True, False)
OTHER_REGION = -100.0
"""Added to the logits of tokens that only the cyclic shift has brought together."""


def partition(x: Tensor, window: Triple) -> Tensor:
    """Tokens [B, D, H, W, C] by window: [B, windows, tokens of a window, C]."""
    batch, *sides, channels = x.shape
    d, h, w = (side // length for side, length in zip(sides, window, strict=True))
    x = x.view(batch, d, window[0], h, window[1], w, window[2], channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, d * h * w, -1, channels)


def departition(x: Tensor, window: Triple, sides: Triple) -> Tensor:
    """The inverse of `partition`, to tokens [B, *sides, C]."""
    d, h, w = (side // length for side, length in zip(sides, window, strict=True))
    x = x.view(x.shape[0], d, h, w, *window, x.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape[0], *sides, x.shape[-1])


def rolled(x: Tensor, shift: Triple) -> Tensor:
    """Tokens [B, D, H, W, C] shifted cyclically by -shift."""
    return x.roll([-s for s in shift], dims=(1, 2, 3)) if any(shift) else x


@dataclass(frozen=True)
class Layout:
    """How a stage cuts maps of `sides` into windows, and how a shifted block moves them; a side of one window is not shifted."""

    window: Triple
    shift: Triple
    padded: Triple

    @classmethod
    def of(cls, sides: Triple) -> Layout:
        window = tuple(min(side, length) for side, length in zip(sides, WINDOW, strict=True))
        shift = tuple(0 if side <= length else length // 2 for side, length in zip(sides, WINDOW, strict=True))
        padded = tuple(-(-side // length) * length for side, length in zip(sides, window, strict=True))
        return cls(window, shift, padded)  # type: ignore[arg-type]

    def gate(self, shift: Triple, device: torch.device) -> Tensor:
        """How many fragments lie between two tokens of a window, in rows plus columns: [windows, tokens, tokens].

        A map is taken for as many fragments in height and width as a window has tokens, whatever its real number of fragments.
        """
        rows, columns = (
            F.interpolate(torch.arange(float(self.window[axis]), device=device)[None, None], size=self.padded[axis]).flatten()
            for axis in (1, 2)
        )
        cells = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).expand(1, self.padded[0], -1, -1, 2)
        place = partition(rolled(cells, shift), self.window)[0]
        return (place[:, :, None] - place[:, None]).abs().sum(dim=-1)

    def mask(self, device: torch.device) -> Tensor:
        """0 for tokens of a shifted window that are near each other in the map, `OTHER_REGION` else: [windows, tokens, tokens]."""
        regions = []
        for side, length, shift in zip(self.padded, self.window, self.shift, strict=True):
            place = torch.arange(side, device=device)
            regions.append((place >= side - length).int() + (place >= side - shift).int() if shift else torch.zeros_like(place).int())
        region = torch.stack(torch.meshgrid(*regions, indexing="ij"), dim=-1)[None]
        region = partition(region, self.window)[0]
        return (region[:, :, None] != region[:, None]).any(dim=-1) * OTHER_REGION


class Attention(nn.Module):
    """Self-attention within windows, with a learnt bias for each relative position."""

    def __init__(self, width: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        positions = (2 * WINDOW[0] - 1) * (2 * WINDOW[1] - 1) * (2 * WINDOW[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(positions, heads))
        if gated:
            self.fragment_position_bias_table = nn.Parameter(torch.zeros(positions, heads))
        self.register_buffer("relative_position_index", relative_position_index())
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def bias(self, gate: Tensor, mask: Tensor | None) -> Tensor:
        """What is added to the logits: [windows or 1, heads, tokens, tokens].

        The gate is the number of fragments and not only whether it is 0, as in the code that the weights were trained with.
        """
        tokens = gate.shape[-1]
        index = self.relative_position_index[:tokens, :tokens].reshape(-1)  # type: ignore[index]

        def table(of: Tensor) -> Tensor:
            return of[index].view(tokens, tokens, -1).permute(2, 0, 1)[None]

        bias = table(self.relative_position_bias_table)
        if hasattr(self, "fragment_position_bias_table"):
            bias = torch.lerp(table(self.fragment_position_bias_table), bias, gate[:, None])
        return bias if mask is None else bias + mask[:, None]

    def forward(self, x: Tensor, gate: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, windows, tokens, C] -> the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(gate, mask))
        return self.proj(y.transpose(2, 3).flatten(-2))


def relative_position_index() -> Tensor:
    """Row of the bias table for each pair of tokens of a full window: int64 [tokens, tokens]."""
    place = torch.stack(torch.meshgrid(*(torch.arange(length) for length in WINDOW), indexing="ij"), dim=-1).flatten(0, 2)
    d, h, w = (place[:, None] - place[None] + torch.tensor(WINDOW, device=place.device) - 1).unbind(dim=-1)
    return (d * (2 * WINDOW[1] - 1) + h) * (2 * WINDOW[2] - 1) + w


class Mlp(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Windowed attention, shifted or not, and an MLP, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int, gated: bool, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads, gated), Mlp(width)

    def forward(self, x: Tensor, layout: Layout, gate: Tensor, mask: Tensor) -> Tensor:
        sides = x.shape[1:4]
        shift = layout.shift if self.shifted else (0, 0, 0)
        pad = [edge for side, whole in zip(reversed(sides), reversed(layout.padded), strict=True) for edge in (0, whole - side)]
        y = rolled(F.pad(self.norm1(x), [0, 0, *pad]), shift)
        y = self.attn(partition(y, layout.window), gate, mask if any(shift) else None)
        y = departition(y, layout.window, layout.padded)
        y = rolled(y, (-shift[0], -shift[1], -shift[2]))[:, : sides[0], : sides[1], : sides[2]]
        x = x + y
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Halves height and width and doubles the channels; odd sides are padded with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * width, 2 * width, bias=False), nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Stage(nn.Module):
    """Blocks of one resolution, every second one shifted by half a window."""

    def __init__(self, level: int) -> None:
        super().__init__()
        width = WIDTH * 2**level
        self.blocks = nn.ModuleList(Block(width, HEADS[level], GATED[level], i % 2 == 1) for i in range(DEPTHS[level]))
        self.downsample = Merging(width) if level + 1 < len(DEPTHS) else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, D, H, W, C] -> the same, or with half the height and width and twice the channels."""
        layout = Layout.of((x.shape[1], x.shape[2], x.shape[3]))
        mask = layout.mask(x.device)
        plain, shifted = (layout.gate(shift, x.device) for shift in ((0, 0, 0), layout.shift))
        for block in self.blocks:
            x = block(x, layout, shifted if block.shifted else plain, mask)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Patches of 2 frames and 4x4 pixels to tokens; sides that do not divide are padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv3d(3, WIDTH, PATCH, PATCH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        pad = [edge for side, length in zip(reversed(x.shape[2:]), reversed(PATCH), strict=True) for edge in (0, -side % length)]
        return self.norm(self.proj(F.pad(x, pad)).movedim(1, -1))


class SwinGRPB(nn.Module):
    """Features [B, 768, T/2, H/32, W/32] of normalised fragments [B, 3, T, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.layers = nn.ModuleList(Stage(level) for level in range(len(DEPTHS)))
        self.norm = nn.LayerNorm(WIDTH * 2 ** (len(DEPTHS) - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.norm(x).movedim(-1, 1)
