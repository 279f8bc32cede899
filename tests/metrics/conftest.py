"""Tiny open_clip models with random but seeded weights, written to disk as a user's own backbone would be."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> str:
    """A folder that open_clip opens as `local-dir:`, with an image tower of 48x48."""
    folder = tmp_path_factory.mktemp("tiny_clip")
    (folder / "open_clip_config.json").write_text(
        json.dumps(
            {"model_cfg": CONFIG, "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}}
        )
    )
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**CONFIG)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return str(folder)
