"""Dynamic grids: the range of the input is computed anew at every call.

Per token is ViDiT-Q's activation quantizer (arXiv 2406.02540), with one deviation: its code takes the smallest and the
largest value over the *batch* and the channels of each token position, so that the videos of a batch share parameters;
here every token of every video and branch has its own, as ViDiT-Q has for one video with split branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.errors import Unsupported
from vdqbench.quant.format import Format, Granularity, PerTensor, PerToken
from vdqbench.quant.parts import Activation, ActivationPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.quantizer import Coded
    from vdqbench.quant.view import LayerView

GRANULARITIES: dict[str, Granularity] = {"token": PerToken(), "tensor": PerTensor()}


@dataclass(frozen=True)
class Dynamic(ActivationPart):
    """Args: per: `token` or `tensor` (one range for all that a layer gets, the whole batch); symmetric: grid without zero point."""

    per: str = "token"
    symmetric: bool = False

    def __post_init__(self) -> None:
        self.choice("per", GRANULARITIES)

    @property
    def batch_dependent(self) -> bool:
        return self.per == "tensor"

    def fit(self, views: Sequence[LayerView]) -> DynamicRange:
        if self.per == "token" and len(views[0].site.shape) > 2:
            raise Unsupported(
                f"layer {views[0].site.name} is a convolution, whose input has no tokens: "
                "use method.activation.per=tensor, or list it in method.sites.keep_fp"
            )
        return DynamicRange(GRANULARITIES[self.per], self.symmetric)

    def values(self) -> int:
        return 0


@dataclass(frozen=True)
class DynamicRange(Activation):
    """Ranges of the input at hand; without state, so all layers can share one."""

    granularity: Granularity
    symmetric: bool

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        import torch

        from vdqbench.quant.quantizer import Coded, choose_qparams, rounded

        fmt = Format(bits, self.symmetric)

        def encode(x: Tensor) -> Coded:
            own = None if multiplier is None else x * multiplier
            x = x if own is None else own
            params = choose_qparams(*self.granularity.bounds(x), fmt)
            codes = rounded(x, params.delta.reciprocal(), out=own)
            # No input lies below the range it made itself, so only rounding at its upper end can leave the grid.
            return Coded(torch.minimum(codes, params.centred_bounds(fmt)[1], out=codes), params.delta)

        return encode
