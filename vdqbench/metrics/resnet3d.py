"""The network behind FID-VID: a 3-D ResNet-50 trained on Kinetics-400, up to its 2048 pooled features, and how clips reach it.

Hara, Kataoka and Satoh (arXiv 1711.09577), shortcut type B, weights `resnet-50-kinetics.pth`; as a metric in the way of DisCo
(arXiv 2307.00040), whose numbers MagicAnimate and QVD report. Balaji et al. (IJCAI 2019), who proposed the metric, name a 3-D
ResNeXt-101.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

CLASSES = 400
DIM = 2048
SIDE = 112
SEGMENT = 16
MEAN = (114.7748, 107.7354, 99.4750)
"""Of Kinetics' red, green and blue, 0-255; there is no division by a deviation."""
LAYERS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, number of blocks and stride of each layer."""


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolution beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv3d(inputs, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2, self.bn2 = nn.Conv3d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm3d(width)
        self.conv3, self.bn3 = nn.Conv3d(width, outputs, 1, bias=False), nn.BatchNorm3d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet3D(nn.Module):
    """3-D ResNet-50 with the parameter names of `resnet-50-kinetics.pth`; its classifier `fc` is loaded and not used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 7, (1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        inputs = 64
        for i, (width, blocks, stride) in enumerate(LAYERS, start=1):
            parts = [Bottleneck(inputs if k == 0 else 4 * width, width, stride if k == 0 else 1) for k in range(blocks)]
            self.add_module(f"layer{i}", nn.Sequential(*parts))
            inputs = 4 * width
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 2048] of segments [N, 3, 16, 112, 112] as `segments` makes them."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool3d(x, 3, stride=2, padding=1)
        for i in range(1, len(LAYERS) + 1):
            x = self.get_submodule(f"layer{i}")(x)
        return x.mean(dim=(2, 3, 4))


def squash(frames: Tensor, side: int) -> Tensor:
    """Frames uint8 [M, H, W, 3] as float32 [M, 3, side, side] by Pillow's bicubic filter on each channel as floats.

    Both sides are resized for themselves, so that the picture is squashed, and nothing is rounded or clipped: values can leave 0..255.
    """
    channels = frames.movedim(-1, 1).flatten(0, 1).cpu().numpy().astype(np.float32)
    resized = [np.asarray(Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC)) for channel in channels]
    return torch.from_numpy(np.stack(resized)).unflatten(0, (-1, 3))


def segmented(videos: Tensor, length: int) -> Tensor:
    """Videos [M, T, ...] as segments [M, S, length, ...] with S = ceil(T / length); the last frame is repeated to fill the last one."""
    missing = -videos.shape[1] % length
    if missing:
        videos = torch.cat([videos, videos[:, -1:].expand(-1, missing, *videos.shape[2:])], dim=1)
    return videos.unflatten(1, (-1, length))


def segments(videos: Tensor) -> Tensor:
    """The network's input [M, S, 3, 16, 112, 112] from videos uint8 [M, T, H, W, 3]."""
    frames = squash(videos.flatten(0, 1), SIDE) - torch.tensor(MEAN).view(3, 1, 1)
    return segmented(frames.unflatten(0, videos.shape[:2]), SEGMENT).transpose(2, 3)
