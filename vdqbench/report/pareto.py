"""The Pareto front of cost against score: the points that no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
"""(cost, score); less cost is better, the direction of the score is its own."""


def front(points: Sequence[Point], higher_is_better: bool = True) -> list[int]:
    """Indices of the points that no other one dominates, by rising cost, equal points in their order.

    A point dominates another if it costs no more, scores no worse, and is strictly better in one of the two; so equal points are on the
    front together, and of points with equal cost only the best scores are.

    Raises:
        ValueError: a cost or a score is not finite.
    """
    if any(not math.isfinite(number) for point in points for number in point):
        raise ValueError("a Pareto front needs finite costs and scores; leave out the others")
    sign = -1.0 if higher_is_better else 1.0
    order = sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1], i))
    kept: list[int] = []
    for i in order:
        cost, score = points[i]
        if not kept or sign * score < sign * points[kept[-1]][1] or (cost, score) == points[kept[-1]]:
            kept.append(i)
    return kept
