"""mini_stdit: a small STDiT really trained on shapes videos, whose weights ship in the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from vdqbench import shapes
from vdqbench.config import Model
from vdqbench.models.base import Condition, Job
from vdqbench.models.stdit import STDiT
from vdqbench.models.stdit_adapter import STDiTAdapter
from vdqbench.models.words import WordEncoder


class MiniSTDiT(STDiTAdapter):
    """The embedded default model: text to 16 frames of 32x32.

    Args:
        model: its folder has mini_stdit{,_text,_vae}.{json,safetensors}.
        sampler: `name`, `steps`, `guidance`, `guided_channels` and `options`.
        device: where it runs; parameters are float32 (they ship as bfloat16).
    """

    fps = shapes.FPS

    def __init__(self, model: Model, sampler: dict[str, Any], device: str) -> None:
        super().__init__(sampler, device)
        self.model = model
        self._loaded: dict[str, Any] = {}

    @property
    def stdit(self) -> STDiT:
        return self._part("denoiser", "mini_stdit", lambda config: STDiT(**config), STDiT.split_qkv)

    @property
    def text(self) -> WordEncoder:
        """The text encoder; loaded if it is not."""
        return self._part("encoder", "mini_stdit_text", lambda config: WordEncoder(**config))

    @property
    def vae(self) -> Any:
        return self._part("decoder", "mini_stdit_vae", lambda config: AutoencoderKL(**config))

    def release(self, part: str) -> None:
        if self.model.offload != "none":
            self._loaded.pop(part, None)

    def _part(self, part: str, name: str, build: Callable[[Any], Any], finish: Callable[[Any], Any] = lambda module: module) -> Any:
        if part not in self._loaded:
            folder = self.model.folder
            module = build(json.loads((folder / f"{name}.json").read_text())).eval().requires_grad_(False)
            state = {key: value.float() for key, value in load_file(folder / f"{name}.safetensors").items()}
            missing, unexpected = module.load_state_dict(state, strict=False)
            if unexpected or set(missing) - {"pos_embed", "pos_embed_temporal"}:
                raise ValueError(f"{name}.safetensors does not fit its configuration: missing {missing}, unexpected {unexpected}")
            self._loaded[part] = finish(module.to(self.device))
        return self._loaded[part]

    @torch.no_grad()
    def encode(self, jobs: Sequence[Job]) -> list[Condition]:
        y, mask = self.text(self.text.tokenize([job.prompt for job in jobs]))
        return [{"y": one.cpu(), "mask": kept.cpu()} for one, kept in zip(y, mask, strict=True)]
