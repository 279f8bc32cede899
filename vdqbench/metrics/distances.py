"""Distances between two sets of feature vectors: Frechet distance, kernel distance, moments that merge, bootstrap intervals.

Everything is float64 and leaves its inputs as they are.

The Frechet distance of two Gaussians (Dowson and Landau, 1982; FID, arXiv 1706.08500, eq. 6) is

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2).

With S1 = A^T A and S2 = B^T B the last trace is the nuclear norm of A B^T, whichever roots A and B are. The centred rows of a set
are such a root, so with fewer videos than features the distance comes from a small matrix and is as stable as with many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean [D] and scatter [D, D] (sum of outer products of deviations from the mean) of feature vectors, in float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Of features [N, D], N >= 1.

        Raises:
            ValueError: another shape, no row, or values that are not finite.
        """
        x = checked(features)
        mean = x.mean(dim=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merged(self, other: Self) -> Self:
        """Of both sets together (Chan, Golub and LeVeque, 1979)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.n * other.n / n)
        return type(self)(n, self.mean + delta * (other.n / n), scatter)

    def covariance(self, ddof: int = 1) -> Tensor:
        """Scatter / (n - ddof), [D, D]; zeros for n <= ddof, where there is none."""
        return self.scatter / (self.n - ddof) if self.n > ddof else torch.zeros_like(self.scatter)


def checked(features: Tensor) -> Tensor:
    """Features [N, D] in float64.

    Raises:
        ValueError: another shape, no row, or values that are not finite.
    """
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must be [N, D] with at least one row, got {list(features.shape)}")
    if not features.isfinite().all():
        row = (~features.isfinite()).any(dim=1).nonzero()[0].item()
        raise ValueError(f"features of video {row} are not finite; every feature must be")
    return features.detach().to("cpu", torch.float64)


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix [D, D]; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared Frechet distance of two Gaussians, means [D] and covariances [D, D], from eigenvalues of S1^(1/2) S2 S1^(1/2)."""
    mean1, cov1, mean2, cov2 = (part.double() for part in (mean1, cov1, mean2, cov2))
    root = symmetric_root(cov1)
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    return max(0.0, ((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross).item())


def frechet(x: Tensor | Moments, y: Tensor | Moments, ddof: int = 1) -> float:
    """Squared Frechet distance of two sets, each features [N, D] or their moments; covariances are divided by N - ddof.

    If either set has no covariance (N <= ddof, or a single row), the distance is that of the means alone.

    Raises:
        ValueError: features of another shape or number, or not finite.
    """
    sides = [side if isinstance(side, Moments) else checked(side) for side in (x, y)]
    means = [side.mean if isinstance(side, Moments) else side.mean(dim=0) for side in sides]
    if means[0].shape != means[1].shape:
        raise ValueError(f"features of {len(means[0])} and {len(means[1])} dimensions have no distance; use one detector for both sets")
    apart = (means[0] - means[1]).square().sum().item()
    counts = [side.n if isinstance(side, Moments) else len(side) for side in sides]
    if min(counts) <= max(1, ddof):
        return apart
    roots = [_root(side, ddof) for side in sides]
    spread = sum(root.square().sum().item() for root in roots)
    return max(0.0, apart + spread - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum().item())


def _root(side: Tensor | Moments, ddof: int) -> Tensor:
    """A [K, D] with A^T A the covariance: the centred rows where they are the smaller, else the symmetric root."""
    if isinstance(side, Tensor) and side.shape[0] <= side.shape[1]:
        return (side - side.mean(dim=0)) / (len(side) - ddof) ** 0.5
    moments = side if isinstance(side, Moments) else Moments.of(side)
    return symmetric_root(moments.covariance(ddof))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / D + 1)^3 of all pairs of rows of [N, D] and [M, D], the kernel of KID (arXiv 1801.01401): [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(x: Tensor, y: Tensor, paired: bool = False) -> float:
    """Unbiased squared maximum mean discrepancy of features [N, D] and [M, D] under KID's cubic kernel; it can be negative.

    Args:
        x: one set.
        y: the other.
        paired: whether row i of both belongs together (the same prompt and noise). Then k(x_i, y_i) are left out of the mixed
            term as k(x_i, x_i) are of the others (Gretton et al., 2012, eq. 4), without which the estimate of two dependent
            sets is too small; equal sets have distance 0.

    Raises:
        ValueError: fewer than two rows, other shapes, or values that are not finite.
    """
    x, y = checked(x), checked(y)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a kernel distance needs two videos on each side and got {len(x)} and {len(y)}")
    if x.shape[1] != y.shape[1] or (paired and len(x) != len(y)):
        raise ValueError(f"features {list(x.shape)} and {list(y.shape)} do not fit each other")
    mixed = kernel(x, y)
    return _off_diagonal(kernel(x, x)) + _off_diagonal(kernel(y, y)) - 2 * (_off_diagonal(mixed) if paired else mixed.mean().item())


def _off_diagonal(k: Tensor) -> float:
    return ((k.sum() - k.trace()) / (len(k) * (len(k) - 1))).item()


def resampled(n: int, resamples: int, seed: int) -> Tensor:
    """How often each of n videos is drawn in each resample, float64 [resamples, n] with rows that sum to n."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))


def interval(estimate: float, values: Tensor, low: float | None = None) -> tuple[float, float]:
    """The middle 95 % of resampled `values`, moved so that their mean is the estimate, and no lower than `low`.

    Drawing with replacement repeats videos, which by itself raises these distances; what a resample tells is how far the estimate
    would scatter with other videos, not where it would lie.
    """
    ends = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)) - values.mean() + estimate
    first, last = ends.tolist()
    return (first, last) if low is None else (max(low, first), max(low, last))


def frechet_resamples(x: Tensor, y: Tensor | Moments, counts: Tensor, paired: bool, ddof: int = 1) -> Tensor:
    """Frechet distances [R] of resampled sets: row i of x [N, D] counts[r, i] times, and, if `paired`, row i of y as often.

    Without `paired` y stays as it is. With N <= D all of it happens in N x N matrices of inner products.
    """
    x = checked(x)
    if isinstance(y, Moments):
        origin, fixed = y.mean, _root(y, ddof)
    else:
        y = checked(y)
        origin, fixed = y.mean(dim=0), _root(y, ddof)
    x = x - origin
    other = y - origin if paired and isinstance(y, Tensor) else None
    small = x.shape[0] <= x.shape[1]
    return torch.stack([_frechet_of(w, x, other, fixed, ddof, small) for w in counts.double()])


def _frechet_of(w: Tensor, x: Tensor, other: Tensor | None, fixed: Tensor, ddof: int, small: bool) -> Tensor:
    """Distance of one resample; features relative to the mean of the other set."""
    rows = w > 0
    w, n = w[rows], w.sum()
    mean, a = _weighted(w, n, x[rows], ddof)
    mean2, b = _weighted(w, n, other[rows], ddof) if other is not None else (torch.zeros_like(mean), fixed)
    spread = a.square().sum() + b.square().sum()
    m = a @ b.T if small else _square(a) @ _square(b).T
    m = m if m.shape[0] <= m.shape[1] else m.T
    cross = torch.linalg.eigvalsh(m @ m.T).clamp(min=0).sqrt().sum()
    return ((mean - mean2).square().sum() + spread - 2 * cross).clamp(min=0)


def _weighted(w: Tensor, n: Tensor, rows: Tensor, ddof: int) -> tuple[Tensor, Tensor]:
    """Mean [D] of rows that count w times, and a root [K, D] of their covariance."""
    mean = w @ rows / n
    return mean, (rows - mean) * (w / (n - ddof)).sqrt()[:, None]


def _square(root: Tensor) -> Tensor:
    """A root of the same covariance with no more rows than columns."""
    return torch.linalg.qr(root, mode="r").R if root.shape[0] > root.shape[1] else root


def kernel_resamples(x: Tensor, y: Tensor, counts: Tensor, paired: bool) -> Tensor:
    """Kernel distances [R] of resampled sets, as `frechet_resamples`; a video is never compared with its own repetition."""
    x, y, w = checked(x), checked(y), counts.double()
    own, mixed, n = kernel(x, x), kernel(x, y), w.sum(dim=1)
    square = w.square()
    pairs = n.square() - square.sum(dim=1)

    def within(k: Tensor) -> Tensor:
        return (((w @ k) * w).sum(dim=1) - square @ k.diagonal()) / pairs

    if paired:
        return within(own) + within(kernel(y, y)) - 2 * within(mixed)
    return within(own) + _off_diagonal(kernel(y, y)) - 2 * (w @ mixed.mean(dim=1)) / n
