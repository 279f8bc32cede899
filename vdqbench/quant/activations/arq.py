"""ARQ: every channel of the rotated input divided by its largest magnitude over all tokens, found online, then quantized.

DVD-Quant (arXiv 2505.18663), after a Hadamard rotation: X^ = Q(X L^-1), Y = X^ L W^^T, with L = diag(s) and s_j = max over the
tokens |X_j|. s stands on the axis that the product sums over. With a scale for each channel (`scale_block=1`, the paper's
formula) no integer product can compute Y: this is simulation, and no speed is claimed for it. With blocks of channels that
share a scale, one rescale for each block does. The paper reports neither the size of its blocks nor whether Q has a scale of
its own (it has here: for each token, since after a rotation one extreme token inflates every s_j) nor a zero point.

Where a sample has a single token (the inputs of modulation and time layers), s_j = |x_j| would make every value exact; such
inputs get a scale for each token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.errors import Unsupported
from vdqbench.quant.format import make
from vdqbench.quant.parts import Activation, ActivationPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.format import Format
    from vdqbench.quant.quantizer import Coded
    from vdqbench.quant.view import LayerView

SINGLE_TOKEN = ("time_", "modulation")
"""How roles begin whose inputs are one vector a sample, though some models repeat it for every token."""


@dataclass(frozen=True)
class Arq(ActivationPart):
    """Options of the grid.

    Args:
        scale_block: number of neighbouring channels that share a scale s; the last block may be smaller. 1 is the paper's formula;
            0, or no less than the channels of a layer, is off: one scale for all channels does nothing beside the inner one.
        inner: what has a scale of its own after the division: `token`, or `tensor` (all tokens of a sample).
        symmetric: inner grid without zero point.
    """

    scale_block: int | None = 1
    inner: str = "token"
    symmetric: bool = True

    def __post_init__(self) -> None:
        self.choice("inner", ("token", "tensor"))
        self.require(self.scale_block is None or self.scale_block >= 0, "scale_block", "a whole number of at least 0, or null")

    @property
    def batch_dependent(self) -> bool:
        return True

    def fit(self, views: Sequence[LayerView]) -> Divided:
        view = views[0]
        if len(view.site.shape) > 2:
            raise Unsupported(f"layer {view.site.name} is a convolution, whose input has no tokens: list it in method.sites.keep_fp")
        block = 0 if view.site.role.startswith(SINGLE_TOKEN) else self.scale_block or 0
        return Divided(block, self.inner == "token", self.symmetric, view.site.formats[1])

    def values(self, shape: tuple[int, ...], steps: int) -> int:
        return 0


@dataclass(frozen=True)
class Divided(Activation):
    """The quantizer of an input [..., C] of one video.

    The tokens of a sample are all rows of the input; where a call has both guidance branches and an even leading dimension, those
    of each half. (Text whose padding is removed comes as one row of both branches, which then share s.) An input [B, C] is a batch
    of single tokens, as it is to calibration.
    """

    block: int
    per_token: bool
    symmetric: bool
    family: str

    branches = 2  # so that calls of one branch are told from calls of both

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        from vdqbench.quant.quantizer import Coded

        fmt = make(self.family, bits, self.symmetric)

        def encode(x: Tensor) -> Coded:
            x = (x if multiplier is None else x * multiplier).float()
            halves = 2 if branch.startswith("both") and x.ndim > 1 and len(x) % 2 == 0 else 1
            values, delta = self.quantized(x.reshape(halves, -1, x.shape[-1]), fmt, single=x.ndim < 3)
            return Coded(values.view(x.shape), delta.expand(*values.shape[:-1], 1).reshape(*x.shape[:-1], 1))

        return encode

    def quantized(self, x: Tensor, fmt: Format, single: bool) -> tuple[Tensor, Tensor]:
        """Codes times s, and the inner delta, of samples [B, tokens, C]; `single` says that each row is a sample."""
        import torch

        from vdqbench.quant.quantizer import choose_qparams, rounded

        if self.block and not single and x.shape[1] > 1 and self.block < x.shape[-1]:
            s = channel_scales(x, self.block)
            x = x / s
        else:
            s = None
        dims = (2,) if self.per_token or single else (1, 2)
        params = choose_qparams(x.amin(dims, keepdim=True), x.amax(dims, keepdim=True), fmt)
        low, high = params.centred_bounds(fmt)
        codes = rounded(x, params.delta.reciprocal(), fmt=fmt)
        codes = torch.minimum(torch.maximum(codes, low, out=codes), high, out=codes)
        return codes if s is None else codes.mul_(s), params.delta


def channel_scales(x: Tensor, block: int) -> Tensor:
    """[B, 1, C]: the largest magnitude over the tokens of [B, tokens, C], and over each block of channels; 1 where that is 0."""
    import torch
    import torch.nn.functional as F

    s = x.abs().amax(1, keepdim=True)
    if block > 1:
        channels = s.shape[-1]
        blocks = F.pad(s, (0, -channels % block)).unflatten(-1, (-1, block)).amax(-1)
        s = blocks.repeat_interleave(block, dim=-1)[..., :channels]
    return torch.where(s > 0, s, 1.0)
