"""Grids narrower than min-max, so that rounding is finer for most weights and only the largest are clipped.

The range search of GPTQ (arXiv 2210.17323) and of Q-Diffusion (arXiv 2302.04304): both ends shrunk by 1 - 0.01 i, least sum |error|^p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.quant.grids import GridPart

if TYPE_CHECKING:
    from vdqbench.quant.format import Format
    from vdqbench.quant.quantizer import QParams
    from vdqbench.quant.rows import Rows


@dataclass(frozen=True)
class MSE(GridPart):
    """Args: candidates: i runs from 0 (min-max) to one less than this, at most 100; p: of the error; 2 is the squared error."""

    candidates: int = 80
    p: float = 2.4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1 <= self.candidates <= 100, "candidates", "in 1..100")
        self.require(self.p > 0, "p", "a positive number")

    def fit(self, rows: Rows, fmt: Format) -> QParams:
        from vdqbench.quant.ranges import mse

        return mse(rows.values, fmt, self.candidates, self.p)
