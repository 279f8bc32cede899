"""Subject consistency: how alike the frames stay to DINO ViT-B/16 (VBench 4.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdqbench.errors import ConfigError
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint
from vdqbench.metrics.vbench.consistency import Consistency
from vdqbench.metrics.vbench.dimension import feature_key, pick_device
from vdqbench.metrics.vbench.frames import IMAGENET, channels_first, normalised, shorter_side
from vdqbench.metrics.vbench.hub import hub_file

MODEL, SIDE, PATCH = "vit_base_patch16_224.dino", 224, 16
WHERE = "the file dino_vitbase16_pretrain.pth of github.com/facebookresearch/dino, or timm to take timm's copy of it"


class SubjectConsistency(Consistency):
    """Consistency of DINO's class token; frames have their shorter side brought to 224 and are not cropped square.

    Args:
        weights: `timm` (timm's copy on the Hugging Face hub), or a file: `dino_vitbase16_pretrain.pth` or a `.safetensors`.
        batch_size: frames that are embedded at once.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for the one there is.

    Raises:
        ConfigError: no weights, or weights that cannot be fetched or do not fit.
    """

    def __init__(
        self, weights: str | None = None, batch_size: int = 32, device: str | None = None, scores: Sequence[str] | None = None
    ) -> None:
        super().__init__("subject_consistency", "Subject consistency", None, scores)
        self._batch_size, self._dino = batch_size, open_dino(weights, str(pick_device(device)))

    def features(self, batch: VideoBatch) -> Tensor:
        return batch.features("videos", feature_key(network=MODEL, sha256=self._dino.sha256, version=1), self._embed)

    def _embed(self, videos: Tensor) -> Tensor:
        parts = [self._dino(part).cpu() for part in videos.flatten(0, 1).split(self._batch_size)]
        return torch.cat(parts).unflatten(0, videos.shape[:2])

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "backbone": MODEL, "sha256": self._dino.sha256, "frames": "all", "mean": "frame-weighted"}


class Dino:
    """DINO's class token [M, D] of frames uint8 [M, H, W, 3], as the original network gives it for any frame size.

    timm's network is used at the frames' own grid of patches, with the position embedding that DINO's code interpolates: bicubic
    by the factor (n + 0.1) / 14, which differs from timm's own resampling.
    """

    def __init__(self, model: nn.Module, sha256: str, device: torch.device) -> None:
        self.model: Any = model.eval().requires_grad_(False).to(device)
        self.sha256, self.device = sha256, device

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        x = normalised(shorter_side(channels_first(frames, self.device), SIDE), *IMAGENET)
        rows, columns, square = x.shape[-2] // PATCH, x.shape[-1] // PATCH, x.shape[-2] == x.shape[-1]
        x = self.model.patch_embed.proj(x[..., : rows * PATCH, : columns * PATCH]).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.model.cls_token.expand(len(x), -1, -1), x], dim=1)
        tokens = tokens + positions(self.model.pos_embed, rows, columns, square)
        return self.model.norm(self.model.blocks(tokens))[:, 0]


def positions(embedding: Tensor, rows: int, columns: int, square: bool) -> Tensor:
    """Position embedding [1, 1 + rows * columns, D] from the trained [1, 1 + n * n, D], as `interpolate_pos_encoding` of DINO does it.

    Frames that are not square before their remainder is dropped are interpolated even where the grid is the trained one.
    """
    side = round((embedding.shape[1] - 1) ** 0.5)
    if square and rows == columns == side:
        return embedding
    grid = embedding[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic")
    return torch.cat([embedding[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@lru_cache(maxsize=2)
def open_dino(weights: str | None, device: str) -> Dino:
    """DINO ViT-B/16 from timm's architecture, one copy per process.

    Raises:
        ConfigError: no weights, or weights that cannot be fetched or do not fit.
    """
    import timm

    key = "metric.vbench_subject_consistency.weights"
    if weights is None:
        raise ConfigError(f"{key}=null would be random ones; expected {WHERE}")
    path = hub_file(f"timm/{MODEL}", "model.safetensors", key) if weights == "timm" else weights
    state = read_checkpoint(path, key, WHERE)
    model = timm.create_model(MODEL, pretrained=False, num_classes=0)
    return Dino(model, load_exactly(model, state, key, path, WHERE), torch.device(device))
