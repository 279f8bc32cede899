"""A tiny STDiT with random weights, a fake sampler, and recipes from the shipped configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from vdqbench.clock import StepClock
from vdqbench.models.roles import stdit_roles
from vdqbench.models.stdit import STDiT
from vdqbench.quant.recipe import Recipe

CONF = Path(__file__).resolve().parents[1] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
STEPS = 4
TINY = dict(input_size=(2, 4, 4), hidden_size=16, depth=2, num_heads=2, caption_channels=8, model_max_length=5)


def roles(model: STDiT) -> dict[str, str]:
    """Of the layers in the blocks; `stdit_roles` has those outside of them, too."""
    return {name: role for name, role in stdit_roles(model).items() if name.startswith("blocks.")}


def stdit(**changes: Any) -> STDiT:
    torch.manual_seed(0)
    model = STDiT(**{**TINY, **changes}).split_qkv().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


def inputs(prompt: int, step: int, rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * prompt + step)
    y = torch.randn(rows, 1, 5, 8, generator=torch.Generator().manual_seed(prompt))
    mask = (torch.arange(5) < 3 + prompt % 2).expand(rows, -1)
    x = torch.randn(rows, 4, 2, 4, 4, generator=generator) * (1 + step)
    return dict(x=x, timestep=torch.full((rows,), 999 - 100 * step), y=y, mask=mask)


def sample(model: STDiT, clock: StepClock, prompt: int, steps: int = STEPS) -> list[torch.Tensor]:
    """Outputs of one trajectory."""
    clock.reset(steps)
    outputs = []
    with torch.no_grad():
        for step in range(steps):
            outputs.append(model(**inputs(prompt, step)))
            clock.advance()
    return outputs


def method_config(name: str, steps: int = STEPS, **changes: Any) -> dict[str, Any]:
    """The shipped configuration of a method, resolved, for all layers; `changes` are dotted keys with `__` for dots."""
    config = OmegaConf.create({"method": OmegaConf.load(CONF / "method" / f"{name}.yaml"), "sampler": {"steps": steps}})
    if name == "tsq":
        config.method.ranges = steps
    if "moments" in config.method.get("calibration", {}):
        config.method.calibration.moments = min(config.method.calibration.moments, steps)
    for key, value in {"sites__only": ["*"], **changes}.items():
        OmegaConf.update(config, f"method.{key.replace('__', '.')}", value)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain["method"]


def recipe(name: str, weight: int = 8, activation: int = 8, steps: int = STEPS, **changes: Any) -> Recipe:
    return Recipe.from_config(method_config(name, steps, **changes), {"weight": weight, "activation": activation}, steps)
