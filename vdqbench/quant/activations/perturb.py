"""Features of the timestep in floating point, with some of them disturbed: which values matter.

QVD (arXiv 2407.11585), Table 4 (and its setting: everything else quantized, these features not).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.quant.parts import Activation, ActivationPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.quantizer import Coded
    from vdqbench.quant.view import LayerView


@dataclass(frozen=True)
class Perturb(ActivationPart):
    """Options of the disturbance; min and max are those of the features at all steps.

    Args:
        kind: `outliers` multiplies values from 0.9 max on by a factor of their channel, drawn once from U[-1.5, 1.5] and the same at
            all steps; `near_zero` sets those in [0.5 min, 0.5 max] to 0 (the paper prints -0.5 min, though min is negative).
        seed: of the factors.
    """

    kind: str = "outliers"
    seed: int = 0

    floating = True
    needs = ("calls",)

    def __post_init__(self) -> None:
        self.choice("kind", ("outliers", "near_zero"))

    def semantic(self) -> dict[str, Any]:
        options = super().semantic()
        if self.kind != "outliers":
            del options["seed"]
        return options

    def fit(self, views: Sequence[LayerView]) -> Disturbed:
        import torch

        from vdqbench.quant.temporal import Features

        rows = Features.of(views).rows
        generator = torch.Generator().manual_seed(self.seed)
        factors = torch.rand(rows.shape[1], generator=generator) * 3 - 1.5
        return Disturbed(self.kind, float(rows.amin()), float(rows.amax()), factors.to(rows.device))

    def values(self, shape: tuple[int, ...], steps: int) -> int:
        return 0


@dataclass(frozen=True)
class Disturbed(Activation):
    """Applies it, to features of the same range."""

    own_format = True

    kind: str
    low: float
    high: float
    factors: Tensor

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        import torch

        from vdqbench.quant.quantizer import Coded

        def encode(x: Tensor) -> Coded:
            x = (x if multiplier is None else x * multiplier).float()
            if self.kind == "outliers":
                return Coded(torch.where(x >= 0.9 * self.high, x * self.factors, x), 1.0)
            return Coded(x.masked_fill((x >= 0.5 * self.low) & (x <= 0.5 * self.high), 0.0), 1.0)

        return encode
