"""What mini_clip knows beside its two towers: linear attribute heads and a linear temporal pooling, for shapes videos.

A frame shows colour, shape, background and where and how large the shape is, but not how it moves. Motion is read from the
slope of the frame features over time, which a linear head can do because the tower was trained with it; the same slope,
added to the mean through one matrix, gives the embedding of a whole video that captions are retrieved by.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdqbench.shapes import ATTRIBUTES


def slope(features: Tensor, times: Tensor | None = None) -> Tensor:
    """Least-squares slope over time of features [N, T, D], as [N, D]; time runs from -1 to 1 unless `times` [N, T] is given.

    One frame has slope 0.
    """
    if times is None:
        times = torch.linspace(-1, 1, features.shape[1], device=features.device).expand(features.shape[:2])
    centred = (times - times.mean(dim=1, keepdim=True)).to(features.dtype)
    spread = centred.square().sum(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.einsum("nt,ntd->nd", centred / spread, features)


class Heads(nn.Module):
    """Linear heads on frame features [N, T, D] of mini_clip's image tower (not normalised)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attribute = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})
        self.temporal = nn.Linear(width, width, bias=False)

    def forward(self, features: Tensor, times: Tensor | None = None) -> dict[str, Tensor]:
        """Logits [N, classes] of each attribute: motion from the slope, the others from the mean of the frame features."""
        mean, change = features.mean(dim=1), slope(features, times)
        return {name: head(change if name == "motion" else mean) for name, head in self.attribute.items()}

    def video(self, features: Tensor, times: Tensor | None = None) -> Tensor:
        """Unit embeddings [N, D] of whole videos, in the space of the captions."""
        pooled = features.mean(dim=1) + self.temporal(slope(features, times))
        return nn.functional.normalize(pooled, dim=-1)
