"""vdqbench: the bench for post-training quantization of video diffusion models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame

    from vdqbench.record import Record

__version__ = "0.1.0"


def run(overrides: Sequence[str]) -> list[Record]:
    """Run the cells that the overrides name, as the command line does, and return their records in order.

    Raises:
        ConfigError: what the command line answers with exit code 2.
    """
    from vdqbench.sweep import run

    return run(overrides)


def load_records(out: str | Path = "results") -> DataFrame:
    """All records below a results folder as one tidy frame: a row for each cell, video and score.

    Columns: key, state, reason, model, method, bits, weight, activation, prompts, sampler, kernel, prompt_id, prompt, seed, score, label,
    higher_is_better, value, low, high. Scores of a whole set, and records without scores, have one row without a video.
    """
    from vdqbench.report.frame import frame
    from vdqbench.report.plain import load_all

    return frame(load_all(out))
