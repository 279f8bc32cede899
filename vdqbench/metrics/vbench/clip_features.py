"""Frame features of a CLIP image tower as VBench takes them, shared by the dimensions that use the same tower."""

from __future__ import annotations

import torch
from torch import Tensor

from vdqbench.metrics.backbone import Backbone
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.dimension import feature_key
from vdqbench.metrics.vbench.frames import clip_input


def is_openai(backbone: Backbone, architecture: str) -> bool:
    """Whether this is OpenAI's CLIP of that architecture: by open_clip's tag, or a file for its quick-GELU variant, taken at its word."""
    return backbone.name in (f"{architecture}/openai", f"{architecture}-quickgelu/openai", f"{architecture}-quickgelu")


def slug(backbone: Backbone) -> str:
    """The backbone's name in small letters, digits and _, for the name of a score."""
    return "".join(c if c.isalnum() else "_" for c in backbone.name.lower()).strip("_")


def vbench_features(backbone: Backbone, batch: VideoBatch, batch_size: int) -> Tensor:
    """Features [N, T, D], not normalised, of all frames, resized without smoothing."""
    (size, _), config = backbone.size, backbone.model.visual.preprocess_cfg

    def embed(videos: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = [
                backbone.model.encode_image(clip_input(part, size, config["mean"], config["std"], backbone.device)).float().cpu()
                for part in videos.flatten(0, 1).split(batch_size)
            ]
        return torch.cat(parts).unflatten(0, videos.shape[:2])

    return batch.features("videos", feature_key(**backbone.protocol(), preprocessing="vbench", version=1), embed)
