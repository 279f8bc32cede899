"""How alike a video's frames stay: the cosine of each frame to the one before it and to the first (VBench 4.1.1 and 4.1.2)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch.nn.functional as F
from torch import Tensor

from vdqbench.errors import Unsupported
from vdqbench.metrics.base import Score, VideoBatch
from vdqbench.metrics.vbench.dimension import Dimension


def consistency(features: Tensor) -> Tensor:
    """Mean over frames i >= 1 of (max(0, cos(f_i, f_{i-1})) + max(0, cos(f_i, f_0))) / 2, of features [N, T, D]: [N] in 0..1.

    Raises:
        Unsupported: videos of one frame.
    """
    if features.shape[1] < 2:
        raise Unsupported("consistency compares frames and these videos have one frame; score longer videos or leave the score out")
    unit = F.normalize(features.double(), dim=-1)
    before = (unit[:, 1:] * unit[:, :-1]).sum(dim=-1).clamp(0, 1)
    first = (unit[:, 1:] * unit[:, :1]).sum(dim=-1).clamp(0, 1)
    return ((before + first) / 2).mean(dim=1)


class Consistency(Dimension):
    """A consistency; as in VBench, its mean over videos counts every frame once, so longer videos weigh more."""

    def __init__(self, name: str, label: str, encoder: str | None, scores: Sequence[str] | None) -> None:
        super().__init__(name, label, encoder, 0.0, 1.0, scores)
        self._frames: list[int] = []

    @abstractmethod
    def features(self, batch: VideoBatch) -> Tensor:
        """Features [N, T, D] of all frames."""

    def values(self, batch: VideoBatch) -> Tensor:
        return consistency(self.features(batch))

    def update(self, batch: VideoBatch) -> None:
        super().update(batch)
        self._frames += [self.features(batch).shape[1] - 1] * len(batch)

    def compute(self) -> dict[str, Score]:
        scores = super().compute()
        return {name: replace(score, mean=_weighted(score.values or [], self._frames)) for name, score in scores.items()}

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._frames += other._frames


def _weighted(values: list[float], weights: list[int]) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
