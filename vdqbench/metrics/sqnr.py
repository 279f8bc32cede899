"""Signal-to-quantization-noise ratio of the layers' outputs, averaged by what the layers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vdqbench.metrics.base import Metric, Score, ScoreInfo, chosen

GROUPS = ("self_attn", "temporal_attn", "cross_attn", "ffn")


class Sqnr(Metric):
    """Mean over layers and computed steps of 10 log10(|y|^2 / |y_q - y|^2) in dB, y_q from the full-precision input of the layer.

    It sees the quantization report, whose `sqnr` are measured on one trajectory of calibration. The scores by group average the
    layers whose role begins so; a group that a recipe leaves in floating point has no score.

    Args:
        scores: names of the scores wanted; None for all.
    """

    mode = "system"
    version = 1
    available = (
        ScoreInfo("sqnr", "SQNR (dB)", True, None, None),
        *(ScoreInfo(f"sqnr_{group}", f"SQNR {group.replace('_', ' ')} (dB)", True, None, None) for group in GROUPS),
    )

    def __init__(self, scores: Sequence[str] | None = None) -> None:
        self.scores = chosen(self.available, scores, "Sqnr")

    def from_report(self, report: Mapping[str, Any], measured: Mapping[str, Any] | None = None) -> dict[str, Score]:
        """Scores of the quantized model whose report this is; those without a layer are left out."""
        layers, roles = report["sqnr"]["layers"], report["sqnr"]["roles"]
        finite = {name: [value for value in steps if value is not None] for name, steps in layers.items()}
        means = {name: sum(values) / len(values) for name, values in finite.items() if values}
        scores = {}
        for info in self.scores:
            group = info.name.removeprefix("sqnr").removeprefix("_")
            of_group = [value for name, value in means.items() if roles[name].startswith(group)]
            if of_group:
                scores[info.name] = Score(None, sum(of_group) / len(of_group), 1)
        return scores

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "inputs": "full precision, one calibration trajectory"}
