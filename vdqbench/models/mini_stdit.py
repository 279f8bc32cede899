"""mini_stdit: a small STDiT really trained on shapes videos, whose weights ship in the package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import nn

from vdqbench import shapes
from vdqbench.clock import StepClock
from vdqbench.models.base import Adapter, Anatomy, Job, initial_noise
from vdqbench.models.ddim import RespacedDDIM, guide
from vdqbench.models.roles import stdit_anatomy, stdit_roles
from vdqbench.models.stdit import STDiT
from vdqbench.models.words import WordEncoder


class MiniSTDiT(Adapter):
    """The embedded default model: text to 16 frames of 32x32.

    Args:
        weights: folder with mini_stdit{,_text,_vae}.{json,safetensors}.
        sampler: `steps`, `guidance` and `guided_channels`.
        device: where it runs; parameters are float32 (they ship as bfloat16).
    """

    fps = shapes.FPS

    def __init__(self, weights: Path, sampler: dict[str, Any], device: str) -> None:
        def load(name: str, build: Any) -> Any:
            module = build(json.loads((weights / f"{name}.json").read_text())).eval().requires_grad_(False)
            state = {key: value.float() for key, value in load_file(weights / f"{name}.safetensors").items()}
            missing, unexpected = module.load_state_dict(state, strict=False)
            if unexpected or set(missing) - {"pos_embed", "pos_embed_temporal"}:
                raise ValueError(f"{name}.safetensors does not fit its configuration: missing {missing}, unexpected {unexpected}")
            return module.to(device)

        self.stdit: STDiT = load("mini_stdit", lambda config: STDiT(**config)).split_qkv()
        self.text = load("mini_stdit_text", lambda config: WordEncoder(**config))
        self.vae = load("mini_stdit_vae", lambda config: AutoencoderKL(**config))
        self.sampler, self.device = sampler, torch.device(device)
        self.clock, self.scheduler = StepClock(), RespacedDDIM()

    @property
    def denoiser(self) -> nn.Module:
        return self.stdit

    def layers(self) -> dict[str, str]:
        return stdit_roles(self.stdit)

    def anatomy(self) -> Anatomy:
        return stdit_anatomy(self.stdit)

    def example(self) -> dict[str, Any]:
        y = self.stdit.y_embedder.y_embedding[None, None]
        x = torch.zeros(1, self.stdit.in_channels, *self.stdit.input_size, device=self.device)
        return {"x": x, "timestep": torch.zeros(1, device=self.device), "y": y, "mask": None}

    @torch.no_grad()  # not inference_mode, under which layers cannot tell that they were given the same, unchanged tensor
    def generate(self, jobs: Sequence[Job]) -> Iterator[np.ndarray]:
        y, mask = self.text(self.text.tokenize([job.prompt for job in jobs]))
        null = self.stdit.y_embedder.y_embedding.expand_as(y)
        y, mask = torch.cat([y, null]), torch.cat([mask, mask])
        shape = (self.stdit.in_channels, *self.stdit.input_size)
        x = torch.stack([initial_noise(job, shape) for job in jobs]).to(self.device)
        with self.clock.attached(self.scheduler, [self.stdit]):
            self.scheduler.set_timesteps(self.sampler["steps"])
            for t in self.scheduler.timesteps.tolist():
                out = self.stdit(torch.cat([x, x]), torch.full((2 * len(jobs),), t, device=self.device), y, mask)
                conditional, unconditional = out[:, : self.stdit.in_channels].chunk(2)
                noise = guide(conditional, unconditional, self.sampler["guidance"], self.sampler["guided_channels"])
                x = self.scheduler.step(noise, t, x)
        frames = self.vae.decode(x.transpose(1, 2).flatten(0, 1) / self.vae.config.scaling_factor).sample
        frames = (frames.clamp(-1, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        videos = frames.unflatten(0, (len(jobs), -1)).permute(0, 1, 3, 4, 2)
        yield from videos.cpu().numpy()
