"""Group normalization over the frames that the original normalizes together, where diffusers normalizes others together.

The original computes on [B, C, F, H, W] and diffusers on [B F, C, H, W], with the same weights: in ResNet blocks and before the last
convolution the original takes the mean over all frames of a video and diffusers over each frame; in motion modules it is the other way
round. In spatial transformers both take it over each frame.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn


class PerFrame(nn.GroupNorm):
    """Normalizes each frame of videos [B, C, F, H, W] by itself."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return super().forward(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


class OverFrames(nn.GroupNorm):
    """Normalizes the frames of each video together.

    Args:
        frames: F of inputs [B F, C, H, W], whose rows are the frames of one video after the other.
    """

    def __init__(self, frames: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        videos = x.unflatten(0, (-1, self.frames)).transpose(1, 2)
        return super().forward(videos).transpose(1, 2).flatten(0, 1)


def normalize_as_original(unet: Any, frames: int) -> None:
    """Exchange the normalizations of a UNetMotionModel without weights yet, in place; names stay."""
    for module in unet.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            module.norm = PerFrame(*_sizes(module.norm))
        elif isinstance(module, ResnetBlock2D):
            module.norm1, module.norm2 = (OverFrames(frames, *_sizes(norm)) for norm in (module.norm1, module.norm2))
    unet.conv_norm_out = OverFrames(frames, *_sizes(unet.conv_norm_out))


def _sizes(norm: nn.GroupNorm) -> tuple[int, int, float]:
    return norm.num_groups, norm.num_channels, norm.eps
