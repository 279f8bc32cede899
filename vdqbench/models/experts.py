"""Two networks that take turns as one denoiser: Wan 2.2 has one for high noise levels and another for low ones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


class Experts(nn.Module):
    """Calls the first network down to a timestep, and the second below it, as the pipeline does.

    Attributes:
        turns: names of the networks, of which one runs at each step while the other rests.
    """

    turns = ("transformer", "transformer_2")

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2, self.boundary = high, low, boundary
        self.config: Any = high.config

    @property
    def dtype(self) -> torch.dtype:
        dtype: Any = self.transformer.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def cache_context(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        """Where the pipeline would have caches of its own kept apart; there are none."""
        return nullcontext()

    def forward(self, hidden_states: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        first = timestep.is_meta or float(timestep.max()) >= self.boundary  # without values: both cost the same
        return (self.transformer if first else self.transformer_2)(hidden_states, timestep, *args, **kwargs)
