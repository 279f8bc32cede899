"""One step of some of the calibration prompts: QVD's calibration for SCRI (arXiv 2407.11585, Table 6)."""

from __future__ import annotations

from dataclasses import dataclass

from vdqbench.quant.parts import DrawPart


@dataclass(frozen=True)
class Single(DrawPart):
    """Args: at: where in the trajectory, in [0, 1) (the paper does not say; the middle here); prompts: how many, from the first."""

    at: float = 0.5
    prompts: int = 1

    def __post_init__(self) -> None:
        self.require(0 <= self.at < 1, "at", "a number in [0, 1)")
        self.require(self.prompts >= 1, "prompts", "at least 1")

    def pairs(self, prompts: int, steps: int) -> list[tuple[int, int]]:
        return [(prompt, int(self.at * steps)) for prompt in range(min(self.prompts, prompts))]
