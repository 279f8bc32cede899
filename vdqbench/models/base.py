"""What every video model offers to the bench: an adapter."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdqbench.clock import StepClock


@dataclass(frozen=True)
class Job:
    """One video to generate: the prompt's id and text, and the seed of its noise."""

    prompt_id: str
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        """File name without suffix; ids are generated, so no prompt text becomes a path."""
        return f"{self.prompt_id}-{self.seed}"


@dataclass(frozen=True)
class Anatomy:
    """How a denoiser is built, for what works on more than one layer.

    Attributes:
        blocks: names of the modules that are run one after the other; the unit of reconstruction.
        modulated: the modulated input of the first block's first branch from the block and its arguments, whose change tells
            TeaCache how much a step differs from the last one; None where the model has no such thing.
        splits: layers whose input is a concatenation, by name: number of channels of its first part.
    """

    blocks: tuple[str, ...] = ()
    modulated: Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Tensor] | None = None
    splits: Mapping[str, int] = field(default_factory=dict)


class Adapter(ABC):
    """A loaded video model.

    Attributes:
        clock: counts the scheduler's steps of the generation in progress.
        fps: frames per second of the videos.
    """

    clock: StepClock
    fps: int

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The module whose layers are quantized."""

    @abstractmethod
    def layers(self) -> dict[str, str]:
        """Role (`self_attn.q`, `ffn.up`, ...) of every quantizable layer of the denoiser, by module name."""

    def anatomy(self) -> Anatomy:
        """How the denoiser is built."""
        return Anatomy()

    @abstractmethod
    def example(self) -> dict[str, Any]:
        """Arguments of one call of the denoiser, for one video in one guidance branch, to count what a call costs."""

    @abstractmethod
    def generate(self, jobs: Sequence[Job]) -> Iterator[np.ndarray]:
        """Videos uint8 [T, H, W, 3] of the jobs, in order, generated as one batch.

        Noise depends on (prompt id, seed) alone, so a video does not depend on the batch it is generated in (but for
        the rounding of the matrix products).
        """


def initial_noise(job: Job, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 of the shape, from a CPU generator seeded by the hash of (prompt id, seed)."""
    digest = hashlib.sha256(f"{job.prompt_id}\n{job.seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)
