"""The default tracker: nothing is published, nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdqbench.track import Published


@dataclass(frozen=True)
class Nothing:
    """Records, tables and videos are on disk, and that is all."""

    def publish(self, out: Path, runs: Sequence[Path], tables: Sequence[Path]) -> Published:
        """Do nothing, successfully."""
        return Published(True, "")

    def settle(self, out: Path, runs: Sequence[Path], tables: Sequence[Path]) -> Published:
        """There is nothing to say."""
        return Published(True, "")
