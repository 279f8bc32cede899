"""HiDi-TQ: the logarithmic grid with an offset that QVD puts the features of the timestep on.

QVD (arXiv 2407.11585), Eqs. 9-13. As printed, Eq. 11 takes the sign of T and not that of T - beta, which reflects the values
between 0 and beta; `paper` does so. The paper leaves open: how many neighbours TDScore has, how the squared error is summed,
which offsets are tried, what zeros count as, and whether the sign is one of the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.quant.parts import Activation, ActivationPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.quantizer import Coded
    from vdqbench.quant.temporal import Features, Found, LogGrid, Objective
    from vdqbench.quant.view import LayerView


@dataclass(frozen=True)
class HidiTq(ActivationPart):
    """Options of the grid; it is a number format of its own, whatever `bits.format` says, and means features of the timestep.

    Args:
        sign_mode: `shifted` stores the sign of T - beta, `paper` that of T, `log2` has no offset (the paper's "Log2 Quant").
        sign_is_extra: the sign is stored beside the bits, which makes one more; else it is one of them.
        ranges: number of equal parts of the steps with a scale and an offset of their own; the number of steps makes it one
            for each (an extension of the paper).
        neighbours: steps after each that TDScore compares it with.
        eps: lower bound of magnitudes in TDScore.
        l2_reduction: `sum` of the squared error over the channels, or `mean`; the second leaves the choice to TDScore.
        td_term: `raw` TDScore, which noise can lower, or `abs_gap`, its distance from that of the features themselves.
        candidates: scales tried, in one octave.
    """

    sign_mode: str = "shifted"
    sign_is_extra: bool = False
    ranges: int = 1
    neighbours: int = 4
    eps: float = 1e-8
    l2_reduction: str = "sum"
    td_term: str = "raw"
    candidates: int = 20

    needs = ("calls",)

    def __post_init__(self) -> None:
        self.choice("sign_mode", ("shifted", "paper", "log2"))
        self.choice("l2_reduction", ("sum", "mean"))
        self.choice("td_term", ("raw", "abs_gap"))
        self.require(self.neighbours >= 1, "neighbours", "a whole number of at least 1")
        self.require(self.eps > 0, "eps", "a number above 0")
        self.require(self.candidates >= 1, "candidates", "a whole number of at least 1")

    def fit(self, views: Sequence[LayerView]) -> LogFeatures:
        from vdqbench.quant.temporal import Features

        evidence, features = views[0].required_evidence(), Features.of(views)
        parts = [features.part(index, self.ranges, evidence.calls.steps) for index in range(self.ranges)]
        return LogFeatures(self, parts, evidence.remember)

    def values(self, shape: tuple[int, ...], steps: int) -> int:
        return 2 * self.ranges

    def levels(self, bits: int) -> int:
        """Number of magnitudes."""
        return 2 ** (bits if self.sign_is_extra else bits - 1)

    @property
    def objective(self) -> Objective:
        """What the search makes small."""
        from vdqbench.quant.temporal import Objective

        return Objective(self.neighbours, self.eps, self.l2_reduction == "mean", self.td_term == "abs_gap")


class LogFeatures(Activation):
    """The grid of each range of steps, searched for when it is first used with so many bits."""

    own_format = True

    def __init__(self, part: HidiTq, features: Sequence[Features], remember: Callable[..., dict[str, Any]]) -> None:
        self.part, self.features, self.remember = part, list(features), remember
        self.ranges = len(self.features)
        self.known: dict[tuple[int, int], Found] = {}

    def found(self, bits: int, index: int) -> Found:
        """Parameters of a range."""
        import torch

        from vdqbench.quant.temporal import Found, search

        def make() -> dict[str, Tensor]:
            mode = self.part.sign_mode
            best = search(features, self.part.levels(bits), mode != "log2", mode == "paper", self.part.objective, self.part.candidates)
            return {"found": torch.tensor(best, dtype=torch.float64)}

        if (bits, index) not in self.known:
            features = self.features[index]
            known = self.remember(["hidi_tq", self.part.semantic(), bits, features.digest], make)
            self.known[bits, index] = Found(*known["found"].tolist())
        return self.known[bits, index]

    def grid(self, bits: int, index: int) -> LogGrid:
        """The grid of a range."""
        from vdqbench.quant.temporal import LogGrid

        best = self.found(bits, index)
        return LogGrid(best.scale, best.beta, self.part.levels(bits), self.part.sign_mode == "paper")

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        from vdqbench.quant.quantizer import Coded

        grid = self.grid(bits, index)
        return lambda x: Coded(grid(x if multiplier is None else x * multiplier), 1.0)
