"""How much noise quantization adds to each layer, given the input it has in full precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vdqbench.quant.quantize import Quantized
from vdqbench.replay import Calls

CEILING = 200.0
"""dB reported for an output without any error: beyond what float32 resolves."""


def layer_sqnr(model: Quantized, calls: Calls, prompts: int = 1) -> dict[str, list[float | None]]:
    """Signal-to-quantization-noise ratio of each layer's output at each step, in dB: 10 log10(|y|^2 / |y_q - y|^2).

    Trajectories of calibration are repeated in full precision; beside its own output y, each layer computes the quantized y_q
    from the same input. So errors are the layer's own, not those of the layers before it.

    Args:
        prompts: number of trajectories, from the first.

    Returns:
        By layer, a value for each step; None where reuse of steps left the layer out, or where y is zero.
    """
    steps, clock = calls.steps, model.clock
    signal = {name: torch.zeros(steps, dtype=torch.float64) for name in model.runs}
    noise = {name: torch.zeros(steps, dtype=torch.float64) for name in model.runs}

    def measure(name: str, full: Tensor, quantized: Tensor) -> None:
        error = (quantized.double() - full.double()).square().sum()
        signal[name][clock.step] += full.double().square().sum().cpu()
        noise[name][clock.step] += error.cpu()

    with torch.no_grad(), beside(model, measure):
        for prompt in range(min(prompts, calls.prompts)):
            clock.reset(steps)
            for step in range(steps):
                for call in calls.at(prompt, step):
                    call.repeat(model.denoiser, clock, steps)
                clock.advance()
    return {name: [_decibel(s, n) for s, n in zip(signal[name].tolist(), noise[name].tolist(), strict=True)] for name in signal}


@contextmanager
def beside(model: Quantized, measure: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Let each quantized layer give its full-precision output for a while, and show both outputs to `measure`."""
    before = {}

    def both(name: str, module: Any, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        plain: Any = vars(type(module).__mro__[2])["forward"]  # that of the class it was exchanged for

        def forward(x: Tensor) -> Tensor:
            full = plain(module, x)
            measure(name, full, run(x))
            return full

        return forward

    try:
        for name in model.runs:
            module: Any = model.denoiser.get_submodule(name)
            before[module] = module.run
            module.run = both(name, module, module.run)
        yield
    finally:
        for module, run in before.items():
            module.run = run


def _decibel(signal: float, noise: float) -> float | None:
    if signal == 0:
        return None
    return CEILING if noise == 0 else min(CEILING, 10 * math.log10(signal / noise))
