"""Steps at a uniform stride of every calibration prompt: Q-Diffusion (arXiv 2302.04304, Sec. 3.2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from vdqbench.quant.parts import DrawPart


@dataclass(frozen=True)
class Stride(DrawPart):
    """Args: moments: how many of the steps are wanted; they are 0, d, 2d, ... with d = steps // moments, as in the authors' code."""

    moments: int = 5

    def __post_init__(self) -> None:
        self.require(self.moments >= 1, "moments", "at least 1")

    def check(self, steps: int) -> None:
        self.require(self.moments <= steps, "moments", f"at most the {steps} steps of the sampler")

    def pairs(self, prompts: int, steps: int) -> list[tuple[int, int]]:
        return [(prompt, step) for prompt in range(prompts) for step in range(0, steps, steps // self.moments)]
