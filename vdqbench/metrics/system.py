"""What quantization saves: size, bits and bit operations on paper, from the quantization report; time and memory, where measured.

Numbers on paper hold for every kernel. Time per step and peak memory are measurements and are only given where the kernel computes
with integers, or where nothing is quantized: a simulation is slower and larger than the model that it simulates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vdqbench.metrics.base import Metric, Score, ScoreInfo, chosen

COMPONENTS = {
    "size_weights": ("Quantized weights (MB)", ("weights",)),
    "size_params": ("Scales and zero points (MB)", ("weight_params", "activation_params")),
    "size_transforms": ("Transforms (MB)", None),
    "size_fp": ("Kept in FP (MB)", ("kept_fp",)),
}
"""Scores of the parts of the weight size, and which components of the report's `bytes` each adds up; None: all the others."""
MEASURED = {
    "seconds_per_step": ("seconds_per_step", 1.0),
    "peak_memory": ("peak_memory_bytes", 1e-6),
}
"""Scores that only kernels give which do not simulate, what they are measured as, and their unit."""


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


def size_by_component(sizes: Mapping[str, float]) -> dict[str, float]:
    """Megabytes of each group of components of the report's `bytes`, by name of the score; they add up to `weight_size`."""
    named = {part for _, parts in COMPONENTS.values() for part in parts or ()}
    others = [name for name in sizes if name not in named and name != "total"]
    return {score: sum(sizes.get(part, 0) for part in parts or others) / 1e6 for score, (_, parts) in COMPONENTS.items()}


class System(Metric):
    """Weight size by component, average bits, bit operations, calibration time, time per step and peak memory.

    It sees the quantization report and what was measured when the cell ran, and no video. A score of which the report or the run
    says nothing is left out, and a table shows a dash for it.

    Args:
        scores: names of the scores wanted; None for all.
    """

    mode = "system"
    version = 1
    available = (
        ScoreInfo("weight_size", "Weight size (MB)", False, 0.0, None),
        *(ScoreInfo(name, label, False, 0.0, None) for name, (label, _) in COMPONENTS.items()),
        ScoreInfo("weight_bits", "Weight bits", None, 0.0, 32.0),
        ScoreInfo("activation_bits", "Activation bits", None, 0.0, 32.0),
        ScoreInfo("tbops", "TBOPs", False, 0.0, None),
        ScoreInfo("calibration_seconds", "Calibration (s)", False, 0.0, None),
        ScoreInfo("seconds_per_step", "Time per step (s)", False, 0.0, None),
        ScoreInfo("peak_memory", "Peak memory (MB)", False, 0.0, None),
    )

    def __init__(self, scores: Sequence[str] | None = None) -> None:
        self.scores = chosen(self.available, scores, "System")

    def from_report(self, report: Mapping[str, Any], measured: Mapping[str, Any] | None = None) -> dict[str, Score]:
        """Scores of the model whose report this is.

        Args:
            report: `bytes`, `weight_bits` and `activation_bits`, and, where it was counted, `bops` with its `total` per forward pass.
            measured: `kernel`, and where they were measured `calibration_seconds` (of the pass that made the statistics, by whichever
                cell), `seconds_per_step` (of one video) and `peak_memory_bytes`. None, or a missing or None value, gives no score.

        Raises:
            KeyError: the report lacks `bytes`, `weight_bits` or `activation_bits`.
        """
        measured = measured or {}
        values: dict[str, float | None] = {
            "weight_size": weight_size(report["bytes"]),
            **size_by_component(report["bytes"]),
            "weight_bits": float(report["weight_bits"]),
            "activation_bits": float(report["activation_bits"]),
            "tbops": report["bops"]["total"] / 1e12 if report.get("bops") else None,
            "calibration_seconds": measured.get("calibration_seconds"),
        }
        for score, (name, unit) in MEASURED.items():
            value = None if measured.get("kernel") == "sim" else measured.get(name)
            values[score] = None if value is None else value * unit
        return {info.name: Score(None, float(value), 1) for info in self.scores if (value := values[info.name]) is not None}

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "megabyte": 10**6, "measured": "calibration, time and memory; never with kernel sim"}
