"""Bits under a budget: which parts of a model get more of them, from what each part costs at each width. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vdqbench.errors import ConfigError


@dataclass(frozen=True)
class Item:
    """What gets a width of its own.

    Attributes:
        share: of all elements and steps; the shares of all items add up to 1.
        loss: by width.
        judge: what the loss was measured by; losses of other judges are not comparable.
    """

    name: str
    share: float
    loss: Mapping[int, float]
    judge: str


def greedy(items: Sequence[Item], budget: float, cost: Mapping[int, float]) -> dict[str, int]:
    """Width of each item: the smallest everywhere, then always the step that saves most loss per bit, as long as it is affordable.

    Args:
        budget: bits that the items may have on average, weighted by their shares.
        cost: bits that an element of each width takes, its share of scales included.

    Raises:
        ConfigError: not even the smallest width is affordable.
    """
    widths = sorted(cost, key=lambda width: cost[width])
    whole = sum(item.share for item in items)
    left = (budget - cost[widths[0]]) * whole
    if left < -1e-9:
        raise ConfigError(f"budget={budget:g} is below the {cost[widths[0]]:g} bits of the smallest candidate; raise it or add a candidate")
    chosen = {item.name: widths[0] for item in items}
    while True:
        steps = [
            ((item.loss[chosen[item.name]] - item.loss[wider]) / price, price, item.name, wider)
            for item in items
            for wider in widths[widths.index(chosen[item.name]) + 1 :]
            if (price := item.share * (cost[wider] - cost[chosen[item.name]])) <= left + 1e-9
        ]
        gain, price, name, wider = max(steps, key=lambda step: step[0], default=(0.0, 0.0, "", 0))
        if gain <= 0:
            return chosen
        chosen[name], left = wider, left - price


def decoupled(items: Sequence[Item], budget: float, cost: Mapping[int, float]) -> dict[str, int]:
    """ViDiT-Q's metric-decoupled allocation (arXiv 2406.02540): layers compete only with those that the same score judges.

    The paper ranks the groups within each score and sets the widths by hand. Here each score's layers have the whole budget as
    their average, and `greedy` shares it out among them.
    """
    chosen: dict[str, int] = {}
    for judge in dict.fromkeys(item.judge for item in items):
        chosen |= greedy([item for item in items if item.judge == judge], budget, cost)
    return chosen


ALLOCATIONS = {"greedy": greedy, "decoupled": decoupled}


def average(items: Sequence[Item], chosen: Mapping[str, int], cost: Mapping[int, float]) -> float:
    """Bits that the items have on average."""
    return sum(item.share * cost[chosen[item.name]] for item in items) / sum(item.share for item in items)
