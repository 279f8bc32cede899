"""What every video model offers to the bench: an adapter."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdqbench.clock import StepClock


@dataclass(frozen=True)
class Job:
    """One video to generate: the prompt's id and text, the seed of its noise, and what else the model is told.

    Attributes:
        inputs: files of conditioning inputs by name (`image`, `sketch`, `pose`); empty for text-to-video models.
    """

    prompt_id: str
    prompt: str
    seed: int
    inputs: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name without suffix; ids are generated, so no prompt text becomes a path."""
        return f"{self.prompt_id}-{self.seed}"


Condition = dict[str, Tensor]
"""What a denoiser is told of one job (text embeddings, their masks, encoded images): CPU tensors by name, without a batch dimension."""


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
    """A video model: three parts that are used one after the other.

    `encode` (text and image encoders) gives conditions, `denoise` (the denoiser, whose layers are quantized) turns noise into latents,
    `decode` (the VAE) turns latents into frames. What passes between them is plain tensors on the CPU, which the store keeps, so that each
    part can be loaded when it is needed and freed before the next one is.

    Attributes:
        clock: counts the scheduler's steps of the generation in progress; its layout is that of the guidance branches.
        fps: frames per second of the videos.
    """

    clock: StepClock
    fps: int

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The module whose layers are quantized; loaded if it is not."""

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
    def encode(self, jobs: Sequence[Job]) -> list[Condition]:
        """What the denoiser is told of each job, for any sampler: what it is told in the unconditional branch is part of it, too.

        It depends on the prompt and the inputs alone, neither on the seed nor on the batch.
        """

    @abstractmethod
    def denoise(self, jobs: Sequence[Job], conditions: Sequence[Condition]) -> Tensor:
        """Latents [B, ...] of the jobs on the CPU, sampled as one batch with the clock attached.

        Noise depends on (prompt id, seed) alone, so a video does not depend on the batch it is generated in (but for
        the rounding of the matrix products).
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Videos uint8 [T, H, W, 3] of latents [B, ...], in order."""

    def release(self, part: str) -> None:  # noqa: B027 - there is nothing to do where all parts always stay
        """Free `encoder`, `denoiser` or `decoder`, unless the model's offload policy is `none`; it is loaded again when it is needed.

        A part that is not loaded stays so. With another policy than `none` the denoiser must be dropped, not just moved: its weights
        may have been replaced by quantized ones.
        """

    def generate(self, jobs: Sequence[Job]) -> Iterator[np.ndarray]:
        """Videos uint8 [T, H, W, 3] of the jobs, in order: encode, denoise, decode."""
        yield from self.decode(self.denoise(jobs, self.encode(jobs)))


def noise_source(job: Job) -> torch.Generator:
    """A CPU generator seeded by the hash of (prompt id, seed): initial noise is what it draws first."""
    digest = hashlib.sha256(f"{job.prompt_id}\n{job.seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def initial_noise(job: Job, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 of the shape."""
    return torch.randn(shape, generator=noise_source(job))
