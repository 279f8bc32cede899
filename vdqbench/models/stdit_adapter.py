"""What all models around STDiT share: guidance against the null caption, sampling, and frames from an image VAE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError
from vdqbench.models.base import Adapter, Anatomy, Condition, Job, noise_source
from vdqbench.models.ddim import RespacedDDIM, guide
from vdqbench.models.iddpm import RespacedIDDPM
from vdqbench.models.roles import stdit_anatomy, stdit_roles
from vdqbench.models.samplers import scheduler_of
from vdqbench.models.stdit import STDiT

TRAINED = {"_class_name": "DDIMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
"""What they are trained on, as diffusers' schedulers put it; its PNDM steps by 1000 // N, which timesteps of `linspace` are not apart."""
RESPACED = {"ddim": RespacedDDIM, "iddpm": RespacedIDDPM}
"""Samplers that step as Open-Sora's code does; the others are diffusers'."""


class STDiTAdapter(Adapter):
    """A video model around STDiT, with an image VAE.

    A condition is text embeddings `y` [1, L, C] and `mask` [L], 1 for the tokens that count. The unconditional branch is given the
    learned null caption under the prompt's own mask, as in the original: it sees as many null tokens as the prompt has.

    Args:
        sampler: `name`, `steps`, `guidance`, `guided_channels` and `options`.
        device: where it runs.

    Attributes:
        frames_at_once: how many frames the VAE decodes at once; None for all of them.
    """

    frames_at_once: int | None = None

    def __init__(self, sampler: dict[str, Any], device: str) -> None:
        self.sampler, self.device = sampler, torch.device(device)
        self.clock, self.scheduler = StepClock(), _scheduler(sampler)

    @property
    @abstractmethod
    def stdit(self) -> STDiT:
        """The denoiser, in evaluation mode; loaded if it is not."""

    @property
    @abstractmethod
    def vae(self) -> Any:
        """The decoder, of diffusers' AutoencoderKL; loaded if it is not."""

    @property
    def denoiser(self) -> nn.Module:
        return self.stdit

    def layers(self) -> dict[str, str]:
        return stdit_roles(self.stdit)

    def anatomy(self) -> Anatomy:
        return stdit_anatomy(self.stdit)

    def example(self) -> dict[str, Any]:
        stdit = self.stdit
        x = torch.zeros(1, stdit.in_channels, *stdit.input_size, device=self.device)
        return {"x": x, "timestep": torch.zeros(1, device=self.device), "y": stdit.y_embedder.y_embedding[None, None], "mask": None}

    @torch.no_grad()  # not inference_mode, under which layers cannot tell that they were given the same, unchanged tensor
    def denoise(self, jobs: Sequence[Job], conditions: Sequence[Condition]) -> Tensor:
        stdit = self.stdit
        y, mask = (torch.stack([one[name] for one in conditions]).to(self.device) for name in ("y", "mask"))
        null = stdit.y_embedder.y_embedding.to(self.device).expand_as(y)
        y, mask = torch.cat([y, null]), torch.cat([mask, mask])
        shape, sources = (stdit.in_channels, *stdit.input_size), [noise_source(job) for job in jobs]

        def draw() -> Tensor:
            return torch.stack([torch.randn(shape, generator=source) for source in sources]).to(self.device)

        channels = stdit.in_channels if self.sampler["guided_channels"] is None else self.sampler["guided_channels"]
        with self.clock.attached(self.scheduler, [stdit]):
            self.scheduler.set_timesteps(self.sampler["steps"])
            x = draw() * self.scheduler.init_noise_sigma
            for t in self.scheduler.timesteps.tolist():
                given = self.scheduler.scale_model_input(x, t)
                out = stdit(torch.cat([given, given]), torch.full((2 * len(jobs),), t, device=self.device), y, mask)
                conditional, unconditional = out.chunk(2)
                x = self._stepped(guide(conditional, unconditional, self.sampler["guidance"], channels), t, x, draw)
        return x.cpu()

    def _stepped(self, guided: Tensor, t: float, x: Tensor, draw: Any) -> Tensor:
        """The next sample; only `iddpm` looks at the variance, which is never guided."""
        if isinstance(self.scheduler, RespacedIDDPM):
            return self.scheduler.step(guided, int(t), x, draw)
        moved = self.scheduler.step(guided[:, : x.shape[1]], t, x)
        return moved if isinstance(moved, Tensor) else moved.prev_sample

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        vae = self.vae
        x = latents.to(self.device, vae.dtype).transpose(1, 2)
        flat = x.flatten(0, 1) / vae.config.scaling_factor
        parts = [vae.decode(part).sample.float() for part in flat.split(self.frames_at_once or len(flat))]
        frames = (torch.cat(parts).clamp(-1, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        yield from frames.unflatten(0, x.shape[:2]).permute(0, 1, 3, 4, 2).cpu().numpy()


def _scheduler(sampler: dict[str, Any]) -> Any:
    name, options = sampler["name"], sampler.get("options") or {}
    if name not in RESPACED:
        return scheduler_of(name, TRAINED, options)
    if options:
        raise ConfigError(f"sampler.options.{next(iter(options))} is not an option of {name} on models around STDiT, where it has none")
    return RESPACED[name]()
