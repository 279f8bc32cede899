"""Layers that stay in floating point, by fnmatch patterns on their name (`blocks.0.*`) or role (`ffn.down`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vdqbench.errors import ConfigError, nearest
from vdqbench.quant.parts import Site, SitePart


@dataclass(frozen=True)
class KeepFP(SitePart):
    """Args: value: the patterns."""

    value: tuple[str, ...] = ()

    def apply(self, sites: list[Site]) -> list[Site]:
        """Raises ConfigError for a pattern that matches no layer."""
        for pattern in self.value:
            if not any(site.matches(pattern) for site in sites):
                raise ConfigError(f"{self.key('value')}={pattern} matches no layer{nearest(pattern, {site.role for site in sites})}")
        return [
            replace(site, weight_bits=None, activation_bits=None, timed=()) if any(site.matches(p) for p in self.value) else site
            for site in sites
        ]
