"""The DOVER network: two branches with a head each, and loading the released checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint
from vdqbench.metrics.dover.convnext import ConvNeXt3D
from vdqbench.metrics.dover.swin import SwinGRPB

Branch = Literal["technical", "aesthetic"]
BRANCHES: tuple[Branch, Branch] = ("technical", "aesthetic")

KEY = "weights of metric vqa"
WHERE = "DOVER.pth of github.com/QualityAssessment/DOVER, release v0.1.0"


class Head(nn.Module):
    """Quality of each position: [B, 1, T, H, W] from features [B, 768, T, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_hid, self.fc_last = nn.Conv3d(768, 64, 1), nn.Conv3d(64, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_last(F.gelu(self.fc_hid(x)))


class Dover(nn.Module):
    """Both branches. A branch is asked for by its name: the original's outputs come in the order of its input's keys."""

    def __init__(self) -> None:
        super().__init__()
        self.technical_backbone, self.aesthetic_backbone = SwinGRPB(), ConvNeXt3D()
        self.technical_head, self.aesthetic_head = Head(), Head()

    def forward(self, view: Tensor, branch: Branch) -> Tensor:
        """Raw scores [B], the means of the branch's head maps, of its normalised views [B, 3, T, H, W]."""
        backbone, head = getattr(self, f"{branch}_backbone"), getattr(self, f"{branch}_head")
        return head(backbone(view)).mean(dim=(1, 2, 3, 4))


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[Dover, str]:
    """The network with the weights of a checkpoint of exactly its keys and shapes, in evaluation mode and float32, and their hash.

    The file is the released `.pth` (opened without running any code in it) or the same tensors as `.safetensors`.

    Raises:
        ConfigError: no such file, a file that holds no weights, or weights of another network.
    """
    state = read_checkpoint(path, KEY, WHERE)
    with torch.device("meta"):
        model = Dover()
    model = model.to_empty(device="cpu")
    sha256 = load_exactly(model, state, KEY, path, WHERE)
    return model.to(device).eval().requires_grad_(False), sha256
