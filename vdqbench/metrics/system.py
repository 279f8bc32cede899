"""What quantization saves on paper: theoretical weight size and average bits, from the quantization report of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vdqbench.metrics.base import Metric, Score, ScoreInfo, chosen


def weight_size(sizes: Mapping[str, float]) -> float:
    """Megabytes (10^6 bytes) of everything a deployed denoiser has to store: the sum of the report's `bytes`, by component.

    Weights at their bit-width, their scales and zero points, those of static activations, smoothing vectors, and the
    parameters that stay in floating point. It is computed, not measured.

    Raises:
        ValueError: no component, or a negative one.
    """
    parts = {name: value for name, value in sizes.items() if name != "total"}
    if not parts or min(parts.values()) < 0:
        raise ValueError(f"bytes={dict(sizes)} of the quantization report must name at least one component and no negative size")
    return sum(parts.values()) / 1e6


class System(Metric):
    """Theoretical weight size and average bits; it sees the quantization report and no video.

    Args:
        scores: names of the scores wanted; None for all.
    """

    mode = "system"
    version = 1
    available = (
        ScoreInfo("weight_size", "Weight size (MB)", False, 0.0, None),
        ScoreInfo("weight_bits", "Weight bits", None, 0.0, 32.0),
        ScoreInfo("activation_bits", "Activation bits", None, 0.0, 32.0),
    )

    def __init__(self, scores: Sequence[str] | None = None) -> None:
        self.scores = chosen(self.available, scores, "System")

    def from_report(self, report: Mapping[str, Any]) -> dict[str, Score]:
        """Scores of the quantized model whose report this is; `bytes`, `weight_bits` and `activation_bits` are read from it.

        Raises:
            KeyError: the report lacks one of them.
        """
        values = {
            "weight_size": weight_size(report["bytes"]),
            "weight_bits": float(report["weight_bits"]),
            "activation_bits": float(report["activation_bits"]),
        }
        return {info.name: Score(None, values[info.name], 1) for info in self.scores}

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "megabyte": 10**6, "measured": False}
