"""An adapter of three tiny parts that tells what is done with them, and fails if two are in memory when it is to offload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vdqbench.clock import StepClock
from vdqbench.config import Model
from vdqbench.models.base import Adapter, Condition, Job, initial_noise
from vdqbench.models.ddim import RespacedDDIM

LENGTH = 4


class Parts(Adapter):
    """Videos of 2 frames of 8x8 from a prompt's letters, through one linear layer.

    Attributes:
        done: every load, encode, denoise and decode of this process, with how many jobs; cleared by tests.
        broken: which of them fails.
    """

    fps = 8
    done: ClassVar[list[tuple[str, Any]]] = []
    broken: ClassVar[str | None] = None

    def __init__(self, model: Model, sampler: dict[str, Any], device: str) -> None:
        self.model, self.sampler, self.clock = model, sampler, StepClock(layout="embedded")
        self.loaded: dict[str, nn.Module] = {}

    @classmethod
    def counted(cls) -> Counter[str]:
        return Counter(what for what, _ in cls.done)

    def part(self, name: str) -> Any:
        if name not in self.loaded:
            self.did("load", name)
            assert self.model.offload == "none" or not self.loaded, f"{name} is loaded beside {list(self.loaded)}"
            self.loaded[name] = nn.Sequential(nn.Linear(LENGTH, LENGTH)).requires_grad_(False)
            for parameter in self.loaded[name].parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) ** 3)
        return self.loaded[name]

    def did(self, what: str, about: Any) -> None:
        if self.broken == what:
            raise OSError(f"no {what}")
        self.done.append((what, about))

    def release(self, part: str) -> None:
        if self.model.offload != "none":
            self.loaded.pop(part, None)

    @property
    def denoiser(self) -> nn.Module:
        return self.part("denoiser")

    def layers(self) -> dict[str, str]:
        return {"0": "ffn.up"}

    def example(self) -> dict[str, Any]:
        return {"input": torch.zeros(1, LENGTH)}

    def encode(self, jobs: Sequence[Job]) -> list[Condition]:
        encoder = self.part("encoder")
        self.did("encode", [job.prompt for job in jobs])
        letters = torch.tensor([[float(sum(map(ord, job.prompt)) % (7 + i)) for i in range(LENGTH)] for job in jobs])
        told = torch.tensor([[len(name) + file.stat().st_size % 97 for name, file in job.inputs.items()] for job in jobs])
        return [{"text": encoder(one), "inputs": inputs.float()} for one, inputs in zip(letters, told, strict=True)]

    def denoise(self, jobs: Sequence[Job], conditions: Sequence[Condition]) -> Tensor:
        denoiser, scheduler = self.denoiser, RespacedDDIM()
        self.did("denoise", [job.name for job in jobs])
        told = torch.stack([one["text"] + one["inputs"].sum() for one in conditions])
        x = torch.stack([initial_noise(job, (LENGTH,)) for job in jobs])
        with self.clock.attached(scheduler, [denoiser]):
            scheduler.set_timesteps(self.sampler["steps"])
            for t in scheduler.timesteps.tolist():
                x = scheduler.step(denoiser(x + 0.1 * told), t, x)
        return x

    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        decoder = self.part("decoder")
        for one in latents:
            self.did("decode", 1)
            colour = (decoder(one).tanh() * 127 + 128).to(torch.uint8).numpy()[:3]
            yield np.broadcast_to(colour, (2, 8, 8, 3)).copy()
