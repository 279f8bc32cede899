"""What the dimensions share: one score per video between two bounds, higher is better."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vdqbench.errors import ConfigError
from vdqbench.metrics.base import PerVideo, ScoreInfo, VideoBatch


class Dimension(PerVideo):
    """A metric with one score per video.

    Args:
        name: of the score; `encoder` is appended where the network is not VBench's own.
        label: what tables call it.
        encoder: name of the network that stands in for VBench's; None if it is VBench's own.
        low, high: range of the score.
        scores: names of the scores wanted; None for the one there is.
    """

    mode = "single"

    def __init__(
        self, name: str, label: str, encoder: str | None, low: float | None, high: float | None, scores: Sequence[str] | None
    ) -> None:
        self.name = f"{name}_{encoder}" if encoder else name
        self.available = (ScoreInfo(self.name, f"{label} ({encoder})" if encoder else label, True, low, high),)
        super().__init__(scores)

    @abstractmethod
    def values(self, batch: VideoBatch) -> Tensor:
        """The score of each video, [N]."""

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        return {self.name: self.values(batch)}


def feature_key(**parts: Any) -> str:
    """Name of stored features from all that decides them."""
    return json.dumps(parts, sort_keys=True)


def pick_device(device: str | None) -> torch.device:
    """The device of this name; a GPU if there is one for None or `auto`.

    Raises:
        ConfigError: torch knows no such device.
    """
    try:
        return torch.device(device if device not in (None, "auto") else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        raise ConfigError(f"device={device} is not a device of torch; use auto, cpu, cuda or cuda:N") from error
