"""Overall consistency: how well a whole video fits its prompt (VBench 4.2.9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.dimension import Dimension
from vdqbench.metrics.vbench.encoders import Encoder
from vdqbench.metrics.vbench.plug import plug


def overall_consistency(videos: Tensor, texts: Tensor) -> Tensor:
    """Cosine of video features [N, D] and text features [N, D], neither scaled nor clipped: [N] in -1..1."""
    return F.cosine_similarity(videos, texts, dim=-1)


class OverallConsistency(Dimension):
    """Overall consistency by an encoder that is plugged in, since no maintained library has VBench's own, ViCLIP.

    Args:
        encoder: `{_target_: package.module.Class, ...}`, see `vdqbench.metrics.vbench.encoders.Encoder`.
        batch_size, device: handed to an encoder that takes them.
        scores: names of the scores wanted; None for the one there is, `overall_consistency_<encoder>`.

    Raises:
        ConfigError: the encoder cannot be built.
    """

    def __init__(
        self, encoder: Mapping[str, Any], batch_size: int = 64, device: str | None = None, scores: Sequence[str] | None = None
    ) -> None:
        self._encoder: Encoder = plug(encoder, "encoder", ("videos", "texts"), batch_size=batch_size, device=device)
        super().__init__("overall_consistency", "Overall consistency", self._encoder.name, -1.0, 1.0, scores)

    def values(self, batch: VideoBatch) -> Tensor:
        return overall_consistency(self._encoder.videos(batch), self._encoder.texts(batch))

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self._encoder.protocol(), "version": self.version}
