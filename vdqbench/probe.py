"""How far a quantized denoiser is from the unquantized one, at moments of the calibration trajectories: seconds, no video.

Every moment is repeated with what the unquantized model was given there, so errors do not add up along a trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from vdqbench import generate
from vdqbench.config import Cell
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.progress import Progress
from vdqbench.quant.evidence import first_tensor
from vdqbench.quant.layer import swap, unswap
from vdqbench.quant.quantize import Quantized
from vdqbench.replay import Call
from vdqbench.store import Store


def whole(output: Tensor) -> Tensor:
    """What the denoiser predicts, [B, C, T, H, W]."""
    return output


def over_time(output: Tensor) -> Tensor:
    """Differences between neighbouring frames.

    Raises:
        Unsupported: the output has no frames in dimension 2.
    """
    if output.ndim != 5 or output.shape[2] < 2:
        raise Unsupported(f"temporal_error needs an output [B, C, T, H, W] of several frames, not {list(output.shape)}; use output_error")
    return output.diff(dim=2)


def of_guidance(output: Tensor) -> Tensor:
    """Conditional less unconditional half: what the prompt changes.

    Raises:
        Unsupported: there are no halves.
    """
    if len(output) % 2:
        raise Unsupported("guidance_error needs a denoiser that gets both guidance branches in one batch; use output_error")
    conditional, unconditional = output.chunk(2)
    return conditional - unconditional


ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"output_error": whole, "temporal_error": over_time, "guidance_error": of_guidance}
"""What is compared: the squared error of it, relative to its square, over all moments."""


def spread(prompts: int, first: int, last: int, count: int) -> list[tuple[int, int]]:
    """(prompt, step) of `count` moments in steps first..last - 1: evenly over the steps, the prompts in turn; all of them, if fewer."""
    width = last - first
    if count >= prompts * width:
        return [(prompt, step) for step in range(first, last) for prompt in range(prompts)]
    return list(dict.fromkeys((i % prompts, first + (2 * i + 1) * width // (2 * count)) for i in range(count)))


class Probe:
    """The unquantized model's calls and outputs at some moments.

    Args:
        cell: says model, sampler and calibration prompts.
        ranges: equal parts of the steps that are looked at apart from each other.
        moments: how many in each range.
        kinds: names of `ERRORS`.
    """

    def __init__(self, cell: Cell, store: Store, progress: Progress, ranges: int, moments: int, kinds: Sequence[str]) -> None:
        generate.measured(cell, store, progress)
        calls, self.adapter, self.kinds = generate.calls(cell, store), generate.load_adapter(cell), tuple(kinds)
        if "guidance_error" in self.kinds and not self.adapter.clock.batched:
            raise Unsupported(f"guidance_error needs both guidance branches in one call, which {cell.model.name} does not make")
        self.steps = calls.steps
        bounds = [calls.steps * r // ranges for r in range(ranges + 1)]
        drawn = [spread(calls.prompts, first, last, moments) for first, last in pairwise(bounds)]
        self.calls = [[call for moment in part for call in calls.at(*moment)] for part in drawn]
        self.exact = [[self._output(call) for call in part] for part in self.calls]

    def errors(self, part: int | None = None) -> dict[str, float]:
        """Error of each kind, of the model as it is now: in one range, or in all together."""
        parts = range(len(self.calls)) if part is None else [part]
        error, size = dict.fromkeys(self.kinds, 0.0), dict.fromkeys(self.kinds, 0.0)
        for one in parts:
            for call, exact in zip(self.calls[one], self.exact[one], strict=True):
                output = self._output(call)
                for kind in self.kinds:
                    given, wanted = ERRORS[kind](output), ERRORS[kind](exact)
                    error[kind] += float((given - wanted).square().sum())
                    size[kind] += float(wanted.square().sum())
        return {kind: error[kind] / max(size[kind], torch.finfo(torch.float32).tiny) for kind in self.kinds}

    def _output(self, call: Call) -> Tensor:
        return first_tensor(call.repeat(self.adapter.denoiser, self.adapter.clock, self.steps)).float()


@contextmanager
def applied(cell: Cell, store: Store, progress: Progress) -> Iterator[Quantized]:
    """The cell's recipe on its model, as long as single moments can be repeated with it.

    Raises:
        ConfigError: a schedule decides along the trajectory, or steps are reused.
    """
    with generate.quantized(cell, store, progress) as (_, model):
        if model.reuse or (model.schedule is not None and model.schedule.chosen() is not None):
            raise ConfigError(
                f"method={cell.method} decides along the trajectory, which repeating single moments cannot show: give by=SCORE of videos"
            )
        yield model


@contextmanager
def taken_off(model: Quantized) -> Iterator[None]:
    """The model with its own layers for a while."""
    for name in model.runs:
        unswap(model.denoiser.get_submodule(name))
    try:
        yield
    finally:
        for name, run in model.runs.items():
            swap(model.denoiser.get_submodule(name), run)


@contextmanager
def put_on(model: Quantized, layers: Sequence[str]) -> Iterator[None]:
    """Some of the quantized layers in their places for a while, in a model whose layers are `taken_off`."""
    for name in layers:
        swap(model.denoiser.get_submodule(name), model.runs[name])
    try:
        yield
    finally:
        for name in layers:
            unswap(model.denoiser.get_submodule(name))
