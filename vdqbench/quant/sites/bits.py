"""Other bit-widths for some layers, by fnmatch patterns on name or role, for the whole trajectory or for equal parts of it.

QVD's first and last layer at 8 bits (arXiv 2407.11585, Sec. 5.1) is `{embed: 8, head: 8}`; weight-only quantization of the
modulation, as DVD-Quant's memory ratio implies, is `{modulation: {activation: 16}}`; ViDiT-Q's W4A8-MP (arXiv 2406.02540) has
8-bit weights in the first quarter of the steps, `{"*": {weight: [8, null, null, null]}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

from vdqbench.errors import ConfigError
from vdqbench.quant.format import FLOAT_BITS
from vdqbench.quant.parts import Site, SitePart


@dataclass(frozen=True)
class Bits(SitePart):
    """Args: value: bits, or {weight, activation}, by pattern; all patterns that match count, the last one most.

    Bits are one number, or a list with one for each of equal parts of the steps; null is what the cell says. 16 keeps
    floating point. What the cell's bit-widths leave in floating point stays there. A pattern may be about roles that a model
    does not have.
    """

    value: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for pattern, given in self.value.items():
            for key, bits in _both(given).items():
                listed = bits if isinstance(bits, list) else [bits]
                valid = all(b is None or (type(b) is int and 2 <= b <= FLOAT_BITS) for b in listed)
                if key not in ("weight", "activation") or not valid or not listed:
                    raise ConfigError(
                        f"{self.key('value')}.{pattern}={given} must be a whole number in 2..{FLOAT_BITS}, a list of them, "
                        "or {weight, activation} of such"
                    )

    def check(self, steps: int) -> None:
        """Raises ConfigError if a list does not divide the steps."""
        for pattern, given in self.value.items():
            for bits in _both(given).values():
                if isinstance(bits, list) and steps % len(bits):
                    raise ConfigError(f"{self.key('value')}.{pattern} lists {len(bits)} parts, which do not divide the {steps} steps")

    def apply(self, sites: list[Site]) -> list[Site]:
        for pattern, given in self.value.items():
            sites = [_changed(site, _both(given)) if site.matches(pattern) else site for site in sites]
        return sites


def _both(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {"weight": given, "activation": given}


def _changed(site: Site, given: Mapping[str, Any]) -> Site:
    lists = {key: bits if isinstance(bits, list) else [bits] for key, bits in given.items()}
    parts = lcm(len(site.timed) or 1, *(len(bits) for bits in lists.values()))
    timed = tuple(
        (_new(lists.get("weight"), part, parts, weight), _new(lists.get("activation"), part, parts, activation))
        for part, (weight, activation) in enumerate(site.plan(parts))
    )
    return replace(site, weight_bits=timed[0][0], activation_bits=timed[0][1], timed=timed if len(set(timed)) > 1 else ())


def _new(listed: Sequence[int | None] | None, part: int, parts: int, before: int | None) -> int | None:
    wanted = None if listed is None else listed[part * len(listed) // parts]
    if before is None or wanted is None:
        return before
    return None if wanted == FLOAT_BITS else wanted
