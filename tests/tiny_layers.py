"""Small modules with channels of very different size, and what a calibration sees of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdqbench.calibrate import Calibration, calibrate
from vdqbench.clock import StepClock
from vdqbench.models.base import Anatomy
from vdqbench.quant.quantize import Quantized, quantize
from vdqbench.quant.recipe import Recipe
from vdqbench.replay import CallRecorder, Calls

STEPS = 4


class Attention(nn.Module):
    """Softmax attention of one head without biases in q, k, v."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).transpose(-1, -2) / x.shape[-1] ** 0.5).softmax(-1)
        return self.out(weights @ self.v(x))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and feed-forward behind norms whose gains (and offsets) spread the channels over orders of magnitude."""

    def __init__(self, width: int = 32, spread: float = 1.5, offset: float = 0.0) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width), FeedForward(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        for norm in self.norms:
            norm.weight.data = torch.exp(spread * torch.randn(width))
            norm.bias.data = offset * torch.randn(width) * norm.weight.data

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


ROLES = {
    "attn.q": "self_attn.q",
    "attn.k": "self_attn.k",
    "attn.v": "self_attn.v",
    "attn.out": "self_attn.out",
    "mlp.up": "ffn.up",
    "mlp.down": "ffn.down",
}


def block(**options: Any) -> Block:
    torch.manual_seed(0)
    return Block(**options).eval().requires_grad_(False)


def tokens(width: int, count: int = 24) -> Callable[[int, int], tuple[Tensor, ...]]:
    """Inputs [2, count, width] of a prompt at a step."""
    return lambda prompt, step: (torch.randn(2, count, width, generator=torch.Generator().manual_seed(100 * prompt + step)),)


@dataclass(frozen=True)
class Observed:
    """A model after calibration."""

    model: nn.Module
    roles: Mapping[str, str]
    calibration: Calibration
    calls: Calls
    clock: StepClock
    anatomy: Anatomy

    def quantized(self, recipe: Recipe, **options: Any) -> Quantized:
        return quantize(
            self.model, self.roles, recipe, self.calibration, self.clock, anatomy=self.anatomy, calls=lambda: self.calls, **options
        )

    @torch.no_grad()
    def outputs(self, recipe: Recipe | None = None, unseen: Callable[[int, int], tuple[Any, ...]] | None = None) -> list[Tensor]:
        """Of the calls of calibration, or of a prompt that it did not see."""

        def first(value: Any) -> Tensor:
            return value if isinstance(value, Tensor) else value[0]

        def run() -> list[Tensor]:
            if unseen is None:
                return [first(call.repeat(self.model, self.clock, STEPS)) for call in self.calls.calls]
            made = []
            for step in range(STEPS):
                with self.clock.at(step, STEPS, "both"):
                    made.append(first(self.model(*unseen(99, step))))
            return made

        if recipe is None:
            return run()
        with self.quantized(recipe):
            return run()

    def error(self, recipe: Recipe, **options: Any) -> float:
        """Relative squared error of the outputs."""
        pairs = zip(self.outputs(recipe, **options), self.outputs(**options), strict=True)
        errors, sizes = zip(*((float((a - b).square().sum()), float(b.square().sum())) for a, b in pairs), strict=True)
        return sum(errors) / sum(sizes)


def observe(
    model: nn.Module, roles: Mapping[str, str], inputs: Callable[[int, int], Any], prompts: int = 2, anatomy: Anatomy | None = None
) -> Observed:
    """Calibrate on trajectories of STEPS calls with the inputs (a tuple of arguments or a dict of them) of each prompt and step."""
    clock = StepClock()
    recorder = CallRecorder(clock)

    def trajectory(prompt: int) -> None:
        recorder.begin()
        clock.reset(STEPS)
        for step in range(STEPS):
            given = inputs(prompt, step)
            with torch.no_grad():
                model(**given) if isinstance(given, dict) else model(*given)
            clock.advance()

    with recorder.attached(model):
        calibration = calibrate(model, roles, [lambda p=p: trajectory(p) for p in range(prompts)], clock)
    return Observed(model, dict(roles), calibration, recorder.recorded(), clock, anatomy or Anatomy())


def recipe_of(
    transform: Mapping[str, Any],
    bits: tuple[int, int] = (8, 8),
    weight: Mapping[str, Any] | None = None,
    activation: Mapping[str, Any] | None = None,
    draw: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Recipe:
    """Transforms with min-max weights by channel and static min-max inputs, unless others are given."""
    method = {
        "name": "test",
        "transform": transform,
        "weight": weight or {"grid": "minmax"},
        "activation": activation or {"grid": "static"},
        "calibration": draw or {"draw": "single"},
        **rest,
    }
    return Recipe.from_config(method, {"weight": bits[0], "activation": bits[1]}, STEPS)


def without_quantization(recipe: Recipe) -> Recipe:
    """The same transforms, and nothing on a grid."""
    return replace(recipe, weight=None, activation=None)
