"""Rotation: input and weight are multiplied with an orthonormal Hadamard matrix, which spreads outliers over all channels.

x' = x R, W' = W R, so that x' W'^T = x W^T: QuaRot (arXiv 2404.00456), the first half of ARQ in DVD-Quant, and, after a scaling, ViDiT-Q's
static-dynamic channel balance (arXiv 2406.02540v3). The modulation of a DiT stands between its residual stream and its linears,
so nothing can be fused: every input is rotated as it comes, in O(n log n). Convolutions are rotated along their channels, group by group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.errors import Unsupported
from vdqbench.quant.parts import Transform, TransformPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.view import LayerView

KINDS = ("hadamard", "block")


@dataclass(frozen=True)
class Rotate(TransformPart):
    """Options of rotation. It finds nothing on data.

    Args:
        kind: `hadamard`: one matrix over all channels, where their number n = K 2^m has one. `block`: a power of two for each
            block of neighbouring channels, which works for any number of them.
        block_size: of `block`; 0 for the largest power of two that divides the number of channels.
        signs: channels get random signs first (a random Hadamard matrix).
        seed: of the signs; layers of one width share them.
    """

    kind: str = "hadamard"
    block_size: int = 0
    signs: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.choice("kind", KINDS)
        size = self.block_size
        self.require(size >= 0 and size & (size - 1) == 0, "block_size", "a power of two, or 0 for the largest that fits")
        self.require(size == 0 or self.kind == "block", "block_size", f"0 unless {self.key('kind')}=block")

    def semantic(self) -> dict[str, Any]:
        options = super().semantic()
        if not self.signs:
            del options["seed"]
        return options

    def fit(self, view: LayerView) -> Rotation:
        import torch

        width, name = view.weight.shape[1], view.site.name
        if view.sections:
            raise Unsupported(f"layer {name} has parts of its input quantized apart, which a rotation mixes: leave out one of the two")
        device, sign = view.device, None
        if self.signs:
            drawn = torch.randint(2, (width,), generator=torch.Generator().manual_seed(self.seed))
            sign = (1.0 - 2.0 * drawn).to(device)
        *others, last = [matrix.float() for matrix in self._matrices(width, name)]
        matrices = (*others, last / math.prod(len(matrix) for matrix in (*others, last)) ** 0.5)
        return Rotation(tuple(matrix.to(device) for matrix in matrices), sign, -1 if len(view.site.shape) == 2 else 1)

    def values(self, shape: tuple[int, ...]) -> int:
        return 0

    def _matrices(self, width: int, layer: str) -> list[Tensor]:
        from vdqbench.quant.hadamard import factors, power_of_two

        size = width if self.kind == "hadamard" else self.block_size or power_of_two(width)
        if width % size:
            raise Unsupported(f"{self.key('block_size')}={size} does not divide the {width} input channels of layer {layer}; 0 always does")
        made = factors(size)
        if made is None:
            raise Unsupported(
                f"no Hadamard matrix is known for the {width} input channels of layer {layer}: use {self.key('kind')}=block, "
                "or list it in method.sites.keep_fp"
            )
        return made


@dataclass(frozen=True)
class Rotation(Transform):
    """T x = M diag(sign) x, computed in float32 at least.

    Attributes:
        matrices: M is their Kronecker product, for each block of so many channels; orthonormal.
        sign: [Cin], or None; for each group of a convolution with several.
        dim: of the channels of an input.
    """

    matrices: tuple[Tensor, ...]
    sign: Tensor | None
    dim: int

    def input(self, x: Tensor) -> Tensor:
        return self._turned(x, self.dim)

    def weight(self, weight: Tensor) -> Tensor:
        return self._turned(weight, 1)

    def _turned(self, x: Tensor, dim: int) -> Tensor:
        import torch

        from vdqbench.quant.hadamard import product

        wide = x if x.dtype == torch.float64 else x.float()
        if self.sign is not None:
            sign = self.sign.repeat(x.shape[dim] // len(self.sign))
            wide = wide * sign.view(-1, *(1,) * (x.ndim - 1 - dim % x.ndim))
        return product(wide, self.matrices, dim).to(x.dtype)
