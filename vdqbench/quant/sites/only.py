"""The layers that a recipe is about, by fnmatch patterns on name or role; the others are left out of every account of it."""

from __future__ import annotations

from dataclasses import dataclass

from vdqbench.errors import ConfigError, nearest
from vdqbench.quant.parts import Site, SitePart


@dataclass(frozen=True)
class Only(SitePart):
    """Args: value: the patterns; a pattern may be about roles that a model does not have, as long as one of them matches."""

    value: tuple[str, ...] = ("*",)

    def apply(self, sites: list[Site]) -> list[Site]:
        """Raises ConfigError if nothing matches."""
        chosen = [site for site in sites if any(site.matches(pattern) for pattern in self.value)]
        if not chosen:
            roles = {site.role for site in sites}
            raise ConfigError(
                f"{self.key('value')}={list(self.value)} matches no layer{nearest(self.value[0] if self.value else '', roles)}"
            )
        return chosen
