"""From DOVER's raw scores to percent: the statistics they are standardised with, by branch, and their fusion.

The statistics are kept by the name of the branch because the original's scripts pair them with positions, which differ between
scripts (github.com/VQAssessment/DOVER, issue 32). Those of DOVER are the mean and deviation of its predictions on LIVE-VQC, as its
published prediction files confirm; those of EvalCrafter (arXiv 2310.11440) come from the videos of 700 prompts, and the technical
deviation is so small that the sigmoid is nearly a switch: read the raw score beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vdqbench.metrics.dover.network import Branch

SHARE: dict[Branch, float] = {"technical": 0.6104, "aesthetic": 0.3896}
"""Weights of the standardised scores in the overall one (DOVER, section 4.4)."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of raw scores over a reference set."""

    mean: float
    std: float


DOVER: dict[Branch, Moments] = {"technical": Moments(-0.08285, 0.03774), "aesthetic": Moments(0.1107, 0.07355)}
EVALCRAFTER: dict[Branch, Moments] = {"technical": Moments(-0.0758, 0.0129), "aesthetic": Moments(0.1253, 0.0318)}


def standardised(raw: Tensor, moments: Moments) -> Tensor:
    """(raw - mean) / std, in float64."""
    return (raw.double() - moments.mean) / moments.std


def percent(raw: Tensor, moments: Moments) -> Tensor:
    """100 sigmoid((raw - mean) / std) in 0..100."""
    return 100 * torch.sigmoid(standardised(raw, moments))


def overall(raw: Mapping[Branch, Tensor], moments: Mapping[Branch, Moments]) -> Tensor:
    """100 sigmoid(0.6104 t + 0.3896 a) of the standardised scores of both branches, in 0..100."""
    fused = torch.stack([share * standardised(raw[branch], moments[branch]) for branch, share in SHARE.items()]).sum(dim=0)
    return 100 * torch.sigmoid(fused)
