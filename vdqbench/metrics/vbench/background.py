"""Background consistency: how alike the frames stay to CLIP ViT-B/32 (VBench 4.1.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vdqbench.metrics.backbone import open_backbone
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.clip_features import is_openai, slug, vbench_features
from vdqbench.metrics.vbench.consistency import Consistency


class BackgroundConsistency(Consistency):
    """Consistency of CLIP's image features.

    With OpenAI's ViT-B/32 the frames are prepared as VBench does it (bicubic without smoothing) and the score is
    `background_consistency`. Any other backbone sees frames as it was trained, shares its features with the CLIP metrics, and gives
    `background_consistency_<backbone>`.

    Args:
        backbone: see `vdqbench.metrics.backbone.open_backbone`.
        batch_size: frames that are embedded at once.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for the one there is.

    Raises:
        ConfigError: a backbone that cannot be used.
    """

    def __init__(
        self, backbone: Mapping[str, Any], batch_size: int = 64, device: str | None = None, scores: Sequence[str] | None = None
    ) -> None:
        self._backbone, self._batch_size = open_backbone(backbone, device), batch_size
        self._exact = is_openai(self._backbone, "ViT-B-32")
        encoder = None if self._exact else slug(self._backbone)
        super().__init__("background_consistency", "Background consistency", encoder, scores)

    def features(self, batch: VideoBatch) -> Tensor:
        if self._exact:
            return vbench_features(self._backbone, batch, self._batch_size)
        return self._backbone.features(batch, batch_size=self._batch_size)

    def protocol(self) -> dict[str, Any]:
        how = "vbench" if self._exact else "clip"
        return {**super().protocol(), **self._backbone.protocol(), "preprocessing": how, "frames": "all", "mean": "frame-weighted"}
