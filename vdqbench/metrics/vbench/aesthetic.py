"""Aesthetic quality: LAION's linear predictor on CLIP ViT-L/14 (VBench 4.1.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vdqbench.errors import ConfigError
from vdqbench.metrics.backbone import open_backbone
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint
from vdqbench.metrics.vbench.clip_features import is_openai, slug, vbench_features
from vdqbench.metrics.vbench.dimension import Dimension

WHERE = "the file sa_0_4_vit_l_14_linear.pth of github.com/LAION-AI/aesthetic-predictor"


def aesthetic_quality(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mean over frames of (w f / |f| + b) / 10, of features [N, T, D], weight [1, D] and bias [1]: [N], about 0.4 to 0.7."""
    return F.linear(F.normalize(features.float(), dim=-1), weight, bias).squeeze(-1).mean(dim=1) / 10


class AestheticQuality(Dimension):
    """Aesthetic quality of all frames; `aesthetic_quality` on OpenAI's ViT-L/14, else `aesthetic_quality_<backbone>`.

    Args:
        backbone: see `vdqbench.metrics.backbone.open_backbone`.
        head: file of the linear layer, LAION's `sa_0_4_vit_l_14_linear.pth` (768 to 1).
        batch_size: frames that are embedded at once.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for the one there is.

    Raises:
        ConfigError: no head, a head that does not fit, or a backbone that cannot be used.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        head: str | None = None,
        batch_size: int = 32,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        key = "metric.vbench_aesthetic_quality.head"
        if head is None:
            raise ConfigError(f"{key}=null would be random weights; expected {WHERE}")
        state = read_checkpoint(head, key, WHERE)
        self._backbone, self._batch_size = open_backbone(backbone, device), batch_size
        width = self._backbone.model.visual.output_dim
        self._head = nn.Linear(width, 1).requires_grad_(False)
        self._sha256 = load_exactly(self._head, state, key, head, WHERE)
        encoder = None if is_openai(self._backbone, "ViT-L-14") else slug(self._backbone)
        super().__init__("aesthetic_quality", "Aesthetic quality", encoder, None, None, scores)

    def values(self, batch: VideoBatch) -> Tensor:
        features = vbench_features(self._backbone, batch, self._batch_size)
        return aesthetic_quality(features, self._head.weight, self._head.bias)

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            **self._backbone.protocol(),
            "head": self._sha256,
            "preprocessing": "vbench",
            "frames": "all",
        }
