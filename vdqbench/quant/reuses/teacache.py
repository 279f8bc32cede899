"""TeaCache: skip all blocks at steps whose input has hardly changed, and add what they added when they last ran.

Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv 2411.19108). A polynomial, fitted for
each model, turns the relative change of the first block's modulated input into an estimate of the change of the output;
estimates are added up, and below `threshold` the blocks are skipped. What is in front of the blocks and behind them always
runs. Decisions are made for each guidance branch where it has a call of its own, and for the whole batch otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vdqbench.errors import Unsupported
from vdqbench.quant.accumulator import Accumulator, relative_change
from vdqbench.quant.parts import Reuse, ReusePart

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vdqbench.clock import StepClock
    from vdqbench.models.base import Anatomy

COEFFICIENTS: dict[str, tuple[float, ...]] = {
    "identity": (1.0, 0.0),
    "hunyuan": (7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02),
    "opensora_v1_2": (2.17546007e02, -1.18329252e02, 2.68662585e01, -4.59364272e-02, 4.84426240e-02),
    "opensora_plan": (2.05943668e05, -1.48759286e04, 3.06085986e02, 1.31418080e00, 2.39658469e-03),
    "latte": (-2.46434137e03, 3.08044764e02, 8.07447667e01, -4.11385132e00, 1.11001402e-01),
    "cogvideox_2b": (-3.10658903e01, 2.54732368e01, -5.92380459e00, 1.75769064e00, -3.61568434e-03),
    "cogvideox_5b": (-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02),
    "flux": (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01),
    "mochi": (-3.51241319e03, 8.11675948e02, -6.09400215e01, 2.42429681e00, 3.05291719e-03),
}
"""Polynomials published with TeaCache, highest power first; they may be negative, and are not clamped, as in its code."""

Route = tuple[int | str | None, ...]
"""For each output of a block, the argument that it continues (its position or keyword); None for what is no tensor."""


@dataclass(frozen=True)
class Teacache(ReusePart):
    """Options of the reuse.

    Args:
        threshold: of the accumulated estimates; 0 skips nothing.
        coefficients: `identity`, the relative change itself, for models without a polynomial of their own, or the name of one.
    """

    threshold: float = 0.15
    coefficients: str = "identity"

    def __post_init__(self) -> None:
        self.require(self.threshold >= 0, "threshold", "a number of at least 0")
        self.choice("coefficients", COEFFICIENTS)

    @property
    def batch_dependent(self) -> bool:
        return True

    def semantic(self) -> dict[str, Any]:
        return {**super().semantic(), "coefficients": list(COEFFICIENTS[self.coefficients])}

    def start(self, denoiser: nn.Module, clock: StepClock, anatomy: Anatomy) -> Reuse:
        if not anatomy.blocks or anatomy.modulated is None:
            raise Unsupported(
                f"method.reuse.teacache needs a model that names its blocks and their modulated input, and {type(denoiser).__name__} "
                "does not; remove it from method.reuse"
            )
        return Cache(self, [denoiser.get_submodule(name) for name in anatomy.blocks], anatomy.modulated, clock)


@dataclass
class Memory:
    """What one guidance branch remembers of the steps before.

    Attributes:
        modulated: input of the last step, computed or not.
        step: the last one.
        residual: what the blocks added to each stream when they last ran; None for a stream that ends within them.
    """

    sum: Accumulator
    modulated: Tensor | None = None
    step: int = -2
    residual: list[Tensor | None] = field(default_factory=list)


class Cache(Reuse):
    """Stands in front of each block's forward."""

    def __init__(self, part: Teacache, blocks: Sequence[Any], modulated: Callable[..., Tensor], clock: StepClock) -> None:
        self.part, self.blocks, self.modulated, self.clock = part, list(blocks), modulated, clock
        self.before = [vars(block).get("forward") for block in self.blocks]
        self.forwards = [block.forward for block in self.blocks]
        self.routes: list[Route] = [()] * len(self.blocks)
        self._begin()
        for index, block in enumerate(self.blocks):
            block.forward = functools.partial(self._call, index)

    def computed(self) -> list[bool]:
        """A step counts as computed if any of its guidance branches was."""
        return [self.steps[step] for step in sorted(self.steps)]

    def close(self) -> None:
        for block, before in zip(self.blocks, self.before, strict=True):
            if before is None:
                vars(block).pop("forward", None)
            else:
                block.forward = before
        self.blocks, self.before = [], []
        self._begin()

    def _begin(self) -> None:
        self.trajectory = self.clock.trajectory
        self.steps: dict[int, bool] = {}
        self.branches: dict[str, Memory] = {}
        self.entered: list[Tensor | None] = []
        self.runs = True

    def _call(self, index: int, *args: Any, **kwargs: Any) -> Any:
        if index == 0:
            self.runs = self._decide(args, kwargs)
        if not self.runs:
            return self._skip(index, args, kwargs)
        output = self.forwards[index](*args, **kwargs)
        self.routes[index] = route(output, args, kwargs)
        if index == 0:
            self.entered = gather(self.routes[0], args, kwargs)
        if index == len(self.forwards) - 1:
            self.branches[self.clock.branch].residual = residuals(self.entered, output)
            self.entered = []
        return output

    def _decide(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the blocks run in this call; reads one number from the device, but at the first and the last step."""
        import torch

        clock = self.clock
        if clock.trajectory != self.trajectory:
            self._begin()
        last = clock.index(clock.steps) == clock.steps - 1
        memory = self.branches.setdefault(clock.branch, Memory(Accumulator(self.part.threshold)))
        new = self.modulated(self.blocks[0], args, kwargs).detach().to(torch.float32, copy=True)
        old, follows = memory.modulated, memory.step == clock.step - 1 and bool(memory.residual)
        change = math.inf
        if follows and not last and old is not None and old.shape == new.shape:
            change = polynomial(COEFFICIENTS[self.part.coefficients], float(relative_change(new, old)))
        memory.modulated, memory.step = new, clock.step
        runs = memory.sum.add(change)
        self.steps[clock.step] = self.steps.get(clock.step, False) or runs
        return runs

    def _skip(self, index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        streams = gather(self.routes[index], args, kwargs)
        if index == 0:
            added = self.branches[self.clock.branch].residual
            streams = [x if x is None or d is None else x + d for x, d in zip(streams, added, strict=True)]
        return tuple(streams) if len(streams) > 1 else streams[0]


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """Its value at x; highest power first."""
    return functools.reduce(lambda value, coefficient: value * x + coefficient, coefficients, 0.0)


def route(output: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Route:
    """Which argument each output of a block continues: the first one of its shape.

    Raises:
        Unsupported: two outputs have the same shape, or one has that of no argument.
    """
    outputs = output if isinstance(output, tuple) else (output,)
    shapes = [x.shape for x in outputs if hasattr(x, "shape")]
    if len(set(shapes)) < len(shapes):
        raise Unsupported(
            f"streams of the blocks have the same shape {tuple(shapes[0])} and cannot be told apart; remove teacache from method.reuse"
        )
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    found: list[int | str | None] = []
    for x in outputs:
        if not hasattr(x, "shape"):
            found.append(None)
            continue
        names = [name for name, value in given if getattr(value, "shape", None) == x.shape]
        if not names:
            raise Unsupported(
                f"a block makes {tuple(x.shape)} of streams of other shapes, so it cannot be skipped; remove teacache from method.reuse"
            )
        found.append(names[0])
    return tuple(found)


def gather(names: Route, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that a route names."""
    return [None if name is None else args[name] if isinstance(name, int) else kwargs[name] for name in names]


def residuals(entered: Sequence[Tensor | None], output: Any) -> list[Tensor | None]:
    """What the blocks added to each of the streams that entered them.

    Raises:
        Unsupported: none of the streams leaves them in its shape.
    """
    left = {x.shape: x for x in (output if isinstance(output, tuple) else (output,)) if hasattr(x, "shape")}
    added = [None if x is None or x.shape not in left else left[x.shape] - x for x in entered]
    if all(one is None for one in added):
        raise Unsupported(
            "the blocks give no stream the shape it had before them, so they cannot be skipped; remove teacache from method.reuse"
        )
    return added
