"""Ancestral sampling of Open-Sora v1.0: timesteps and a trajectory of the original code, and diffusers' step as an independent one."""

from __future__ import annotations

import math

import pytest
import torch

from vdqbench.models.ddim import guide
from vdqbench.models.iddpm import RespacedIDDPM

SHAPE = (2, 4, 3)


def wave(phase: float) -> torch.Tensor:
    return torch.cos(0.37 * torch.arange(math.prod(SHAPE), dtype=torch.float64) + phase).float().reshape(SHAPE) * 1.3


def toy(x: torch.Tensor, t: int, y: float) -> torch.Tensor:
    """A made-up model that predicts noise and variance."""
    sine = torch.sin(torch.tensor(t * 0.01))
    return torch.cat([0.8 * x * (1 - 0.001 * t) + 0.1 * y * sine, torch.tanh(x.flip(1) * 0.5 + y + sine)], dim=1)


@pytest.mark.parametrize(
    "steps, row, total, sum_of_timesteps",
    [
        (100, [3.60464, -4.24589, -8.692112, -3.727776], -38.11828, 49950),
        (20, [10.325257, -7.585083, -17.533802, -8.339931], -44.84653, 9990),
    ],
)
def test_trajectory_of_the_original_code(steps, row, total, sum_of_timesteps):
    """Numbers of Open-Sora v1.0's IDDPM (guidance 7 on three channels) with the same model and the same draws."""
    scheduler, drawn = RespacedIDDPM(), [0]
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.sum().item() == sum_of_timesteps and scheduler.timesteps[[0, -1]].tolist() == [999, 0]

    def draw() -> torch.Tensor:
        drawn[0] += 1
        return wave(drawn[0])

    x = wave(0.5)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(guide(toy(x, t, 0.7), toy(x, t, -0.2), 7.0, 3), t, x, draw)
    assert drawn[0] == steps - 1, "the last step adds no noise"
    torch.testing.assert_close(x[0, :, 0], torch.tensor(row), rtol=0, atol=2e-5)
    assert x.sum().item() == pytest.approx(total, abs=1e-4)


def test_steps_agree_with_diffusers_learned_range():
    from diffusers import DDPMScheduler

    ours = RespacedIDDPM()
    ours.set_timesteps(25)
    theirs = DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type="learned_range", clip_sample=False)
    theirs.set_timesteps(timesteps=ours.timesteps.tolist())
    torch.manual_seed(0)
    for t in ours.timesteps.tolist():
        x, prediction = torch.randn(SHAPE), torch.randn(2, 8, 3)
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(t))
        expected = theirs.step(prediction, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(ours.step(prediction, t, x, lambda noise=noise: noise), expected, rtol=1e-3, atol=1e-4)


def test_what_it_needs():
    scheduler = RespacedIDDPM()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="needs 8 predicted channels"):
        scheduler.step(torch.zeros(2, 4, 3), 999, torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="give a draw"):
        scheduler.step(torch.zeros(2, 8, 3), 999, torch.zeros(SHAPE))
