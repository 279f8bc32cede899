"""Tiny denoisers of three families with random weights, each with its roles, anatomy and a fake sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import tiny_stdit
import torch
from diffusers import HunyuanVideoTransformer3DModel, UNetMotionModel
from torch import Tensor, nn

from vdqbench.calibrate import Calibration, calibrate
from vdqbench.clock import StepClock
from vdqbench.models.base import Anatomy
from vdqbench.models.families import FAMILIES as PIPELINES
from vdqbench.models.roles import roles_by, stdit_anatomy, stdit_roles
from vdqbench.replay import CallRecorder, Calls

STEPS = 4


@dataclass(frozen=True)
class Tiny:
    """A denoiser, how it is built, and its arguments at a step of a prompt's trajectory."""

    denoiser: nn.Module
    roles: Mapping[str, str]
    anatomy: Anatomy
    arguments: Callable[[int, int], dict[str, Any]]
    layout: str = "batched"

    def sample(self, clock: StepClock, prompt: int) -> Tensor:
        """Outputs of one trajectory, [steps, ...]."""
        clock.reset(STEPS)
        outputs = []
        with torch.no_grad():
            for step in range(STEPS):
                out = self.denoiser(**self.arguments(prompt, step))
                outputs.append(out if isinstance(out, Tensor) else out[0])
                clock.advance()
        return torch.stack(outputs)

    def calibrated(self, prompts: int = 2) -> tuple[Calibration, Calls]:
        clock = StepClock(layout=self.layout)
        recorder = CallRecorder(clock)
        runs = [lambda p=p: self.sample(clock, p) for p in range(prompts)]
        return calibrate(self.denoiser, self.roles, runs, clock, calls=recorder), recorder.recorded()


def _random(model: nn.Module, std: float) -> nn.Module:
    """Random weights with a few large input channels, as trained ones have."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) * std / fan_in**0.5
        elif "norm" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model.eval().requires_grad_(False)


def _noise(prompt: int, step: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 * prompt + step))


def _stdit() -> Tiny:
    model: Any = _random(tiny_stdit.stdit(), 1.0)
    return Tiny(model, stdit_roles(model), stdit_anatomy(model), tiny_stdit.inputs)


def _hunyuan() -> Tiny:
    model: Any = _random(
        HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
            num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8,
            rope_axes_dim=(4, 6, 6),
        ),
        1.0,
    )  # fmt: skip

    def arguments(prompt: int, step: int) -> dict[str, Any]:
        return {
            "hidden_states": _noise(prompt, step, 1, 4, 2, 4, 4),
            "timestep": torch.tensor([1000 - 250 * step]),
            "encoder_hidden_states": _noise(prompt, 77, 1, 5, 16),
            "encoder_attention_mask": torch.ones(1, 5),
            "pooled_projections": _noise(prompt, 78, 1, 8),
            "guidance": torch.tensor([6000.0]),
            "return_dict": False,
        }

    family = PIPELINES["HunyuanVideoPipeline"]
    return Tiny(model, roles_by(family.rules, model), family.anatomy(model), arguments, "embedded")


def _unet() -> Tiny:
    model: Any = _random(
        UNetMotionModel(
            sample_size=8, block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), cross_attention_dim=16, num_attention_heads=2,
            motion_num_attention_heads=2, norm_num_groups=8, layers_per_block=1, use_motion_mid_block=False,
        ),
        1.0,
    )  # fmt: skip

    def arguments(prompt: int, step: int) -> dict[str, Any]:
        sample = _noise(prompt, step, 1, 4, 2, 8, 8).repeat(2, 1, 1, 1, 1)
        text = _noise(prompt, 77, 2, 3, 16).repeat_interleave(2, dim=0)  # for each frame, as the pipeline does
        return {"sample": sample, "timestep": 999 - 250 * step, "encoder_hidden_states": text, "return_dict": False}

    family = PIPELINES["AnimateDiffPipeline"]
    return Tiny(model, roles_by(family.rules, model), family.anatomy(model), arguments, "batched_reversed")


FAMILIES: dict[str, Callable[[], Tiny]] = {"stdit": cache(_stdit), "hunyuan": cache(_hunyuan), "unet_motion": cache(_unet)}
