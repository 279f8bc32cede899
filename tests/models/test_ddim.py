"""The sampler of Open-Sora v1.0 and ViDiT-Q: timesteps, noise levels, update and guidance."""

from __future__ import annotations

import pytest
import torch

from vdqbench.models.ddim import RespacedDDIM, guide

TIMESTEPS = [0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841, 894, 946, 999]
ALPHA_BAR = [
    *[0.9999, 0.96665, 0.885552, 0.76613, 0.629336, 0.48713, 0.358725, 0.248368, 0.162535, 0.101497, 0.0593915, 0.0332288, 0.0173821],
    *[0.0085916, 0.00407263, 0.00179891, 0.000763554, 0.000301321, 0.000114496, 4.03583e-05],
]


def test_twenty_steps():
    scheduler = RespacedDDIM()
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == TIMESTEPS[::-1]
    torch.testing.assert_close(scheduler.alphas_cumprod[TIMESTEPS].float(), torch.tensor(ALPHA_BAR), rtol=1e-5, atol=0)


def test_steps_follow_the_exact_solution_for_known_noise():
    """If the model always predicts the true noise, each step lands on the same clean sample at the next noise level."""
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, dtype=torch.float64).unbind(0)
    scheduler = RespacedDDIM()
    scheduler.set_timesteps(20)
    x = None
    for t, following in zip(TIMESTEPS[::-1], [*TIMESTEPS[-2::-1], None], strict=True):
        alpha = scheduler.alphas_cumprod[t]
        x = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise if x is None else x
        x = scheduler.step(noise, t, x)
        level = scheduler.alphas_cumprod[following] if following is not None else torch.tensor(1.0)
        torch.testing.assert_close(x, level.sqrt() * clean + (1 - level).sqrt() * noise)
    torch.testing.assert_close(x, clean)


def test_timesteps_agree_with_diffusers_linspace():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(1000, 1e-4, 0.02, "linear", timestep_spacing="linspace")
    theirs.set_timesteps(20)
    assert theirs.timesteps.tolist() == TIMESTEPS[::-1]
    torch.testing.assert_close(theirs.alphas_cumprod, RespacedDDIM().alphas_cumprod.float(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("channels", [0, 3, 4])
def test_guidance_on_some_channels(channels):
    torch.manual_seed(1)
    c, u = torch.randn(2, 2, 4, 3).unbind(0)
    out = guide(c, u, 4.0, channels)
    torch.testing.assert_close(out[:, :channels], 4 * c[:, :channels] - 3 * u[:, :channels])
    assert torch.equal(out[:, channels:], c[:, channels:])
