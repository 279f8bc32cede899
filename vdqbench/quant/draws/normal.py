"""Steps drawn from a normal distribution that leans to the clean end: PTQ4DM (arXiv 2211.15736, Alg. 1).

For each sample t ~ N(mean T, (std T)^2) is drawn, rounded down and cut to the trajectory; x_t is what full-precision sampling
gives at t, and the denoiser is looked at with this x_t and this t. (The authors' code pairs x_t with another timestep.)
"""

from __future__ import annotations

from dataclasses import dataclass

from vdqbench.quant.parts import DrawPart


@dataclass(frozen=True)
class Normal(DrawPart):
    """Options of the draw.

    Args:
        moments: how many samples are drawn, with replacement; the calibration prompts are gone through in turn.
        mean: of t / T, counted from the clean end; the paper asks for at most 0.5, the authors' script has 0.4.
        std: of t / T; the script has 0.4, the paper's sqrt(T / 2) is 0.14 of 25 steps.
    """

    moments: int = 64
    mean: float = 0.4
    std: float = 0.4

    def __post_init__(self) -> None:
        self.require(self.moments >= 1, "moments", "at least 1")
        self.require(0 <= self.mean <= 0.5, "mean", "a number in [0, 0.5]")
        self.require(self.std > 0, "std", "a positive number")

    def pairs(self, prompts: int, steps: int) -> list[tuple[int, int]]:
        import numpy as np

        draws = np.random.default_rng(self.seed).normal(self.mean * steps, self.std * steps, self.moments)
        from_clean = np.clip(np.floor(draws), 0, steps - 1).astype(int)
        return [(i % prompts, steps - 1 - int(t)) for i, t in enumerate(from_clean)]
