"""Means and paired differences with standard errors, over prompts.

The prompt is the unit of sampling: videos of one prompt with several seeds are not independent, so they are averaged
first, and the standard error is that of the mean over prompts, sd / sqrt(n) with the sample deviation (n - 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vdqbench.record import Sample


@dataclass(frozen=True)
class Estimate:
    """A mean over n prompts and its standard error, which a single prompt does not have."""

    mean: float
    se: float | None
    n: int

    @property
    def significant(self) -> bool:
        """Whether the mean lies more than two standard errors away from zero."""
        return self.se is not None and abs(self.mean) > 2 * self.se


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean and standard error of independent values; None if there are none or one of them is not finite."""
    values = list(values)
    if not values or not all(math.isfinite(value) for value in values):
        return None
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, n)
    if all(value == values[0] for value in values):
        return Estimate(values[0], 0.0, n)
    return Estimate(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n), n)


def over_prompts(values: Mapping[Sample, float]) -> Estimate | None:
    """Estimate of a score from its values by (prompt id, seed)."""
    seeds: dict[str, list[float]] = {}
    for (prompt, _), value in values.items():
        seeds.setdefault(prompt, []).append(value)
    return estimate(math.fsum(each) / len(each) for each in seeds.values())


def difference(values: Mapping[Sample, float], reference: Mapping[Sample, float]) -> Estimate | None:
    """Estimate of values minus reference over the samples that both have; None if they share none."""
    return over_prompts({sample: value - reference[sample] for sample, value in values.items() if sample in reference})


def averaged(cells: Sequence[Mapping[Sample, float]]) -> dict[Sample, float]:
    """The mean over cells of each sample that all of them have."""
    if not cells:
        return {}
    common = set(cells[0]).intersection(*cells[1:])
    return {sample: math.fsum(cell[sample] for cell in cells) / len(cells) for sample in cells[0] if sample in common}
