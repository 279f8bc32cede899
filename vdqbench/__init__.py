"""vdqbench: the bench for post-training quantization of video diffusion models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdqbench.record import Record

__version__ = "0.1.0"


def run(overrides: Sequence[str]) -> list[Record]:
    """Run the cells that the overrides name, as the command line does, and return their records in order.

    Raises:
        ConfigError: what the command line answers with exit code 2.
    """
    from vdqbench.sweep import run

    return run(overrides)
