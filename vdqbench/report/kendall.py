"""Kendall's tau-b between two orderings, within strata, with its exact p-value.

Pairs are formed within a stratum only (methods at the same bits), and concordance is summed over strata. Under the null hypothesis the
items of each stratum are permuted independently, so the distribution of S, concordant minus discordant pairs, is the convolution of
those of the strata. With ties in one ordering at most, the pairs out of order are inversions of a multiset permutation, whose
generating function is a Gaussian multinomial coefficient; with ties in both, tables of counts are summed over. (SciPy's exact method
allows no ties and no strata.) M. G. Kendall, Biometrika 30 (1938) and 33 (1945).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

Stratum = Sequence[tuple[float, float]]
"""Pairs of values (x, y), one for each item."""
STATES = 20_000
"""The most intermediate tables of counts of a stratum with ties in both orderings; beyond it, the normal distribution."""


@dataclass(frozen=True)
class Tau:
    """tau in [-1, 1] and the two-sided p-value; None where no pair can be ordered. `exact` is False for a normal approximation."""

    pairs: int
    tau: float | None
    p: float | None
    exact: bool = True


def kendall(strata: Sequence[Stratum]) -> Tau:
    """Tau-b of all pairs within the strata: S / sqrt((pairs - ties in x)(pairs - ties in y))."""
    pairs = sum(math.comb(len(stratum), 2) for stratum in strata)
    tied_x = sum(math.comb(t, 2) for stratum in strata for t in Counter(x for x, _ in stratum).values())
    tied_y = sum(math.comb(t, 2) for stratum in strata for t in Counter(y for _, y in stratum).values())
    if pairs in (tied_x, tied_y):
        return Tau(pairs, None, None)
    s = sum(agreement(stratum) for stratum in strata)
    tau = s / math.sqrt((pairs - tied_x) * (pairs - tied_y))
    ties = [tuple(_ties([values[side] for values in stratum]) for side in (0, 1)) for stratum in strata]
    if any(max(map(max, both)) > 1 and min(map(max, both)) > 1 and min(map(_states, both)) > STATES for both in ties if all(both)):
        variance = sum(_variance(*both) for both in ties if all(both))
        return Tau(pairs, tau, math.erfc(abs(s) / math.sqrt(2 * variance)), exact=False)
    counts = {0: 1}
    for x, y in ties:
        counts = _convolved(counts, null_distribution(x, y))
    extreme = sum(count for value, count in counts.items() if abs(value) >= abs(s))
    return Tau(pairs, tau, extreme / sum(counts.values()))


def _ties(values: Sequence[float]) -> tuple[int, ...]:
    """Sizes of groups of equal values, from the lowest value."""
    return tuple(count for _, count in sorted(Counter(values).items()))


def agreement(stratum: Stratum) -> int:
    """S: concordant minus discordant pairs."""
    return sum(_sign(a[0] - b[0]) * _sign(a[1] - b[1]) for a, b in itertools.combinations(stratum, 2))


@cache
def null_distribution(x: tuple[int, ...], y: tuple[int, ...]) -> dict[int, int]:
    """How often each S occurs, up to a common factor, when items are matched at random; x and y are sizes of ties from the lowest value."""
    if max(x, default=1) > 1 and max(y, default=1) > 1:
        return _both_tied(x, y) if _states(x) <= _states(y) else _both_tied(y, x)
    ties = x if max(x, default=1) > 1 else y
    inversions = _multinomial(ties)
    most = len(inversions) - 1
    return {most - 2 * k: count for k, count in enumerate(inversions)}


def _multinomial(ties: tuple[int, ...]) -> list[int]:
    """Permutations of a multiset by number of inversions: [n]! / ([t1]! [t2]! ...) with [n]! = prod of 1 + q + ... + q^(i-1)."""
    counts = [1]
    for i in range(1, sum(ties) + 1):
        counts = [sum(counts[max(0, k - i + 1) : k + 1]) for k in range(len(counts) + i - 1)]
    for i in (i for t in ties for i in range(2, t + 1)):
        quotient: list[int] = []
        for k in range(len(counts) - i + 1):
            quotient.append(counts[k] - sum(quotient[max(0, k - i + 1) : k]))
        counts = quotient
    return counts


def _both_tied(x: tuple[int, ...], y: tuple[int, ...]) -> dict[int, int]:
    """Sums over all tables of counts with margins x and y, filled by the groups of y from the lowest."""
    states: dict[tuple[int, ...], dict[int, int]] = {x: {0: 1}}
    for size in y:
        following: dict[tuple[int, ...], dict[int, int]] = {}
        for left, counts in states.items():
            for taken in itertools.product(*(range(min(n, size) + 1) for n in left)):
                if sum(taken) != size:
                    continue
                rest = tuple(n - k for n, k in zip(left, taken, strict=True))
                ways = math.prod(math.comb(n, k) for n, k in zip(left, taken, strict=True))
                gain = sum(k * (sum(rest[i + 1 :]) - sum(rest[:i])) for i, k in enumerate(taken))
                into = following.setdefault(rest, {})
                for s, count in counts.items():
                    into[s + gain] = into.get(s + gain, 0) + count * ways
        states = following
    (counts,) = states.values()
    return counts


def _states(ties: tuple[int, ...]) -> int:
    return math.prod(t + 1 for t in ties)


def _variance(x: tuple[int, ...], y: tuple[int, ...]) -> float:
    """Of S under the null hypothesis, with ties (Kendall 1945)."""
    n = sum(x)
    if n < 2:
        return 0.0

    def v(ts: Sequence[int]) -> int:
        return sum(t * (t - 1) * (2 * t + 5) for t in ts)

    def pairs(ts: Sequence[int]) -> int:
        return sum(t * (t - 1) for t in ts)

    def triples(ts: Sequence[int]) -> int:
        return sum(t * (t - 1) * (t - 2) for t in ts)

    value = (v([n]) - v(x) - v(y)) / 18 + pairs(x) * pairs(y) / (2 * n * (n - 1))
    return value + (triples(x) * triples(y) / (9 * n * (n - 1) * (n - 2)) if n > 2 else 0)


def _convolved(a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
    out: dict[int, int] = {}
    for (s, m), (t, n) in itertools.product(a.items(), b.items()):
        out[s + t] = out.get(s + t, 0) + m * n
    return out


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
