"""Which frames of a video a dimension looks at, and how they are brought to a network's size: by VBench, without smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def middle_frames(length: int, count: int) -> list[int]:
    """Indices of the middle frames of `count` equal intervals of a video of `length` frames, rounded down.

    A video that is shorter than `count` gives all its frames, and the last one again until there are `count`.
    """
    intervals = min(length, count)
    bounds = [length * i // intervals for i in range(intervals + 1)]
    indices = [(first + end - 1) // 2 for first, end in pairwise(bounds)]
    return indices + [indices[-1]] * (count - intervals)


def every(fps: float) -> int:
    """Distance of the frames that VBench keeps of a video so that about 8 a second are left; halves are rounded to even."""
    return max(1, round(fps / 8))


def channels_first(frames: Tensor, device: torch.device) -> Tensor:
    """Frames uint8 [M, H, W, 3] as float32 [M, 3, H, W] with values 0-255."""
    return frames.to(device).permute(0, 3, 1, 2).float()


def normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std by channel, of [M, 3, H, W] with values 0-255."""
    return (x / 255 - torch.tensor(mean, device=x.device).view(3, 1, 1)) / torch.tensor(std, device=x.device).view(3, 1, 1)


def shorter_side(x: Tensor, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> Tensor:
    """[M, 3, H, W] with its shorter side brought to `size`, without smoothing when it shrinks."""
    return transforms.resize(x, [size], interpolation, antialias=False)


def at_most(x: Tensor, size: int) -> Tensor:
    """[M, 3, H, W] with its longer side brought to `size` if it is longer, bilinear without smoothing, sides rounded down."""
    height, width = x.shape[-2:]
    if max(height, width) <= size:
        return x
    scale = size / max(height, width)
    return transforms.resize(x, [int(scale * height), int(scale * width)], antialias=False)


def clip_input(frames: Tensor, size: int, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """Input of a CLIP image tower as VBench prepares it: bicubic without smoothing, centre crop, not clamped; [M, 3, size, size]."""
    x = shorter_side(channels_first(frames, device), size, InterpolationMode.BICUBIC)
    return normalised(transforms.center_crop(x, [size, size]), mean, std)
