"""Rounding that looks at what the layer computes: GPTQ's error feedback and AdaRound's soft rounding. Pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vdqbench.quant.format import Format
from vdqbench.quant.quantizer import QParams, centred_codes

GAMMA, ZETA = -0.1, 1.1
"""Ends of the stretched sigmoid of AdaRound (arXiv 2004.10568, Eq. 23)."""


def gptq(
    weight: Tensor, hessian: Tensor, params: QParams, fmt: Format, block: int = 128, damping: float = 0.01, act_order: bool = False
) -> Tensor:
    """Codes less the zero point, column by column, each column's error made up for by the columns not yet rounded.

    GPTQ, arXiv 2210.17323, Algorithm 1, with the inverse Hessian's Cholesky factor and lazily batched updates. A column whose
    input is always 0 is rounded to nearest (the authors' code sets it to 0).

    Args:
        weight: [Cout, D] float32.
        hessian: [D, D], X^T X of the inputs X [n, D], in any scale.
        params: delta and zero point of every weight, [Cout, D] each, or what broadcasts to it.
        damping: what is added to the Hessian's diagonal, in parts of its mean.
        act_order: columns in the order of falling diagonal.
    """
    columns = weight.shape[1]
    hessian = hessian.double().clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(columns, device=weight.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    delta, zero = (value.expand_as(weight)[:, order] for value in params)
    rest, codes = weight[:, order].clone(), torch.empty_like(weight)
    for first in range(0, columns, block):
        last = min(first + block, columns)
        errors = torch.empty_like(rest[:, first:last])
        for j in range(first, last):
            here = slice(j, j + 1)
            codes[:, here] = centred_codes(rest[:, here], QParams(delta[:, here], zero[:, here]), fmt)
            error = (rest[:, here] - codes[:, here] * delta[:, here]) / factor[j, j]
            rest[:, j:last] -= error * factor[j, j:last]
            errors[:, j - first] = error[:, 0]
        rest[:, last:] -= errors @ factor[first:last, last:]
    return codes[:, order.argsort()]


def soft_start(fraction: Tensor) -> Tensor:
    """The alpha whose soft rounding is a fraction in [0, 1): the weight starts unquantized."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def soft(alpha: Tensor) -> Tensor:
    """h(alpha) in [0, 1]: how far a weight is rounded up."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def undecided(h: Tensor, exponent: float) -> Tensor:
    """sum 1 - |2h - 1|^exponent: 0 where all are rounded up or down."""
    return (1 - (2 * h - 1).abs().pow(exponent)).sum()


def exponent_at(share: float, warmup: float = 0.2, start: float = 20.0, end: float = 2.0) -> float:
    """The exponent of `undecided` when a share of the iterations is done: infinite (no pull) in the warm-up, then falling linearly."""
    if share < warmup:
        return math.inf
    return end + (start - end) * (1 - (share - warmup) / (1 - warmup))
