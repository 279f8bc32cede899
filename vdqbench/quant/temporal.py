"""The features of the timestep: a small finite set, one vector a step, and the logarithmic quantizer that QVD finds for them.

QVD (arXiv 2407.11585), Eqs. 5 and 8-13. Features are the rows of E [steps, C]: what the layers that project the timestep's
features read (or what the layer that makes them gives), from the unquantized model at the steps of the sampler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vdqbench.errors import Unsupported
from vdqbench.quant.view import LayerView

SAME = 2.0**-8
"""Relative distance up to which two rows of one step are the same features, computed at another place in a batch."""
SMALLEST = 2.0**-126
"""Lower bound of a magnitude before its logarithm is taken."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Of |T|, candidates for the offset."""


def samples_by_range(views: Sequence[LayerView], ranges: int) -> list[Tensor]:
    """All sampled values of a layer's transformed input, [n], for each of equal parts of the steps.

    Raises:
        Unsupported: the recipe draws no moment of one of them.
    """
    steps = views[0].required_evidence().calls.steps
    found = [view.samples() for view in views]
    values, step = torch.cat([one.values for one in found]), torch.cat([one.step for one in found])
    parts = [values[(step * ranges // steps == index).to(values.device)].flatten() for index in range(ranges)]
    if any(not len(part) for part in parts):
        raise Unsupported(
            f"layer {views[0].site.name}: method.calibration draws no moment in one of {ranges} parts of the steps; draw more of them"
        )
    return parts


@dataclass(frozen=True)
class Features:
    """Distinct rows of features, float32 [R, C].

    Attributes:
        step: of each row, ascending.
        variant: 0 but where rows of one step differ, as in models that mix the text in: the count of the row within its step.
    """

    rows: Tensor
    step: tuple[int, ...]
    variant: tuple[int, ...]

    @classmethod
    def of(cls, views: Sequence[LayerView]) -> Features:
        """From the samples of a layer: the distinct rows of each step, in the order in which they were seen."""
        found = [view.samples() for view in views]
        values, steps = torch.cat([one.values for one in found]), torch.cat([one.step for one in found]).tolist()
        rows: list[Tensor] = []
        at: list[tuple[int, int]] = []
        for step in sorted(set(steps)):
            distinct: list[Tensor] = []
            for row in values[[index for index, other in enumerate(steps) if other == step]]:
                if all((row - known).norm() > SAME * known.norm() for known in distinct):
                    distinct.append(row)
            rows += distinct
            at += [(step, variant) for variant in range(len(distinct))]
        return cls(torch.stack(rows), tuple(step for step, _ in at), tuple(variant for _, variant in at))

    def part(self, index: int, ranges: int, steps: int) -> Features:
        """Those of one of equal parts of the steps.

        Raises:
            Unsupported: there are none.
        """
        chosen = [i for i, step in enumerate(self.step) if step * ranges // steps == index]
        if not chosen:
            raise Unsupported(f"method.calibration draws no moment in part {index} of {ranges} of the steps; draw more of them")
        return Features(self.rows[chosen], tuple(self.step[i] for i in chosen), tuple(self.variant[i] for i in chosen))

    @property
    def digest(self) -> str:
        """A name of their values."""
        return hashlib.sha256(self.rows.cpu().numpy().tobytes() + repr((self.step, self.variant)).encode()).hexdigest()[:16]

    def neighbours(self, count: int) -> tuple[list[int], list[int]]:
        """Pairs of rows: each, and each of up to `count` rows of the same variant at the steps after it, in denoising order."""
        order = {step: position for position, step in enumerate(sorted(set(self.step)))}
        place = {(order[step], variant): row for row, (step, variant) in enumerate(zip(self.step, self.variant, strict=True))}
        pairs = [
            (row, other)
            for (k, variant), row in place.items()
            for i in range(1, count + 1)
            if (other := place.get((k + i, variant))) is not None
        ]
        return [row for row, _ in pairs], [other for _, other in pairs]


def profile(values: Tensor, eps: float) -> Tensor:
    """sign(T) |log2 max(|T|, eps)| (Eq. 9), with the sign of 0 positive, so that features that are all 0 are all alike."""
    return torch.where(values >= 0, 1.0, -1.0) * values.abs().clamp(min=eps).log2().abs()


def td_scores(values: Tensor, features: Features, neighbours: int, eps: float) -> Tensor:
    """Mean cosine between the profiles of each row and of its neighbours (Eq. 10); lower is easier to tell apart.

    Args:
        values: [..., R, C] in the place of `features.rows`.

    Returns:
        [..., R'], for the R' rows that have a step after them.
    """
    first, second = features.neighbours(neighbours)
    rows = sorted(set(first))
    if not rows:
        return values.new_zeros(*values.shape[:-2], 0)
    y = profile(values, eps)
    cosine = F.cosine_similarity(y[..., first, :], y[..., second, :], dim=-1)
    to = torch.tensor([rows.index(row) for row in first], device=values.device)
    count = torch.bincount(to, minlength=len(rows))
    return cosine.new_zeros(*cosine.shape[:-1], len(rows)).index_add_(-1, to, cosine) / count


class LogGrid(NamedTuple):
    """sign and power of two of T - beta (Eq. 11): T^ = sign * scale * 2^-q + beta, with q in 0..levels-1.

    Attributes:
        scale, beta: one number, or tensors that broadcast to the values.
        paper_sign: the sign is that of T, as printed, and not that of T - beta; values between 0 and beta are then reflected.
    """

    scale: Tensor | float
    beta: Tensor | float
    levels: int
    paper_sign: bool = False

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sign (1 or -1; of its own, since q = 0 is the largest magnitude) and q."""
        values = values.float()
        shifted = values - self.beta
        sign = torch.where((values if self.paper_sign else shifted) >= 0, 1.0, -1.0)
        return sign, (shifted.abs_().clamp_(min=SMALLEST) / self.scale).log2_().neg_().round_().clamp_(0, self.levels - 1)

    def decode(self, sign: Tensor, codes: Tensor) -> Tensor:
        return sign * self.scale * torch.exp2(-codes) + self.beta

    def __call__(self, values: Tensor) -> Tensor:
        """Values on the grid, float32, in new memory."""
        return self.decode(*self.encode(values))


class Objective(NamedTuple):
    """K = sum over t of TDScore + sum over t of the squared error (Eq. 12).

    Attributes:
        neighbours: steps after each that TDScore compares it with.
        eps: lower bound of magnitudes in TDScore.
        mean: the squared error is averaged over the channels, not summed.
        gap: |TDScore - TDScore of the features themselves| in the place of TDScore, which can be lowered by noise.
    """

    neighbours: int
    eps: float
    mean: bool
    gap: bool

    def terms(self, values: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """Both terms for quantized features [..., R, C]: [...] each."""
        scores = td_scores(values, features, self.neighbours, self.eps)
        if self.gap:
            scores = (scores - td_scores(features.rows, features, self.neighbours, self.eps)).abs()
        squares = (values - features.rows).square()
        return scores.sum(-1), (squares.mean(-1) if self.mean else squares.sum(-1)).sum(-1)


class Found(NamedTuple):
    """A grid's parameters and the two terms of its objective."""

    scale: float
    beta: float
    td: float
    error: float


def search(features: Features, levels: int, offset: bool, paper_sign: bool, objective: Objective, candidates: int) -> Found:
    """The scale and offset of smallest K.

    Scales 2^(i / candidates) max|T - beta|, i < candidates, are all there are: twice the scale is the same grid with codes
    moved by one. Offsets are 0, the mean and the median of T and plus and minus quantiles of |T|; 0 wins ties.
    """
    rows = features.rows
    betas = offsets(rows) if offset else [0.0]
    octave = torch.exp2(torch.arange(candidates, device=rows.device) / candidates).view(-1, 1, 1)
    best = []
    for beta in betas:
        scales = octave * (rows - beta).abs().amax().clamp(min=SMALLEST)
        td, error = objective.terms(LogGrid(scales, beta, levels, paper_sign)(rows), features)
        index = int((td + error).argmin())
        best.append(Found(float(scales[index]), beta, float(td[index]), float(error[index])))
    return min(best, key=lambda found: found.td + found.error)


def offsets(values: Tensor) -> list[float]:
    """Candidates for beta, 0 first."""
    ordered = values.abs().flatten().sort().values
    quantiles = [float(ordered[round(q * (len(ordered) - 1))]) for q in QUANTILES]
    return [0.0, float(values.mean()), float(values.median()), *quantiles, *(-q for q in quantiles)]
