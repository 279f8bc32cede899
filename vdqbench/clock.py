"""The step index and guidance branch of the denoiser call in progress, counted in scheduler steps.

Neither denoiser calls (two-pass guidance calls twice a step) nor timestep values (Heun and PNDM repeat them) tell the
step; the scheduler's own `step` does. Everything that depends on time asks the clock, and nothing else knows it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

LAYOUTS = ("batched", "batched_reversed", "two_pass", "embedded")


class StepClock:
    """Counts the steps of one sampling trajectory at a time.

    Args:
        steps: number of scheduler steps of a trajectory; 0 as long as it is unknown. `attached` keeps it up to date.
        layout: how classifier-free guidance calls the denoiser: `batched`, one call a step whose first half of
            dimension 0 is the conditional branch; `batched_reversed`, the same with the unconditional branch in the first
            half; `two_pass`, two calls a step, conditional first; `embedded`, one call without an unconditional branch.

    Attributes:
        step: index of the scheduler step in progress, 0 the noisiest.
        trajectory: number of trajectories begun; what remembers earlier steps starts anew when it changes.
    """

    def __init__(self, steps: int = 0, layout: str = "batched") -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        self.layout = layout
        self.trajectory = 0
        self.reset(steps)

    def reset(self, steps: int) -> None:
        """Start a trajectory of `steps` steps."""
        self.steps, self.step, self._call = steps, 0, 0
        self._calls: dict[int, int] = {}
        self.trajectory += 1

    @contextmanager
    def at(self, step: int, steps: int, branch: str) -> Iterator[None]:
        """Be at a moment of a trajectory for a while, to repeat a call of the denoiser that was made there."""
        before = self.steps, self.step, self._call
        self.steps, self.step, self._call = steps, step, {"cond": 1, "uncond": 2}.get(branch, 0)
        try:
            yield
        finally:
            self.steps, self.step, self._call = before

    def advance(self) -> None:
        """End the step in progress."""
        self.step, self._call = self.step + 1, 0
        self._calls.clear()

    @property
    def batched(self) -> bool:
        """Whether the two halves of dimension 0 of a call are the guidance branches."""
        return self.layout in ("batched", "batched_reversed")

    def conditional(self, rows: Tensor) -> Tensor:
        """The conditional half of an output of the denoiser; all of it where the branches are not its halves."""
        if not self.batched or len(rows) % 2:
            return rows
        return rows.chunk(2)[self.layout == "batched_reversed"]

    @property
    def branch(self) -> str:
        """`cond` or `uncond` in two-pass guidance; else `both`, or `both_reversed` if the unconditional half comes first."""
        if self.layout != "two_pass":
            return "both_reversed" if self.layout == "batched_reversed" else "both"
        if self._call not in (1, 2):
            raise RuntimeError(f"two-pass guidance calls the denoiser twice a step, but this is call {self._call} of step {self.step}")
        return ("cond", "uncond")[self._call - 1]

    def index(self, ranges: int) -> int:
        """Which of `ranges` equal parts of the trajectory the present step is in.

        Raises:
            RuntimeError: no trajectory is in progress.
        """
        if ranges == 1:
            return 0
        if not 0 <= self.step < self.steps:
            raise RuntimeError(
                f"step {self.step} of {self.steps}: a layer that depends on time ran outside of clock.attached(scheduler, denoisers)"
            )
        return self.step * ranges // self.steps

    @contextmanager
    def attached(self, scheduler: Any, denoisers: Mapping[str, nn.Module] | Iterable[nn.Module]) -> Iterator[StepClock]:
        """Follow a scheduler of diffusers' interface and the modules it steps; undone on exit.

        `scheduler.set_timesteps` starts a trajectory, `scheduler.step` ends a step. Attach for each generation anew: a
        pipeline whose scheduler is replaced afterwards leaves the clock at 0.
        """
        modules = denoisers.values() if isinstance(denoisers, Mapping) else denoisers
        set_timesteps, step = scheduler.set_timesteps, scheduler.step

        @functools.wraps(set_timesteps)
        def counted_set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self.reset(len(scheduler.timesteps))
            return result

        @functools.wraps(step)
        def counted_step(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.advance()
            return result

        def count_call(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._call = self._calls[id(module)] = self._calls.get(id(module), 0) + 1

        with ExitStack() as undo:
            for name, replacement in (("set_timesteps", counted_set_timesteps), ("step", counted_step)):
                undo.enter_context(shadowed(scheduler, name, replacement))
            for module in modules:
                undo.callback(module.register_forward_pre_hook(count_call, prepend=True).remove)  # before whoever asks
            yield self

    def __deepcopy__(self, memo: dict[int, Any]) -> StepClock:
        """A copied model keeps the clock it was given."""
        return self


@contextmanager
def shadowed(instance: Any, name: str, value: Any) -> Iterator[None]:
    """Shadow an attribute of one instance for a while."""
    before = vars(instance).get(name)
    setattr(instance, name, value)
    try:
        yield
    finally:
        delattr(instance, name)
        if before is not None:
            setattr(instance, name, before)
