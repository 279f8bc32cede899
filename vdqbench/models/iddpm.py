"""Ancestral sampling with learned variance on respaced timesteps (improved DDPM, arXiv 2102.09672): Open-Sora v1.0's own sampler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vdqbench.models.ddim import RespacedDDIM


class RespacedIDDPM(RespacedDDIM):
    """p(x_s | x_t) between visited timesteps s < t, of a model that predicts noise and how to interpolate the variance.

    The visited timesteps are those of `RespacedDDIM`; between them beta_t = 1 - abar_t / abar_s, and (Eq. 15 of the paper)

        log variance = v log beta_t + (1 - v) log(beta_t (1 - abar_s) / (1 - abar_t)),  v = (prediction + 1) / 2.

    Nothing is clipped. The step that ends on the clean sample adds no noise.
    """

    def step(self, noise: Tensor, timestep: int, sample: Tensor, draw: Callable[[], Tensor] | None = None) -> Tensor:
        """One step from `timestep` to the one visited after it.

        Args:
            noise: [B, 2 C, ...]: predicted noise, then the interpolation of the variance, -1 for the smallest and 1 for the largest.
            sample: [B, C, ...].
            draw: gives standard normal values of the sample's shape; called once in every step but the last.

        Raises:
            ValueError: the model predicts no variance, or there is no `draw`.
        """
        if noise.shape[1] != 2 * sample.shape[1]:
            raise ValueError(f"iddpm needs {2 * sample.shape[1]} predicted channels, noise and variance, and got {noise.shape[1]}")
        predicted, interpolation = noise.chunk(2, dim=1)
        alpha, before = self.alphas_cumprod[timestep].item(), self._before[timestep]
        clean = (sample - (1 - alpha) ** 0.5 * predicted) / alpha**0.5
        beta, share = 1 - alpha / before, (1 - before) / (1 - alpha)
        mean = beta * before**0.5 / (1 - alpha) * clean + share * (1 - beta) ** 0.5 * sample
        if before == 1.0:
            return mean
        if draw is None:
            raise ValueError("iddpm adds noise in every step but the last; give a draw")
        v = (interpolation + 1) / 2
        deviation = torch.exp(0.5 * (v * np.log(beta) + (1 - v) * np.log(share * beta)))
        return mean + deviation * draw()
