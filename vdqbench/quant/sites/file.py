"""Mixed precision from a file that a sensitivity run wrote: bits of each layer in each of equal parts of the trajectory.

    {"ranges": 4, "layers": {"blocks.0.mlp.fc1": [[8, 8], [8, 8], [4, 8], [4, 8]], "ffn.*": ...}}

Layers are fnmatch patterns on name or role; the last one that matches counts. 16 keeps floating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.quant.format import FLOAT_BITS
from vdqbench.quant.parts import Bits, Site, SitePart


@dataclass(frozen=True)
class File(SitePart):
    """Args: value: path of the file (YAML or JSON); names are not part of any key, the content is. `null` is no file."""

    value: str | None = None

    @property
    def sets_bits(self) -> bool:  # type: ignore[override]
        return self.value is not None

    def check(self, steps: int) -> None:
        """Raises ConfigError if the file is missing or not what it should be."""
        if self.value is not None and steps % len(next(iter(self.table.values()))):
            raise ConfigError(f"{self.key('value')}={self.value}: its ranges must divide the {steps} steps of the sampler")

    def semantic(self) -> dict[str, Any]:
        table = {pattern: [list(bits) for bits in ranges] for pattern, ranges in self.table.items()}
        return {"part": self.part_name(), "version": self.version, "value": table}

    def apply(self, sites: list[Site]) -> list[Site]:
        """Raises ConfigError for a pattern that matches no layer."""
        for pattern, ranges in self.table.items():
            if not any(site.matches(pattern) for site in sites):
                raise ConfigError(
                    f"{self.key('value')}={self.value}: {pattern} matches no layer{nearest(pattern, {s.name for s in sites})}"
                )
            first = ranges[0]
            sites = [replace(s, weight_bits=first[0], activation_bits=first[1], timed=ranges) if s.matches(pattern) else s for s in sites]
        return sites

    @cached_property
    def table(self) -> dict[str, tuple[Bits, ...]]:
        """Bits of each range, by pattern."""
        if self.value is None:
            return {}
        import yaml

        path = Path(self.value).expanduser()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{self.key('value')}={self.value} cannot be read: {str(error).splitlines()[0]}") from None
        layers = content.get("layers") if isinstance(content, Mapping) else None
        if not isinstance(layers, Mapping) or not layers:
            raise ConfigError(
                f"{self.key('value')}={self.value} must hold `layers`, from layers to [weight, activation] bits of each range"
            )
        return {str(pattern): self._ranges(pattern, ranges, content.get("ranges")) for pattern, ranges in layers.items()}

    def _ranges(self, pattern: str, ranges: Any, count: Any) -> tuple[Bits, ...]:
        if not isinstance(ranges, list) or len(ranges) != count:
            raise ConfigError(f"{self.key('value')}={self.value}: {pattern} must list {count} pairs, one for each of its `ranges`")
        return tuple(self._pair(pattern, pair) for pair in ranges)

    def _pair(self, pattern: str, pair: Any) -> Bits:
        if not isinstance(pair, list) or len(pair) != 2 or any(type(bits) is not int or not 2 <= bits <= FLOAT_BITS for bits in pair):
            raise ConfigError(f"{self.key('value')}={self.value}: {pattern} has {pair} where [weight, activation] bits in 2..16 must be")
        weight, activation = (None if bits == FLOAT_BITS else bits for bits in pair)
        return weight, activation
