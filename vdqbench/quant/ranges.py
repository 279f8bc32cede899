"""Searches for the scale of rows of weights, from the weights alone: pure functions [R, n] -> delta and zero point [R, 1].

All are vectorised over the rows and loop over candidates. Error is measured on the row after rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vdqbench.quant.format import Format
from vdqbench.quant.quantizer import SMALLEST_DELTA, QParams, centred_codes, choose_qparams
from vdqbench.quant.rows import Rows

SHRINK = 0.01
"""By how much of the range a candidate of the MSE search is narrower than the one before."""


def minmax(rows: Tensor, fmt: Format) -> QParams:
    """The grid that covers each row, 0 included."""
    return choose_qparams(rows.amin(1, keepdim=True), rows.amax(1, keepdim=True), fmt)


def mse(rows: Tensor, fmt: Format, candidates: int = 80, p: float = 2.4) -> QParams:
    """The grid of least sum |error|^p among those whose two ends are 1 - 0.01 i of min-max, i = 0 .. candidates - 1.

    The range search of GPTQ (arXiv 2210.17323) and Q-Diffusion (arXiv 2302.04304); ties keep the wider range.
    """
    lo, hi = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    grids = (choose_qparams(lo * share, hi * share, fmt) for share in (1 - SHRINK * i for i in range(candidates)))
    return _best(rows, fmt, grids, p)


def pbq(rows: Tensor, fmt: Format, candidates: int = 100) -> QParams:
    """The grid of least squared error among those whose two ends move inwards together, by k (max - min) / (2 candidates).

    Progressive bounded quantization of DVD-Quant (arXiv 2505.18663, Sec. 3.2). Candidate 0 is min-max and ties keep the wider
    range, so no row gets worse than min-max. A range that leaves 0 outside is extended to it: 0 is on every grid.
    """
    lo, hi = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = (hi - lo) / (2 * candidates)
    return _best(rows, fmt, (choose_qparams(lo + k * step, hi - k * step, fmt) for k in range(candidates)), 2.0)


def bgr(rows: Rows, fmt: Format, candidates: int = 100, iterations: int = 50) -> QParams:
    """`pbq`, then coordinate descent on delta, zero point and codes in turn, until the squared error of a row stops falling.

    Bounded-init grid refinement of DVD-Quant (later versions of arXiv 2505.18663). With c the codes less the zero point:
    (a) delta = <c, w> / <c, c>; (b) zero += mean(c - w / delta), rounded and kept among the codes; (c) w is rounded anew. Rounding in
    (b) can raise the error, so the best parameters of each row are kept, and no row gets worse than `pbq`. A symmetric grid has no (b).
    """
    values = rows.values
    best = pbq(values, fmt, candidates)
    codes = centred_codes(values, best, fmt)
    least = _error(values, codes, best, 2.0)
    for _ in range(iterations):
        square = codes.square().sum(1, keepdim=True)
        least_squares = (codes * values).sum(1, keepdim=True) / square.clamp(min=torch.finfo(square.dtype).tiny)
        delta = torch.where(square > 0, least_squares, best.delta).clamp(min=SMALLEST_DELTA)
        zero = best.zero
        if not fmt.symmetric:
            off = (codes - values / delta).sum(1, keepdim=True) / rows.count
            zero = (zero + off).round().clamp(fmt.qmin, fmt.qmax)
        tried = QParams(delta, zero)
        rounded = centred_codes(values, tried, fmt)
        error = _error(values, rounded, tried, 2.0)
        better = error < least
        if not better.any():
            break
        # A row that got worse goes back to its best, from where it gets worse again: it has converged.
        best, least = _chosen(better, tried, best), torch.where(better, error, least)
        codes = torch.where(better, rounded, codes)
    return best


def _best(rows: Tensor, fmt: Format, grids: Iterable[QParams], p: float) -> QParams:
    """The first grid of least error, row by row."""
    grids = iter(grids)
    best = next(grids)
    least = _error(rows, centred_codes(rows, best, fmt), best, p)
    for grid in grids:
        error = _error(rows, centred_codes(rows, grid, fmt), grid, p)
        better = error < least
        best, least = _chosen(better, grid, best), torch.where(better, error, least)
    return best


def _chosen(first: Tensor, a: QParams, b: QParams) -> QParams:
    return QParams(torch.where(first, a.delta, b.delta), torch.where(first, a.zero, b.zero))


def _error(rows: Tensor, codes: Tensor, grid: QParams, p: float) -> Tensor:
    """sum |w - delta c|^p of each row, [R, 1]."""
    off = (rows - codes * grid.delta).abs_()
    return (off.square_() if p == 2.0 else off.pow_(p)).sum(1, keepdim=True, dtype=torch.float64)
