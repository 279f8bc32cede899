"""Dynamic grids: the range of the input is computed anew at every call.

Per token is ViDiT-Q's activation quantizer (arXiv 2406.02540), with one deviation: its code takes the smallest and the
largest value over the *batch* and the channels of each token position, so that the videos of a batch share parameters;
here every token of every video and branch has its own, as ViDiT-Q has for one video with split branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.errors import Unsupported
from vdqbench.quant.format import Granularity, PerTensor, PerToken, make
from vdqbench.quant.parts import Activation, ActivationPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.quantizer import Coded
    from vdqbench.quant.view import LayerView

GRANULARITIES: dict[str, Granularity] = {"token": PerToken(), "tensor": PerTensor()}


@dataclass(frozen=True)
class Dynamic(ActivationPart):
    """Options of dynamic grids.

    Args:
        per: `token`, `group` (of neighbouring channels of a token) or `tensor` (one range for all that a layer gets, the whole
            batch).
        group_size: channels of a group; narrower inputs are one group.
        symmetric: grid without zero point.
    """

    per: str = "token"
    group_size: int = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        self.choice("per", (*GRANULARITIES, "group"))
        self.require(self.group_size >= 1, "group_size", "at least 1")

    def semantic(self) -> dict[str, Any]:
        options = super().semantic()
        if self.per != "group":
            del options["group_size"]
        return options

    @property
    def batch_dependent(self) -> bool:
        return self.per == "tensor"

    def fit(self, views: Sequence[LayerView]) -> DynamicRange | Grouped:
        if self.per != "tensor" and len(views[0].site.shape) > 2:
            raise Unsupported(
                f"layer {views[0].site.name} is a convolution, whose input has no tokens: "
                "use method.activation.per=tensor, or list it in method.sites.keep_fp"
            )
        tokens = DynamicRange(GRANULARITIES["tensor" if self.per == "tensor" else "token"], self.symmetric, views[0].site.formats[1])
        if self.per != "group":
            return tokens
        groups, rest = divmod(views[0].channels, min(self.group_size, views[0].channels))
        if rest:
            raise Unsupported(
                f"layer {views[0].site.name} has {views[0].channels} input channels, which groups of {self.group_size} do not divide: "
                "set method.activation.group_size"
            )
        return Grouped(tokens, groups)

    def values(self, shape: tuple[int, ...], steps: int) -> int:
        return 0


@dataclass(frozen=True)
class DynamicRange(Activation):
    """Ranges of the input at hand; without state, so all layers can share one."""

    granularity: Granularity
    symmetric: bool
    family: str = "int"

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        import torch

        from vdqbench.quant.quantizer import Coded, choose_qparams, rounded

        fmt = make(self.family, bits, self.symmetric)

        def encode(x: Tensor) -> Coded:
            own = None if multiplier is None else x * multiplier
            x = x if own is None else own
            params = choose_qparams(*self.granularity.bounds(x), fmt)
            codes = rounded(x, params.delta.reciprocal(), out=own, fmt=fmt)
            # No input lies below the range it made itself, so only rounding at its upper end can leave the grid.
            return Coded(torch.minimum(codes, params.centred_bounds(fmt)[1], out=codes), params.delta)

        return encode


@dataclass(frozen=True)
class Grouped(Activation):
    """Each group of channels of a token as if it were a token."""

    tokens: DynamicRange
    groups: int

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        from vdqbench.quant.quantizer import Coded

        encode_tokens = self.tokens.encoder(bits, index, branch, None)

        def encode(x: Tensor) -> Coded:
            x = x if multiplier is None else x * multiplier
            coded = encode_tokens(x.unflatten(-1, (self.groups, -1)))
            return Coded(coded.values.mul_(coded.delta).flatten(-2), 1.0)

        return encode
