"""Deterministic DDIM on respaced timesteps, as Open-Sora v1.0 and ViDiT-Q sample, and guidance on some of the channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class RespacedDDIM:
    """DDIM (eta 0, no clipping) for a noise-predicting model trained on linear betas from 1e-4 to 0.02.

    N steps visit N evenly spaced, rounded timesteps of 0..999 from 999 down to 0, and each step lands on the next
    visited timestep; the last one lands on the predicted clean sample. This is the respacing of the original code:
    diffusers' DDIMScheduler visits the same timesteps with `timestep_spacing="linspace"`, but steps to t - 1000 // N.
    """

    train_timesteps = 1000
    init_noise_sigma = 1.0

    def __init__(self) -> None:
        betas = np.linspace(1e-4, 0.02, self.train_timesteps, dtype=np.float64)
        self.alphas_cumprod = torch.from_numpy(np.cumprod(1.0 - betas))
        self.timesteps = torch.empty(0, dtype=torch.long)
        self._before: dict[int, float] = {}

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose the visited timesteps [num_inference_steps], from noise to clean."""
        visited = np.linspace(0, self.train_timesteps - 1, num_inference_steps).round().astype(np.int64)
        self.timesteps = torch.from_numpy(visited[::-1].copy()).to(device)
        landing = [1.0, *self.alphas_cumprod[torch.from_numpy(visited[:-1])].tolist()]
        self._before = dict(zip(visited.tolist(), landing, strict=True))

    def scale_model_input(self, sample: Tensor, timestep: int) -> Tensor:
        """What the model is given: the sample as it is."""
        return sample

    def step(self, noise: Tensor, timestep: int, sample: Tensor) -> Tensor:
        """One step from `timestep` to the one before it, for predicted noise and sample of the same shape."""
        alpha, before = self.alphas_cumprod[timestep].item(), self._before[timestep]
        clean = (sample - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        return before**0.5 * clean + (1 - before) ** 0.5 * noise


def guide(conditional: Tensor, unconditional: Tensor, scale: float, channels: int) -> Tensor:
    """Classifier-free guidance u + scale * (c - u) on the first `channels` of dim 1; the others keep the conditional value.

    Open-Sora v1.0 guides three of its four latent channels, a leftover of pixel-space code on which published numbers
    rest: with its two copies of the latents only the conditional one becomes the video.
    """
    c, u = conditional[:, :channels], unconditional[:, :channels]
    return torch.cat([u + scale * (c - u), conditional[:, channels:]], dim=1)
